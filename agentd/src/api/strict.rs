//! Holds the bytes of a connection to the strict form of HTTP/1.1, before the HTTP server sees them.
//!
//! The server takes some liberties that the standard allows: a line may end without a carriage return, and of a request
//! with `Content-Length` and `Transfer-Encoding` one is dropped. Whoever stands between client and daemon may read such a request in
//! another way, and then the two do not agree where it ends: a second request is smuggled in. [`Strict`] follows the
//! requests of a connection from head to body to head; where one can be read in two ways it gives the server a byte that
//! no request may have, and then the end of the connection, so that the server answers 400 and closes.
//!
//! Behind a request that asks for another protocol or a tunnel nothing is looked at any more: either the protocol was changed, or the
//! connection is closed after the answer.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes of a line that are looked at. What counts is shorter; a field that counts and is longer is refused.
const LINE: usize = 256;

/// Longest line of a chunk's size, with its extensions.
const CHUNK_LINE: usize = 256;

/// A connection whose input is held to the strict form.
#[derive(Debug)]
pub struct Strict<S> {
    inner: S,
    scan: Scan,
}

impl<S> Strict<S> {
    /// Watches a new connection.
    pub fn new(inner: S) -> Self {
        Self { inner, scan: Scan::default() }
    }

    /// The connection itself, once it carries another protocol.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Strict<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let this = &mut *self;
        if this.scan.place == Place::Broken {
            // the server has what it answers; for it the connection ends here, and it need not wait for more
            return Poll::Ready(Ok(()));
        }
        ready!(Pin::new(&mut this.inner).poll_read(context, buffer))?;
        this.scan.take(&mut buffer.filled_mut()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Strict<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

/// Where in a request the next byte is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In a head; whether its first line has been seen.
    Head { begun: bool },
    /// In a body of known length: bytes left.
    Body(u64),
    /// In the line of a chunk's size.
    ChunkSize,
    /// In a chunk: bytes left.
    Chunk(u64),
    /// At the end of a chunk: bytes of `\r\n` seen.
    ChunkEnd(u8),
    /// In the fields behind the last chunk.
    Trailer,
    /// Behind a request for another protocol.
    Through,
    /// Behind a fault.
    Broken,
}

/// What the head so far says of the body.
#[derive(Debug, Clone, Copy, Default)]
struct Framing {
    length: Option<u64>,
    chunked: bool,
    upgrade: bool,
}

#[derive(Debug)]
struct Scan {
    place: Place,
    framing: Framing,
    /// Start of the line.
    line: Vec<u8>,
    /// Length of the line.
    length: usize,
    last: u8,
}

impl Default for Scan {
    fn default() -> Self {
        let (place, framing) = (Place::Head { begun: false }, Framing::default());
        Self { place, framing, line: Vec::new(), length: 0, last: 0 }
    }
}

impl Scan {
    /// Looks at bytes on their way to the server; puts a NUL in the place of the first that is at fault and of all after it.
    fn take(&mut self, bytes: &mut [u8]) {
        let mut at = 0;
        while at < bytes.len() {
            let left = bytes.len() - at;
            match self.place {
                Place::Through => return,
                Place::Broken => {
                    bytes[at..].fill(0);
                    return;
                }
                Place::Body(rest) | Place::Chunk(rest) => {
                    let step = rest.min(left as u64);
                    at += step as usize;
                    let rest = rest - step;
                    self.place = match self.place {
                        Place::Chunk(_) if rest == 0 => Place::ChunkEnd(0),
                        Place::Chunk(_) => Place::Chunk(rest),
                        _ if rest == 0 => self.after_request(),
                        _ => Place::Body(rest),
                    };
                }
                _ => {
                    if self.byte(bytes[at]).is_none() {
                        self.place = Place::Broken;
                    } else {
                        at += 1;
                    }
                }
            }
        }
    }

    /// Takes a byte of a line; none where it is at fault.
    fn byte(&mut self, byte: u8) -> Option<()> {
        if let Place::ChunkEnd(seen) = self.place {
            self.place = match (seen, byte) {
                (0, b'\r') => Place::ChunkEnd(1),
                (1, b'\n') => Place::ChunkSize,
                _ => return None,
            };
            return Some(());
        }
        let last = std::mem::replace(&mut self.last, byte);
        match byte {
            b'\n' if last == b'\r' => {
                let line = std::mem::take(&mut self.line);
                let length = std::mem::take(&mut self.length);
                self.last = 0;
                let place = self.end_of_line(&line, length);
                self.line = line;
                self.line.clear();
                self.place = place?;
            }
            b'\n' => return None,
            // a carriage return stands before a line feed only
            _ if last == b'\r' => return None,
            b'\r' => {}
            _ => {
                self.length += 1;
                if self.line.len() < LINE {
                    self.line.push(byte);
                }
                if self.place == Place::ChunkSize && self.length > CHUNK_LINE {
                    return None;
                }
            }
        }
        Some(())
    }

    /// What follows a line; none where the line is at fault.
    fn end_of_line(&mut self, line: &[u8], length: usize) -> Option<Place> {
        match self.place {
            // empty lines before a request are allowed
            Place::Head { begun } if !begun => {
                // what follows it would be a tunnel
                self.framing.upgrade = line.starts_with(b"CONNECT ");
                Some(Place::Head { begun: length > 0 })
            }
            Place::Head { .. } if length > 0 => {
                self.field(line, length)?;
                Some(self.place)
            }
            Place::Head { .. } => match self.framing {
                Framing { chunked: true, length: Some(_), .. } => None,
                Framing { chunked: true, .. } => Some(Place::ChunkSize),
                Framing { length: Some(length), .. } if length > 0 => Some(Place::Body(length)),
                _ => Some(self.after_request()),
            },
            Place::ChunkSize => {
                let digits = line.split(|byte| matches!(byte, b';' | b' ' | b'\t')).next().unwrap_or_default();
                let sound = (1..=15).contains(&digits.len()) && digits.iter().all(u8::is_ascii_hexdigit);
                let text = std::str::from_utf8(digits).ok().filter(|_| sound)?;
                let size = u64::from_str_radix(text, 16).ok()?;
                Some(if size == 0 { Place::Trailer } else { Place::Chunk(size) })
            }
            Place::Trailer if length > 0 => Some(Place::Trailer),
            Place::Trailer => Some(self.after_request()),
            place => Some(place),
        }
    }

    /// Takes a field of the head; none where it leaves the body's length open.
    fn field(&mut self, line: &[u8], length: usize) -> Option<()> {
        // a line that goes on from the one before
        if matches!(line.first(), Some(b' ' | b'\t')) {
            return None;
        }
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        if name.is_empty() || name.iter().any(|byte| byte.is_ascii_whitespace() || byte.is_ascii_control()) {
            return None;
        }
        let whole = length <= LINE;
        let value = value.trim_ascii();
        if name.eq_ignore_ascii_case(b"content-length") {
            let sound = whole && (1..=18).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
            let text = std::str::from_utf8(value).ok().filter(|_| sound && self.framing.length.is_none())?;
            self.framing.length = Some(text.parse().ok()?);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if self.framing.chunked || !whole || !value.eq_ignore_ascii_case(b"chunked") {
                return None;
            }
            self.framing.chunked = true;
        } else if name.eq_ignore_ascii_case(b"upgrade") {
            self.framing.upgrade = true;
        }
        Some(())
    }

    fn after_request(&mut self) -> Place {
        let framing = std::mem::take(&mut self.framing);
        if framing.upgrade { Place::Through } else { Place::Head { begun: false } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the server gets of these bytes, whole and byte by byte alike.
    fn passed(bytes: &[u8]) -> Vec<u8> {
        let mut whole = bytes.to_vec();
        Scan::default().take(&mut whole);
        let mut single = bytes.to_vec();
        let mut scan = Scan::default();
        single.chunks_mut(1).for_each(|byte| scan.take(byte));
        assert_eq!(whole, single);
        whole
    }

    #[test]
    fn requests_in_strict_form_pass_unchanged() {
        for text in [
            "GET / HTTP/1.1\r\nhost: x\r\n\r\n",
            "\r\n\r\nGET / HTTP/1.1\r\nhost: x\r\n\r\nGET / HTTP/1.1\r\nhost: x\r\n\r\n",
            "POST / HTTP/1.1\r\ncontent-length: 5\r\n\r\na\nb\ncGET / HTTP/1.1\r\nhost: x\r\n\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3\r\n\n\n\n\r\nA;x=y\r\n0123456789\r\n0\r\nt: v\r\n\r\nGET / \r\n",
            "GET / HTTP/1.1\r\nUpgrade: agentd-exec\r\ncontent-length: 2\r\n\r\n{}\n\n\0anything\r\r\n",
            "CONNECT x:80 HTTP/1.1\r\nhost: x:80\r\n\r\n\n\n",
            "GET / HTTP/1.1\r\nContent-Length:  007 \r\n\r\n\n\n\n\n\n\n\nGET ",
        ] {
            assert_eq!(passed(text.as_bytes()), text.as_bytes(), "{text:?}");
        }
        let long = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "v".repeat(5000));
        assert_eq!(passed(long.as_bytes()), long.as_bytes());
    }

    #[test]
    fn requests_that_can_be_read_in_two_ways_are_broken_off() {
        let chunked = "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n";
        for (good, bad) in [
            ("GET / HTTP/1.1", "\nhost: x\r\n\r\n"),
            ("GET / HTTP/1.1\r\nhost: x", "\n\n"),
            ("GET / HTTP/1.1\r\nhost: x\r\n\r", "\rGET"),
            ("GET / HTTP/1.1\r\nhost: a\r", "b\r\n\r\n"),
            ("GET / HTTP/1.1\r\nhost: x\r\n folded: y\r", "\n\r\n"),
            ("GET / HTTP/1.1\r\ncontent-length : 1\r", "\n\r\n"),
            ("GET / HTTP/1.1\r\nno colon\r", "\n\r\n"),
            ("POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 1\r", "\n\r\n"),
            ("POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r", "\n\r\n"),
            ("POST / HTTP/1.1\r\ncontent-length: +1\r", "\n\r\n"),
            ("POST / HTTP/1.1\r\ncontent-length: 1, 1\r", "\n\r\n"),
            ("POST / HTTP/1.1\r\ncontent-length:\r", "\n\r\n"),
            ("POST / HTTP/1.1\r\ncontent-length: 99999999999999999999\r", "\n\r\n"),
            ("POST / HTTP/1.1\r\ntransfer-encoding: gzip, chunked\r", "\n\r\n"),
            ("POST / HTTP/1.1\r\ntransfer-encoding: xchunked\r", "\n\r\n"),
            (&format!("{chunked}Transfer-Encoding: chunked\r"), "\n\r\n"),
            (&format!("{chunked}content-length: 3\r\n\r"), "\n0\r\n\r\n"),
            ("POST / HTTP/1.1\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r", "\n0\r\n\r\n"),
            (&format!("{chunked}\r\n0x3\r"), "\nabc\r\n0\r\n\r\n"),
            (&format!("{chunked}\r\n-3\r"), "\nabc"),
            (&format!("{chunked}\r\n\r"), "\nabc"),
            (&format!("{chunked}\r\n3"), "\nabc\r\n"),
            (&format!("{chunked}\r\n3;a"), "\nabc\r\n"),
            (&format!("{chunked}\r\nfffffffffffffffff\r"), "\n"),
            (&format!("{chunked}\r\n3\r\nabc"), "d\r\n0\r\n\r\n"),
            (&format!("{chunked}\r\n3\r\nabc"), "\n0\r\n\r\n"),
            (&format!("{chunked}\r\n0\r\ntrailer: x"), "\n\r\n"),
        ] {
            let mut expected = good.as_bytes().to_vec();
            expected.resize(good.len() + bad.len(), 0);
            let found = passed(format!("{good}{bad}").as_bytes());
            assert_eq!(String::from_utf8_lossy(&found), String::from_utf8_lossy(&expected), "{good:?} {bad:?}");
        }
    }
}
