//! Checks of memory and limits of the host.

use std::path::PathBuf;

use rustix::process::{Resource, getrlimit};

use super::{CheckStatus, DoctorCheck};
use crate::process::cgroup;

const AREA: &str = "host";

/// Default memory of a sandbox, and of its VMM process besides, in MiB.
const MEMORY_MIB: u64 = 512 + 256;

/// Limits with the value that a sandbox needs, and the shell command that raises them.
const LIMITS: [(Resource, &str, u64, &str); 3] = [
    (Resource::Nofile, "open files", 256, "ulimit -n 1024"),
    // The writable disk is a sparse file of that size.
    (Resource::Fsize, "size of a file", 4 << 30, "ulimit -f unlimited"),
    (Resource::As, "address space of a process", 4 << 30, "ulimit -v unlimited"),
];

/// Returns the checks of memory and limits.
pub(super) fn checks() -> Vec<DoctorCheck> {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let mut checks: Vec<DoctorCheck> = memory(&text).into_iter().collect();
    for (resource, what, needed, how) in LIMITS {
        checks.extend(limit(getrlimit(resource).current, what, needed, how));
    }
    checks.push(control_group(cgroup::check()));
    checks
}

/// Without a control group of its own a sandbox's processes are limited only as all of the user's.
fn control_group(found: std::io::Result<PathBuf>) -> DoctorCheck {
    const NAME: &str = "control group";
    match found {
        Ok(parent) => {
            let found = format!("each sandbox has one of its own below {}", parent.display());
            DoctorCheck::new(AREA, NAME, CheckStatus::Ok, found)
        }
        Err(error) => {
            let how =
                "systemd delegates one: systemd-run --user --scope -p Delegate=yes msb run ...";
            let found = format!("sandboxes have none of their own: {error}");
            DoctorCheck::new(AREA, NAME, CheckStatus::Note, found).with_fix(how)
        }
    }
}

fn memory(meminfo: &str) -> Option<DoctorCheck> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    let mib = kib / 1024;
    let found = format!("{mib} MiB available");
    if mib >= MEMORY_MIB {
        return Some(DoctorCheck::new(AREA, "memory", CheckStatus::Ok, found));
    }
    let how = "give sandboxes less memory than the default of 512 MiB: msb run --memory 256M";
    Some(DoctorCheck::new(AREA, "memory", CheckStatus::Warning, found).with_fix(how))
}

/// Returns a warning about a limit that is too low.
fn limit(current: Option<u64>, what: &str, needed: u64, how: &str) -> Option<DoctorCheck> {
    let current = current.filter(|current| *current < needed)?;
    let found = format!("the limit of {what} is {current}, but a sandbox needs {needed}");
    Some(DoctorCheck::new(AREA, "limits", CheckStatus::Warning, found).with_fix(how))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_memory_is_a_warning() {
        let status = |text: &str| memory(text).map(|check| check.status);
        let much = "MemTotal: 16000000 kB\nMemAvailable:   8000000 kB\n";
        assert_eq!(status(much), Some(CheckStatus::Ok));
        assert_eq!(status("MemAvailable: 300000 kB\n"), Some(CheckStatus::Warning));
        assert_eq!(status(""), None);
    }

    #[test]
    fn only_a_limit_that_is_too_low_gives_a_warning() {
        assert_eq!(limit(None, "x", 10, "how"), None);
        assert_eq!(limit(Some(10), "x", 10, "how"), None);
        assert_eq!(
            limit(Some(9), "x", 10, "how").map(|check| check.status),
            Some(CheckStatus::Warning)
        );
    }
}
