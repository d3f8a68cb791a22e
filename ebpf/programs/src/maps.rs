//! The maps that more than one group uses. Entries of containers are made by the loader, before anything runs in them;
//! programs only look them up.

use agentd_ebpf_common::{Known, Sender};
use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{HashMap, LruHashMap, RingBuf};

/// Bytes of the ring.
const RING: u32 = 512 * 1024;

/// The published containers.
#[map]
pub static KNOWN: HashMap<u64, Known> = HashMap::with_max_entries(2048, BPF_F_NO_PREALLOC);

/// Rare events.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(RING, 0);

/// Who sent a process of a container the last signal that may end it.
#[map]
pub static SENDERS: LruHashMap<u32, Sender> = LruHashMap::with_max_entries(2048, 0);
