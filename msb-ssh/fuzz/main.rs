//! Fuzz targets of msb-ssh: parsers of untrusted bytes. Any input is valid; a panic is a bug.

#![cfg_attr(fuzzing, no_main)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by a panic"
)]

use std::net::IpAddr;

use jiff::Timestamp;

use msb_ssh::authorized::{AuthorizedKey, parse, parse_line};

msb_test_fuzz::fuzz_targets! { "authorized-keys" => authorized_keys }

/// Parses an authorized_keys file. Each line gives an entry or an error, independent of the others,
/// and an entry parses to the same grant when its options are written before its key again.
fn authorized_keys(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let lines = text.lines().count();
    let mut last = 0;
    for (number, entry) in parse(&text) {
        assert!(last < number && number <= lines);
        last = number;
        match entry {
            Ok(entry) => use_entry(&entry),
            Err(why) => assert!(!why.to_string().is_empty()),
        }
    }
}

fn use_entry(entry: &AuthorizedKey) {
    let sources: [IpAddr; 2] = [[10, 0, 0, 1].into(), [0xfe80, 0, 0, 0, 0, 0, 0, 1].into()];
    for source in sources {
        let _ = entry.grant.counts(Some(source), Timestamp::UNIX_EPOCH);
    }
    assert!(entry.grant.forwarding || !entry.grant.permits("localhost", 80));
    let key = entry.key.to_openssh().unwrap();
    let again = format!("{} {key}", entry.options);
    assert_eq!(parse_line(again.trim_start()).unwrap().grant, entry.grant);
}
