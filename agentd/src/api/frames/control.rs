//! What a client asks for by control message.

use std::str::FromStr;

use agentd_api::problem::{Problem, Violation};
use agentd_api::session::{ClientMessage, ServerMessage};
use hyper::StatusCode;
use nix::sys::signal::Signal;

use crate::api::answer::Refusal;
use crate::session::Session;

/// Largest number of a signal, those for real time included.
const LAST_SIGNAL: i32 = 64;

/// What is to be done after a control message.
#[derive(Debug, PartialEq)]
pub enum Obeyed {
    /// Nothing.
    Done,
    /// The client is told something.
    Say(ServerMessage),
    /// Standard input is to be closed.
    CloseStdin,
    /// The client leaves.
    Detach,
}

/// Obeys a control message. A client that only `watches` may ask for nothing that the session would notice.
pub async fn obey(session: &Session, watches: bool, text: &[u8]) -> Obeyed {
    let message = match serde_json::from_slice::<ClientMessage>(text) {
        Ok(message) => message,
        Err(error) => {
            let fault = Violation::new("", format!("a control frame that is no control message: {error}"));
            return Obeyed::Say(refused(Refusal::bad_request(vec![fault])));
        }
    };
    let result = match message {
        ClientMessage::Ping => return Obeyed::Say(ServerMessage::Pong),
        ClientMessage::Detach => return Obeyed::Detach,
        _ if watches => Err(only_watches()),
        ClientMessage::CloseStdin => return Obeyed::CloseStdin,
        ClientMessage::Resize { rows, columns } => session.resize(rows, columns).map_err(Refusal::from),
        ClientMessage::Signal { signal } => match signal_number(&signal) {
            Ok(number) => session.signal(number).await.map_err(Refusal::from),
            Err(fault) => Err(Refusal::bad_request(vec![Violation::new("signal", fault)])),
        },
    };
    match result {
        Ok(()) => Obeyed::Done,
        Err(refusal) => Obeyed::Say(refused(refusal)),
    }
}

/// Why input and control are not taken of a client that only watches.
pub fn only_watches() -> Refusal {
    let detail = "this client only watches (input=false); attach without it to give input or to send signals";
    Refusal::new(StatusCode::CONFLICT, "only-watching", detail)
}

/// A refusal as a message.
pub fn refused(refusal: Refusal) -> ServerMessage {
    let problem: Problem = refusal.into_problem();
    ServerMessage::Error { problem }
}

/// The signal with a name, with or without `SIG`, in any case, or with a number; a line for people where there is none.
pub fn signal_number(text: &str) -> Result<i32, String> {
    let fault = || {
        let shown: String = text.chars().take(40).collect();
        format!(
            "found {shown:?}, expected the name of a signal such as SIGTERM or TERM, or a number from 1 to {LAST_SIGNAL}"
        )
    };
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().ok().filter(|number| (1..=LAST_SIGNAL).contains(number)).ok_or_else(fault);
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    Signal::from_str(&format!("SIG{name}")).map(|signal| signal as i32).map_err(|_| fault())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [("SIGTERM", 15), ("TERM", 15), ("int", 2), ("SigKill", 9), ("34", 34), ("1", 1)] {
            assert_eq!(signal_number(text), Ok(number), "{text}");
        }
        for text in ["", "SIG", "0", "65", "-9", "+9", "9 ", "SIGSIGTERM", "99999999999", "ТERM", "SIG\0"] {
            let fault = signal_number(text).unwrap_err();
            assert!(fault.contains("expected the name of a signal"), "{text}: {fault}");
        }
    }
}
