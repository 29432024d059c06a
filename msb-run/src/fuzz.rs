//! What untrusted bytes meet, one function a door: any bytes are good, a panic is a bug.
//!
//! Two of the doors are those of the package msb-wire, which is no program; they stand here since this tool puts both
//! between a guest and the host. Every input of `tests/corpus` goes through its door with `cargo test`; `tests/fuzz`
//! looks for new ones with libFuzzer.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use msb_wire::exec::ExecEvent;
use msb_wire::file::receive::{self, Attributes, Destination, Keep};
use msb_wire::file::record::RecordReader;
use msb_wire::frame::{Assembler, Decoder, FrameError, Header, Kind, put_frame};
use msb_wire::handshake::Hello;
use msb_wire::sandbox::Request;

use crate::supervisor::relay;

/// A door, by the name of its folder in `tests/corpus`.
pub(crate) type Door = fn(&[u8]);

/// All of them.
pub(crate) const DOORS: [(&str, Door); 3] = [
    ("frames", frames),
    ("records", records),
    ("relay", relay::tests::door),
];

/// A frame, taken out of the decoder's buffer.
type Taken = (Header, Vec<u8>);

/// The frames of a stream that comes in portions of so many bytes, and what ended it if it is none.
fn decoded(bytes: &[u8], portion: usize) -> (Vec<Taken>, Option<FrameError>) {
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

/// Frames, and the messages in them. The first byte says in which portions they come, which changes nothing; what is
/// taken reads the same when it is written.
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
        let Header {
            stream,
            kind,
            channel,
            flags,
            ..
        } = *header;
        put_frame(&mut written, stream, kind, channel, flags, payload);
        if !kind.is_message() {
            continue;
        }
        if let Ok(Some(message)) = assembler.push(header, payload) {
            understood(kind, &message);
        }
    }
    assert!(bytes.starts_with(&written));
}

/// What is understood of a message is understood of what we would write ourselves.
fn understood(kind: Kind, message: &[u8]) {
    match kind {
        Kind::Hello => {
            if let Ok(hello) = serde_json::from_slice::<Hello>(message) {
                let _ = hello.agree().map_err(|error| error.to_string());
                let _ = hello.require("exec").map_err(|error| error.to_string());
                let again = serde_json::to_vec(&hello).unwrap();
                assert_eq!(serde_json::from_slice::<Hello>(&again).unwrap(), hello);
            }
        }
        Kind::Open => {
            if let Ok(request) = serde_json::from_slice::<Request>(message) {
                assert!(!request.operation().is_empty());
                drop((request.needs(), request.needs_of_agent()));
                let again = serde_json::to_vec(&request).unwrap();
                serde_json::from_slice::<Request>(&again).unwrap();
            }
        }
        _ => drop(serde_json::from_slice::<ExecEvent>(message)),
    }
}

/// Names in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Removes a tree in which folders may forbid it.
fn remove(folder: &Path) {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).unwrap();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            remove(&entry.path());
        } else {
            fs::remove_file(entry.path()).unwrap();
        }
    }
    fs::remove_dir(folder).unwrap();
}

/// A tree that is copied here: whatever is sent, nothing beside it changes, and nothing half-written stays in it.
fn records(bytes: &[u8]) {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let base = std::env::temp_dir().join(format!("msb-door-{}-{number}", std::process::id()));
    let (outside, to) = (base.join("outside"), base.join("to"));
    fs::create_dir_all(&outside).unwrap();
    fs::create_dir(&to).unwrap();
    fs::write(outside.join("canary"), "sings").unwrap();
    let destination = Destination::open(&to, Some(b"tree"), true).unwrap();
    let keep = Keep {
        archive: false,
        attributes: Attributes::User,
        umask: 0o022,
    };
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
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
        for (name, door) in DOORS {
            let mut count = 0;
            for input in fs::read_dir(corpus.join(name)).unwrap() {
                door(&fs::read(input.unwrap().path()).unwrap());
                count += 1;
            }
            assert!(count >= 10, "{name}: {count} inputs");
        }
    }
}
