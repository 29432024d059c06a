//! What people type.

/// `msb attach`: be with a job.
pub(crate) mod attach;
/// `msb cp`: files into and out of sandboxes.
pub(crate) mod cp;
/// `msb create`: a sandbox that lasts.
pub(crate) mod create;
/// The keys that leave a job alone again.
mod detach_keys;
/// `msb doctor`: what this host can do.
pub(crate) mod doctor;
/// `msb events`: what happens to sandboxes.
pub(crate) mod events;
/// `msb exec`: a command in a running sandbox.
pub(crate) mod exec;
/// `msb inspect`: all that is known of a sandbox.
pub(crate) mod inspect;
/// `msb jobs`: commands that go on by themselves.
pub(crate) mod jobs;
/// `msb logs`: what commands printed.
pub(crate) mod logs;
/// `msb ls`: the sandboxes.
pub(crate) mod ls;
/// `msb modify`: what a sandbox should be from its next start on.
pub(crate) mod modify;
/// `msb pause` and `msb resume`: the processors of guests.
pub(crate) mod pause;
/// `msb ping`: whether guests are alive.
pub(crate) mod ping;
/// `msb ps`: the sandboxes that run, and what runs in them.
pub(crate) mod ps;
/// `msb restart`: stop and start again.
pub(crate) mod restart;
/// `msb rm`: remove sandboxes.
pub(crate) mod rm;
/// `msb run`: a command in a sandbox of its own.
pub(crate) mod run;
/// The sandboxes that are meant: by name, by label, or named on standard input.
mod selection;
/// `msb signal`: a signal to a job.
pub(crate) mod signal;
/// `msb start`: start sandboxes that were stopped.
pub(crate) mod start;
/// `msb stop`: stop sandboxes.
pub(crate) mod stop;
/// `msb volume`: named volumes.
pub(crate) mod volume;
/// `msb wait`: wait for the end of sandboxes.
pub(crate) mod wait;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use libmsb::cli::args::{EnvVar, SandboxName, parse_duration, parse_env, read_env_file};
use libmsb::cli::error::{Code, Failure, print_error, print_hint, print_warning};
use libmsb::cli::escape::escape;
use libmsb::cli::exit;
use libmsb::cli::verbosity::{Verbosity, say};
use libmsb::state::Home;
use libmsb::state::spec::MainBounds;
use msb_wire::client::{Connection, Incoming};
use msb_wire::exec::{ExecEvent, ExecRequest, FailureKind, RESOURCES, Rlimit};
use msb_wire::sandbox::Request;
use msb_wire::text::Text;
use rustix::fs::{FileType, fstat, makedev};

use crate::microsandbox::Stored;
use crate::plan;
use crate::session::Outcome;
use crate::terminal::window_size;

/// Time for a sandbox that has begun to start to listen. It does so before it waits for anything; but a host on which many
/// start at once may be slow.
const SOCKET_TIMEOUT: Duration = Duration::from_secs(30);

/// What we call ourselves to a supervisor.
const PROGRAM: &str = concat!("msb-run ", env!("CARGO_PKG_VERSION"));

/// As whom, where and with which variables commands run: the same for `run`, `create` and `exec`.
#[derive(Debug, Args)]
pub(crate) struct SettingArgs {
    /// Set a variable; without a value, take that of the host
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<OsString>,
    /// Set the variables of a file, one a line; --env has the last word
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Directory to start in
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<OsString>,
    /// User, and group, to run as: names or numbers of the guest
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<OsString>,
}

impl SettingArgs {
    /// Takes over what a stored configuration says where nothing was typed; its variables are below those that were.
    pub(crate) fn fill_in(&mut self, stored: &Stored) {
        let variables = stored.env.iter();
        let mut env: Vec<OsString> = variables
            .map(|(name, value)| format!("{name}={value}").into())
            .collect();
        env.append(&mut self.env);
        self.env = env;
        self.workdir = self
            .workdir
            .take()
            .or_else(|| stored.workdir.clone().map(Into::into));
        self.user = self
            .user
            .take()
            .or_else(|| stored.user.clone().map(Into::into));
    }

    /// The variables. Of two with one name, the later one counts.
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

/// How a command is connected: the same for `run` and `exec`.
#[derive(Debug, Args)]
pub(crate) struct CommandArgs {
    #[command(flatten)]
    pub(crate) setting: SettingArgs,
    /// Run on a terminal (the default when input and output are one)
    #[arg(short, long, overrides_with = "no_tty")]
    tty: bool,
    /// Do not run on a terminal
    #[arg(long)]
    no_tty: bool,
    /// Pass input on (always done, unless --no-stdin is given; for those who are used to typing it)
    #[arg(short, long)]
    interactive: bool,
    /// Limit a resource of the command, as nofile=1024 or stack=8388608:unlimited
    #[arg(long, value_name = "RESOURCE=SOFT[:HARD]", value_parser = parse_rlimit)]
    rlimit: Vec<Rlimit>,
    /// Kill the command when it has run for so long: in seconds or with a unit
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    timeout: Option<Duration>,
    /// Do not read input: the command sees an empty one
    #[arg(long, conflicts_with = "interactive")]
    no_stdin: bool,
}

impl CommandArgs {
    /// Whether the command gets a terminal.
    pub(crate) fn is_tty(&self) -> bool {
        self.tty
            || (!self.no_tty && std::io::stdin().is_terminal() && std::io::stdout().is_terminal())
    }

    /// Whether a terminal was asked for, whatever ours is.
    pub(crate) fn wants_tty(&self) -> bool {
        self.tty
    }

    /// Whether a command that nobody is connected to is to have an input: for those who attach later.
    pub(crate) fn wants_stdin(&self) -> bool {
        (self.interactive || self.tty) && !self.no_stdin
    }

    /// What a main command may use that nobody is attached to.
    pub(crate) fn main_bounds(&self) -> MainBounds {
        MainBounds {
            rlimits: self.rlimit.clone(),
            timeout_ms: self.timeout.map(plan::milliseconds),
        }
    }

    /// How long the command may run.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.timeout
    }

    /// The request, without variables: `exec` sends them with it, `run` has them in the sandbox.
    pub(crate) fn request(&self, argv: Vec<Text>, tty: bool) -> ExecRequest {
        ExecRequest {
            argv,
            env: if tty { terminal_env() } else { Vec::new() },
            cwd: self.setting.workdir.clone().map(Text::from),
            user: self.setting.user.clone().map(Text::from),
            tty: tty.then(window_size),
            tty_modes: Vec::new(),
            stdin: !self.no_stdin && (tty || !is_null_device(std::io::stdin())),
            rlimits: self.rlimit.clone(),
            login: false,
            log: false,
            main: false,
            job: false,
            timeout_ms: None,
        }
    }
}

/// Whether a descriptor is `/dev/null`, of which the guest has one of its own: no input has to be passed on.
fn is_null_device(descriptor: impl AsFd) -> bool {
    // Linux, Documentation/admin-guide/devices.txt: memory devices, the third.
    let null = makedev(1, 3);
    fstat(descriptor).is_ok_and(|stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == null
    })
}

fn parse_rlimit(text: &str) -> Result<Rlimit, String> {
    let value = |text: &str| match text {
        "unlimited" | "-1" => Ok(None),
        _ => text
            .parse()
            .map(Some)
            .map_err(|_| "a limit is a number or 'unlimited'".to_owned()),
    };
    let (resource, limits) = text
        .split_once('=')
        .ok_or("not of the form RESOURCE=SOFT[:HARD]")?;
    let resource = resource.to_ascii_lowercase();
    if !RESOURCES.contains(&resource.as_str()) {
        return Err(format!("not one of {}", RESOURCES.join(", ")));
    }
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    let (soft, hard) = (value(soft)?, value(hard)?);
    if hard.is_some_and(|hard| soft.is_none_or(|soft| soft > hard)) {
        return Err("the soft limit is above the hard one".to_owned());
    }
    Ok(Rlimit {
        resource,
        soft,
        hard,
    })
}

/// Programs in the guest must know what our terminal understands.
fn terminal_env() -> Vec<Text> {
    let term = std::env::var("TERM")
        .ok()
        .filter(|term| !term.is_empty() && term != "dumb");
    vec![Text::from(format!(
        "TERM={}",
        term.as_deref().unwrap_or("xterm")
    ))]
}

/// Tells how a command ended, where there is something to tell, and gives the exit code.
pub(crate) fn tell_end(tool: &str, outcome: &Outcome) -> anyhow::Result<u8> {
    if outcome.output_closed {
        // As if SIGPIPE had ended the command here.
        return Ok(exit::of_signal(13));
    }
    if outcome.timed_out {
        print_error(tool, "the command did not end in time and was killed");
        return Ok(exit::TIMED_OUT);
    }
    if let Some(signal) = outcome.interrupted_by {
        return Ok(exit::of_signal(signal));
    }
    let Some(event) = &outcome.event else {
        return Err(gone("the sandbox ended before the command did"));
    };
    match event {
        ExecEvent::Failed { message, .. } => {
            print_error(tool, &format!("in the guest: {}", escape(message)));
        }
        ExecEvent::Exited {
            oom_killed: true, ..
        } => {
            print_warning(
                tool,
                "the guest ran out of memory, and its kernel killed the command",
            );
            print_hint(tool, "give the sandbox more: msb run --memory SIZE");
        }
        _ => {}
    }
    Ok(event
        .exit_code()
        .unwrap_or(i32::from(exit::COMMAND_NOT_STARTED)) as u8)
}

/// The answer of a peer that does not serve what it was asked for.
pub(crate) fn refusal(name: &SandboxName, message: &[u8]) -> Failure {
    match serde_json::from_slice(message) {
        Ok(ExecEvent::Failed {
            kind: FailureKind::Paused,
            ..
        }) => paused(name),
        Ok(ExecEvent::Failed { kind, message }) => {
            let failure = Failure::failed(escape(&message).into_owned());
            if kind == FailureKind::UnsupportedOperation {
                failure.code(Code::UnsupportedOperation)
            } else {
                failure
            }
        }
        _ => Failure::failed("the sandbox gave an answer that cannot be understood"),
    }
}

/// Returns the error of a request that a paused sandbox does not serve.
pub(crate) fn paused(name: &SandboxName) -> Failure {
    Failure::wrong_state(format!("the sandbox '{name}' is paused"))
        .hint(format!("resume it: msb resume {name}"))
}

/// Makes a call whose one answer is its last event.
pub(crate) fn answer(connection: Connection, request: &Request) -> anyhow::Result<Vec<u8>> {
    let mut call = connection.open(request)?;
    while let Ok(Some(incoming)) = call.reader.receive() {
        if let Incoming::Event {
            message,
            last: true,
        } = incoming
        {
            return Ok(message);
        }
    }
    Err(gone("the sandbox ended before it answered"))
}

/// A sandbox that has ended while it was spoken to.
fn gone(message: &str) -> anyhow::Error {
    let failure = Failure::failed(message).code(Code::SandboxNotRunning);
    failure.into()
}

/// Connects to a sandbox that must be there and running.
pub(crate) fn connect(home: &Home, name: &SandboxName) -> anyhow::Result<Connection> {
    let sandbox = home.sandboxes().find(name)?;
    let socket = home.agent_socket(name);
    let deadline = Instant::now() + SOCKET_TIMEOUT;
    loop {
        match Connection::connect(&socket, PROGRAM) {
            Err(error) if error.is_gone() && !sandbox.is_alive()? => {
                return Err(
                    Failure::wrong_state(format!("the sandbox '{name}' is not running"))
                        .code(Code::SandboxNotRunning)
                        .hint(format!("start it: msb start {name}"))
                        .into(),
                );
            }
            // It is just starting or ending: the lock is held a moment longer than the socket is there.
            Err(error) if error.is_gone() && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            result => {
                let connection = result?;
                say(Verbosity::Debug, || {
                    format!("connected to the sandbox '{name}'")
                });
                return Ok(connection);
            }
        }
    }
}
