//! What people type.

/// `msb cp`: files into and out of sandboxes.
pub(crate) mod cp;
/// `msb exec`: a command in a running sandbox.
pub(crate) mod exec;
/// `msb logs`: what commands printed.
pub(crate) mod logs;
/// `msb ls`: the sandboxes.
pub(crate) mod ls;
/// `msb rm`: remove sandboxes.
pub(crate) mod rm;
/// `msb run`: a command in a sandbox of its own.
pub(crate) mod run;
/// `msb stop`: stop sandboxes.
pub(crate) mod stop;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use clap::Args;
use libmsb::cli::args::{EnvVar, SandboxName, parse_duration, parse_env};
use libmsb::cli::error::{Failure, print_error, print_hint};
use libmsb::cli::escape::escape;
use libmsb::cli::exit;
use libmsb::state::Home;
use msb_wire::client::{ClientError, Connection};
use msb_wire::exec::{ExecEvent, ExecRequest, RESOURCES, Rlimit};
use msb_wire::text::Text;

use crate::session::Outcome;
use crate::terminal::window_size;

/// Time for a sandbox that has begun to start to listen.
const SOCKET_TIMEOUT: Duration = Duration::from_secs(5);

/// What we call ourselves to a supervisor.
const PROGRAM: &str = concat!("msb-run ", env!("CARGO_PKG_VERSION"));

/// How a command is connected, and as whom it runs: the same for `run` and `exec`.
#[derive(Debug, Args)]
pub(crate) struct CommandArgs {
    /// Set a variable; without a value, take that of the host
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<OsString>,
    /// Directory to start in
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<OsString>,
    /// User, and group, to run as: names or numbers of the guest
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<OsString>,
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

    /// Whether the command has limits of its own.
    pub(crate) fn is_bounded(&self) -> bool {
        self.timeout.is_some() || !self.rlimit.is_empty()
    }

    /// How long the command may run.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.timeout
    }

    /// The variables.
    pub(crate) fn env(&self) -> Result<Vec<EnvVar>, Failure> {
        self.env.iter().map(|text| parse_env(text)).collect()
    }

    /// The request, without variables: `exec` sends them with it, `run` has them in the sandbox.
    pub(crate) fn request(&self, argv: Vec<Text>, tty: bool) -> ExecRequest {
        ExecRequest {
            argv,
            env: if tty { terminal_env() } else { Vec::new() },
            cwd: self.workdir.clone().map(Text::from),
            user: self.user.clone().map(Text::from),
            tty: tty.then(window_size),
            stdin: !self.no_stdin,
            rlimits: self.rlimit.clone(),
            log: false,
            main: false,
        }
    }
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
        return Err(Failure::failed("the sandbox ended before the command did").into());
    };
    if let ExecEvent::Failed { message, .. } = event {
        print_error(tool, &format!("in the guest: {}", escape(message)));
    }
    Ok(event
        .exit_code()
        .unwrap_or(i32::from(exit::COMMAND_NOT_STARTED)) as u8)
}

/// Connects to a sandbox that must be there and running.
pub(crate) fn connect(home: &Home, name: &SandboxName) -> anyhow::Result<Connection> {
    let sandbox = home.sandboxes().find(name)?;
    let socket = home.agent_socket(name);
    let deadline = Instant::now() + SOCKET_TIMEOUT;
    loop {
        match Connection::connect(&socket, PROGRAM) {
            Err(ClientError::Connect(_)) if !sandbox.is_alive()? => {
                return Err(
                    Failure::wrong_state(format!("the sandbox '{name}' is not running"))
                        .hint(format!("start it: msb run --name {name} IMAGE"))
                        .into(),
                );
            }
            // It is just starting: the lock is taken a moment before the socket is there.
            Err(ClientError::Connect(_)) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            result => return Ok(result?),
        }
    }
}

/// Does the same with several names; each failure is told, and the worst one is the result.
pub(crate) fn for_each(
    tool: &'static str,
    names: &[SandboxName],
    mut act: impl FnMut(&SandboxName) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let [.., last] = names else { return Ok(()) };
    let mut failed = None;
    for name in names {
        let Err(error) = act(name) else { continue };
        if name == last && failed.is_none() {
            return Err(error);
        }
        let text = libmsb::cli::error::message(&error);
        print_error(tool, &text);
        failed = Some(error);
    }
    match failed {
        None => Ok(()),
        Some(_) => {
            print_hint(tool, "the others were done");
            Err(Failure::failed("not all could be done").into())
        }
    }
}
