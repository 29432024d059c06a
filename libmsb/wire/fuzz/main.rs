//! Fuzz targets of msb-wire: the parsers between a guest and the host. Any input is valid; a panic
//! is a bug.

#![cfg_attr(fuzzing, no_main)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by a panic"
)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use msb_wire::exec::ExecEvent;
use msb_wire::file::receive::{self, Destination, PreserveOptions, XattrScope};
use msb_wire::file::record::RecordReader;
use msb_wire::frame::{Assembler, Decoder, FrameError, FrameHeader, FrameKind, put_frame};
use msb_wire::handshake::Hello;
use msb_wire::sandbox::Request;

msb_test_fuzz::fuzz_targets! {
    "frames" => frames,
    "records" => records,
}

/// A frame, copied out of the decoder's buffer.
type DecodedFrame = (FrameHeader, Vec<u8>);

/// Decodes the frames of a stream that arrives in portions of `portion` bytes. Returns them with
/// the error that ended the stream.
fn decoded(bytes: &[u8], portion: usize) -> (Vec<DecodedFrame>, Option<FrameError>) {
    let (mut decoder, mut taken) = (Decoder::new(), Vec::new());
    for part in bytes.chunks(portion) {
        let mut source = part;
        while decoder.fill(&mut source).unwrap() > 0 {
            loop {
                match decoder.next_frame() {
                    Ok(Some(frame)) => taken.push((frame.header, frame.payload().to_vec())),
                    Ok(None) => break,
                    Err(error) => return (taken, Some(error)),
                }
            }
        }
    }
    (taken, None)
}

/// Decodes frames and the messages in them. The first byte selects the portion size, which must not
/// change the result. Encoding the decoded frames gives the same bytes.
fn frames(bytes: &[u8]) {
    let Some((portion, bytes)) = bytes.split_first() else {
        return;
    };
    let whole = decoded(bytes, bytes.len().max(1));
    assert_eq!(decoded(bytes, usize::from(*portion) + 1), whole);
    let mut written = Vec::new();
    let mut assembler = Assembler::new();
    for (header, payload) in &whole.0 {
        assert_eq!(header.length, payload.len());
        let FrameHeader { stream, kind, channel, flags, .. } = *header;
        put_frame(&mut written, stream, kind, channel, flags, payload);
        if !kind.is_message() {
            continue;
        }
        if let Ok(Some(message)) = assembler.push(header, payload) {
            check_round_trip(kind, &message);
        }
    }
    assert!(bytes.starts_with(&written));
}

/// Checks that a parsed message survives a round trip through the encoder.
fn check_round_trip(kind: FrameKind, message: &[u8]) {
    match kind {
        FrameKind::Hello => {
            if let Ok(hello) = serde_json::from_slice::<Hello>(message) {
                let _ = hello.negotiate().map_err(|error| error.to_string());
                let _ = hello.require("exec").map_err(|error| error.to_string());
                let again = serde_json::to_vec(&hello).unwrap();
                assert_eq!(serde_json::from_slice::<Hello>(&again).unwrap(), hello);
            }
        }
        FrameKind::Open => {
            if let Ok(request) = serde_json::from_slice::<Request>(message) {
                assert!(!request.operation().is_empty());
                drop((request.supervisor_operations(), request.agent_operations()));
                let again = serde_json::to_vec(&request).unwrap();
                serde_json::from_slice::<Request>(&again).unwrap();
            }
        }
        _ => drop(serde_json::from_slice::<ExecEvent>(message)),
    }
}

/// Returns the names in a directory, sorted.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Removes a tree whose directories may be read-only.
fn remove(directory: &Path) {
    fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).unwrap();
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            remove(&entry.path());
        } else {
            fs::remove_file(entry.path()).unwrap();
        }
    }
    fs::remove_dir(directory).unwrap();
}

/// Receives a copied tree. For any input, nothing outside the tree changes, and no partial file
/// stays in it.
fn records(bytes: &[u8]) {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let base = std::env::temp_dir().join(format!("msb-fuzz-{}-{number}", std::process::id()));
    let (outside, to) = (base.join("outside"), base.join("to"));
    fs::create_dir_all(&outside).unwrap();
    fs::create_dir(&to).unwrap();
    fs::write(outside.join("canary"), "sings").unwrap();
    let destination = Destination::open(&to, Some(b"tree"), true).unwrap();
    let keep = PreserveOptions { archive: false, attributes: XattrScope::User, umask: 0o022 };
    let mut reader = RecordReader::new(bytes);
    let taken = receive::tree(&mut reader, destination, keep, &mut |_, _| {});
    let _ = taken.map_err(|error| error.to_string());
    assert_eq!(names(&base), ["outside", "to"]);
    assert!(names(&to).iter().all(|name| name == "tree"));
    assert_eq!(names(&outside), ["canary"]);
    let canary = fs::metadata(outside.join("canary")).unwrap();
    assert_eq!((canary.nlink(), canary.len()), (1, 5));
    remove(&base);
}
