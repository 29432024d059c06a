//! State of containers: one directory each, with `state.json` and the socket of the monitor.
//!
//! Engines call `delete` and `kill` with an environment that is empty, or has one empty variable.
//! So the place of the state depends on the user alone, never on the environment.

use std::collections::HashMap;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use libmsb::cli::args::SandboxName;
use libmsb::cli::error::Failure;
use libmsb::state::write;
use serde::{Deserialize, Serialize};

use crate::cgroup::{Group, GroupLimits};

/// Limit of `state.json`, which contains the annotations of the engine.
const STATE_BYTES_MAX: u64 = 4 << 20;

/// Recorded state of a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ContainerState {
    /// Version of the runtime specification, as in the bundle.
    pub(crate) oci_version: String,
    /// Process ID of `init`.
    pub(crate) pid: i32,
    /// Start time of `init` in clock ticks, which tells it from a later process of the same ID.
    pub(crate) started: u64,
    /// Directory of the bundle.
    pub(crate) bundle: PathBuf,
    /// State directory of msb, as it was found by `create`.
    pub(crate) msb_home: PathBuf,
    /// Control group, if the bundle has one.
    pub(crate) group: Option<Group>,
    /// Limits of the control group.
    pub(crate) limits: GroupLimits,
    /// Annotations of the bundle.
    pub(crate) annotations: HashMap<String, String>,
}

impl ContainerState {
    /// Returns whether `init` runs.
    pub(crate) fn is_alive(&self) -> bool {
        start_time(self.pid) == Some(self.started)
    }
}

/// Returns the start time of a process that runs, or `None` if it has ended.
pub(crate) fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name of a process may contain spaces and parentheses.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    let started = fields.nth(18)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(started)
}

/// Returns the user ID outside of the user namespace, which identifies the user of a rootless engine.
fn outer_uid() -> anyhow::Result<u32> {
    let map = fs::read_to_string("/proc/self/uid_map").context("cannot read /proc/self/uid_map")?;
    let uid = rustix::process::geteuid().as_raw();
    Ok(map_uid(&map, uid).unwrap_or(uid))
}

/// Returns the ID to which a user namespace maps `uid`.
fn map_uid(map: &str, uid: u32) -> Option<u32> {
    map.lines().find_map(|line| {
        let mut numbers = line.split_whitespace().map(|word| word.parse::<u32>().ok());
        let (inner, outer, count) = (numbers.next()??, numbers.next()??, numbers.next()??);
        let offset = uid.checked_sub(inner)?;
        if offset < count { outer.checked_add(offset) } else { None }
    })
}

/// Returns the directory of all containers.
pub(crate) fn root(option: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(path) = option {
        return std::path::absolute(path).context("cannot resolve the path of --root");
    }
    let uid = outer_uid()?;
    if uid == 0 {
        return Ok(PathBuf::from("/run/msb-oci"));
    }
    let run = PathBuf::from(format!("/run/user/{uid}"));
    Ok(match run.is_dir() {
        true => run.join("msb-oci"),
        false => PathBuf::from(format!("/tmp/msb-oci-{uid}")),
    })
}

/// Returns the state directory of msb for new containers.
pub(crate) fn msb_home() -> anyhow::Result<PathBuf> {
    if let Some(home) = std::env::var_os("MSB_HOME").filter(|home| !home.is_empty()) {
        return Ok(home.into());
    }
    if outer_uid()? == 0 {
        return Ok("/var/lib/msb".into());
    }
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
    let home = home.context(
        Failure::failed("the environment has no HOME").hint("set MSB_HOME for the engine"),
    )?;
    Ok(Path::new(&home).join(".msb"))
}

/// Directory of a container.
#[derive(Debug)]
pub(crate) struct ContainerDir {
    id: SandboxName,
    path: PathBuf,
}

impl ContainerDir {
    /// Returns the directory of a container, which need not exist.
    pub(crate) fn new(root: Option<&Path>, id: &SandboxName) -> anyhow::Result<ContainerDir> {
        Ok(ContainerDir { id: id.clone(), path: self::root(root)?.join(id.as_str()) })
    }

    /// Creates the directory. Fails if there is one.
    pub(crate) fn create(&self) -> anyhow::Result<()> {
        let root = self.path.parent().unwrap_or(Path::new("/"));
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(root)
            .with_context(|| format!("cannot create '{}'", root.display()))?;
        let meta = fs::symlink_metadata(root)
            .with_context(|| format!("cannot examine '{}'", root.display()))?;
        ensure!(
            meta.is_dir() && meta.uid() == rustix::process::geteuid().as_raw(),
            "the directory '{}' belongs to another user",
            root.display()
        );
        match DirBuilder::new().mode(0o700).create(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                Err(Failure::wrong_state(format!("the container '{}' exists already", self.id)))?
            }
            created => created.with_context(|| format!("cannot create '{}'", self.path.display())),
        }
    }

    /// Returns the path of the monitor's socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.path.join("monitor.sock")
    }

    /// Returns whether the directory exists.
    pub(crate) fn exists(&self) -> bool {
        self.path.is_dir()
    }

    /// Opens the directory.
    pub(crate) fn open(&self) -> anyhow::Result<fs::File> {
        fs::File::open(&self.path).with_context(|| format!("cannot open '{}'", self.path.display()))
    }

    /// Writes the state.
    pub(crate) fn write(&self, state: &ContainerState) -> anyhow::Result<()> {
        write::replace_json(&self.path.join("state.json"), state)
    }

    /// Reads the state.
    pub(crate) fn read(&self) -> anyhow::Result<ContainerState> {
        let state = self.read_if_created()?;
        state.with_context(|| {
            Failure::not_found(format!("the container '{}' does not exist", self.id))
        })
    }

    /// Reads the state. Returns `None` if `create` has not finished.
    pub(crate) fn read_if_created(&self) -> anyhow::Result<Option<ContainerState>> {
        write::read_json(&self.path.join("state.json"), STATE_BYTES_MAX)
    }

    /// Removes the directory.
    pub(crate) fn remove(&self) -> anyhow::Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove '{}'", self.path.display()))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_namespace_maps_root_to_the_user_of_the_engine() {
        let rootless = "         0       1001          1\n         1     100000      65536\n";
        assert_eq!(map_uid(rootless, 0), Some(1001));
        assert_eq!(map_uid(rootless, 5), Some(100_004));
        assert_eq!(map_uid("         0          0 4294967295\n", 0), Some(0));
        assert_eq!(map_uid("garbage", 0), None);
        assert_eq!(map_uid("0 4294967295 9", 3), None);
    }

    #[test]
    fn a_process_of_another_start_time_is_not_init() {
        let pid = i32::try_from(std::process::id()).unwrap_or(0);
        let started = start_time(pid).unwrap_or(0);
        let state = |started| ContainerState {
            oci_version: "1.0.2".into(),
            pid,
            started,
            bundle: "/b".into(),
            msb_home: "/h".into(),
            group: None,
            limits: GroupLimits::default(),
            annotations: HashMap::new(),
        };
        assert!(state(started).is_alive());
        assert!(!state(started + 1).is_alive());
    }
}
