//! Standard input that the remote program was perhaps not given yet. It is kept until the daemon says that it was, so that
//! it can be sent again over another connection: nothing is lost and nothing comes twice.

use std::collections::VecDeque;

use agentd_api::session::MAX_PAYLOAD;

/// Most bytes that are kept; with as many no more is read. The daemon takes a little more of what a program does not read,
/// so that a signal never waits behind input.
const MOST: u64 = 192 << 10;

/// Chunks are joined up to so many bytes.
const SMALL: usize = 16 << 10;

/// The input between what the program was given and what was read.
#[derive(Debug, Default)]
pub struct Window {
    chunks: VecDeque<Vec<u8>>,
    /// Offset of the first byte that is kept.
    start: u64,
    /// Offset of the next byte to be sent.
    next: u64,
    /// Offset after the last byte.
    end: u64,
    /// Whether nothing more comes.
    closed: bool,
    /// Whether the daemon was told so on this connection.
    told: bool,
}

/// What is to be sent next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// So many bytes from this offset on.
    Bytes {
        /// Offset.
        from: u64,
        /// Number.
        length: usize,
    },
    /// That nothing more comes.
    End,
}

impl Window {
    /// Whether more may be read.
    pub fn has_room(&self) -> bool {
        self.end - self.start < MOST && !self.closed
    }

    /// Adds what was read.
    pub fn push(&mut self, chunk: Vec<u8>) {
        if chunk.is_empty() || self.closed {
            return;
        }
        self.end += chunk.len() as u64;
        match self.chunks.back_mut() {
            // many small ones would be slow to walk
            Some(last) if last.len() + chunk.len() <= SMALL => last.extend_from_slice(&chunk),
            _ => self.chunks.push_back(chunk),
        }
    }

    /// Nothing more comes.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// What is to be sent next.
    pub fn next(&self) -> Option<Next> {
        if self.next < self.end {
            let length = self.piece(self.next).len().min(MAX_PAYLOAD);
            return Some(Next::Bytes { from: self.next, length });
        }
        (self.closed && !self.told).then_some(Next::End)
    }

    /// The bytes from an offset on that lie together.
    pub fn piece(&self, from: u64) -> &[u8] {
        let mut start = self.start;
        for chunk in &self.chunks {
            if from < start + chunk.len() as u64 {
                return usize::try_from(from - start).map_or(&[], |skip| &chunk[skip..]);
            }
            start += chunk.len() as u64;
        }
        &[]
    }

    /// Notes that it was sent.
    pub fn sent(&mut self, what: Next) {
        match what {
            Next::Bytes { from, length } => self.next = from + length as u64,
            Next::End => self.told = true,
        }
    }

    /// The program was given everything before this offset. Gives back a chunk's memory where one is free now.
    pub fn given(&mut self, offset: u64) -> Option<Vec<u8>> {
        let mut free = None;
        while let Some(first) = self.chunks.front() {
            let end = self.start + first.len() as u64;
            // what is not sent cannot have been given, and a frame that is being sent stays whole
            if end > offset.min(self.next) {
                break;
            }
            self.start = end;
            free = self.chunks.pop_front();
        }
        free
    }

    /// Goes on over another connection: the program was given everything before this offset. An error is told as the
    /// number of bytes that are lost.
    pub fn go_on_from(&mut self, offset: u64) -> Result<(), u64> {
        self.told = false;
        if offset < self.start {
            let lost = self.start - offset;
            self.next = self.start;
            return Err(lost);
        }
        if offset > self.end {
            // nothing of it is known here: the session was somebody else's before
            self.chunks.clear();
            (self.start, self.next, self.end) = (offset, offset, offset);
            return Ok(());
        }
        self.next = offset;
        self.given(offset);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Sends all that is there, and gives what was sent.
    fn send(window: &mut Window) -> (Vec<u8>, bool) {
        let (mut bytes, mut end) = (Vec::new(), false);
        while let Some(next) = window.next() {
            match next {
                Next::Bytes { from, length } => bytes.extend_from_slice(&window.piece(from)[..length]),
                Next::End => end = true,
            }
            window.sent(next);
        }
        (bytes, end)
    }

    #[test]
    fn what_was_not_given_is_sent_again() {
        let mut window = Window::default();
        let (first, second) = (vec![1; SMALL], vec![2; 5]);
        window.push(first.clone());
        window.push(second.clone());
        assert_eq!(send(&mut window), ([first.clone(), second].concat(), false));
        let length = SMALL as u64;
        assert_eq!(window.given(length - 1), None);
        assert_eq!(window.given(length), Some(first));
        window.close();
        assert_eq!(send(&mut window), (Vec::new(), true));
        assert_eq!(window.go_on_from(length + 2), Ok(()));
        assert_eq!(send(&mut window), (vec![2; 3], true));
        assert_eq!(window.go_on_from(length - 4), Err(4));
    }

    #[test]
    fn a_session_of_somebody_else_is_gone_on_with() {
        let mut window = Window::default();
        assert_eq!(window.go_on_from(1000), Ok(()));
        window.push(b"x".to_vec());
        assert_eq!(window.next(), Some(Next::Bytes { from: 1000, length: 1 }));
    }

    #[test]
    fn it_is_bounded() {
        let mut window = Window::default();
        while window.has_room() {
            window.push(vec![0; 50 << 10]);
        }
        assert_eq!(window.end, 4 * (50 << 10));
        send(&mut window);
        assert!(!window.has_room());
        window.given(50 << 10);
        assert!(window.has_room());
    }

    proptest! {
        #[test]
        fn a_program_gets_every_byte_once(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..20), 0..20),
            cuts in proptest::collection::vec((0usize..40, 0usize..40, any::<bool>()), 0..20),
        ) {
            let all = chunks.concat();
            let mut window = Window::default();
            let mut got = Vec::new();
            let mut chunks = chunks.into_iter();
            let mut cuts = cuts.into_iter();
            loop {
                let more = chunks.next();
                if let Some(chunk) = more.clone() {
                    window.push(chunk);
                } else {
                    window.close();
                }
                let (bytes, end) = send(&mut window);
                // the daemon takes some of it, says how far it came, and may break the connection
                let Some((take, say, broken)) = cuts.next() else {
                    got.extend_from_slice(&bytes);
                    if more.is_none() {
                        prop_assert!(end);
                        break;
                    }
                    continue;
                };
                got.extend_from_slice(&bytes[..bytes.len().min(take)]);
                if broken || bytes.len() > take || end {
                    prop_assert_eq!(window.go_on_from(got.len() as u64), Ok(()));
                } else {
                    window.given((got.len() as u64).saturating_sub(say as u64));
                }
            }
            prop_assert_eq!(got, all);
        }
    }
}
