//! This program once more, in a process of its own, as a user of the guest: for what must be done with that user's rights.
//!
//! What such a process does is for the guest's kernel to allow, and however it ends, the agent goes on.

use std::ffi::{CStr, CString};
use std::os::fd::AsFd;

use msb_wire::exec::FailureKind;
use msb_wire::frame::{STDERR, STDOUT};
use msb_wire::text::Text;
use rustix::process::Pid;

use crate::boot::Guest;
use crate::exec::{Refusal, input, is_folder, no_descriptors, output, unknown};
use crate::session::Session;
use crate::spawn::{Plan, Spawner};
use crate::{console, users};

/// This program, wherever it lies by now.
const OURSELVES: &CStr = c"/proc/self/exe";

/// Starts it with two arguments: `role`, and `request`, which is JSON. Its standard streams are those of the stream; it begins
/// in the user's home.
pub(crate) fn start(
    guest: &Guest,
    stream: u32,
    role: &CStr,
    user: Option<&Text>,
    request: serde_json::Result<Vec<u8>>,
    spawner: &mut Spawner,
) -> Result<(Session, Pid), Refusal> {
    let user = user.or(guest.user.as_ref());
    let account = users::find(user.map(Text::as_bytes).unwrap_or_default()).map_err(unknown)?;
    let json = request.ok().and_then(|json| CString::new(json).ok());
    let json =
        json.ok_or_else(|| Refusal::new(FailureKind::BadArgs, "the request cannot be passed on"))?;
    let home = CString::new(account.home.clone())
        .ok()
        .filter(|_| is_folder(&account.home));
    let none = |error| no_descriptors("a pipe", error);
    let (theirs_in, ours_in) = input(true, account.uid).map_err(none)?;
    let (ours_out, theirs_out) = output(account.uid).map_err(none)?;
    let (ours_err, theirs_err) = output(account.uid).map_err(none)?;
    let plan = Plan {
        programs: &[OURSELVES.to_owned()],
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
    let pid = spawner.start(&plan).map_err(|refused| {
        let why = console::reason(refused.error);
        let message = format!("cannot start a process of the agent: {why}");
        Refusal::new(FailureKind::ResourceLimit, message)
    })?;
    let outputs = vec![(STDOUT, ours_out), (STDERR, ours_err)];
    Ok((Session::on_pipes(stream, pid, ours_in, outputs), pid))
}
