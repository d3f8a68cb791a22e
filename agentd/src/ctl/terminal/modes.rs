//! What a remote program switched on at the terminal, read from its output, so that whoever leaves the session in the
//! middle can switch it off again: the alternate screen, a hidden cursor, mouse reports, bracketed paste, colours.
//!
//! When the last output is shown again on attaching, questions in it to the terminal (where is the cursor, what are you)
//! are taken out: the answers would be typed into the program, which asked long ago.

use std::collections::BTreeSet;

/// Longest sequence that is looked at as a whole; a longer one is passed on unseen.
const LONGEST: usize = 256;

/// Most modes that are remembered.
const MOST: usize = 64;

/// Reads output.
#[derive(Debug, Default)]
pub struct Modes {
    /// A sequence that is not complete yet, from its escape on.
    sequence: Vec<u8>,
    /// DEC private modes that are on.
    on: BTreeSet<u16>,
    /// Whether the cursor is hidden.
    hidden: bool,
    /// Whether the keypad is in application mode.
    keypad: bool,
    /// Whether text is coloured, bold or the like.
    dressed: bool,
    /// Whether keys with modifiers are reported in a way of their own (xterm).
    modified: bool,
    /// How often such reports were asked for in kitty's way.
    kitty: u8,
}

/// What a sequence is once its last byte is there.
#[derive(PartialEq, Eq)]
enum Reading {
    /// More of it is to come.
    More,
    /// It is complete.
    Whole,
    /// It is no sequence that matters here.
    Other,
}

impl Modes {
    /// Reads output that is shown as it is.
    pub fn read(&mut self, output: &[u8]) {
        // most output has no escape: that is seen fast
        if self.sequence.is_empty() && !output.contains(&0x1b) {
            return;
        }
        self.walk(output, |_, _| {});
    }

    /// Reads output of the past, and gives it without questions. A sequence that is not complete is held back.
    pub fn without_questions(&mut self, output: &[u8]) -> Vec<u8> {
        let mut shown = Vec::with_capacity(output.len());
        self.walk(output, |piece, question| {
            if !question {
                shown.extend_from_slice(piece);
            }
        });
        shown
    }

    /// What is held back of a sequence that is not complete; it belongs before what follows.
    pub fn held(&self) -> &[u8] {
        &self.sequence
    }

    /// Gives output piece by piece: text, or a sequence and whether it is a question.
    fn walk(&mut self, output: &[u8], mut give: impl FnMut(&[u8], bool)) {
        let mut text = 0;
        for (at, byte) in output.iter().enumerate() {
            if self.sequence.is_empty() {
                if *byte == 0x1b {
                    give(&output[text..at], false);
                    self.sequence.push(*byte);
                }
                continue;
            }
            self.sequence.push(*byte);
            text = at + 1;
            match reading(&self.sequence) {
                Reading::More => {}
                Reading::Whole => {
                    let sequence = std::mem::take(&mut self.sequence);
                    self.note(&sequence);
                    give(&sequence, is_question(&sequence));
                }
                Reading::Other if *byte == 0x1b && self.sequence.len() > 1 => {
                    // a sequence that was broken off by the next one
                    self.sequence.pop();
                    give(&std::mem::take(&mut self.sequence), false);
                    self.sequence.push(*byte);
                }
                Reading::Other => give(&std::mem::take(&mut self.sequence), false),
            }
        }
        if self.sequence.is_empty() {
            give(&output[text..], false);
        }
    }

    /// Remembers what a complete sequence switches.
    fn note(&mut self, sequence: &[u8]) {
        match sequence {
            [0x1b, b'c'] => *self = Self::default(),
            [0x1b, b'='] => self.keypad = true,
            [0x1b, b'>'] => self.keypad = false,
            [0x1b, b'[', b'?', numbers @ .., switch @ (b'h' | b'l')] => {
                for number in numbers.split(|byte| *byte == b';') {
                    let Some(number) = std::str::from_utf8(number).ok().and_then(|text| text.parse().ok()) else {
                        continue;
                    };
                    match (number, *switch == b'h') {
                        (25, on) => self.hidden = !on,
                        // wrapping at the margin, blinking: on by default, and harmless
                        (7 | 12, _) => {}
                        (number, true) if self.on.len() < MOST => drop(self.on.insert(number)),
                        (number, _) => drop(self.on.remove(&number)),
                    }
                }
            }
            [0x1b, b'[', b'>', b'4', level @ .., b'm'] => self.modified = !matches!(level, b"" | b";" | b";0"),
            [0x1b, b'[', b'>' | b'?', .., b'm'] => {}
            [0x1b, b'[', b'>', .., b'u'] => self.kitty = self.kitty.saturating_add(1),
            [0x1b, b'[', b'<', .., b'u'] => self.kitty = self.kitty.saturating_sub(1),
            [0x1b, b'[', numbers @ .., b'm'] => {
                let last = numbers.rsplit(|byte| *byte == b';').next().unwrap_or_default();
                self.dressed = !matches!(last, b"" | b"0");
            }
            _ => {}
        }
    }

    /// What switches all of it off, and forgets it.
    pub fn undo(&mut self) -> Vec<u8> {
        let mut undo = Vec::new();
        let alternate = |mode: &u16| matches!(mode, 47 | 1047 | 1049);
        // the alternate screen is left last: what was set there may belong to it
        for mode in self.on.iter().filter(|mode| !alternate(mode)).chain(self.on.iter().filter(|mode| alternate(mode)))
        {
            undo.extend_from_slice(format!("\x1b[?{mode}l").as_bytes());
        }
        if self.modified {
            undo.extend_from_slice(b"\x1b[>4m");
        }
        if self.kitty > 0 {
            undo.extend_from_slice(format!("\x1b[<{}u", self.kitty).as_bytes());
        }
        if self.keypad {
            undo.extend_from_slice(b"\x1b>");
        }
        if self.dressed {
            undo.extend_from_slice(b"\x1b[0m");
        }
        if self.hidden {
            undo.extend_from_slice(b"\x1b[?25h");
        }
        *self = Self::default();
        undo
    }
}

/// Reads a sequence from its escape on.
fn reading(sequence: &[u8]) -> Reading {
    let last = sequence[sequence.len() - 1];
    match sequence.get(1) {
        _ if sequence.len() > LONGEST => Reading::Other,
        None => Reading::More,
        // CSI: numbers and blanks, and one final byte
        Some(b'[' | 0x20..=0x2f) if sequence.len() == 2 => Reading::More,
        Some(b'[') => match last {
            0x20..=0x3f => Reading::More,
            0x40..=0x7e => Reading::Whole,
            _ => Reading::Other,
        },
        // DCS and OSC: until ST or, for OSC, BEL
        Some(b'P' | b']') => match sequence {
            [.., 0x1b, b'\\'] | [_, b']', .., 0x07] => Reading::Whole,
            _ => Reading::More,
        },
        Some(0x20..=0x2f) => match last {
            0x20..=0x2f => Reading::More,
            0x30..=0x7e => Reading::Whole,
            _ => Reading::Other,
        },
        Some(0x30..=0x7e) => Reading::Whole,
        Some(_) => Reading::Other,
    }
}

/// Whether a terminal answers the sequence.
fn is_question(sequence: &[u8]) -> bool {
    match sequence {
        // device attributes, cursor position and status, version, state of a mode, keys, settings and capabilities
        [0x1b, b'[', .., b'c' | b'n']
        | [0x1b, b'[', b'>', .., b'q']
        | [0x1b, b'[', .., b'$', b'p']
        | [0x1b, b'[', b'?', .., b'u' | b'm']
        | [0x1b, b'Z']
        | [0x1b, b'P', b'$' | b'+', b'q', ..] => true,
        // size of the window
        [0x1b, b'[', numbers @ .., b't'] => matches!(numbers, [b'1', b'1' | b'3'..=b'6' | b'8' | b'9', ..] | b"21"),
        // colours, clipboard
        [0x1b, b']', rest @ ..] => rest.windows(2).any(|pair| pair == b";?"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn undone(output: &[u8]) -> String {
        let mut modes = Modes::default();
        modes.read(output);
        String::from_utf8(modes.undo()).unwrap()
    }

    #[test]
    fn what_was_switched_on_is_switched_off() {
        assert_eq!(undone(b"plain text\r\n"), "");
        let vim = b"\x1b[?1049h\x1b[?1h\x1b=\x1b[?2004h\x1b[?25l\x1b[1;31mred";
        assert_eq!(undone(vim), "\x1b[?1l\x1b[?2004l\x1b[?1049l\x1b>\x1b[0m\x1b[?25h");
        assert_eq!(undone(&[vim.as_slice(), b"\x1b[0m\x1b[?1;2004l\x1b[?1049l\x1b>\x1b[?25h"].concat()), "");
        assert_eq!(undone(b"\x1b[?1000;1006h\x1bc"), "");
        assert_eq!(undone(b"\x1b[>4;2m\x1b[>1u\x1b[>1u"), "\x1b[>4m\x1b[<2u");
        assert_eq!(undone(b"\x1b[>4;2m\x1b[>1u\x1b[<u\x1b[>4;m"), "");
    }

    #[test]
    fn sequences_may_come_in_parts() {
        let mut modes = Modes::default();
        for byte in b"a\x1b[?1049hb\x1b" {
            modes.read(&[*byte]);
        }
        assert_eq!(modes.undo(), b"\x1b[?1049l");
        // an escape that breaks a sequence off begins the next
        assert_eq!(undone(b"\x1b[?10\x1b[?25l"), "\x1b[?25h");
    }

    #[test]
    fn questions_of_the_past_are_not_asked_again() {
        let mut modes = Modes::default();
        let past =
            b"a\x1b[cb\x1b[6nc\x1b[>c\x1b[?2026$pd\x1b]11;?\x07e\x1bP+q544e\x1b\\f\x1b[2Jg\x1b]0;title\x07h\x1b[18t";
        assert_eq!(modes.without_questions(past), b"abcdef\x1b[2Jg\x1b]0;title\x07h");
        let (first, second) = past.split_at(3);
        assert_eq!(modes.without_questions(first), b"a");
        assert_eq!(modes.held(), b"\x1b[");
        assert!(modes.without_questions(second).starts_with(b"bc"));
    }

    #[test]
    fn endless_sequences_are_passed_on() {
        let mut modes = Modes::default();
        let long = [b"\x1b]".as_slice(), &[b'x'; 10_000]].concat();
        assert_eq!(modes.without_questions(&long), long);
        assert!(modes.held().len() <= LONGEST);
    }
}
