//! Freezing the upper file system for a copy of its disk.
//!
//! The flush and the freeze may take long, so a helper process does it: this program again. It thaws
//! the file system when its input ends or after the timeout. If it is killed, the agent does.
//! Nothing of the agent may write to the upper file system meanwhile.

use std::ffi::{CStr, CString, c_int};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use msb_wire::exec::FailureKind;
use msb_wire::frame::STDOUT;
use msb_wire::freeze::{EXPIRED, FROZEN, FreezeRequest, TIMEOUT_MS_MAX};
use msb_wire::guest::Security;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::Pid;

use crate::console::reason;
use crate::exec::{StartRefusal, open_failed, open_input, open_output};
use crate::session::CommandSession;
use crate::spawn::{SpawnPlan, Spawner};
use crate::sys;

/// First argument of the helper process. The second is the request in JSON.
pub(crate) const ARGUMENT: &str = "freeze";

/// Same argument for execve(2).
const ROLE: &CStr = c"freeze";
/// This program, wherever it is now.
const SELF_EXE: &CStr = c"/proc/self/exe";

/// Starts the helper process. Its standard input is open for reading and writing no data: the host
/// ends it. It gets the upper file system in place of standard error.
pub(crate) fn start(
    upper: &OwnedFd,
    stream: u32,
    request: &FreezeRequest,
    spawner: &mut Spawner,
) -> Result<(CommandSession, Pid), StartRefusal> {
    let json = serde_json::to_vec(request).ok().and_then(|json| CString::new(json).ok());
    let json =
        json.ok_or_else(|| StartRefusal::new(FailureKind::BadArgs, "cannot encode the request"))?;
    let none = |error| open_failed("a pipe", error);
    let (theirs_in, ours_in) = open_input(true, 0).map_err(none)?;
    let (ours_out, theirs_out) = open_output(0).map_err(none)?;
    let plan = SpawnPlan {
        programs: &[SELF_EXE.to_owned()],
        argv: &[c"msb-agent".to_owned(), ROLE.to_owned(), json],
        env: &[],
        cwd: c"/",
        stdio: [theirs_in.as_fd(), theirs_out.as_fd(), upper.as_fd()],
        terminal: false,
        limits: &[],
        uid: 0,
        gid: 0,
        groups: &[],
        // The helper is part of the agent and starts no other program.
        security: Security::Default,
        init: false,
    };
    let pid = spawner.start(&plan).map_err(|failed| {
        let message = format!("cannot start a process of the agent: {}", reason(failed.error));
        StartRefusal::new(FailureKind::ResourceLimit, message)
    })?;
    let session = CommandSession::on_pipes(stream, pid, ours_in, vec![(STDOUT, ours_out)]);
    Ok((session.into_helper(), pid))
}

/// Runs the helper process.
pub(crate) fn serve(request: Option<&str>) -> c_int {
    sys::ignore_broken_pipes();
    let request = request.and_then(|json| serde_json::from_str::<FreezeRequest>(json).ok());
    let Some(request) = request else { return 2 };
    // Standard error is the directory of the upper file system.
    let upper = rustix::stdio::stderr();
    let timeout = Duration::from_millis(request.timeout_ms.min(TIMEOUT_MS_MAX).into());
    match freeze_until(upper, timeout) {
        Ok(true) => 0,
        Ok(false) => EXPIRED,
        Err(error) => {
            let text = format!("{}\n", reason(error));
            let _ = rustix::io::write(rustix::stdio::stdout(), text.as_bytes());
            1
        }
    }
}

/// Freezes the file system until standard input ends. Returns `false` after the timeout.
fn freeze_until(upper: BorrowedFd<'_>, timeout: Duration) -> io::Result<bool> {
    // Most of the flush happens here, while the guest can still write.
    rustix::fs::syncfs(upper)?;
    sys::freeze(upper)?;
    let end = Instant::now() + timeout;
    let told = rustix::io::write(rustix::stdio::stdout(), FROZEN);
    let in_time = told.is_ok() && wait_for_end(end);
    sys::thaw(upper)?;
    told?;
    Ok(in_time)
}

/// Waits for the end of standard input. Returns `false` after the deadline.
fn wait_for_end(end: Instant) -> bool {
    let stdin = rustix::stdio::stdin();
    let mut ignored = [0; 512];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let Ok(left) = Timespec::try_from(left) else { return false };
        match poll(&mut [PollFd::new(&stdin, PollFlags::IN)], Some(&left)) {
            Ok(0) => return false,
            Ok(_) => match rustix::io::read(stdin, &mut ignored) {
                Ok(0) => return true,
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return false,
            },
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}
