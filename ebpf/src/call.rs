//! The commands of `bpf(2)` that agentd uses beside aya's, each as a function over descriptors.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const MAP_LOOKUP: libc::c_long = 1;
const MAP_UPDATE: libc::c_long = 2;
const MAP_DELETE: libc::c_long = 3;
const PROG_LOAD: libc::c_long = 5;
const PROG_ATTACH: libc::c_long = 8;
const PROG_DETACH: libc::c_long = 9;
const PROG_GET_FD_BY_ID: libc::c_long = 13;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const PROG_QUERY: libc::c_long = 16;
const MAP_LOOKUP_BATCH: libc::c_long = 24;
const LINK_CREATE: libc::c_long = 28;
const ENABLE_STATS: libc::c_long = 32;

const TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 1 << 1;
const REPLACE: u32 = 1 << 2;

/// Length of a program's name, with the NUL at its end.
pub const NAME_LENGTH: usize = 16;

/// One instruction of eBPF, `struct bpf_insn`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// Operation.
    pub code: u8,
    /// Destination register in the lower four bits, source register in the upper four.
    pub registers: u8,
    /// Distance of a jump or a memory access.
    pub offset: i16,
    /// Operand.
    pub immediate: i32,
}

/// Identity of a loaded program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProgramInfo {
    /// Number that the kernel gave it.
    pub id: u32,
    /// Hash of its instructions: the same for the same instructions.
    pub tag: [u8; 8],
    /// Its name, filled up with NUL.
    pub name: [u8; NAME_LENGTH],
}

#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; NAME_LENGTH],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

#[repr(C)]
#[derive(Default)]
struct AttachAttributes {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
}

#[repr(C)]
#[derive(Default)]
struct QueryAttributes {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    padding: u32,
}

#[repr(C)]
#[derive(Default)]
struct IdAttributes {
    prog_id: u32,
    next_id: u32,
    open_flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct InfoAttributes {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// The beginning of `struct bpf_prog_info`, up to the name; the kernel fills in as much as there is room for.
#[repr(C)]
#[derive(Default)]
struct RawProgramInfo {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    jited_prog_len: u32,
    xlated_prog_len: u32,
    jited_prog_insns: u64,
    xlated_prog_insns: u64,
    load_time: u64,
    created_by_uid: u32,
    nr_map_ids: u32,
    map_ids: u64,
    name: [u8; NAME_LENGTH],
}

/// What a program has done, from `struct bpf_prog_info`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProgramRuns {
    /// Number that the kernel gave it.
    pub id: u32,
    /// Time in it while statistics were on, ns.
    pub run_time: u64,
    /// Runs while statistics were on.
    pub runs: u64,
    /// Runs left out because it was already running on that CPU.
    pub missed: u64,
}

/// `struct bpf_prog_info` as far as the count of missed runs.
#[repr(C)]
#[derive(Default)]
struct RawProgramRuns {
    head: RawProgramInfo,
    ifindex: u32,
    flags: u32,
    netns_dev: u64,
    netns_ino: u64,
    symbol_counts: [u32; 2],
    symbols: [u64; 2],
    types: [u32; 2],
    func_info: u64,
    func_counts: [u32; 2],
    lines: [u64; 2],
    line_counts: [u32; 4],
    tags: u64,
    run_time: u64,
    runs: u64,
    missed: u64,
}

#[repr(C)]
#[derive(Default)]
struct ElementAttributes {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct BatchAttributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    element_flags: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct LinkAttributes {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
}

/// Makes the call with an attribute structure of the command's own length.
///
/// # Safety
/// Every address inside `attributes` must point to memory that is valid, for reading or writing as the command does, of
/// the length given beside it, until the call returns.
unsafe fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the structure itself is borrowed and passed with its own size; for what it points to the caller vouches.
    let answer =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), std::mem::size_of::<T>()) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn owned(answer: libc::c_long) -> OwnedFd {
    // SAFETY: the kernel has just returned this number as a new descriptor of this process, owned by nobody else.
    unsafe { OwnedFd::from_raw_fd(answer as libc::c_int) }
}

/// Loads a device program. `log`, if not empty, takes the verifier's words.
pub fn load_device_program(name: &str, code: &[Instruction], log: &mut [u8]) -> io::Result<OwnedFd> {
    let license = c"Apache-2.0";
    let mut attributes = LoadAttributes {
        prog_type: TYPE_CGROUP_DEVICE,
        insn_cnt: code.len() as u32,
        insns: code.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: u32::from(!log.is_empty()),
        log_size: log.len() as u32,
        log_buf: if log.is_empty() { 0 } else { log.as_mut_ptr() as u64 },
        expected_attach_type: ATTACH_CGROUP_DEVICE,
        ..LoadAttributes::default()
    };
    for (to, from) in attributes.prog_name.iter_mut().zip(name.bytes().take(NAME_LENGTH - 1)) {
        *to = from;
    }
    // SAFETY: instructions, licence and log are borrowed until the end of this function and given with their lengths.
    unsafe { bpf(PROG_LOAD, &mut attributes) }.map(owned)
}

/// Attaches a device program to a cgroup beside others; with `replace`, in the place of that one, in one step.
pub fn attach_device_program(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    replace: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let mut attributes = AttachAttributes {
        target_fd: raw(cgroup),
        attach_bpf_fd: raw(program),
        attach_type: ATTACH_CGROUP_DEVICE,
        attach_flags: ALLOW_MULTI | if replace.is_some() { REPLACE } else { 0 },
        replace_bpf_fd: replace.map_or(0, raw),
    };
    // SAFETY: the structure holds descriptors and flags only, no address.
    unsafe { bpf(PROG_ATTACH, &mut attributes) }.map(drop)
}

/// Detaches a device program from a cgroup.
pub fn detach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = AttachAttributes {
        target_fd: raw(cgroup),
        attach_bpf_fd: raw(program),
        attach_type: ATTACH_CGROUP_DEVICE,
        ..AttachAttributes::default()
    };
    // SAFETY: the structure holds descriptors and flags only, no address.
    unsafe { bpf(PROG_DETACH, &mut attributes) }.map(drop)
}

/// Numbers of the device programs attached to this very cgroup (those of its parents not counted).
pub fn query_device_programs(cgroup: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut ids = [0u32; 64];
    let mut attributes = QueryAttributes {
        target_fd: raw(cgroup),
        attach_type: ATTACH_CGROUP_DEVICE,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: ids.len() as u32,
        ..QueryAttributes::default()
    };
    // SAFETY: the array of numbers lives until after the call and is given with its length in elements.
    unsafe { bpf(PROG_QUERY, &mut attributes) }?;
    Ok(ids.iter().copied().take(attributes.prog_cnt as usize).collect())
}

/// Opens a program by its number.
pub fn open_program(id: u32) -> io::Result<OwnedFd> {
    let mut attributes = IdAttributes { prog_id: id, ..IdAttributes::default() };
    // SAFETY: the structure holds a number only, no address.
    unsafe { bpf(PROG_GET_FD_BY_ID, &mut attributes) }.map(owned)
}

/// What a program is.
pub fn program_info(program: BorrowedFd<'_>) -> io::Result<ProgramInfo> {
    let mut info = RawProgramInfo::default();
    let mut attributes = InfoAttributes {
        bpf_fd: raw(program),
        info_len: std::mem::size_of::<RawProgramInfo>() as u32,
        info: (&raw mut info) as u64,
    };
    // SAFETY: `info` lives until after the call and is given with its size; its own addresses are 0 with length 0.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attributes) }?;
    Ok(ProgramInfo { id: info.id, tag: info.tag, name: info.name })
}

/// What a program has done.
pub fn program_runs(program: BorrowedFd<'_>) -> io::Result<ProgramRuns> {
    let mut info = RawProgramRuns::default();
    let mut attributes = InfoAttributes {
        bpf_fd: raw(program),
        info_len: std::mem::size_of::<RawProgramRuns>() as u32,
        info: (&raw mut info) as u64,
    };
    // SAFETY: `info` lives until after the call and is given with its size; its own addresses are 0 with length 0.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attributes) }?;
    Ok(ProgramRuns { id: info.head.id, run_time: info.run_time, runs: info.runs, missed: info.missed })
}

/// The cgroup that a link is on, by its id; 0 once somebody has detached it. Links of other kinds have none.
pub fn link_cgroup(link: BorrowedFd<'_>) -> io::Result<u64> {
    // `struct bpf_link_info`: type, id, prog_id, padding, then by type: cgroup_id, attach_type
    let mut info = [0_u64; 8];
    let mut attributes = InfoAttributes {
        bpf_fd: raw(link),
        info_len: std::mem::size_of_val(&info) as u32,
        info: info.as_mut_ptr() as u64,
    };
    // SAFETY: `info` lives until after the call and is given with its size; the kernel is asked for no string.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attributes) }?;
    Ok(info[2])
}

/// Keeps statistics of all programs as long as the descriptor is open.
pub fn enable_run_time_statistics() -> io::Result<OwnedFd> {
    let mut kind = 0_u32;
    // SAFETY: the structure is one number, `BPF_STATS_RUN_TIME`.
    unsafe { bpf(ENABLE_STATS, &mut kind) }.map(owned)
}

/// Where a link hangs a program: `enum bpf_attach_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Attach {
    /// Packets received below a cgroup.
    CgroupIngress = 0,
    /// Packets sent below a cgroup.
    CgroupEgress = 1,
    /// TCP connections below a cgroup.
    CgroupSockOps = 3,
    /// A perf event.
    PerfEvent = 41,
}

/// Hangs a program on a cgroup or a perf event by a link: it is taken off when the descriptor is closed. On a cgroup other
/// programs may hang beside it.
pub fn link(program: BorrowedFd<'_>, target: BorrowedFd<'_>, how: Attach) -> io::Result<OwnedFd> {
    let mut attributes =
        LinkAttributes { prog_fd: raw(program), target_fd: raw(target), attach_type: how as u32, flags: 0 };
    // SAFETY: the structure holds descriptors and flags only, no address.
    unsafe { bpf(LINK_CREATE, &mut attributes) }.map(owned)
}

/// Opens the tracepoint of this number as a perf event of the whole host. A program linked to it runs on every CPU.
pub fn open_tracepoint(number: u64) -> io::Result<OwnedFd> {
    // `struct perf_event_attr` in its first published size: type, size, config, period, sample type, read format, flags…
    const PERF_ATTR_SIZE_VER0: usize = 64;
    const PERF_TYPE_TRACEPOINT: u64 = 2;
    const FLAG_CLOEXEC: libc::c_ulong = 8;
    let mut attributes = [0_u64; PERF_ATTR_SIZE_VER0 / 8];
    attributes[0] = PERF_TYPE_TRACEPOINT | (PERF_ATTR_SIZE_VER0 as u64) << 32;
    attributes[1] = number;
    // SAFETY: the attributes are as long as they say and live until after the call.
    let answer =
        unsafe { libc::syscall(libc::SYS_perf_event_open, attributes.as_ptr(), -1_i32, 0_i32, -1_i32, FLAG_CLOEXEC) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(owned(answer)) }
}

/// Copies the value under a key. `value` must be as long as the map's values, times the possible CPUs where there is one
/// for each. Gives false if there is none.
pub fn map_lookup(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
    let mut attributes = ElementAttributes {
        map_fd: raw(map),
        key: key.as_ptr() as u64,
        value: value.as_mut_ptr() as u64,
        ..ElementAttributes::default()
    };
    // SAFETY: the caller's slices live until after the call; that they are as long as the map's keys and values is what
    // `observe::maps` checks when it takes the map.
    match unsafe { bpf(MAP_LOOKUP, &mut attributes) } {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes a value under a key; with `new_only`, gives false if there is one already.
pub fn map_update(map: BorrowedFd<'_>, key: &[u8], value: &[u8], new_only: bool) -> io::Result<bool> {
    let mut attributes = ElementAttributes {
        map_fd: raw(map),
        key: key.as_ptr() as u64,
        value: value.as_ptr() as u64,
        flags: u64::from(new_only),
        ..ElementAttributes::default()
    };
    // SAFETY: as for `map_lookup`.
    match unsafe { bpf(MAP_UPDATE, &mut attributes) } {
        Ok(_) => Ok(true),
        Err(error) if new_only && error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes a key; false if there is none.
pub fn map_delete(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<bool> {
    let mut attributes =
        ElementAttributes { map_fd: raw(map), key: key.as_ptr() as u64, ..ElementAttributes::default() };
    // SAFETY: as for `map_lookup`.
    match unsafe { bpf(MAP_DELETE, &mut attributes) } {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Copies up to `most` entries of a hash map, going on after `after`, the opaque mark of the call before. Gives how many
/// there are and whether there may be more. Slices must hold `most` keys and values.
pub fn map_lookup_batch(
    map: BorrowedFd<'_>,
    after: &mut Option<[u8; 16]>,
    keys: &mut [u8],
    values: &mut [u8],
    most: u32,
) -> io::Result<(usize, bool)> {
    let before = *after;
    let mut mark = [0_u8; 16];
    let mut attributes = BatchAttributes {
        in_batch: before.as_ref().map_or(0, |mark| mark.as_ptr() as u64),
        out_batch: mark.as_mut_ptr() as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: most,
        map_fd: raw(map),
        ..BatchAttributes::default()
    };
    // SAFETY: all addresses are of slices that live until after the call; the mark of a hash map is a bucket's number of
    // four bytes, and 16 are given; lengths as for `map_lookup`, times `most`.
    let answer = unsafe { bpf(MAP_LOOKUP_BATCH, &mut attributes) };
    match answer {
        Ok(_) => {
            *after = Some(mark);
            Ok((attributes.count as usize, true))
        }
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok((attributes.count as usize, false)),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_kernels_layout() {
        assert_eq!(std::mem::size_of::<Instruction>(), 8);
        assert_eq!(std::mem::size_of::<LoadAttributes>(), 72);
        assert_eq!(std::mem::offset_of!(LoadAttributes, prog_name), 48);
        assert_eq!(std::mem::size_of::<AttachAttributes>(), 20);
        assert_eq!(std::mem::offset_of!(QueryAttributes, prog_cnt), 24);
        assert_eq!(std::mem::offset_of!(RawProgramInfo, name), 64);
        assert_eq!(std::mem::size_of::<RawProgramInfo>(), 80);
        assert_eq!(std::mem::offset_of!(RawProgramRuns, run_time), 192);
        assert_eq!(std::mem::offset_of!(RawProgramRuns, missed), 208);
        assert_eq!(std::mem::size_of::<ElementAttributes>(), 32);
        assert_eq!(std::mem::offset_of!(BatchAttributes, map_fd), 36);
        assert_eq!(std::mem::size_of::<BatchAttributes>(), 56);
    }
}
