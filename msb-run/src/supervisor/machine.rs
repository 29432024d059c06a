//! The process of the virtual machine, and the sockets to it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::Context;
use libmsb::isolate::Step;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::Pid;
use serde::Serialize;

use super::link::Link;
use super::process::Process;
use super::share;
use crate::engine::{Console, Descriptors, Engine, Wanted};
use crate::net::{Net, NetProcess};

/// Longest report of what the processes of a machine have given up, in bytes.
const REPORT_BYTES_MAX: usize = 8192;

/// What the server of a share calls itself in there, and the network's process.
const SHARE: &str = "share";
const NET: &str = "net";

/// Time for the network's process to say what it has given up: it was started before the guest was.
const NET_PATIENCE: Duration = Duration::from_secs(1);

/// A machine that was started, or stands in for one that is not yet.
#[derive(Debug)]
pub(crate) struct Machine {
    /// None of one that is not started.
    process: Option<Process>,
    /// The agent's port.
    pub(crate) agent: Link,
    /// What the guest's kernel prints.
    pub(crate) console: File,
    /// The network, if it has one.
    pub(crate) net: Option<NetProcess>,
    /// Serves folders of the host to it, if any are shared.
    pub(crate) share: Option<Process>,
    /// Takes what the machine's process, the server of its share and that of its network say of themselves: a line each.
    report: File,
    /// Closed when this process is gone: then the machine ends. Of one that is not started: the other ends.
    _life: Vec<OwnedFd>,
}

/// Starts a machine. `net`: its network, and the file in which that counts. `held` are descriptors that the machine keeps
/// open as long as it lives: the sandbox's lock, the disk.
/// `None` when the engine knows no further way.
pub(crate) fn start(
    engine: &dyn Engine,
    attempt: u32,
    mut wanted: Wanted,
    net: Option<(&Net, OwnedFd)>,
    held: &[BorrowedFd<'_>],
) -> anyhow::Result<Option<Machine>> {
    let (agent, agent_theirs) = UnixStream::pair().context("cannot make a socket for the agent")?;
    let (console, console_theirs) = console(engine).context("cannot make a way for the console")?;
    let (life_theirs, life) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).context("cannot make a pipe")?;
    let (report, report_theirs) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).context("cannot make a pipe")?;
    rustix::io::ioctl_fionbio(&report, true).context("cannot use a pipe")?;
    wanted.descriptors = Descriptors {
        agent: agent_theirs.as_raw_fd(),
        console: console_theirs.as_raw_fd(),
        life: life_theirs.as_raw_fd(),
        report: Some(report_theirs.as_raw_fd()),
    };
    let mut served = Vec::new();
    for share in wanted.shares.iter_mut().filter(|_| !engine.serves()) {
        served.push(share::start(
            share,
            life_theirs.as_fd(),
            report_theirs.as_fd(),
        )?);
    }
    let (mut net_process, mut frames) = (None, None);
    if let Some((net, counters)) = net {
        let mut process = net.start(life_theirs.as_fd(), counters, report_theirs.as_fd())?;
        frames = process.frames.take();
        wanted.net = frames.as_ref().map(|frames| net.device(frames));
        net_process = Some(process);
    }
    let Some(plan) = engine.plan(&wanted, attempt)? else {
        return Ok(None);
    };
    let plan = plan_file(&plan)?;
    let mut inherited = vec![
        plan.as_fd(),
        agent_theirs.as_fd(),
        console_theirs.as_fd(),
        life_theirs.as_fd(),
        report_theirs.as_fd(),
    ];
    inherited.extend(frames.as_ref().map(|frames| frames.as_fd()));
    inherited.extend(served.iter().map(|(_, socket)| socket.as_fd()));
    inherited.extend_from_slice(held);
    let args = [format!("/proc/self/fd/{}", plan.as_raw_fd())];
    let process = Process::start("msb-vmm", &args, &inherited)?;
    let agent = Link::new(agent).context("cannot use the agent's socket")?;
    Ok(Some(Machine {
        process: Some(process),
        agent,
        console,
        net: net_process,
        share: served.pop().map(|(server, _)| server),
        report: report.into(),
        _life: vec![life],
    }))
}

/// Our end, which does not block, and the machine's.
fn console(engine: &dyn Engine) -> io::Result<(File, OwnedFd)> {
    let (ours, theirs): (OwnedFd, OwnedFd) = match engine.console() {
        Console::Socket => {
            let (ours, theirs) = UnixStream::pair()?;
            (ours.into(), theirs.into())
        }
        Console::Pipe => rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?,
    };
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((ours.into(), theirs))
}

/// A plan, as a file that its reader inherits.
pub(super) fn plan_file<P: Serialize>(plan: &P) -> anyhow::Result<File> {
    let descriptor =
        memfd_create("msb-plan", MemfdFlags::CLOEXEC).context("cannot make the plan's file")?;
    let mut file = File::from(descriptor);
    file.write_all(&serde_json::to_vec(plan)?)
        .context("cannot write the plan")?;
    Ok(file)
}

impl Machine {
    /// Stands in for a machine that is to be started later: it says nothing, and does not end.
    pub(crate) fn unborn() -> io::Result<Machine> {
        let flags = rustix::pipe::PipeFlags::CLOEXEC | rustix::pipe::PipeFlags::NONBLOCK;
        let (silence, life) = rustix::pipe::pipe_with(flags)?;
        let (agent, peer) = UnixStream::pair()?;
        Ok(Machine {
            process: None,
            agent: Link::new(agent)?,
            console: silence.try_clone()?.into(),
            net: None,
            share: None,
            report: silence.into(),
            _life: vec![life, peer.into()],
        })
    }

    /// Ready for reading when the process has ended.
    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        // One that is not started has a console that is silent, and does not end either.
        let silence = self.console.as_fd();
        self.process.as_ref().map_or(silence, Process::pidfd)
    }

    /// The process, if there is one.
    pub(crate) fn pid(&self) -> Option<Pid> {
        self.process.as_ref().map(Process::pid)
    }

    /// What its processes have given up, the machine's own first. For when the guest has said hello: by then it was told,
    /// since a machine begins when its share is served. Only the network's process nobody waits for before that.
    pub(crate) fn isolation(&self) -> Vec<Step> {
        let deadline = Instant::now() + NET_PATIENCE;
        let mut lines = Vec::new();
        loop {
            let mut some = [0; REPORT_BYTES_MAX];
            let count = (&self.report).read(&mut some).unwrap_or(0);
            lines.extend_from_slice(&some[..count]);
            let steps = isolation(&lines);
            let is_whole = self.net.is_none() || steps.iter().any(|step| step.process == NET);
            if is_whole || Instant::now() >= deadline {
                return steps;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// How the process ended, if it did.
    pub(crate) fn poll_exit(&mut self) -> Option<ExitStatus> {
        self.process.as_mut().and_then(Process::poll_exit)
    }

    /// Kills the process, if it is there, and waits until it is gone.
    pub(crate) fn kill(&mut self) -> Option<ExitStatus> {
        self.process.as_mut().and_then(Process::kill)
    }
}

/// The steps of some lines, in which no order is that of time.
fn isolation(lines: &[u8]) -> Vec<Step> {
    let reports = lines.split(|byte| *byte == b'\n');
    let mut steps: Vec<Step> = reports
        .filter_map(|line| serde_json::from_slice::<Vec<Step>>(line).ok())
        .flatten()
        .collect();
    let processes = [SHARE, NET];
    steps.sort_by_key(|step| processes.iter().position(|of| *of == step.process));
    steps
}
