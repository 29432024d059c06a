//! The names of sandboxes that may live: those that have a folder for what a reboot may lose.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use libmsb::cli::args::SandboxName;

/// Age at which a folder's time can be trusted. File systems take their times from a clock that stands still for some
/// milliseconds, in which a folder may change once more; some have no better one than that of seconds.
const SETTLED: Duration = Duration::from_secs(3);

/// The folder, and when it had changed last.
#[derive(Debug)]
pub(crate) struct Names {
    folder: PathBuf,
    seen: Option<SystemTime>,
}

impl Names {
    /// Of a folder, which may not be there yet.
    pub(crate) fn of(folder: PathBuf) -> Names {
        Names { folder, seen: None }
    }

    /// The names, if they may be others than at the last call.
    pub(crate) fn changed(&mut self) -> Option<BTreeSet<SandboxName>> {
        self.changed_at(SystemTime::now())
    }

    fn changed_at(&mut self, now: SystemTime) -> Option<BTreeSet<SandboxName>> {
        let time = fs::metadata(&self.folder)
            .and_then(|folder| folder.modified())
            .ok();
        if time.is_some() && time == self.seen {
            return None;
        }
        let has_settled =
            |time: &SystemTime| now.duration_since(*time).is_ok_and(|age| age > SETTLED);
        self.seen = time.filter(has_settled);
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
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
    fn a_folder_is_read_again_when_it_changed_or_may_have() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        let mut names = Names::of(path.clone());
        let now = SystemTime::now();
        assert_eq!(words(names.changed_at(now)), Some(vec![]));
        fs::create_dir(&path).unwrap();
        for name in ["b", "a", ".hidden"] {
            fs::create_dir(path.join(name)).unwrap();
        }
        let both = Some(vec!["a".to_owned(), "b".to_owned()]);
        // It has changed just now, and may do so again without its time telling.
        for _ in 0..2 {
            assert_eq!(words(names.changed_at(now)), both);
        }
        let later = now + SETTLED * 2;
        assert_eq!(words(names.changed_at(later)), both);
        assert_eq!(words(names.changed_at(later)), None);
        fs::remove_dir(path.join("b")).unwrap();
        assert_eq!(words(names.changed_at(later)), Some(vec!["a".to_owned()]));
        fs::remove_dir_all(&path).unwrap();
        assert_eq!(words(names.changed_at(later)), Some(vec![]));
        assert_eq!(words(names.changed_at(later)), Some(vec![]));
    }
}
