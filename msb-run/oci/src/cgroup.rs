//! Control groups of a container, of both versions of the interface, without systemd.
//!
//! `init` and `msb-run` with all its children are in the group, so that an engine reads the true use
//! of memory and processors there. The monitor is not: it answers while the group is frozen.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use libmsb::cli::error::Failure;
use oci_spec::runtime::LinuxResources;

/// Memory of the host that a guest needs beyond its own, measured with QEMU, in bytes.
const OVERHEAD_BYTES: i64 = 192 << 20;
/// Least limit of processes: those of msb itself.
const PIDS_MIN: i64 = 64;
/// Limit of a freeze, and of the end of the processes of a group.
const TIMEOUT: Duration = Duration::from_secs(5);
const INTERVAL: Duration = Duration::from_millis(10);
/// Controllers of version 1 that are used.
const CONTROLLERS: [&str; 6] = ["memory", "pids", "cpu", "cpuacct", "freezer", "blkio"];

/// Hierarchies of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Hierarchies {
    /// Version 2: one mount.
    Unified(PathBuf),
    /// Version 1: a mount with its controllers for each hierarchy.
    Split(Vec<(PathBuf, Vec<String>)>),
}

impl Hierarchies {
    /// Parses /proc/self/mountinfo.
    fn parse(text: &str) -> Option<Hierarchies> {
        let (mut split, mut unified) = (Vec::new(), None);
        for line in text.lines() {
            let Some((head, tail)) = line.split_once(" - ") else { continue };
            let Some(path) = head.split(' ').nth(4) else { continue };
            let mut tail = tail.split(' ');
            match (tail.next(), tail.nth(1)) {
                (Some("cgroup2"), _) => unified = Some(PathBuf::from(path)),
                (Some("cgroup"), Some(options)) => {
                    let known = options.split(',').filter(|name| CONTROLLERS.contains(name));
                    let known: Vec<String> = known.map(ToOwned::to_owned).collect();
                    if !known.is_empty() {
                        split.push((PathBuf::from(path), known));
                    }
                }
                _ => {}
            }
        }
        if split.is_empty() {
            unified.map(Hierarchies::Unified)
        } else {
            Some(Hierarchies::Split(split))
        }
    }
}

/// Directories of a container's group.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Group {
    /// Directories with the controllers of each; `unified` stands for version 2.
    dirs: Vec<(PathBuf, Vec<String>)>,
}

impl Group {
    /// Creates the group at a path below each hierarchy.
    pub(crate) fn create(path: &Path) -> anyhow::Result<Group> {
        let text = fs::read_to_string("/proc/self/mountinfo").context("cannot read the mounts")?;
        let below = path.strip_prefix("/").unwrap_or(path);
        let dirs = match Hierarchies::parse(&text) {
            None => return Err(Failure::failed("the host has no control groups").into()),
            Some(Hierarchies::Unified(mount)) => {
                enable_controllers(&mount, below);
                vec![(mount.join(below), vec!["unified".to_owned()])]
            }
            Some(Hierarchies::Split(mounts)) => {
                mounts.into_iter().map(|(mount, known)| (mount.join(below), known)).collect()
            }
        };
        let group = Group { dirs };
        for (dir, _) in &group.dirs {
            if let Err(error) = fs::create_dir_all(dir) {
                group.remove()?;
                return Err(error).with_context(|| format!("cannot create '{}'", dir.display()));
            }
        }
        Ok(group)
    }

    /// Sets the limits of the group for a guest with this memory.
    pub(crate) fn limit(&self, limits: &GroupLimits) -> anyhow::Result<()> {
        for (controller, file, value) in limits.files() {
            if let Some(dir) = self.dir(controller) {
                set(&dir.join(file), &value)?;
            }
        }
        Ok(())
    }

    /// Puts a process into the group.
    pub(crate) fn add(&self, pid: i32) -> anyhow::Result<()> {
        self.dirs.iter().try_for_each(|(dir, _)| set(&dir.join("cgroup.procs"), &pid.to_string()))
    }

    /// Opens the files by which a process puts itself into the group.
    pub(crate) fn open(&self) -> anyhow::Result<Vec<File>> {
        let open = |(dir, _): &(PathBuf, _)| {
            let path = dir.join("cgroup.procs");
            let file = File::options().write(true).open(&path);
            file.with_context(|| format!("cannot open '{}'", path.display()))
        };
        self.dirs.iter().map(open).collect()
    }

    fn dir(&self, controller: &str) -> Option<&Path> {
        let has = |known: &[String]| known.iter().any(|name| name == controller);
        self.dirs.iter().find(|(_, known)| has(known)).map(|(dir, _)| dir.as_path())
    }

    /// Returns whether the group is frozen.
    pub(crate) fn is_frozen(&self) -> bool {
        let read = |path: PathBuf| fs::read_to_string(path).unwrap_or_default();
        match (self.dir("unified"), self.dir("freezer")) {
            (Some(dir), _) => read(dir.join("cgroup.events")).contains("frozen 1"),
            (None, Some(dir)) => read(dir.join("freezer.state")).trim() == "FROZEN",
            _ => false,
        }
    }

    /// Freezes or thaws all processes of the group, and waits until it is done.
    pub(crate) fn freeze(&self, frozen: bool) -> anyhow::Result<()> {
        match (self.dir("unified"), self.dir("freezer")) {
            (Some(dir), _) => set(&dir.join("cgroup.freeze"), if frozen { "1" } else { "0" })?,
            (None, Some(dir)) => {
                set(&dir.join("freezer.state"), if frozen { "FROZEN" } else { "THAWED" })?;
            }
            _ => return Err(Failure::failed("the container has no freezer cgroup").into()),
        }
        let deadline = Instant::now() + TIMEOUT;
        while self.is_frozen() != frozen {
            if Instant::now() > deadline {
                bail!("the processes of the container are not frozen in time");
            }
            std::thread::sleep(INTERVAL);
        }
        Ok(())
    }

    /// Removes the group when its processes have ended.
    pub(crate) fn remove(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + TIMEOUT;
        for (dir, _) in &self.dirs {
            loop {
                match fs::remove_dir(dir) {
                    Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(error)
                            .with_context(|| format!("cannot remove '{}'", dir.display()));
                    }
                    _ => break,
                }
                if Instant::now() > deadline {
                    bail!("processes are left in '{}'", dir.display());
                }
                std::thread::sleep(INTERVAL);
            }
        }
        Ok(())
    }
}

/// Enables the controllers of version 2 for each parent. A parent that refuses leaves the group
/// without a controller, which the limits then report.
fn enable_controllers(mount: &Path, below: &Path) {
    let mut dir = mount.to_owned();
    for part in below.components() {
        for controller in ["memory", "pids", "cpu"] {
            let _ = fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
        }
        dir.push(part);
        let _ = fs::create_dir(&dir);
    }
}

fn set(path: &Path, value: &str) -> anyhow::Result<()> {
    let written = File::options()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(value.as_bytes()));
    written.with_context(|| format!("cannot write '{value}' to '{}'", path.display()))
}

/// Limits of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct GroupLimits {
    /// Memory of the guest, in bytes.
    pub(crate) memory: Option<i64>,
    /// Processor time in each period, in microseconds.
    quota: Option<i64>,
    period: Option<u64>,
    shares: Option<u64>,
    pids: Option<i64>,
}

impl GroupLimits {
    /// Returns the limits of a configuration, for a guest with this memory.
    pub(crate) fn of(resources: Option<&LinuxResources>, memory_mib: Option<i64>) -> GroupLimits {
        let cpu = resources.and_then(|resources| resources.cpu().as_ref());
        let pids = resources.and_then(|resources| resources.pids().as_ref());
        GroupLimits {
            memory: memory_mib.map(|mib| mib << 20),
            quota: cpu.and_then(|cpu| cpu.quota()).filter(|quota| *quota != 0),
            period: cpu.and_then(|cpu| cpu.period()).filter(|period| *period > 0),
            shares: cpu.and_then(|cpu| cpu.shares()).filter(|shares| *shares > 0),
            pids: pids.map(|pids| pids.limit()),
        }
    }

    /// Returns the controllers, files and values of both versions.
    fn files(&self) -> Vec<(&'static str, &'static str, String)> {
        let mut files = Vec::new();
        if let Some(memory) = self.memory {
            let bytes = memory.saturating_add(OVERHEAD_BYTES).to_string();
            files.push(("memory", "memory.limit_in_bytes", bytes.clone()));
            files.push(("unified", "memory.max", bytes));
        }
        if let Some(period) = self.period {
            files.push(("cpu", "cpu.cfs_period_us", period.to_string()));
        }
        if let Some(quota) = self.quota {
            files.push(("cpu", "cpu.cfs_quota_us", quota.to_string()));
            let quota = if quota < 0 { "max".to_owned() } else { quota.to_string() };
            files.push((
                "unified",
                "cpu.max",
                format!("{quota} {}", self.period.unwrap_or(100_000)),
            ));
        }
        if let Some(shares) = self.shares {
            files.push(("cpu", "cpu.shares", shares.to_string()));
            // The conversion that all runtimes use: 2 to 262144 becomes 1 to 10000.
            let weight = 1 + shares.clamp(2, 262_144).saturating_sub(2) * 9999 / 262_142;
            files.push(("unified", "cpu.weight", weight.to_string()));
        }
        if let Some(pids) = self.pids {
            let pids = if pids <= 0 { "max".to_owned() } else { pids.max(PIDS_MIN).to_string() };
            files.push(("pids", "pids.max", pids.clone()));
            files.push(("unified", "pids.max", pids));
        }
        files
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_hierarchies_are_preferred_where_both_are_mounted() {
        let v1 = "40 2 0:1 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                  41 2 0:2 / /sys/fs/cgroup/devices rw - cgroup cgroup rw,devices\n";
        let v2 = "42 2 0:3 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let split =
            Hierarchies::Split(vec![("/sys/fs/cgroup/memory".into(), vec!["memory".into()])]);
        assert_eq!(Hierarchies::parse(&format!("{v1}{v2}")), Some(split));
        let unified = Hierarchies::Unified("/sys/fs/cgroup/unified".into());
        assert_eq!(Hierarchies::parse(v2), Some(unified));
        assert_eq!(Hierarchies::parse("1 2 0:1 / / rw - ext4 /dev/x rw\n"), None);
    }

    #[test]
    fn the_limit_of_memory_leaves_room_for_the_machine() {
        let limits = GroupLimits { memory: Some(256 << 20), pids: Some(5), ..Default::default() };
        let files = limits.files();
        let value =
            |file| files.iter().find(|(_, name, _)| *name == file).map(|file| file.2.as_str());
        assert_eq!(value("memory.max"), Some("469762048"));
        assert_eq!(value("pids.max"), Some("64"));
        assert_eq!(value("cpu.max"), None);
    }
}
