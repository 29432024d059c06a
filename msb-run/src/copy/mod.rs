//! Copies: what has files is joined with what takes them.
//!
//! Both speak records ([`msb_wire::file`]): a folder of the host, a guest, and an archive on a standard stream. What a
//! guest says is checked by the reader of records, before anything here sees it. The part that writes to the host takes
//! nothing but an open folder and records.

/// Archives of tar.
mod archive;
/// A guest as a source and a sink of records.
mod guest;
/// Scripts as records.
mod script;

use std::ffi::OsStr;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use msb_wire::client::Connection;
use msb_wire::file::receive::{self, Attributes, CopyError, Destination, Keep, Received};
use msb_wire::file::record::{Record, RecordReader, RecordWriter, Severity, is_name};
use msb_wire::file::send::{self, Sent};
use msb_wire::file::{Direction, FilesRequest};
use msb_wire::text::Text;

use crate::isolate;
use guest::GuestOutput;

/// One end of a copy.
pub(crate) enum End {
    /// A path of the host.
    Host(PathBuf),
    /// A path in a guest.
    Guest(Connection, Text),
    /// An archive on our standard input or output.
    Stream,
}

/// What is kept, and how.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    /// Owners and special permission bits.
    pub(crate) archive: bool,
    /// Extended attributes.
    pub(crate) xattrs: bool,
    /// What the source's link names is meant.
    pub(crate) follow: bool,
    /// The user in the guest.
    pub(crate) user: Option<Text>,
    /// Permission bits that files on the host do not get without `archive`.
    pub(crate) umask: u32,
}

/// Hears of what is not copied.
pub(crate) type Report<'a> = &'a mut (dyn FnMut(Severity, &str) + Send);

/// Copies from one end to the other, of which at least one is a guest.
pub(crate) fn copy(
    source: End,
    destination: End,
    options: &Options,
    report: Report<'_>,
) -> anyhow::Result<Received> {
    match (source, destination) {
        (End::Guest(connection, path), destination) => {
            out_of_guest(connection, path, destination, options, report)
        }
        (source, End::Guest(connection, path)) => {
            into_guest(source, connection, path, options, report).map(without_privileged)
        }
        _ => anyhow::bail!("neither end of the copy is a sandbox"),
    }
}

/// Puts a file or folder of the host into a guest, as what the path says, or `below` it under its own name. A link is
/// followed. Gives whether all of it arrived.
pub(crate) fn put(
    source: &Path,
    connection: Connection,
    path: Text,
    below: bool,
    report: Report<'_>,
) -> anyhow::Result<bool> {
    let mut put = request(Direction::Put, path, &Options::default());
    if below {
        put.name = name_of(source.as_os_str().as_bytes()).map(|name| Text(name.to_vec()));
    }
    send_tree(source, true, false, put, connection, report)
}

/// Writes a script into the folder of scripts, which is made if need be.
pub(crate) fn put_script(connection: Connection, name: &str, body: &[u8]) -> anyhow::Result<()> {
    let put = request(Direction::Put, Text::from("/"), &Options::default());
    let call = guest::open(connection, put)?;
    let mut problem = None;
    let complete = guest::give(
        call,
        &mut |_, text| {
            problem.get_or_insert_with(|| text.to_owned());
        },
        |out, _| script::write(name, body, out).map(|()| true),
    )?;
    if complete {
        return Ok(());
    }
    let problem = problem.unwrap_or_else(|| "it did not arrive".to_owned());
    Err(CopyError::new(problem).into())
}

/// Makes a folder in a guest, or removes what is there.
pub(crate) fn change(
    connection: Connection,
    direction: Direction,
    path: Text,
) -> anyhow::Result<()> {
    let call = guest::open(connection, request(direction, path, &Options::default()))?;
    let mut answers = RecordReader::of_answers(GuestOutput::new(call.reader, call.sender));
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

/// The name under which a source goes below a folder; none when its content is meant (`folder/.`) or it has none (`/`).
fn name_of(path: &[u8]) -> Option<&[u8]> {
    let end = path.iter().rposition(|byte| *byte != b'/')? + 1;
    let begin = path[..end].iter().rposition(|byte| *byte == b'/');
    Some(&path[begin.map_or(0, |slash| slash + 1)..end]).filter(|name| is_name(name))
}

fn request(direction: Direction, path: Text, options: &Options) -> FilesRequest {
    FilesRequest {
        direction,
        path,
        name: None,
        into_folder: false,
        follow: options.follow,
        user: options.user.clone(),
        archive: options.archive,
        xattrs: options.xattrs,
    }
}

/// The result of a copy that writes no files of the host.
fn without_privileged(complete: bool) -> Received {
    Received {
        complete,
        privileged: None,
    }
}

fn out_of_guest(
    connection: Connection,
    path: Text,
    destination: End,
    options: &Options,
    report: Report<'_>,
) -> anyhow::Result<Received> {
    let name = name_of(path.as_bytes()).map(<[u8]>::to_vec);
    // A destination that cannot be is found before the guest is troubled.
    let folder = match &destination {
        End::Host(host) => Some(Destination::open(host, name.as_deref(), false)?),
        _ => None,
    };
    let call = guest::open(connection, request(Direction::Get, path, options))?;
    let mut records = RecordReader::new(GuestOutput::new(call.reader, call.sender));
    let keep = Keep {
        archive: options.archive,
        // The others mean something to the host, and are not for a guest to say.
        attributes: if options.xattrs {
            Attributes::User
        } else {
            Attributes::None
        },
        umask: options.umask,
    };
    match (destination, folder) {
        (End::Guest(connection, path), _) => {
            let mut put = request(Direction::Put, path, options);
            put.name = name.map(Text);
            let sink = guest::open(connection, put)?;
            guest::give(sink, report, |out, report| {
                pass_on(&mut records, out, report)
            })
            .map(without_privileged)
        }
        (_, Some(folder)) => {
            isolate::while_writing(folder.as_fd());
            Ok(receive::tree(&mut records, folder, keep, report)?)
        }
        (_, None) => {
            archive::write(&mut records, name.as_deref(), keep, report).map(without_privileged)
        }
    }
}

fn into_guest(
    source: End,
    connection: Connection,
    path: Text,
    options: &Options,
    report: Report<'_>,
) -> anyhow::Result<bool> {
    let mut put = request(Direction::Put, path, options);
    match source {
        End::Host(host) => {
            put.name = name_of(host.as_os_str().as_bytes()).map(|name| Text(name.to_vec()));
            let (follow, xattrs) = (options.follow, options.xattrs);
            send_tree(&host, follow, xattrs, put, connection, report)
        }
        _ => {
            put.into_folder = true;
            let call = guest::open(connection, put)?;
            guest::give(call, report, archive::read)
        }
    }
}

fn send_tree(
    source: &Path,
    follow: bool,
    xattrs: bool,
    put: FilesRequest,
    connection: Connection,
    report: Report<'_>,
) -> anyhow::Result<bool> {
    let options = send::Options { follow, xattrs };
    let call = guest::open(connection, put)?;
    guest::give(call, report, |out, _| {
        match send::tree(source, options, out)? {
            Sent::All => Ok(true),
            Sent::Part => Ok(false),
            Sent::Nothing(why) => Err(CopyError::new(why).into()),
        }
    })
}

/// From one guest to another: each record is looked at, so that one guest cannot send the other what is none.
fn pass_on<W: Write>(
    records: &mut RecordReader<GuestOutput>,
    out: &mut RecordWriter<W>,
    _: Report<'_>,
) -> anyhow::Result<bool> {
    let mut complete = true;
    loop {
        let record = records.next_record().map_err(CopyError::from)?;
        complete &= !matches!(
            record,
            Record::Problem(Severity::Error, _) | Record::Failed(_)
        );
        out.put(&record)?;
        if matches!(record, Record::Done | Record::Failed(_)) {
            out.flush()?;
            return Ok(complete);
        }
    }
}

/// Names below each other, as a path.
fn join(names: &[Vec<u8>]) -> PathBuf {
    names
        .iter()
        .map(|name| Path::new(OsStr::from_bytes(name)))
        .collect()
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
