//! Helper processes: this program, run as a user of the guest, for operations that need that user's
//! rights.
//!
//! The guest's kernel decides what such a process may do, and its failure does not affect the
//! agent.

use std::ffi::{CStr, CString};
use std::os::fd::AsFd;

use msb_wire::exec::FailureKind;
use msb_wire::frame::{STDERR, STDOUT};
use msb_wire::text::Text;
use rustix::process::Pid;

use crate::boot::GuestState;
use crate::exec::{
    StartRefusal, is_directory, open_failed, open_input, open_output, unknown_account,
};
use crate::session::CommandSession;
use crate::spawn::{SpawnPlan, Spawner};
use crate::{console, users};

/// This program, wherever it is now.
const SELF_EXE: &CStr = c"/proc/self/exe";

/// Starts a helper process with two arguments: `role`, and `request` in JSON. Its standard streams
/// are those of the stream. It starts in the user's home directory.
pub(crate) fn start(
    guest: &GuestState,
    stream: u32,
    role: &CStr,
    user: Option<&Text>,
    request: serde_json::Result<Vec<u8>>,
    spawner: &mut Spawner,
) -> Result<(CommandSession, Pid), StartRefusal> {
    let user = user.or(guest.user.as_ref());
    let account =
        users::find(user.map(Text::as_bytes).unwrap_or_default()).map_err(unknown_account)?;
    let json = request.ok().and_then(|json| CString::new(json).ok());
    let json =
        json.ok_or_else(|| StartRefusal::new(FailureKind::BadArgs, "cannot encode the request"))?;
    let home = CString::new(account.home.clone()).ok().filter(|_| is_directory(&account.home));
    let none = |error| open_failed("a pipe", error);
    let (theirs_in, ours_in) = open_input(true, account.uid).map_err(none)?;
    let (ours_out, theirs_out) = open_output(account.uid).map_err(none)?;
    let (ours_err, theirs_err) = open_output(account.uid).map_err(none)?;
    let plan = SpawnPlan {
        programs: &[SELF_EXE.to_owned()],
        argv: &[c"msb-agent".to_owned(), role.to_owned(), json],
        env: &[],
        cwd: home.as_deref().unwrap_or(c"/"),
        stdio: [theirs_in.as_fd(), theirs_out.as_fd(), theirs_err.as_fd()],
        terminal: false,
        limits: &[],
        uid: account.uid,
        gid: account.gid,
        groups: &account.groups,
        security: guest.security,
        init: false,
    };
    let pid = spawner.start(&plan).map_err(|failed| {
        let why = console::reason(failed.error);
        let message = format!("cannot start a process of the agent: {why}");
        StartRefusal::new(FailureKind::ResourceLimit, message)
    })?;
    let outputs = vec![(STDOUT, ours_out), (STDERR, ours_err)];
    Ok((CommandSession::on_pipes(stream, pid, ours_in, outputs), pid))
}
