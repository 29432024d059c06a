//! A control group for one sandbox (cgroups(7), version 2), where the host delegates one to this
//! user.
//!
//! The supervisor joins the group before it starts anything, so that the VMM process and all
//! helpers are in it: what a guest that broke out could start, allocate and compute is bounded by
//! the kernel. Systemd marks a delegated group with the attribute `user.delegate`
//! (systemd.resource-control(5), `Delegate=`). Without systemd, root uses `/msb` of the hierarchy
//! and others the group that they are in, if they may change it.
//!
//! A group with processes in it cannot give controllers to its children (kernel:
//! Documentation/admin-guide/cgroup-v2.rst, "No Internal Process Constraint"), so the processes of
//! a delegated group are first moved to a child of it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Controllers whose limits are set. The first two are required.
const CONTROLLERS: [&str; 3] = ["pids", "memory", "cpu"];
const REQUIRED: [&str; 2] = ["pids", "memory"];

/// Processes and threads of one sandbox: QEMU's and the share server's threads grow with the load
/// to about 200.
const PIDS_MAX: u64 = 512;

/// Memory besides the guest's, in MiB: QEMU itself, its translated code (at most 1 GiB), and the
/// host's cache of the disks, which the kernel frees before the limit is reached.
const OVERHEAD_MIB: u64 = 1536;

/// Processors besides the guest's: for disks, network and the supervisor.
const HELPER_CPUS: u64 = 2;

/// Microseconds in which the processor time of `cpu.max` is counted.
const CPU_PERIOD_US: u64 = 100_000;

/// The child of a delegated group that takes the processes which were in it.
const CALLER_GROUP: &str = "msb-callers";

/// The limits of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CgroupLimits {
    /// Virtual processors of the guest.
    pub(crate) cpus: u64,
    /// Memory of the guest, in MiB.
    pub(crate) memory_mib: u64,
}

/// The group of one sandbox, with this process in it.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
    /// `cgroup.procs` of the group that this process came from.
    origin: File,
    cpu_stat: Option<File>,
}

/// The processor time of a group, readable also when its directory is out of reach.
#[derive(Debug)]
pub(crate) struct CgroupCpuTime(File);

impl Cgroup {
    /// Creates the group `name`, sets its limits, and moves this process into it. The error says what
    /// the host lacks.
    pub(crate) fn join(name: &str, limits: CgroupLimits) -> io::Result<Cgroup> {
        let hierarchy = Hierarchy::of_this_process()?;
        let path = hierarchy.create_parent()?.join(name);
        // One that is there was left, empty, by a supervisor that was killed.
        make_directory(&path)?;
        let joined = limits.set(&path).and_then(|()| Cgroup::enter(path.clone(), &hierarchy));
        if joined.is_err() {
            let _ = fs::remove_dir(&path);
        }
        joined
    }

    fn enter(path: PathBuf, hierarchy: &Hierarchy) -> io::Result<Cgroup> {
        // Looked up again: this process may have been moved to make room.
        let origin = Hierarchy::of_this_process()?.own();
        let origin = File::options().write(true).open(origin.join("cgroup.procs"))?;
        debug_assert!(path.starts_with(&hierarchy.mount));
        write(&path, "cgroup.procs", "0")?;
        let cpu_stat = File::open(path.join("cpu.stat")).ok();
        Ok(Cgroup { path, origin, cpu_stat })
    }

    /// The directory of the group's parent: this process removes the group in it.
    pub(crate) fn parent(&self) -> Option<&Path> {
        self.path.parent()
    }

    /// Returns the processor time of the group.
    pub(crate) fn cpu_time(&self) -> Option<CgroupCpuTime> {
        self.cpu_stat.as_ref()?.try_clone().ok().map(CgroupCpuTime)
    }
}

impl CgroupCpuTime {
    /// Returns the nanoseconds so far, those of processes that have ended included.
    pub(crate) fn ns(&self) -> Option<u64> {
        let mut text = [0; 512];
        let length = self.0.read_at(&mut text, 0).ok()?;
        let text = std::str::from_utf8(text.get(..length)?).ok()?;
        let microseconds = text.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
        microseconds.parse::<u64>().ok()?.checked_mul(1000)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A group with a process in it cannot be removed. One that stays is empty, and the next
        // start uses it.
        if self.origin.write_all(b"0").is_ok() {
            let _ = fs::remove_dir(&self.path);
        }
    }
}

impl CgroupLimits {
    fn set(self, group: &Path) -> io::Result<()> {
        let memory = (self.memory_mib + OVERHEAD_MIB) * 1024 * 1024;
        let cpus = (self.cpus + HELPER_CPUS) * CPU_PERIOD_US;
        write(group, "pids.max", &PIDS_MAX.to_string())?;
        write(group, "memory.max", &memory.to_string())?;
        // Out of memory, the kernel kills all processes of the group together: a sandbox without its
        // VMM process is of no use. Kernels before 4.19 lack the file.
        let _ = write(group, "memory.oom.group", "1");
        match write(group, "cpu.max", &format!("{cpus} {CPU_PERIOD_US}")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            written => written,
        }
    }
}

/// Returns the directory in which a sandbox gets its group on this host. Changes nothing.
pub(crate) fn check() -> io::Result<PathBuf> {
    let hierarchy = Hierarchy::of_this_process()?;
    let parent = hierarchy.delegated()?;
    let existing = if parent.exists() { &parent } else { &hierarchy.mount };
    missing_controllers(existing)?;
    if is_writable(existing) {
        return Ok(parent);
    }
    Err(io::Error::other(format!("'{}' is not writable", existing.display())))
}

/// The hierarchy of control groups, and this process's place in it.
struct Hierarchy {
    mount: PathBuf,
    own: PathBuf,
}

impl Hierarchy {
    fn of_this_process() -> io::Result<Hierarchy> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let groups = fs::read_to_string("/proc/self/cgroup")?;
        Hierarchy::parse(&mounts, &groups)
            .ok_or_else(|| io::Error::other("this host has no control groups of version 2"))
    }

    /// Takes the fifth field of proc_pid_mountinfo(5), and of cgroups(7) the line of hierarchy 0.
    fn parse(mounts: &str, groups: &str) -> Option<Hierarchy> {
        let is_cgroup2 = |line: &&str| line.contains(" - cgroup2 ");
        let mount = mounts.lines().find(is_cgroup2)?.split(' ').nth(4)?;
        let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
        Some(Hierarchy { mount: mount.into(), own: own.into() })
    }

    fn own(&self) -> PathBuf {
        self.mount.join(&self.own)
    }

    /// Returns the directory in which this user may make groups. It may have to be made first.
    fn delegated(&self) -> io::Result<PathBuf> {
        let own = self.own();
        let up_to_mount = own.ancestors().take_while(|path| path.starts_with(&self.mount));
        if let Some(marked) = up_to_mount.into_iter().find(|path| is_marked(path)) {
            return Ok(marked.to_owned());
        }
        if rustix::process::geteuid().is_root() {
            return Ok(self.mount.join("msb"));
        }
        if !is_writable(&own) {
            let why = "no control group is delegated to this user";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        // That of the callers, which an earlier sandbox moved there.
        let parent =
            own.parent().filter(|parent| own.ends_with(CALLER_GROUP) && is_writable(parent));
        Ok(parent.unwrap_or(&own).to_owned())
    }

    /// Makes a directory in which groups have all controllers.
    fn create_parent(&self) -> io::Result<PathBuf> {
        let group = self.delegated()?;
        if !group.exists() {
            enable(&self.mount)?;
            make_directory(&group)?;
        }
        match enable(&group) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EOPNOTSUPP)) => {
                move_callers(&group)?;
                enable(&group)?;
            }
            enabled => enabled?,
        }
        Ok(group)
    }
}

/// Returns whether systemd says that the group is delegated.
fn is_marked(group: &Path) -> bool {
    let mut value = [0; 8];
    ["user.delegate", "trusted.delegate"].iter().any(|name| {
        rustix::fs::getxattr(group, *name, &mut value)
            .is_ok_and(|length| value.get(..length) == Some(b"1"))
    })
}

fn is_writable(group: &Path) -> bool {
    use rustix::fs::Access;
    let can_write = |path: &Path| rustix::fs::access(path, Access::WRITE_OK).is_ok();
    can_write(group) && can_write(&group.join("cgroup.procs"))
}

/// Fails if the children of a group could not have the controllers that are required.
fn missing_controllers(group: &Path) -> io::Result<()> {
    let available = fs::read_to_string(group.join("cgroup.controllers"))?;
    match REQUIRED.iter().find(|name| !available.split_whitespace().any(|word| word == **name)) {
        None => Ok(()),
        Some(name) => {
            let why = format!("the control group '{}' has no controller '{name}'", group.display());
            Err(io::Error::other(why))
        }
    }
}

fn make_directory(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

fn enable(group: &Path) -> io::Result<()> {
    missing_controllers(group)?;
    let read = |file: &str| fs::read_to_string(group.join(file));
    let has = |list: &str, name: &str| list.split_whitespace().any(|word| word == name);
    let (available, enabled) = (read("cgroup.controllers")?, read("cgroup.subtree_control")?);
    let missing = CONTROLLERS.iter().filter(|name| has(&available, name) && !has(&enabled, name));
    // In one write: a group with processes takes some of them alone, and none of the others then.
    let words: Vec<String> = missing.map(|name| format!("+{name}")).collect();
    if words.is_empty() {
        return Ok(());
    }
    write(group, "cgroup.subtree_control", &words.join(" "))
}

fn move_callers(group: &Path) -> io::Result<()> {
    let callers = group.join(CALLER_GROUP);
    make_directory(&callers)?;
    for process in fs::read_to_string(group.join("cgroup.procs"))?.lines() {
        // One that has ended meanwhile is no obstacle.
        match write(&callers, "cgroup.procs", process) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            moved => moved?,
        }
    }
    Ok(())
}

fn write(group: &Path, file: &str, text: &str) -> io::Result<()> {
    let path = group.join(file);
    File::options()
        .write(true)
        .open(&path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| match error.raw_os_error() {
            // Its number is what callers look at.
            Some(libc::EBUSY | libc::EOPNOTSUPP | libc::ESRCH | libc::ENOENT) => error,
            _ => {
                io::Error::new(error.kind(), format!("cannot write '{}': {error}", path.display()))
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchy_of_version_2_is_found_beside_others() {
        let mounts = "30 23 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      31 30 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      32 30 0:28 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw\n";
        let groups = "4:memory:/x\n0::/user.slice/a.scope\n";
        let found = Hierarchy::parse(mounts, groups).unwrap();
        assert_eq!(found.own(), Path::new("/sys/fs/cgroup/unified/user.slice/a.scope"));
        assert!(Hierarchy::parse("31 30 0:27 / /x rw - cgroup cgroup rw\n", groups).is_none());
        assert!(Hierarchy::parse(mounts, "4:memory:/x\n").is_none());
    }

    #[test]
    fn limits_leave_room_beside_the_guest() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        for file in ["pids.max", "memory.max", "cpu.max"] {
            fs::write(path.join(file), "").unwrap();
        }
        CgroupLimits { cpus: 2, memory_mib: 512 }.set(path).unwrap();
        let read = |file: &str| fs::read_to_string(path.join(file)).unwrap();
        assert_eq!(read("pids.max"), "512");
        assert_eq!(read("memory.max"), ((512_u64 + 1536) << 20).to_string());
        assert_eq!(read("cpu.max"), "400000 100000");
        // A kernel whose processors are not limited has no such file.
        fs::remove_file(path.join("cpu.max")).unwrap();
        CgroupLimits { cpus: 2, memory_mib: 512 }.set(path).unwrap();
    }
}
