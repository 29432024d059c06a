//! Processes, as /proc shows them.

use std::fs;
use std::path::{Path, PathBuf};

/// A process that the caller may look at.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    /// Its name: the last component of its first argument.
    pub(crate) name: String,
    pub(crate) command_line: String,
}

impl Process {
    fn path(&self, name: &str) -> PathBuf {
        Path::new("/proc").join(self.pid.to_string()).join(name)
    }

    /// Returns whether it is a virtual machine of any engine.
    pub(crate) fn is_machine(&self) -> bool {
        self.name.starts_with("qemu-system") || self.name == "msb-vmm"
    }

    /// The most memory it has had, in KiB; `None` when it is gone.
    pub(crate) fn peak_kib(&self) -> Option<u64> {
        self.status_kib("VmHWM:")
    }

    /// The memory it has, in KiB; `None` when it is gone.
    pub(crate) fn resident_kib(&self) -> Option<u64> {
        self.status_kib("VmRSS:")
    }

    fn status_kib(&self, field: &str) -> Option<u64> {
        let status = fs::read_to_string(self.path("status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(field))?;
        line.trim().trim_end_matches(" kB").parse().ok()
    }

    /// Returns whether it still exists and is no zombie.
    pub(crate) fn is_alive(&self) -> bool {
        let stat = fs::read_to_string(self.path("stat")).unwrap_or_default();
        stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
    }

    /// Sends a signal; a process that is gone by now is fine.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.pid) {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }
}

/// Every living process of this user, but this one, whose environment, command line or working
/// directory holds `text`.
pub(crate) fn with_text(text: &str) -> Vec<Process> {
    let me = std::process::id() as i32;
    let names = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let pids = names.filter_map(|name| name.parse::<i32>().ok()).filter(|pid| *pid != me);
    pids.filter_map(|pid| look(pid, text)).filter(Process::is_alive).collect()
}

fn look(pid: i32, text: &str) -> Option<Process> {
    let directory = Path::new("/proc").join(pid.to_string());
    let read = |name: &str| fs::read(directory.join(name)).unwrap_or_default();
    let command_line = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
    let environment = String::from_utf8_lossy(&read("environ")).into_owned();
    let directory = fs::read_link(directory.join("cwd")).unwrap_or_default();
    if ![command_line.as_str(), &environment, &directory.to_string_lossy()]
        .iter()
        .any(|place| place.contains(text))
    {
        return None;
    }
    let name = command_line
        .split(' ')
        .next()
        .and_then(|path| path.rsplit('/').next())
        .unwrap_or_default()
        .to_owned();
    Some(Process { pid, name, command_line })
}

/// Returns the targets of the descriptors of a process.
pub(crate) fn open_files(process: &Process) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(process.path("fd")) else {
        return Vec::new();
    };
    entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok()).collect()
}
