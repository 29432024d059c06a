//! The image's own init.
//!
//! It becomes the first process of a PID namespace in which every later command runs too: for all that looks at
//! `/proc/1`, and for itself, it is the first process. The agent stays the kernel's, outside and unseen. So nothing that an
//! init does to the processes around it (systemd kills them all when it shuts down) ends the agent or the machine before
//! the disk is flushed, and the kernel tells by a signal how the init wanted the machine to end
//! (pid_namespaces(7): `reboot(2)` in such a namespace).

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

use crate::boot::Guest;
use crate::console::reason;
use crate::spawn::{Plan, Spawner, Step};
use crate::{shutdown, sys};

/// `SIGRTMIN+4` of the C library: it asks systemd to power off (systemd(1)).
const POWER_OFF: c_int = 38;

/// How an init is told that devices, modules and clock are somebody else's: else it waits for a device manager that
/// images seldom have (systemd: container interface).
const IN_CONTAINER: &[u8] = b"container=msb";

/// Starts the init, and gives its process and its path.
pub(crate) fn start(
    guest: &Guest,
    request: &InitRequest,
    spawner: &mut Spawner,
) -> Result<(Pid, Text), String> {
    let path = match &request.path {
        Some(path) => path.clone(),
        None => find()?,
    };
    let nul = || "a string holds a NUL byte".to_owned();
    let terminated = |text: &Text| CString::new(text.as_bytes()).map_err(|_| nul());
    let program = terminated(&path)?;
    let mut argv = vec![program.clone()];
    for arg in &request.args {
        argv.push(terminated(arg)?);
    }
    let mut env = guest.env.environment(false);
    env.set(IN_CONTAINER);
    for entry in &request.env {
        env.set(entry.as_bytes());
    }
    let pid = spawn(&[program], &argv, &env.into_strings(), spawner)
        .map_err(|why| format!("cannot execute '{}': {why}", path.to_lossy()))?;
    follow(pid)?;
    Ok((pid, path))
}

/// The first init of the image.
fn find() -> Result<Text, String> {
    let is_program = |path: &str| {
        fs::metadata(path)
            .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    let found = INIT_PATHS.into_iter().find(|path| is_program(path));
    found.map(Text::from).ok_or_else(|| {
        let paths = INIT_PATHS.join("', '");
        format!("the image has no init: none of '{paths}' is a program")
    })
}

fn spawn(
    programs: &[CString],
    argv: &[CString],
    env: &[std::borrow::Cow<'_, std::ffi::CStr>],
    spawner: &mut Spawner,
) -> Result<Pid, String> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let nothing = open("/dev/null", flags, Mode::empty()).map_err(reason)?;
    let console = open("/dev/console", flags, Mode::empty());
    let console = console.or_else(|_| nothing.try_clone().map_err(|_| rustix::io::Errno::MFILE));
    let console = console.map_err(reason)?;
    let plan = Plan {
        programs,
        argv,
        env,
        cwd: c"/",
        stdio: [nothing.as_fd(), console.as_fd(), console.as_fd()],
        terminal: false,
        limits: &[],
        uid: 0,
        gid: 0,
        groups: &[],
        // An init without its rights would be none.
        security: Security::Default,
        init: true,
    };
    spawner.start(&plan).map_err(|refused| match refused.step {
        Step::Fork => format!("no PID namespace: {}", reason(refused.error)),
        _ => reason(refused.error),
    })
}

/// From now on our children are born into the init's namespace.
fn follow(init: Pid) -> Result<(), String> {
    let entered = pidfd_open(init, PidfdFlags::empty())
        .map_err(std::io::Error::from)
        .and_then(|init| sys::enter_pid_namespace(init.as_fd()));
    entered.map_err(|error| format!("cannot enter the namespace of the init: {}", reason(error)))
}

/// Asks the init to shut down: in the way of systemd if it listens to that, else by SIGTERM.
pub(crate) fn ask_to_end(init: Pid) {
    // Of the PID namespace's /proc, which lies over ours: there the init is number 1.
    let status = fs::read_to_string("/proc/1/status").unwrap_or_default();
    let signal = if listens(&status, POWER_OFF) {
        POWER_OFF
    } else {
        libc::SIGTERM
    };
    sys::kill_process(init.as_raw_pid(), signal);
}

/// Whether a process catches a signal, or blocks it to read it from a descriptor (proc_pid_status(5)).
fn listens(status: &str, signal: c_int) -> bool {
    let has = |name: &str| {
        let mask = status.lines().find_map(|line| line.strip_prefix(name));
        let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        mask.is_some_and(|mask| mask & (1 << (signal - 1)) != 0)
    };
    has("SigCgt:") || has("SigBlk:")
}

/// Puts the kernel's own view of processes back, for the end: that of a namespace without processes shows nothing.
pub(crate) fn uncover_proc() {
    if !Path::new("/proc/self").exists() {
        let _ = unmount("/proc", UnmountFlags::DETACH);
    }
}

/// The init has ended, and nobody had asked us for it: the machine ends in the way that it wanted, its disk flushed.
pub(crate) fn end_machine(status: WaitStatus) -> ! {
    match status.terminating_signal() {
        Some(libc::SIGHUP) => shutdown::end(),
        Some(libc::SIGINT) => shutdown::power_off(),
        _ => {
            let how = match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => format!("with exit status {code}"),
                (_, Some(signal)) => format!("by signal {signal}"),
                _ => "somehow".to_owned(),
            };
            crate::console::log(&format!("error: the init ended {how}"));
            // With us the kernel's first process ends, as it would with an init that is not ours to watch.
            std::process::exit(1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_init_that_catches_or_blocks_a_signal_listens_to_it() {
        let status = "Name:\tx\nSigBlk:\t0000000000000000\nSigIgn:\t0000002000000000\nSigCgt:\t0000000000004000\n";
        assert!(listens(status, libc::SIGTERM));
        assert!(!listens(status, POWER_OFF));
        let blocks = "SigBlk:\t0000002000000000\nSigCgt:\t0000000000000000\n";
        assert!(listens(blocks, POWER_OFF));
        assert!(!listens("", POWER_OFF));
    }
}
