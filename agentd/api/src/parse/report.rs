//! The violations as they are found, and the paths that name where.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;

use super::MAX_VIOLATIONS;
use super::format;
use crate::problem::Violation;

/// The violations found so far.
#[derive(Default)]
pub(super) struct Report {
    violations: RefCell<Vec<Violation>>,
    /// Paths of values of the wrong type. Nothing is known of what should be within them.
    unreadable: RefCell<HashSet<String>>,
    /// The paths that the readers found at fault, once the rules have begun.
    read: RefCell<HashSet<String>>,
    left_out: Cell<usize>,
}

impl Report {
    /// Notes a violation.
    pub fn fault(&self, path: &str, message: impl Into<String>) {
        let mut violations = self.violations.borrow_mut();
        if violations.len() < MAX_VIOLATIONS {
            violations.push(Violation::new(path, message));
        } else {
            self.left_out.set(self.left_out.get() + 1);
        }
    }

    /// Whether further violations are only counted, so that there is no need to word them.
    pub fn is_full(&self) -> bool {
        self.violations.borrow().len() >= MAX_VIOLATIONS
    }

    /// Notes a violation by which nothing is known of the value at `path`.
    pub fn unreadable(&self, path: &str, message: String) {
        if !self.is_full() {
            self.unreadable.borrow_mut().insert(path.to_owned());
        }
        self.fault(path, message);
    }

    /// Marks the end of reading: from here on rules are noted, which are silent about faults of reading, but not about
    /// each other.
    pub fn begin_rules(&self) {
        let violations = self.violations.borrow();
        *self.read.borrow_mut() = violations.iter().map(|violation| violation.path.clone()).collect();
    }

    /// Whether the value at `path` could not be read, or stands within one that could not: its default says nothing.
    pub fn is_unreadable(&self, path: &str) -> bool {
        let unreadable = self.unreadable.borrow();
        let mut ends = path.char_indices().filter(|(_, each)| matches!(each, '.' | '[')).map(|(end, _)| end);
        // A path holds those of all that it is within; the document as a whole has the empty one.
        !unreadable.is_empty()
            && (unreadable.contains("")
                || unreadable.contains(path)
                || ends.any(|end| unreadable.contains(&path[..end])))
    }

    /// Whether reading found the field at `path` itself at fault, or could not read it.
    pub fn at_fault(&self, path: &str) -> bool {
        self.read.borrow().contains(path) || self.is_unreadable(path)
    }

    /// Notes a violation of a rule between fields, unless the field is at fault by itself: the rule would judge the
    /// default that stands in its place.
    pub fn rule(&self, path: &str, message: impl Into<String>) {
        if !self.at_fault(path) {
            self.fault(path, message);
        }
    }

    /// Whether nothing is at fault.
    pub fn is_empty(&self) -> bool {
        self.violations.borrow().is_empty()
    }

    /// The violations, in the order in which they were found.
    pub fn into_violations(self) -> Vec<Violation> {
        let mut violations = self.violations.into_inner();
        let left_out = self.left_out.get();
        if left_out > 0 {
            violations.push(Violation::new("", format!("and {left_out} more; correct these first")));
        }
        violations
    }
}

/// The path of the entry `key` of the object at `parent`. A key that is not a plain word is quoted: `labels["a.b"]`.
pub(super) fn join_key(parent: &str, key: &str) -> String {
    let plain = !key.is_empty()
        && key.len() <= format::SHOWN
        && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
    match (plain, parent.is_empty()) {
        (true, true) => key.to_owned(),
        (true, false) => format!("{parent}.{key}"),
        (false, _) => format!("{parent}[{}]", format::quoted(key)),
    }
}

/// The path of the element `index` of the list at `parent`.
pub(super) fn join_index(parent: &str, index: usize) -> String {
    format!("{parent}[{index}]")
}
