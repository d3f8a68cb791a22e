//! What the fuzz targets run: each function takes bytes of a stranger and must neither panic nor grow. See the README.

mod server;

use agentd_api::mesos::recordio::Decoder;
use agentd_api::mesos::{decode_json, decode_protobuf};
use agentd_api::session::{ClientMessage, ExecRequest, HEAD, read_head};
use agentd_tests::mutate::{Mutator, record_of};

pub use server::api_server;

/// Requests of a run without a fuzzer where no other number is given.
const COUNT: u64 = 100_000;

/// Runs a target on changed requests: the program's arguments are the seed and the number of requests.
pub fn walk(name: &str, target: fn(&[u8])) {
    let number = |at: usize| std::env::args().nth(at).and_then(|word| word.parse::<u64>().ok());
    let (seed, count) = (number(1).unwrap_or(1), number(2).unwrap_or(COUNT));
    let mut mutator = Mutator::new(seed);
    for turn in 0..count {
        let bytes = match (name, turn % 4) {
            ("requests", _) => mutator.wild(),
            ("sessions", 0 | 1) => mutator.frames(),
            ("recordio", 0) => {
                let mut bytes: Vec<u8> = (0..3).flat_map(|_| record_of(&mutator.request().body)).collect();
                mutator.change(&mut bytes);
                bytes
            }
            _ => {
                let mut bytes = mutator.request().body;
                mutator.change(&mut bytes);
                bytes
            }
        };
        target(&bytes);
    }
    println!("{name}: {count} inputs from the seed {seed}");
}

/// Takes a stream of records apart in one piece and byte by byte, which has to give the same.
pub fn recordio(bytes: &[u8]) {
    let whole = records(std::iter::once(bytes));
    let single = records(bytes.chunks(1));
    assert_eq!(whole, single, "the pieces make a difference");
}

/// The records of a stream, and what was wrong with it.
fn records<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<Vec<u8>>, Option<String>) {
    let mut decoder = Decoder::default();
    let mut found = Vec::new();
    for mut piece in pieces {
        loop {
            match decoder.feed(&mut piece) {
                Ok(Some(record)) => found.push(record),
                Ok(None) => break,
                Err(fault) => return (found, Some(fault.to_string())),
            }
        }
    }
    let end = decoder.finish().err().map(|fault| fault.to_string());
    (found, end)
}

/// Reads a call in both forms. A fault names what is wrong in one line.
pub fn mesos(bytes: &[u8]) {
    for fault in [decode_json(bytes).err(), decode_protobuf(bytes).err()].into_iter().flatten() {
        assert!(!fault.message.is_empty() && !fault.message.contains('\n'), "{fault:?}");
    }
}

/// Reads a request for a session, and frames with their messages.
pub fn sessions(bytes: &[u8]) {
    if let Err(faults) = ExecRequest::parse(bytes) {
        assert!(!faults.is_empty() && faults.iter().all(|fault| !fault.message.is_empty()));
    }
    let mut rest = bytes;
    while let Some((head, after)) = rest.split_first_chunk::<HEAD>() {
        let Ok((_, length)) = read_head(*head) else { break };
        let (payload, after) = after.split_at(length.min(after.len()));
        // most are none
        let _ = serde_json::from_slice::<ClientMessage>(payload);
        rest = after;
    }
}
