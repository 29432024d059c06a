//! Engines: what runs a virtual machine.
//!
//! An engine turns what a sandbox wants ([`Wanted`]) into a [`Plan`] that `msb-vmm` becomes. It finds what it needs on
//! the host and says what is missing; it starts nothing itself.

use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::ValueEnum;
use libmsb::cli::error::{Failure, message};
use libmsb::cli::escape::escape;
use libmsb::machine::{Disk, EngineChoice, Net, Plan, Share};
use libmsb::state::{Home, layout, write};
use libmsb::tools;
use serde::Deserialize;

/// What the engines need and find on this host.
pub(crate) mod checkup;
/// How what is missing is installed.
pub(crate) mod distribution;
/// What the host offers.
pub(crate) mod host;
/// The initial RAM disk: the agent, and the modules that the kernel needs.
mod initramfs;
/// The guest's kernel.
mod kernel;
/// What machines have in common of which one can start from another's memory.
pub(crate) mod kind;
/// The krun engine.
mod krun;
/// The guest's kernel as a library.
mod krunfw;
/// Kernel modules, without what only costs time.
mod module;
/// The qemu engine.
mod qemu;
/// The empty writable disk.
pub(crate) mod upper;
/// A kernel of the user's for the krun engine.
mod vmlinux;

use kind::{Kind, TscRate};
use krun::Krun;
use qemu::Qemu;

const AGENT: &str = "msb-agent";

/// The engine for those who do not say one on the command line.
const VARIABLE: &str = "MSB_ENGINE";

/// What a sandbox wants of its machine. An engine that cannot give all of it refuses.
#[derive(Debug)]
pub(crate) struct Wanted {
    /// Virtual processors.
    pub(crate) cpus: u32,
    /// Memory, in MiB.
    pub(crate) memory_mib: u32,
    /// Disks, by serial number.
    pub(crate) disks: Vec<Disk>,
    /// Folders of the host.
    pub(crate) shares: Vec<Share>,
    /// The network.
    pub(crate) net: Option<Net>,
    /// The rate of the time stamp counter that the guest was told whose memory this one starts from.
    pub(crate) tsc: Option<TscRate>,
    /// Whether the machine goes on from the state of another one.
    pub(crate) incoming: bool,
    /// Descriptors that the machine inherits.
    pub(crate) descriptors: Descriptors,
}

/// Descriptors that the machine inherits; see [`Plan`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptors {
    /// The agent's port.
    pub(crate) agent: RawFd,
    /// The console.
    pub(crate) console: RawFd,
    /// The life pipe.
    pub(crate) life: RawFd,
    /// What the machine's process says of itself.
    pub(crate) report: Option<RawFd>,
    /// The monitor of an engine that has one.
    pub(crate) monitor: Option<RawFd>,
    /// The guest's memory, for an engine that takes it.
    pub(crate) memory: Option<RawFd>,
}

impl Descriptors {
    /// None yet.
    pub(crate) const NONE: Descriptors = Descriptors {
        agent: -1,
        console: -1,
        life: -1,
        report: None,
        monitor: None,
        memory: None,
    };
}

/// What an engine takes for [`Descriptors::console`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Console {
    /// An end of a pair of sockets.
    Socket,
    /// The writing end of a pipe.
    Pipe,
}

/// What runs a virtual machine.
pub(crate) trait Engine {
    /// The word for it, in status files and on the command line.
    fn name(&self) -> &'static str;

    /// What it takes for what the guest's kernel prints.
    fn console(&self) -> Console;

    /// Whether the machine serves its shares itself, without another process for them.
    fn serves(&self) -> bool;

    /// Refuses what it cannot do, before anything is started. `net`: whether there will be a network, which is not among
    /// what is wanted yet.
    fn check(&self, wanted: &Wanted, net: bool) -> anyhow::Result<()>;

    /// Whether its machines are given their memory and a monitor: then they can start from memory.
    fn starts_from_memory(&self) -> bool {
        false
    }

    /// Returns the kind of the machine that the first attempt starts, if it can start from memory. `net` as above.
    fn kind(&self, _wanted: &Wanted, _net: bool) -> anyhow::Result<Option<Kind>> {
        Ok(None)
    }

    /// The plan of a machine. `attempt` counts from 0; after a boot that hung, an engine may offer another way. `None`:
    /// there is no further way.
    fn plan(&self, wanted: &Wanted, attempt: u32) -> anyhow::Result<Option<Plan>>;
}

/// Longest configuration, in bytes.
const CONFIG_BYTES_MAX: u64 = 1024 * 1024;

/// The part of the user's configuration that is about engines.
#[derive(Debug, Default, Deserialize)]
struct Config {
    engine: Option<EngineChoice>,
}

/// What the user wants: on the command line, else in [`VARIABLE`], else in the configuration, else whatever works.
pub(crate) fn choice(home: &Home, typed: Option<EngineChoice>) -> anyhow::Result<EngineChoice> {
    if let Some(choice) = typed {
        return Ok(choice);
    }
    if let Some(word) = std::env::var_os(VARIABLE).filter(|value| !value.is_empty()) {
        let word = word.to_string_lossy();
        return EngineChoice::from_str(&word, false).map_err(|_| {
            Failure::usage(format!(
                "{VARIABLE} names no engine: '{}'",
                escape(word.as_ref())
            ))
            .hint("engines are auto, krun and qemu")
            .into()
        });
    }
    let config: Option<Config> = write::read_json(&home.config(), CONFIG_BYTES_MAX)?;
    Ok(config.unwrap_or_default().engine.unwrap_or_default())
}

/// The engine of that name; or the one for this host, libkrun where it works, else QEMU, with a note of why when that is
/// not known yet.
pub(crate) fn choose(
    home: &Home,
    choice: EngineChoice,
) -> anyhow::Result<(Box<dyn Engine>, Option<String>)> {
    let krun = || Krun::find(home.root(), &home.boot_dir());
    let qemu = || Qemu::find(home.boot_dir());
    Ok(match choice {
        EngineChoice::Krun => (Box::new(krun()?), None),
        EngineChoice::Qemu => (Box::new(qemu()?), None),
        EngineChoice::Auto => match krun() {
            Ok(krun) => (Box::new(krun), None),
            Err(why) => (Box::new(qemu()?), note(home, &why)),
        },
    })
}

/// That it is QEMU, and why: once. It is kept, so that another reason is told again.
fn note(home: &Home, why: &anyhow::Error) -> Option<String> {
    let note = format!("the engine is qemu, not krun: {}", message(why));
    let path = home.root().join(layout::ENGINE_NOTE);
    let told = write::read_bounded(&path, CONFIG_BYTES_MAX).ok().flatten();
    if told.as_deref() == Some(note.as_bytes()) {
        return None;
    }
    // Where it cannot be kept it is told again.
    let _ = write::replace(&path, note.as_bytes());
    Some(note)
}

/// The guest's first process.
fn agent() -> anyhow::Result<PathBuf> {
    tools::find(AGENT).map_err(|error| {
        Failure::failed(error.to_string())
            .hint("install msb as a whole: libmsb/install")
            .into()
    })
}
