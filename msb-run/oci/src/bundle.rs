//! `config.json`, untrusted until parsed, as a container that msb can run, or a refusal.
//!
//! This module opens nothing but the file of the bundle. A property that msb cannot provide is
//! refused with one sentence, unless it only restricts the process of a container on a shared
//! kernel (seccomp, masked paths, capabilities of the host): the guest has a kernel of its own.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, ensure};
use libmsb::cli::error::Failure;
use libmsb::state::write;
use oci_spec::runtime::{LinuxNamespaceType, LinuxResources, Mount, Process, Spec};

use crate::cgroup::GroupLimits;

/// Limit of `config.json` and of a process file.
const CONFIG_BYTES_MAX: u64 = 4 << 20;
/// Least memory of a guest, in MiB.
const MEMORY_MIB_MIN: i64 = 128;
/// Mount types that the guest's own kernel provides.
const GUEST_TYPES: [&str; 6] = ["proc", "sysfs", "devpts", "mqueue", "cgroup", "cgroup2"];

/// A container that msb can run.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Container {
    pub(crate) oci_version: String,
    pub(crate) root: PathBuf,
    pub(crate) process: GuestProcess,
    pub(crate) hostname: Option<String>,
    pub(crate) binds: Vec<BindMount>,
    pub(crate) tmpfs: Vec<TmpfsMount>,
    pub(crate) memory_mib: Option<i64>,
    pub(crate) cpus: Option<i64>,
    pub(crate) network: NetworkNamespace,
    pub(crate) cgroups_path: Option<PathBuf>,
    pub(crate) limits: GroupLimits,
    pub(crate) annotations: HashMap<String, String>,
}

/// A process of a container.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct GuestProcess {
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) cwd: PathBuf,
    pub(crate) user: String,
    pub(crate) rlimits: Vec<String>,
    pub(crate) terminal: bool,
}

/// A file or directory of the host in a container.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct BindMount {
    pub(crate) source: PathBuf,
    pub(crate) target: PathBuf,
    pub(crate) readonly: bool,
}

/// A temporary file system in a container.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TmpfsMount {
    pub(crate) target: PathBuf,
    pub(crate) size: Option<String>,
}

/// The network namespace of a container.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum NetworkNamespace {
    /// That of the engine.
    Host,
    /// A new one, into which the engine may put interfaces before the start.
    New,
    /// An existing one.
    Path(PathBuf),
}

/// Reads and checks the configuration of a bundle.
pub(crate) fn read(bundle: &Path) -> anyhow::Result<Container> {
    let path = bundle.join("config.json");
    let bytes = read_file(&path)?;
    parse(&bytes, bundle).with_context(|| format!("in '{}'", path.display()))
}

/// Reads and checks a process file.
pub(crate) fn read_process(path: &Path) -> anyhow::Result<GuestProcess> {
    let bytes = read_file(path)?;
    parse_process(&bytes).with_context(|| format!("in '{}'", path.display()))
}

fn read_file(path: &Path) -> anyhow::Result<Vec<u8>> {
    let bytes = write::read_bounded(path, CONFIG_BYTES_MAX)?;
    bytes.with_context(|| Failure::not_found(format!("there is no file '{}'", path.display())))
}

/// Parses a process file.
pub(crate) fn parse_process(bytes: &[u8]) -> anyhow::Result<GuestProcess> {
    let process: Process = serde_json::from_slice(bytes).context("the process is invalid")?;
    guest_process(&process)
}

/// Parses the resources of an update.
pub(crate) fn parse_resources(bytes: &[u8]) -> anyhow::Result<LinuxResources> {
    serde_json::from_slice(bytes).context("the resources are invalid")
}

/// Parses a configuration.
pub(crate) fn parse(bytes: &[u8], bundle: &Path) -> anyhow::Result<Container> {
    let spec: Spec = serde_json::from_slice(bytes).context("the configuration is invalid")?;
    ensure!(spec.version().starts_with("1."), "the version '{}' is not 1.x", spec.version());
    let root = spec.root().as_ref().context("the configuration has no root")?;
    refuse_if(
        root.readonly() == Some(true),
        "a read-only root is not supported: run the container with a writable root",
    )?;
    refuse_hooks(&spec)?;
    let annotations = spec.annotations().clone().unwrap_or_default();
    refuse_if(
        is_pod_sandbox(&annotations),
        "a pod sandbox is not supported: containers of pods cannot run yet",
    )?;
    let process = spec.process().as_ref().context("the configuration has no process")?;
    let (binds, tmpfs) = mounts(spec.mounts().as_deref().unwrap_or_default(), bundle)?;
    let (memory_mib, cpus) = resources(&spec)?;
    let linux = spec.linux().as_ref();
    let limits = GroupLimits::of(linux.and_then(|linux| linux.resources().as_ref()), memory_mib);
    Ok(Container {
        oci_version: spec.version().clone(),
        root: absolute(bundle, root.path(), "root")?,
        process: guest_process(process)?,
        hostname: spec.hostname().clone().filter(|name| !name.is_empty()),
        binds,
        tmpfs,
        memory_mib,
        cpus,
        network: namespaces(&spec)?,
        cgroups_path: cgroups_path(&spec)?,
        limits,
        annotations,
    })
}

fn refuse_if(refused: bool, message: &str) -> Result<(), Failure> {
    if refused { Err(Failure::failed(message)) } else { Ok(()) }
}

fn is_pod_sandbox(annotations: &HashMap<String, String>) -> bool {
    ["io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType"]
        .iter()
        .any(|key| annotations.get(*key).is_some_and(|value| value == "sandbox"))
}

/// Refuses hooks: none is run, and an engine that gives one relies on it.
fn refuse_hooks(spec: &Spec) -> anyhow::Result<()> {
    let hooks = spec.hooks().as_ref().map(serde_json::to_value).transpose()?;
    let given = hooks.as_ref().and_then(|value| value.as_object()).is_some_and(|hooks| {
        hooks.values().any(|list| list.as_array().is_some_and(|list| !list.is_empty()))
    });
    Ok(refuse_if(given, "hooks are not supported: remove them from the configuration")?)
}

fn guest_process(process: &Process) -> anyhow::Result<GuestProcess> {
    let args = process.args().clone().unwrap_or_default();
    ensure!(args.first().is_some_and(|arg| !arg.is_empty()), "the process has no command");
    ensure!(process.cwd().is_absolute(), "the working directory is not absolute");
    let env = process.env().clone().unwrap_or_default();
    // A NUL byte would end the argument that names it.
    let has_nul = |text: &String| text.contains('\0');
    ensure!(!args.iter().chain(&env).any(has_nul), "the process contains a NUL byte");
    let user = process.user();
    refuse_if(
        user.umask().is_some_and(|mask| mask != 0o022),
        "a umask other than 0022 is not supported",
    )?;
    let rlimits = process.rlimits().iter().flatten().map(|limit| {
        let name = serde_json::to_value(limit.typ()).ok();
        let name = name.as_ref().and_then(|name| name.as_str()).unwrap_or_default();
        let name = name.trim_start_matches("RLIMIT_").to_ascii_lowercase();
        format!("{name}={}:{}", rlimit(limit.soft()), rlimit(limit.hard()))
    });
    Ok(GuestProcess {
        args,
        env,
        cwd: process.cwd().clone(),
        user: format!("{}:{}", user.uid(), user.gid()),
        rlimits: rlimits.collect(),
        terminal: process.terminal().unwrap_or(false),
    })
}

fn rlimit(value: u64) -> String {
    if value == u64::MAX { "unlimited".to_owned() } else { value.to_string() }
}

/// Checks the namespaces. Those of a container that msb cannot share are refused.
fn namespaces(spec: &Spec) -> anyhow::Result<NetworkNamespace> {
    let linux = spec.linux().as_ref().context("the configuration is not for Linux")?;
    let mapped = |list: &Option<Vec<_>>| list.as_ref().is_some_and(|list| !list.is_empty());
    refuse_if(
        mapped(linux.uid_mappings()) || mapped(linux.gid_mappings()),
        "user namespaces with mappings are not supported",
    )?;
    refuse_if(
        linux.devices().as_ref().is_some_and(|devices| !devices.is_empty()),
        "devices of the host are not supported",
    )?;
    let mut network = NetworkNamespace::Host;
    for namespace in linux.namespaces().iter().flatten() {
        let path = namespace.path().as_ref();
        match namespace.typ() {
            LinuxNamespaceType::Network => {
                network = path.cloned().map_or(NetworkNamespace::New, NetworkNamespace::Path);
            }
            LinuxNamespaceType::User => {
                refuse_if(true, "user namespaces with mappings are not supported")?;
            }
            LinuxNamespaceType::Time => refuse_if(true, "time namespaces are not supported")?,
            LinuxNamespaceType::Pid | LinuxNamespaceType::Mount => {
                refuse_if(
                    path.is_some(),
                    "joining the process or mount namespace of a container is not supported",
                )?;
            }
            _ => {}
        }
    }
    if let NetworkNamespace::Path(path) = &network {
        ensure!(path.is_absolute(), "the path of the network namespace is not absolute");
    }
    Ok(network)
}

/// Returns the path of the control group.
fn cgroups_path(spec: &Spec) -> anyhow::Result<Option<PathBuf>> {
    let path = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_ref());
    let Some(path) = path.filter(|path| !path.as_os_str().is_empty()) else { return Ok(None) };
    let is_systemd = !path.is_absolute() && path.to_string_lossy().contains(':');
    refuse_if(is_systemd, "control groups of systemd are not supported")?;
    normal(path).map(Some)
}

/// Returns the memory in MiB and the number of virtual CPUs.
fn resources(spec: &Spec) -> anyhow::Result<(Option<i64>, Option<i64>)> {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let Some(resources) = resources else { return Ok((None, None)) };
    let limit = resources.memory().as_ref().and_then(|memory| memory.limit());
    let memory = limit.filter(|limit| *limit > 0).map(|limit| (limit >> 20).max(MEMORY_MIB_MIN));
    let cpu = resources.cpu().as_ref();
    let quota = cpu.and_then(|cpu| cpu.quota()).filter(|quota| *quota > 0);
    let period = cpu.and_then(|cpu| cpu.period()).filter(|period| *period > 0).unwrap_or(100_000);
    let cpus = quota.map(|quota| quota.unsigned_abs().div_ceil(period));
    Ok((memory, cpus.and_then(|cpus| i64::try_from(cpus).ok())))
}

fn mounts(mounts: &[Mount], bundle: &Path) -> anyhow::Result<(Vec<BindMount>, Vec<TmpfsMount>)> {
    let (mut binds, mut tmpfs) = (Vec::new(), Vec::new());
    for mount in mounts {
        let options = mount.options().clone().unwrap_or_default();
        let has = |name: &str| options.iter().any(|option| option == name);
        let target = normal(mount.destination())?;
        let typ = mount.typ().as_deref().unwrap_or_default();
        if is_guests_own(&target) || GUEST_TYPES.contains(&typ) {
            continue;
        }
        let shown = target.display().to_string();
        let idmapped = mount.uid_mappings().is_some() || has("idmap") || has("ridmap");
        refuse_if(
            idmapped,
            &format!("the mount on '{shown}' has ID mappings, which are not supported"),
        )?;
        if has("bind") || has("rbind") || typ == "bind" {
            let source = mount.source().as_ref().context("a bind mount has no source")?;
            let source = absolute(bundle, source, "a bind mount")?;
            binds.push(BindMount { source, target, readonly: has("ro") || has("rro") });
        } else if typ == "tmpfs" {
            refuse_if(
                has("tmpcopyup"),
                &format!("the mount on '{shown}' has the option tmpcopyup, which is not supported"),
            )?;
            let size = options.iter().find_map(|option| option.strip_prefix("size="));
            tmpfs.push(TmpfsMount { target, size: size.map(ToOwned::to_owned) });
        } else {
            refuse_if(
                true,
                &format!("the mount on '{shown}' has the type '{typ}', which is not supported"),
            )?;
        }
    }
    Ok((binds, tmpfs))
}

/// Returns whether the guest mounts its own file system at a path.
fn is_guests_own(target: &Path) -> bool {
    ["/proc", "/sys", "/dev"].iter().any(|own| target.starts_with(own))
}

/// Returns an absolute path without `.` and `..`.
fn normal(path: &Path) -> anyhow::Result<PathBuf> {
    let plain = path.components().all(|part| !matches!(part, Component::ParentDir));
    ensure!(plain && !path.as_os_str().is_empty(), "the path '{}' has '..'", path.display());
    Ok(Path::new("/").join(path).components().collect())
}

fn absolute(bundle: &Path, path: &Path, name: &str) -> anyhow::Result<PathBuf> {
    ensure!(!path.as_os_str().is_empty(), "{name} has no path");
    Ok(bundle.join(path))
}

impl GuestProcess {
    /// Returns the options of `msb run` and `msb exec` that describe the process, and the variables
    /// that fit in an environment file. The others are options: an environment file is preferred,
    /// since every user of the host can read the arguments of a process.
    pub(crate) fn options(&self) -> (Vec<OsString>, Vec<u8>) {
        let mut options: Vec<OsString> =
            vec!["-w".into(), self.cwd.clone().into(), "-u".into(), self.user.clone().into()];
        options.push(if self.terminal { "--tty".into() } else { "--no-tty".into() });
        let mut file = Vec::new();
        for limit in &self.rlimits {
            options.extend(["--rlimit".into(), limit.into()]);
        }
        // As in a process started by runc, an entry without `=` is no variable.
        for variable in self.env.iter().filter(|variable| variable.contains('=')) {
            if is_line(variable) {
                file.extend_from_slice(variable.as_bytes());
                file.push(b'\n');
            } else {
                options.extend(["-e".into(), variable.into()]);
            }
        }
        (options, file)
    }
}

/// Returns whether an environment file can contain a variable.
fn is_line(variable: &str) -> bool {
    let trimmed = variable.trim_ascii_start() == variable && !variable.ends_with('\r');
    trimmed && !variable.contains('\n') && !variable.starts_with('#')
}

#[cfg(test)]
mod tests;
