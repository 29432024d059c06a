//! `create`: makes the namespaces of a container, `init` and the monitor.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use anyhow::{Context, ensure};
use libmsb::cli::error::Failure;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::args::{Args, CreateArgs};
use crate::bundle::{self, Container, NetworkNamespace};
use crate::cgroup::Group;
use crate::init;
use crate::monitor::{Monitor, kill_child};
use crate::state::{self, ContainerDir, ContainerState};
use crate::terminal;

pub(crate) fn create(args: &Args, create: &CreateArgs) -> anyhow::Result<()> {
    if args.systemd_cgroup {
        return Err(Failure::failed("--systemd-cgroup is not supported").into());
    }
    if create.preserve_fds > 0 {
        return Err(Failure::failed("--preserve-fds above 0 is not supported").into());
    }
    let bundle = std::path::absolute(&create.bundle).context("cannot resolve the bundle")?;
    let container = bundle::read(&bundle)?;
    check_files(&container)?;
    let dir = ContainerDir::new(args.root.as_deref(), &create.id)?;
    dir.create()?;
    create_in(&dir, create, container, &bundle).inspect_err(|_| {
        let _ = dir.remove();
    })
}

/// Checks the files of the host that the container uses.
fn check_files(container: &Container) -> anyhow::Result<()> {
    ensure!(container.root.is_dir(), "the root '{}' is no directory", container.root.display());
    for bind in &container.binds {
        let meta = fs::metadata(&bind.source)
            .with_context(|| format!("cannot mount '{}'", bind.source.display()))?;
        if !meta.is_dir() && !meta.is_file() {
            let message = format!(
                "'{}' is no file or directory, and cannot be mounted",
                bind.source.display()
            );
            return Err(Failure::failed(message).into());
        }
        let has_comma = [&bind.source, &bind.target]
            .iter()
            .any(|path| path.to_str().is_none_or(|path| path.contains(',')));
        ensure!(
            !has_comma,
            "the path '{}' of a mount has a comma or is not UTF-8",
            bind.target.display()
        );
    }
    Ok(())
}

fn create_in(
    dir: &ContainerDir,
    create: &CreateArgs,
    container: Container,
    bundle: &Path,
) -> anyhow::Result<()> {
    let msb_home = state::msb_home()?;
    let open = dir.open()?;
    let listener = UnixListener::bind(format!("/proc/self/fd/{}/monitor.sock", open.as_raw_fd()))
        .with_context(|| format!("cannot create '{}'", dir.socket().display()))?;
    if let NetworkNamespace::Path(path) = &container.network {
        join_network(path)?;
    }
    let group = container.cgroups_path.as_deref().map(Group::create).transpose()?;
    let remove_group = || group.as_ref().map_or(Ok(()), Group::remove);
    let init = init::start(&container).inspect_err(|_| {
        let _ = remove_group();
    })?;
    let pid = init.pid;
    let finish = || -> anyhow::Result<()> {
        if let Some(group) = &group {
            group.limit(&container.limits)?;
            group.add(pid)?;
        }
        if container.network == NetworkNamespace::New {
            join_network(Path::new(&format!("/proc/{pid}/ns/net")))?;
        }
        let terminal = match container.process.terminal {
            true => Some(terminal::open(create.console_socket.as_deref())?),
            false => None,
        };
        let state = ContainerState {
            oci_version: container.oci_version.clone(),
            pid,
            started: state::start_time(pid).context("init has ended")?,
            bundle: bundle.to_owned(),
            msb_home: msb_home.clone(),
            group: group.clone(),
            limits: container.limits.clone(),
            annotations: container.annotations.clone(),
        };
        let monitor = Monitor {
            id: create.id.clone(),
            group: group.clone(),
            container,
            msb_home,
            listener,
            init,
            terminal,
        };
        fork_monitor(monitor)?;
        if let Some(path) = &create.pid_file {
            fs::write(path, pid.to_string())
                .with_context(|| format!("cannot write '{}'", path.display()))?;
        }
        dir.write(&state)
    };
    finish().inspect_err(|_| {
        kill_child(pid);
        let _ = remove_group();
    })
}

fn join_network(path: &Path) -> anyhow::Result<()> {
    let opened = fs::File::open(path)
        .with_context(|| format!("cannot open the network namespace '{}'", path.display()))?;
    move_into_link_name_space(opened.as_fd(), Some(LinkNameSpaceType::Network))
        .with_context(|| format!("cannot join the network namespace '{}'", path.display()))
}

/// Starts the monitor as a copy of this process, with the standard streams of the container.
fn fork_monitor(monitor: Monitor) -> anyhow::Result<()> {
    // SAFETY: the process has one thread, so the child is a plain copy.
    match unsafe { libc::fork() } {
        -1 => Err(std::io::Error::last_os_error()).context("cannot start the monitor"),
        0 => {
            let code = serve(monitor).map_or(1, |()| 0);
            // SAFETY: no code of the parent that is registered for the end of the process may run.
            unsafe { libc::_exit(code) }
        }
        _ => {
            // The pipe of the exit code must end with the monitor.
            drop(monitor);
            Ok(())
        }
    }
}

fn serve(monitor: Monitor) -> anyhow::Result<()> {
    rustix::process::setsid().context("cannot create a session")?;
    let mut kept = vec![monitor.listener.as_raw_fd(), monitor.init.code.as_raw_fd()];
    kept.extend(monitor.terminal.as_ref().map(AsRawFd::as_raw_fd));
    init::close_others(&kept)?;
    monitor.run()
}
