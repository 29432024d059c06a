//! `msb run`: runs a command in a sandbox of its own.
//!
//! A sandbox without a name is removed when its command ends. A sandbox with a name stays, stopped;
//! a later `run` with the same name starts it again with the same disk.

use std::ffi::OsString;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{ArgGroup, Parser};
use libmsb::cli::args::SandboxName;
use libmsb::cli::error::{
    Code, Failure, code, print_failure, print_warning, print_warning_with_hint,
};
use libmsb::cli::escape::escape;
use libmsb::cli::output;
use libmsb::state::lock::Lock;
use libmsb::state::sandboxes::Sandbox;
use libmsb::state::spec::{MainLimits, Spec};
use libmsb::state::status::State;
use libmsb::state::{Home, layout};
use msb_wire::client::{CallReader, ClientConnection};
use msb_wire::exec::{ExecEvent, ExecRequest, FailureKind};
use msb_wire::text::Text;

use super::stopping::wait_while_stopping;
use super::{CLIENT_NAME, CommandArgs, connect, paused, report_outcome};
use crate::launch::{Keepalive, SupervisorHandle, launch};
use crate::mounts::SandboxVolumes;
use crate::new_sandbox::differences::check_command;
use crate::new_sandbox::{SandboxArgs, create_sandbox, discard_unstarted};
use crate::root::{RootArg, parse_root};
use crate::session::{self, SessionStreams};
use crate::snapshot::option::SnapshotOption;
use crate::startup::{BootTimes, monotonic_ns};

const TOOL: &str = "msb-run";

/// Time for a sandbox that another process creates, starts or stops.
const JOIN_TIMEOUT: Duration = Duration::from_secs(60);
/// Interval at which its state is read.
const JOIN_INTERVAL: Duration = Duration::from_millis(20);

/// Run a command from an image in a microVM of its own
#[derive(Debug, Parser)]
#[command(
    name = TOOL,
    version,
    group = ArgGroup::new("named").args(["name", "file"]).multiple(true),
    override_usage = "msb run [OPTIONS] IMAGE [COMMAND...]\n       msb run [OPTIONS] --snapshot SNAPSHOT [COMMAND...]\n       msb run [OPTIONS] --file FILE [COMMAND...]",
    after_help = "Examples:\n  msb run alpine uname -a\n  msb run --rm -it debian bash\n  msb run -d --name worker python\n  tar c . | msb run alpine -- tar t\n  msb run -d --file web.yaml"
)]
pub(crate) struct RunArgs {
    /// Image, or the path of a directory or disk image as the root
    ///
    /// An image that starts with `/`, `./` or `../`, or is `.` or `..`, is a path; see **Root from
    /// a host path**.
    #[arg(
        required_unless_present_any = ["snapshot", "file"],
        value_parser = OsStringValueParser::new().try_map(parse_root)
    )]
    image: Option<RootArg>,
    /// Command and arguments, instead of the command of the image
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
    /// Name the sandbox, and keep it when its command ends
    ///
    /// A name is made of letters, digits, `.`, `_` and `-`, starts with a letter or digit, and has
    /// at most 128 bytes. Without this option the name is `msb-` and eight hexadecimal digits.
    #[arg(short, long)]
    name: Option<SandboxName>,
    /// Run the sandbox in the background and print its name
    ///
    /// The command returns when the guest accepts commands. If a command is given, the sandbox ends
    /// with that command. Otherwise it runs until msb-stop(1), even if the command of the image
    /// ends.
    #[arg(short, long)]
    detach: bool,
    /// Run the command in the sandbox of that name if it is running already
    ///
    /// Without this option a running sandbox is an error. With it the sandbox ends with the last of
    /// the commands that were started so, instead of with the first.
    #[arg(long, requires = "name", conflicts_with_all = ["detach", "replace", "replace_with_timeout"])]
    join: bool,
    #[command(flatten)]
    connected: CommandArgs,
    #[command(flatten)]
    sandbox_args: SandboxArgs,
    #[command(flatten)]
    from: SnapshotOption,
    /// Print how long each phase of the start took
    ///
    /// The phases image, VMM, kernel, agent and command are printed to standard error at the end.
    #[arg(long, help_heading = "Output")]
    time: bool,
}

impl RunArgs {
    /// Returns the source of the root: the image or the snapshot.
    fn root(&self) -> anyhow::Result<RootArg> {
        self.from.root(self.image.as_ref())
    }
}

/// A locked sandbox, ready to be started.
struct LockedSandbox {
    sandbox: Sandbox,
    spec: Spec,
    lock: Lock,
    /// The volumes of a new sandbox.
    volumes: Option<SandboxVolumes>,
    /// Set when the sandbox existed before, with its own specification.
    existed: bool,
}

pub(crate) fn run(mut args: RunArgs) -> anyhow::Result<u8> {
    args.sandbox_args.is_attached = !args.detach;
    let start_ns = monotonic_ns();
    args.connected.quiet.apply();
    args.sandbox_args.apply_log_level();
    let home = Home::from_env()?;
    let file = args.sandbox_args.read_file(&home, args.name.as_ref())?;
    args.name = args.name.or(file.name);
    args.image = args.image.or(file.root);
    let tty = !args.detach && args.connected.is_tty();
    let deadline = Instant::now() + JOIN_TIMEOUT;
    loop {
        let error = match create_or_lock(&home, &args, tty) {
            Ok(locked) => return run_locked(&args, locked, tty, start_ns),
            Err(error) => error,
        };
        let name = args.name.as_ref().filter(|_| args.join && is_taken(&error));
        let Some(name) = name.filter(|_| Instant::now() < deadline) else {
            return Err(error);
        };
        if let Some(code) = run_in_running(&home, name, &args, tty)? {
            return Ok(code);
        }
        // Another process creates, starts or stops the sandbox.
        std::thread::sleep(JOIN_INTERVAL);
    }
}

/// Returns whether an error is due to a sandbox of the same name.
fn is_taken(error: &anyhow::Error) -> bool {
    matches!(code(error), Code::SandboxStillRunning | Code::SandboxAlreadyExists)
}

fn run_locked(
    args: &RunArgs,
    mut locked: LockedSandbox,
    tty: bool,
    start_ns: u64,
) -> anyhow::Result<u8> {
    let argv = command(args, &locked.spec, locked.existed, tty)?;
    let (sandbox, existed) = (locked.sandbox.clone(), locked.existed);
    let volumes = locked.volumes.take();
    let ran =
        if args.detach { detach(locked) } else { run_attached(args, locked, argv, tty, start_ns) };
    match ran {
        Err(error) if !existed => Err(discard_unstarted(&sandbox, error)?),
        ran => {
            if let Some(volumes) = volumes {
                volumes.keep();
            }
            ran
        }
    }
}

/// Runs the command in a running sandbox, which does not end before it. Returns `None` if the
/// sandbox does not run, or ended before the command was started.
fn run_in_running(
    home: &Home,
    name: &SandboxName,
    args: &RunArgs,
    tty: bool,
) -> anyhow::Result<Option<u8>> {
    let sandbox = home.sandboxes().named(name);
    if !sandbox.dir.is_dir() {
        return Ok(None);
    }
    let spec = sandbox.spec()?;
    compare(home, args, &spec)?;
    let connection = match connect(home, name) {
        Err(error) if code(&error) == Code::SandboxNotRunning => return Ok(None),
        connection => connection?,
    };
    let argv = command(args, &spec, true, tty)?;
    let request = ExecRequest { hold: true, log: true, ..request(args, true, argv, tty)? };
    let streams = SessionStreams::acquire(tty)?
        .with_timeout(args.connected.timeout())
        .with_detach_keys(&args.connected.detach_keys);
    let (outcome, mut reader) = session::run(connection, request, streams)?;
    if let Some(ExecEvent::Failed { kind: FailureKind::Paused, .. }) = outcome.event {
        return Err(paused(name).into());
    }
    let is_over = outcome.started || outcome.interrupted_by.is_some();
    if !is_over && !is_running(&sandbox) {
        return Ok(None);
    }
    if outcome.detached.is_none() && outcome.interrupted_by.is_none() {
        wait_for_end(&sandbox, &mut reader)?;
    }
    report_outcome(TOOL, name, &outcome).map(Some)
}

/// Waits for the end of a sandbox after its last command; not while it runs others.
fn wait_for_end(sandbox: &Sandbox, reader: &mut CallReader) -> anyhow::Result<()> {
    while matches!(reader.receive(), Ok(Some(_))) {}
    let deadline = Instant::now() + JOIN_TIMEOUT;
    while !is_running(sandbox) && sandbox.is_alive()? && Instant::now() < deadline {
        std::thread::sleep(JOIN_INTERVAL);
    }
    Ok(())
}

/// Returns whether the guest of a sandbox serves commands.
fn is_running(sandbox: &Sandbox) -> bool {
    sandbox.snapshot().is_ok_and(|seen| seen.state == State::Running)
}

fn detach(locked: LockedSandbox) -> anyhow::Result<u8> {
    let name = locked.sandbox.name.clone();
    // Print the name when the guest accepts commands.
    let mut launched = launch(&name, locked.lock, Keepalive::None)?;
    launched.wait_until_ready()?;
    output::print(&name)?;
    Ok(0)
}

/// Runs the command until it ends.
fn run_attached(
    args: &RunArgs,
    locked: LockedSandbox,
    argv: Vec<Text>,
    tty: bool,
    start_ns: u64,
) -> anyhow::Result<u8> {
    let request = ExecRequest { main: true, ..request(args, locked.existed, argv, tty)? };
    let streams = SessionStreams::acquire(tty)?
        .with_timeout(args.connected.timeout())
        .with_detach_keys(&args.connected.detach_keys);
    let image_ns = monotonic_ns();
    let launched = launch(&locked.sandbox.name, locked.lock, Keepalive::Client)?;
    let (code, stamps) = attach(&locked.sandbox, launched, request, streams)?;
    if args.time {
        let end_ns = monotonic_ns();
        print_times(&StageTimes { start_ns, image_ns, stamps, end_ns });
    }
    Ok(code)
}

/// Creates the sandbox, or locks the existing one of this name.
fn create_or_lock(home: &Home, args: &RunArgs, tty: bool) -> anyhow::Result<LockedSandbox> {
    if let Some(name) = &args.name
        && args.sandbox_args.replace().is_none()
    {
        home.sandboxes().sweep_ephemeral(name);
        let sandbox = home.sandboxes().named(name);
        if sandbox.dir.is_dir() {
            return lock_existing(home, sandbox, args);
        }
    }
    let main = match args.connected.main_bounds() {
        _ if !args.detach => MainLimits::default(),
        bounds if bounds.is_empty() => args.sandbox_args.file_main(),
        bounds => bounds,
    };
    let created = create_sandbox(
        home,
        &args.root()?,
        args.name.as_ref(),
        args.name.is_none() || args.sandbox_args.removes_sandbox(),
        (&args.sandbox_args, &args.connected.context, &args.command),
        main,
        |spec| command(args, spec, false, tty).map(drop),
    )?;
    for warning in &created.warnings {
        print_warning(TOOL, warning);
    }
    Ok(LockedSandbox {
        sandbox: created.sandbox,
        spec: created.spec,
        lock: created.lock,
        volumes: Some(created.volumes),
        existed: false,
    })
}

/// Locks an existing sandbox. Warns that options for new sandboxes are ignored.
fn lock_existing(home: &Home, sandbox: Sandbox, args: &RunArgs) -> anyhow::Result<LockedSandbox> {
    let name = sandbox.name.clone();
    wait_while_stopping(&sandbox)?;
    let lock = sandbox.try_lock()?.with_context(|| {
        Failure::wrong_state(format!("the sandbox '{name}' is running"))
            .code(Code::SandboxStillRunning)
            .hint(format!("run a command in it: msb exec {name} -- COMMAND"))
    })?;
    if !args.detach && sandbox.path(layout::MEMORY).exists() {
        let message = format!("the sandbox '{name}' continues from saved memory at its next start");
        return Err(Failure::wrong_state(message)
            .hint(format!("start it: msb start {name}; --cold discards the memory"))
            .into());
    }
    let spec = sandbox.spec()?;
    compare(home, args, &spec)?;
    Ok(LockedSandbox { sandbox, spec, lock, volumes: None, existed: true })
}

/// Compares what was typed with an existing sandbox. Warns of options that are ignored.
fn compare(home: &Home, args: &RunArgs, spec: &Spec) -> anyhow::Result<()> {
    let name = &spec.name;
    let root = args.root()?;
    let is_snapshot = matches!(root, RootArg::Snapshot(_));
    if !is_snapshot && !root.matches(home, &spec.root)? {
        return Err(Failure::wrong_state(format!(
            "the sandbox '{name}' was created from '{}', not from '{root}'",
            escape(spec.root.name().as_bytes()),
        ))
        .hint(format!("choose another name, or remove it: msb rm {name}"))
        .into());
    }
    if args.sandbox_args.removes_sandbox() && !spec.ephemeral {
        return Err(Failure::wrong_state(format!(
            "the sandbox '{name}' already exists, and --rm applies to new sandboxes"
        ))
        .code(Code::SandboxAlreadyExists)
        .hint(format!("choose another name, or replace it: msb run --rm --replace --name {name}"))
        .into());
    }
    args.sandbox_args.check_existing(home, spec)?;
    let ignored = args.sandbox_args.ignored(spec).into_iter().map(str::to_owned);
    let differ = args.sandbox_args.file_differences(spec)?.into_iter();
    let mut ignored: Vec<String> =
        ignored.chain(differ.map(|field| format!("'{field}' of the file"))).collect();
    if args.detach {
        let typed: Vec<Text> = args.command.iter().cloned().map(Text::from).collect();
        check_command(spec, &typed)?;
        if args.connected.main_bounds() != spec.main && !args.connected.main_bounds().is_empty() {
            ignored.push("--rlimit and --timeout".to_owned());
        }
        if args.connected.context.is_given() {
            ignored.push("--env, --workdir and --user".to_owned());
        }
    }
    if is_snapshot {
        ignored.push("--snapshot".to_owned());
    }
    if !ignored.is_empty() {
        let ignored = ignored.join(", ");
        print_warning_with_hint(
            TOOL,
            &format!("the sandbox '{name}' already exists: ignored: {ignored}"),
            &format!("change it with 'msb modify {name}', or replace it with --replace"),
        );
    }
    Ok(())
}

/// Returns the command to run: the main command of a new sandbox; for an existing one the typed
/// command, else its main command. Without any it is a shell on a terminal, nothing for a detached
/// sandbox, and otherwise an error.
fn command(args: &RunArgs, spec: &Spec, existed: bool, tty: bool) -> anyhow::Result<Vec<Text>> {
    let typed: Vec<Text> = args.command.iter().cloned().map(Text::from).collect();
    let argv = if existed && !typed.is_empty() { typed } else { spec.command.clone() };
    if !argv.is_empty() || args.detach {
        return Ok(argv);
    }
    if tty {
        let shell = spec.guest.shell.clone();
        return Ok(vec![shell.unwrap_or_else(|| Text::from("/bin/sh"))]);
    }
    Err(Failure::usage(match &args.root()? {
        RootArg::Image(image) => {
            format!("the image '{}' has no default command", image.familiar())
        }
        root => format!("the root '{root}' has no default command"),
    })
    .hint("give a command: msb run IMAGE -- COMMAND")
    .into())
}

/// Returns the request for the command. A new sandbox has variables, directory and user in its
/// specification; an existing one gets them with the command.
fn request(
    args: &RunArgs,
    existed: bool,
    argv: Vec<Text>,
    tty: bool,
) -> anyhow::Result<ExecRequest> {
    let mut request = args.connected.request(argv, tty);
    if existed {
        request.env.extend(
            args.connected
                .context
                .env()?
                .iter()
                .map(|variable| Text::from(variable.to_assignment())),
        );
    } else {
        (request.cwd, request.user) = (None, None);
    }
    Ok(request)
}

/// Runs the command and waits for the end of the sandbox.
fn attach(
    sandbox: &Sandbox,
    mut launched: SupervisorHandle,
    request: ExecRequest,
    streams: SessionStreams,
) -> anyhow::Result<(u8, Option<BootTimes>)> {
    let session = (|| {
        let client = launched.client.take().context("no connection to the supervisor")?;
        session::run(ClientConnection::from_socket(client, CLIENT_NAME)?, request, streams)
    })();
    let (outcome, mut reader) = match session {
        Ok(session) => session,
        // The supervisor's own error has the cause.
        Err(error) => return Err(launched.wait_until_gone()?.error.unwrap_or(error)),
    };
    let name = &sandbox.name;
    if outcome.detached.is_some() {
        return Ok((report_outcome(TOOL, name, &outcome)?, None));
    }
    if outcome.interrupted_by.is_none() {
        // The supervisor closes the connection when the sandbox has ended, or at once if other
        // commands hold it.
        while matches!(reader.receive(), Ok(Some(_))) {}
        if is_running(sandbox) {
            return Ok((report_outcome(TOOL, name, &outcome)?, None));
        }
    }
    drop(reader);
    let exit = launched.wait_until_gone()?;
    match (report_outcome(TOOL, name, &outcome), exit.error) {
        (Ok(code), Some(error)) if outcome.event.is_some() => {
            print_failure(TOOL, &error);
            Ok((code, exit.stamps))
        }
        (Ok(code), _) => Ok((code, exit.stamps)),
        (Err(_), Some(error)) => Err(error),
        (Err(error), None) => Err(error),
    }
}

struct StageTimes {
    start_ns: u64,
    image_ns: u64,
    stamps: Option<BootTimes>,
    end_ns: u64,
}

fn print_times(times: &StageTimes) {
    let Some(stamps) = times.stamps else { return };
    let guest = stamps.guest_ready_ns;
    let until_ready = stamps.ready_ns.saturating_sub(times.image_ns);
    let rows = [
        (
            "image",
            times.image_ns.saturating_sub(times.start_ns),
            "find the image, create the sandbox",
        ),
        (
            "vmm",
            until_ready.saturating_sub(guest),
            if stamps.from_memory {
                "start the virtual machine, until its guest resumes"
            } else {
                "start the virtual machine, until its kernel runs"
            },
        ),
        ("kernel", stamps.guest_agent_ns, "until the agent runs"),
        ("agent", guest.saturating_sub(stamps.guest_agent_ns), "until the guest accepts commands"),
        (
            "command",
            times.end_ns.saturating_sub(stamps.ready_ns),
            "the command, and the sandbox's end",
        ),
        ("total", times.end_ns.saturating_sub(times.start_ns), ""),
    ];
    for (name, ns, what) in rows {
        eprintln!("{}", format!("{name:<8} {:>8.3} s   {what}", ns as f64 / 1e9).trim_end());
    }
}
