//! What the programs are told about the running kernel before they are loaded.

use std::collections::HashMap;

use agentd_ebpf_common::ABSENT;
use agentd_ebpf_common::fields::FIELDS;

use crate::btf::Btf;

/// Offsets of fields and forms of tracepoints.
#[derive(Debug)]
pub struct Kernel {
    offsets: HashMap<&'static str, u32>,
    /// Whether `mark_victim` gives a task.
    pub victim_is_task: bool,
    /// Why there are no types.
    pub without_btf: Option<String>,
}

impl Kernel {
    /// Of the running kernel; with `without_btf`, as if it showed no types.
    pub fn look(without_btf: bool) -> Self {
        let btf = if without_btf {
            Err("left out by configuration".to_owned())
        } else {
            Btf::of_kernel().map_err(|error| error.to_string())
        };
        match btf {
            Ok(btf) => Self {
                offsets: FIELDS
                    .iter()
                    .map(|field| (field.global, btf.offset(field.structure, field.path).unwrap_or(ABSENT)))
                    .collect(),
                victim_is_task: btf
                    .tracepoint("mark_victim")
                    .is_some_and(|arguments| arguments.first().copied().unwrap_or(false)),
                without_btf: None,
            },
            Err(why) => Self { offsets: HashMap::new(), victim_is_task: false, without_btf: Some(why) },
        }
    }

    /// Each global and its offset.
    pub fn offsets(&self) -> impl Iterator<Item = (&'static str, u32)> {
        FIELDS.iter().map(|field| (field.global, self.offsets.get(field.global).copied().unwrap_or(ABSENT)))
    }

    /// What is missing of these fields, in words.
    pub fn missing(&self, fields: &[&'static str]) -> Option<String> {
        let missing = fields.iter().find(|field| self.offsets.get(*field).is_none_or(|offset| *offset == ABSENT))?;
        if let Some(why) = &self.without_btf {
            return Some(format!("the kernel's types are not to be had: {why}"));
        }
        let field = FIELDS.iter().find(|field| field.global == *missing)?;
        Some(format!("this kernel's {} has no field {}", field.structure, field.path))
    }
}
