//! What a seccomp policy says, before it is compiled: which calls, under which conditions, with which answer.

use std::collections::BTreeMap;

/// An architecture whose native ABI agentd can filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Arch {
    /// 64-bit x86.
    X86_64,
    /// 64-bit ARM.
    Aarch64,
}

impl Arch {
    /// The architecture that this program was built for; none where there is no table for it.
    pub fn native() -> Option<Self> {
        if cfg!(target_arch = "x86_64") {
            Some(Self::X86_64)
        } else if cfg!(target_arch = "aarch64") {
            Some(Self::Aarch64)
        } else {
            None
        }
    }

    /// `AUDIT_ARCH_*`, which the kernel puts in `seccomp_data.arch`.
    pub fn audit(self) -> u32 {
        match self {
            Self::X86_64 => 0xC000_003E,
            Self::Aarch64 => 0xC000_00B7,
        }
    }

    /// Names by which profile files call the architecture in `includes.arches` (Go's) and `architectures` (libseccomp's).
    pub fn names(self) -> &'static [&'static str] {
        match self {
            Self::X86_64 => &["amd64", "x86_64", "SCMP_ARCH_X86_64"],
            Self::Aarch64 => &["arm64", "aarch64", "SCMP_ARCH_AARCH64"],
        }
    }
}

/// The answer to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// The call is made.
    Allow,
    /// The call is made and logged by the kernel.
    Log,
    /// A tracer decides, who is told this number; without one the call fails with ENOSYS.
    Trace(u16),
    /// The call fails with this error number.
    Errno(u16),
    /// The thread gets SIGSYS.
    Trap,
    /// The thread dies.
    KillThread,
    /// The process dies.
    KillProcess,
}

impl Action {
    /// The value that the filter returns.
    pub fn code(self) -> u32 {
        match self {
            Self::Allow => libc::SECCOMP_RET_ALLOW,
            Self::Log => libc::SECCOMP_RET_LOG,
            Self::Trace(data) => libc::SECCOMP_RET_TRACE | u32::from(data),
            Self::Errno(errno) => libc::SECCOMP_RET_ERRNO | u32::from(errno),
            Self::Trap => libc::SECCOMP_RET_TRAP,
            Self::KillThread => libc::SECCOMP_RET_KILL_THREAD,
            Self::KillProcess => libc::SECCOMP_RET_KILL_PROCESS,
        }
    }

    /// Whether the call is made after all.
    pub fn permits(self) -> bool {
        matches!(self, Self::Allow | Self::Log)
    }
}

/// How an argument is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    /// Equal.
    Equal,
    /// Not equal.
    NotEqual,
    /// Less.
    Less,
    /// Less or equal.
    LessOrEqual,
    /// Greater.
    Greater,
    /// Greater or equal.
    GreaterOrEqual,
    /// Equal in the bits of this mask.
    MaskedEqual(u64),
}

/// How much of the register the kernel itself looks at. A filter that compares more than the kernel reads can be
/// passed by setting bits that the kernel drops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// The lower 32 bits: an `int`.
    Int,
    /// All 64 bits.
    Long,
}

/// A condition on one argument, unsigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Condition {
    /// Index of the argument, 0 to 5.
    pub argument: u8,
    /// How much of it is compared.
    pub width: Width,
    /// How.
    pub compare: Compare,
    /// With what.
    pub value: u64,
}

/// An answer and the conditions that must all hold for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Conditions; none means always.
    pub conditions: Vec<Condition>,
    /// The answer.
    pub action: Action,
}

/// A whole policy for one architecture. Rules of a call are tried in order; the first whose conditions hold decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Its architecture.
    pub arch: Arch,
    /// Answer to calls without a rule that fits.
    pub default: Action,
    /// Rules by number of the call.
    pub rules: BTreeMap<u32, Vec<Rule>>,
}

impl Policy {
    /// A policy without rules.
    pub fn new(arch: Arch, default: Action) -> Self {
        Self { arch, default, rules: BTreeMap::new() }
    }

    /// Adds a rule for a call by name. False where the architecture has no such call.
    pub fn add(&mut self, name: &str, rule: Rule) -> bool {
        match super::syscalls::number(self.arch, name) {
            Some(number) => {
                self.rules.entry(number).or_default().push(rule);
                true
            }
            None => false,
        }
    }
}
