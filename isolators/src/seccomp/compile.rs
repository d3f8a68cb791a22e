//! Compiles a [`Policy`] to the classic BPF that `seccomp(2)` takes.
//!
//! The numbers of the calls are cut into ranges with the same answer and laid out as a binary search, so that a call is
//! decided in about eight comparisons instead of hundreds, and the kernel's own pass over the filter at load time (it
//! works out which calls are always allowed) is short too. One filter holds every answer, which a chain of filters with
//! two answers each cannot: there the strictest wins.
//!
//! Other ABIs are refused before the numbers are looked at, because a number means another call there: a 32-bit call
//! ends the process (SIGSYS), an x32 number fails with EPERM.

use super::rules::{Action, Arch, Compare, Condition, Policy, Rule, Width};
use super::syscalls;

/// Most instructions that the kernel takes in one filter.
pub const MOST_INSTRUCTIONS: usize = 4096;

/// Numbers from here on are x32 calls on x86_64.
const X32_BIT: u32 = 0x4000_0000;

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const GOTO: u16 = 0x05; // BPF_JMP | BPF_JA
const IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const IF_GREATER: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
const IF_AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCH: u32 = 4;
const OFFSET_ARGUMENTS: u32 = 16;

/// One instruction, `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions to pass over when the test holds.
    pub jt: u8,
    /// Instructions to pass over when it does not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

impl Instruction {
    fn plain(code: u16, k: u32) -> Self {
        Self { code, jt: 0, jf: 0, k }
    }

    fn test(code: u16, k: u32, jt: u8, jf: u8) -> Self {
        Self { code, jt, jf, k }
    }
}

/// The policy has more rules than a filter can hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the filter has {0} instructions, the kernel takes {MOST_INSTRUCTIONS}: use fewer rules with conditions on arguments"
)]
pub struct TooLong(pub usize);

/// Compiles a policy.
pub fn compile(policy: &Policy) -> Result<Vec<Instruction>, TooLong> {
    let mut code = vec![
        Instruction::plain(LOAD, OFFSET_ARCH),
        Instruction::test(IF_EQUAL, policy.arch.audit(), 1, 0),
        Instruction::plain(RETURN, Action::KillProcess.code()),
        Instruction::plain(LOAD, OFFSET_NUMBER),
    ];
    code.extend(search(&ranges(policy)));
    if code.len() > MOST_INSTRUCTIONS { Err(TooLong(code.len())) } else { Ok(code) }
}

/// The filter as the array of `struct sock_filter` that the kernel reads.
pub fn bytes(code: &[Instruction]) -> Vec<u8> {
    let mut out = Vec::with_capacity(code.len() * 8);
    for i in code {
        out.extend_from_slice(&i.code.to_ne_bytes());
        out.extend_from_slice(&[i.jt, i.jf]);
        out.extend_from_slice(&i.k.to_ne_bytes());
    }
    out
}

/// What happens to the calls of a range: rules with conditions, then an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Answer<'a> {
    conditional: Vec<&'a Rule>,
    otherwise: Action,
}

impl<'a> Answer<'a> {
    fn always(otherwise: Action) -> Self {
        Self { conditional: Vec::new(), otherwise }
    }

    fn of(rules: &'a [Rule], default: Action) -> Self {
        let unconditional = rules.iter().position(|r| r.conditions.is_empty());
        let otherwise = unconditional.map_or(default, |at| rules[at].action);
        let mut conditional: Vec<&Rule> = rules[..unconditional.unwrap_or(rules.len())].iter().collect();
        // rules at the end that only repeat the answer that follows them need no test
        while conditional.last().is_some_and(|r| r.action == otherwise) {
            conditional.pop();
        }
        Self { conditional, otherwise }
    }
}

/// Cuts all numbers into ranges, each from its first number to the next range's; neighbours differ.
fn ranges(policy: &Policy) -> Vec<(u32, Answer<'_>)> {
    let mut cut: Vec<(u32, Answer<'_>)> = vec![(0, Answer::always(policy.default))];
    for (&number, rules) in &policy.rules {
        begin(&mut cut, number, Answer::of(rules, policy.default));
        begin(&mut cut, number + 1, Answer::always(policy.default));
    }
    // Calls that are newer than this program: a C library that meets ENOSYS falls back, one that meets EPERM does not.
    let newer = syscalls::highest(policy.arch) + 1;
    if !policy.default.permits() {
        begin(&mut cut, newer, Answer::always(Action::Errno(libc::ENOSYS as u16)));
    }
    if policy.arch == Arch::X86_64 {
        begin(&mut cut, X32_BIT, Answer::always(Action::Errno(libc::EPERM as u16)));
    }
    cut
}

/// Begins a new range, unless the one before has the same answer.
fn begin<'a>(cut: &mut Vec<(u32, Answer<'a>)>, first: u32, answer: Answer<'a>) {
    // a statement about a number replaces the gap that was assumed there
    if cut.last().is_some_and(|(at, _)| *at == first) {
        cut.pop();
    }
    if cut.last().is_none_or(|(_, before)| *before != answer) {
        cut.push((first, answer));
    }
}

/// Lays ranges out as a binary search. Jumps are relative, so parts can be put together as they are.
fn search(ranges: &[(u32, Answer<'_>)]) -> Vec<Instruction> {
    if let [(_, answer)] = ranges {
        return decide(answer);
    }
    let (lower, upper) = ranges.split_at(ranges.len() / 2);
    let below = search(lower);
    let mut code = Vec::with_capacity(below.len() * 2 + 2);
    if let Ok(distance) = u8::try_from(below.len()) {
        code.push(Instruction::test(IF_AT_LEAST, upper[0].0, distance, 0));
    } else {
        code.push(Instruction::test(IF_AT_LEAST, upper[0].0, 0, 1));
        code.push(Instruction::plain(GOTO, below.len() as u32));
    }
    code.extend(below);
    code.extend(search(upper));
    code
}

fn decide(answer: &Answer<'_>) -> Vec<Instruction> {
    let mut code = Vec::new();
    for rule in &answer.conditional {
        let mut block = Vec::new();
        let mut misses = Vec::new();
        for condition in &rule.conditions {
            test(&mut block, condition);
            misses.push(block.len() - 1);
        }
        block.push(Instruction::plain(RETURN, rule.action.code()));
        for miss in misses {
            block[miss].k = (block.len() - miss - 1) as u32;
        }
        code.extend(block);
    }
    code.push(Instruction::plain(RETURN, answer.otherwise.code()));
    code
}

/// Appends a test that falls through past its last instruction when the condition holds; the last instruction is the
/// jump taken when it does not, its distance still to be filled in.
fn test(code: &mut Vec<Instruction>, condition: &Condition) {
    let low_at = OFFSET_ARGUMENTS + 8 * u32::from(condition.argument);
    let (load_low, load_high) = (Instruction::plain(LOAD, low_at), Instruction::plain(LOAD, low_at + 4));
    let (low, high) = (condition.value as u32, (condition.value >> 32) as u32);
    let t = Instruction::test;
    let long = condition.width == Width::Long;
    match condition.compare {
        Compare::MaskedEqual(mask) => {
            if long {
                code.extend([load_high, Instruction::plain(AND, (mask >> 32) as u32), t(IF_EQUAL, high, 0, 3)]);
            }
            code.extend([load_low, Instruction::plain(AND, mask as u32), t(IF_EQUAL, low, 1, 0)]);
        }
        Compare::Equal => {
            if long {
                code.extend([load_high, t(IF_EQUAL, high, 0, 2)]);
            }
            code.extend([load_low, t(IF_EQUAL, low, 1, 0)]);
        }
        Compare::NotEqual => {
            if long {
                code.extend([load_high, t(IF_EQUAL, high, 0, 3)]);
            }
            code.extend([load_low, t(IF_EQUAL, low, 0, 1)]);
        }
        Compare::Greater | Compare::GreaterOrEqual => {
            if long {
                code.extend([load_high, t(IF_GREATER, high, 4, 0), t(IF_EQUAL, high, 0, 2)]);
            }
            let op = if condition.compare == Compare::Greater { IF_GREATER } else { IF_AT_LEAST };
            code.extend([load_low, t(op, low, 1, 0)]);
        }
        Compare::Less | Compare::LessOrEqual => {
            if long {
                code.extend([load_high, t(IF_GREATER, high, 3, 0), t(IF_EQUAL, high, 0, 3)]);
            }
            let op = if condition.compare == Compare::Less { IF_AT_LEAST } else { IF_GREATER };
            code.extend([load_low, t(op, low, 0, 1)]);
        }
    }
    code.push(Instruction::plain(GOTO, 0));
}

#[cfg(test)]
pub mod machine {
    //! An interpreter of the few instructions that the compiler emits, to test filters for any architecture.

    use super::{
        AND, GOTO, IF_AT_LEAST, IF_EQUAL, IF_GREATER, Instruction, LOAD, OFFSET_ARCH, OFFSET_ARGUMENTS, OFFSET_NUMBER,
        RETURN,
    };

    /// The filter's answer and how many instructions it took.
    pub fn run(code: &[Instruction], arch: u32, number: u32, arguments: [u64; 6]) -> (u32, usize) {
        let (mut at, mut a, mut steps) = (0usize, 0u32, 0usize);
        loop {
            let i = code[at];
            steps += 1;
            at += 1;
            let mut jump = |taken: bool| at += usize::from(if taken { i.jt } else { i.jf });
            match i.code {
                LOAD => {
                    a = match i.k {
                        OFFSET_NUMBER => number,
                        OFFSET_ARCH => arch,
                        k => {
                            let byte = k - OFFSET_ARGUMENTS;
                            (arguments[(byte / 8) as usize] >> (8 * (byte % 8))) as u32
                        }
                    }
                }
                AND => a &= i.k,
                GOTO => at += i.k as usize,
                IF_EQUAL => jump(a == i.k),
                IF_GREATER => jump(a > i.k),
                IF_AT_LEAST => jump(a >= i.k),
                RETURN => return (i.k, steps),
                other => panic!("instruction {other:#x}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::machine::run;
    use super::*;

    const X86: u32 = 0xC000_003E;
    const EPERM: Action = Action::Errno(1);

    fn policy(arch: Arch, default: Action, rules: Vec<(u32, Vec<Rule>)>) -> Policy {
        Policy { arch, default, rules: rules.into_iter().collect() }
    }

    fn rule(conditions: Vec<Condition>, action: Action) -> Rule {
        Rule { conditions, action }
    }

    #[test]
    fn every_number_gets_the_answer_of_its_own_rule() {
        let mut rules = Vec::new();
        for n in (0..400u32).filter(|n| n % 3 != 0) {
            rules.push((n, vec![rule(vec![], if n % 2 == 0 { Action::Allow } else { Action::Errno(n as u16) })]));
        }
        let code = compile(&policy(Arch::X86_64, EPERM, rules)).expect("compiles");
        for n in 0..450u32 {
            let expected = match n {
                n if n >= 400 || n % 3 == 0 => EPERM,
                n if n % 2 == 0 => Action::Allow,
                n => Action::Errno(n as u16),
            };
            let (got, steps) = run(&code, X86, n, [0; 6]);
            assert_eq!(got, expected.code(), "call {n}");
            assert!(steps < 20, "call {n} takes {steps} steps of {}", code.len());
        }
    }

    #[test]
    fn other_abis_and_unknown_calls_are_refused() {
        let allow_all = (0..500).map(|n| (n, vec![rule(vec![], Action::Allow)])).collect();
        let code = compile(&policy(Arch::X86_64, EPERM, allow_all)).expect("compiles");
        assert_eq!(run(&code, X86, 39, [0; 6]).0, Action::Allow.code());
        assert_eq!(run(&code, X86, X32_BIT + 39, [0; 6]).0, EPERM.code());
        assert_eq!(run(&code, X86, u32::MAX, [0; 6]).0, EPERM.code());
        assert_eq!(run(&code, 0x4000_0003, 20, [0; 6]).0, Action::KillProcess.code());
        let code = compile(&policy(Arch::Aarch64, EPERM, vec![])).expect("compiles");
        assert_eq!(run(&code, 0xC000_00B7, 5000, [0; 6]).0, Action::Errno(libc::ENOSYS as u16).code());
        assert_eq!(run(&code, 0xC000_00B7, 5, [0; 6]).0, EPERM.code());
        assert_eq!(run(&code, X86, 5, [0; 6]).0, Action::KillProcess.code());
        // a policy that permits by default permits newer calls as well, but still no x32 number
        let code = compile(&policy(Arch::X86_64, Action::Allow, vec![])).expect("compiles");
        assert_eq!(run(&code, X86, 5000, [0; 6]).0, Action::Allow.code());
        assert_eq!(run(&code, X86, X32_BIT, [0; 6]).0, EPERM.code());
    }

    #[test]
    fn comparisons_agree_with_arithmetic_on_both_widths() {
        let values = [0u64, 1, 5, 0xFFFF_FFFF, 0x1_0000_0000, 0x1_0000_0005, 0x5_0000_0001, u64::MAX];
        let compares = [
            Compare::Equal,
            Compare::NotEqual,
            Compare::Less,
            Compare::LessOrEqual,
            Compare::Greater,
            Compare::GreaterOrEqual,
            Compare::MaskedEqual(0x1_0000_0005),
        ];
        for width in [Width::Int, Width::Long] {
            let cut = |v: u64| {
                if width == Width::Int { v & 0xFFFF_FFFF } else { v }
            };
            for compare in compares {
                for value in values {
                    let condition = Condition { argument: 2, width, compare, value };
                    let rules = vec![(7, vec![rule(vec![condition], Action::Allow)])];
                    let code = compile(&policy(Arch::X86_64, EPERM, rules)).expect("compiles");
                    for argument in values {
                        let (a, v) = (cut(argument), cut(value));
                        let holds = match compare {
                            Compare::Equal => a == v,
                            Compare::NotEqual => a != v,
                            Compare::Less => a < v,
                            Compare::LessOrEqual => a <= v,
                            Compare::Greater => a > v,
                            Compare::GreaterOrEqual => a >= v,
                            Compare::MaskedEqual(mask) => a & mask == v,
                        };
                        let expected = if holds { Action::Allow } else { EPERM };
                        let got = run(&code, X86, 7, [9, 9, argument, 9, 9, 9]).0;
                        assert_eq!(got, expected.code(), "{width:?} {argument:#x} {compare:?} {value:#x}");
                    }
                }
            }
        }
    }

    #[test]
    fn all_conditions_of_a_rule_must_hold_and_the_first_rule_decides() {
        let is = |argument, value| Condition { argument, width: Width::Long, compare: Compare::Equal, value };
        let rules = vec![
            rule(vec![is(0, 1), is(1, 2)], Action::Allow),
            rule(vec![is(0, 1)], Action::Errno(95)),
            rule(vec![], Action::Log),
            rule(vec![is(0, 7)], Action::Trap),
        ];
        let code = compile(&policy(Arch::X86_64, EPERM, vec![(3, rules)])).expect("compiles");
        for (a, b, expected) in
            [(1, 2, Action::Allow), (1, 3, Action::Errno(95)), (2, 2, Action::Log), (7, 0, Action::Log)]
        {
            assert_eq!(run(&code, X86, 3, [a, b, 0, 0, 0, 0]).0, expected.code(), "{a} {b}");
        }
    }

    #[test]
    fn distances_beyond_a_byte_work_and_too_long_is_refused() {
        let many = |count: u64| -> Vec<Rule> {
            (0..count)
                .map(|value| {
                    let condition = Condition { argument: 0, width: Width::Long, compare: Compare::Equal, value };
                    rule(vec![condition], Action::Errno(value as u16 + 1))
                })
                .collect()
        };
        let rules = (10..20).map(|n| (n, many(60))).collect();
        let code = compile(&policy(Arch::X86_64, Action::Allow, rules)).expect("compiles");
        for n in 10..20 {
            for value in [0u64, 31, 59, 60] {
                let expected = if value < 60 { Action::Errno(value as u16 + 1) } else { Action::Allow };
                assert_eq!(run(&code, X86, n, [value, 0, 0, 0, 0, 0]).0, expected.code(), "{n} {value}");
            }
        }
        assert_eq!(run(&code, X86, 9, [0; 6]).0, Action::Allow.code());
        assert!(compile(&policy(Arch::X86_64, Action::Allow, vec![(1, many(1000))])).is_err());
    }
}
