//! The commands of `bpf(2)` that agentd uses, each as a function over descriptors.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const PROG_LOAD: libc::c_long = 5;
const PROG_ATTACH: libc::c_long = 8;
const PROG_DETACH: libc::c_long = 9;
const PROG_GET_FD_BY_ID: libc::c_long = 13;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const PROG_QUERY: libc::c_long = 16;

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
    }
}
