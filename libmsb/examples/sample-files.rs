//! Creates sample files of sandboxes that do not exist, for tests/bench/metrics, and updates them
//! with the real writer.
//!
//! usage: sample-files HOME COUNT SECONDS

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a program for one measurement")]

use std::path::Path;
use std::time::{Duration, Instant};

use libmsb::samples::{Field, FieldSlot, NetField, NetWriter, SampleWriter, boot_ns, unix_ns};
use libmsb::state::Home;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let home = Home::at(Path::new(&args[1]));
    let count: u64 = args[2].parse().unwrap();
    let end = Instant::now() + Duration::from_secs(args[3].parse().unwrap());
    let mut writers: Vec<(SampleWriter, NetWriter)> = (0..count)
        .map(|number| {
            let name = format!("sandbox-{number:04}").parse().unwrap();
            let path = home.samples(&name);
            let writer = SampleWriter::create(&path, |values| {
                Field::ALL[4..].iter().for_each(|field| values.set(*field, 1000));
                values.set(Field::StartedUnixNs, unix_ns());
                values.set(Field::StartedBootNs, boot_ns());
                values.set(Field::SandboxId, number);
            })
            .unwrap();
            let net = NetWriter::from_fd(writer.net_descriptor().unwrap()).unwrap();
            (writer, net)
        })
        .collect();
    println!("ready");
    while Instant::now() < end {
        for (writer, net) in &mut writers {
            net.counters().add(NetField::TxBytes, 1500);
            net.publish();
            writer.update(|values| {
                values.add(Field::VcpuNs, 1_000_000);
                values.set(Field::GuestAtNs, boot_ns());
            });
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}
