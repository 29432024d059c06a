//! Scripts as records: the way down to their folder, and the file.

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use msb_wire::file::record::{Existing, Meta, Record, RecordWriter};
use msb_wire::guest::SCRIPTS;

/// Writes one script to its last record.
pub(super) fn write<W: Write>(
    name: &str,
    body: &[u8],
    out: &mut RecordWriter<W>,
) -> anyhow::Result<()> {
    let mtime_s = SystemTime::now().duration_since(UNIX_EPOCH);
    let mtime_s = mtime_s.map_or(0, |time| time.as_secs() as i64);
    let meta = |name: &str| Meta {
        name: name.as_bytes().to_vec(),
        mode: 0o755,
        mtime_s,
        ..Meta::default()
    };
    let folders = SCRIPTS.split('/');
    for folder in folders.clone() {
        out.put(&Record::Folder(meta(folder), Existing::Known))?;
    }
    out.put(&Record::File {
        meta: meta(name),
        size: body.len() as u64,
        linked: false,
    })?;
    let mut rest = body;
    while !rest.is_empty() {
        let count = out.put_data(rest.len(), |room| {
            let count = room.len().min(rest.len());
            room[..count].copy_from_slice(&rest[..count]);
            Ok(count)
        })?;
        rest = &rest[count..];
    }
    for _ in folders {
        out.put(&Record::Up)?;
    }
    out.put(&Record::Done)?;
    Ok(out.flush()?)
}
