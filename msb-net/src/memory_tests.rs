//! Memory tests with a hostile guest: the process must hold no more than `limits.rs` allows.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::Write;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::UnixStream;

use libmsb::net::ports::Transport;

use crate::ip::{Fragment, protocol};
use crate::limits::{RINGS_BYTES_TOTAL, UDP_FLOWS_MAX, UDP_INBOUND_FLOWS_MAX, bytes_max};
use crate::published_port::PublishedPort;
use crate::testing::{RST, SYN, TcpSegment, TestGuest, datagram, flow, frame, network};

/// An allocator that counts the bytes each thread holds.
struct CountingAllocator;

#[global_allocator]
static COUNTING_ALLOCATOR: CountingAllocator = CountingAllocator;

thread_local! {
    /// Bytes held now, and the maximum.
    static BYTES: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

fn count(bytes: isize) {
    // At the end of a thread the counter is gone.
    let _ = BYTES.try_with(|held| {
        let (now, peak_bytes) = held.get();
        held.set((now + bytes, peak_bytes.max(now + bytes)));
    });
}

// SAFETY: each call is forwarded unchanged to the system allocator, which keeps the promises of the
// trait; counting allocates no memory.
unsafe impl GlobalAlloc for CountingAllocator {
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

/// Creates a guest. Each connection takes a descriptor, and these tests open many.
fn guest(rules: &str, ports: Vec<PublishedPort>) -> TestGuest {
    libmsb::isolate::raise_file_limit();
    TestGuest::with_ports(rules, CONNECTIONS, ports)
}

/// Returns the most bytes that this thread held during the work, beyond those it held before.
fn peak_bytes(work: impl FnOnce()) -> usize {
    let (before, _) = BYTES.get();
    BYTES.set((before, before));
    work();
    (BYTES.get().1 - before).unsigned_abs()
}

/// Limit of connections in these tests.
const CONNECTIONS: usize = 600;

/// Sends frames and reads the answers, as a guest must that does not block on its own input.
fn flood(guest: &mut TestGuest, frames: impl Iterator<Item = Vec<u8>>) {
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

fn said(flags: u8, seq: u32, payload: &[u8]) -> TcpSegment {
    TcpSegment { seq, flags, window: 0xffff, payload: payload.to_vec(), ..TcpSegment::default() }
}

/// Half of the segments are resets, so connections open and close all the time.
#[test]
fn a_flood_of_syns_and_resets() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let remote = host(&listener);
    let held = peak_bytes(|| {
        let mut guest = guest("allow@host", Vec::new());
        let call = |number: u32| {
            let caller = number / 2;
            let flow = flow((caller % 60_000) as u16 + 1, &remote);
            let resets = !number.is_multiple_of(2) && !caller.is_multiple_of(4);
            let said = if resets { said(RST, caller + 1, &[]) } else { said(SYN, caller, &[]) };
            frame(&flow, protocol::TCP, None, &said.bytes(&flow))
        };
        flood(&mut guest, (0..100_000).map(call));
        assert!(guest.stack.tcp().len() <= CONNECTIONS);
        assert!(guest.stack.tcp().opened_total() > 1000);
    });
    assert!(held < bytes_max(CONNECTIONS), "{held} bytes");
}

/// Every connection is full in both directions: neither side reads.
#[test]
fn connections_that_are_all_stalled() {
    let held = peak_bytes(|| {
        let mut guest = guest("", Vec::new());
        let bytes = vec![7; 1400];
        let mut sockets = Vec::new();
        for number in 0..CONNECTIONS {
            let flow = flow(80, &format!("10.0.{}.1:{}", number / 60, 5000 + number % 60));
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            theirs.set_nonblocking(true).unwrap();
            let mut next = guest.connect_inbound(&flow, ours.into(), 0xffff);
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
    assert!(held > RINGS_BYTES_TOTAL / 4 * 3, "{held} bytes: they hold too little");
    assert!(held < bytes_max(CONNECTIONS), "{held} bytes");
}

#[test]
fn a_flood_of_fragments() {
    let held = peak_bytes(|| {
        let mut guest = guest("allow@host", Vec::new());
        let remotes = [("172.16.0.1:9", protocol::UDP), ("[fd42:6d73:62::1]:9", protocol::TCP)];
        let fragment = |number: u32| {
            let (remote, protocol) = remotes[number as usize % 2];
            let fragment = Fragment {
                // Some complete a packet, some overlap, most start a packet that is never complete.
                id: number % 977,
                offset: number as usize * 8 % 60_000,
                more: !number.is_multiple_of(13),
            };
            let size = if number.is_multiple_of(5) { 1400 } else { 8 };
            frame(&flow(7, remote), protocol, Some(fragment), &vec![7; size])
        };
        flood(&mut guest, (0..100_000).map(fragment));
    });
    assert!(held < bytes_max(CONNECTIONS), "{held} bytes");
}

/// Half of the frames have forged source addresses, the others are ARP requests for unused
/// addresses.
#[test]
fn a_flood_of_forged_sources_and_arp_requests() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let remote = host(&listener);
    let held = peak_bytes(|| {
        let mut guest = guest("allow@host", Vec::new());
        let forged = |number: u32| {
            if number.is_multiple_of(2) {
                return arp(number);
            }
            let mut flow = flow(1000, &remote);
            flow.guest.address =
                std::net::Ipv4Addr::from(number.wrapping_mul(2_654_435_761)).into();
            frame(&flow, protocol::TCP, None, &said(SYN, number, &[]).bytes(&flow))
        };
        flood(&mut guest, (0..100_000).map(forged));
        assert_eq!(guest.stack.tcp().opened_total(), 0);
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

/// Denied names, a name that no server answers, and malformed queries.
#[test]
fn a_flood_of_dns_queries() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let held = peak_bytes(|| {
        let rules = "deny@*.evil.test,allow@public";
        let policy = libmsb::net::policy::Policy {
            rules: libmsb::net::rule::parse_list(rules).unwrap(),
            ..libmsb::net::policy::Policy::nothing()
        };
        let upstreams = vec![silent.local_addr().unwrap()];
        let mut guest = TestGuest::with_policy(policy, CONNECTIONS, Vec::new(), upstreams);
        let question = |number: u32| {
            let mut message = vec![0; 12];
            message[..2].copy_from_slice(&(number as u16).to_be_bytes());
            (message[2], message[5]) = (1, 1);
            let below: &[u8] = if number.is_multiple_of(3) { b"evil" } else { &[b'b'; 60] };
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

/// Peers of a published port take no place of the guest's own flows, and both are limited.
#[test]
fn a_flood_of_datagrams_from_both_sides() {
    let published = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = published.local_addr().unwrap();
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let remote = format!("172.16.0.1:{}", server.local_addr().unwrap().port());
    let held = peak_bytes(|| {
        published.set_nonblocking(true).unwrap();
        let port = PublishedPort {
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
        assert_eq!(guest.stack.udp().flow_counts(), (10, 0));
        // More callers than the limit.
        for _ in 0..UDP_INBOUND_FLOWS_MAX + 100 {
            let caller = UdpSocket::bind("127.0.0.1:0").unwrap();
            caller.send_to(b"x", address).unwrap();
            guest.turn();
            guest.frames();
        }
        let (own_flows, callers) = guest.stack.udp().flow_counts();
        assert_eq!(own_flows, 10);
        assert!(callers > UDP_INBOUND_FLOWS_MAX / 2 && callers <= UDP_INBOUND_FLOWS_MAX);
        flood(&mut guest, (0..3 * UDP_FLOWS_MAX as u16).map(own));
        assert!(guest.stack.udp().flow_counts().0 <= UDP_FLOWS_MAX);
        assert_eq!(guest.stack.udp().flow_counts().1, callers);
    });
    assert!(held < bytes_max(CONNECTIONS), "{held} bytes");
}
