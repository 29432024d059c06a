//! What untrusted bytes meet, one function a door: any bytes are good, a panic is a bug.
//!
//! Every input of `tests/corpus` goes through its door with `cargo test`; `tests/fuzz` looks for new ones with libFuzzer.

use std::net::IpAddr;

use jiff::Timestamp;

use crate::authorized::{Entry, parse, parse_line};

/// A door, by the name of its folder in `tests/corpus`.
pub(crate) type Door = fn(&[u8]);

/// All of them.
pub(crate) const DOORS: [(&str, Door); 1] = [("authorized-keys", authorized_keys)];

/// A file of authorized keys: each line is an entry or a reason, whatever the others are, and an entry says the same when
/// its options are written before its key again.
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

fn use_entry(entry: &Entry) {
    let sources: [IpAddr; 2] = [[10, 0, 0, 1].into(), [0xfe80, 0, 0, 0, 0, 0, 0, 1].into()];
    for source in sources {
        let _ = entry.grant.counts(Some(source), Timestamp::UNIX_EPOCH);
    }
    assert!(entry.grant.forwarding || !entry.grant.permits("localhost", 80));
    let key = entry.key.to_openssh().unwrap();
    let again = format!("{} {key}", entry.options);
    assert_eq!(parse_line(again.trim_start()).unwrap().grant, entry.grant);
}

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    static DOOR: std::sync::LazyLock<Door> = std::sync::LazyLock::new(|| {
        let name = std::env::var("MSB_FUZZ").expect("MSB_FUZZ names a door");
        let found = DOORS.iter().find(|(door, _)| *door == name);
        found.expect("MSB_FUZZ names none of the doors").1
    });
    DOOR(bytes);
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_input_of_the_corpus_goes_through_its_door() {
        let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
        for (name, door) in DOORS {
            let mut count = 0;
            for input in std::fs::read_dir(corpus.join(name)).unwrap() {
                door(&std::fs::read(input.unwrap().path()).unwrap());
                count += 1;
            }
            assert!(count >= 10, "{name}: {count} inputs");
        }
    }
}
