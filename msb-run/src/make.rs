//! Making a sandbox: what is typed about it, and the folder that comes of it.

use std::ffi::OsString;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use libmsb::cli::args::{SandboxName, parse_cpus, parse_duration, parse_label, parse_memory};
use libmsb::cli::error::Failure;
use libmsb::machine::EngineChoice;
use libmsb::net::NetSpec;
use libmsb::net::args::NetArgs;
use libmsb::state::guest::RootDisk;
use libmsb::state::lock::Lock;
use libmsb::state::sandboxes::Sandbox;
use libmsb::state::spec::{MainBounds, Spec};
use libmsb::state::{Home, layout, write};

use crate::boot_state::BootArgs;
use crate::engine::{self, upper};
use crate::guest::GuestArgs;
use crate::metrics::MetricsArgs;
use crate::microsandbox::Stored;
use crate::mounts::{self, MountArgs};
use crate::plan::{self, Choices};
use crate::pull::PullPolicy;
use crate::root::{Found, TypedRoot};
use crate::verbs::SettingArgs;
use crate::verbs::stop::stop;

/// Virtual processors when nobody says how many; the reference's default.
const CPUS: u8 = 1;
/// Memory when nobody says how much, in MiB; the reference's default.
const MEMORY_MIB: u32 = 512;
/// Time that a sandbox which is to be replaced has for its end; the reference's.
const REPLACE_TIMEOUT: Duration = Duration::from_secs(10);

/// What a sandbox is made of: the same for `run` and `create`.
#[derive(Debug, Args)]
pub(crate) struct MakeArgs {
    /// Virtual processors (default: 1)
    #[arg(short, long, value_parser = parse_cpus, value_name = "N")]
    cpus: Option<u8>,
    /// Memory: MiB, or with a unit, as 1.5G (default: 512M)
    #[arg(short, long, value_parser = parse_memory, value_name = "SIZE")]
    memory: Option<u32>,
    /// What runs it: krun, qemu, or auto, which takes krun where it works (default: auto)
    #[arg(long, value_enum, hide_possible_values = true)]
    engine: Option<EngineChoice>,
    #[command(flatten)]
    boot: BootArgs,
    /// Host name in the guest (default: the sandbox's name)
    #[arg(short = 'H', long)]
    hostname: Option<String>,
    /// Program to run in place of the image's entrypoint
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<OsString>,
    /// When to pull the image from its registry
    #[arg(long, value_name = "WHEN", default_value = "if-missing")]
    pull: PullPolicy,
    #[command(flatten)]
    mounts: MountArgs,
    /// Label of the sandbox
    #[arg(long, value_name = "KEY[=VALUE]", value_parser = parse_label)]
    label: Vec<(String, String)>,
    /// Stop it when nobody has used it for so long
    #[arg(long, value_parser = parse_positive_duration, value_name = "DURATION")]
    idle_timeout: Option<Duration>,
    /// Stop it when it has run for so long
    #[arg(long, value_parser = parse_positive_duration, value_name = "DURATION")]
    max_duration: Option<Duration>,
    #[command(flatten)]
    metrics: MetricsArgs,
    #[command(flatten)]
    guest: GuestArgs,
    /// Remove the sandbox of that name first, with its disk
    #[arg(long, requires = "name")]
    replace: bool,
    /// The same, with a time for it to stop; 0 kills it (--replace: 10s)
    #[arg(long, value_parser = parse_duration, value_name = "DURATION", requires = "name")]
    replace_with_timeout: Option<Duration>,
    #[command(flatten)]
    net: NetArgs,
    /// The main command of a stored configuration, for which there is no option.
    #[arg(skip)]
    stored_command: Vec<OsString>,
    /// The network of a stored configuration, which what is typed changes.
    #[arg(skip)]
    stored_net: Option<NetSpec>,
}

impl MakeArgs {
    /// Whether a sandbox of that name goes, and the time that it has.
    pub(crate) fn replace(&self) -> Option<Duration> {
        self.replace_with_timeout
            .or(self.replace.then_some(REPLACE_TIMEOUT))
    }

    /// Whether something was said that only counts when a sandbox is made.
    pub(crate) fn is_given(&self) -> bool {
        self.cpus.is_some()
            || self.memory.is_some()
            || self.engine.is_some()
            || self.boot.is_given()
            || self.hostname.is_some()
            || !self.label.is_empty()
            || self.mounts.is_given()
            || self.idle_timeout.is_some()
            || self.max_duration.is_some()
            || self.metrics.given().is_some()
            || self.net.is_given()
            || self.guest.is_given()
    }

    /// Takes over what a stored configuration says where nothing was typed.
    pub(crate) fn fill_in(&mut self, stored: &Stored) -> Result<(), Failure> {
        let seconds = |seconds: Option<u64>| seconds.filter(|s| *s > 0).map(Duration::from_secs);
        self.cpus = self.cpus.or(stored.cpus);
        self.memory = self.memory.or(stored.memory_mib);
        self.hostname = self.hostname.take().or_else(|| stored.hostname.clone());
        self.idle_timeout = self.idle_timeout.or(seconds(stored.idle_timeout_s));
        self.max_duration = self.max_duration.or(seconds(stored.max_duration_s));
        // Checked as if they had been typed, and below those that were.
        let mut labels = Vec::with_capacity(stored.labels.len() + self.label.len());
        for (key, value) in &stored.labels {
            labels.push(parse_label(&format!("{key}={value}"))?);
        }
        labels.append(&mut self.label);
        self.label = labels;
        if self.entrypoint.is_none() {
            self.stored_command = stored.command.clone();
        }
        self.mounts.fill_in(stored);
        self.guest.fill_in(stored);
        self.stored_net = stored.network.clone();
        Ok(())
    }

    fn net(&self) -> Result<NetSpec, Failure> {
        let Some(mut net) = self.stored_net.clone() else {
            return self.net.spec();
        };
        self.net.change(&mut net)?;
        Ok(net)
    }

    fn choices(
        &self,
        home: &Home,
        setting: &SettingArgs,
        command: &[OsString],
    ) -> anyhow::Result<Choices> {
        Ok(Choices {
            cpus: u32::from(self.cpus.unwrap_or(CPUS)),
            memory_mib: self.memory.unwrap_or(MEMORY_MIB),
            engine: engine::choice(home, self.engine)?,
            boot: self.boot.choice(home)?,
            env: setting.env()?,
            workdir: setting.workdir.clone(),
            user: setting.user.clone(),
            hostname: self.hostname.clone(),
            entrypoint: self.entrypoint.clone(),
            labels: self.label.iter().cloned().collect(),
            mounts: self.mounts.mounts(home)?,
            idle_timeout: self.idle_timeout,
            max_duration: self.max_duration,
            metrics: self.metrics.choice(home)?,
            stored_command: self.stored_command.clone(),
            net: self.net()?,
            machine_id: write::random_machine_id()?,
            main: MainBounds::default(),
            guest: self.guest.choices()?,
            command: command.to_vec(),
        })
    }
}

fn parse_positive_duration(text: &str) -> Result<Duration, Failure> {
    match parse_duration(text)? {
        Duration::ZERO => Err(Failure::usage("a time of 0 would end it at once")),
        duration => Ok(duration),
    }
}

/// A sandbox that was made, and is ours to start.
pub(crate) struct Made {
    pub(crate) sandbox: Sandbox,
    pub(crate) spec: Spec,
    pub(crate) lock: Lock,
}

/// Makes a sandbox. One without a name goes with its command when `ephemeral`, and gets a name that nobody chose. `check`
/// may refuse what it is to be.
pub(crate) fn make(
    home: &Home,
    root: &TypedRoot,
    name: Option<&SandboxName>,
    ephemeral: bool,
    args: (&MakeArgs, &SettingArgs, &[OsString]),
    main: MainBounds,
    check: impl FnOnce(&Spec) -> anyhow::Result<()>,
) -> anyhow::Result<Made> {
    let (making, setting, command) = args;
    let choices = Choices {
        main,
        ..making.choices(home, setting, command)?
    };
    let Found {
        root,
        config,
        in_use,
    } = root.find(home, making.pull)?;
    let name = name.cloned().map_or_else(SandboxName::random, Ok)?;
    let spec = plan::spec(&name, ephemeral, (root, &config), choices)?;
    // Before anything is made, or removed to make room.
    check(&spec)?;
    home.prepare()?;
    mounts::make_volumes(home, &spec.mounts)?;
    if let Some(timeout) = making.replace() {
        // Only now, when nothing but the disk can stand in the way of the new one.
        remove(home, &name, timeout)?;
    }
    let (sandbox, lock) = home.sandboxes().create(&name, &spec, |folder| {
        if ephemeral || spec.upper() != Some(&RootDisk::Managed) {
            return Ok(());
        }
        let path = folder.join(layout::UPPER);
        let cannot = || format!("cannot make the disk '{}'", path.display());
        let file = std::fs::File::create_new(&path).with_context(cannot)?;
        upper::format(&file, spec.upper_mib)
            .and_then(|()| file.sync_all())
            .with_context(cannot)
    })?;
    drop(in_use);
    Ok(Made {
        sandbox,
        spec,
        lock,
    })
}

/// A new sandbox whose files were not changed as they should have been leaves nothing behind. For its maker, when the
/// start has failed.
pub(crate) fn discard_unchanged(sandbox: &Sandbox) -> anyhow::Result<()> {
    let (Ok(spec), Ok(status)) = (sandbox.spec(), sandbox.status()) else {
        return Ok(());
    };
    if spec.guest.changes.is_empty() || status.changed {
        return Ok(());
    }
    if let Some(lock) = sandbox.try_lock()? {
        sandbox.remove_held()?;
        drop(lock);
    }
    Ok(())
}

/// Removes a sandbox, whatever its state; there may be none.
fn remove(home: &Home, name: &SandboxName, timeout: Duration) -> anyhow::Result<()> {
    let sandbox = home.sandboxes().named(name);
    if sandbox.is_alive()? {
        stop(home, name, timeout)?;
    }
    if !sandbox.dir.is_dir() {
        return Ok(());
    }
    let lock = sandbox.lock()?;
    sandbox.remove_held()?;
    drop(lock);
    Ok(())
}
