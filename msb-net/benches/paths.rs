//! Benchmarks of inner paths: a guest's frames to a host's socket and back, and the verdict of a
//! policy.
//!
//! `cargo bench -p msb-net --features testing [NAME]`; `-- --save-baseline before` and
//! `-- --baseline before` compare two builds. tests/bench/net measures the whole program.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "a benchmark fails by a panic"
)]

use std::hint::black_box;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use libmsb::net::policy::Policy;
use libmsb::net::rule::{Direction, Protocol, parse_list};
use msb_net::address::HostFacts;
use msb_net::policy::{ConnectionFacts, PolicyEngine, TlsPeek};
use msb_net::testing::{ACK, TcpSegment, TestGuest, flow};

/// Payload of a segment at an MTU of 1500.
const PAYLOAD_BYTES: usize = 1460;

/// Returns a guest with a connection, the peer's end of it, and the next segment of the guest.
fn connected() -> (TestGuest, UnixStream, TcpSegment) {
    let mut guest = TestGuest::new("", 4);
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    theirs.set_nonblocking(true).unwrap();
    let next = guest.connect_inbound(&flow(80, "10.0.0.1:5000"), ours.into(), 0xffff);
    (guest, theirs, next)
}

fn segments(criterion: &mut Criterion) {
    let flow = flow(80, "10.0.0.1:5000");
    let mut group = criterion.benchmark_group("segment");
    group.throughput(Throughput::Bytes(PAYLOAD_BYTES as u64));
    group.bench_function("from the guest to a socket", |bencher| {
        let (mut guest, mut theirs, mut next) = connected();
        next.payload = vec![7; PAYLOAD_BYTES];
        let mut buffer = vec![0; 2 * PAYLOAD_BYTES];
        bencher.iter(|| {
            guest.send_segment(&flow, &next);
            next.seq = next.seq.wrapping_add(PAYLOAD_BYTES as u32);
            assert_eq!(theirs.read(&mut buffer).unwrap(), PAYLOAD_BYTES);
            black_box(guest.frames());
        });
    });
    group.bench_function("from a socket to the guest", |bencher| {
        let (mut guest, mut theirs, mut next) = connected();
        let bytes = vec![7; PAYLOAD_BYTES];
        (next.flags, next.payload) = (ACK, Vec::new());
        bencher.iter(|| {
            theirs.write_all(&bytes).unwrap();
            guest.turn();
            let received: usize =
                guest.segments().iter().map(|(_, segment)| segment.payload.len()).sum();
            assert_eq!(received, PAYLOAD_BYTES);
            next.ack = next.ack.wrapping_add(PAYLOAD_BYTES as u32);
            guest.send_segment(&flow, &next);
        });
    });
    group.finish();
}

fn verdicts(criterion: &mut Criterion) {
    let rules = (0..100).map(|number| format!("deny@10.{number}.0.0/16:tcp:443"));
    let mut policy = Policy::public();
    let public = std::mem::take(&mut policy.rules);
    policy.rules = parse_list(&rules.collect::<Vec<String>>().join(",")).unwrap();
    policy.rules.extend(public);
    let engine = PolicyEngine::new(policy, true, HostFacts::default());
    let facts = |address: &str| ConnectionFacts {
        direction: Direction::Egress,
        protocol: Protocol::Tcp,
        address: address.parse().unwrap(),
        port: Some(443),
        names: Vec::new(),
        tls: TlsPeek::Unseen,
    };
    let mut group = criterion.benchmark_group("verdict of 100 rules");
    for (name, address, allowed) in [
        ("first rule", "10.0.0.1", false),
        ("last rule", "10.99.0.1", false),
        ("rule of the profile", "93.184.216.34", true),
    ] {
        let facts = facts(address);
        assert_eq!(engine.verdict(&facts).allows(), allowed, "{name}");
        group.bench_function(name, |bencher| bencher.iter(|| engine.verdict(black_box(&facts))));
    }
    group.finish();
}

criterion_group!(paths, segments, verdicts);
criterion_main!(paths);
