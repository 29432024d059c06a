//! Single files and links as records, from bytes in memory.

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use msb_wire::file::record::{DirectoryMeta, EntryMeta, Record, RecordWriter};
use msb_wire::guest::SCRIPTS;

/// Mode of scripts and of their directories.
const SCRIPT_MODE: u32 = 0o755;
/// Mode of other files.
const FILE_MODE: u32 = 0o644;
/// Mode of symbolic links.
const LINK_MODE: u32 = 0o777;

/// Writes the records of one script: the directories above it, and its file.
pub(super) fn write_script<W: Write>(
    name: &str,
    body: &[u8],
    out: &mut RecordWriter<W>,
) -> anyhow::Result<()> {
    let directories = SCRIPTS.split('/');
    for directory in directories.clone() {
        out.put(&Record::Directory(meta(directory, SCRIPT_MODE), DirectoryMeta::Known))?;
    }
    put_body(meta(name, SCRIPT_MODE), body, out)?;
    for _ in directories {
        out.put(&Record::DirectoryEnd)?;
    }
    end(out)
}

/// Writes the records of one file.
pub(super) fn write_file<W: Write>(body: &[u8], out: &mut RecordWriter<W>) -> anyhow::Result<()> {
    put_body(meta("", FILE_MODE), body, out)?;
    end(out)
}

/// Writes the records of one symbolic link.
pub(super) fn write_link<W: Write>(target: &[u8], out: &mut RecordWriter<W>) -> anyhow::Result<()> {
    out.put(&Record::Link(meta("", LINK_MODE), target.to_vec()))?;
    end(out)
}

fn meta(name: &str, mode: u32) -> EntryMeta {
    let mtime_s = SystemTime::now().duration_since(UNIX_EPOCH);
    let mtime_s = mtime_s.map_or(0, |time| time.as_secs() as i64);
    EntryMeta { name: name.as_bytes().to_vec(), mode, mtime_s, ..EntryMeta::default() }
}

fn put_body<W: Write>(
    meta: EntryMeta,
    body: &[u8],
    out: &mut RecordWriter<W>,
) -> anyhow::Result<()> {
    out.put(&Record::File { meta, size: body.len() as u64, linked: false })?;
    let mut rest = body;
    while !rest.is_empty() {
        let count = out.put_data(rest.len(), |room| {
            let count = room.len().min(rest.len());
            room[..count].copy_from_slice(&rest[..count]);
            Ok(count)
        })?;
        rest = &rest[count..];
    }
    Ok(())
}

fn end<W: Write>(out: &mut RecordWriter<W>) -> anyhow::Result<()> {
    out.put(&Record::Done)?;
    Ok(out.flush()?)
}
