//! Takes what the daemon sends apart. Output is not copied: it is told where in the buffer it lies, also when only a part
//! of its frame is there.

use std::ops::Range;

use agentd_api::session::{FrameKind, HEAD, ServerMessage, read_head};

/// One thing in a buffer.
#[derive(Debug, PartialEq)]
pub enum Item {
    /// Output.
    Output(Span),
    /// A message.
    Message(ServerMessage),
}

/// Output in a buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Whether it is standard error.
    pub error: bool,
    /// Where it lies.
    pub at: Range<usize>,
}

/// Where in the stream of frames the reading stands.
#[derive(Debug, Default)]
pub struct Decoder {
    head: [u8; HEAD],
    /// So much of the head is there.
    have: usize,
    /// The frame whose payload is being read, and how much of it is to come.
    frame: Option<(FrameKind, usize)>,
    /// A message that is not complete.
    message: Vec<u8>,
}

impl Decoder {
    /// Takes the next bytes.
    pub fn decode(&mut self, bytes: &[u8], mut give: impl FnMut(Item)) -> Result<(), String> {
        let mut at = 0;
        loop {
            let Some((kind, left)) = self.frame else {
                let take = (HEAD - self.have).min(bytes.len() - at);
                self.head[self.have..self.have + take].copy_from_slice(&bytes[at..at + take]);
                self.have += take;
                at += take;
                if self.have < HEAD {
                    return Ok(());
                }
                self.have = 0;
                let (kind, length) = read_head(self.head)?;
                if kind == FrameKind::Stdin {
                    return Err("the daemon sent a frame of standard input".to_owned());
                }
                if length > 0 || kind == FrameKind::Control {
                    self.frame = Some((kind, length));
                }
                continue;
            };
            let take = left.min(bytes.len() - at);
            let piece = at..at + take;
            at += take;
            let whole = take == left;
            self.frame = (!whole).then_some((kind, left - take));
            if kind == FrameKind::Control {
                self.message.extend_from_slice(&bytes[piece]);
                if whole {
                    let message = serde_json::from_slice(&self.message);
                    self.message.clear();
                    give(Item::Message(
                        message.map_err(|error| format!("a control frame is not understood: {error}"))?,
                    ));
                }
            } else if !piece.is_empty() {
                give(Item::Output(Span { error: kind == FrameKind::Stderr, at: piece }));
            }
            if !whole {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use agentd_api::session::{MAX_PAYLOAD, SessionExit, frame_head};
    use agentd_api::status::ExitStatus;

    use super::*;

    fn frame(kind: FrameKind, payload: &[u8]) -> Vec<u8> {
        [&frame_head(kind, payload.len()), payload].concat()
    }

    fn stream() -> Vec<u8> {
        let exit = ServerMessage::Exit { exit: SessionExit { exit: ExitStatus::Code(3), message: None } };
        [
            frame(FrameKind::Control, br#"{"type":"attached","session":"s","stdin":1,"output":2}"#),
            frame(FrameKind::Stdout, b"one"),
            frame(FrameKind::Stdout, b""),
            frame(FrameKind::Stderr, b"oops"),
            frame(FrameKind::Control, &serde_json::to_vec(&exit).unwrap()),
        ]
        .concat()
    }

    /// Output, errors and messages.
    type Came = (Vec<u8>, Vec<u8>, Vec<ServerMessage>);

    /// What comes out when the stream comes in pieces of so many bytes.
    fn read(stream: &[u8], size: usize) -> Result<Came, String> {
        let (mut out, mut err, mut messages) = (Vec::new(), Vec::new(), Vec::new());
        let mut decoder = Decoder::default();
        for piece in stream.chunks(size) {
            decoder.decode(piece, |item| match item {
                Item::Output(span) if span.error => err.extend_from_slice(&piece[span.at]),
                Item::Output(span) => out.extend_from_slice(&piece[span.at]),
                Item::Message(message) => messages.push(message),
            })?;
        }
        Ok((out, err, messages))
    }

    #[test]
    fn frames_come_out_however_they_were_cut() {
        let stream = stream();
        for size in 1..=stream.len() {
            let (out, err, messages) = read(&stream, size).unwrap();
            assert_eq!((out.as_slice(), err.as_slice()), (b"one".as_slice(), b"oops".as_slice()), "{size}");
            assert_eq!(messages.len(), 2);
            assert_eq!(messages[0], ServerMessage::Attached { session: "s".into(), stdin: 1, output: 2 });
        }
    }

    #[test]
    fn rubbish_is_an_error() {
        for bad in [
            frame(FrameKind::Stdin, b"x"),
            frame(FrameKind::Control, b"{}"),
            frame(FrameKind::Control, b""),
            frame_head(FrameKind::Stdout, MAX_PAYLOAD + 1).to_vec(),
            b"HTTP/1.1 200 OK".to_vec(),
        ] {
            assert!(read(&bad, 4).is_err(), "{bad:?}");
        }
    }
}
