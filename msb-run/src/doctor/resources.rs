//! Memory and limits of the host.

use rustix::process::{Resource, getrlimit};

use super::{Check, Status};

const AREA: &str = "host";

/// Memory of a sandbox when nobody says how much, in MiB, and what its machine needs beside.
const MEMORY_MIB: u64 = 512 + 256;

/// What a sandbox needs of each limit, and how to say it to a shell.
const LIMITS: [(Resource, &str, u64, &str); 3] = [
    (Resource::Nofile, "open files", 256, "ulimit -n 1024"),
    // The writable disk is a sparse file of that size.
    (
        Resource::Fsize,
        "size of a file",
        4 << 30,
        "ulimit -f unlimited",
    ),
    (
        Resource::As,
        "address space of a process",
        4 << 30,
        "ulimit -v unlimited",
    ),
];

/// A look at each.
pub(super) fn checks() -> Vec<Check> {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let mut checks: Vec<Check> = memory(&text).into_iter().collect();
    for (resource, what, needed, how) in LIMITS {
        checks.extend(limit(getrlimit(resource).current, what, needed, how));
    }
    checks
}

fn memory(meminfo: &str) -> Option<Check> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    let mib = kib / 1024;
    let found = format!("{mib} MiB available");
    if mib >= MEMORY_MIB {
        return Some(Check::new(AREA, "memory", Status::Ok, found));
    }
    let how = "give sandboxes less than the 512 MiB of the default: msb run --memory 256M";
    Some(Check::new(AREA, "memory", Status::Warning, found).mend(how))
}

/// A limit that is too low; what is enough is not worth a line.
fn limit(current: Option<u64>, what: &str, needed: u64, how: &str) -> Option<Check> {
    let current = current.filter(|current| *current < needed)?;
    let found = format!("the limit of {what} is {current}, and a sandbox needs {needed}");
    Some(Check::new(AREA, "limits", Status::Warning, found).mend(how))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_memory_is_a_warning() {
        let status = |text: &str| memory(text).map(|check| check.status);
        let much = "MemTotal: 16000000 kB\nMemAvailable:   8000000 kB\n";
        assert_eq!(status(much), Some(Status::Ok));
        assert_eq!(status("MemAvailable: 300000 kB\n"), Some(Status::Warning));
        assert_eq!(status(""), None);
    }

    #[test]
    fn only_a_limit_that_is_too_low_is_told() {
        assert_eq!(limit(None, "x", 10, "how"), None);
        assert_eq!(limit(Some(10), "x", 10, "how"), None);
        assert_eq!(
            limit(Some(9), "x", 10, "how").map(|check| check.status),
            Some(Status::Warning)
        );
    }
}
