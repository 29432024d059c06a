//! msb-net under load, with a network namespace as its guest: real programs, and a real kernel's
//! TCP. See tests/bench/net-load, which makes the namespaces and says what it expects; by hand it
//! does more of each.

use std::process::Command;

use crate::support::{shown, stage};

/// Runs one kind of load to its end.
fn load(kind: &str, size: usize) {
    let output = Command::new(stage("net-load"))
        .args(["--size", &size.to_string(), kind])
        .arg(stage("load"))
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", shown(&said));
}

#[test]
fn a_stream_each_way_arrives_byte_for_byte() {
    load("clean", 256_000_000);
}

#[test]
fn bytes_arrive_over_a_wire_that_loses_frames_and_changes_their_order() {
    load("lossy", 10_000_000);
}

#[test]
fn bytes_arrive_through_the_smallest_windows() {
    load("tiny", 4_000_000);
}

#[test]
fn readers_that_stand_still_stall_nobody_else() {
    load("stalled", 400);
}

#[test]
fn nothing_is_left_of_short_connections() {
    load("short", 5000);
}

#[test]
fn nothing_is_left_of_connections_that_were_half_closed() {
    load("half-closed", 1000);
}

#[test]
fn an_address_that_the_host_gets_later_is_the_hosts() {
    load("new-address", 0);
}
