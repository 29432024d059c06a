//! Copies into the guest and out of it.
//!
//! A copy waits for disks and follows no link, but it may take long and walks through what others have made. So it is
//! done by a process of its own: this program once more, whose standard input and output are the stream.

use std::ffi::{CStr, CString, OsStr, c_int};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use msb_wire::exec::FailureKind;
use msb_wire::file::receive::{self, Attributes, CopyError, Destination, Keep};
use msb_wire::file::record::{Record, RecordReader, RecordWriter, Severity};
use msb_wire::file::send;
use msb_wire::file::{Direction, FilesRequest};
use msb_wire::frame::STDOUT;
use msb_wire::guest::Security;
use msb_wire::text::Text;
use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Pid, umask};

use crate::exec::{Refusal, input, no_descriptors, output, unknown};
use crate::session::Session;
use crate::spawn::{Plan, Refused, Spawner};
use crate::{change, console, sys, users};

/// First argument of the process for a copy. The second one is the request in JSON.
pub(crate) const ARGUMENT: &str = "files";

/// This program, wherever it lies by now.
const OURSELVES: &CStr = c"/proc/self/exe";

/// Starts a copy.
pub(crate) fn start(
    stream: u32,
    request: &FilesRequest,
    spawner: &mut Spawner,
) -> Result<(Session, Pid), Refusal> {
    let user = request.user.as_ref().map(Text::as_bytes);
    let account = users::find(user.unwrap_or_default()).map_err(unknown)?;
    let json = serde_json::to_vec(request).ok();
    let json = json.and_then(|json| CString::new(json).ok());
    let json =
        json.ok_or_else(|| Refusal::new(FailureKind::BadArgs, "the request cannot be passed on"))?;
    let none = |error| no_descriptors("a pipe", error);
    let (theirs_in, ours_in) =
        input(request.direction == Direction::Put, account.uid).map_err(none)?;
    let (ours_out, theirs_out) = output(account.uid).map_err(none)?;
    let nowhere =
        open("/dev/null", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).map_err(none)?;
    let plan = Plan {
        programs: &[OURSELVES.to_owned()],
        argv: &[c"msb-agent".to_owned(), c"files".to_owned(), json],
        env: &[],
        cwd: c"/",
        stdio: [theirs_in.as_fd(), theirs_out.as_fd(), nowhere.as_fd()],
        terminal: false,
        limits: &[],
        uid: account.uid,
        gid: account.gid,
        groups: &account.groups,
        // It is ours: it starts nothing.
        security: Security::Default,
        init: false,
    };
    let pid = spawner.start(&plan).map_err(not_started)?;
    let session = Session::on_pipes(stream, pid, ours_in, vec![(STDOUT, ours_out)]);
    Ok((session.that_ends_by_itself(), pid))
}

fn not_started(refused: Refused) -> Refusal {
    let why = console::reason(refused.error);
    Refusal::new(
        FailureKind::ResourceLimit,
        format!("cannot start a process for the copy: {why}"),
    )
}

/// The life of the process for a copy.
pub(crate) fn serve(request: Option<&str>) -> c_int {
    sys::ignore_broken_pipes();
    umask(Mode::from_raw_mode(0o022));
    let Some(request) = request.and_then(|json| serde_json::from_str(json).ok()) else {
        return 2;
    };
    let served = match request {
        FilesRequest {
            direction: Direction::Get,
            ..
        } => get(&request),
        FilesRequest {
            direction: Direction::Put,
            ..
        } => put(&request),
        FilesRequest {
            direction: Direction::MakeFolder,
            ..
        } => answer(change::make_folder(path(&request.path))),
        FilesRequest {
            direction: Direction::Remove,
            ..
        } => answer(change::remove(path(&request.path))),
    };
    c_int::from(served.is_err())
}

fn path(text: &Text) -> &Path {
    Path::new(OsStr::from_bytes(text.as_bytes()))
}

fn get(request: &FilesRequest) -> io::Result<()> {
    let options = send::Options {
        follow: request.follow,
        xattrs: request.xattrs,
    };
    let mut out = RecordWriter::new(Descriptor(rustix::stdio::stdout()));
    send::tree(path(&request.path), options, &mut out).map(drop)
}

fn put(request: &FilesRequest) -> io::Result<()> {
    let mut out = RecordWriter::new(Descriptor(rustix::stdio::stdout()));
    let received = take(request, &mut |severity, text| {
        // Whom nobody hears goes on: the end of the input will tell.
        let _ = out.put(&Record::Problem(severity, text.to_owned()));
        let _ = out.flush();
    });
    match received {
        Ok(()) => out.put(&Record::Done)?,
        Err(error) => out.put(&Record::Failed(error.to_string()))?,
    }
    out.flush()
}

/// The answer to a change that brings no files.
fn answer(changed: Result<(), String>) -> io::Result<()> {
    let mut out = RecordWriter::new(Descriptor(rustix::stdio::stdout()));
    match changed {
        Ok(()) => out.put(&Record::Done)?,
        Err(why) => out.put(&Record::Failed(why))?,
    }
    out.flush()
}

fn take(request: &FilesRequest, report: &mut dyn FnMut(Severity, &str)) -> Result<(), CopyError> {
    let keep = Keep {
        archive: request.archive,
        attributes: if request.xattrs {
            Attributes::All
        } else {
            Attributes::None
        },
        // The modes are those that the caller's files have.
        umask: 0,
    };
    let name = request.name.as_ref().map(Text::as_bytes);
    let destination = Destination::open(path(&request.path), name, request.into_folder)?;
    let mut records = RecordReader::new(Descriptor(rustix::stdio::stdin()));
    receive::tree(&mut records, destination, keep, report).map(drop)
}

/// A standard stream without a buffer of its own.
struct Descriptor(rustix::fd::BorrowedFd<'static>);

impl io::Read for Descriptor {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(self.0, buffer)?)
    }
}

impl io::Write for Descriptor {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(self.0, bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
