//! Start of a command from an exec request.

use std::borrow::Cow;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use msb_wire::exec::{ExecRequest, FailureKind, Rlimit, WindowSize};
use msb_wire::frame::{STDERR, STDOUT};
use msb_wire::guest::Security;
use msb_wire::text::Text;
use rustix::fs::{Mode, OFlags, Uid, fchown, fcntl_setfl, open};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Pid;

use crate::boot::GuestState;
use crate::console::reason;
use crate::env::DEFAULT_PATH;
use crate::pty::{self, modes};
use crate::session::CommandSession;
use crate::spawn::{SpawnError, SpawnPlan, SpawnStep, Spawner};
use crate::users::{self, Account, UnknownAccount};

/// Reason why a command was not started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StartRefusal {
    /// Kind of failure.
    pub(crate) kind: FailureKind,
    /// Message for the user.
    pub(crate) message: String,
}

impl StartRefusal {
    /// Returns a refusal of this kind.
    pub(crate) fn new(kind: FailureKind, message: impl Into<String>) -> StartRefusal {
        StartRefusal { kind, message: message.into() }
    }
}

/// A command, complete except for its descriptors.
struct PreparedCommand<'a> {
    programs: Vec<CString>,
    argv: Vec<CString>,
    env: Vec<Cow<'a, CStr>>,
    cwd: CString,
    limits: Vec<(u32, libc::rlimit64)>,
    account: Account,
    security: Security,
}

/// Starts a command.
pub(crate) fn start(
    guest: &GuestState,
    stream: u32,
    request: &ExecRequest,
    spawner: &mut Spawner,
) -> Result<(CommandSession, Pid), StartRefusal> {
    let command = prepare(guest, request)?;
    match request.tty {
        Some(size) => start_on_terminal(&command, stream, size, request, spawner),
        None => start_on_pipes(&command, stream, request.stdin, spawner),
    }
}

fn prepare<'a>(
    guest: &'a GuestState,
    request: &ExecRequest,
) -> Result<PreparedCommand<'a>, StartRefusal> {
    let spec =
        request.user.as_ref().or(guest.user.as_ref()).map(Text::as_bytes).unwrap_or_default();
    let account = users::find(spec).map_err(unknown_account)?;
    if request.login {
        return prepare_login(guest, request, account);
    }
    let mut env = guest.env.environment(request.tty.is_some());
    for entry in &request.env {
        env.set(entry.as_bytes());
    }
    env.set_missing("HOME", &account.home);
    let name = request.argv.first().filter(|name| !name.as_bytes().is_empty());
    let name = name.ok_or_else(|| StartRefusal::new(FailureKind::BadArgs, "missing command"))?;
    let programs = candidates(name.as_bytes(), env.get("PATH").unwrap_or_default());
    let cwd = request
        .cwd
        .as_ref()
        .or(guest.cwd.as_ref())
        .map(Text::as_bytes)
        .filter(|cwd| !cwd.is_empty());
    let terminated = |bytes: Vec<u8>| CString::new(bytes).ok();
    let all = |list: Vec<Vec<u8>>| list.into_iter().map(terminated).collect::<Option<Vec<_>>>();
    let nul = || StartRefusal::new(FailureKind::BadArgs, "a string contains a NUL byte");
    Ok(PreparedCommand {
        programs: all(programs).ok_or_else(nul)?,
        argv: all(request.argv.iter().map(|text| text.0.clone()).collect()).ok_or_else(nul)?,
        env: env.into_strings(),
        cwd: terminated(cwd.unwrap_or(b"/").to_vec()).ok_or_else(nul)?,
        limits: limits(guest, &request.rlimits)?,
        account,
        security: guest.security,
    })
}

/// Prepares a login as sshd(8) does: with the user's shell, home and name, regardless of the
/// sandbox's settings for commands.
fn prepare_login<'a>(
    guest: &'a GuestState,
    request: &ExecRequest,
    account: Account,
) -> Result<PreparedCommand<'a>, StartRefusal> {
    let mut env = guest.env.environment(request.tty.is_some());
    for (name, value) in [
        ("USER", &account.name),
        ("LOGNAME", &account.name),
        ("HOME", &account.home),
        ("SHELL", &account.shell),
    ] {
        env.set(&[name.as_bytes(), b"=", value].concat());
    }
    for entry in &request.env {
        env.set(entry.as_bytes());
    }
    let name = account.shell.rsplit(|byte| *byte == b'/').next();
    let name = name.unwrap_or_default();
    let argv = match request.argv.as_slice() {
        // The leading dash tells a shell that it is a login shell.
        [] => vec![[b"-", name].concat()],
        [line] => vec![name.to_vec(), b"-c".to_vec(), line.0.clone()],
        _ => {
            return Err(StartRefusal::new(FailureKind::BadArgs, "a login takes one command line"));
        }
    };
    let nul = || StartRefusal::new(FailureKind::BadArgs, "a string contains a NUL byte");
    let terminated = |bytes: Vec<u8>| CString::new(bytes).map_err(|_| nul());
    // Without a home directory the session starts in the root directory.
    let home = Some(&account.home).filter(|home| is_directory(home));
    Ok(PreparedCommand {
        programs: vec![terminated(account.shell.clone())?],
        argv: argv.into_iter().map(terminated).collect::<Result<_, _>>()?,
        env: env.into_strings(),
        cwd: terminated(home.map_or(b"/".to_vec(), Clone::clone))?,
        limits: limits(guest, &request.rlimits)?,
        account,
        security: guest.security,
    })
}

/// Returns whether a path is a directory.
pub(crate) fn is_directory(path: &[u8]) -> bool {
    Path::new(std::ffi::OsStr::from_bytes(path)).is_dir()
}

/// Returns the refusal for an unknown user or group.
pub(crate) fn unknown_account(unknown: UnknownAccount) -> StartRefusal {
    let message = match unknown {
        UnknownAccount::User(name) => format!("no user '{name}' in the guest's /etc/passwd"),
        UnknownAccount::Group(name) => format!("no group '{name}' in the guest's /etc/group"),
    };
    StartRefusal::new(FailureKind::UserNotFound, message)
}

/// Names and numbers of resource limits.
const RESOURCE_NUMBERS: [(&str, u32); 16] = [
    ("as", libc::RLIMIT_AS),
    ("core", libc::RLIMIT_CORE),
    ("cpu", libc::RLIMIT_CPU),
    ("data", libc::RLIMIT_DATA),
    ("fsize", libc::RLIMIT_FSIZE),
    ("locks", libc::RLIMIT_LOCKS),
    ("memlock", libc::RLIMIT_MEMLOCK),
    ("msgqueue", libc::RLIMIT_MSGQUEUE),
    ("nice", libc::RLIMIT_NICE),
    ("nofile", libc::RLIMIT_NOFILE),
    ("nproc", libc::RLIMIT_NPROC),
    ("rss", libc::RLIMIT_RSS),
    ("rtprio", libc::RLIMIT_RTPRIO),
    ("rttime", libc::RLIMIT_RTTIME),
    ("sigpending", libc::RLIMIT_SIGPENDING),
    ("stack", libc::RLIMIT_STACK),
];

/// Returns the limits of a command: those of the request, and those of the guest for other
/// resources.
pub(crate) fn limits(
    guest: &GuestState,
    requested: &[Rlimit],
) -> Result<Vec<(u32, libc::rlimit64)>, StartRefusal> {
    let is_requested =
        |limit: &Rlimit| requested.iter().any(|other| other.resource == limit.resource);
    let common = guest.rlimits.iter().filter(|limit| !is_requested(limit));
    common.chain(requested).map(parse_limit).collect()
}

fn parse_limit(wanted: &Rlimit) -> Result<(u32, libc::rlimit64), StartRefusal> {
    let known = RESOURCE_NUMBERS.iter().find(|(name, _)| *name == wanted.resource);
    let (_, number) = known.ok_or_else(|| {
        let message = format!("unknown resource limit '{}'", wanted.resource);
        StartRefusal::new(FailureKind::BadArgs, message)
    })?;
    let value = |limit: Option<u64>| limit.unwrap_or(libc::RLIM64_INFINITY);
    let limit = libc::rlimit64 { rlim_cur: value(wanted.soft), rlim_max: value(wanted.hard) };
    Ok((*number, limit))
}

/// Returns the candidate paths of a program name. An empty element of PATH is the current
/// directory.
fn candidates(name: &[u8], path: &[u8]) -> Vec<Vec<u8>> {
    if name.contains(&b'/') {
        return vec![name.to_vec()];
    }
    let path = if path.is_empty() { DEFAULT_PATH.as_bytes() } else { path };
    let join = |directory: &[u8]| match directory {
        [] => [b"./", name].concat(),
        _ => [directory, b"/", name].concat(),
    };
    path.split(|byte| *byte == b':').map(join).collect()
}

fn start_on_terminal(
    command: &PreparedCommand<'_>,
    stream: u32,
    size: WindowSize,
    request: &ExecRequest,
    spawner: &mut Spawner,
) -> Result<(CommandSession, Pid), StartRefusal> {
    let (ours, theirs) =
        pty::open(size, command.account.uid).map_err(|error| open_failed("a terminal", error))?;
    // A terminal with default modes is better than none.
    let _ = modes::set(&theirs, &request.tty_modes);
    let pid = spawn(command, [&theirs, &theirs, &theirs], true, spawner)?;
    Ok((CommandSession::on_terminal(stream, pid, ours, request.stdin), pid))
}

fn start_on_pipes(
    command: &PreparedCommand<'_>,
    stream: u32,
    stdin: bool,
    spawner: &mut Spawner,
) -> Result<(CommandSession, Pid), StartRefusal> {
    let uid = command.account.uid;
    let (theirs_in, ours_in) =
        open_input(stdin, uid).map_err(|error| open_failed("standard input", error))?;
    let (ours_out, theirs_out) = open_output(uid).map_err(|error| open_failed("a pipe", error))?;
    let (ours_err, theirs_err) = open_output(uid).map_err(|error| open_failed("a pipe", error))?;
    let pid = spawn(command, [&theirs_in, &theirs_out, &theirs_err], false, spawner)?;
    Ok((
        CommandSession::on_pipes(
            stream,
            pid,
            ours_in,
            vec![(STDOUT, ours_out), (STDERR, ours_err)],
        ),
        pid,
    ))
}

/// Opens a command's standard input: the command's end and the agent's end.
pub(crate) fn open_input(wanted: bool, owner: u32) -> Result<(OwnedFd, Option<OwnedFd>), Errno> {
    if !wanted {
        return Ok((open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?, None));
    }
    let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC)?;
    chown_pipe(&theirs, owner);
    fcntl_setfl(&ours, OFlags::WRONLY | OFlags::NONBLOCK)?;
    Ok((theirs, Some(ours)))
}

/// Opens a pipe for output: the agent's end and the command's end.
pub(crate) fn open_output(owner: u32) -> Result<(OwnedFd, OwnedFd), Errno> {
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
    chown_pipe(&theirs, owner);
    fcntl_setfl(&ours, OFlags::RDONLY | OFlags::NONBLOCK)?;
    Ok((ours, theirs))
}

/// Changes the owner of a pipe, so that a command that is not root can open `/dev/stdout`.
fn chown_pipe(pipe: impl AsFd, owner: u32) {
    if owner != 0 {
        let _ = fchown(pipe, Some(Uid::from_raw(owner)), None);
    }
}

/// Returns the refusal for a lack of descriptors.
pub(crate) fn open_failed(what: &str, error: Errno) -> StartRefusal {
    StartRefusal::new(FailureKind::ResourceLimit, format!("cannot open {what}: {}", reason(error)))
}

fn spawn(
    command: &PreparedCommand<'_>,
    stdio: [&OwnedFd; 3],
    terminal: bool,
    spawner: &mut Spawner,
) -> Result<Pid, StartRefusal> {
    let plan = SpawnPlan {
        programs: &command.programs,
        argv: &command.argv,
        env: &command.env,
        cwd: &command.cwd,
        stdio: stdio.map(|fd| fd.as_fd()),
        terminal,
        limits: &command.limits,
        uid: command.account.uid,
        gid: command.account.gid,
        groups: &command.account.groups,
        security: command.security,
        init: false,
    };
    spawner.start(&plan).map_err(|spawn_error| refusal_of(command, spawn_error))
}

fn refusal_of(command: &PreparedCommand<'_>, spawn_error: SpawnError) -> StartRefusal {
    let why = reason(spawn_error.error);
    match spawn_error.step {
        SpawnStep::Fork => StartRefusal::new(
            failure_kind(spawn_error.error),
            format!("cannot start a process: {why}"),
        ),
        SpawnStep::Prepare => StartRefusal::new(
            failure_kind(spawn_error.error),
            format!("cannot prepare a process: {why}"),
        ),
        SpawnStep::Limits => {
            StartRefusal::new(FailureKind::BadArgs, format!("cannot set a resource limit: {why}"))
        }
        SpawnStep::Confine => StartRefusal::new(
            failure_kind(spawn_error.error),
            format!("cannot drop capabilities: {why}"),
        ),
        SpawnStep::User => {
            let Account { uid, gid, .. } = command.account;
            StartRefusal::new(
                failure_kind(spawn_error.error),
                format!("cannot become user {uid}, group {gid}: {why}"),
            )
        }
        SpawnStep::Cwd => {
            let cwd = command.cwd.to_string_lossy();
            StartRefusal::new(
                FailureKind::BadCwd,
                format!("cannot enter the working directory '{cwd}': {why}"),
            )
        }
        SpawnStep::Execute => refusal_of_execve(command, spawn_error),
    }
}

fn refusal_of_execve(command: &PreparedCommand<'_>, spawn_error: SpawnError) -> StartRefusal {
    let name =
        command.argv.first().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let program =
        command.programs.get(spawn_error.program).map(|path| path.as_bytes()).unwrap_or_default();
    let path = Path::new(std::ffi::OsStr::from_bytes(program));
    let (kind, why) = match spawn_error.error {
        Errno::NOENT if name.contains('/') && path.is_absolute() && path.exists() => {
            (FailureKind::NotFound, "its interpreter does not exist".to_owned())
        }
        Errno::NOENT if !name.contains('/') => {
            (FailureKind::NotFound, "not found in PATH".to_owned())
        }
        Errno::ACCESS if path.is_absolute() && path.is_dir() => {
            (FailureKind::NotExecutable, reason(Errno::ISDIR))
        }
        error => (failure_kind(error), reason(error)),
    };
    StartRefusal::new(kind, format!("cannot execute '{name}': {why}"))
}

fn failure_kind(error: Errno) -> FailureKind {
    match error {
        Errno::NOENT => FailureKind::NotFound,
        Errno::ACCESS | Errno::PERM => FailureKind::PermissionDenied,
        Errno::NOEXEC | Errno::ISDIR | Errno::TXTBSY | Errno::LIBBAD | Errno::LOOP => {
            FailureKind::NotExecutable
        }
        Errno::NOTDIR => FailureKind::NotFound,
        Errno::TOOBIG | Errno::NAMETOOLONG | Errno::INVAL => FailureKind::BadArgs,
        Errno::AGAIN | Errno::NOMEM | Errno::MFILE | Errno::NFILE => FailureKind::ResourceLimit,
        _ => FailureKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(name: &str, path: &str) -> Vec<String> {
        let found = candidates(name.as_bytes(), path.as_bytes());
        found.into_iter().map(|path| String::from_utf8(path).unwrap()).collect()
    }

    #[test]
    fn names_are_searched_in_path_and_paths_are_not() {
        assert_eq!(paths("sh", "/usr/bin:/bin"), ["/usr/bin/sh", "/bin/sh"]);
        assert_eq!(paths("sh", "/bin::x"), ["/bin/sh", "./sh", "x/sh"]);
        assert_eq!(paths("./sh", "/bin"), ["./sh"]);
        assert_eq!(paths("sh", "").len(), 6);
    }

    #[test]
    fn exit_codes_of_a_failed_execve_are_those_of_a_shell() {
        let code = |error| failure_kind(error).exit_code();
        assert_eq!(code(Errno::NOENT), 127);
        assert_eq!(code(Errno::NOTDIR), 127);
        assert_eq!(code(Errno::ACCESS), 126);
        assert_eq!(code(Errno::NOEXEC), 126);
        assert_eq!(code(Errno::TOOBIG), 125);
        assert_eq!(code(Errno::NOMEM), 125);
    }
}
