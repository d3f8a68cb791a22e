//! A container's place: the names of its parents, from the outermost, and its own.

use std::fmt;

use super::required::below;
use super::v1::ContainerId;
use crate::problem::Violation;

/// Most containers in each other.
const DEEPEST: usize = 8;

/// Longest name of a container.
const LONGEST: usize = 242;

/// A container and its parents, outermost first. Has at least one name; each is letters, digits, `-` and `_`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerPath(Vec<String>);

impl ContainerPath {
    /// Of the names that it is made of, outermost first. None where there are none.
    pub fn of<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
        (!names.is_empty()).then_some(Self(names))
    }

    /// Reads an id that lies at `path`.
    pub fn read(id: &ContainerId, path: &str) -> Result<Self, Violation> {
        let mut names = Vec::new();
        let mut path = path.to_owned();
        let mut next = Some(id);
        while let Some(id) = next {
            let at = below(&path, "value");
            if names.len() == DEEPEST {
                let message = format!("found more than {DEEPEST} containers in each other, expected fewer");
                return Err(Violation::new(path, message));
            }
            let sound = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            if id.value.is_empty() || id.value.len() > LONGEST || !id.value.chars().all(sound) {
                let shown: String = id.value.chars().take(80).collect();
                let message =
                    format!("found {shown:?}, expected 1 to {LONGEST} letters, digits, '-' and '_' (a UUID will do)");
                return Err(Violation::new(at, message));
            }
            names.push(id.value.clone());
            path = below(&path, "parent");
            next = id.parent.as_deref();
        }
        names.reverse();
        Ok(Self(names))
    }

    /// Its names, outermost first.
    pub fn names(&self) -> Vec<&str> {
        self.0.iter().map(String::as_str).collect()
    }

    /// As a message.
    pub fn id(&self) -> ContainerId {
        let mut names = self.0.iter();
        let mut id = ContainerId { value: names.next().cloned().unwrap_or_default(), parent: None };
        for name in names {
            id = ContainerId { value: name.clone(), parent: Some(Box::new(id)) };
        }
        id
    }
}

/// The names with dots between, as Mesos shows them.
impl fmt::Display for ContainerPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("."))
    }
}
