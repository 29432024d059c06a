//! Handover to the image's own init.
//!
//! The init becomes PID 1 of a PID namespace in which all later commands run too, so it is PID 1
//! for all programs that read `/proc/1`, and for itself. The agent stays PID 1 of the kernel,
//! outside and invisible. So an init that kills all processes when it shuts down (systemd does)
//! cannot end the agent or the VM before the disk is flushed, and the kernel reports by a signal
//! how the init wanted to end the system (pid_namespaces(7): `reboot(2)` in such a namespace).

use std::ffi::{CString, c_int};
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use msb_wire::guest::{INIT_PATHS, InitRequest, Security};
use msb_wire::text::Text;
use rustix::fs::{Mode, OFlags, open};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, PidfdFlags, WaitStatus, pidfd_open};

use crate::boot::GuestState;
use crate::console::reason;
use crate::spawn::{SpawnPlan, SpawnStep, Spawner};
use crate::{exec, shutdown, sys};

/// `SIGRTMIN+4` of the C library: asks systemd to power off (systemd(1)).
const SIGRTMIN_PLUS_4: c_int = 38;

/// Tells an init that devices, modules and clock are managed outside. Otherwise it waits for a
/// device manager that images seldom have (systemd: container interface).
const CONTAINER_VARIABLE: &[u8] = b"container=msb";

/// Starts the init. Returns its process and its path.
pub(crate) fn start(
    guest: &GuestState,
    request: &InitRequest,
    spawner: &mut Spawner,
) -> Result<(Pid, Text), String> {
    let path = match &request.path {
        Some(path) => path.clone(),
        None => find()?,
    };
    let nul = || "a string contains a NUL byte".to_owned();
    let terminated = |text: &Text| CString::new(text.as_bytes()).map_err(|_| nul());
    let program = terminated(&path)?;
    let mut argv = vec![program.clone()];
    for arg in &request.args {
        argv.push(terminated(arg)?);
    }
    let mut env = guest.env.environment(false);
    env.set(CONTAINER_VARIABLE);
    for entry in &request.env {
        env.set(entry.as_bytes());
    }
    let limits = exec::limits(guest, &[]).map_err(|refused| refused.message)?;
    let pid = spawn(&[program], &argv, &env.into_strings(), &limits, spawner)
        .map_err(|why| format!("cannot execute '{}': {why}", path.to_lossy()))?;
    enter_namespace_of(pid)?;
    Ok((pid, path))
}

/// Finds the first init of the image.
fn find() -> Result<Text, String> {
    let is_program = |path: &str| {
        fs::metadata(path)
            .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    let found = INIT_PATHS.into_iter().find(|path| is_program(path));
    found.map(Text::from).ok_or_else(|| {
        let paths = INIT_PATHS.join("', '");
        format!("the image has no init: none of '{paths}' is an executable file")
    })
}

fn spawn(
    programs: &[CString],
    argv: &[CString],
    env: &[std::borrow::Cow<'_, std::ffi::CStr>],
    limits: &[(u32, libc::rlimit64)],
    spawner: &mut Spawner,
) -> Result<Pid, String> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let nothing = open("/dev/null", flags, Mode::empty()).map_err(reason)?;
    let console = open("/dev/console", flags, Mode::empty());
    let console = console.or_else(|_| nothing.try_clone().map_err(|_| rustix::io::Errno::MFILE));
    let console = console.map_err(reason)?;
    let plan = SpawnPlan {
        programs,
        argv,
        env,
        cwd: c"/",
        stdio: [nothing.as_fd(), console.as_fd(), console.as_fd()],
        terminal: false,
        limits,
        uid: 0,
        gid: 0,
        groups: &[],
        // An init needs its capabilities.
        security: Security::Default,
        init: true,
    };
    spawner.start(&plan).map_err(|failed| match failed.step {
        SpawnStep::Fork => format!("cannot create a PID namespace: {}", reason(failed.error)),
        _ => reason(failed.error),
    })
}

/// Makes later children start in the PID namespace of the init.
fn enter_namespace_of(init: Pid) -> Result<(), String> {
    let entered = pidfd_open(init, PidfdFlags::empty())
        .map_err(std::io::Error::from)
        .and_then(|init| sys::enter_pid_namespace(init.as_fd()));
    entered.map_err(|error| format!("cannot enter the namespace of the init: {}", reason(error)))
}

/// Asks the init to shut down: with the stop signal of the image if it handles that, else with
/// systemd's signal if it handles that, else with SIGTERM.
pub(crate) fn request_shutdown(init: Pid, stop_signal: Option<c_int>) {
    // This reads the /proc of the PID namespace, which is mounted over the agent's: the init is PID
    // 1 there.
    let status = fs::read_to_string("/proc/1/status").unwrap_or_default();
    let signals = [stop_signal, Some(SIGRTMIN_PLUS_4)].into_iter().flatten();
    let signal = signals.into_iter().find(|signal| listens(&status, *signal));
    let signal = signal.unwrap_or(libc::SIGTERM);
    sys::kill_process(init.as_raw_pid(), signal);
}

/// Returns whether a process catches a signal, or blocks it to read it from a signalfd
/// (proc_pid_status(5)).
fn listens(status: &str, signal: c_int) -> bool {
    let has = |name: &str| {
        let mask = status.lines().find_map(|line| line.strip_prefix(name));
        let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        mask.is_some_and(|mask| mask & (1 << (signal - 1)) != 0)
    };
    has("SigCgt:") || has("SigBlk:")
}

/// Unmounts the /proc of a namespace without processes, which is empty, so that the agent's own is
/// visible again.
pub(crate) fn uncover_proc() {
    if !Path::new("/proc/self").exists() {
        let _ = unmount("/proc", UnmountFlags::DETACH);
    }
}

/// Ends the VM in the way that the init asked for, with its disks flushed. Called when the init
/// ended without a shutdown request.
pub(crate) fn end_machine(status: WaitStatus) -> ! {
    match status.terminating_signal() {
        Some(libc::SIGHUP) => shutdown::end_vm(),
        Some(libc::SIGINT) => shutdown::power_off(),
        _ => {
            let how = match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => format!("with exit status {code}"),
                (_, Some(signal)) => format!("by signal {signal}"),
                _ => "for an unknown reason".to_owned(),
            };
            crate::console::log(&format!("error: the init ended {how}"));
            // With the agent PID 1 exits, as it would with an init that is PID 1 itself.
            std::process::exit(1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_init_handles_signals_that_it_catches_or_blocks() {
        let status = "Name:\tx\nSigBlk:\t0000000000000000\nSigIgn:\t0000002000000000\nSigCgt:\t0000000000004000\n";
        assert!(listens(status, libc::SIGTERM));
        assert!(!listens(status, SIGRTMIN_PLUS_4));
        let blocks = "SigBlk:\t0000002000000000\nSigCgt:\t0000000000000000\n";
        assert!(listens(blocks, SIGRTMIN_PLUS_4));
        assert!(!listens("", SIGRTMIN_PLUS_4));
    }
}
