//! Names of sandboxes that may be running: the entries of the runtime directory.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use libmsb::cli::args::SandboxName;

/// Age from which a directory's modification time is reliable. File systems take timestamps from a
/// clock with a granularity of milliseconds, in which the directory may change again; some have a
/// granularity of seconds.
const MTIME_SETTLED: Duration = Duration::from_secs(3);

/// The directory, and its modification time when it was last read.
#[derive(Debug)]
pub(crate) struct SandboxNames {
    directory: PathBuf,
    seen: Option<SystemTime>,
}

impl SandboxNames {
    /// Returns the names in `directory`, which need not exist yet.
    pub(crate) fn of(directory: PathBuf) -> SandboxNames {
        SandboxNames { directory, seen: None }
    }

    /// Returns the names if they may have changed since the last call.
    pub(crate) fn changed(&mut self) -> Option<BTreeSet<SandboxName>> {
        self.changed_at(SystemTime::now())
    }

    fn changed_at(&mut self, now: SystemTime) -> Option<BTreeSet<SandboxName>> {
        let time = fs::metadata(&self.directory).and_then(|directory| directory.modified()).ok();
        if time.is_some() && time == self.seen {
            return None;
        }
        let has_settled =
            |time: &SystemTime| now.duration_since(*time).is_ok_and(|age| age > MTIME_SETTLED);
        self.seen = time.filter(has_settled);
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        Some(names.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(names: Option<BTreeSet<SandboxName>>) -> Option<Vec<String>> {
        let words = |names: BTreeSet<SandboxName>| {
            names.iter().map(|name| name.as_str().to_owned()).collect()
        };
        names.map(words)
    }

    #[test]
    fn a_directory_is_read_again_when_it_may_have_changed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run");
        let mut names = SandboxNames::of(path.clone());
        let now = SystemTime::now();
        assert_eq!(words(names.changed_at(now)), Some(vec![]));
        fs::create_dir(&path).unwrap();
        for name in ["b", "a", ".hidden"] {
            fs::create_dir(path.join(name)).unwrap();
        }
        let both = Some(vec!["a".to_owned(), "b".to_owned()]);
        // The directory changed just now, and may change again without a new modification time.
        for _ in 0..2 {
            assert_eq!(words(names.changed_at(now)), both);
        }
        let later = now + MTIME_SETTLED * 2;
        assert_eq!(words(names.changed_at(later)), both);
        assert_eq!(words(names.changed_at(later)), None);
        fs::remove_dir(path.join("b")).unwrap();
        assert_eq!(words(names.changed_at(later)), Some(vec!["a".to_owned()]));
        fs::remove_dir_all(&path).unwrap();
        assert_eq!(words(names.changed_at(later)), Some(vec![]));
        assert_eq!(words(names.changed_at(later)), Some(vec![]));
    }
}
