//! Maps as this crate uses them: keys and values are plain layouts, values of per-CPU maps are summed.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, BorrowedFd};

use agentd_ebpf_common::{Block, Edge, EdgeKey, Event, Known, Net, Processes, Sched};
use aya::maps::{Map, MapData};

use super::figures::Sum;
use crate::call;

/// Entries that are copied at once.
const BATCH: usize = 64;

/// How often, and after how long, an update is tried again for which the kernel had no memory at hand: it keeps a few
/// elements of each size ready and makes new ones behind, so that many updates in a row can find none.
const AGAIN: u32 = 200;
const MOMENT: std::time::Duration = std::time::Duration::from_micros(250);

/// Writes a value, waiting for memory if there is none at hand; with `new_only`, gives false if there is a value already.
pub fn update(map: BorrowedFd<'_>, key: &[u8], value: &[u8], new_only: bool) -> io::Result<bool> {
    let mut left = AGAIN;
    loop {
        match call::map_update(map, key, value, new_only) {
            Err(error) if error.raw_os_error() == Some(libc::ENOMEM) && left > 0 => {
                left -= 1;
                std::thread::sleep(MOMENT);
            }
            done => return done,
        }
    }
}

/// Types of which any bytes are a value.
///
/// # Safety
/// The type must be `repr(C)` and hold integers and arrays of them only, without padding.
pub unsafe trait Layout: Copy + 'static {}

// SAFETY: each is `repr(C)`, made of integers alone, and has its padding spelled out; a test holds the sizes.
unsafe impl Layout for Sched {}
// SAFETY: as above
unsafe impl Layout for Processes {}
// SAFETY: as above
unsafe impl Layout for Block {}
// SAFETY: as above
unsafe impl Layout for Net {}
// SAFETY: as above
unsafe impl Layout for Known {}
// SAFETY: as above
unsafe impl Layout for Edge {}
// SAFETY: as above
unsafe impl Layout for EdgeKey {}
// SAFETY: as above
unsafe impl Layout for Event {}
// SAFETY: an integer
unsafe impl Layout for u64 {}

/// The bytes of a value.
pub fn bytes<T: Layout>(value: &T) -> &[u8] {
    // SAFETY: `Layout` has no padding, so every byte of it is initialised; the slice borrows the value.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

/// A value from its bytes; none if there are too few.
pub fn value<T: Layout>(bytes: &[u8]) -> Option<T> {
    let bytes = bytes.get(..size_of::<T>())?;
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: source and destination are `size_of::<T>()` long and do not overlap; any bytes are a `T`.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), value.as_mut_ptr().cast(), size_of::<T>());
        Some(value.assume_init())
    }
}

/// The data of a map of any kind that is used here.
pub fn data(map: &Map) -> Option<&MapData> {
    match map {
        Map::HashMap(data) | Map::PerCpuHashMap(data) | Map::LruHashMap(data) | Map::RingBuf(data) => Some(data),
        _ => None,
    }
}

/// A map with a value for each possible CPU under each key.
#[derive(Debug, Clone, Copy)]
pub struct PerCpu<'a> {
    map: BorrowedFd<'a>,
    cpus: usize,
}

impl<'a> PerCpu<'a> {
    /// Takes a map whose values are of type `V`; none if they are of another size.
    pub fn new<V: Layout>(map: &'a Map, cpus: usize) -> Option<Self> {
        let data = data(map)?;
        let info = data.info().ok()?;
        (info.value_size() as usize == size_of::<V>() && info.key_size() == 8)
            .then(|| Self { map: data.fd().as_fd(), cpus })
    }

    /// Makes an entry without counts; one that is there is left.
    pub fn create<V: Layout + Sum>(&self, key: u64) -> io::Result<()> {
        let zero: Vec<u8> = bytes(&V::ZERO).repeat(self.cpus);
        update(self.map, &key.to_ne_bytes(), &zero, true).map(drop)
    }

    /// The sum under a key.
    pub fn read<V: Layout + Sum>(&self, key: u64) -> Option<V> {
        let mut all = vec![0; size_of::<V>() * self.cpus];
        call::map_lookup(self.map, &key.to_ne_bytes(), &mut all).ok()?.then(|| sum(&all))
    }

    /// Takes an entry out.
    pub fn remove(&self, key: u64) {
        let _ = call::map_delete(self.map, &key.to_ne_bytes());
    }

    /// Gives each key with its sum.
    pub fn each<V: Layout + Sum>(&self, mut with: impl FnMut(u64, V)) -> io::Result<()> {
        let length = size_of::<V>() * self.cpus;
        let mut values = vec![0; length * BATCH];
        each_entry(self.map, size_of::<u64>(), length, &mut values, |key, all| {
            if let Some(key) = value::<u64>(key) {
                with(key, sum(all));
            }
        })
    }
}

fn sum<V: Layout + Sum>(all: &[u8]) -> V {
    let mut total = V::ZERO;
    for one in all.chunks_exact(size_of::<V>()) {
        if let Some(one) = value::<V>(one) {
            total.add(&one);
        }
    }
    total
}

/// Gives each entry of a hash map, in pieces of [`BATCH`]. A bucket that holds more than that makes the piece larger.
fn each_entry(
    map: BorrowedFd<'_>,
    key_length: usize,
    value_length: usize,
    values: &mut Vec<u8>,
    mut with: impl FnMut(&[u8], &[u8]),
) -> io::Result<()> {
    let mut piece = BATCH;
    let mut keys = vec![0; key_length * piece];
    values.resize(value_length * piece, 0);
    let mut after = None;
    loop {
        match call::map_lookup_batch(map, &mut after, &mut keys, values, piece as u32) {
            Ok((count, more)) => {
                for (key, value) in
                    keys.chunks_exact(key_length).zip(values.chunks_exact(value_length)).take(count.min(piece))
                {
                    with(key, value);
                }
                if !more {
                    return Ok(());
                }
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && piece < 1 << 16 => {
                piece *= 4;
                keys.resize(key_length * piece, 0);
                values.resize(value_length * piece, 0);
            }
            Err(error) => return Err(error),
        }
    }
}

/// All edges.
pub fn edges(map: &Map) -> io::Result<Vec<(EdgeKey, Edge)>> {
    let mut all = Vec::new();
    let Some(data) = data(map) else { return Ok(all) };
    let mut values = Vec::new();
    each_entry(data.fd().as_fd(), size_of::<EdgeKey>(), size_of::<Edge>(), &mut values, |key, edge| {
        if let (Some(key), Some(edge)) = (value(key), value(edge)) {
            all.push((key, edge));
        }
    })?;
    Ok(all)
}

/// Takes an edge out.
pub fn remove_edge(map: &Map, key: &EdgeKey) {
    if let Some(data) = data(map) {
        let _ = call::map_delete(data.fd().as_fd(), bytes(key));
    }
}

/// Kernel memory that a map takes, from its descriptor's `fdinfo`.
pub fn memory(map: BorrowedFd<'_>) -> u64 {
    use std::os::fd::AsRawFd as _;
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd())).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("memlock:"));
    line.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_have_no_padding() {
        // the sums of the fields' sizes
        assert_eq!(size_of::<Sched>(), 2 * 37 * 8 + 4 * 8);
        assert_eq!(size_of::<Processes>(), 12 * 8);
        assert_eq!(size_of::<Block>(), 4 * 37 * 8 + 8 * 8 + 4 * 8);
        assert_eq!(size_of::<Net>(), 2 * 37 * 8 + (7 + 6 + 5) * 8);
        assert_eq!(size_of::<Known>(), 24);
        assert_eq!(size_of::<Edge>(), 48);
        assert_eq!(size_of::<EdgeKey>(), 32);
        assert_eq!(size_of::<Event>(), 4 + 4 + 8 + 8 + 4 * 3 + 2 * 2 + 8 + 16 * 3 + 96 + 160);
    }

    #[test]
    fn values_come_back_from_their_bytes() {
        let known = Known { flags: 1, padding: 0, tokens: 7, refilled: u64::MAX };
        assert_eq!(value::<Known>(bytes(&known)), Some(known));
        assert_eq!(value::<Known>(&bytes(&known)[1..]), None);
        let two =
            [bytes(&Processes { execs: 2, ..Processes::ZERO }), bytes(&Processes { execs: 3, ..Processes::ZERO })];
        assert_eq!(sum::<Processes>(&two.concat()).execs, 5);
    }
}
