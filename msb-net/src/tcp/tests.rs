//! Connections, as a guest without a kernel sees them.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;

use crate::ip::{Piece, protocol};
use crate::limits::{RING_BYTES_MIN, RINGS_BYTES_TOTAL};
use crate::testing::{ACK, FIN, Guest, PSH, RST, SYN, Said, flow, frame};

fn pair() -> (UnixStream, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    theirs.set_nonblocking(true).unwrap();
    (ours, theirs)
}

/// The guest takes much and acknowledges nothing: what is sent to it must be kept.
#[test]
fn guests_that_acknowledge_nothing_leave_memory_for_the_next_connection() {
    crate::serve::raise_descriptor_limit();
    let mut guest = Guest::new("", 4096, Vec::new());
    let bytes = vec![7; 128 * 1024];
    let mut sockets = Vec::new();
    for number in 0..RINGS_BYTES_TOTAL / (64 * 1024) + 50 {
        let flow = flow(2000 + number as u16, "10.0.0.1:5000");
        let (ours, mut theirs) = pair();
        guest.called(&flow, ours.into(), 0xffff);
        // As much as the socket takes.
        while theirs.write(&bytes).is_ok() {
            guest.turn();
            guest.frames();
        }
        sockets.push(theirs);
    }
    let flow = flow(80, "10.0.0.1:5000");
    let (ours, mut theirs) = pair();
    guest.called(&flow, ours.into(), 0xffff);
    theirs.write_all(b"hello").unwrap();
    assert_eq!(guest.heard(80).payload, b"hello");
}

/// A reader that takes nothing more holds what its own kernel has, and next to nothing of ours.
#[test]
fn what_a_guest_does_not_take_waits_in_the_hosts_socket() {
    let mut guest = Guest::new("", 16, Vec::new());
    let flow = flow(80, "10.0.0.1:5000");
    let (ours, mut theirs) = pair();
    let mut next = guest.called(&flow, ours.into(), 1000);
    let bytes = vec![7; 4096];
    let (mut written, mut got) = (0, 0);
    while let Ok(count) = theirs.write(&bytes) {
        written += count;
        guest.turn();
        for (_, said) in guest.segments() {
            got += said.payload.len();
            next.ack = next.ack.wrapping_add(said.payload.len() as u32);
        }
        next.window = 0;
        guest.say(&flow, &next);
    }
    assert!(
        guest.stack.tcp().pool.bytes() <= RING_BYTES_MIN,
        "of {written} bytes"
    );
    // It takes all of it when it takes again.
    next.window = 0xffff;
    guest.until("all that was written", |guest| {
        guest.say(&flow, &next);
        for (_, said) in guest.segments() {
            got += said.payload.len();
            next.ack = next.ack.wrapping_add(said.payload.len() as u32);
            assert!(said.payload.iter().all(|byte| *byte == 7));
        }
        (got >= written).then_some(())
    });
    assert_eq!(got, written);
}

#[test]
fn rings_are_kept_for_the_next_bytes_until_the_last_connection_ends() {
    let mut guest = Guest::new("", 16, Vec::new());
    let flow = flow(80, "10.0.0.1:5000");
    let (ours, mut theirs) = pair();
    let mut next = guest.called(&flow, ours.into(), 0xffff);
    theirs.write_all(&[7; 10_000]).unwrap();
    let mut got = 0;
    guest.until("all bytes", |guest| {
        for (_, said) in guest.segments() {
            got += said.payload.len();
            next.ack = next.ack.wrapping_add(said.payload.len() as u32);
        }
        guest.say(&flow, &next);
        (got == 10_000).then_some(())
    });
    assert!(guest.stack.tcp().pool.bytes() > 0);
    next.flags = RST | ACK;
    guest.say(&flow, &next);
    assert_eq!(guest.stack.tcp().len(), 0);
    assert_eq!(guest.stack.tcp().pool.bytes(), 0);
}

/// The end takes a number of its own (RFC 9293, 3.4), which is to lie within the window.
#[test]
fn the_end_goes_with_the_last_bytes_where_the_window_has_a_number_for_it() {
    let mut guest = Guest::new("", 16, Vec::new());
    let flow = flow(80, "10.0.0.1:5000");
    let (ours, mut theirs) = pair();
    let mut next = guest.called(&flow, ours.into(), 0xffff);
    theirs.write_all(b"last").unwrap();
    drop(theirs);
    let (both, bytes, end) = (FIN | PSH | ACK, PSH | ACK, FIN | ACK);
    let heard = guest.heard(80);
    assert_eq!(
        (heard.payload.as_slice(), heard.flags),
        (&b"last"[..], both)
    );
    // It does not acknowledge, takes less, and is sent it again.
    next.window = 4;
    guest.say(&flow, &next);
    let heard = guest.heard(80);
    assert_eq!(
        (heard.payload.as_slice(), heard.flags),
        (&b"last"[..], bytes)
    );
    next.ack = next.ack.wrapping_add(4);
    guest.say(&flow, &next);
    let heard = guest.heard(80);
    assert_eq!((heard.payload.as_slice(), heard.flags), (&b""[..], end));
}

#[test]
fn a_question_is_acknowledged_by_its_answer_and_without_one_by_itself() {
    let mut guest = Guest::new("", 16, Vec::new());
    let flow = flow(80, "10.0.0.1:5000");
    let (ours, mut theirs) = pair();
    let mut next = guest.called(&flow, ours.into(), 0xffff);
    guest.segments();
    next.payload = vec![b'?'];
    // A busy machine may be late with an answer, and then the next questions are acknowledged at once.
    let asked = (0..1000).any(|_| {
        guest.say(&flow, &next);
        next.seq += 1;
        let told = guest.segments();
        assert!(told.iter().all(|(_, said)| said.ack == next.seq));
        if told.is_empty() {
            return true;
        }
        theirs.write_all(b"!").unwrap();
        assert_eq!(guest.heard(80).payload, b"!");
        next.ack = next.ack.wrapping_add(1);
        false
    });
    assert!(asked, "every question was acknowledged at once");
    theirs.write_all(b"!").unwrap();
    assert_eq!(guest.heard(80).ack, next.seq);
    next.ack = next.ack.wrapping_add(1);
    for _ in 0..2 {
        guest.say(&flow, &next);
        next.seq += 1;
        let told = guest.until("an acknowledgement", |guest| guest.segments().pop());
        assert_eq!((told.1.flags, told.1.ack), (ACK, next.seq));
    }
    let mut questions = Vec::new();
    let _ = theirs.read_to_end(&mut questions);
    assert_eq!(questions.len() as u32, next.seq - 1001);
}

#[test]
fn bytes_in_pieces_of_packets_arrive_between_others() {
    let mut guest = Guest::new("", 16, Vec::new());
    let flow = flow(80, "10.0.0.1:5000");
    let (ours, mut theirs) = pair();
    let mut next = guest.called(&flow, ours.into(), 0xffff);
    let mut expected = Vec::new();
    for round in 0..40u8 {
        next.payload = vec![round; 1000 + usize::from(round)];
        expected.extend_from_slice(&next.payload);
        let bytes = next.bytes(&flow);
        next.seq += next.payload.len() as u32;
        if round % 2 == 0 {
            guest.send(&frame(&flow, protocol::TCP, None, &bytes));
            continue;
        }
        let (first, second) = bytes.split_at(512);
        for (offset, part) in [(0, first), (512, second)] {
            let piece = Piece {
                id: round.into(),
                offset,
                more: offset == 0,
            };
            guest.send(&frame(&flow, protocol::TCP, Some(piece), part));
        }
    }
    let mut got = Vec::new();
    guest.until("all bytes", |_| {
        let mut buffer = [0; 65536];
        while let Ok(count) = theirs.read(&mut buffer) {
            got.extend_from_slice(&buffer[..count]);
        }
        (got.len() >= expected.len()).then_some(())
    });
    assert!(got == expected);
}

#[test]
fn segments_that_come_too_early_are_kept_and_the_guest_hears_that_one_is_missing() {
    let mut guest = Guest::new("", 16, Vec::new());
    let flow = flow(80, "10.0.0.1:5000");
    let (ours, mut theirs) = pair();
    let start = guest.called(&flow, ours.into(), 0xffff);
    guest.frames();
    let segment = |number: u32| Said {
        seq: start.seq + 1000 * number,
        payload: vec![number as u8; 1000],
        ..start.clone()
    };
    // The first is missing, others come in another order and twice, and one overlaps.
    for number in [2, 1, 4, 3, 2] {
        let said = segment(number);
        guest.send(&frame(&flow, protocol::TCP, None, &said.bytes(&flow)));
    }
    guest.turn();
    let repeated = guest.segments();
    assert!(repeated.len() >= 3);
    assert!(repeated.iter().all(|(_, said)| said.ack == start.seq));
    let mut first = segment(0);
    first.payload.extend_from_slice(&[1; 500]);
    guest.say(&flow, &first);
    let (_, said) = guest.segments().pop().unwrap();
    assert_eq!(said.ack, start.seq + 5000);
    let mut got = vec![0; 6000];
    let count = theirs.read(&mut got).unwrap();
    let expected: Vec<u8> = (0..5).flat_map(|number| [number; 1000]).collect();
    assert!(got[..count] == expected, "{count} bytes");
}

#[test]
fn callers_take_no_place_of_the_guests_own_connections() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut guest = Guest::new("allow@host", 2, Vec::new());
    let mut kept = Vec::new();
    for number in 0..2 {
        let (ours, theirs) = pair();
        let flow = flow(80, &format!("10.0.0.1:{}", 5000 + number));
        guest.called(&flow, ours.into(), 0xffff);
        kept.push(theirs);
    }
    let call = Said {
        flags: SYN,
        ..Said::default()
    };
    for (from, answer) in [(3000, SYN | ACK), (3001, SYN | ACK), (3002, ACK | 4)] {
        let flow = flow(from, &format!("172.16.0.1:{port}"));
        guest.say(&flow, &call);
        assert_eq!(guest.heard(from).flags, answer, "{from}");
    }
    // Nor do those take a place of a caller's, when there is one.
    assert_eq!(guest.stack.tcp().len(), 4);
}
