//! A guest that means harm, frame by frame, and what it has this process hold: at most what `limits.rs` says.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::Write;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::UnixStream;

use libmsb::net::ports::Transport;

use crate::ip::{Piece, protocol};
use crate::limits::{RINGS_BYTES_TOTAL, UDP_CALLERS_MAX, UDP_FLOWS_MAX, bytes_max};
use crate::ports::Port;
use crate::testing::{Guest, RST, SYN, Said, datagram, flow, frame, network};

/// Counts the bytes that each thread holds.
struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

thread_local! {
    /// Held now, and at most.
    static BYTES: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

fn count(bytes: isize) {
    // At the end of a thread there is nothing left to count with.
    let _ = BYTES.try_with(|held| {
        let (now, most) = held.get();
        held.set((now + bytes, most.max(now + bytes)));
    });
}

// SAFETY: each call is passed on as it came to the system's allocator, which keeps the promises of the trait; counting
// takes no memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the conditions of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the conditions of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller keeps the conditions of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// A connection is a descriptor, and these tests have many.
fn guest(rules: &str, ports: Vec<Port>) -> Guest {
    crate::serve::raise_descriptor_limit();
    Guest::new(rules, CONNECTIONS, ports)
}

/// Bytes that this thread has held at most, beyond those that it holds when it begins.
fn most(work: impl FnOnce()) -> usize {
    let (before, _) = BYTES.get();
    BYTES.set((before, before));
    work();
    (BYTES.get().1 - before).unsigned_abs()
}

/// Connections that the guests of these tests may have.
const CONNECTIONS: usize = 600;

/// Sends frames, and takes what comes back, as a guest does that is not to be lost in its own answers.
fn flood(guest: &mut Guest, frames: impl Iterator<Item = Vec<u8>>) {
    for (number, frame) in frames.enumerate() {
        guest.send(&frame);
        if number % 64 == 0 {
            guest.turn();
            guest.frames();
        }
    }
    guest.turn();
}

fn host(listener: &TcpListener) -> String {
    format!("172.16.0.1:{}", listener.local_addr().unwrap().port())
}

fn said(flags: u8, seq: u32, payload: &[u8]) -> Said {
    Said {
        seq,
        flags,
        window: 0xffff,
        payload: payload.to_vec(),
        ..Said::default()
    }
}

/// Half of them are resets, so that connections come and go all the time.
#[test]
fn a_flood_of_calls_and_resets() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let remote = host(&listener);
    let held = most(|| {
        let mut guest = guest("allow@host", Vec::new());
        let call = |number: u32| {
            let caller = number / 2;
            let flow = flow((caller % 60_000) as u16 + 1, &remote);
            let resets = !number.is_multiple_of(2) && !caller.is_multiple_of(4);
            let said = if resets {
                said(RST, caller + 1, &[])
            } else {
                said(SYN, caller, &[])
            };
            frame(&flow, protocol::TCP, None, &said.bytes(&flow))
        };
        flood(&mut guest, (0..100_000).map(call));
        assert!(guest.stack.tcp().len() <= CONNECTIONS);
        assert!(guest.stack.tcp().opened() > 1000);
    });
    assert!(held < bytes_max(CONNECTIONS), "{held} bytes");
}

/// Every connection is full in both directions: nobody takes what was said, and the guest does not either.
#[test]
fn connections_that_all_stand_still() {
    let held = most(|| {
        let mut guest = guest("", Vec::new());
        let bytes = vec![7; 1400];
        let mut sockets = Vec::new();
        for number in 0..CONNECTIONS {
            let flow = flow(
                80,
                &format!("10.0.{}.1:{}", number / 60, 5000 + number % 60),
            );
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            theirs.set_nonblocking(true).unwrap();
            let mut next = guest.called(&flow, ours.into(), 0xffff);
            next.payload.clone_from(&bytes);
            for number in 1..=300 {
                let _ = theirs.write(&bytes);
                guest.send(&frame(&flow, protocol::TCP, None, &next.bytes(&flow)));
                next.seq = next.seq.wrapping_add(1400);
                if number % 20 == 0 {
                    guest.turn();
                    guest.frames();
                }
            }
            sockets.push(theirs);
        }
        assert_eq!(guest.stack.tcp().len(), CONNECTIONS);
    });
    assert!(
        held > RINGS_BYTES_TOTAL / 4 * 3,
        "{held} bytes: they hold too little"
    );
    assert!(held < bytes_max(CONNECTIONS), "{held} bytes");
}

#[test]
fn a_flood_of_pieces() {
    let held = most(|| {
        let mut guest = guest("allow@host", Vec::new());
        let remotes = [
            ("172.16.0.1:9", protocol::UDP),
            ("[fd42:6d73:62::1]:9", protocol::TCP),
        ];
        let piece = |number: u32| {
            let (remote, protocol) = remotes[number as usize % 2];
            let piece = Piece {
                // Some complete a packet, some overlap, most begin one that is never whole.
                id: number % 977,
                offset: number as usize * 8 % 60_000,
                more: !number.is_multiple_of(13),
            };
            let size = if number.is_multiple_of(5) { 1400 } else { 8 };
            frame(&flow(7, remote), protocol, Some(piece), &vec![7; size])
        };
        flood(&mut guest, (0..100_000).map(piece));
    });
    assert!(held < bytes_max(CONNECTIONS), "{held} bytes");
}

/// Of addresses that the guest does not have, and asks for those that nobody has.
#[test]
fn a_flood_of_forged_sources_and_of_questions_who_has_an_address() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let remote = host(&listener);
    let held = most(|| {
        let mut guest = guest("allow@host", Vec::new());
        let forged = |number: u32| {
            if number.is_multiple_of(2) {
                return arp(number);
            }
            let mut flow = flow(1000, &remote);
            flow.guest.address =
                std::net::Ipv4Addr::from(number.wrapping_mul(2_654_435_761)).into();
            frame(
                &flow,
                protocol::TCP,
                None,
                &said(SYN, number, &[]).bytes(&flow),
            )
        };
        flood(&mut guest, (0..100_000).map(forged));
        assert_eq!(guest.stack.tcp().opened(), 0);
    });
    assert!(held < bytes_max(CONNECTIONS), "{held} bytes");
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err());
}

fn arp(number: u32) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend_from_slice(&network().guest_mac);
    frame.extend_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend_from_slice(&network().guest_mac);
    frame.extend_from_slice(&[172, 16, 0, 2, 0, 0, 0, 0, 0, 0]);
    frame.extend_from_slice(&number.to_be_bytes());
    frame
}

/// Names that are denied, one that nobody answers, and what is no question.
#[test]
fn a_flood_of_questions_for_names() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let held = most(|| {
        let rules = "deny@*.evil.test,allow@public";
        let policy = libmsb::net::policy::Policy {
            rules: libmsb::net::rule::parse_list(rules).unwrap(),
            ..libmsb::net::policy::Policy::nothing()
        };
        let upstreams = vec![silent.local_addr().unwrap()];
        let mut guest = Guest::under(policy, CONNECTIONS, Vec::new(), upstreams);
        let question = |number: u32| {
            let mut message = vec![0; 12];
            message[..2].copy_from_slice(&(number as u16).to_be_bytes());
            (message[2], message[5]) = (1, 1);
            let below: &[u8] = if number.is_multiple_of(3) {
                b"evil"
            } else {
                &[b'b'; 60]
            };
            for label in [&[b'a'; 60][..], below, b"test"] {
                message.push(label.len() as u8);
                message.extend_from_slice(label);
            }
            message.extend_from_slice(&[0, 0, 1, 0, 1]);
            message.truncate(if number.is_multiple_of(7) { 20 } else { 400 });
            let flow = flow(number as u16 | 1, "8.8.8.8:53");
            frame(&flow, protocol::UDP, None, &datagram(&flow, &message))
        };
        flood(&mut guest, (0..50_000).map(question));
    });
    assert!(held < bytes_max(CONNECTIONS), "{held} bytes");
}

/// Callers of a published port have no place of the guest's own flows, and neither are without bound.
#[test]
fn a_flood_of_datagrams_from_both_sides() {
    let published = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = published.local_addr().unwrap();
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let remote = format!("172.16.0.1:{}", server.local_addr().unwrap().port());
    let held = most(|| {
        published.set_nonblocking(true).unwrap();
        let port = Port {
            socket: published.into(),
            host: address,
            guest: 9,
            transport: Transport::Udp,
        };
        let mut guest = guest("allow@host,allow:ingress@any", vec![port]);
        let own = |number: u16| {
            let flow = flow(number + 1, &remote);
            frame(&flow, protocol::UDP, None, &datagram(&flow, b"x"))
        };
        flood(&mut guest, (0..10).map(own));
        assert_eq!(guest.stack.udp().sides(), (10, 0));
        // From as many ports as there is room for callers, and some more.
        for _ in 0..UDP_CALLERS_MAX + 100 {
            let caller = UdpSocket::bind("127.0.0.1:0").unwrap();
            caller.send_to(b"x", address).unwrap();
            guest.turn();
            guest.frames();
        }
        let (own_flows, callers) = guest.stack.udp().sides();
        assert_eq!(own_flows, 10);
        assert!(callers > UDP_CALLERS_MAX / 2 && callers <= UDP_CALLERS_MAX);
        flood(&mut guest, (0..3 * UDP_FLOWS_MAX as u16).map(own));
        assert!(guest.stack.udp().sides().0 <= UDP_FLOWS_MAX);
        assert_eq!(guest.stack.udp().sides().1, callers);
    });
    assert!(held < bytes_max(CONNECTIONS), "{held} bytes");
}
