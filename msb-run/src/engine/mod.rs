//! Engines: the programs that run a virtual machine.
//!
//! An engine turns the description of a VM ([`VmSpec`]) into a [`VmPlan`] for `msb-vmm`. It finds
//! what it needs on the host and reports what is missing. It starts nothing itself.

use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::ValueEnum;
use libmsb::cli::error::{Failure, message};
use libmsb::cli::escape::escape;
use libmsb::machine::{
    DiskDevice, DiskImageFormat, EngineChoice, NetDevice, SERIAL_ROOT, SERIAL_UPPER, ShareDevice,
    VmPlan,
};
use libmsb::state::config::UserConfig;
use libmsb::state::spec::Spec;
use libmsb::state::{Home, layout, write};
use libmsb::tools;

/// Checks of what the engines need on this host.
pub(crate) mod checkup;
/// Commands that install missing parts.
pub(crate) mod distribution;
/// Probe of hardware virtualization.
pub(crate) mod host;
/// The initial RAM disk: the agent, and the modules that the kernel needs.
mod initramfs;
/// The guest's kernel.
mod kernel;
/// Kernel modules without signature and type information.
mod kernel_module;
/// Kinds of VMs that can start from the same memory.
pub(crate) mod kind;
/// The krun engine.
mod krun;
/// The guest's kernel as a shared library.
mod krunfw;
/// The qemu engine.
mod qemu;
/// The empty writable disk.
pub(crate) mod upper;
/// A kernel of the user for the krun engine.
mod vmlinux;

use kind::{TscRate, VmKind};
use krun::KrunEngine;
use qemu::QemuEngine;

const AGENT: &str = "msb-agent";

/// Environment variable with the engine when the command line names none.
const VARIABLE: &str = "MSB_ENGINE";

/// The description of a VM. An engine refuses a VM that it cannot provide as a whole.
#[derive(Debug)]
pub(crate) struct VmSpec {
    /// Number of vCPUs.
    pub(crate) cpus: u32,
    /// Memory, in MiB.
    pub(crate) memory_mib: u32,
    /// Disks, identified by serial number.
    pub(crate) disks: Vec<DiskDevice>,
    /// Shared host directories.
    pub(crate) shares: Vec<ShareDevice>,
    /// The network.
    pub(crate) net: Option<NetDevice>,
    /// TSC rate that was given to the guest from whose memory the VM starts.
    pub(crate) tsc: Option<TscRate>,
    /// The VM starts from the state of another one.
    pub(crate) incoming: bool,
    /// That is the state of a guest that was running.
    pub(crate) resumed: bool,
    /// The state of the VM is saved when its agent is ready.
    pub(crate) recorded: bool,
    /// Descriptors that the VMM process inherits.
    pub(crate) descriptors: VmDescriptors,
}

/// Descriptors that the VMM process inherits; see [`VmPlan`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct VmDescriptors {
    /// The agent's port.
    pub(crate) agent: RawFd,
    /// The console.
    pub(crate) console: RawFd,
    /// The life pipe.
    pub(crate) life: RawFd,
    /// The pipe for isolation reports.
    pub(crate) report: Option<RawFd>,
    /// The monitor, for an engine that has one.
    pub(crate) monitor: Option<RawFd>,
    /// The guest's memory, for an engine that accepts it.
    pub(crate) memory: Option<RawFd>,
}

impl VmDescriptors {
    /// No descriptors yet.
    pub(crate) const NONE: VmDescriptors = VmDescriptors {
        agent: -1,
        console: -1,
        life: -1,
        report: None,
        monitor: None,
        memory: None,
    };
}

/// The type of descriptor that an engine accepts as [`VmDescriptors::console`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConsoleKind {
    /// An end of a socket pair.
    Socket,
    /// The write end of a pipe.
    Pipe,
}

/// A program that runs virtual machines.
pub(crate) trait Engine {
    /// Returns the engine's name in status files and on the command line.
    fn name(&self) -> &'static str;

    /// Returns the type of descriptor for the guest's console.
    fn console(&self) -> ConsoleKind;

    /// Returns whether the VMM process serves the shares itself, without a share server.
    fn serves(&self) -> bool;

    /// Refuses a VM that the engine cannot run, before anything is started. `net` tells whether
    /// there will be a network, which `vm` does not contain yet.
    fn check(&self, vm: &VmSpec, net: bool) -> anyhow::Result<()>;

    /// Returns whether its VMs are given their memory and a monitor, so that they can start from
    /// memory.
    fn starts_from_memory(&self) -> bool {
        false
    }

    /// Returns the kind of the VM that the first attempt starts, if it can start from memory. `net`
    /// is as for `check`.
    fn kind(&self, _vm: &VmSpec, _net: bool) -> anyhow::Result<Option<VmKind>> {
        Ok(None)
    }

    /// Returns the plan of a VM. `attempt` counts from 0. After a boot that hung, an engine may
    /// offer another attempt; `None` means that there is none.
    fn plan(&self, vm: &VmSpec, attempt: u32) -> anyhow::Result<Option<VmPlan>>;
}

/// Maximum size of a stored note, in bytes.
const NOTE_BYTES_MAX: u64 = 1024 * 1024;

/// Returns the engine from the command line, else from [`VARIABLE`], else from the configuration,
/// else `auto`.
pub(crate) fn choice(
    config: &UserConfig,
    typed: Option<EngineChoice>,
) -> anyhow::Result<EngineChoice> {
    if let Some(choice) = typed {
        return Ok(choice);
    }
    if let Some(word) = std::env::var_os(VARIABLE).filter(|value| !value.is_empty()) {
        let word = word.to_string_lossy();
        return EngineChoice::from_str(&word, false).map_err(|_| {
            Failure::usage(format!("invalid value of {VARIABLE}: '{}'", escape(word.as_ref())))
                .hint("values are auto, krun and qemu")
                .into()
        });
    }
    Ok(config.engine.unwrap_or_default())
}

/// Returns the chosen engine. For `auto` it is libkrun where that works, else QEMU, with a note of
/// the reason if the user has not seen it yet.
pub(crate) fn choose(
    home: &Home,
    choice: EngineChoice,
) -> anyhow::Result<(Box<dyn Engine>, Option<String>)> {
    let krun = || KrunEngine::find(home.root(), &home.boot_dir());
    let qemu = || QemuEngine::find(home.boot_dir());
    Ok(match choice {
        EngineChoice::Krun => (Box::new(krun()?), None),
        EngineChoice::Qemu => (Box::new(qemu()?), None),
        EngineChoice::Auto => match krun() {
            Ok(krun) => (Box::new(krun), None),
            Err(why) => (Box::new(qemu()?), note(home, &why)),
        },
    })
}

/// Returns the kind of the VM of a sandbox whose root is an image with a managed disk and that has
/// no mounts, if its engine can start it from memory.
pub(crate) fn kind_of(home: &Home, spec: &Spec) -> anyhow::Result<Option<VmKind>> {
    let disk = |serial: &str| DiskDevice {
        serial: serial.to_owned(),
        path: PathBuf::new(),
        format: DiskImageFormat::Raw,
        read_only: false,
        volatile: false,
    };
    let vm = VmSpec {
        cpus: spec.cpus,
        memory_mib: spec.memory_mib,
        disks: vec![disk(SERIAL_ROOT), disk(SERIAL_UPPER)],
        shares: Vec::new(),
        net: None,
        tsc: None,
        incoming: false,
        resumed: false,
        recorded: false,
        descriptors: VmDescriptors::NONE,
    };
    let is_krun = spec.engine != EngineChoice::Qemu
        && KrunEngine::find(home.root(), &home.boot_dir()).is_ok();
    if is_krun {
        return Ok(None);
    }
    QemuEngine::find(home.boot_dir())?.kind(&vm, spec.net.enabled)
}

/// Returns a note that the engine is QEMU, and why. The note is stored and shown once; another
/// reason is shown again.
fn note(home: &Home, why: &anyhow::Error) -> Option<String> {
    let note = format!("the engine is qemu, not krun: {}", message(why));
    let path = home.root().join(layout::ENGINE_NOTE);
    let shown = write::read_bounded(&path, NOTE_BYTES_MAX).ok().flatten();
    if shown.as_deref() == Some(note.as_bytes()) {
        return None;
    }
    // If it cannot be stored, it is shown again.
    let _ = write::replace(&path, note.as_bytes());
    Some(note)
}

/// Finds the agent, the guest's first process.
fn agent() -> anyhow::Result<PathBuf> {
    tools::find(AGENT).map_err(|error| {
        Failure::failed(error.to_string()).hint("reinstall msb: libmsb/install").into()
    })
}
