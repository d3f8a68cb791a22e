//! The keys with which a user leaves a session: a sequence that is looked for in what is typed.
//!
//! Bytes that may be the beginning of the sequence are held back until the next ones tell; who reads the keys sends them
//! on when nothing follows for a while ([`Keys::give_up`]).

/// Most keys of a sequence.
const MOST: usize = 16;

/// A sequence of keys, and how much of it was typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    sequence: Vec<u8>,
    held: usize,
}

/// What is to be done with what was typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Typed {
    /// Bytes for the remote program.
    pub bytes: Vec<u8>,
    /// Whether the sequence was typed. What comes after it is dropped.
    pub leave: bool,
}

impl Keys {
    /// Reads `ctrl-p,ctrl-q`, `a,b`, `ctrl-],q`; an empty text is no sequence: nothing leaves.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut sequence = Vec::new();
        for key in text.split(',').filter(|_| !text.is_empty()) {
            let byte = match key.as_bytes() {
                [byte] if byte.is_ascii_graphic() => *byte,
                bytes => {
                    let control = bytes.split_at_checked(5).filter(|(ctrl, _)| ctrl.eq_ignore_ascii_case(b"ctrl-"));
                    match control.map(|(_, key)| key) {
                        Some([key @ (b'a'..=b'z' | b'A'..=b'Z' | b'@' | b'[' | b'\\' | b']' | b'^' | b'_')]) => {
                            key.to_ascii_uppercase() & 0x1f
                        }
                        _ => {
                            return Err(format!(
                                "found the key {key:?}, expected one character, or ctrl- and a letter or one of @[\\]^_, \
                                 e.g. ctrl-p,ctrl-q"
                            ));
                        }
                    }
                }
            };
            sequence.push(byte);
        }
        if sequence.len() > MOST {
            return Err(format!("found {} keys, expected at most {MOST}", sequence.len()));
        }
        Ok(Self { sequence, held: 0 })
    }

    /// Whether bytes are held back.
    pub fn waiting(&self) -> bool {
        self.held > 0
    }

    /// Takes what was typed.
    pub fn take(&mut self, typed: Vec<u8>) -> Typed {
        if self.sequence.is_empty() || (self.held == 0 && !typed.contains(&self.sequence[0])) {
            return Typed { bytes: typed, leave: false };
        }
        let mut bytes = Vec::with_capacity(typed.len() + self.held);
        for byte in typed {
            // as many of the last keys as begin the sequence stay held back, the others go on
            while self.held > 0 && self.sequence[self.held] != byte {
                let shorter = self.border();
                bytes.extend_from_slice(&self.sequence[..self.held - shorter]);
                self.held = shorter;
            }
            if self.sequence[self.held] == byte {
                self.held += 1;
            } else {
                bytes.push(byte);
            }
            if self.held == self.sequence.len() {
                self.held = 0;
                return Typed { bytes, leave: true };
            }
        }
        Typed { bytes, leave: false }
    }

    /// Gives back what is held back.
    pub fn give_up(&mut self) -> Vec<u8> {
        let bytes = self.sequence[..self.held].to_vec();
        self.held = 0;
        bytes
    }

    /// Length of the longest end of what is held back, not all of it, that begins the sequence.
    fn border(&self) -> usize {
        (0..self.held).rev().find(|n| self.sequence[..*n] == self.sequence[self.held - n..self.held]).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn go_on(bytes: &[u8]) -> Typed {
        Typed { bytes: bytes.to_vec(), leave: false }
    }

    #[test]
    fn sequences_are_read() {
        assert_eq!(Keys::parse("ctrl-p,ctrl-q").unwrap().sequence, [16, 17]);
        assert_eq!(Keys::parse("CTRL-],x,-,ctrl-@").unwrap().sequence, [29, b'x', b'-', 0]);
        assert_eq!(Keys::parse("").unwrap().sequence, Vec::<u8>::new());
        for bad in ["ctrl-", "ctrl-1", "ab", "a,,b", "ctrl-p,", "ä", "ctrl-ä", "\u{7}", &"a,".repeat(20)] {
            assert!(Keys::parse(bad).is_err(), "{bad}");
        }
        assert!(Keys::parse(&["a"; 17].join(",")).is_err());
    }

    #[test]
    fn the_sequence_leaves_also_when_it_comes_in_parts() {
        let mut keys = Keys::parse("ctrl-p,ctrl-q").unwrap();
        assert_eq!(keys.take(b"ls\n".to_vec()), go_on(b"ls\n"));
        assert_eq!(keys.take(b"a\x10".to_vec()), go_on(b"a"));
        assert!(keys.waiting());
        assert_eq!(keys.take(b"\x11b".to_vec()), Typed { bytes: Vec::new(), leave: true });
        assert!(!keys.waiting());
    }

    #[test]
    fn what_does_not_complete_goes_on() {
        let mut keys = Keys::parse("ctrl-p,ctrl-q").unwrap();
        assert_eq!(keys.take(b"\x10".to_vec()), go_on(b""));
        assert_eq!(keys.take(b"x".to_vec()), go_on(b"\x10x"));
        assert_eq!(keys.take(b"\x10\x10".to_vec()), go_on(b"\x10"));
        assert_eq!(keys.give_up(), b"\x10");
        assert_eq!(keys.give_up(), b"");
        assert_eq!(keys.take(b"\x11".to_vec()), go_on(b"\x11"));
    }

    #[test]
    fn a_sequence_that_begins_anew_within_itself_is_found() {
        let mut keys = Keys::parse("a,a,b").unwrap();
        assert_eq!(keys.take(b"aaab".to_vec()), Typed { bytes: b"a".to_vec(), leave: true });
        let mut keys = Keys::parse("a,b,a,c").unwrap();
        assert_eq!(keys.take(b"ababac".to_vec()), Typed { bytes: b"ab".to_vec(), leave: true });
    }

    #[test]
    fn without_a_sequence_nothing_leaves() {
        let mut keys = Keys::parse("").unwrap();
        assert_eq!(keys.take(vec![16, 17, 0]), go_on(&[16, 17, 0]));
    }

    proptest! {
        #[test]
        fn nothing_is_lost_or_made_up(
            sequence in proptest::collection::vec(b'a'..=b'c', 1..5),
            parts in proptest::collection::vec(proptest::collection::vec(b'a'..=b'c', 0..6), 0..8),
        ) {
            let all: Vec<u8> = parts.concat();
            let mut keys = Keys { sequence: sequence.clone(), held: 0 };
            let mut went = Vec::new();
            let mut left = false;
            for part in parts {
                let typed = keys.take(part);
                went.extend(typed.bytes);
                if typed.leave {
                    left = true;
                    break;
                }
            }
            let found = all.windows(sequence.len()).position(|window| window == sequence);
            if let Some(at) = found {
                prop_assert_eq!((left, went), (true, all[..at].to_vec()));
            } else {
                went.extend(keys.give_up());
                prop_assert_eq!((left, went), (false, all));
            }
        }
    }
}
