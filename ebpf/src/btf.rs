//! The running kernel's types (`/sys/kernel/btf/vmlinux`): where fields lie, and what tracepoints give.
//!
//! The format is that of the kernel's `Documentation/bpf/btf.rst`. Everything is read with bounds: a file that is not what
//! it says gives an error, never a panic.

use std::collections::HashMap;

/// Where the kernel shows its types.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
const HEADER: usize = 24;

const INT: u32 = 1;
const PTR: u32 = 2;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const FWD: u32 = 7;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;
const RESTRICT: u32 = 11;
const FUNC: u32 = 12;
const FUNC_PROTO: u32 = 13;
const VAR: u32 = 14;
const DATASEC: u32 = 15;
const FLOAT: u32 = 16;
const DECL_TAG: u32 = 17;
const TYPE_TAG: u32 = 18;
const ENUM64: u32 = 19;

/// Most modifiers and embedded structures that are followed.
const DEPTH: usize = 16;

/// The types of a kernel.
#[derive(Debug)]
pub struct Btf {
    bytes: Vec<u8>,
    strings: (usize, usize),
    /// Where each type begins, by number; number 0 is `void` and has no place.
    places: Vec<u32>,
    /// Numbers of the structures by name, and of typedefs.
    structures: HashMap<Vec<u8>, u32>,
    typedefs: HashMap<Vec<u8>, u32>,
}

/// What is wrong with a file of types.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// It cannot be read.
    #[error("{VMLINUX}: {0}; the kernel must be built with CONFIG_DEBUG_INFO_BTF")]
    Read(#[from] std::io::Error),
    /// It is not what it should be.
    #[error("{VMLINUX}: not a table of types: {0}")]
    Malformed(&'static str),
}

/// A type: its kind, its name, how many parts it has, and where these begin.
#[derive(Debug, Clone, Copy)]
struct Type {
    kind: u32,
    name: u32,
    parts: usize,
    flagged: bool,
    /// Its size, or the type that it refers to, by kind.
    operand: u32,
    behind: usize,
}

impl Btf {
    /// The types of the running kernel.
    pub fn of_kernel() -> Result<Self, BtfError> {
        Self::parse(std::fs::read(VMLINUX)?)
    }

    /// Parses a file of types, of this machine's byte order.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, BtfError> {
        let short = BtfError::Malformed("it ends early");
        let half = |at: usize| -> Option<u16> { Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?)) };
        if half(0) != Some(MAGIC) {
            return Err(BtfError::Malformed("its first bytes are not those of BTF"));
        }
        let (Some(header), Some(type_offset), Some(type_length), Some(string_offset), Some(string_length)) =
            (word(&bytes, 4), word(&bytes, 8), word(&bytes, 12), word(&bytes, 16), word(&bytes, 20))
        else {
            return Err(short);
        };
        if (header as usize) < HEADER {
            return Err(BtfError::Malformed("its header is too short"));
        }
        let section = |offset: u32, length: u32| {
            let begin = header as usize + offset as usize;
            let end = begin + length as usize;
            (end <= bytes.len()).then_some((begin, end))
        };
        let (Some(types), Some(strings)) = (section(type_offset, type_length), section(string_offset, string_length))
        else {
            return Err(short);
        };
        let mut places = vec![0];
        let (mut structures, mut typedefs) = (HashMap::new(), HashMap::new());
        let mut at = types.0;
        while at < types.1 {
            let Some(one) = read_type(&bytes, at) else { return Err(short) };
            let number = places.len() as u32;
            places.push(at as u32);
            if matches!(one.kind, STRUCT | TYPEDEF) {
                let name = string(&bytes, strings, one.name);
                let by_name = if one.kind == STRUCT { &mut structures } else { &mut typedefs };
                // only what is ever asked for: structures by name and the typedefs of tracepoints
                if !name.is_empty() && (one.kind == STRUCT || name.starts_with(b"btf_trace_")) {
                    by_name.entry(name.to_vec()).or_insert(number);
                }
            }
            at = one.behind + length_of_parts(&one).ok_or(BtfError::Malformed("a kind of type is not known"))?;
        }
        Ok(Self { bytes, strings, places, structures, typedefs })
    }

    /// The offset of a field in bytes: `path` names embedded structures with dots, anonymous ones are looked through.
    /// None if there is no such structure or field, or the field is less than a byte.
    pub fn offset(&self, structure: &str, path: &str) -> Option<u32> {
        let mut at = *self.structures.get(structure.as_bytes())?;
        let mut bits = 0_u32;
        for name in path.split('.') {
            let (offset, kind) = self.member(at, name.as_bytes(), 0)?;
            bits = bits.checked_add(offset)?;
            at = kind;
        }
        bits.is_multiple_of(8).then_some(bits / 8)
    }

    /// Whether each argument of a tracepoint is a pointer; none if the kernel has no such tracepoint.
    pub fn tracepoint(&self, name: &str) -> Option<Vec<bool>> {
        let typedef = self.get(*self.typedefs.get(format!("btf_trace_{name}").as_bytes())?)?;
        let pointer = self.get(typedef.operand)?;
        if pointer.kind != PTR {
            return None;
        }
        let proto = self.get(pointer.operand)?;
        if proto.kind != FUNC_PROTO {
            return None;
        }
        // the first is the tracepoint's own data
        (1..proto.parts)
            .map(|part| {
                let number = word(&self.bytes, proto.behind + part * 8 + 4)?;
                Some(self.resolve(number)?.1.kind == PTR)
            })
            .collect()
    }

    fn get(&self, number: u32) -> Option<Type> {
        if number == 0 {
            return None;
        }
        read_type(&self.bytes, *self.places.get(number as usize)? as usize)
    }

    /// The type behind typedefs and qualifiers.
    fn resolve(&self, mut number: u32) -> Option<(u32, Type)> {
        for _ in 0..DEPTH {
            let one = self.get(number)?;
            if !matches!(one.kind, TYPEDEF | VOLATILE | CONST | RESTRICT | TYPE_TAG) {
                return Some((number, one));
            }
            number = one.operand;
        }
        None
    }

    /// Offset in bits and type of a member.
    fn member(&self, structure: u32, name: &[u8], depth: usize) -> Option<(u32, u32)> {
        let (_, one) = self.resolve(structure)?;
        if !matches!(one.kind, STRUCT | UNION) || depth > DEPTH {
            return None;
        }
        for part in 0..one.parts {
            let place = one.behind + part * 12;
            let member_name = string(&self.bytes, self.strings, word(&self.bytes, place)?);
            let kind = word(&self.bytes, place + 4)?;
            let raw = word(&self.bytes, place + 8)?;
            let offset = if one.flagged { raw & 0x00ff_ffff } else { raw };
            if member_name == name {
                // a bit field has no address
                return (!one.flagged || raw >> 24 == 0).then_some((offset, kind));
            }
            if member_name.is_empty()
                && let Some((inner, kind)) = self.member(kind, name, depth + 1)
            {
                return Some((offset.checked_add(inner)?, kind));
            }
        }
        None
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn string(bytes: &[u8], (begin, end): (usize, usize), offset: u32) -> &[u8] {
    let all = bytes.get(begin..end).unwrap_or_default();
    let from = all.get(offset as usize..).unwrap_or_default();
    from.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn read_type(bytes: &[u8], at: usize) -> Option<Type> {
    let (name, info, operand) = (word(bytes, at)?, word(bytes, at + 4)?, word(bytes, at + 8)?);
    Some(Type {
        kind: (info >> 24) & 0x1f,
        name,
        parts: (info & 0xffff) as usize,
        flagged: info >> 31 != 0,
        operand,
        behind: at + 12,
    })
}

fn length_of_parts(one: &Type) -> Option<usize> {
    Some(match one.kind {
        INT | VAR | DECL_TAG => 4,
        PTR | FWD | TYPEDEF | VOLATILE | CONST | RESTRICT | FUNC | FLOAT | TYPE_TAG => 0,
        ARRAY => 12,
        STRUCT | UNION | DATASEC | ENUM64 => 12 * one.parts,
        ENUM | FUNC_PROTO => 8 * one.parts,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_kernels_fields_are_found() {
        let Ok(btf) = Btf::of_kernel() else {
            println!("skipped because this kernel shows no types at {VMLINUX}");
            return;
        };
        let pid = btf.offset("task_struct", "pid").expect("every kernel has it");
        assert_eq!(btf.offset("task_struct", "tgid"), Some(pid + 4));
        let embedded = btf.offset("task_struct", "se.sum_exec_runtime").expect("every kernel has it");
        let whole = btf.offset("task_struct", "se").expect("every kernel has it");
        assert_eq!(embedded - whole, btf.offset("sched_entity", "sum_exec_runtime").expect("it has"));
        // in anonymous structures
        assert!(btf.offset("sock", "__sk_common.skc_daddr").is_some());
        assert_eq!(btf.offset("task_struct", "no_such_field"), None);
        assert_eq!(btf.offset("no_such_structure", "pid"), None);
        let switch = btf.tracepoint("sched_switch").expect("every kernel has it");
        assert_eq!(switch[..4], [false, true, true, false]);
        assert_eq!(btf.tracepoint("no_such_tracepoint"), None);
    }

    #[test]
    fn damaged_tables_are_refused_or_answer_nothing() {
        assert!(Btf::parse(Vec::new()).is_err());
        assert!(Btf::parse(vec![0; 64]).is_err());
        let Ok(whole) = std::fs::read(VMLINUX) else {
            println!("skipped because this kernel shows no types at {VMLINUX}");
            return;
        };
        // the header and a piece: the sections lie outside
        assert!(Btf::parse(whole[..4096].to_vec()).is_err());
        // any byte of the first types may be anything
        let small = {
            let types = word(&whole, 12).unwrap() as usize;
            let mut small = whole[..HEADER + 600].to_vec();
            small[12..16].copy_from_slice(&600_u32.to_ne_bytes());
            small[16..20].copy_from_slice(&0_u32.to_ne_bytes());
            small[20..24].copy_from_slice(&600_u32.to_ne_bytes());
            assert!(types > 600);
            small
        };
        for at in 0..small.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut damaged = small.clone();
                damaged[at] = value;
                if let Ok(btf) = Btf::parse(damaged) {
                    let _ = (btf.offset("task_struct", "pid"), btf.tracepoint("sched_switch"));
                }
            }
        }
    }
}
