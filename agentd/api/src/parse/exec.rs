//! Reader of a request to run a program in a container.

use super::container::image;
use super::fields;
use super::format;
use super::reader::Place;
use crate::session::ExecRequest;

/// The longest time that a session can be given, in seconds: what a timer can hold, and beyond any session.
const SECONDS: i64 = 1_000_000_000;

/// The body of an exec call. What holds between fields is judged by [`ExecRequest::faults`].
pub(super) fn exec_request(at: &Place) -> ExecRequest {
    let o = at.object(&fields::EXEC_REQUEST);
    let size = |name| o.at(name).whole(1..=65_535).map(|size| size as u16);
    let seconds = |name| o.at(name).whole(0..=SECONDS).map(|seconds| seconds as u64);
    ExecRequest {
        container: o.at("container").text(format::any),
        instance: o.at("instance").text(format::any),
        // a word that cannot be read stays as an empty one, so that the others keep their places
        command: o.at("command").list(|word| word.text(format::any).unwrap_or_default()),
        tty: o.at("tty").flag().unwrap_or_default(),
        rows: size("rows"),
        columns: size("columns"),
        stdin: o.at("stdin").flag().unwrap_or_default(),
        environment: o.at("environment").map(format::any, |value| value.text(format::any)),
        user: o.at("user").text(format::any),
        workdir: o.at("workdir").text(format::any),
        capabilities: o.at("capabilities").list_of(|name| name.text(format::any)),
        detach: o.at("detach").flag().unwrap_or_default(),
        idle_seconds: seconds("idleSeconds"),
        max_seconds: seconds("maxSeconds"),
        image: o.at("image").optional(image),
    }
}
