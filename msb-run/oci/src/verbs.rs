//! The operations on containers other than `create`.

use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use libmsb::cli::args::SandboxName;
use libmsb::cli::error::Failure;
use libmsb::cli::output;
use libmsb::signal_number::SignalNumber;
use libmsb::tools;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;

use crate::args::{Args, CreateArgs, ExecArgs, PsFormat, Verb};
use crate::bundle::{self, GuestProcess};
use crate::cgroup::{Group, GroupLimits};
use crate::client::request;
use crate::create::create;
use crate::monitor::{env_file, exit_code, kill_init, set_environment};
use crate::state::{ContainerDir, ContainerState};
use crate::terminal;

/// Limit of the end of a killed process, and of its sandbox.
const END_SECONDS: i64 = 10;
/// Interval at which the sandbox is looked for.
const END_INTERVAL: Duration = Duration::from_millis(20);
/// SIGKILL, which only `init` receives.
const SIGKILL: i32 = 9;

/// Runs an operation. Returns the exit code.
pub(crate) fn run(args: &Args) -> anyhow::Result<u8> {
    let dir = |id: &SandboxName| ContainerDir::new(args.root.as_deref(), id);
    match &args.verb {
        Verb::Create(arguments) => create(args, arguments)?,
        Verb::Start { id } => start(&dir(id)?)?,
        Verb::State { id } => print_state(&dir(id)?, id)?,
        Verb::Kill { all, id, signal } => kill(&dir(id)?, id, *all, *signal)?,
        Verb::Delete { force, id } => delete(&dir(id)?, id, *force)?,
        Verb::Exec(arguments) => return exec(&dir(&arguments.id)?, arguments),
        Verb::Run(arguments) => return run_to_end(args, arguments),
        Verb::Ps { format, id } => print_processes(&dir(id)?, id, *format)?,
        Verb::Pause { id } => freeze(&dir(id)?, id, true)?,
        Verb::Resume { id } => freeze(&dir(id)?, id, false)?,
        Verb::Update { resources, id } => update(&dir(id)?, resources)?,
        Verb::Features => print_features()?,
    }
    Ok(0)
}

fn start(dir: &ContainerDir) -> anyhow::Result<()> {
    dir.read()?;
    request(dir, "start").map(drop)
}

/// Returns `created`, `running` or `stopped`.
fn status(dir: &ContainerDir, state: &ContainerState) -> String {
    if state.is_alive() && state.group.as_ref().is_some_and(Group::is_frozen) {
        return "paused".to_owned();
    }
    let asked = if state.is_alive() { request(dir, "status").ok() } else { None };
    asked.unwrap_or_else(|| "stopped".to_owned())
}

fn print_state(dir: &ContainerDir, id: &SandboxName) -> anyhow::Result<()> {
    let state = dir.read()?;
    let status = status(dir, &state);
    let pid = if status == "stopped" { 0 } else { state.pid };
    let shown = json!({
        "ociVersion": state.oci_version,
        "id": id.as_str(),
        "status": status,
        "pid": pid,
        "bundle": state.bundle,
        "annotations": state.annotations,
    });
    Ok(output::print(&shown)?)
}

fn kill(
    dir: &ContainerDir,
    id: &SandboxName,
    all: bool,
    signal: SignalNumber,
) -> anyhow::Result<()> {
    let state = dir.read()?;
    let number = signal.number();
    let sent = match number {
        SIGKILL => kill_frozen(&state)?.is_some(),
        _ => state.is_alive() && request(dir, &format!("signal {number}")).map(|_| true)?,
    };
    if sent || all {
        return Ok(());
    }
    Err(Failure::wrong_state(format!("the container '{id}' is not running")).into())
}

fn delete(dir: &ContainerDir, id: &SandboxName, force: bool) -> anyhow::Result<()> {
    if force && !dir.exists() {
        return Ok(());
    }
    let state = match dir.read_if_created()? {
        Some(state) => state,
        // `create` was killed.
        None if force => return dir.remove(),
        None => dir.read()?,
    };
    if state.is_alive() {
        if !force {
            let message = format!("the container '{id}' is not stopped");
            return Err(Failure::wrong_state(message).hint("use --force").into());
        }
        if let Some(init) = kill_frozen(&state)? {
            wait_for_end(&init)?;
        }
    }
    remove_sandbox(id, &state)?;
    state.group.as_ref().map_or(Ok(()), Group::remove)?;
    dir.remove()
}

/// Kills `init`. A frozen process ends only when it is thawed.
fn kill_frozen(state: &ContainerState) -> anyhow::Result<Option<OwnedFd>> {
    let killed = kill_init(state.pid, state.started)?;
    if let Some(group) = state.group.as_ref().filter(|group| group.is_frozen()) {
        group.freeze(false)?;
    }
    Ok(killed)
}

/// Creates and starts a container, waits for its end and removes it.
fn run_to_end(args: &Args, arguments: &CreateArgs) -> anyhow::Result<u8> {
    create(args, arguments)?;
    let dir = ContainerDir::new(args.root.as_deref(), &arguments.id)?;
    let code = start(&dir).and_then(|()| {
        let pid = rustix::process::Pid::from_raw(dir.read()?.pid);
        let ended = rustix::process::waitpid(pid, rustix::process::WaitOptions::empty());
        let (_, status) = ended.context("cannot wait for init")?.context("init has no status")?;
        let code = status.exit_status().or_else(|| status.terminating_signal().map(|n| 128 + n));
        Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
    });
    let deleted = delete(&dir, &arguments.id, true);
    let code = code?;
    deleted.map(|()| code)
}

fn print_processes(dir: &ContainerDir, id: &SandboxName, format: PsFormat) -> anyhow::Result<()> {
    let state = dir.read()?;
    if !state.is_alive() {
        return Err(Failure::wrong_state(format!("the container '{id}' is not running")).into());
    }
    let shown = match format {
        PsFormat::Json => json!([state.pid]).to_string(),
        PsFormat::Table => format!("PID\n{}", state.pid),
    };
    Ok(output::print(&shown)?)
}

fn freeze(dir: &ContainerDir, id: &SandboxName, frozen: bool) -> anyhow::Result<()> {
    let state = dir.read()?;
    let expected = if frozen { "running" } else { "paused" };
    if status(dir, &state) != expected {
        return Err(Failure::wrong_state(format!("the container '{id}' is not {expected}")).into());
    }
    let group = state.group.context(Failure::failed("the container has no control group"))?;
    group.freeze(frozen)
}

/// Memory of a guest without a limit in its configuration, in bytes.
const DEFAULT_MEMORY_BYTES: i64 = 512 << 20;
/// Limit of the resources of an update, in bytes.
const RESOURCES_BYTES_MAX: u64 = 1 << 20;

fn update(dir: &ContainerDir, path: &Path) -> anyhow::Result<()> {
    let mut state = dir.read()?;
    let file = if path == Path::new("-") { Path::new("/proc/self/fd/0") } else { path };
    let mut bytes = Vec::new();
    let opened = fs::File::open(file);
    opened
        .and_then(|file| file.take(RESOURCES_BYTES_MAX).read_to_end(&mut bytes))
        .with_context(|| format!("cannot read '{}'", path.display()))?;
    let resources = bundle::parse_resources(&bytes)?;
    let asked = resources.memory().as_ref().and_then(|memory| memory.limit()).unwrap_or(0);
    let has = state.limits.memory.unwrap_or(DEFAULT_MEMORY_BYTES);
    if asked > has {
        let message = "the memory of a container cannot grow while it exists";
        return Err(Failure::failed(message).into());
    }
    let group = state.group.clone();
    let group = group.context(Failure::failed("the container has no control group"))?;
    // The limit of memory stays as it is: that of the guest cannot change.
    let limits = GroupLimits::of(Some(&resources), None);
    group.limit(&limits)?;
    let memory = state.limits.memory;
    state.limits = limits;
    state.limits.memory = memory;
    dir.write(&state)
}

fn wait_for_end(process: &OwnedFd) -> anyhow::Result<()> {
    let limit = Timespec { tv_sec: END_SECONDS, tv_nsec: 0 };
    let ended = poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&limit));
    anyhow::ensure!(ended.context("cannot wait for init")? > 0, "init does not end");
    Ok(())
}

/// Waits for the end of the sandbox, which removes itself, and removes what a kill has left.
fn remove_sandbox(id: &SandboxName, state: &ContainerState) -> anyhow::Result<()> {
    let sandbox = libmsb::state::Home::at(&state.msb_home).sandboxes().named(id);
    let tries = END_SECONDS.unsigned_abs() * 50;
    for _ in 0..tries {
        if !sandbox.dir.is_dir() {
            return Ok(());
        }
        if !sandbox.is_alive()? {
            break;
        }
        std::thread::sleep(END_INTERVAL);
    }
    let mut command = tools::command("msb-rm")?;
    set_environment(&mut command, &state.msb_home);
    let output = command.args(["--force", id.as_str()]).output().context("cannot start msb-rm")?;
    let is_gone = output.status.success() || !sandbox.dir.is_dir();
    anyhow::ensure!(
        is_gone,
        "cannot remove the sandbox: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

fn exec(dir: &ContainerDir, args: &ExecArgs) -> anyhow::Result<u8> {
    let state = dir.read()?;
    if status(dir, &state) != "running" {
        return Err(
            Failure::wrong_state(format!("the container '{}' is not running", args.id)).into()
        );
    }
    let mut process = exec_process(args)?;
    process.terminal |= args.tty;
    let (options, variables) = process.options();
    let variables = env_file(&variables)?;
    let mut command: Command = tools::command("msb-exec")?;
    set_environment(&mut command, &state.msb_home);
    command.arg("--quiet").args(options).arg("--env-file");
    command.arg(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&variables)));
    command.arg(args.id.as_str()).arg("--").args(&process.args);
    if process.terminal {
        terminal::attach(&mut command, &terminal::open(args.console_socket.as_deref())?)?;
    }
    let mut child = command.spawn().context("cannot start msb-exec")?;
    if let Some(path) = &args.pid_file {
        write_pid(path, child.id())?;
    }
    if args.detach {
        return Ok(0);
    }
    Ok(exit_code(child.wait().context("cannot wait for msb-exec")?))
}

fn exec_process(args: &ExecArgs) -> anyhow::Result<GuestProcess> {
    if let Some(path) = &args.process {
        return bundle::read_process(path);
    }
    let words: Option<Vec<String>> =
        args.command.iter().map(|word| word.to_str().map(ToOwned::to_owned)).collect();
    let process =
        json!({"cwd": "/", "args": words.unwrap_or_default(), "user": {"uid": 0, "gid": 0}});
    bundle::parse_process(process.to_string().as_bytes())
}

fn write_pid(path: &Path, pid: u32) -> anyhow::Result<()> {
    fs::write(path, pid.to_string()).with_context(|| format!("cannot write '{}'", path.display()))
}

fn print_features() -> anyhow::Result<()> {
    let features = json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.2.0",
        "hooks": [],
        "mountOptions": ["bind", "rbind", "ro", "rro", "rprivate", "private", "rslave", "rshared"],
        "linux": {"namespaces": ["ipc", "mount", "network", "pid", "uts"]},
    });
    Ok(output::print(&features)?)
}
