//! Commands of the user, one module each.

/// `msb attach`: attaches to a running job.
mod attach;
/// `msb config`: the form of sandbox files.
mod config;
/// `msb cp`: copies files into and out of sandboxes.
mod cp;
/// `msb create`: creates a persistent sandbox.
mod create;
/// `msb doctor`: checks this host.
mod doctor;
/// `msb events`: prints the events of sandboxes.
mod events;
/// `msb exec`: runs a command in a running sandbox.
pub(crate) mod exec;
/// Filters of listings.
mod filter;
/// `msb start --foreground`: a sandbox as a service.
mod foreground;
/// `msb fork`: copies a sandbox.
mod fork;
/// `msb inspect`: shows the configuration and state of a sandbox.
mod inspect;
/// `msb install`: makes a command that runs an image.
mod install;
/// `msb jobs`: lists the jobs of a sandbox.
mod jobs;
/// `msb logs`: shows the output of commands.
mod logs;
/// `msb ls`: lists the sandboxes.
mod ls;
/// `msb modify`: changes the configuration of a sandbox.
mod modify;
/// `msb pause` and `msb resume`: stop and continue the virtual processors of guests.
mod pause;
/// `msb ping`: checks that guests respond.
mod ping;
/// `msb ps`: lists running sandboxes and their main commands.
mod ps;
/// `msb report`: writes an archive for a bug report.
mod report;
/// `msb restart`: stops and starts sandboxes.
mod restart;
/// `msb restore`: sets a sandbox back to a snapshot.
mod restore;
/// `msb rm`: removes sandboxes.
mod rm;
/// `msb run`: runs a command in a sandbox of its own.
pub(crate) mod run;
/// Selection of sandboxes by name, by label, or from standard input.
mod selection;
/// `msb signal`: sends a signal to a job.
mod signal;
/// `msb snapshot`: manages snapshots.
mod snapshot;
/// `msb start`: starts stopped sandboxes.
mod start;
/// `msb stop`: stops sandboxes.
pub(crate) mod stop;
/// Sandboxes that are stopping.
mod stopping;
/// The names of the verbs.
pub(crate) mod table;
/// `msb uninstall`: removes commands that `msb install` made.
mod uninstall;
/// `msb volume`: manages named volumes.
pub(crate) mod volume;
/// `msb wait`: waits for the end of sandboxes.
mod wait;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use libmsb::cli::args::{EnvVar, SandboxName, parse_duration, parse_env, read_env_file};
use libmsb::cli::error::{Code, Failure, print_failure, print_note, print_warning_with_hint};
use libmsb::cli::escape::escape;
use libmsb::cli::exit;
use libmsb::cli::verbosity::{self, Verbosity, log};
use libmsb::state::Home;
use libmsb::state::spec::MainLimits;
use msb_wire::client::{ClientConnection, Incoming};
use msb_wire::exec::{ExecEvent, ExecRequest, FailureKind, RESOURCES, Rlimit};
use msb_wire::sandbox::Request;
use msb_wire::text::Text;
use rustix::fs::{FileType, fstat, makedev};

use crate::detach_keys::DetachKeys;
use crate::session::SessionOutcome;
use crate::spec_builder;
use crate::terminal::window_size;

/// Timeout for a starting sandbox to listen on its socket. It listens before it waits for anything,
/// but a host that starts many sandboxes at once may be slow.
const SOCKET_TIMEOUT: Duration = Duration::from_secs(30);

/// Name of this program in the handshake with a supervisor.
const CLIENT_NAME: &str = concat!("msb-run ", env!("CARGO_PKG_VERSION"));

/// Options for the environment, directory and user of commands, common to `run`, `create` and
/// `exec`.
#[derive(Debug, Args)]
pub(crate) struct CommandContextArgs {
    /// Set an environment variable; NAME alone copies it from this environment
    ///
    /// It is an error if NAME alone is not set. Names that start with `MSB_` are reserved. These
    /// variables override those of `--env-file` and of the image.
    #[arg(short, long, value_name = "NAME[=VALUE]", help_heading = "Command")]
    env: Vec<OsString>,
    /// Set the environment variables in a file, one NAME=VALUE per line
    ///
    /// A line can also be a name alone, which copies the variable from this environment. Empty
    /// lines and lines that start with `#` are ignored. Quotes are part of the value.
    #[arg(long, value_name = "FILE", help_heading = "Command")]
    env_file: Vec<PathBuf>,
    /// Set the working directory in the guest
    #[arg(short, long, value_name = "DIR", help_heading = "Command")]
    pub(crate) workdir: Option<OsString>,
    /// Set the user and group, by name or number
    ///
    /// Names are looked up in `/etc/passwd` and `/etc/group` of the guest, and so is the value of
    /// `$HOME`.
    #[arg(short, long, value_name = "USER[:GROUP]", help_heading = "Command")]
    pub(crate) user: Option<OsString>,
}

impl CommandContextArgs {
    /// Returns whether one of the options was typed.
    pub(crate) fn is_given(&self) -> bool {
        !self.env.is_empty()
            || !self.env_file.is_empty()
            || self.workdir.is_some()
            || self.user.is_some()
    }

    /// Returns the environment variables. Of several with one name the last one counts.
    pub(crate) fn env(&self) -> anyhow::Result<Vec<EnvVar>> {
        let mut variables = Vec::new();
        for file in &self.env_file {
            variables.extend(read_env_file(file)?);
        }
        for text in &self.env {
            variables.push(parse_env(text)?);
        }
        Ok(variables)
    }
}

/// Options for the streams and limits of a command, common to `run` and `exec`.
#[derive(Debug, Args)]
pub(crate) struct CommandArgs {
    #[command(flatten)]
    pub(crate) context: CommandContextArgs,
    /// Allocate a terminal (the default when stdin and stdout are terminals)
    ///
    /// It has the size of the caller's terminal.
    #[arg(short, long, overrides_with = "no_tty", help_heading = "Command")]
    tty: bool,
    /// Do not allocate a terminal
    #[arg(long, help_heading = "Command")]
    no_tty: bool,
    /// Set the keys that detach from the command on a terminal
    ///
    /// KEYS are separated by commas: each is a character, or `ctrl-` and a character. The command
    /// continues as a job; msb-attach(1) attaches to it again. The first of several keys reaches
    /// the command half a second later if no other key follows.
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q", help_heading = "Command")]
    pub(crate) detach_keys: DetachKeys,
    /// Keep stdin open (the default; accepted for compatibility with docker)
    ///
    /// If standard input is `/dev/null` and there is no terminal, the command gets the `/dev/null`
    /// of the guest. A job (`msb exec --detach`) accepts input from clients that attach later only
    /// with this option or `--tty`; see msb-attach(1).
    #[arg(short, long, help_heading = "Command")]
    interactive: bool,
    /// Set a resource limit of the command, such as nofile=1024
    ///
    /// RESOURCE is a resource of setrlimit(2) in lower case, such as `nofile`, `nproc`, `core` or
    /// `stack`. A limit is a number or `unlimited`. Without HARD, both limits are SOFT.
    #[arg(
        long,
        value_name = "RESOURCE=SOFT[:HARD]",
        value_parser = parse_rlimit,
        help_heading = "Command"
    )]
    rlimit: Vec<Rlimit>,
    /// Kill the command after TIME, such as 30s or 5m
    ///
    /// The signal is SIGKILL, and the exit status is 124. TIME is a number of seconds, or a number
    /// with `ms`, `s`, `m`, `h` or `d`.
    ///
    /// With `msb run --detach`, the limits of `--rlimit` and `--timeout` are stored with a new
    /// sandbox. They apply whenever its main command runs without a client; the exit code is then
    /// in its status.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "Command")]
    timeout: Option<Duration>,
    /// Give the command an empty stdin
    #[arg(long, conflicts_with = "interactive", help_heading = "Command")]
    no_stdin: bool,
    #[command(flatten)]
    pub(crate) quiet: QuietArgs,
}

/// Option against messages, common to `run`, `create` and `exec`.
#[derive(Debug, Args)]
pub(crate) struct QuietArgs {
    /// Print no progress, notes and warnings
    #[arg(short, long, help_heading = "Output")]
    quiet: bool,
}

impl QuietArgs {
    /// Applies the option to this process and to a pull.
    pub(crate) fn apply(&self) {
        if self.quiet {
            verbosity::set(Verbosity::Error);
        }
    }
}

impl CommandArgs {
    /// Returns whether the command gets a terminal.
    pub(crate) fn is_tty(&self) -> bool {
        self.tty
            || (!self.no_tty && std::io::stdin().is_terminal() && std::io::stdout().is_terminal())
    }

    /// Returns whether a terminal was requested, even if this program has none.
    pub(crate) fn wants_tty(&self) -> bool {
        self.tty
    }

    /// Returns whether a detached command keeps its standard input open for clients that attach
    /// later.
    pub(crate) fn wants_stdin(&self) -> bool {
        (self.interactive || self.tty) && !self.no_stdin
    }

    /// Returns the limits of a detached main command.
    pub(crate) fn main_bounds(&self) -> MainLimits {
        MainLimits {
            rlimits: self.rlimit.clone(),
            timeout_ms: self.timeout.map(spec_builder::milliseconds),
        }
    }

    /// Returns the timeout of the command.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.timeout
    }

    /// Returns the request without environment variables: `exec` sends them with the request, `run`
    /// stores them in the sandbox.
    pub(crate) fn request(&self, argv: Vec<Text>, tty: bool) -> ExecRequest {
        ExecRequest {
            argv,
            env: if tty { terminal_env() } else { Vec::new() },
            cwd: self.context.workdir.clone().map(Text::from),
            user: self.context.user.clone().map(Text::from),
            tty: tty.then(window_size),
            tty_modes: Vec::new(),
            stdin: !self.no_stdin && (tty || !is_null_device(std::io::stdin())),
            rlimits: self.rlimit.clone(),
            login: false,
            log: false,
            main: false,
            hold: false,
            job: false,
            timeout_ms: None,
        }
    }
}

/// Returns whether a descriptor is `/dev/null`. The guest has its own, so no input has to be
/// forwarded.
fn is_null_device(descriptor: impl AsFd) -> bool {
    // Linux, Documentation/admin-guide/devices.txt: character device 1, 3.
    let null = makedev(1, 3);
    fstat(descriptor).is_ok_and(|stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == null
    })
}

fn parse_rlimit(text: &str) -> Result<Rlimit, String> {
    let value = |text: &str| match text {
        "unlimited" | "-1" => Ok(None),
        _ => {
            text.parse().map(Some).map_err(|_| "a limit must be a number or 'unlimited'".to_owned())
        }
    };
    let (resource, limits) = text.split_once('=').ok_or("not of the form RESOURCE=SOFT[:HARD]")?;
    let resource = resource.to_ascii_lowercase();
    if !RESOURCES.contains(&resource.as_str()) {
        return Err(format!("not one of {}", RESOURCES.join(", ")));
    }
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    let (soft, hard) = (value(soft)?, value(hard)?);
    if hard.is_some_and(|hard| soft.is_none_or(|soft| soft > hard)) {
        return Err("the soft limit exceeds the hard limit".to_owned());
    }
    Ok(Rlimit { resource, soft, hard })
}

/// Returns the variable that names the type of this terminal.
fn terminal_env() -> Vec<Text> {
    let term = std::env::var("TERM").ok().filter(|term| !term.is_empty() && term != "dumb");
    vec![Text::from(format!("TERM={}", term.as_deref().unwrap_or("xterm")))]
}

/// Reports the outcome of a command where necessary, and returns the exit code.
pub(crate) fn report_outcome(
    tool: &str,
    sandbox: &SandboxName,
    outcome: &SessionOutcome,
) -> anyhow::Result<u8> {
    if outcome.output_closed {
        // Exit as if SIGPIPE had killed the command on this host.
        return Ok(exit::of_signal(13));
    }
    if outcome.timed_out {
        let failure = Failure::failed("the command exceeded its timeout and was killed");
        print_failure(tool, &failure.code(Code::ExecTimeout).into());
        return Ok(exit::TIMED_OUT);
    }
    if let Some(signal) = outcome.interrupted_by {
        return Ok(exit::of_signal(signal));
    }
    if let Some(job) = &outcome.detached {
        print_note(
            tool,
            &format!("detached; attach to the command again with: msb attach {sandbox} {job}"),
        );
        return Ok(0);
    }
    let Some(event) = &outcome.event else {
        return Err(ended_error("the sandbox ended before the command did"));
    };
    match event {
        ExecEvent::Failed { kind, message } => {
            let failure = Failure::failed(format!("in the guest: {}", escape(message)));
            print_failure(tool, &failure.exec_failed(*kind).into());
        }
        ExecEvent::Exited { oom_killed: true, .. } => print_warning_with_hint(
            tool,
            "the guest ran out of memory and its kernel killed the command",
            "give the sandbox more memory: msb run --memory SIZE",
        ),
        _ => {}
    }
    Ok(event.exit_code().unwrap_or(i32::from(exit::COMMAND_NOT_STARTED)) as u8)
}

/// Returns the error for an answer that refuses the request.
pub(crate) fn refusal(name: &SandboxName, message: &[u8]) -> Failure {
    match serde_json::from_slice(message) {
        Ok(ExecEvent::Failed { kind: FailureKind::Paused, .. }) => paused(name),
        Ok(ExecEvent::Failed { kind, message }) => {
            let failure = Failure::failed(escape(&message).into_owned());
            if kind == FailureKind::UnsupportedOperation {
                failure.code(Code::UnsupportedOperation)
            } else {
                failure.exec_failed(kind)
            }
        }
        _ => Failure::failed("cannot parse the answer of the sandbox"),
    }
}

/// Returns the error of a request that a paused sandbox does not serve.
pub(crate) fn paused(name: &SandboxName) -> Failure {
    Failure::wrong_state(format!("the sandbox '{name}' is paused"))
        .hint(format!("resume it: msb resume {name}"))
}

/// Makes a call that has a single event as its answer.
pub(crate) fn answer(connection: ClientConnection, request: &Request) -> anyhow::Result<Vec<u8>> {
    let mut call = connection.open(request)?;
    while let Ok(Some(incoming)) = call.reader.receive() {
        if let Incoming::Event { message, last: true } = incoming {
            return Ok(message);
        }
    }
    Err(ended_error("the sandbox ended before it answered"))
}

/// Returns the error for a sandbox that ended during a call.
fn ended_error(message: &str) -> anyhow::Error {
    let failure = Failure::failed(message).code(Code::SandboxNotRunning);
    failure.into()
}

/// Connects to a running sandbox.
pub(crate) fn connect(home: &Home, name: &SandboxName) -> anyhow::Result<ClientConnection> {
    let sandbox = home.sandboxes().find(name)?;
    let socket = home.agent_socket(name);
    let deadline = Instant::now() + SOCKET_TIMEOUT;
    loop {
        match ClientConnection::connect(&socket, CLIENT_NAME) {
            Err(error) if error.is_gone() && !sandbox.is_alive()? => {
                return Err(Failure::wrong_state(format!("the sandbox '{name}' is not running"))
                    .code(Code::SandboxNotRunning)
                    .hint(format!("start it: msb start {name}"))
                    .into());
            }
            // The sandbox is starting or ending: the lock is held before the socket exists and
            // after it is gone.
            Err(error) if error.is_gone() && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            result => {
                let connection = result?;
                log(Verbosity::Debug, || format!("connected to the sandbox '{name}'"));
                return Ok(connection);
            }
        }
    }
}
