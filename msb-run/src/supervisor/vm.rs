//! The VMM process of the virtual machine, its helpers, and the sockets to them.

use std::fs::File;
use std::io::{self, Read};
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

use super::frame_socket::FrameSocket;
use super::share_server;
use crate::boot_state::{BootState, QmpMonitor, StateRestore};
use crate::engine::kind::{TscRate, VmKind};
use crate::engine::{ConsoleKind, Engine, VmDescriptors, VmSpec};
use crate::intercept::InterceptProcess;
use crate::net::{NetProcess, SandboxNetwork};
use crate::process::child_process::ChildProcess;
use crate::process::plan_file::plan_file;

/// Maximum size of the isolation reports of a VM's processes, in bytes.
const REPORT_BYTES_MAX: usize = 8192;

/// Names of the share server and of the network's processes in isolation reports.
const SHARE: &str = "share";
const NET: &str = "net";
const INTERCEPT: &str = "intercept";

/// Timeout of the network's isolation report. Its process was started before the guest.
const NET_REPORT_TIMEOUT: Duration = Duration::from_secs(1);

/// The processes of a virtual machine that was started; none before.
#[derive(Debug)]
pub(crate) struct VirtualMachine {
    /// The VMM process.
    process: Option<ChildProcess>,
    /// The process of the network, if there is a network.
    pub(crate) net: Option<NetProcess>,
    /// The share server, if host directories are shared.
    pub(crate) share: Option<ChildProcess>,
    /// The share to plug in when the guest runs: the VM's end of the socket, and the tag.
    pub(crate) unplugged_share: Option<(UnixStream, String)>,
    /// The monitor, if the engine has one and no thread uses it.
    pub(crate) monitor: Option<QmpMonitor>,
    /// The guest's memory, if it is a file of this process.
    pub(crate) memory: Option<OwnedFd>,
    /// The kind of the VM, if its memory can be saved.
    pub(crate) kind: Option<VmKind>,
    /// The TSC rate that the guest is given.
    pub(crate) tsc: TscRate,
    /// Receives the isolation reports of the VMM process, the share server and the network, a line
    /// each.
    report: Option<File>,
    /// The supervisor's end of the life pipe, which closes with this process and ends the VM.
    _life_pipes: Vec<OwnedFd>,
}

/// MAC address of a placeholder network. A guest that starts from the state changes it.
const PLACEHOLDER_MAC: [u8; 6] = [0x02, 0x6d, 0x73, 0x62, 0, 1];

/// The way in which a VM is started.
#[derive(Debug)]
pub(crate) enum StartMethod {
    /// A cold boot.
    ColdBoot,
    /// A boot that is recorded: the VM has placeholders in place of disks, network and shares.
    Record,
    /// A start from memory.
    FromMemory(Box<BootState>),
    /// A start from the memory of a guest that was running.
    Resume(Box<BootState>),
}

/// A VM that was started, and the connections to its guest.
#[derive(Debug)]
pub(crate) struct StartedVm {
    pub(crate) vm: VirtualMachine,
    /// The agent's port.
    pub(crate) agent: FrameSocket,
    /// The console of the guest.
    pub(crate) console: File,
    /// The state to restore in a VM that starts from memory, which runs afterwards.
    pub(crate) restore: Option<StateRestore>,
}

/// Starts a VM. `net` is its network and the file of the network's counters. `held` are descriptors
/// that the VMM process keeps open for its whole life: the sandbox's lock and the disks. Returns
/// `None` when the engine has no further attempt.
pub(crate) fn start(
    engine: &dyn Engine,
    attempt: u32,
    mut vm: VmSpec,
    net: Option<(&SandboxNetwork, OwnedFd)>,
    held: &[BorrowedFd<'_>],
    way: StartMethod,
) -> anyhow::Result<Option<StartedVm>> {
    let is_recorded = matches!(way, StartMethod::Record);
    let state = match way {
        StartMethod::FromMemory(state) | StartMethod::Resume(state) => Some(*state),
        StartMethod::ColdBoot | StartMethod::Record => None,
    };
    let (agent, agent_theirs) =
        UnixStream::pair().context("cannot create a socket for the agent")?;
    let (console, console_theirs) =
        console(engine).context("cannot create the connection of the console")?;
    let (life_read, life_write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .context("cannot create a pipe")?;
    let (report, report_theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .context("cannot create a pipe")?;
    rustix::io::ioctl_fionbio(&report, true).context("cannot use a pipe")?;
    let memory = engine.starts_from_memory().then(|| memory_file(vm.memory_mib)).transpose()?;
    let monitor = engine
        .starts_from_memory()
        .then(UnixStream::pair)
        .transpose()
        .context("cannot create a socket for the monitor")?;
    let tsc = state.as_ref().map_or_else(TscRate::measure, |state| state.header.tsc_khz);
    vm.tsc = Some(tsc);
    vm.incoming = state.is_some();
    vm.resumed = state.as_ref().is_some_and(|state| state.header.guest.is_some());
    vm.recorded = is_recorded;
    vm.descriptors = VmDescriptors {
        agent: agent_theirs.as_raw_fd(),
        console: console_theirs.as_raw_fd(),
        life: life_read.as_raw_fd(),
        report: Some(report_theirs.as_raw_fd()),
        monitor: monitor.as_ref().map(|(_, theirs)| theirs.as_raw_fd()),
        memory: memory.as_ref().map(AsRawFd::as_raw_fd),
    };
    let mut share_servers = Vec::new();
    let serves = engine.serves() || is_recorded;
    for share in vm.shares.iter().filter(|_| !serves) {
        share_servers.push(share_server::start(share, life_read.as_fd(), report_theirs.as_fd())?);
    }
    let (mut net_process, mut frames) = (None, None);
    let mut life_pipes = vec![life_write];
    if is_recorded {
        // A recorded VM contains nothing of the sandbox.
        for disk in &mut vm.disks {
            disk.path = PathBuf::new();
        }
        if net.is_some() {
            let (silent, theirs) = UnixStream::pair().context("cannot create a socket")?;
            vm.net = Some(machine::NetDevice { fd: theirs.as_raw_fd(), mac: PLACEHOLDER_MAC });
            life_pipes.push(silent.into());
            frames = Some(OwnedFd::from(theirs));
        }
    } else if let Some((net, counters)) = net {
        let mut process = net.start(life_read.as_fd(), counters, report_theirs.as_fd())?;
        frames = process.frames.take();
        vm.net = frames.as_ref().map(|frames| net.device(frames));
        net_process = Some(process);
    }
    let Some(plan) = engine.plan(&vm, attempt)? else {
        return Ok(None);
    };
    let plan = plan_file(&plan)?;
    let mut inherited = vec![
        plan.as_fd(),
        agent_theirs.as_fd(),
        console_theirs.as_fd(),
        life_read.as_fd(),
        report_theirs.as_fd(),
    ];
    inherited.extend(frames.as_ref().map(|frames| frames.as_fd()));
    inherited.extend(monitor.as_ref().map(|(_, theirs)| theirs.as_fd()));
    inherited.extend(memory.as_ref().map(AsFd::as_fd));
    inherited.extend_from_slice(held);
    let args = [format!("/proc/self/fd/{}", plan.as_raw_fd())];
    let process = ChildProcess::start("msb-vmm", &args, &inherited)?;
    let agent = FrameSocket::new(agent).context("cannot use the agent's socket")?;
    let restore = state.zip(memory.as_ref()).map(|(state, memory)| {
        let memory = memory.try_clone().context("cannot use a memfd")?;
        anyhow::Ok(StateRestore { state, memory })
    });
    let restore = restore.transpose()?;
    let monitor = monitor.map(|(ours, _)| QmpMonitor::new(ours)).transpose();
    let (share, unplugged_share) = match share_servers.pop() {
        Some((server, socket)) => {
            let tag = vm.shares.first().map(|share| share.tag.clone());
            (Some(server), Some(socket).zip(tag))
        }
        None => (None, None),
    };
    let vm = VirtualMachine {
        process: Some(process),
        net: net_process,
        share,
        unplugged_share,
        monitor: monitor.context("cannot use the monitor's socket")?,
        memory,
        kind: None,
        tsc,
        report: Some(report.into()),
        _life_pipes: life_pipes,
    };
    Ok(Some(StartedVm { vm, agent, console, restore }))
}

/// Creates the memory of a guest: an unnamed file of this size.
fn memory_file(memory_mib: u32) -> anyhow::Result<OwnedFd> {
    let file = memfd_create("msb-memory", MemfdFlags::CLOEXEC)
        .context("cannot create the guest's memory")?;
    rustix::fs::ftruncate(&file, u64::from(memory_mib) * 1024 * 1024)
        .context("cannot create the guest's memory")?;
    Ok(file)
}

/// Returns the non-blocking end of the supervisor and the end of the VMM.
fn console(engine: &dyn Engine) -> io::Result<(File, OwnedFd)> {
    let (ours, theirs): (OwnedFd, OwnedFd) = match engine.console() {
        ConsoleKind::Socket => {
            let (ours, theirs) = UnixStream::pair()?;
            (ours.into(), theirs.into())
        }
        ConsoleKind::Pipe => rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?,
    };
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((ours.into(), theirs))
}

impl VirtualMachine {
    /// Returns no VM, for one that is started later.
    pub(crate) fn none() -> VirtualMachine {
        VirtualMachine {
            process: None,
            net: None,
            share: None,
            unplugged_share: None,
            monitor: None,
            memory: None,
            kind: None,
            tsc: TscRate(0),
            report: None,
            _life_pipes: Vec::new(),
        }
    }

    /// Returns the descriptor that is readable when the VMM process has ended.
    pub(crate) fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.process.as_ref().map(ChildProcess::pidfd)
    }

    /// Returns the process ID, if there is a process.
    pub(crate) fn pid(&self) -> Option<Pid> {
        self.process.as_ref().map(ChildProcess::pid)
    }

    /// Returns the isolation steps of the VM's processes, those of the VMM process first. Called
    /// after the guest's hello: all but the network's process have reported by then, since the VM
    /// starts only after its share is served.
    pub(crate) fn isolation(&self) -> Vec<Step> {
        let deadline = Instant::now() + NET_REPORT_TIMEOUT;
        let mut lines = Vec::new();
        loop {
            let mut some = [0; REPORT_BYTES_MAX];
            let count = self.report.as_ref().map_or(Ok(0), |mut report| report.read(&mut some));
            let count = count.unwrap_or(0);
            lines.extend_from_slice(&some[..count]);
            let steps = isolation(&lines);
            let has = |process: &str| steps.iter().any(|step| step.process == process);
            let intercepts = self.net.as_ref().is_some_and(|net| net.intercept.is_some());
            let is_whole = (self.net.is_none() || has(NET)) && (!intercepts || has(INTERCEPT));
            if is_whole || Instant::now() >= deadline {
                return steps;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Returns the process that intercepts TLS, if there is one.
    pub(crate) fn intercept_mut(&mut self) -> Option<&mut InterceptProcess> {
        self.net.as_mut().and_then(|net| net.intercept.as_mut())
    }

    /// Returns the exit status of the VMM process, if it has ended.
    pub(crate) fn poll_exit(&mut self) -> Option<ExitStatus> {
        self.process.as_mut().and_then(ChildProcess::poll_exit)
    }

    /// Kills the VMM process if it runs, and waits for it.
    pub(crate) fn kill(&mut self) -> Option<ExitStatus> {
        self.process.as_mut().and_then(ChildProcess::kill)
    }
}

/// Parses report lines, which arrive in any order.
fn isolation(lines: &[u8]) -> Vec<Step> {
    let reports = lines.split(|byte| *byte == b'\n');
    let mut steps: Vec<Step> = reports
        .filter_map(|line| serde_json::from_slice::<Vec<Step>>(line).ok())
        .flatten()
        .collect();
    let processes = [SHARE, NET, INTERCEPT];
    steps.sort_by_key(|step| processes.iter().position(|of| *of == step.process));
    steps
}
