//! The operations on containers other than `create`.

use std::fs;
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

use crate::args::{Args, ExecArgs, Verb};
use crate::bundle::{self, GuestProcess};
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
        SIGKILL => kill_init(state.pid, state.started)?.is_some(),
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
        if let Some(init) = kill_init(state.pid, state.started)? {
            wait_for_end(&init)?;
        }
    }
    remove_sandbox(id, &state)?;
    dir.remove()
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
