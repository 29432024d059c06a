//! The process of the virtual machine, and the sockets to it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::Context;
use libmsb::isolate::Step;
use libmsb::machine;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::Pid;
use serde::Serialize;

use super::link::Link;
use super::process::Process;
use super::share;
use crate::boot_state::{BootState, Monitor, Restore};
use crate::engine::kind::TscRate;
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
    /// The share that is to be plugged in when the guest runs: the machine's end of the socket, and the tag.
    pub(crate) unplugged: Option<(UnixStream, String)>,
    /// Its monitor, if the engine has one and no thread uses it.
    pub(crate) monitor: Option<Monitor>,
    /// Its memory, until it is known that nobody copies it.
    pub(crate) memory: Option<OwnedFd>,
    /// The rate of the time stamp counter that its guest is told.
    pub(crate) tsc: TscRate,
    /// Takes what the machine's process, the server of its share and that of its network say of themselves: a line each.
    report: File,
    /// Closed when this process is gone: then the machine ends. Of one that is not started: the other ends.
    _life: Vec<OwnedFd>,
}

/// The hardware address of a network that is a placeholder. A guest that goes on from the state changes it.
const PLACEHOLDER_MAC: [u8; 6] = [0x02, 0x6d, 0x73, 0x62, 0, 1];

/// How a machine comes to run.
#[derive(Debug)]
pub(crate) enum Way {
    /// Its guest boots.
    Boot,
    /// Its guest boots for its state to be taken: it has placeholders in place of disks, network and shares.
    Record,
    /// Its guest goes on from a state.
    Memory(Box<BootState>),
}

/// Starts a machine. One that goes on from a state does so when what is returned beside it has run. `net`: its network, and the file in which that counts. `held` are descriptors that the machine keeps
/// open as long as it lives: the sandbox's lock, the disk.
/// `None` when the engine knows no further way.
pub(crate) fn start(
    engine: &dyn Engine,
    attempt: u32,
    mut wanted: Wanted,
    net: Option<(&Net, OwnedFd)>,
    held: &[BorrowedFd<'_>],
    way: Way,
) -> anyhow::Result<Option<(Machine, Option<Restore>)>> {
    let is_recorded = matches!(way, Way::Record);
    let state = match way {
        Way::Memory(state) => Some(*state),
        Way::Boot | Way::Record => None,
    };
    let (agent, agent_theirs) = UnixStream::pair().context("cannot make a socket for the agent")?;
    let (console, console_theirs) = console(engine).context("cannot make a way for the console")?;
    let (life_theirs, life) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).context("cannot make a pipe")?;
    let (report, report_theirs) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).context("cannot make a pipe")?;
    rustix::io::ioctl_fionbio(&report, true).context("cannot use a pipe")?;
    let memory = engine
        .starts_from_memory()
        .then(|| memory_file(wanted.memory_mib))
        .transpose()?;
    let monitor = engine
        .starts_from_memory()
        .then(UnixStream::pair)
        .transpose()
        .context("cannot make a socket for the monitor")?;
    let tsc = state
        .as_ref()
        .map_or_else(TscRate::measure, |state| state.header.tsc_khz);
    wanted.tsc = Some(tsc);
    wanted.incoming = state.is_some();
    wanted.descriptors = Descriptors {
        agent: agent_theirs.as_raw_fd(),
        console: console_theirs.as_raw_fd(),
        life: life_theirs.as_raw_fd(),
        report: Some(report_theirs.as_raw_fd()),
        monitor: monitor.as_ref().map(|(_, theirs)| theirs.as_raw_fd()),
        memory: memory.as_ref().map(AsRawFd::as_raw_fd),
    };
    let mut served = Vec::new();
    let serves = engine.serves() || is_recorded;
    for share in wanted.shares.iter().filter(|_| !serves) {
        served.push(share::start(
            share,
            life_theirs.as_fd(),
            report_theirs.as_fd(),
        )?);
    }
    let (mut net_process, mut frames) = (None, None);
    let mut life = vec![life];
    if is_recorded {
        // Nothing of the sandbox's is in it.
        for disk in &mut wanted.disks {
            disk.path = PathBuf::new();
        }
        if net.is_some() {
            let (silent, theirs) = UnixStream::pair().context("cannot make a socket")?;
            wanted.net = Some(machine::Net {
                fd: theirs.as_raw_fd(),
                mac: PLACEHOLDER_MAC,
            });
            life.push(silent.into());
            frames = Some(OwnedFd::from(theirs));
        }
    } else if let Some((net, counters)) = net {
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
    inherited.extend(monitor.as_ref().map(|(_, theirs)| theirs.as_fd()));
    inherited.extend(memory.as_ref().map(AsFd::as_fd));
    inherited.extend_from_slice(held);
    let args = [format!("/proc/self/fd/{}", plan.as_raw_fd())];
    let process = Process::start("msb-vmm", &args, &inherited)?;
    let agent = Link::new(agent).context("cannot use the agent's socket")?;
    let restore = state.zip(memory.as_ref()).map(|(state, memory)| {
        let memory = memory.try_clone().context("cannot use a memfd")?;
        anyhow::Ok(Restore { state, memory })
    });
    let restore = restore.transpose()?;
    let monitor = monitor.map(|(ours, _)| Monitor::new(ours)).transpose();
    let (share, unplugged) = match served.pop() {
        Some((server, socket)) => {
            let tag = wanted.shares.first().map(|share| share.tag.clone());
            (Some(server), Some(socket).zip(tag))
        }
        None => (None, None),
    };
    let machine = Machine {
        process: Some(process),
        agent,
        console,
        net: net_process,
        share,
        unplugged,
        monitor: monitor.context("cannot use the monitor's socket")?,
        memory,
        tsc,
        report: report.into(),
        _life: life,
    };
    Ok(Some((machine, restore)))
}

/// The memory of a guest: a file of this size that has no name.
fn memory_file(memory_mib: u32) -> anyhow::Result<OwnedFd> {
    let file = memfd_create("msb-memory", MemfdFlags::CLOEXEC)
        .context("cannot make the guest's memory")?;
    rustix::fs::ftruncate(&file, u64::from(memory_mib) * 1024 * 1024)
        .context("cannot make the guest's memory")?;
    Ok(file)
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
            unplugged: None,
            monitor: None,
            memory: None,
            tsc: TscRate(0),
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
