//! `RecordIO`: each record is its length in decimal digits, a line feed, and so many bytes.

/// Largest record that is taken, bytes.
pub const MAX_RECORD: usize = 4 << 20;

/// Most digits of a length; more than [`MAX_RECORD`] needs, as some clients put zeros before it.
const MOST_DIGITS: u8 = 20;

/// Memory that is made ready for a record before its bytes are there.
const READY: usize = 16 << 10;

/// Why bytes are no records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// A byte that is no digit where a length is expected.
    Length(u8),
    /// A line feed, or the end, where a length is expected to begin.
    NoLength,
    /// A record above the limit.
    TooLarge(u64),
    /// The stream ended within a record.
    Torn,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Length(byte) => write!(
                f,
                "recordio: found the byte {byte:#04x}, expected a record's length in decimal digits and a line feed"
            ),
            Self::NoLength => write!(f, "recordio: found no length, expected decimal digits before the line feed"),
            Self::TooLarge(length) => {
                write!(
                    f,
                    "recordio: found a record of {length} bytes, expected at most {MAX_RECORD}; send smaller ones"
                )
            }
            Self::Torn => write!(f, "recordio: the stream ended within a record; send it whole"),
        }
    }
}

impl std::error::Error for Fault {}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// So many digits were read, which make this number.
    Length { digits: u8, length: u64 },
    /// So many bytes are still to come.
    Payload { missing: usize, bytes: Vec<u8> },
    /// What came before was no record; nothing can be known of the rest.
    Failed(Fault),
}

const BEGIN: State = State::Length { digits: 0, length: 0 };

/// Takes a stream apart, however it is cut into pieces. Holds at most one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoder {
    state: State,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { state: BEGIN }
    }
}

impl Decoder {
    /// Reads on in `bytes` until a record is whole or they are used up; what is left of them is for the next call.
    /// After a fault every further call gives the same.
    pub fn feed(&mut self, bytes: &mut &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        loop {
            match &mut self.state {
                State::Failed(fault) => return Err(fault.clone()),
                State::Payload { missing, bytes: payload } => {
                    let (taken, rest) = bytes.split_at((*missing).min(bytes.len()));
                    payload.extend_from_slice(taken);
                    *bytes = rest;
                    *missing -= taken.len();
                    if *missing > 0 {
                        return Ok(None);
                    }
                    let record = std::mem::take(payload);
                    self.state = BEGIN;
                    return Ok(Some(record));
                }
                State::Length { digits, length } => {
                    let Some((byte, rest)) = bytes.split_first() else { return Ok(None) };
                    *bytes = rest;
                    let next = match byte {
                        b'0'..=b'9' if *digits < MOST_DIGITS => {
                            *digits += 1;
                            *length = length.saturating_mul(10).saturating_add(u64::from(byte - b'0'));
                            continue;
                        }
                        b'0'..=b'9' => State::Failed(Fault::TooLarge(*length)),
                        b'\n' if *digits == 0 => State::Failed(Fault::NoLength),
                        b'\n' if *length > MAX_RECORD as u64 => State::Failed(Fault::TooLarge(*length)),
                        b'\n' => {
                            let missing = *length as usize;
                            State::Payload { missing, bytes: Vec::with_capacity(missing.min(READY)) }
                        }
                        other => State::Failed(Fault::Length(*other)),
                    };
                    self.state = next;
                }
            }
        }
    }

    /// What the end of the stream means here.
    pub fn finish(&self) -> Result<(), Fault> {
        match &self.state {
            State::Length { digits: 0, .. } => Ok(()),
            State::Failed(fault) => Err(fault.clone()),
            _ => Err(Fault::Torn),
        }
    }
}

/// A record with its length before it. Clients read one for each chunk, so that it is sent in one piece.
pub fn encode(payload: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(payload.len() + 8);
    record.extend_from_slice(payload.len().to_string().as_bytes());
    record.push(b'\n');
    record.extend_from_slice(payload);
    record
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(pieces: &[&[u8]]) -> Result<Vec<Vec<u8>>, Fault> {
        let mut decoder = Decoder::default();
        let mut records = Vec::new();
        for piece in pieces {
            let mut piece = *piece;
            while let Some(record) = decoder.feed(&mut piece)? {
                records.push(record);
            }
            assert!(piece.is_empty());
        }
        decoder.finish()?;
        Ok(records)
    }

    #[test]
    fn rubbish_is_refused_and_stays_refused() {
        let fault = |bytes: &[u8]| all(&[bytes]).unwrap_err();
        assert_eq!(fault(b"x"), Fault::Length(b'x'));
        assert_eq!(fault(b"-1\nx"), Fault::Length(b'-'));
        assert_eq!(fault(b"1 \nx"), Fault::Length(b' '));
        assert_eq!(fault(b"\n"), Fault::NoLength);
        assert_eq!(fault(b"4194305\n"), Fault::TooLarge(4_194_305));
        assert_eq!(fault(b"99999999999999999999\n"), Fault::TooLarge(u64::MAX));
        assert!(matches!(fault(b"000000000000000000001\n"), Fault::TooLarge(_)));
        assert_eq!(fault(b"12"), Fault::Torn);
        assert_eq!(fault(b"3\nab"), Fault::Torn);
        let mut decoder = Decoder::default();
        assert!(decoder.feed(&mut &b"?"[..]).is_err());
        assert_eq!(decoder.feed(&mut &b"1\na"[..]), Err(Fault::Length(b'?')));
    }

    #[test]
    fn a_claimed_length_takes_no_memory() {
        let mut decoder = Decoder::default();
        assert_eq!(decoder.feed(&mut &b"4194304\nab"[..]), Ok(None));
        let State::Payload { bytes, .. } = &decoder.state else { panic!("{decoder:?}") };
        assert!(bytes.capacity() <= READY);
    }

    proptest! {
        #[test]
        fn records_come_back_however_the_stream_is_cut(
            records in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..8),
            cut in 1usize..9,
        ) {
            let stream: Vec<u8> = records.iter().flat_map(|record| encode(record)).collect();
            let pieces: Vec<&[u8]> = stream.chunks(cut).collect();
            prop_assert_eq!(all(&pieces), Ok(records));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = all(&[&bytes]);
        }
    }
}
