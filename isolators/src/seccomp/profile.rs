//! Reads a seccomp profile from a file in the format of OCI and Docker (JSON).
//!
//! Understood are `defaultAction`, `defaultErrnoRet` (or `defaultErrno`, by name), `architectures` or `archMap`, `flags`,
//! and `syscalls` with `names` (or `name`), `action`, `errnoRet` (or `errno`), `args`, `includes`, `excludes`. A field
//! that is misspelt or of the wrong kind is refused by its path, because a profile that is half understood protects
//! half. Names that are no calls on this architecture are passed over, as Docker does, and listed.
//!
//! Rules of one call with conditions come before the one without, in the order of the file. Of two without conditions
//! the first counts, as with libseccomp, and the other is listed. Conditions of one entry must all hold, except that
//! several on the same argument are taken one by one, as runc does.

use serde_json::{Map, Value};

use super::rules::{Action, Arch, Compare, Condition, Policy, Rule, Width};
use crate::capabilities;

/// What a profile depends on besides its file.
#[derive(Debug, Clone, Copy)]
pub struct Circumstances {
    /// Architecture to compile for.
    pub arch: Arch,
    /// Capabilities of the container.
    pub capabilities: u64,
    /// Version of the kernel: major, minor.
    pub kernel: (u32, u32),
}

/// A profile as read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// Its rules.
    pub policy: Policy,
    /// Names of calls that do not exist on this architecture.
    pub unknown: Vec<String>,
    /// Things that the profile asks for and that have no effect here.
    pub notes: Vec<String>,
}

/// What is wrong with a profile: the path of the field and the reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct Fault {
    /// Path in the document, e.g. `syscalls[3].args[0].op`.
    pub path: String,
    /// What was found and what was expected.
    pub message: String,
}

fn fault<T>(path: impl Into<String>, message: impl Into<String>) -> Result<T, Fault> {
    Err(Fault { path: path.into(), message: message.into() })
}

/// Reads a profile.
pub fn parse(text: &[u8], at: Circumstances) -> Result<Profile, Fault> {
    let document: Value = match serde_json::from_slice(text) {
        Ok(document) => document,
        Err(e) => return fault("(document)", format!("not JSON: {e}")),
    };
    let known = [
        "defaultAction",
        "defaultErrnoRet",
        "defaultErrno",
        "architectures",
        "archMap",
        "flags",
        "syscalls",
        "listenerPath",
        "listenerMetadata",
    ];
    let root = object(&document, "(document)", &known)?;
    for field in ["listenerPath", "listenerMetadata"] {
        if root.get(field).is_some_and(|v| !v.is_null() && v.as_str() != Some("")) {
            return fault(field, "notifying a listener is not supported: remove the field and decide by action");
        }
    }
    let Some(default) = root.get("defaultAction") else {
        return fault("defaultAction", "missing: expected an action such as SCMP_ACT_ERRNO");
    };
    let default = action(default, root, "defaultErrno", "")?;
    let mut profile = Profile { policy: Policy::new(at.arch, default), unknown: Vec::new(), notes: Vec::new() };
    architectures(root, at.arch, &mut profile.notes)?;
    flags(root, &mut profile.notes)?;
    for (index, entry) in list(root.get("syscalls"), "syscalls")?.iter().enumerate() {
        read_entry(entry, &format!("syscalls[{index}]"), at, &mut profile)?;
    }
    for rules in profile.policy.rules.values_mut() {
        rules.sort_by_key(|rule| rule.conditions.is_empty());
    }
    profile.unknown.sort_unstable();
    profile.unknown.dedup();
    Ok(profile)
}

fn read_entry(entry: &Value, path: &str, at: Circumstances, profile: &mut Profile) -> Result<(), Fault> {
    let known = ["names", "name", "action", "errnoRet", "errno", "args", "includes", "excludes", "comment"];
    let entry = object(entry, path, &known)?;
    let mut names = Vec::new();
    for (index, name) in list(entry.get("names"), &format!("{path}.names"))?.iter().enumerate() {
        names.push(string(name, &format!("{path}.names[{index}]"))?);
    }
    if let Some(name) = entry.get("name").filter(|name| !name.is_null()) {
        let name = string(name, &format!("{path}.name"))?;
        if !name.is_empty() {
            names.push(name);
        }
    }
    if names.is_empty() {
        return fault(format!("{path}.names"), "empty: expected at least one name of a system call");
    }
    let Some(found) = entry.get("action") else {
        return fault(format!("{path}.action"), "missing: expected an action such as SCMP_ACT_ALLOW");
    };
    let action = action(found, entry, "errno", &format!("{path}."))?;
    let mut conditions = Vec::new();
    for (index, argument) in list(entry.get("args"), &format!("{path}.args"))?.iter().enumerate() {
        conditions.push(condition(argument, &format!("{path}.args[{index}]"))?);
    }
    let included = selects(entry.get("includes"), &format!("{path}.includes"), at)?;
    let excluded = selects(entry.get("excludes"), &format!("{path}.excludes"), at)?;
    if !included.all || excluded.any {
        return Ok(());
    }
    let repeated = (0..6).any(|n| conditions.iter().filter(|c| c.argument == n).count() > 1);
    let alternatives: Vec<Vec<Condition>> =
        if repeated { conditions.into_iter().map(|one| vec![one]).collect() } else { vec![conditions] };
    for name in names {
        for conditions in &alternatives {
            let rule = Rule { conditions: conditions.clone(), action };
            if let Some(number) = super::syscalls::number(at.arch, name) {
                let present = profile.policy.rules.entry(number).or_default();
                let before = present.iter().find(|r| r.conditions.is_empty() && rule.conditions.is_empty());
                match before.map(|r| r.action) {
                    Some(first) if first != action => profile.notes.push(format!(
                        "{path} answers {name} with {action:?}, but an entry before it with {first:?}, which counts"
                    )),
                    Some(_) => {}
                    None => present.push(rule),
                }
            } else {
                profile.unknown.push(name.to_owned());
            }
        }
    }
    Ok(())
}

/// Whether the conditions of `includes` or `excludes` all hold, and whether any does.
struct Selected {
    all: bool,
    any: bool,
}

fn selects(filter: Option<&Value>, path: &str, at: Circumstances) -> Result<Selected, Fault> {
    let mut selected = Selected { all: true, any: false };
    let Some(filter) = filter.filter(|f| !f.is_null()) else {
        return Ok(selected);
    };
    let filter = object(filter, path, &["arches", "caps", "minKernel"])?;
    let mut note = |holds: bool| {
        selected.all &= holds;
        selected.any |= holds;
    };
    let arches = list(filter.get("arches"), &format!("{path}.arches"))?;
    let mut ours = false;
    for (index, arch) in arches.iter().enumerate() {
        ours |= at.arch.names().contains(&string(arch, &format!("{path}.arches[{index}]"))?);
    }
    if !arches.is_empty() {
        note(ours);
    }
    for (index, name) in list(filter.get("caps"), &format!("{path}.caps"))?.iter().enumerate() {
        let path = format!("{path}.caps[{index}]");
        let name = string(name, &path)?;
        match capabilities::bit(name) {
            Some(one) => note(at.capabilities & one != 0),
            None => {
                return fault(path, format!("{name:?} is no capability: expected a name such as CAP_SYS_ADMIN"));
            }
        }
    }
    if let Some(version) = filter.get("minKernel").filter(|v| !v.is_null()) {
        let path = format!("{path}.minKernel");
        let text = string(version, &path)?;
        let parsed = text.split_once('.').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
        match parsed {
            Some(least) => note(at.kernel >= least),
            None => {
                return fault(path, format!("found {text:?}, expected a version such as \"4.8\""));
            }
        }
    }
    Ok(selected)
}

fn condition(value: &Value, path: &str) -> Result<Condition, Fault> {
    let argument = object(value, path, &["index", "value", "valueTwo", "op"])?;
    let index = match argument.get("index").and_then(Value::as_u64) {
        Some(index @ 0..=5) => index as u8,
        _ => {
            return fault(format!("{path}.index"), "expected the index of an argument, 0 to 5");
        }
    };
    let number = |field: &str, required: bool| match argument.get(field) {
        None | Some(Value::Null) if !required => Ok(0),
        found => match found.and_then(Value::as_u64) {
            Some(number) => Ok(number),
            None => fault(format!("{path}.{field}"), "expected a whole number from 0 to 18446744073709551615"),
        },
    };
    let (first, second) = (number("value", true)?, number("valueTwo", false)?);
    let op = match argument.get("op") {
        Some(op) => string(op, &format!("{path}.op"))?,
        None => {
            return fault(format!("{path}.op"), "missing: expected a comparison such as SCMP_CMP_EQ");
        }
    };
    let (compare, value) = match op {
        "SCMP_CMP_EQ" => (Compare::Equal, first),
        "SCMP_CMP_NE" => (Compare::NotEqual, first),
        "SCMP_CMP_LT" => (Compare::Less, first),
        "SCMP_CMP_LE" => (Compare::LessOrEqual, first),
        "SCMP_CMP_GT" => (Compare::Greater, first),
        "SCMP_CMP_GE" => (Compare::GreaterOrEqual, first),
        "SCMP_CMP_MASKED_EQ" => (Compare::MaskedEqual(first), second),
        other => {
            return fault(
                format!("{path}.op"),
                format!("found {other:?}, expected SCMP_CMP_EQ, _NE, _LT, _LE, _GT, _GE or _MASKED_EQ"),
            );
        }
    };
    Ok(Condition { argument: index, width: Width::Long, compare, value })
}

/// Reads an action. Its error number is in the field `errno` + `Ret`, as a number, or else in `errno`, by its name
/// (podman's files have both).
fn action(value: &Value, object: &Map<String, Value>, errno: &str, prefix: &str) -> Result<Action, Fault> {
    let ret = format!("{errno}Ret");
    let present = |field: &str| object.get(field).filter(|found| !found.is_null());
    let number = match (present(&ret), present(errno)) {
        (Some(found), _) => match found.as_u64() {
            Some(number @ 0..=4095) => number as u16,
            _ => return fault(format!("{prefix}{ret}"), "expected an error number from 0 to 4095"),
        },
        (None, Some(found)) => {
            let path = format!("{prefix}{errno}");
            let name = string(found, &path)?;
            match ERRNOS.iter().find(|(known, _)| *known == name) {
                Some((_, number)) => *number as u16,
                None => return fault(path, format!("found {name:?}, expected the number instead, in {ret}")),
            }
        }
        (None, None) => libc::EPERM as u16,
    };
    let path = &format!("{prefix}{}", if prefix.is_empty() { "defaultAction" } else { "action" });
    Ok(match string(value, path)? {
        "SCMP_ACT_ALLOW" => Action::Allow,
        "SCMP_ACT_LOG" => Action::Log,
        "SCMP_ACT_ERRNO" => Action::Errno(number),
        "SCMP_ACT_TRACE" => Action::Trace(number),
        "SCMP_ACT_TRAP" => Action::Trap,
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action::KillThread,
        "SCMP_ACT_KILL_PROCESS" => Action::KillProcess,
        "SCMP_ACT_NOTIFY" => {
            return fault(path, "SCMP_ACT_NOTIFY needs a listener, which is not supported: use SCMP_ACT_ERRNO");
        }
        other => {
            return fault(
                path,
                format!(
                    "found {other:?}, expected SCMP_ACT_ALLOW, _LOG, _ERRNO, _TRACE, _TRAP, _KILL, _KILL_THREAD or \
                     _KILL_PROCESS"
                ),
            );
        }
    })
}

/// Error numbers that profiles use by name.
const ERRNOS: &[(&str, i32)] = &[
    ("EPERM", libc::EPERM),
    ("ENOSYS", libc::ENOSYS),
    ("EACCES", libc::EACCES),
    ("EINVAL", libc::EINVAL),
    ("ENOENT", libc::ENOENT),
    ("EOPNOTSUPP", libc::EOPNOTSUPP),
    ("ENOTSUP", libc::ENOTSUP),
    ("EAFNOSUPPORT", libc::EAFNOSUPPORT),
];

fn architectures(root: &Map<String, Value>, arch: Arch, notes: &mut Vec<String>) -> Result<(), Fault> {
    let mut others = Vec::new();
    let mut see = |name: &str, path: &str| {
        if !name.starts_with("SCMP_ARCH_") {
            return fault(path, format!("found {name:?}, expected an architecture such as SCMP_ARCH_X86_64"));
        }
        if !arch.names().contains(&name) {
            others.push(name.to_owned());
        }
        Ok(())
    };
    for (index, name) in list(root.get("architectures"), "architectures")?.iter().enumerate() {
        let path = format!("architectures[{index}]");
        see(string(name, &path)?, &path)?;
    }
    for (index, map) in list(root.get("archMap"), "archMap")?.iter().enumerate() {
        let path = format!("archMap[{index}]");
        let map = object(map, &path, &["architecture", "subArchitectures"])?;
        let main = match map.get("architecture") {
            Some(name) => string(name, &format!("{path}.architecture"))?,
            None => {
                return fault(format!("{path}.architecture"), "missing: expected a name such as SCMP_ARCH_X86_64");
            }
        };
        let ours = arch.names().contains(&main);
        for (index, name) in list(map.get("subArchitectures"), &format!("{path}.subArchitectures"))?.iter().enumerate()
        {
            let path = format!("{path}.subArchitectures[{index}]");
            let name = string(name, &path)?;
            if ours {
                see(name, &path)?;
            }
        }
    }
    if !others.is_empty() {
        others.sort_unstable();
        others.dedup();
        notes.push(format!("calls of other architectures are refused, though the profile names {}", others.join(", ")));
    }
    Ok(())
}

fn flags(root: &Map<String, Value>, notes: &mut Vec<String>) -> Result<(), Fault> {
    for (index, flag) in list(root.get("flags"), "flags")?.iter().enumerate() {
        let path = format!("flags[{index}]");
        match string(flag, &path)? {
            // one thread, and the kernel's default from 5.16 on
            "SECCOMP_FILTER_FLAG_TSYNC" | "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => {}
            "SECCOMP_FILTER_FLAG_LOG" => notes.push("SECCOMP_FILTER_FLAG_LOG has no effect".to_owned()),
            other => return fault(path, format!("{other:?} is not supported: remove it")),
        }
    }
    Ok(())
}

fn object<'a>(value: &'a Value, path: &str, known: &[&str]) -> Result<&'a Map<String, Value>, Fault> {
    let Some(map) = value.as_object() else {
        return fault(path, "expected an object");
    };
    match map.keys().find(|key| !known.contains(&key.as_str())) {
        Some(key) => fault(format!("{path}.{key}"), format!("unknown field, expected one of {}", known.join(", "))),
        None => Ok(map),
    }
}

fn list<'a>(value: Option<&'a Value>, path: &str) -> Result<&'a [Value], Fault> {
    match value {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(items)) => Ok(items),
        Some(_) => fault(path, "expected a list"),
    }
}

fn string<'a>(value: &'a Value, path: &str) -> Result<&'a str, Fault> {
    value.as_str().map_or_else(|| fault(path, format!("found {value}, expected a text")), Ok)
}

#[cfg(test)]
mod tests {
    use super::super::compile::{compile, machine::run};
    use super::*;

    const ERRNO: u32 = libc::SECCOMP_RET_ERRNO;

    fn at(capabilities: u64) -> Circumstances {
        Circumstances { arch: Arch::X86_64, capabilities, kernel: (6, 1) }
    }

    fn answer(text: &str, capabilities: u64, call: u32, arguments: [u64; 6]) -> u32 {
        let profile = parse(text.as_bytes(), at(capabilities)).expect("parses");
        run(&compile(&profile.policy).expect("compiles"), Arch::X86_64.audit(), call, arguments).0
    }

    #[test]
    fn a_profile_in_dockers_format_is_followed() {
        let text = r#"{
            "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
            "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]}],
            "syscalls": [
                {"names": ["read", "write", "chown32", "bogus"], "action": "SCMP_ACT_ALLOW", "comment": "x"},
                {"names": ["personality"], "action": "SCMP_ACT_ALLOW",
                 "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 9, "op": "SCMP_CMP_EQ"}]},
                {"names": ["clone"], "action": "SCMP_ACT_ALLOW",
                 "args": [{"index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}],
                 "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
                {"names": ["clone", "mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
                {"names": ["kill"], "action": "SCMP_ACT_KILL_PROCESS", "includes": {"arches": ["arm64"]}},
                {"names": ["ptrace"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "includes": {"minKernel": "4.8"}},
                {"names": ["bpf"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "99.0"}},
                {"names": ["bpf", "read"], "action": "SCMP_ACT_ERRNO"},
                {"names": ["setns"], "action": "SCMP_ACT_ERRNO", "errno": "EINVAL"},
                {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": null},
                {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 22,
                 "args": [{"index": 0, "value": 16, "op": "SCMP_CMP_EQ"}, {"index": 2, "value": 9, "op": "SCMP_CMP_EQ"}]}
            ]}"#;
        let admin = capabilities::bit("SYS_ADMIN").expect("known");
        let allow = libc::SECCOMP_RET_ALLOW;
        let none = [0; 6];
        assert_eq!(answer(text, 0, 0, none), allow);
        assert_eq!(answer(text, 0, 2, none), ERRNO + 38);
        assert_eq!(answer(text, 0, 135, [9, 0, 0, 0, 0, 0]), allow, "conditions on one argument are alternatives");
        assert_eq!(answer(text, 0, 135, [7, 0, 0, 0, 0, 0]), ERRNO + 38);
        assert_eq!(answer(text, 0, 56, [0x1000_0000, 0, 0, 0, 0, 0]), ERRNO + 38);
        assert_eq!(answer(text, 0, 56, [17, 0, 0, 0, 0, 0]), allow);
        assert_eq!(answer(text, admin, 56, [0x1000_0000, 0, 0, 0, 0, 0]), allow);
        assert_eq!(answer(text, 0, 165, none), ERRNO + 38);
        assert_eq!(answer(text, admin, 165, none), allow);
        assert_eq!(answer(text, 0, 62, none), ERRNO + 38, "an entry for another architecture");
        assert_eq!(answer(text, 0, 101, none), ERRNO + 1);
        assert_eq!(answer(text, 0, 321, none), ERRNO + 1, "the entry for newer kernels does not count");
        assert_eq!(answer(text, 0, 308, none), ERRNO + 22, "an error number by its name");
        assert_eq!(answer(text, 0, 41, [16, 0, 9, 0, 0, 0]), ERRNO + 22, "the narrower rule comes first");
        assert_eq!(answer(text, 0, 41, [16, 0, 8, 0, 0, 0]), allow);
        let profile = parse(text.as_bytes(), at(0)).expect("parses");
        assert_eq!(profile.unknown, ["bogus", "chown32"]);
        assert_eq!(profile.notes.len(), 2, "{:?}", profile.notes);
        assert!(profile.notes[1].contains("read"), "of two answers to read the first counts: {:?}", profile.notes);
    }

    #[test]
    fn what_is_wrong_is_named_by_its_field() {
        let entry = |inner: &str| {
            format!(
                r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{{"names":["read"],"action":"SCMP_ACT_ALLOW"}},{inner}]}}"#
            )
        };
        for (text, path) in [
            ("{".to_owned(), "(document)"),
            ("[]".to_owned(), "(document)"),
            ("{}".to_owned(), "defaultAction"),
            (r#"{"defaultAction":"ALLOW"}"#.to_owned(), "defaultAction"),
            (r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#.to_owned(), "defaultAction"),
            (r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":{}}"#.to_owned(), "syscalls"),
            (r#"{"defaultAction":"SCMP_ACT_ERRNO","sycalls":[]}"#.to_owned(), "(document).sycalls"),
            (r#"{"defaultAction":"SCMP_ACT_ERRNO","flags":["SECCOMP_FILTER_FLAG_X"]}"#.to_owned(), "flags[0]"),
            (r#"{"defaultAction":"SCMP_ACT_ERRNO","listenerPath":"/x"}"#.to_owned(), "listenerPath"),
            (r#"{"defaultAction":"SCMP_ACT_ERRNO","architectures":["x86"]}"#.to_owned(), "architectures[0]"),
            (entry(r#"{"names":[],"action":"SCMP_ACT_ALLOW"}"#), "syscalls[1].names"),
            (entry(r#"{"names":[3],"action":"SCMP_ACT_ALLOW"}"#), "syscalls[1].names[0]"),
            (entry(r#"{"names":["write"]}"#), "syscalls[1].action"),
            (entry(r#"{"names":["write"],"action":"SCMP_ACT_ERRNO","errnoRet":5000}"#), "syscalls[1].errnoRet"),
            (
                entry(
                    r#"{"names":["write"],"action":"SCMP_ACT_ALLOW","args":[{"index":6,"value":1,"op":"SCMP_CMP_EQ"}]}"#,
                ),
                "syscalls[1].args[0].index",
            ),
            (
                entry(
                    r#"{"names":["write"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":-1,"op":"SCMP_CMP_EQ"}]}"#,
                ),
                "syscalls[1].args[0].value",
            ),
            (
                entry(r#"{"names":["write"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":1,"op":"=="}]}"#),
                "syscalls[1].args[0].op",
            ),
            (
                entry(r#"{"names":["write"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_X"]}}"#),
                "syscalls[1].includes.caps[0]",
            ),
            (
                entry(r#"{"names":["write"],"action":"SCMP_ACT_ALLOW","excludes":{"minKernel":"new"}}"#),
                "syscalls[1].excludes.minKernel",
            ),
        ] {
            assert_eq!(parse(text.as_bytes(), at(0)).expect_err(&text).path, path, "{text}");
        }
    }
}
