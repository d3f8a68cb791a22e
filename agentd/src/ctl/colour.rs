//! Colours: on a terminal only, unless `--color` says otherwise; `NO_COLOR` turns them off.

use std::ffi::OsStr;

use super::arguments::When;

/// A colour of a terminal's own palette.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    /// Something failed.
    Red,
    /// As it should be.
    Green,
    /// Something to look at.
    Yellow,
    /// One of several.
    Blue,
    /// One of several.
    Magenta,
    /// One of several.
    Cyan,
    /// Over and done with.
    Grey,
}

impl Colour {
    /// The SGR parameter of the foreground.
    pub fn code(self) -> u8 {
        match self {
            Self::Red => 31,
            Self::Green => 32,
            Self::Yellow => 33,
            Self::Blue => 34,
            Self::Magenta => 35,
            Self::Cyan => 36,
            Self::Grey => 90,
        }
    }

    /// A text in this colour.
    pub fn paint(self, text: &str) -> String {
        format!("\x1b[{}m{text}\x1b[39m", self.code())
    }
}

/// Whether to write colours. `terminal` is whether the output is one.
pub fn wanted(when: When, terminal: bool) -> bool {
    decide(when, terminal, std::env::var_os("NO_COLOR").as_deref(), std::env::var_os("TERM").as_deref())
}

fn decide(when: When, terminal: bool, no_color: Option<&OsStr>, term: Option<&OsStr>) -> bool {
    match when {
        When::Always => true,
        When::Never => false,
        When::Auto => terminal && no_color.is_none_or(OsStr::is_empty) && term != Some(OsStr::new("dumb")),
    }
}

/// The colour of a phase of an instance, a state of a container or of a session, or a check's status.
pub fn of_state(word: &str) -> Option<Colour> {
    // a state may have its reason behind it
    let word = word.split(' ').next().unwrap_or_default();
    match word {
        "running" | "TASK_RUNNING" | "ok" | "yes" => Some(Colour::Green),
        "starting" | "stopping" | "backoff" | "degraded" | "TASK_STAGING" | "TASK_STARTING" | "TASK_KILLING"
        | "warn" => Some(Colour::Yellow),
        "failed" | "TASK_FAILED" | "TASK_ERROR" | "TASK_LOST" | "fail" => Some(Colour::Red),
        "finished" | "TASK_FINISHED" | "TASK_KILLED" | "ended" => Some(Colour::Grey),
        _ => None,
    }
}

/// The colour of a kind of event, by what it tells.
pub fn of_kind(kind: &str) -> Option<Colour> {
    let has = |words: &[&str]| words.iter().any(|word| kind.contains(word));
    if has(&["fail", "lost", "died", "oom", "unhealthy", "error", "denied", "refused"]) {
        Some(Colour::Red)
    } else if has(&["kill", "restart", "backoff", "degraded", "warn", "stopping", "recovered"]) {
        Some(Colour::Yellow)
    } else if has(&["started", "running", "accepted", "ready", "healthy", "pulled"]) {
        Some(Colour::Green)
    } else if has(&["ended", "removed", "finished"]) {
        Some(Colour::Grey)
    } else {
        None
    }
}

/// The colour of one of several by its name: the same for the same name in every call.
pub fn of_name(name: &str) -> Colour {
    const PALETTE: [Colour; 5] = [Colour::Cyan, Colour::Yellow, Colour::Green, Colour::Magenta, Colour::Blue];
    // FNV-1a: a few bytes need no better hash
    let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    PALETTE[hash as usize % PALETTE.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_terminal_has_colours_and_no_color_and_the_flag_decide() {
        let set = |text: &'static str| Some(OsStr::new(text));
        let cases = [
            (When::Auto, true, None, None, true),
            (When::Auto, false, None, None, false),
            (When::Auto, true, set("1"), None, false),
            (When::Auto, true, set(""), None, true),
            (When::Auto, true, None, set("dumb"), false),
            (When::Auto, true, None, set("xterm"), true),
            (When::Always, false, set("1"), set("dumb"), true),
            (When::Never, true, None, None, false),
        ];
        for (when, terminal, no_color, term, expected) in cases {
            assert_eq!(decide(when, terminal, no_color, term), expected, "{when:?} {terminal} {no_color:?} {term:?}");
        }
    }

    #[test]
    fn states_kinds_and_names_have_their_colours() {
        assert_eq!(of_state("TASK_FAILED (CONTAINER_LIMITATION_MEMORY)"), Some(Colour::Red));
        assert_eq!((of_state("running"), of_state("-")), (Some(Colour::Green), None));
        assert_eq!((of_kind("container-started"), of_kind("image-pulling")), (Some(Colour::Green), None));
        assert_eq!(of_name("web"), of_name("web"));
        assert_eq!(Colour::Red.paint("x"), "\x1b[31mx\x1b[39m");
    }
}
