//! What goes into the ring comes out, once, wherever a daemon died.

#![allow(clippy::similar_names, reason = "`held` and `head`, `read` and `ready` are told apart well enough here")]

use super::*;

/// A source in memory.
struct Given {
    bytes: std::cell::RefCell<Vec<u8>>,
    stage: std::cell::RefCell<Vec<u8>>,
}

impl Given {
    fn new(bytes: &[u8]) -> Self {
        Self { bytes: bytes.to_vec().into(), stage: std::cell::RefCell::default() }
    }
}

impl Source for Given {
    fn staged(&self) -> usize {
        self.stage.borrow().len()
    }

    fn load(&self, most: usize) -> io::Result<usize> {
        let mut bytes = self.bytes.borrow_mut();
        let count = most.min(bytes.len());
        self.stage.borrow_mut().extend(bytes.drain(..count));
        Ok(count)
    }

    fn take(&self, room: &mut [u8]) -> io::Result<usize> {
        let mut stage = self.stage.borrow_mut();
        let count = room.len().min(stage.len());
        for (to, from) in room.iter_mut().zip(stage.drain(..count)) {
            *to = from;
        }
        Ok(count)
    }
}

fn write(ring: &mut Ring, stream: Stream, floor: u64, bytes: &[u8]) -> Option<usize> {
    ring.fill(stream, floor, &Given::new(bytes)).map(|count| count.unwrap())
}

/// Reads everything from a position on.
fn read(ring: &mut Ring, position: &mut u64) -> Vec<u8> {
    let mut all = Vec::new();
    while let At::Output(_, bytes, next) = ring.at(*position) {
        all.extend_from_slice(&bytes);
        *position = next;
    }
    all
}

#[test]
fn what_goes_in_comes_out_however_often_the_end_is_passed() {
    let mut ring = Ring::new(128 << 10, b"{}").unwrap();
    let (mut position, mut sent, mut got) = (0, Vec::new(), Vec::new());
    for n in 0..4000_usize {
        let piece: Vec<u8> = (0..=(n * 7919) % 3000).map(|m| (n * 31 + m) as u8).collect();
        let mut at = 0;
        while at < piece.len() {
            // short where the end of the ring is near
            at += write(&mut ring, Stream::Stdout, position, &piece[at..]).unwrap();
        }
        sent.extend_from_slice(&piece);
        if n % 9 == 0 {
            got.extend(read(&mut ring, &mut position));
        }
    }
    got.extend(read(&mut ring, &mut position));
    assert!(sent == got);
    assert_eq!(ring.output(), sent.len() as u64);
}

#[test]
fn a_reader_holds_the_writer_back_and_without_one_the_oldest_gives_way() {
    let mut ring = Ring::new(128 << 10, b"{}").unwrap();
    let mut held = 0;
    while let Some(count) = write(&mut ring, Stream::Stdout, 0, &[7; 5000]) {
        held += count;
    }
    assert!(held > 120 << 10, "{held}");
    let head = ring.head();
    assert_eq!(write(&mut ring, Stream::Stderr, head, b"new"), Some(3));
    let lost = ring.kept_from();
    assert!(lost > 0 && lost < held as u64);
    let mut position = 0;
    let kept = read(&mut ring, &mut position);
    assert_eq!(kept.len() as u64, held as u64 + 3 - lost);
    assert!(kept.ends_with(b"new"));
}

#[test]
fn output_counts_once_wherever_a_daemon_died() {
    for died in ["before", "within", "behind", "counted"] {
        let mut ring = Ring::new(128 << 10, b"{}").unwrap();
        write(&mut ring, Stream::Stdout, 0, b"hello ");
        let source = Given::new(b"world");
        ring.set(Word::Staged, Stream::Stderr as u64);
        source.load(100).unwrap();
        let (head, output) = (ring.head(), ring.output());
        for (word, value) in
            [(Word::PendingOutput, output), (Word::PendingHead, head), (Word::PendingStaged, 5), (Word::Pending, 5)]
        {
            ring.set(word, value);
        }
        let at = DATA + head as usize + HEAD;
        let taken = match died {
            "before" => 0,
            "within" => 2,
            _ => 5,
        };
        source.take(&mut ring.bytes()[at..at + taken]).unwrap();
        match died {
            // half counted
            "behind" => ring.set(Word::OutputHead, output + 5),
            "counted" => ring.append(5),
            _ => {}
        }
        ring.settle_output(source.staged());
        ring.settle_output(source.staged());
        while source.staged() > 0 {
            ring.fill(Stream::Stdout, 0, &source).unwrap().unwrap();
        }
        assert_eq!(read(&mut ring, &mut 0), b"hello world", "{died}");
        assert_eq!(ring.output(), 11, "{died}");
        let (position, _) = ring.find(6);
        assert!(matches!(ring.at(position), At::Output(Stream::Stderr, _, _)), "{died}");
    }
}

#[test]
fn input_is_counted_once_wherever_a_daemon_died() {
    let mut ring = Ring::new(128 << 10, b"{}").unwrap();
    // before the stage was filled
    ring.intend_stdin(10);
    ring.settle_stdin(0);
    assert_eq!(ring.stdin(), 0);
    // after, and before it was counted
    ring.intend_stdin(10);
    ring.settle_stdin(10);
    assert_eq!(ring.stdin(), 10);
    // after it was counted, with a part handed on
    ring.intend_stdin(5);
    ring.add_stdin(5);
    ring.settle_stdin(3);
    assert_eq!(ring.stdin(), 15);
}

#[test]
fn an_offset_is_found_within_its_record() {
    let mut ring = Ring::new(128 << 10, b"{}").unwrap();
    write(&mut ring, Stream::Stdout, 0, b"hello");
    write(&mut ring, Stream::Stderr, 0, b"world");
    let (position, skip) = ring.find(7);
    let At::Output(stream, bytes, _) = ring.at(position) else { panic!("nothing there") };
    assert_eq!((stream, &bytes[skip as usize..]), (Stream::Stderr, &b"rld"[..]));
    assert_eq!(ring.find(10), (ring.head(), 0));
    assert_eq!(ring.find(99), (ring.head(), 0));
    assert_eq!(ring.find(0), (0, 0));
}

#[test]
fn another_daemon_reads_on_and_damage_is_refused() {
    let mut ring = Ring::new(128 << 10, b"{\"a\":1}").unwrap();
    write(&mut ring, Stream::Stdout, 0, b"hello");
    ring.add_stdin(11);
    ring.close_stdin();
    let mut again = Ring::open(ring.file.try_clone().unwrap()).unwrap();
    assert_eq!((again.record(), again.stdin(), again.stdin_closed()), (b"{\"a\":1}".to_vec(), 11, true));
    assert_eq!(read(&mut again, &mut 0), b"hello");
    again.set(Word::Tail, 1 << 40);
    assert!(Ring::open(ring.file.try_clone().unwrap()).is_err());
    again.set(Word::Magic, 1);
    assert!(Ring::open(ring.file.try_clone().unwrap()).is_err());
    let short = memfd_create("short", MemfdFlags::CLOEXEC).unwrap();
    assert!(Ring::open(short).is_err());
}
