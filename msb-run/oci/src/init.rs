//! `init`: the process whose ID the engine is given.
//!
//! It is the first process of namespaces of its own, with the root of the container as its root, so
//! that an engine that joins them reaches the container and not the host. It does nothing but wait
//! for the exit code.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::Context;
use libmsb::isolate;
use rustix::fs::{Mode, OFlags};

use crate::bundle::{Container, NetworkNamespace};
use crate::mount_tree;

/// Exit code without one of the command: that of a command killed with SIGKILL.
const KILLED: i32 = 137;

/// A process that was started in new namespaces.
#[derive(Debug)]
pub(crate) struct Init {
    /// Process ID.
    pub(crate) pid: i32,
    /// Pipe on which it expects the exit code.
    pub(crate) code: OwnedFd,
}

/// Starts `init` and waits until it is in the root of the container.
pub(crate) fn start(container: &Container) -> anyhow::Result<Init> {
    let (code_reader, code) = pipe()?;
    let (ready, ready_writer) = pipe()?;
    let mut flags =
        libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC;
    if container.network == NetworkNamespace::New {
        flags |= libc::CLONE_NEWNET;
    }
    // SAFETY: the process has one thread, so the child is a plain copy, as after fork(2).
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags | libc::SIGCHLD, 0, 0, 0, 0) };
    match pid {
        -1 => Err(io::Error::last_os_error()).context("cannot create the namespaces"),
        0 => {
            drop((code, ready));
            run(container, code_reader, File::from(ready_writer))
        }
        pid => {
            drop((code_reader, ready_writer));
            let mut message = String::new();
            File::from(ready).read_to_string(&mut message).context("cannot read from init")?;
            match message.strip_prefix("ok") {
                Some(_) => Ok(Init { pid: i32::try_from(pid)?, code }),
                None if message.is_empty() => anyhow::bail!("init ended early"),
                None => Err(anyhow::anyhow!(message)),
            }
        }
    }
}

fn pipe() -> anyhow::Result<(OwnedFd, OwnedFd)> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).context("cannot create a pipe")
}

/// Runs in the child.
fn run(container: &Container, code: OwnedFd, mut ready: File) -> ! {
    let prepared = prepare(container, &code, &ready);
    let message = prepared.as_ref().map_or_else(|error| format!("{error:#}"), |()| "ok".into());
    let told = ready.write_all(message.as_bytes());
    drop(ready);
    if prepared.is_err() || told.is_err() {
        exit(1);
    }
    let mut byte = [0];
    let read = File::from(code).read_exact(&mut byte);
    exit(read.map_or(KILLED, |()| i32::from(byte[0])))
}

fn exit(code: i32) -> ! {
    // SAFETY: no code of the parent that is registered for the end of the process may run here.
    unsafe { libc::_exit(code) }
}

fn prepare(container: &Container, code: &OwnedFd, ready: &File) -> anyhow::Result<()> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty())
        .context("cannot open /dev/null")?;
    if let Some(name) = &container.hostname {
        rustix::system::sethostname(name.as_bytes()).context("cannot set the host name")?;
    }
    mount_tree::enter(container)?;
    mount_tree::check_command(container)?;
    // The engine waits for the end of the streams, which `init` must not keep open.
    rustix::stdio::dup2_stdin(&null)
        .and_then(|()| rustix::stdio::dup2_stdout(&null))
        .and_then(|()| rustix::stdio::dup2_stderr(&null))
        .context("cannot close the standard streams")?;
    close_others(&[code.as_raw_fd(), ready.as_raw_fd()])?;
    isolate::set_no_new_privileges();
    isolate::keep_capabilities(rustix::thread::CapabilitySet::empty())
        .context("cannot drop capabilities")?;
    let name = container.process.args.first().map_or("init", String::as_str);
    let name = name.rsplit('/').next().unwrap_or(name);
    if let Ok(name) = std::ffi::CString::new(name) {
        let _ = rustix::thread::set_name(&name);
    }
    Ok(())
}

/// Closes all descriptors from 3 on, without these.
pub(crate) fn close_others(kept: &[i32]) -> anyhow::Result<()> {
    let mut kept = kept.to_vec();
    kept.sort_unstable();
    let mut first = 3;
    for fd in kept.into_iter().chain([i32::MAX]) {
        if first < fd {
            // SAFETY: the descriptors belong to the parent's copy of this process. The child uses
            // none of them and ends by `_exit` without running destructors.
            let done = unsafe { libc::syscall(libc::SYS_close_range, first, fd - 1, 0) };
            anyhow::ensure!(done == 0, "cannot close descriptors: {}", io::Error::last_os_error());
        }
        first = fd.saturating_add(1);
    }
    Ok(())
}
