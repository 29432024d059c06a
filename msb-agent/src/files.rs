//! Copies into and out of the guest.
//!
//! A copy waits for disks and walks through directories of the guest without following links, which
//! may take long. So a helper process does it: this program again, with the stream as its standard
//! input and output.

use std::ffi::{CStr, CString, OsStr, c_int};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use msb_wire::exec::FailureKind;
use msb_wire::file::receive::{self, CopyError, Destination, PreserveOptions, XattrScope};
use msb_wire::file::record::{Record, RecordReader, RecordWriter, Severity};
use msb_wire::file::send;
use msb_wire::file::{Direction, FilesRequest};
use msb_wire::frame::STDOUT;
use msb_wire::guest::Security;
use msb_wire::text::Text;
use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Pid, umask};

use crate::console::reason;
use crate::exec::{StartRefusal, open_failed, open_input, open_output, unknown_account};
use crate::session::CommandSession;
use crate::spawn::{SpawnError, SpawnPlan, Spawner};
use crate::{change, console, sys, users};

/// First argument of the process for a copy. The second is the request in JSON.
pub(crate) const ARGUMENT: &str = "files";

/// This program, wherever it is now.
const SELF_EXE: &CStr = c"/proc/self/exe";

/// Starts a copy.
pub(crate) fn start(
    stream: u32,
    request: &FilesRequest,
    spawner: &mut Spawner,
) -> Result<(CommandSession, Pid), StartRefusal> {
    let user = request.user.as_ref().map(Text::as_bytes);
    let account = users::find(user.unwrap_or_default()).map_err(unknown_account)?;
    let json = serde_json::to_vec(request).ok();
    let json = json.and_then(|json| CString::new(json).ok());
    let json =
        json.ok_or_else(|| StartRefusal::new(FailureKind::BadArgs, "cannot encode the request"))?;
    let none = |error| open_failed("a pipe", error);
    let (theirs_in, ours_in) =
        open_input(request.direction.takes_data(), account.uid).map_err(none)?;
    let (ours_out, theirs_out) = open_output(account.uid).map_err(none)?;
    let nowhere =
        open("/dev/null", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).map_err(none)?;
    let plan = SpawnPlan {
        programs: &[SELF_EXE.to_owned()],
        argv: &[c"msb-agent".to_owned(), c"files".to_owned(), json],
        env: &[],
        cwd: c"/",
        stdio: [theirs_in.as_fd(), theirs_out.as_fd(), nowhere.as_fd()],
        terminal: false,
        limits: &[],
        uid: account.uid,
        gid: account.gid,
        groups: &account.groups,
        // The helper is part of the agent and starts no other program.
        security: Security::Default,
        init: false,
    };
    let pid = spawner.start(&plan).map_err(not_started)?;
    let session = CommandSession::on_pipes(stream, pid, ours_in, vec![(STDOUT, ours_out)]);
    Ok((session.into_helper(), pid))
}

fn not_started(failed: SpawnError) -> StartRefusal {
    let why = console::reason(failed.error);
    StartRefusal::new(
        FailureKind::ResourceLimit,
        format!("cannot start a process for the copy: {why}"),
    )
}

/// Runs the helper process of a copy.
pub(crate) fn serve(request: Option<&str>) -> c_int {
    sys::ignore_broken_pipes();
    umask(Mode::from_raw_mode(0o022));
    let Some(request) = request.and_then(|json| serde_json::from_str(json).ok()) else {
        return 2;
    };
    let served = match request {
        FilesRequest { direction: Direction::Get, .. } => get(&request),
        FilesRequest { direction: Direction::Put, .. } => put(&request),
        FilesRequest { direction: Direction::MakeDirectory, .. } => {
            let path = path(&request.path);
            let made = change::create_directory(path);
            report_result(made.and_then(|()| change::set_mode(path, request.mode)))
        }
        FilesRequest { direction: Direction::Append, .. } => {
            report_result(append(&request).map_err(|error| error.to_string()))
        }
        FilesRequest { direction: Direction::Remove, .. } => {
            report_result(change::remove(path(&request.path)))
        }
    };
    c_int::from(served.is_err())
}

fn path(text: &Text) -> &Path {
    Path::new(OsStr::from_bytes(text.as_bytes()))
}

fn get(request: &FilesRequest) -> io::Result<()> {
    let options = send::SendOptions { follow: request.follow, xattrs: request.xattrs };
    let mut out = RecordWriter::new(StandardStream(rustix::stdio::stdout()));
    send::tree(path(&request.path), options, &mut out).map(drop)
}

fn put(request: &FilesRequest) -> io::Result<()> {
    let mut out = RecordWriter::new(StandardStream(rustix::stdio::stdout()));
    let received = receive_tree(request, &mut |severity, text| {
        // Errors are ignored: if nothing reads the output, the input ends as well.
        let _ = out.put(&Record::Problem(severity, text.to_owned()));
        let _ = out.flush();
    });
    let set_mode = |()| change::set_mode(path(&request.path), request.mode);
    match received.map_err(|error| error.to_string()).and_then(set_mode) {
        Ok(()) => out.put(&Record::Done)?,
        Err(why) => out.put(&Record::Failed(why))?,
    }
    out.flush()
}

/// Appends the data of one file to an existing file.
fn append(request: &FilesRequest) -> Result<(), CopyError> {
    let path = path(&request.path);
    let cannot =
        |error| CopyError::new(format!("cannot append to '{}': {}", path.display(), reason(error)));
    let mut file = File::options().append(true).open(path).map_err(cannot)?;
    let mut records = RecordReader::new(StandardStream(rustix::stdio::stdin()));
    loop {
        match records.next_record()? {
            Record::Data(bytes) => file.write_all(bytes).map_err(cannot)?,
            Record::Done => return Ok(()),
            Record::Failed(why) => return Err(CopyError::new(why)),
            _ => {}
        }
    }
}

/// Reports the result of a change without data.
fn report_result(changed: Result<(), String>) -> io::Result<()> {
    let mut out = RecordWriter::new(StandardStream(rustix::stdio::stdout()));
    match changed {
        Ok(()) => out.put(&Record::Done)?,
        Err(why) => out.put(&Record::Failed(why))?,
    }
    out.flush()
}

fn receive_tree(
    request: &FilesRequest,
    report: &mut dyn FnMut(Severity, &str),
) -> Result<(), CopyError> {
    let keep = PreserveOptions {
        archive: request.archive,
        attributes: if request.xattrs { XattrScope::All } else { XattrScope::None },
        // The modes are those of the caller's files.
        umask: 0,
    };
    let name = request.name.as_ref().map(Text::as_bytes);
    if request.exclusive {
        change::check_missing(path(&request.path)).map_err(CopyError::new)?;
    }
    let destination = Destination::open(path(&request.path), name, request.into_directory)?;
    let mut records = RecordReader::new(StandardStream(rustix::stdio::stdin()));
    receive::tree(&mut records, destination, keep, report).map(drop)
}

/// A standard stream without a buffer.
struct StandardStream(rustix::fd::BorrowedFd<'static>);

impl io::Read for StandardStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(self.0, buffer)?)
    }
}

impl io::Write for StandardStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(self.0, bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
