//! File copies between the host, a guest and a tar archive.
//!
//! All of them exchange records ([`msb_wire::file`]). The record reader checks the records of a
//! guest before any other code sees them. The code that writes to the host gets only an open
//! directory and records.

/// tar archives.
mod archive;
/// The guest as a source and a sink of records.
mod guest;
/// Warnings.
mod reporter;
/// Single files and links as records.
mod single_file;

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use msb_wire::client::ClientConnection;
use msb_wire::file::receive::{
    self, CopyError, Destination, PreserveOptions, ReceiveReport, XattrScope,
};
use msb_wire::file::record::{Record, RecordReader, RecordWriter, Severity, is_name};
use msb_wire::file::send::{self, SendReport};
use msb_wire::file::{Direction, FilesRequest};
use msb_wire::text::Text;

use crate::isolate;
use guest::GuestOutput;
use reporter::CopyReporter;

/// One end of a copy.
pub(crate) enum CopyEnd {
    /// A path of the host.
    Host(PathBuf),
    /// A path in a guest.
    Guest(ClientConnection, Text),
    /// An archive on standard input or output.
    Stream,
}

/// Attributes that a copy keeps, and how it finds its source.
#[derive(Clone, Debug, Default)]
pub(crate) struct CopyOptions {
    /// Owners and special permission bits.
    pub(crate) archive: bool,
    /// Extended attributes.
    pub(crate) xattrs: bool,
    /// Set to copy the target of a source that is a symbolic link.
    pub(crate) follow: bool,
    /// User in the guest.
    pub(crate) user: Option<Text>,
    /// Permission bits that files on the host do not get without `archive`.
    pub(crate) umask: u32,
}

/// Options of a change of a guest before its first boot.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PutOptions {
    /// Permission bits, instead of those of the source.
    pub(crate) mode: Option<u32>,
    /// True if the path must not exist.
    pub(crate) exclusive: bool,
}

/// Copies from one end to the other. At least one of them is a guest.
pub(crate) fn copy(
    source: CopyEnd,
    destination: CopyEnd,
    options: &CopyOptions,
    report: CopyReporter<'_>,
) -> anyhow::Result<ReceiveReport> {
    match (source, destination) {
        (CopyEnd::Guest(connection, path), destination) => {
            copy_from_guest(connection, path, destination, options, report)
        }
        (source, CopyEnd::Guest(connection, path)) => {
            copy_into_guest(source, connection, path, options, report).map(receive_report)
        }
        _ => anyhow::bail!("neither end of the copy is in a sandbox"),
    }
}

/// Copies a file or directory of the host into a guest, to `path`, or below it under its own name
/// if `below`. Follows a symbolic link. Returns whether everything arrived.
pub(crate) fn put_tree(
    source: &Path,
    connection: ClientConnection,
    (path, below): (Text, bool),
    options: PutOptions,
    report: CopyReporter<'_>,
) -> anyhow::Result<bool> {
    let mut put = put_request(path, options);
    if below {
        put.name = name_of(source.as_os_str().as_bytes()).map(|name| Text(name.to_vec()));
    }
    send_tree(source, true, false, put, connection, report)
}

/// Writes a script into the guest's script directory, which is created if missing.
pub(crate) fn put_script(
    connection: ClientConnection,
    name: &str,
    body: &[u8],
) -> anyhow::Result<()> {
    let put = put_request(Text::from("/"), PutOptions::default());
    send_single(connection, put, |out| single_file::write_script(name, body, out))
}

/// Writes a file of a guest, with the mode 0644 by default.
pub(crate) fn put_file(
    connection: ClientConnection,
    path: &Text,
    body: &[u8],
    options: PutOptions,
) -> anyhow::Result<()> {
    let put = put_request(path.clone(), options);
    send_single(connection, put, |out| single_file::write_file(body, out))
}

/// Creates a symbolic link in a guest.
pub(crate) fn put_link(
    connection: ClientConnection,
    path: &Text,
    target: &[u8],
    options: PutOptions,
) -> anyhow::Result<()> {
    let put = put_request(path.clone(), options);
    send_single(connection, put, |out| single_file::write_link(target, out))
}

/// Appends to a file of a guest, which must exist.
pub(crate) fn append(connection: ClientConnection, path: &Text, body: &[u8]) -> anyhow::Result<()> {
    let append = request(Direction::Append, path.clone(), &CopyOptions::default());
    send_single(connection, append, |out| single_file::write_file(body, out))
}

fn put_request(path: Text, options: PutOptions) -> FilesRequest {
    FilesRequest {
        mode: options.mode,
        exclusive: options.exclusive,
        ..request(Direction::Put, path, &CopyOptions::default())
    }
}

/// Sends the records that `fill` writes. Fails with the first problem that the guest reports.
fn send_single(
    connection: ClientConnection,
    put: FilesRequest,
    fill: impl FnOnce(&mut RecordWriter<guest::GuestInput>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let call = guest::open(connection, put)?;
    let mut problem = None;
    let complete = guest::send_records(
        call,
        &mut |_, text| {
            problem.get_or_insert_with(|| text.to_owned());
        },
        |out, _| fill(out).map(|()| true),
    )?;
    if complete {
        return Ok(());
    }
    let problem = problem.unwrap_or_else(|| "the copy is incomplete".to_owned());
    Err(CopyError::new(problem).into())
}

/// Creates a directory in a guest, or removes a file or directory.
pub(crate) fn make_or_remove(
    connection: ClientConnection,
    direction: Direction,
    path: Text,
    mode: Option<u32>,
) -> anyhow::Result<()> {
    let request = FilesRequest { mode, ..request(direction, path, &CopyOptions::default()) };
    let call = guest::open(connection, request)?;
    let mut answers = RecordReader::for_replies(GuestOutput::new(call.reader, call.sender));
    loop {
        match answers.next_record().map_err(CopyError::from)? {
            Record::Done => return Ok(()),
            Record::Failed(why) => {
                return Err(CopyError::new(format!("in the guest: {why}")).into());
            }
            _ => {}
        }
    }
}

/// Returns the name of a source below a directory. Returns `None` for the content of a directory
/// (`directory/.`) and for `/`.
fn name_of(path: &[u8]) -> Option<&[u8]> {
    let end = path.iter().rposition(|byte| *byte != b'/')? + 1;
    let start = path[..end].iter().rposition(|byte| *byte == b'/');
    Some(&path[start.map_or(0, |slash| slash + 1)..end]).filter(|name| is_name(name))
}

fn request(direction: Direction, path: Text, options: &CopyOptions) -> FilesRequest {
    FilesRequest {
        direction,
        path,
        name: None,
        into_directory: false,
        follow: options.follow,
        user: options.user.clone(),
        archive: options.archive,
        xattrs: options.xattrs,
        exclusive: false,
        mode: None,
    }
}

/// Returns the result of a copy that writes no files of the host.
fn receive_report(complete: bool) -> ReceiveReport {
    ReceiveReport { complete, privileged: None }
}

fn copy_from_guest(
    connection: ClientConnection,
    path: Text,
    destination: CopyEnd,
    options: &CopyOptions,
    report: CopyReporter<'_>,
) -> anyhow::Result<ReceiveReport> {
    let name = name_of(path.as_bytes()).map(<[u8]>::to_vec);
    // Check the destination before the guest is involved.
    let directory = match &destination {
        CopyEnd::Host(host) => Some(Destination::open(host, name.as_deref(), false)?),
        _ => None,
    };
    let call = guest::open(connection, request(Direction::Get, path, options))?;
    let mut records = RecordReader::new(GuestOutput::new(call.reader, call.sender));
    let keep = PreserveOptions {
        archive: options.archive,
        // Other attributes have a meaning for the host, and a guest must not set them.
        attributes: if options.xattrs { XattrScope::User } else { XattrScope::None },
        umask: options.umask,
    };
    match (destination, directory) {
        (CopyEnd::Guest(connection, path), _) => {
            let mut put = request(Direction::Put, path, options);
            put.name = name.map(Text);
            let sink = guest::open(connection, put)?;
            guest::send_records(sink, report, |out, report| {
                relay_records(&mut records, out, report)
            })
            .map(receive_report)
        }
        (_, Some(directory)) => {
            isolate::confine_copy(directory.as_fd());
            Ok(receive::tree(&mut records, directory, keep, report)?)
        }
        (_, None) => {
            archive::write(&mut records, name.as_deref(), keep, report).map(receive_report)
        }
    }
}

fn copy_into_guest(
    source: CopyEnd,
    connection: ClientConnection,
    path: Text,
    options: &CopyOptions,
    report: CopyReporter<'_>,
) -> anyhow::Result<bool> {
    let mut put = request(Direction::Put, path, options);
    match source {
        CopyEnd::Host(host) => {
            put.name = name_of(host.as_os_str().as_bytes()).map(|name| Text(name.to_vec()));
            let (follow, xattrs) = (options.follow, options.xattrs);
            send_tree(&host, follow, xattrs, put, connection, report)
        }
        _ => {
            put.into_directory = true;
            let call = guest::open(connection, put)?;
            guest::send_records(call, report, archive::read)
        }
    }
}

fn send_tree(
    source: &Path,
    follow: bool,
    xattrs: bool,
    put: FilesRequest,
    connection: ClientConnection,
    report: CopyReporter<'_>,
) -> anyhow::Result<bool> {
    let options = send::SendOptions { follow, xattrs };
    let call = guest::open(connection, put)?;
    guest::send_records(call, report, |out, _| match send::tree(source, options, out)? {
        SendReport::All => Ok(true),
        SendReport::Partial => Ok(false),
        SendReport::Nothing(why) => Err(CopyError::new(why).into()),
    })
}

/// Copies records from one guest to another. Each record is parsed, so that one guest cannot send
/// invalid records to the other.
fn relay_records<W: Write>(
    records: &mut RecordReader<GuestOutput>,
    out: &mut RecordWriter<W>,
    _: CopyReporter<'_>,
) -> anyhow::Result<bool> {
    let mut complete = true;
    loop {
        let record = records.next_record().map_err(CopyError::from)?;
        complete &= !matches!(record, Record::Problem(Severity::Error, _) | Record::Failed(_));
        out.put(&record)?;
        if matches!(record, Record::Done | Record::Failed(_)) {
            out.flush()?;
            return Ok(complete);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_has_the_name_of_its_last_part_unless_its_content_is_meant() {
        for (path, name) in [
            ("/etc", Some("etc")),
            ("/etc/", Some("etc")),
            ("a/b//", Some("b")),
            ("file", Some("file")),
            ("/etc/.", None),
            ("/etc/./", None),
            (".", None),
            ("..", None),
            ("a/..", None),
            ("/", None),
            ("", None),
        ] {
            let found = name_of(path.as_bytes()).map(String::from_utf8_lossy);
            assert_eq!(found.as_deref(), name, "{path}");
        }
    }
}
