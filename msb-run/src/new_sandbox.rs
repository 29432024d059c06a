//! Creation of a sandbox: its command-line arguments, and the directory that is created from them.

/// Differences between typed options and an existing sandbox.
pub(crate) mod differences;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueHint};
use libmsb::cli::args::{
    EnvVar, SandboxName, parse_cpus, parse_duration, parse_env, parse_memory, parse_new_label,
    read_label_file,
};
use libmsb::cli::error::{Failure, code, hint, message};
use libmsb::cli::verbosity::{self, Verbosity};
use libmsb::machine::EngineChoice;
use libmsb::net::NetSpec;
use libmsb::net::args::NetArgs;
use libmsb::state::config::{SandboxDefaults, UserConfig};
use libmsb::state::guest::RootDisk;
use libmsb::state::lock::Lock;
use libmsb::state::mounts::Mount;
use libmsb::state::sandboxes::Sandbox;
use libmsb::state::snapshots::Snapshot;
use libmsb::state::spec::{MainLimits, Spec};
use libmsb::state::status::Reason;
use libmsb::state::{Home, layout, write};
use msb_wire::text::Text;

use crate::boot_state::{BootArgs, BootState};
use crate::engine::{self, upper};
use crate::guest::GuestArgs;
use crate::metrics::MetricsArgs;
use crate::mounts::{MountArgs, SandboxVolumes, apply_changes};
use crate::pull::PullPolicy;
use crate::root::{ResolvedRoot, RootArg};
use crate::sandbox_file::{self, SandboxFile};
use crate::snapshot::digest_of;
use crate::snapshot::disk_copy::copy_disk;
use crate::snapshot::restore::{check_machine, size_mib as snapshot_size_mib};
use crate::snapshot::saved_memory::{link_or_copy, open_memory, verify_memory};
use crate::spec_builder::{self, ImportedSpec, SpecOptions};
use crate::startup::LOGS_HINT;
use crate::verbs::CommandContextArgs;
use crate::verbs::stop::stop;

/// Default number of virtual processors, as in microsandbox.
const CPUS: u8 = 1;
/// Default memory in MiB, as in microsandbox.
const MEMORY_MIB: u32 = 512;
/// Default time that a sandbox to be replaced has to stop, as in microsandbox.
const REPLACE_TIMEOUT: Duration = Duration::from_secs(10);

/// Arguments that describe a new sandbox, common to `run` and `create`.
#[derive(Debug, Args)]
pub(crate) struct SandboxArgs {
    /// Set the number of virtual CPUs [default: 1]
    ///
    /// N is from 1 to 255.
    #[arg(short, long, value_parser = parse_cpus, value_name = "N", help_heading = "Resources")]
    cpus: Option<u8>,
    /// Set the memory, such as 512M or 1.5G [default: 512M]
    ///
    /// A number without a unit is in MiB.
    #[arg(
        short,
        long,
        value_parser = parse_memory,
        value_name = "SIZE",
        help_heading = "Resources"
    )]
    memory: Option<u32>,
    /// Set the engine that runs the virtual machine [default: auto]
    ///
    /// Without this option, `$MSB_ENGINE` selects the engine, and then `engine` of the file
    /// `config.json`, see msb-state(5). See also **Engine and kernel** in msb-run(1).
    #[arg(long, value_enum, help_heading = "Resources")]
    engine: Option<EngineChoice>,
    #[command(flatten)]
    boot: BootArgs,
    /// Set the host name of the guest [default: the name of the sandbox]
    #[arg(short = 'H', long, help_heading = "Guest setup")]
    hostname: Option<String>,
    /// Run PROGRAM instead of the entrypoint of the image
    ///
    /// The default arguments of the image are not used either.
    #[arg(long, value_name = "PROGRAM", help_heading = "Command")]
    entrypoint: Option<OsString>,
    /// Set when to pull the image from its registry [default: if-missing]
    ///
    /// The image is pulled as by `msb image pull`. Progress and errors go to standard error.
    #[arg(long, value_name = "WHEN", help_heading = "Storage")]
    pull: Option<PullPolicy>,
    #[command(flatten)]
    mounts: MountArgs,
    /// Attach a label
    ///
    /// The sandbox also has the labels of its image; this option overrides them.
    #[arg(
        long,
        value_name = "KEY[=VALUE]",
        value_parser = parse_new_label,
        help_heading = "Guest setup"
    )]
    label: Vec<(String, String)>,
    /// Attach the labels in a file, one KEY[=VALUE] per line
    ///
    /// Empty lines and lines that start with `#` are ignored. `--label` overrides them.
    #[arg(long, value_name = "FILE", help_heading = "Guest setup")]
    label_file: Vec<PathBuf>,
    /// Stop the sandbox when it has been idle for DURATION
    ///
    /// A sandbox is idle if no session and no connection through a published or forwarded port is
    /// open, no job runs, and no datagram arrives at a published port. Traffic that the guest
    /// starts itself does not count. The time does not run while the sandbox is paused, see
    /// msb-pause(1). The guest shuts down in order. DURATION is a number of seconds, or a number
    /// with `ms`, `s`, `m`, `h` or `d`.
    #[arg(
        long,
        value_parser = parse_positive_duration,
        value_name = "DURATION",
        help_heading = "Lifetime"
    )]
    idle_timeout: Option<Duration>,
    /// Stop the sandbox when it has run for DURATION
    ///
    /// This includes time when the sandbox is in use or paused. The guest shuts down in order.
    #[arg(
        long,
        value_parser = parse_positive_duration,
        value_name = "DURATION",
        help_heading = "Lifetime"
    )]
    max_duration: Option<Duration>,
    #[command(flatten)]
    metrics: MetricsArgs,
    #[command(flatten)]
    guest: GuestArgs,
    /// Remove an existing sandbox of that name first, with its disk
    ///
    /// That sandbox has 10 seconds to stop. Nothing is removed before the image is found.
    #[arg(long, requires = "named", help_heading = "Lifetime")]
    replace: bool,
    /// Like --replace, with DURATION to stop; 0 kills it
    #[arg(
        long,
        value_parser = parse_duration,
        value_name = "DURATION",
        requires = "named",
        help_heading = "Lifetime"
    )]
    replace_with_timeout: Option<Duration>,
    #[command(flatten)]
    net: NetArgs,
    /// Set the verbosity: error, warn, info, debug or trace; same as --LEVEL
    #[arg(long, value_name = "LEVEL", help_heading = "Output")]
    log_level: Option<Verbosity>,
    /// Create the sandbox that FILE describes, in JSON or YAML; other options override it
    ///
    /// FILE has the form of the field `config` in the output of `msb inspect --format json`, or is
    /// that output. Every field is optional, and an unknown one is an error; see msb-spec(5) and
    /// `msb config schema`. `-` is standard input. The image argument is omitted: the first word
    /// after the options starts the command. Typed variables, labels, mounts and ports are added to
    /// those of the file. Relative paths of the host start in the directory of FILE.
    #[arg(
        long,
        value_name = "FILE",
        value_hint = ValueHint::FilePath,
        conflicts_with = "image",
        help_heading = "Guest setup"
    )]
    file: Option<PathBuf>,
    /// Parts of an imported configuration.
    #[arg(skip)]
    pub(crate) imported: ImportedSpec,
    /// The client stays for the main command.
    #[arg(skip)]
    pub(crate) is_attached: bool,
    /// The file of `--file`, when it was read.
    #[arg(skip)]
    sandbox_file: Option<SandboxFile>,
}

/// The identity of a sandbox in a sandbox file.
#[derive(Debug, Default)]
pub(crate) struct FileIdentity {
    pub(crate) name: Option<SandboxName>,
    pub(crate) root: Option<RootArg>,
}

impl SandboxArgs {
    /// Returns whether `--file` reads standard input.
    pub(crate) fn is_stdin_file(&self) -> bool {
        self.file.as_deref() == Some(Path::new(sandbox_file::STDIN))
    }

    /// Reads the file of `--file`, if it is given. Its settings then apply where no option is typed.
    /// Returns its name and root.
    pub(crate) fn read_file(
        &mut self,
        home: &Home,
        typed_name: Option<&SandboxName>,
    ) -> anyhow::Result<FileIdentity> {
        let Some(path) = &self.file else {
            return Ok(FileIdentity::default());
        };
        let file = sandbox_file::read(path)?;
        self.imported = file.imported(&default_net(&UserConfig::read(home)?.sandbox_defaults)?)?;
        let identity = FileIdentity { name: file.name.clone(), root: file.root.clone() };
        if identity.name.is_none() && typed_name.is_none() && self.replace().is_some() {
            return Err(Failure::usage("--replace needs a name").hint("add --name NAME").into());
        }
        self.sandbox_file = Some(file);
        Ok(identity)
    }

    /// Returns the fields in the file of `--file` that an existing sandbox does not have.
    pub(crate) fn file_differences(&self, spec: &Spec) -> anyhow::Result<Vec<String>> {
        self.sandbox_file.as_ref().map_or(Ok(Vec::new()), |file| file.differences(spec))
    }

    /// Returns the limits of the main command in the file of `--file`.
    pub(crate) fn file_main(&self) -> MainLimits {
        self.sandbox_file.as_ref().map(|file| file.plain.main.clone()).unwrap_or_default()
    }

    /// Returns the stop timeout for an existing sandbox of this name, or `None` if it is not to be
    /// replaced.
    pub(crate) fn replace(&self) -> Option<Duration> {
        let replace = self.replace || self.imported.replace;
        self.replace_with_timeout.or(replace.then_some(REPLACE_TIMEOUT))
    }

    /// Applies the verbosity to this process and to those of the sandbox.
    pub(crate) fn apply_log_level(&self) {
        if let Some(level) = self.log_level {
            verbosity::set(level);
        }
    }

    /// Returns whether the sandbox is to be removed at its end, even if it has a name.
    pub(crate) fn removes_sandbox(&self) -> bool {
        let is_ephemeral = self.sandbox_file.as_ref().is_some_and(|file| file.plain.ephemeral);
        self.guest.removes_sandbox() || is_ephemeral
    }

    /// Returns the labels, of which the last one of a key counts.
    fn labels(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let mut labels = BTreeMap::new();
        for file in &self.label_file {
            labels.extend(read_label_file(file)?);
        }
        labels.extend(self.label.iter().cloned());
        Ok(labels)
    }

    fn net(&self, defaults: &SandboxDefaults) -> anyhow::Result<NetSpec> {
        let mut net = match &self.imported.net {
            Some(net) => net.clone(),
            None => default_net(defaults)?,
        };
        self.net.change(&mut net)?;
        Ok(net)
    }

    /// Returns the mounts of the file of `--file` and the typed ones. A typed mount replaces that of
    /// the file with the same target.
    fn all_mounts(&self, home: &Home) -> anyhow::Result<Vec<Mount>> {
        let typed = self.mounts.mounts(home)?;
        let written = self.sandbox_file.as_ref().map_or(&[][..], |file| &file.mounts);
        Ok(apply_changes(written, &[], &typed)?)
    }

    /// Takes the size of the machine from saved memory, unless it is given. Refuses a command, which
    /// could not be the main one.
    fn go_on_from(&self, state: &BootState, options: &mut SpecOptions) -> Result<(), Failure> {
        let refused = |why: &str| {
            Failure::usage(format!("the snapshot has memory, and its processes go on: {why}"))
        };
        if !options.command.is_empty() {
            return Err(refused("no command can be given")
                .hint("run it afterwards: msb exec; or start from the disk alone: --cold"));
        }
        if self.is_attached {
            return Err(refused("no command can be attached to")
                .hint("start it in the background: --detach; or from its disk alone: --cold"));
        }
        let file = self.sandbox_file.as_ref().map(|file| &file.plain);
        if self.cpus.is_none() && file.is_none_or(|file| file.cpus.is_none()) {
            options.cpus = state.header.guest.as_ref().map_or(options.cpus, |guest| guest.cpus);
        }
        if self.memory.is_none() && file.is_none_or(|file| file.memory_mib.is_none()) {
            options.memory_mib = u32::try_from(state.header.memory_bytes >> 20).unwrap_or(u32::MAX);
        }
        if self.engine.is_none() && options.engine == EngineChoice::Auto {
            options.engine = EngineChoice::Qemu;
        }
        Ok(())
    }

    fn options(
        &self,
        home: &Home,
        config: &UserConfig,
        context: &CommandContextArgs,
        command: &[OsString],
    ) -> anyhow::Result<SpecOptions> {
        let defaults = &config.sandbox_defaults;
        let file = self.sandbox_file.as_ref();
        let plain = file.map(|file| file.plain.clone()).unwrap_or_default();
        let cpus = self.cpus.or(plain.cpus).or(defaults.cpus.map(NonZero::get));
        let memory_mib = self.memory.or(plain.memory_mib);
        let memory_mib = memory_mib.or(defaults.memory_mib.map(NonZero::get));
        let default_workdir = defaults.workdir.as_ref().map(OsString::from);
        let ms = |written: Option<u64>, default: Option<NonZero<u64>>| {
            written.or(default.map(NonZero::get)).map(Duration::from_millis)
        };
        let written_engine = plain.engine.filter(|engine| *engine != EngineChoice::Auto);
        let mut env = default_env(defaults)?;
        env.extend(file.iter().flat_map(|file| file.env.iter().cloned()));
        env.extend(context.env()?);
        let mut guest = self.guest.options(defaults, &plain.guest)?;
        if guest.spec.root_disk.is_managed() {
            guest.upper_mib = guest.upper_mib.or(plain.upper_mib);
        }
        let mut labels = default_labels(defaults)?;
        labels.extend(file.iter().flat_map(|file| file.labels.iter().cloned()));
        labels.extend(self.labels()?);
        let words = |text: &Text| text.as_os_str().to_owned();
        Ok(SpecOptions {
            cpus: u32::from(cpus.unwrap_or(CPUS)),
            memory_mib: memory_mib.unwrap_or(MEMORY_MIB),
            engine: engine::choice(config, self.engine.or(written_engine))?,
            boot: self.boot.choice(config, plain.boot)?,
            env,
            workdir: context
                .workdir
                .clone()
                .or(plain.workdir.as_ref().map(words))
                .or(default_workdir),
            user: context
                .user
                .clone()
                .or(plain.user.as_ref().map(words))
                .or(defaults.user.as_ref().map(OsString::from)),
            hostname: self.hostname.clone().or(file.and_then(SandboxFile::hostname)),
            entrypoint: self.entrypoint.clone(),
            labels,
            mounts: self.all_mounts(home)?,
            idle_timeout: self.idle_timeout.or(ms(plain.idle_timeout_ms, defaults.idle_timeout_ms)),
            max_duration: self.max_duration.or(ms(plain.max_duration_ms, defaults.max_duration_ms)),
            metrics: self
                .metrics
                .given()
                .or(plain.metrics)
                .unwrap_or(self.metrics.choice(defaults)),
            imported_command: if self.entrypoint.is_some() {
                Vec::new()
            } else {
                self.imported.command.clone()
            },
            lasting: file.and_then(SandboxFile::lasting).unwrap_or(true),
            net: self.net(defaults)?,
            machine_id: write::random_machine_id()?,
            main: MainLimits::default(),
            guest: self.imported.guest(guest)?,
            default_upper_mib: defaults.oci.upper_size_mib.map(NonZero::get),
            command: command.to_vec(),
        })
    }
}

/// Returns the network of a new sandbox by the user's configuration.
fn default_net(defaults: &SandboxDefaults) -> anyhow::Result<NetSpec> {
    let mut net = match &defaults.net {
        Some(written) => sandbox_file::net(written, &NetSpec::public())
            .context("in 'config.json': sandbox_defaults")?,
        None => NetSpec::public(),
    };
    if !defaults.dns_search.is_empty() {
        net.dns.search.clone_from(&defaults.dns_search);
    }
    Ok(net)
}

/// Returns the variables of the user's configuration. A name alone has no value there.
fn default_env(defaults: &SandboxDefaults) -> anyhow::Result<Vec<EnvVar>> {
    let variable = |text: &String| {
        let is_assignment = text.contains('=');
        let failure = || Failure::usage("in 'config.json': a variable is not NAME=value");
        if is_assignment { parse_env(OsStr::new(text)) } else { Err(failure()) }
    };
    Ok(defaults.env.iter().map(variable).collect::<Result<_, _>>()?)
}

/// Returns the labels of the user's configuration.
fn default_labels(defaults: &SandboxDefaults) -> Result<BTreeMap<String, String>, Failure> {
    let labels = defaults.labels.iter();
    labels.map(|(key, value)| parse_new_label(&format!("{key}={value}"))).collect()
}

fn parse_positive_duration(text: &str) -> Result<Duration, Failure> {
    match parse_duration(text)? {
        Duration::ZERO => Err(Failure::usage("the duration must be greater than 0")),
        duration => Ok(duration),
    }
}

/// A sandbox that was just created, with its lock, ready to be started.
pub(crate) struct NewSandbox {
    pub(crate) sandbox: Sandbox,
    pub(crate) spec: Spec,
    pub(crate) lock: Lock,
    /// Its volumes, of which the new ones are kept when the sandbox has started.
    pub(crate) volumes: SandboxVolumes,
    /// Warnings about the image and the configuration.
    pub(crate) warnings: Vec<String>,
}

/// Creates a sandbox. Without a name it gets a random one. An `ephemeral` sandbox is removed when
/// its command ends. `check` may refuse the specification.
pub(crate) fn create_sandbox(
    home: &Home,
    root: &RootArg,
    name: Option<&SandboxName>,
    ephemeral: bool,
    args: (&SandboxArgs, &CommandContextArgs, &[OsString]),
    main: MainLimits,
    check: impl FnOnce(&Spec) -> anyhow::Result<()>,
) -> anyhow::Result<NewSandbox> {
    let (sandbox_args, context, command) = args;
    let user_config = UserConfig::read(home)?;
    let options = sandbox_args.options(home, &user_config, context, command)?;
    let mut options = SpecOptions { main, ..options };
    let upper_mib = options.guest.upper_mib;
    let pull = sandbox_args.pull.unwrap_or(PullPolicy::IfMissing);
    let ResolvedRoot { root, config, snapshot, in_use } =
        root.resolve(home, pull, sandbox_args.imported.login.as_ref())?;
    let memory = match &snapshot {
        Some(snapshot) if !sandbox_args.boot.is_cold() => open_memory(snapshot)?,
        _ => None,
    };
    if let Some(state) = &memory {
        sandbox_args.go_on_from(state, &mut options)?;
    }
    let name = name.cloned().map_or_else(SandboxName::random, Ok)?;
    let mut spec = spec_builder::spec(&name, ephemeral, (root, &config), options)?;
    if let Some(snapshot) = &snapshot {
        start_from(&mut spec, snapshot, upper_mib)?;
    }
    let mut warnings = spec_builder::image_warnings(&config, &spec);
    warnings.extend(sandbox_args.sandbox_file.iter().flat_map(|file| file.warnings(&spec)));
    // Check before anything is created, or removed to make room.
    if let (Some(state), Some(snapshot)) = (&memory, &snapshot) {
        check_machine(home, &spec, state)
            .map_err(|failure| failure.hint("start from its disk alone: --cold"))?;
        verify_memory(snapshot, state)?;
    } else {
        check(&spec)?;
    }
    home.prepare()?;
    warnings.extend(user_config.unknown_fields_warning(home));
    let mut volumes = SandboxVolumes::create(home, &spec.mounts)?;
    if let Some(timeout) = sandbox_args.replace() {
        // Remove the old sandbox only now, when nothing but disk errors can prevent the new one.
        remove_existing(home, &name, timeout)?;
    }
    let (sandbox, lock) = home.sandboxes().create(&name, &spec, |directory| {
        let is_managed = spec.upper() == Some(&RootDisk::Managed);
        if !is_managed || (ephemeral && snapshot.is_none()) {
            return Ok(());
        }
        let path = directory.join(layout::UPPER);
        let cannot = || format!("cannot create the disk '{}'", path.display());
        let file = write::create_file(&path).with_context(cannot)?;
        if let Some(path) =
            snapshot.as_ref().and_then(Snapshot::memory).filter(|_| memory.is_some())
        {
            link_or_copy(&path, &directory.join(layout::MEMORY))?;
        }
        if let Some(snapshot) = &snapshot {
            return copy_disk(&snapshot.open_disk()?, &file).with_context(cannot);
        }
        upper::format(&file, spec.upper_mib).and_then(|()| file.sync_all()).with_context(cannot)
    })?;
    volumes.unlock();
    drop(in_use);
    Ok(NewSandbox { sandbox, spec, lock, volumes, warnings })
}

/// Sets the disk of a new sandbox to be that of a snapshot, which a larger size can grow.
fn start_from(spec: &mut Spec, snapshot: &Snapshot, size_mib: Option<u64>) -> anyhow::Result<()> {
    if spec.upper() != Some(&RootDisk::Managed) {
        return Err(Failure::usage("a snapshot has a managed disk")
            .hint("omit --root-disk, or give a size")
            .into());
    }
    let least = snapshot_size_mib(snapshot);
    if let Some(size) = size_mib.filter(|size| *size < least) {
        let message = format!("the disk of the snapshot has {least} MiB, more than {size} MiB");
        return Err(Failure::usage(message).into());
    }
    spec.upper_mib = size_mib.unwrap_or(least);
    spec.snapshot = Some(digest_of(&snapshot.manifest)?);
    Ok(())
}

/// Removes a new sandbox that failed to start, so that nothing is left behind: one whose machine
/// printed nothing, or whose files were not changed as requested. After a boot the console's output
/// shows the reason, and the sandbox stays.
///
/// Returns the error of the start, without a hint at logs that are gone.
pub(crate) fn discard_unstarted(
    sandbox: &Sandbox,
    error: anyhow::Error,
) -> anyhow::Result<anyhow::Error> {
    discard_silent(sandbox)?;
    if sandbox.dir.exists() || hint(&error) != Some(LOGS_HINT) {
        return Ok(error);
    }
    Ok(Failure::failed(message(&error)).code(code(&error)).into())
}

fn discard_silent(sandbox: &Sandbox) -> anyhow::Result<()> {
    let (Ok(spec), Ok(status)) = (sandbox.spec(), sandbox.status()) else {
        return Ok(());
    };
    let console = std::fs::metadata(sandbox.path(layout::CONSOLE_LOG));
    let has_booted = status.started_at.is_some() && status.reason != Some(Reason::BootFailed);
    let is_silent = !has_booted && console.map_or(0, |file| file.len()) == 0;
    let is_unchanged = !spec.guest.changes.is_empty() && !status.changed;
    if !is_silent && !is_unchanged {
        return Ok(());
    }
    discard(sandbox)
}

/// Removes a new sandbox, unless it runs.
pub(crate) fn discard(sandbox: &Sandbox) -> anyhow::Result<()> {
    if let Some(lock) = sandbox.try_lock()? {
        sandbox.remove_locked()?;
        drop(lock);
    }
    Ok(())
}

/// Removes a sandbox in any state, if it exists.
fn remove_existing(home: &Home, name: &SandboxName, timeout: Duration) -> anyhow::Result<()> {
    let sandbox = home.sandboxes().named(name);
    if sandbox.is_alive()? {
        stop(home, name, timeout)?;
    }
    if !sandbox.dir.is_dir() {
        return Ok(());
    }
    let lock = sandbox.lock()?;
    sandbox.remove_locked()?;
    drop(lock);
    Ok(())
}
