//! A guest whose root means harm: what it costs the host, and that nobody else pays.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::Value;

use crate::support::{Internet, Link, Process, stage, wait_until};

/// Most memory that a guest can make its network's process hold, in KiB, as msb-net(1) states it;
/// without that of open connections, since those of a flood are few at a time.
const BOUND_KIB: u64 = 116 * 1_000_000 / 1024;

/// Offset of the identification of an IPv4 packet in a frame.
const V4_NUMBER: usize = 18;
/// The same of the lower half of that of an IPv6 packet in pieces.
const V6_NUMBER: usize = 60;
/// Offset of the guest's port.
const V4_PORT: usize = 34;
const V6_PORT: usize = 54;

/// Frames, how often they are sent, and where the number of the round stands in them.
type Flood = (Vec<Vec<u8>>, u16, Option<usize>);

/// Two sandboxes: `x`, and `y` that is to be served whatever `x` does.
fn two() -> Internet {
    let internet = Internet::with(&[]);
    let other = ["run", "-d", "--name", "y", "--net", "public", "busybox:test"];
    internet.run(other, b"").done();
    let program = stage("msb-test-guest");
    let program = program.to_str().unwrap();
    internet.run(["cp", program, "y:/guest"], b"").done();
    assert_eq!(networks(&internet).len(), 2);
    internet
}

fn networks(internet: &Internet) -> Vec<Process> {
    let mut networks = internet.home.processes();
    networks.retain(|process| process.name == "msb-net");
    networks
}

#[track_caller]
fn other_is_served(internet: &Internet) {
    let call = ["exec", "-i", "y", "--", "/guest", "call"];
    let attempts = b"tcp 93.184.216.34:8080 6869\nudp 93.184.216.34:8080 6869\n";
    let said = internet.run(call, attempts);
    said.is(0, "answered 6869\nanswered 6869\n", "");
}

/// Both networks are those that were before, and have never held more than they may.
#[track_caller]
fn stayed_within_bounds(internet: &Internet, before: &[Process]) {
    let pids = |processes: &[Process]| -> Vec<i32> {
        processes.iter().map(|process| process.pid).collect()
    };
    let after = networks(internet);
    assert_eq!(pids(&after), pids(before), "one has died");
    for process in after {
        let peak = process.peak_kib().unwrap();
        eprintln!("msb-net {}: {peak} KiB at most", process.pid);
        assert!(peak < BOUND_KIB, "{peak} KiB");
    }
    let stop = ["stop", "--force", "--quiet", "y"];
    internet.run(stop, b"").done();
}

/// While the guest floods, another one is served as before. Gives what the flooded network has
/// logged.
#[track_caller]
fn survives(floods: impl Fn(&Link) -> Vec<Flood>) -> Vec<Value> {
    let internet = two();
    let before = networks(&internet);
    let mut sent = 0;
    for (frames, times, place) in floods(&internet.link) {
        sent += frames.len() as u64 * u64::from(times);
        let flood = internet.sending(&frames, (times, place));
        loop {
            let is_over = flood.is_finished();
            other_is_served(&internet);
            if is_over {
                break;
            }
        }
        flood.join().unwrap().done();
    }
    let events = internet.log_from(0);
    // They came there.
    let metrics = ["metrics", "x", "--format", "json"];
    let metrics: Value = serde_json::from_str(&internet.run(metrics, b"").done()).unwrap();
    assert!(metrics["net_tx_packets"].as_u64() > Some(sent), "{metrics}");
    stayed_within_bounds(&internet, &before);
    events
}

/// Returns the number of events of a type, in a log that may have lost some.
fn count(events: &[Value], kind: &str) -> usize {
    let of_kind = events.iter().filter(|event| event["type"] == kind);
    of_kind.count()
}

/// Addresses of the guest's own network, where it may choose; nobody in the guest knows of these.
fn own(link: &Link, number: u16) -> IpAddr {
    let mut segments = link.v6.segments();
    segments[6] = 0xf10d;
    segments[7] = number;
    Ipv6Addr::from(segments).into()
}

#[test]
fn a_flood_of_calls_stays_within_its_bounds() {
    let events = survives(|link| {
        let (v4, v6) = ("93.184.216.34".parse().unwrap(), "2600::1".parse().unwrap());
        // Of these nobody says that they are not wanted; of those the guest's kernel does.
        let silent = (1..4).map(|number| link.syn_from(own(link, number), v6, 4, 0));
        let known = link.syn(v4, 4, 0);
        vec![(silent.collect(), 20_000, Some(V6_PORT)), (vec![known], 20_000, Some(V4_PORT))]
    });
    // There were as many as there may be.
    assert!(count(&events, "limit") > 0);
}

#[test]
fn a_flood_of_questions_on_the_wire_stays_within_its_bounds() {
    survives(|link| {
        let IpAddr::V4(gateway) = link.gateway else {
            panic!("{link:?}");
        };
        // Of others for the gateway, which are answered, and of the guest for nobody.
        let asked = (0..100).map(|number| link.arp([10, 0, 0, number].into(), gateway));
        let nobody = (0..100).map(|number| link.arp(link.v4, [10, 0, 0, number].into()));
        vec![(asked.chain(nobody).collect(), 400, None)]
    });
}

#[test]
fn a_flood_of_pieces_stays_within_its_bounds() {
    let [v4, other] = [[93, 184, 216, 34], [93, 184, 216, 35]].map(Ipv4Addr::from);
    let v6: Ipv6Addr = "2600::1".parse().unwrap();
    survives(|link| {
        // First pieces, of 60 KB each, whose others never come; and last ones, which end beyond
        // what a packet may be.
        let first = link.pieces(v4, 443, &[1; 65_000], (0, 60_000)).remove(0);
        let mut last = link.pieces(other, 443, &[3; 3000], (0, 1400)).remove(2);
        last[20..22].copy_from_slice(&0x1fff_u16.to_be_bytes());
        let begun = link.begun(v6, 0, &[2; 60_000]);
        vec![(vec![first, last], 2500, Some(V4_NUMBER)), (vec![begun], 2500, Some(V6_NUMBER))]
    });
}

#[test]
fn a_flood_of_datagrams_stays_within_its_bounds() {
    let events = survives(|link| {
        let flow = |address: &str| link.datagram(address.parse().unwrap(), 443, b"flood");
        vec![
            (vec![flow("93.184.216.34")], 15_000, Some(V4_PORT)),
            (vec![flow("2600::1")], 15_000, Some(V6_PORT)),
        ]
    });
    // Flows have made room for others, which need not be all in the log.
    assert!(count(&events, "close") > 0);
}

#[test]
fn a_guest_that_takes_nothing_of_what_it_is_sent_stays_within_its_bounds() {
    /// Each could fill a ring of 1 MiB: together more than there may be.
    const CALLERS: u32 = 120;
    let internet = two();
    let before = networks(&internet);
    let call =
        format!("for caller in $(seq {CALLERS}); do nc 93.184.216.34 5 | sleep 1000 & done; wait");
    internet.run(["exec", "-d", "x", "--", "sh", "-c", &call], b"").done();
    let mut poured = None;
    wait_until("nobody takes any more", || {
        other_is_served(&internet);
        let heard = internet.heard();
        let before = poured.replace(heard.last().cloned());
        let callers = heard.last().filter(|line| line.starts_with("poured"));
        callers.is_some() && before == poured
    });
    stayed_within_bounds(&internet, &before);
}
