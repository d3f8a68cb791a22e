//! The device guard: a program on a cgroup that decides which devices processes below it may open or make.
//!
//! It is an allow-list; what no rule names fails with EPERM. The attachment belongs to the cgroup's directory, not to
//! the process that made it: it stays when agentd ends, and goes with the directory. A cgroup may carry several such
//! programs, its parents' too, and all must agree.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::call::{self, Instruction, NAME_LENGTH, ProgramInfo};

/// Name of agentd's device programs in the kernel's lists.
pub const PROGRAM_NAME: &str = "agentd_device";

/// Most rules in one program; the work of the kernel's verifier grows with their square.
pub const MOST_RULES: usize = 256;

/// Kind of device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Block device.
    Block,
    /// Character device.
    Character,
}

/// What may be done with a device. The numbers are the kernel's `BPF_DEVCG_ACC_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Access(u8);

impl Access {
    /// Making the node.
    pub const MKNOD: Self = Self(1);
    /// Opening to read and to write.
    pub const READ_WRITE: Self = Self(6);
    /// Opening to read.
    pub const READ: Self = Self(2);
    /// Everything.
    pub const ALL: Self = Self(7);
}

/// One allowed device, or a group of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// Kind of device.
    pub kind: Kind,
    /// Major number; none means any.
    pub major: Option<u32>,
    /// Minor number; none means any.
    pub minor: Option<u32>,
    /// What is allowed.
    pub access: Access,
}

impl Rule {
    /// A rule for a character device.
    pub const fn character(major: u32, minor: Option<u32>, access: Access) -> Self {
        Self { kind: Kind::Character, major: Some(major), minor, access }
    }
}

/// Why a device guard could not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// More rules than a program can hold.
    #[error("{0} device rules, expected at most {MOST_RULES}: allow whole majors instead of single devices")]
    TooManyRules(usize),
    /// The kernel refused the program.
    #[error("the kernel refused the device guard ({source}){cure}{log}")]
    Load {
        /// The error.
        #[source]
        source: io::Error,
        /// What to do about it.
        cure: &'static str,
        /// Last words of the verifier, if it spoke.
        log: String,
    },
    /// The program could not be attached.
    #[error("the device guard cannot be attached to the cgroup ({source}){cure}")]
    Attach {
        /// The error.
        #[source]
        source: io::Error,
        /// What to do about it.
        cure: &'static str,
    },
    /// The programs of the cgroup could not be listed or removed.
    #[error("the device guards of the cgroup cannot be {what} ({source})")]
    Query {
        /// What was tried.
        what: &'static str,
        /// The error.
        #[source]
        source: io::Error,
    },
}

fn load_cure(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            ": agentd needs CAP_SYS_ADMIN, or CAP_BPF and CAP_NET_ADMIN, and no seccomp filter or lockdown against bpf(2)"
        }
        Some(libc::ENOSYS | libc::EINVAL) => ": use a kernel with CONFIG_BPF_SYSCALL and CONFIG_CGROUP_BPF",
        Some(libc::ENOMEM) => ": free memory, or raise the memory limit of agentd's own service",
        _ => "",
    }
}

fn attach_cure(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => {
            ": agentd needs CAP_SYS_ADMIN or CAP_NET_ADMIN, and no cgroup above may carry a device program that allows no \
             others (see `bpftool cgroup tree`)"
        }
        Some(libc::EINVAL) => ": use a kernel with CONFIG_CGROUP_BPF",
        Some(libc::EBADF) => ": the directory must be one of a cgroup2 file system",
        Some(libc::E2BIG) => ": the cgroup already carries as many programs as it can",
        _ => "",
    }
}

/// A loaded device guard. It can be attached to any number of cgroups; dropping it leaves them as they are.
#[derive(Debug)]
pub struct Program {
    fd: OwnedFd,
    info: ProgramInfo,
}

impl Program {
    /// Loads a program that allows what `rules` allow and nothing else.
    pub fn load(rules: &[Rule]) -> Result<Self, Error> {
        if rules.len() > MOST_RULES {
            return Err(Error::TooManyRules(rules.len()));
        }
        let code = instructions(rules);
        let fd = call::load_device_program(PROGRAM_NAME, &code, &mut []).map_err(|source| {
            // once more, for the verifier's reason; loading without it spares it the writing
            let mut log = vec![0u8; 1 << 16];
            let _ = call::load_device_program(PROGRAM_NAME, &code, &mut log);
            Error::Load { cure: load_cure(&source), log: last_words(&log), source }
        })?;
        let info = call::program_info(fd.as_fd()).map_err(|source| Error::Query { what: "told apart", source })?;
        Ok(Self { fd, info })
    }

    /// Attaches the guard to a cgroup2 directory. A guard of agentd with other rules that is there already is replaced
    /// in one step; one with the same rules is left as it is.
    pub fn attach(&self, cgroup: BorrowedFd<'_>) -> Result<(), Error> {
        let mut older: Option<OwnedFd> = None;
        let mut surplus = Vec::new();
        for (fd, info) in ours(cgroup)? {
            if info.tag == self.info.tag {
                return remove_all_but(cgroup, info.id);
            }
            match older {
                None => older = Some(fd),
                Some(_) => surplus.push(fd),
            }
        }
        call::attach_device_program(cgroup, self.fd.as_fd(), older.as_ref().map(AsFd::as_fd))
            .map_err(|source| Error::Attach { cure: attach_cure(&source), source })?;
        surplus.iter().try_for_each(|fd| remove(cgroup, fd.as_fd()))
    }

    /// Number of the program in the kernel's lists.
    pub fn id(&self) -> u32 {
        self.info.id
    }
}

/// Removes every device guard of agentd from a cgroup2 directory.
pub fn detach(cgroup: BorrowedFd<'_>) -> Result<(), Error> {
    ours(cgroup)?.iter().try_for_each(|(fd, _)| remove(cgroup, fd.as_fd()))
}

/// The device guards of agentd on a cgroup2 directory, by their number in the kernel's lists.
pub fn query(cgroup: BorrowedFd<'_>) -> Result<Vec<u32>, Error> {
    Ok(ours(cgroup)?.into_iter().map(|(_, info)| info.id).collect())
}

fn remove_all_but(cgroup: BorrowedFd<'_>, kept: u32) -> Result<(), Error> {
    ours(cgroup)?.iter().filter(|(_, info)| info.id != kept).try_for_each(|(fd, _)| remove(cgroup, fd.as_fd()))
}

fn remove(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<(), Error> {
    match call::detach_device_program(cgroup, program) {
        // someone else was faster
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        Err(source) => Err(Error::Query { what: "removed", source }),
        Ok(()) => Ok(()),
    }
}

fn ours(cgroup: BorrowedFd<'_>) -> Result<Vec<(OwnedFd, ProgramInfo)>, Error> {
    let ids = call::query_device_programs(cgroup).map_err(|source| Error::Query { what: "listed", source })?;
    let mut name = [0u8; NAME_LENGTH];
    name[..PROGRAM_NAME.len()].copy_from_slice(PROGRAM_NAME.as_bytes());
    let mut found = Vec::new();
    for id in ids {
        match call::open_program(id).and_then(|fd| call::program_info(fd.as_fd()).map(|info| (fd, info))) {
            Ok((fd, info)) if info.name == name => found.push((fd, info)),
            Ok(_) => {}
            // detached and gone since it was listed
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
            Err(source) => {
                return Err(Error::Query { what: "told apart", source });
            }
        }
    }
    Ok(found)
}

/// The last line that the verifier wrote, with a word before it.
fn last_words(log: &[u8]) -> String {
    let text: Vec<u8> = log.iter().copied().take_while(|byte| *byte != 0).collect();
    let text = String::from_utf8_lossy(&text);
    match text.lines().rev().find(|line| !line.trim().is_empty() && !line.starts_with("processed ")) {
        Some(line) => format!("; the verifier says: {}", line.trim()),
        None => String::new(),
    }
}

const LOAD_WORD: u8 = 0x61; // BPF_LDX | BPF_MEM | BPF_W
const MOVE: u8 = 0xbc; // BPF_ALU | BPF_MOV | BPF_X
const MOVE_IMMEDIATE: u8 = 0xb4; // BPF_ALU | BPF_MOV | BPF_K
const AND: u8 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const SHIFT_RIGHT: u8 = 0x74; // BPF_ALU | BPF_RSH | BPF_K
const UNLESS_EQUAL: u8 = 0x56; // BPF_JMP32 | BPF_JNE | BPF_K
const UNLESS_SAME: u8 = 0x5e; // BPF_JMP32 | BPF_JNE | BPF_X
const EXIT: u8 = 0x95;

/// Register 0, the answer: 1 allows, 0 makes the call fail with EPERM.
const ANSWER: u8 = 0;
/// Register 1, at first the address of `struct bpf_cgroup_dev_ctx`, then free to use.
const CONTEXT: u8 = 1;
const ACCESS: u8 = 2;
const KIND: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: (from << 4) | to, offset, immediate }
}

/// The program: takes the context apart, then tries each rule.
fn instructions(rules: &[Rule]) -> Vec<Instruction> {
    let mut code = vec![
        instruction(LOAD_WORD, ACCESS, CONTEXT, 0, 0), // access in the upper half, kind in the lower
        instruction(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        instruction(LOAD_WORD, MINOR, CONTEXT, 8, 0),
        instruction(MOVE, KIND, ACCESS, 0, 0),
        instruction(AND, KIND, 0, 0, 0xFFFF),
        instruction(SHIFT_RIGHT, ACCESS, 0, 0, 16),
    ];
    for rule in rules {
        code.extend(one_rule(rule));
    }
    code.push(instruction(MOVE_IMMEDIATE, ANSWER, 0, 0, 0));
    code.push(instruction(EXIT, 0, 0, 0, 0));
    code
}

fn one_rule(rule: &Rule) -> Vec<Instruction> {
    let kind = match rule.kind {
        Kind::Block => 1,
        Kind::Character => 2,
    };
    let mut block = vec![instruction(UNLESS_EQUAL, KIND, 0, 0, kind)];
    for (register, number) in [(MAJOR, rule.major), (MINOR, rule.minor)] {
        if let Some(number) = number {
            block.push(instruction(UNLESS_EQUAL, register, 0, 0, number.cast_signed()));
        }
    }
    if rule.access != Access::ALL {
        // what is asked for must be part of what is allowed
        block.push(instruction(MOVE, CONTEXT, ACCESS, 0, 0));
        block.push(instruction(AND, CONTEXT, 0, 0, i32::from(rule.access.0)));
        block.push(instruction(UNLESS_SAME, CONTEXT, ACCESS, 0, 0));
    }
    block.push(instruction(MOVE_IMMEDIATE, ANSWER, 0, 0, 1));
    block.push(instruction(EXIT, 0, 0, 0, 0));
    // every test that fails goes on behind this rule
    let end = block.len();
    for (at, one) in block.iter_mut().enumerate() {
        if matches!(one.code, UNLESS_EQUAL | UNLESS_SAME) {
            one.offset = (end - at - 1) as i16;
        }
    }
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program's few kinds of instruction.
    fn allows(rules: &[Rule], kind: u32, major: u32, minor: u32, access: u32) -> bool {
        let code = instructions(rules);
        let context = [(access << 16) | kind, major, minor];
        let mut registers = [0u32; 6];
        let mut at = 0usize;
        loop {
            let i = code[at];
            at += 1;
            let (to, from) = (usize::from(i.registers & 15), usize::from(i.registers >> 4));
            let operand = i.immediate.cast_unsigned();
            let mut go = |taken: bool| at += if taken { usize::try_from(i.offset).expect("forward") } else { 0 };
            match i.code {
                LOAD_WORD => registers[to] = context[usize::try_from(i.offset / 4).expect("inside")],
                MOVE => registers[to] = registers[from],
                MOVE_IMMEDIATE => registers[to] = operand,
                AND => registers[to] &= operand,
                SHIFT_RIGHT => registers[to] >>= operand,
                UNLESS_EQUAL => go(registers[to] != operand),
                UNLESS_SAME => go(registers[to] != registers[from]),
                EXIT => return registers[0] == 1,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn only_what_a_rule_names_is_allowed() {
        let rules = [
            Rule::character(1, Some(3), Access::ALL),
            Rule::character(136, None, Access::READ_WRITE),
            Rule { kind: Kind::Block, major: None, minor: None, access: Access::READ },
        ];
        for (kind, major, minor, access, expected) in [
            (2, 1, 3, 7, true),
            (2, 1, 3, 1, true),
            (2, 1, 5, 2, false),
            (1, 1, 3, 6, false),
            (2, 136, 9, 6, true),
            (2, 136, 9, 2, true),
            (2, 136, 9, 1, false),
            (2, 136, 9, 7, false),
            (2, 137, 9, 2, false),
            (1, 8, 0, 2, true),
            (1, 8, 0, 4, false),
            (2, 195, 0, 6, false),
        ] {
            assert_eq!(allows(&rules, kind, major, minor, access), expected, "{kind} {major}:{minor} {access}");
        }
        assert!(!allows(&[], 2, 1, 3, 2));
    }

    #[test]
    fn too_many_rules_are_refused() {
        let rules = vec![Rule::character(1, None, Access::ALL); MOST_RULES + 1];
        assert!(matches!(Program::load(&rules), Err(Error::TooManyRules(_))));
    }

    #[test]
    fn the_kernel_takes_the_program_and_tells_equal_rules_by_their_tag() {
        let rules: Vec<Rule> = (0..MOST_RULES as u32).map(|n| Rule::character(n, Some(n), Access::READ)).collect();
        let programs = match (Program::load(&rules), Program::load(&rules), Program::load(&rules[..3])) {
            (Ok(a), Ok(b), Ok(c)) => [a, b, c],
            (Err(Error::Load { source, .. }), ..) if source.raw_os_error() == Some(libc::EPERM) => {
                println!("skipped because bpf(2) is not allowed here");
                return;
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(programs[0].info.tag, programs[1].info.tag);
        assert_ne!(programs[0].info.id, programs[1].info.id);
        assert_ne!(programs[0].info.tag, programs[2].info.tag);
    }
}
