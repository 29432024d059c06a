//! From a request to a running command.

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

use crate::boot::Guest;
use crate::console::reason;
use crate::env::DEFAULT_PATH;
use crate::pty::{self, modes};
use crate::session::Session;
use crate::spawn::{Plan, Refused, Spawner, Step};
use crate::users::{self, Account, Unknown};

/// Why a command was not started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The sort of failure.
    pub(crate) kind: FailureKind,
    /// For people.
    pub(crate) message: String,
}

impl Refusal {
    /// A refusal of this kind.
    pub(crate) fn new(kind: FailureKind, message: impl Into<String>) -> Refusal {
        Refusal {
            kind,
            message: message.into(),
        }
    }
}

/// A command, ready to be started but for its descriptors.
struct Command<'a> {
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
    guest: &Guest,
    stream: u32,
    request: &ExecRequest,
    spawner: &mut Spawner,
) -> Result<(Session, Pid), Refusal> {
    let command = prepare(guest, request)?;
    match request.tty {
        Some(size) => start_on_terminal(&command, stream, size, request, spawner),
        None => start_on_pipes(&command, stream, request.stdin, spawner),
    }
}

fn prepare<'a>(guest: &'a Guest, request: &ExecRequest) -> Result<Command<'a>, Refusal> {
    let spec = request
        .user
        .as_ref()
        .or(guest.user.as_ref())
        .map(Text::as_bytes)
        .unwrap_or_default();
    let account = users::find(spec).map_err(unknown)?;
    if request.login {
        return prepare_login(guest, request, account);
    }
    let mut env = guest.env.environment(request.tty.is_some());
    for entry in &request.env {
        env.set(entry.as_bytes());
    }
    env.set_missing("HOME", &account.home);
    let name = request
        .argv
        .first()
        .filter(|name| !name.as_bytes().is_empty());
    let name = name.ok_or_else(|| Refusal::new(FailureKind::BadArgs, "no command was given"))?;
    let programs = candidates(name.as_bytes(), env.get("PATH").unwrap_or_default());
    let cwd = request
        .cwd
        .as_ref()
        .or(guest.cwd.as_ref())
        .map(Text::as_bytes)
        .filter(|cwd| !cwd.is_empty());
    let terminated = |bytes: Vec<u8>| CString::new(bytes).ok();
    let all = |list: Vec<Vec<u8>>| list.into_iter().map(terminated).collect::<Option<Vec<_>>>();
    let nul = || Refusal::new(FailureKind::BadArgs, "a string holds a NUL byte");
    Ok(Command {
        programs: all(programs).ok_or_else(nul)?,
        argv: all(request.argv.iter().map(|text| text.0.clone()).collect()).ok_or_else(nul)?,
        env: env.into_strings(),
        cwd: terminated(cwd.unwrap_or(b"/").to_vec()).ok_or_else(nul)?,
        limits: request
            .rlimits
            .iter()
            .map(limit)
            .collect::<Result<_, _>>()?,
        account,
        security: guest.security,
    })
}

/// What sshd(8) does at a login: the user's shell, home and names, whatever the sandbox has for commands.
fn prepare_login<'a>(
    guest: &'a Guest,
    request: &ExecRequest,
    account: Account,
) -> Result<Command<'a>, Refusal> {
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
        // By this dash a shell knows that it is a login shell.
        [] => vec![[b"-", name].concat()],
        [line] => vec![name.to_vec(), b"-c".to_vec(), line.0.clone()],
        _ => {
            return Err(Refusal::new(
                FailureKind::BadArgs,
                "a login takes one command line",
            ));
        }
    };
    let nul = || Refusal::new(FailureKind::BadArgs, "a string holds a NUL byte");
    let terminated = |bytes: Vec<u8>| CString::new(bytes).map_err(|_| nul());
    // A user whose home is not there logs in at the root.
    let home = Some(&account.home).filter(|home| is_folder(home));
    Ok(Command {
        programs: vec![terminated(account.shell.clone())?],
        argv: argv.into_iter().map(terminated).collect::<Result<_, _>>()?,
        env: env.into_strings(),
        cwd: terminated(home.map_or(b"/".to_vec(), Clone::clone))?,
        limits: request
            .rlimits
            .iter()
            .map(limit)
            .collect::<Result<_, _>>()?,
        account,
        security: guest.security,
    })
}

/// Whether a path leads to a folder.
pub(crate) fn is_folder(path: &[u8]) -> bool {
    Path::new(std::ffi::OsStr::from_bytes(path)).is_dir()
}

/// The refusal of a user that is not there.
pub(crate) fn unknown(unknown: Unknown) -> Refusal {
    let message = match unknown {
        Unknown::User(name) => format!("no user '{name}' in the guest's /etc/passwd"),
        Unknown::Group(name) => format!("no group '{name}' in the guest's /etc/group"),
    };
    Refusal::new(FailureKind::UserNotFound, message)
}

/// Resources by name, and their numbers.
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

fn limit(wanted: &Rlimit) -> Result<(u32, libc::rlimit64), Refusal> {
    let known = RESOURCE_NUMBERS
        .iter()
        .find(|(name, _)| *name == wanted.resource);
    let (_, number) = known.ok_or_else(|| {
        let message = format!("there is no limit '{}'", wanted.resource);
        Refusal::new(FailureKind::BadArgs, message)
    })?;
    let value = |limit: Option<u64>| limit.unwrap_or(libc::RLIM64_INFINITY);
    let limit = libc::rlimit64 {
        rlim_cur: value(wanted.soft),
        rlim_max: value(wanted.hard),
    };
    Ok((*number, limit))
}

/// The paths that a name may mean. An empty part of a search path is the current directory.
fn candidates(name: &[u8], path: &[u8]) -> Vec<Vec<u8>> {
    if name.contains(&b'/') {
        return vec![name.to_vec()];
    }
    let path = if path.is_empty() {
        DEFAULT_PATH.as_bytes()
    } else {
        path
    };
    let join = |directory: &[u8]| match directory {
        [] => [b"./", name].concat(),
        _ => [directory, b"/", name].concat(),
    };
    path.split(|byte| *byte == b':').map(join).collect()
}

fn start_on_terminal(
    command: &Command<'_>,
    stream: u32,
    size: WindowSize,
    request: &ExecRequest,
    spawner: &mut Spawner,
) -> Result<(Session, Pid), Refusal> {
    let (ours, theirs) = pty::open(size, command.account.uid)
        .map_err(|error| no_descriptors("a terminal", error))?;
    // A terminal without them is better than none.
    let _ = modes::set(&theirs, &request.tty_modes);
    let pid = spawn(command, [&theirs, &theirs, &theirs], true, spawner)?;
    Ok((Session::on_terminal(stream, pid, ours, request.stdin), pid))
}

fn start_on_pipes(
    command: &Command<'_>,
    stream: u32,
    stdin: bool,
    spawner: &mut Spawner,
) -> Result<(Session, Pid), Refusal> {
    let uid = command.account.uid;
    let (theirs_in, ours_in) =
        input(stdin, uid).map_err(|error| no_descriptors("standard input", error))?;
    let (ours_out, theirs_out) = output(uid).map_err(|error| no_descriptors("a pipe", error))?;
    let (ours_err, theirs_err) = output(uid).map_err(|error| no_descriptors("a pipe", error))?;
    let pid = spawn(
        command,
        [&theirs_in, &theirs_out, &theirs_err],
        false,
        spawner,
    )?;
    Ok((
        Session::on_pipes(
            stream,
            pid,
            ours_in,
            vec![(STDOUT, ours_out), (STDERR, ours_err)],
        ),
        pid,
    ))
}

/// A command's standard input: its end and ours.
pub(crate) fn input(wanted: bool, owner: u32) -> Result<(OwnedFd, Option<OwnedFd>), Errno> {
    if !wanted {
        return Ok((
            open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?,
            None,
        ));
    }
    let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC)?;
    own(&theirs, owner);
    fcntl_setfl(&ours, OFlags::WRONLY | OFlags::NONBLOCK)?;
    Ok((theirs, Some(ours)))
}

/// A pipe for output: our end and the command's.
pub(crate) fn output(owner: u32) -> Result<(OwnedFd, OwnedFd), Errno> {
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
    own(&theirs, owner);
    fcntl_setfl(&ours, OFlags::RDONLY | OFlags::NONBLOCK)?;
    Ok((ours, theirs))
}

/// So that a command which is not root can open `/dev/stdout`.
fn own(pipe: impl AsFd, owner: u32) {
    if owner != 0 {
        let _ = fchown(pipe, Some(Uid::from_raw(owner)), None);
    }
}

/// A refusal, as there are too many open files.
pub(crate) fn no_descriptors(what: &str, error: Errno) -> Refusal {
    Refusal::new(
        FailureKind::ResourceLimit,
        format!("cannot open {what}: {}", reason(error)),
    )
}

fn spawn(
    command: &Command<'_>,
    stdio: [&OwnedFd; 3],
    terminal: bool,
    spawner: &mut Spawner,
) -> Result<Pid, Refusal> {
    let plan = Plan {
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
    spawner
        .start(&plan)
        .map_err(|refused| explain(command, refused))
}

fn explain(command: &Command<'_>, refused: Refused) -> Refusal {
    let why = reason(refused.error);
    match refused.step {
        Step::Fork => Refusal::new(
            kind_of(refused.error),
            format!("cannot start a process: {why}"),
        ),
        Step::Prepare => Refusal::new(
            kind_of(refused.error),
            format!("cannot prepare a process: {why}"),
        ),
        Step::Limits => Refusal::new(
            FailureKind::BadArgs,
            format!("cannot set a limit of resources: {why}"),
        ),
        Step::Confine => Refusal::new(
            kind_of(refused.error),
            format!("cannot take rights away: {why}"),
        ),
        Step::User => {
            let Account { uid, gid, .. } = command.account;
            Refusal::new(
                kind_of(refused.error),
                format!("cannot become user {uid}, group {gid}: {why}"),
            )
        }
        Step::Cwd => {
            let cwd = command.cwd.to_string_lossy();
            Refusal::new(
                FailureKind::BadCwd,
                format!("cannot enter the working directory '{cwd}': {why}"),
            )
        }
        Step::Execute => explain_execute(command, refused),
    }
}

fn explain_execute(command: &Command<'_>, refused: Refused) -> Refusal {
    let name = command
        .argv
        .first()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let program = command
        .programs
        .get(refused.program)
        .map(|path| path.as_bytes())
        .unwrap_or_default();
    let path = Path::new(std::ffi::OsStr::from_bytes(program));
    let (kind, why) = match refused.error {
        Errno::NOENT if name.contains('/') && path.is_absolute() && path.exists() => (
            FailureKind::NotFound,
            "the interpreter that the file names does not exist".to_owned(),
        ),
        Errno::NOENT if !name.contains('/') => (
            FailureKind::NotFound,
            "no such program in the PATH".to_owned(),
        ),
        Errno::ACCESS if path.is_absolute() && path.is_dir() => {
            (FailureKind::NotExecutable, reason(Errno::ISDIR))
        }
        error => (kind_of(error), reason(error)),
    };
    Refusal::new(kind, format!("cannot execute '{name}': {why}"))
}

fn kind_of(error: Errno) -> FailureKind {
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
        found
            .into_iter()
            .map(|path| String::from_utf8(path).unwrap())
            .collect()
    }

    #[test]
    fn a_name_is_looked_for_along_the_path_and_a_path_is_not() {
        assert_eq!(paths("sh", "/usr/bin:/bin"), ["/usr/bin/sh", "/bin/sh"]);
        assert_eq!(paths("sh", "/bin::x"), ["/bin/sh", "./sh", "x/sh"]);
        assert_eq!(paths("./sh", "/bin"), ["./sh"]);
        assert_eq!(paths("sh", "").len(), 6);
    }

    #[test]
    fn the_exit_code_of_a_failed_execve_is_that_of_a_shell() {
        let code = |error| kind_of(error).exit_code();
        assert_eq!(code(Errno::NOENT), 127);
        assert_eq!(code(Errno::NOTDIR), 127);
        assert_eq!(code(Errno::ACCESS), 126);
        assert_eq!(code(Errno::NOEXEC), 126);
        assert_eq!(code(Errno::TOOBIG), 125);
        assert_eq!(code(Errno::NOMEM), 125);
    }
}
