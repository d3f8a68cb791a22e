//! Keys of `top`.

use super::view::Sort;

/// What a key asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// To end.
    Quit,
    /// To stop like any other job of the shell.
    Suspend,
    /// Another order.
    By(Sort),
    /// The other way round.
    Reverse,
    /// To scroll by so many rows.
    Scroll(isize),
    /// To scroll by so many screens.
    Page(isize),
    /// To the first row, or to the last.
    End(bool),
    /// To look less often.
    Slower,
    /// To look more often.
    Faster,
    /// To draw everything anew.
    Redraw,
}

/// The keys in what a terminal sent. What is none of them is passed over.
pub fn read(input: &[u8]) -> Vec<Key> {
    let mut keys = Vec::new();
    let mut rest = input;
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        let key = match first {
            b'q' | 0x03 => Key::Quit,
            0x1a => Key::Suspend,
            b'c' => Key::By(Sort::Cpu),
            b'm' => Key::By(Sort::Memory),
            b'p' => Key::By(Sort::Pids),
            b'i' => Key::By(Sort::Io),
            b'n' => Key::By(Sort::Network),
            b'a' => Key::By(Sort::Name),
            b'r' => Key::Reverse,
            b'+' => Key::Slower,
            b'-' => Key::Faster,
            b'j' => Key::Scroll(1),
            b'k' => Key::Scroll(-1),
            b' ' => Key::Page(1),
            b'g' => Key::End(false),
            b'G' => Key::End(true),
            0x0c => Key::Redraw,
            0x1b if matches!(rest.first(), Some(b'[' | b'O')) => {
                let body = &rest[1..];
                let end = body.iter().position(|byte| (0x40..=0x7e).contains(byte)).unwrap_or(body.len());
                let (sequence, after) = body.split_at((end + 1).min(body.len()));
                rest = after;
                match sequence {
                    b"A" => Key::Scroll(-1),
                    b"B" => Key::Scroll(1),
                    b"5~" => Key::Page(-1),
                    b"6~" => Key::Page(1),
                    b"H" | b"1~" => Key::End(false),
                    b"F" | b"4~" => Key::End(true),
                    _ => continue,
                }
            }
            _ => continue,
        };
        keys.push(key);
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_sequences_are_told_apart() {
        let keys = read(b"c\x1b[A\x1bOB\x1b[5~\x1b[1;5C\x1bqz\x03");
        let expected = [Key::By(Sort::Cpu), Key::Scroll(-1), Key::Scroll(1), Key::Page(-1), Key::Quit, Key::Quit];
        assert_eq!(keys, expected);
        assert_eq!(read(b"\x1b["), []);
        assert_eq!(read(b"\x1b"), []);
        assert_eq!(read(b"\x1b[12"), []);
    }
}
