//! Tests of TCP connections against a guest without a kernel.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;

use crate::ip::{Fragment, protocol};
use crate::limits::{RING_BYTES_MIN, RINGS_BYTES_TOTAL};
use crate::testing::{ACK, FIN, PSH, RST, SYN, TcpSegment, TestGuest, flow, frame};

fn pair() -> (UnixStream, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    theirs.set_nonblocking(true).unwrap();
    (ours, theirs)
}

/// The guest takes much and acknowledges nothing, so all data to it must be kept for
/// retransmission.
#[test]
fn guests_that_acknowledge_nothing_leave_memory_for_the_next_connection() {
    libmsb::isolate::raise_file_limit();
    let mut guest = TestGuest::new("", 4096);
    let bytes = vec![7; 128 * 1024];
    let mut sockets = Vec::new();
    for number in 0..RINGS_BYTES_TOTAL / (64 * 1024) + 50 {
        let flow = flow(2000 + number as u16, "10.0.0.1:5000");
        let (ours, mut theirs) = pair();
        guest.connect_inbound(&flow, ours.into(), 0xffff);
        // As much as the socket takes.
        while theirs.write(&bytes).is_ok() {
            guest.turn();
            guest.frames();
        }
        sockets.push(theirs);
    }
    let flow = flow(80, "10.0.0.1:5000");
    let (ours, mut theirs) = pair();
    guest.connect_inbound(&flow, ours.into(), 0xffff);
    theirs.write_all(b"hello").unwrap();
    assert_eq!(guest.next_segment(80).payload, b"hello");
}

/// Data for a guest that does not read stays in the kernel's socket buffer, and almost none here.
#[test]
fn data_for_a_zero_window_waits_in_the_hosts_socket() {
    let mut guest = TestGuest::new("", 16);
    let flow = flow(80, "10.0.0.1:5000");
    let (ours, mut theirs) = pair();
    let mut next = guest.connect_inbound(&flow, ours.into(), 1000);
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
        guest.send_segment(&flow, &next);
    }
    assert!(guest.stack.tcp().pool.bytes() <= RING_BYTES_MIN, "of {written} bytes");
    // It takes all of it when its window opens again.
    next.window = 0xffff;
    guest.poll_until("all that was written", |guest| {
        guest.send_segment(&flow, &next);
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
    let mut guest = TestGuest::new("", 16);
    let flow = flow(80, "10.0.0.1:5000");
    let (ours, mut theirs) = pair();
    let mut next = guest.connect_inbound(&flow, ours.into(), 0xffff);
    theirs.write_all(&[7; 10_000]).unwrap();
    let mut got = 0;
    guest.poll_until("all bytes", |guest| {
        for (_, said) in guest.segments() {
            got += said.payload.len();
            next.ack = next.ack.wrapping_add(said.payload.len() as u32);
        }
        guest.send_segment(&flow, &next);
        (got == 10_000).then_some(())
    });
    assert!(guest.stack.tcp().pool.bytes() > 0);
    next.flags = RST | ACK;
    guest.send_segment(&flow, &next);
    assert_eq!(guest.stack.tcp().len(), 0);
    assert_eq!(guest.stack.tcp().pool.bytes(), 0);
}

/// A FIN takes a sequence number (RFC 9293, 3.4), which must lie within the window.
#[test]
fn the_fin_goes_with_the_last_bytes_if_the_window_has_space_for_it() {
    let mut guest = TestGuest::new("", 16);
    let flow = flow(80, "10.0.0.1:5000");
    let (ours, mut theirs) = pair();
    let mut next = guest.connect_inbound(&flow, ours.into(), 0xffff);
    theirs.write_all(b"last").unwrap();
    drop(theirs);
    let (both, bytes, end) = (FIN | PSH | ACK, PSH | ACK, FIN | ACK);
    let heard = guest.next_segment(80);
    assert_eq!((heard.payload.as_slice(), heard.flags), (&b"last"[..], both));
    // The guest does not acknowledge, reduces its window, and gets a retransmission.
    next.window = 4;
    guest.send_segment(&flow, &next);
    let heard = guest.next_segment(80);
    assert_eq!((heard.payload.as_slice(), heard.flags), (&b"last"[..], bytes));
    next.ack = next.ack.wrapping_add(4);
    guest.send_segment(&flow, &next);
    let heard = guest.next_segment(80);
    assert_eq!((heard.payload.as_slice(), heard.flags), (&b""[..], end));
}

#[test]
fn a_request_is_acknowledged_by_its_response_or_after_the_delay() {
    let mut guest = TestGuest::new("", 16);
    let flow = flow(80, "10.0.0.1:5000");
    let (ours, mut theirs) = pair();
    let mut next = guest.connect_inbound(&flow, ours.into(), 0xffff);
    guest.segments();
    next.payload = vec![b'?'];
    // A loaded computer may answer late; the next requests are then acknowledged at once.
    let asked = (0..1000).any(|_| {
        guest.send_segment(&flow, &next);
        next.seq += 1;
        let told = guest.segments();
        assert!(told.iter().all(|(_, said)| said.ack == next.seq));
        if told.is_empty() {
            return true;
        }
        theirs.write_all(b"!").unwrap();
        assert_eq!(guest.next_segment(80).payload, b"!");
        next.ack = next.ack.wrapping_add(1);
        false
    });
    assert!(asked, "every question was acknowledged at once");
    theirs.write_all(b"!").unwrap();
    assert_eq!(guest.next_segment(80).ack, next.seq);
    next.ack = next.ack.wrapping_add(1);
    for _ in 0..2 {
        guest.send_segment(&flow, &next);
        next.seq += 1;
        let told = guest.poll_until("an acknowledgement", |guest| guest.segments().pop());
        assert_eq!((told.1.flags, told.1.ack), (ACK, next.seq));
    }
    let mut questions = Vec::new();
    let _ = theirs.read_to_end(&mut questions);
    assert_eq!(questions.len() as u32, next.seq - 1001);
}

#[test]
fn fragmented_segments_are_reassembled_between_others() {
    let mut guest = TestGuest::new("", 16);
    let flow = flow(80, "10.0.0.1:5000");
    let (ours, mut theirs) = pair();
    let mut next = guest.connect_inbound(&flow, ours.into(), 0xffff);
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
            let fragment = Fragment { id: round.into(), offset, more: offset == 0 };
            guest.send(&frame(&flow, protocol::TCP, Some(fragment), part));
        }
    }
    let mut got = Vec::new();
    guest.poll_until("all bytes", |_| {
        let mut buffer = [0; 65536];
        while let Ok(count) = theirs.read(&mut buffer) {
            got.extend_from_slice(&buffer[..count]);
        }
        (got.len() >= expected.len()).then_some(())
    });
    assert!(got == expected);
}

#[test]
fn out_of_order_segments_are_kept_and_duplicate_acks_report_the_gap() {
    let mut guest = TestGuest::new("", 16);
    let flow = flow(80, "10.0.0.1:5000");
    let (ours, mut theirs) = pair();
    let start = guest.connect_inbound(&flow, ours.into(), 0xffff);
    guest.frames();
    let segment = |number: u32| TcpSegment {
        seq: start.seq + 1000 * number,
        payload: vec![number as u8; 1000],
        ..start.clone()
    };
    // The first is missing, others arrive out of order and twice, and one overlaps.
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
    guest.send_segment(&flow, &first);
    let (_, said) = guest.segments().pop().unwrap();
    assert_eq!(said.ack, start.seq + 5000);
    let mut got = vec![0; 6000];
    let count = theirs.read(&mut got).unwrap();
    let expected: Vec<u8> = (0..5).flat_map(|number| [number; 1000]).collect();
    assert!(got[..count] == expected, "{count} bytes");
}

#[test]
fn inbound_connections_do_not_count_against_the_guests_own() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut guest = TestGuest::new("allow@host", 2);
    let mut kept = Vec::new();
    for number in 0..2 {
        let (ours, theirs) = pair();
        let flow = flow(80, &format!("10.0.0.1:{}", 5000 + number));
        guest.connect_inbound(&flow, ours.into(), 0xffff);
        kept.push(theirs);
    }
    let call = TcpSegment { flags: SYN, ..TcpSegment::default() };
    for (from, answer) in [(3000, SYN | ACK), (3001, SYN | ACK), (3002, ACK | 4)] {
        let flow = flow(from, &format!("172.16.0.1:{port}"));
        guest.send_segment(&flow, &call);
        assert_eq!(guest.next_segment(from).flags, answer, "{from}");
    }
    // Connections of the guest take no place of inbound ones either.
    assert_eq!(guest.stack.tcp().len(), 4);
}
