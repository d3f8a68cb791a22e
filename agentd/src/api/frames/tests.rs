//! The frames of an upgraded connection, without a session.

use agentd_api::session::{FrameKind, HEAD, MAX_PAYLOAD, ServerMessage, frame_head, read_head};
use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::raw::{RawReader, RawWriter};
use super::{Broken, Closing, FrameReader, FrameWriter, MOST_CONTROL, Received};

fn frame(kind: FrameKind, payload: &[u8]) -> Vec<u8> {
    [frame_head(kind, payload.len()).as_slice(), payload].concat()
}

/// Bytes in which each place can be told from others.
fn pattern(count: usize) -> Vec<u8> {
    (0..count as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// What came, with neighbouring input put together.
async fn read_all(reader: &mut impl FrameReader) -> (Vec<Received>, Option<Broken>) {
    let mut all: Vec<Received> = Vec::new();
    loop {
        match reader.next().await {
            Ok(None) => return (all, None),
            Err(broken) => return (all, Some(broken)),
            Ok(Some(Received::Stdin(piece))) => {
                assert!(!piece.is_empty(), "a piece of input is never empty");
                if let Some(Received::Stdin(before)) = all.last_mut() {
                    *before = [before.as_ref(), &piece].concat().into();
                } else {
                    all.push(Received::Stdin(piece));
                }
            }
            Ok(Some(other)) => all.push(other),
        }
    }
}

#[tokio::test]
async fn frames_are_read_however_they_arrive() {
    let input = pattern(700_000);
    let ping = br#"{"type":"ping"}"#;
    let stream = [
        frame(FrameKind::Control, ping),
        frame(FrameKind::Stdin, &input[..1]),
        frame(FrameKind::Stdin, &input[1..600_000]),
        frame(FrameKind::Control, b""),
        frame(FrameKind::Stdin, &input[600_000..]),
        frame(FrameKind::Stdin, b""),
        frame(FrameKind::Control, &[b'x'; MOST_CONTROL]),
    ]
    .concat();
    let expected = vec![
        Received::Control(Bytes::from_static(ping)),
        Received::Stdin(input[..600_000].to_vec().into()),
        Received::Control(Bytes::new()),
        Received::Stdin(input[600_000..].to_vec().into()),
        Received::CloseStdin,
        Received::Control(vec![b'x'; MOST_CONTROL].into()),
    ];
    for (already, step) in [(0, 7919), (3, 65_536), (HEAD + ping.len() + 2, 13), (stream.len(), 1), (1000, 1 << 20)] {
        let (mut client, server) = duplex(step);
        let mut reader = RawReader::new(server, &stream[..already]);
        let rest = stream[already..].to_vec();
        let sent = tokio::spawn(async move {
            for piece in rest.chunks(step) {
                client.write_all(piece).await.unwrap();
            }
        });
        let (found, broken) = read_all(&mut reader).await;
        assert!(broken.is_none() && found == expected, "already {already}, step {step}: {} pieces", found.len());
        sent.await.unwrap();
    }
}

#[tokio::test]
async fn what_is_no_frame_ends_the_reading() {
    let oversize = frame_head(FrameKind::Stdin, MAX_PAYLOAD + 1).to_vec();
    let long = frame_head(FrameKind::Control, MOST_CONTROL + 1).to_vec();
    for (bad, word) in [
        (b"GET / HTTP/1.1\r\n".to_vec(), "kind"),
        (vec![0, 0, 1, 0, 0, 0, 0, 0], "zero bytes"),
        (oversize, "at most 1048576"),
        (long, "at most 4096"),
        (frame(FrameKind::Stdout, b"x"), "kind 1"),
        (frame(FrameKind::Stderr, b""), "kind 2"),
    ] {
        let stream = [frame(FrameKind::Stdin, b"before"), bad].concat();
        let (found, broken) = read_all(&mut RawReader::new(tokio::io::empty(), &stream)).await;
        assert_eq!(found, [Received::Stdin(Bytes::from_static(b"before"))]);
        let Some(Broken::Violation(violation)) = broken else { panic!("{word}: {broken:?}") };
        let problem = violation.problem;
        assert!(problem.detail.contains(word) && problem.kind == "bad-frame", "{word}: {problem:?}");
    }
    // a connection that ends within a frame is one that ends
    let (found, broken) =
        read_all(&mut RawReader::new(tokio::io::empty(), &frame(FrameKind::Stdin, b"abc")[..10])).await;
    assert!(broken.is_none() && found == [Received::Stdin(Bytes::from_static(b"ab"))]);
}

#[tokio::test]
async fn output_is_cut_into_frames_and_comes_whole() {
    let output = pattern(2 * MAX_PAYLOAD + 5);
    let (client, mut server) = duplex(50_000);
    let expected = output.clone();
    let wrote = tokio::spawn(async move {
        let mut writer = RawWriter::new(client);
        writer.output(FrameKind::Stderr, Bytes::from(output)).await.unwrap();
        writer.output(FrameKind::Stdout, Bytes::new()).await.unwrap();
        writer.control(&ServerMessage::Ack { stdin: 7 }).await.unwrap();
        writer.close(Closing::Done).await.unwrap();
    });
    let mut stream = BytesMut::new();
    while server.read_buf(&mut stream).await.unwrap() > 0 {}
    wrote.await.unwrap();
    let mut found: Vec<(FrameKind, Bytes)> = Vec::new();
    while !stream.is_empty() {
        let head: [u8; HEAD] = stream.split_to(HEAD).as_ref().try_into().unwrap();
        let (kind, length) = read_head(head).unwrap();
        found.push((kind, stream.split_to(length).freeze()));
    }
    let (last, pieces) = found.split_last().unwrap();
    assert_eq!(last, &(FrameKind::Control, Bytes::from_static(br#"{"type":"ack","stdin":7}"#)));
    assert_eq!(pieces.iter().map(|(_, piece)| piece.len()).collect::<Vec<_>>(), [MAX_PAYLOAD, MAX_PAYLOAD, 5]);
    assert!(pieces.iter().all(|(kind, _)| *kind == FrameKind::Stderr));
    assert!(pieces.iter().flat_map(|(_, piece)| piece.iter()).eq(expected.iter()));
}

/// Mostly frames, sometimes what is none.
fn any_piece() -> impl Strategy<Value = Vec<u8>> {
    let payload = || proptest::collection::vec(any::<u8>(), 0..200);
    prop_oneof![
        4 => payload().prop_map(|payload| frame(FrameKind::Stdin, &payload)),
        2 => payload().prop_map(|payload| frame(FrameKind::Control, &payload)),
        1 => any::<[u8; HEAD]>().prop_map(|head| head.to_vec()),
        1 => proptest::collection::vec(any::<u8>(), 0..20),
    ]
}

proptest! {
    #[test]
    fn any_bytes_mean_the_same_however_they_arrive(
        pieces in proptest::collection::vec(any_piece(), 0..20),
        already in 0..100_usize,
        step in 1..300_usize,
    ) {
        let stream = pieces.concat();
        let already = already.min(stream.len());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (whole, cut) = runtime.block_on(async {
            let whole = read_all(&mut RawReader::new(tokio::io::empty(), &stream)).await;
            let (mut client, server) = duplex(step);
            let rest = stream[already..].to_vec();
            let sent = tokio::spawn(async move {
                for piece in rest.chunks(step) {
                    // a reader that has met a violation reads no more
                    if client.write_all(piece).await.is_err() {
                        return;
                    }
                }
            });
            let cut = read_all(&mut RawReader::new(server, &stream[..already])).await;
            sent.await.unwrap();
            (whole, cut)
        });
        prop_assert_eq!(whole.0, cut.0);
        prop_assert_eq!(format!("{:?}", whole.1), format!("{:?}", cut.1));
    }
}
