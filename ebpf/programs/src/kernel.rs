//! Reading the kernel's structures, and finding the container of a task.

use agentd_ebpf_common::fields::{
    CGROUP_ANCESTORS, CGROUP_LEVEL, CGROUP_NODE, CSS_SET_CGROUP, LEVEL, NODE_ID, PODS, TASK_CGROUPS,
};
use agentd_ebpf_common::{ABSENT, HOST, UNKNOWN};
use aya_ebpf::helpers::{bpf_get_current_ancestor_cgroup_id, bpf_probe_read_kernel};

/// A global that the loader has written.
#[macro_export]
macro_rules! global {
    ($name:path) => {
        unsafe { core::ptr::read_volatile(&raw const $name) }
    };
}

/// Reads a field of the structure at `base`; none where the kernel has no such field or the address does not hold.
#[macro_export]
macro_rules! read {
    ($base:expr, $field:path, $kind:ty) => {
        $crate::kernel::at::<$kind>($base as u64, $crate::global!($field))
    };
}

/// Reads what lies `offset` bytes behind `base`.
#[inline(always)]
pub fn at<T>(base: u64, offset: u32) -> Option<T> {
    if base == 0 || offset == ABSENT {
        return None;
    }
    unsafe { bpf_probe_read_kernel((base + u64::from(offset)) as *const T) }.ok()
}

/// Reads a field through a pointer that carries its type (an argument of a tracepoint with types): one instruction, where
/// [`at`] is a call. The verifier checks it against the kernel's types.
#[inline(always)]
pub fn typed<T: Copy>(base: *const u8, offset: u32) -> Option<T> {
    if offset == ABSENT {
        return None;
    }
    Some(unsafe { core::ptr::read_volatile(base.add(offset as usize).cast()) })
}

/// The container of the current task: id of its directory, [`HOST`], or, for what is below the pods' directory and
/// deeper than a container, whatever directory it is in; the maps know which ones are published.
#[inline(always)]
pub fn current() -> u64 {
    let level = global!(LEVEL) as i32;
    unsafe { bpf_get_current_ancestor_cgroup_id(level) }
}

/// Where to count what the current task did when nothing is published under its directory.
#[inline(always)]
pub fn unpublished() -> u64 {
    // pods/<pod>/<container>: two levels up
    let level = global!(LEVEL) as i32 - 2;
    let above = unsafe { bpf_get_current_ancestor_cgroup_id(level) };
    if above == global!(PODS) { UNKNOWN } else { HOST }
}

/// The container of a cgroup given by its structure.
#[inline(always)]
pub fn of_cgroup(cgroup: u64) -> Option<u64> {
    let level = global!(LEVEL);
    if read!(cgroup, CGROUP_LEVEL, i32)? < level as i32 {
        return Some(HOST);
    }
    let ancestors = global!(CGROUP_ANCESTORS);
    if ancestors == ABSENT {
        return None;
    }
    let ancestor = at::<u64>(cgroup, ancestors + level * 8)?;
    let node = read!(ancestor, CGROUP_NODE, u64)?;
    read!(node, NODE_ID, u64)
}

/// The container of a task that need not be the current one.
#[inline(always)]
pub fn of_task(task: u64) -> Option<u64> {
    let set = read!(task, TASK_CGROUPS, u64)?;
    let cgroup = read!(set, CSS_SET_CGROUP, u64)?;
    of_cgroup(cgroup)
}
