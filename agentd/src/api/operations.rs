//! Every call of the local API, once: method, path, parameters, headers, bodies, statuses, and the verb that the access
//! list asks for. [`super::route`] finds calls by this table, [`super::openapi`] makes the served document of it, and
//! tests hold `docs/api.md` against it. The paths of the Mesos agent API are not in it: `docs/mesos-agent-api.md`.

mod table;

use super::route::Route;

pub use table::OPERATIONS;

/// A call.
#[derive(Debug, Clone, Copy)]
pub struct Operation {
    /// Its method.
    pub method: &'static str,
    /// Its path; a segment in braces stands for any one segment.
    pub path: &'static str,
    /// Which group of calls it belongs to.
    pub tag: &'static str,
    /// Verb that the access list must grant; empty where anybody may call.
    pub verb: &'static str,
    /// Whether it changes something.
    pub mutates: bool,
    /// One line for people.
    pub summary: &'static str,
    /// Query parameters that it takes.
    pub parameters: &'static [Parameter],
    /// Request headers that mean something to it.
    pub headers: &'static [Header],
    /// What its request carries.
    pub request: Option<Content>,
    /// How it answers when it is obeyed.
    pub answers: &'static [Reply],
    /// Statuses of its refusals, besides 400, 401, 403, 408, 429, 500 and 503, which any call may be answered with.
    pub refusals: &'static [u16],
    /// Makes its route of the segment in braces.
    pub(super) make: Make,
}

/// How a path becomes a route.
#[derive(Debug, Clone, Copy)]
pub(super) enum Make {
    /// There is nothing in braces.
    Plain(fn() -> Route),
    /// One segment, as it is.
    One(fn(String) -> Route),
    /// The id of a pod, whose leading slash may be missing.
    Pod(fn(String) -> Route),
}

/// A query parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameter {
    /// Its name.
    pub name: &'static str,
    /// What it looks like.
    pub form: Form,
    /// Whether it may be given several times.
    pub repeated: bool,
    /// One line for people.
    pub what: &'static str,
}

/// What the value of a parameter looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Text that is not empty.
    Text,
    /// `true` or `false`.
    Flag,
    /// A whole number.
    Whole,
    /// Seconds, also with a fraction.
    Seconds,
    /// An RFC 3339 time.
    Time,
    /// One of some words.
    Words(&'static [&'static str]),
}

/// A request header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Its name.
    pub name: &'static str,
    /// One line for people.
    pub what: &'static str,
}

/// A body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    /// Its media type.
    pub media: &'static str,
    /// What it holds.
    pub holds: Holds,
}

/// What a body holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// One value of this schema.
    One(&'static str),
    /// A list of this schema.
    List(&'static str),
    /// Text or bytes.
    Bytes,
}

/// An answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// Its status.
    pub status: u16,
    /// One line for people.
    pub what: &'static str,
    /// Its bodies: one for each media type that it may have.
    pub content: &'static [Content],
}

impl Operation {
    /// Whether a path with these decoded segments is this operation's.
    pub(super) fn has(&self, segments: &[String]) -> bool {
        let mut wanted = self.path.split('/').skip(1);
        let mut found = segments.iter();
        loop {
            match (wanted.next(), found.next()) {
                (None, None) => return true,
                (Some(wanted), Some(found)) if wanted.starts_with('{') || wanted == found => {}
                _ => return false,
            }
        }
    }

    /// The route of a path that is this operation's.
    pub(super) fn route(&self, segments: &[String]) -> Route {
        let named = || {
            let place = self.path.split('/').skip(1).position(|segment| segment.starts_with('{'));
            place.and_then(|place| segments.get(place)).cloned().unwrap_or_default()
        };
        match self.make {
            Make::Plain(make) => make(),
            Make::One(make) => make(named()),
            Make::Pod(make) => {
                let id = named();
                make(if id.starts_with('/') { id } else { format!("/{id}") })
            }
        }
    }

    /// Whether a route is this operation's.
    fn makes(&self, route: &Route) -> bool {
        let of = match self.make {
            Make::Plain(make) => make(),
            Make::One(make) | Make::Pod(make) => make(String::new()),
        };
        std::mem::discriminant(&of) == std::mem::discriminant(route)
    }

    /// The operation of a route; none for a path of the Mesos agent API.
    pub fn of(route: &Route) -> Option<&'static Self> {
        OPERATIONS.iter().find(|operation| operation.makes(route))
    }
}
