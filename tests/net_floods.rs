//! A guest whose root means harm: what it costs the host, and that nobody else pays.

use std::net::{IpAddr, Ipv6Addr};

use serde_json::Value;

use crate::support::{Internet, Link, Process, stage};

/// What a guest can make its network's process hold, in KiB: all of msb-net/src/limits.rs together (rings 64 MiB, pieces 4,
/// frames 1.5, connections and flows under 7), and the program itself.
const BOUND_KIB: u64 = (64 + 4 + 2 + 7 + 19) * 1024;

fn networks(internet: &Internet) -> Vec<Process> {
    let mut networks = internet.home.processes();
    networks.retain(|process| process.name == "msb-net");
    networks
}

/// While the guest floods, another one is served as before; afterwards both networks are those that were, within bounds. Gives
/// what the flooded one has logged.
#[track_caller]
fn survives(floods: impl Fn(&Link) -> Vec<(Vec<Vec<u8>>, u32)>) -> Vec<Value> {
    let internet = Internet::with(&[]);
    let other = [
        "run",
        "-d",
        "--name",
        "y",
        "--net",
        "public",
        "busybox:test",
    ];
    internet.run(other, b"").done();
    let program = stage("msb-test-guest");
    let program = program.to_str().unwrap();
    internet.run(["cp", program, "y:/guest"], b"").done();
    let before: Vec<i32> = networks(&internet)
        .iter()
        .map(|process| process.pid)
        .collect();
    assert_eq!(before.len(), 2);
    let call = ["exec", "-i", "y", "--", "/guest", "call"];
    let attempt = b"tcp 93.184.216.34:8080 6869\nudp 93.184.216.34:8080 6869\n";
    let mut sent = 0;
    for (frames, times) in floods(&internet.link) {
        sent += frames.len() as u64 * u64::from(times);
        let flood = internet.sending(&frames, times);
        loop {
            let is_over = flood.is_finished();
            internet
                .run(call, attempt)
                .is(0, "answered 6869\nanswered 6869\n", "");
            if is_over {
                break;
            }
        }
        flood.join().unwrap().done();
    }
    let events = internet.log_from(0);
    let metrics = internet
        .run(["metrics", "x", "--format", "json"], b"")
        .done();
    let metrics: Value = serde_json::from_str(&metrics).unwrap();
    assert!(metrics["net_tx_packets"].as_u64() > Some(sent), "{metrics}");
    let after = networks(&internet);
    let pids: Vec<i32> = after.iter().map(|process| process.pid).collect();
    assert_eq!(pids, before, "one has died");
    for process in after {
        let peak = process.peak_kib().unwrap();
        eprintln!("msb-net {}: {peak} KiB at most", process.pid);
        assert!(peak < BOUND_KIB, "{peak} KiB");
    }
    internet
        .run(["stop", "--force", "--quiet", "y"], b"")
        .done();
    events
}

/// How many events there are of a type, in a log that may have lost some.
fn count(events: &[Value], kind: &str) -> usize {
    events.iter().filter(|event| event["type"] == kind).count()
}

/// An address of the guest's own network, where it may choose.
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
        // Nobody in the guest knows of these, and nobody says so to who answers.
        let silent =
            (0..20_000).map(|number| link.syn_from(own(link, number), v6, 4, 1024 + number));
        let known = (0..20_000).map(|number| link.syn(v4, 4, 1024 + number));
        vec![(silent.collect(), 3), (known.collect(), 1)]
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
        let asked = (0..2000u16).map(|number| {
            let [high, low] = number.to_be_bytes();
            link.arp([10, 0, high, low].into(), gateway)
        });
        let nobody = (0..2000u16).map(|number| {
            let [high, low] = number.to_be_bytes();
            link.arp(link.v4, [10, 0, high, low].into())
        });
        vec![(asked.chain(nobody).collect(), 20)]
    });
}

#[test]
fn a_flood_of_pieces_and_of_datagrams_stays_within_its_bounds() {
    let events = survives(|link| {
        let [v4, other] = [[93, 184, 216, 34], [93, 184, 216, 35]].map(std::net::Ipv4Addr::from);
        let v6 = "2600::1".parse().unwrap();
        let mut begun = Vec::new();
        for number in 0..2000 {
            // The first piece of each; and the last ones, which end beyond what a packet may be.
            begun.push(link.pieces(v4, 443, &[1; 2800], (number, 1400)).remove(0));
            begun.push(link.begun(v6, number.into(), &[2; 1200]));
            let mut last = link
                .pieces(other, 443, &[3; 65_000], (number, 1400))
                .pop()
                .unwrap();
            // Its place becomes the last that there is.
            last[20..22].copy_from_slice(&0x1fff_u16.to_be_bytes());
            begun.push(last);
        }
        let flows = (0..10_000u16).map(|port| link.datagram(v4.into(), 1024 + port, b"flood"));
        vec![(begun, 5), (flows.collect(), 2)]
    });
    // Flows have made room for others, which need not be all in the log.
    assert!(count(&events, "close") > 0);
}
