//! Files that stay within reach: rules of Landlock (landlock(7)).
//!
//! Descriptors that are open stay as they are; what is opened from now on must lie at or below a place that was named.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use super::Taken;

/// The rights that we know; of an older kernel those that it knows are taken.
const FILES: ABI = ABI::V5;

/// What may be done at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Files are read, folders listed.
    Read,
    /// And files are executed.
    Execute,
    /// Files and folders are read, written, made and removed; devices are used.
    Write,
    /// Of files that are there, nothing; folders are made in it, removed, and renamed to another name in it.
    Folders,
}

impl Access {
    fn rights(self) -> BitFlags<AccessFs> {
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        match self {
            Access::Read => read,
            Access::Execute => read | AccessFs::Execute,
            Access::Write => AccessFs::from_all(FILES) & !BitFlags::from(AccessFs::Execute),
            Access::Folders => AccessFs::MakeDir | AccessFs::RemoveDir | AccessFs::ReadDir,
        }
    }
}

/// A place in the file system.
#[derive(Debug)]
pub enum Place<'a> {
    /// By its path. One that is not there needs no rule.
    Path(PathBuf),
    /// By a descriptor, also when it has no name any more.
    Open(BorrowedFd<'a>),
}

impl<P: AsRef<Path>> From<P> for Place<'_> {
    fn from(path: P) -> Self {
        Place::Path(path.as_ref().to_owned())
    }
}

/// What lies beyond files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Signals go to processes of the same confinement only.
    Alone,
    /// Signals go where the system lets them, and TCP ports can be bound.
    Ports,
}

/// Keeps the places that are named, and nothing else. Neither TCP nor abstract sockets of others can be used either, where
/// the kernel knows to refuse them, but for what `reach` says.
pub fn keep_paths(rules: &[(Place<'_>, Access)], reach: Reach) -> Taken {
    match restrict(rules, reach) {
        Ok(RulesetStatus::FullyEnforced) => Taken::Whole,
        Ok(RulesetStatus::PartiallyEnforced) => {
            Taken::Part("this kernel's Landlock is older and lacks some rights".to_owned())
        }
        Ok(_) => Taken::Not("this kernel has no Landlock".to_owned()),
        Err(error) => Taken::Not(error.to_string()),
    }
}

fn restrict(rules: &[(Place<'_>, Access)], reach: Reach) -> Result<RulesetStatus, RulesetError> {
    let mut scope = BitFlags::from(Scope::AbstractUnixSocket);
    let mut net = BitFlags::from(AccessNet::ConnectTcp);
    if reach == Reach::Alone {
        scope |= Scope::Signal;
        net |= AccessNet::BindTcp;
    }
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(FILES))?
        .handle_access(net)?
        .scope(scope)?
        .create()?;
    for (place, access) in rules {
        ruleset = match place {
            Place::Open(open) => allow(ruleset, open, *access)?,
            Place::Path(path) => match PathFd::new(path) {
                Ok(open) => allow(ruleset, open.as_fd(), *access)?,
                Err(_) => ruleset,
            },
        };
    }
    Ok(ruleset.restrict_self()?.ruleset)
}

fn allow(
    ruleset: RulesetCreated,
    place: impl AsFd,
    access: Access,
) -> Result<RulesetCreated, RulesetError> {
    let mut rights = access.rights();
    let is_folder = place
        .as_fd()
        .try_clone_to_owned()
        .and_then(|open| File::from(open).metadata())
        .is_ok_and(|metadata| metadata.is_dir());
    if !is_folder {
        // The others are refused for what is no folder.
        rights &= AccessFs::from_file(FILES);
    }
    if rights.is_empty() {
        return Ok(ruleset);
    }
    ruleset.add_rule(PathBeneath::new(place, rights))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// In a thread of its own, which alone is confined.
    fn confined<T: Send + 'static>(
        rules: Vec<(PathBuf, Access)>,
        act: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let thread = std::thread::spawn(move || {
            let rules: Vec<(Place<'_>, Access)> = rules
                .into_iter()
                .map(|(path, access)| (Place::Path(path), access))
                .collect();
            match keep_paths(&rules, Reach::Alone) {
                Taken::Not(_) => None,
                _ => Some(act()),
            }
        });
        thread.join().unwrap()
    }

    #[test]
    fn what_was_not_named_is_out_of_reach_and_what_was_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["read", "write", "other"] {
            fs::create_dir(path(name)).unwrap();
            fs::write(path(name).join("file"), name).unwrap();
        }
        let rules = vec![
            (path("read"), Access::Read),
            (path("write"), Access::Write),
            (path("missing"), Access::Write),
        ];
        let (read, write, other) = (path("read/file"), path("write/file"), path("other/file"));
        let seen = confined(rules, move || {
            [
                fs::read(&read).is_ok(),
                fs::write(&read, "x").is_ok(),
                fs::write(&write, "x").is_ok(),
                fs::remove_file(&write).is_ok(),
                fs::read(&other).is_ok(),
                fs::write(&other, "x").is_ok(),
                std::process::Command::new("/bin/true").status().is_ok(),
            ]
        });
        // A kernel without Landlock has nothing to show.
        if let Some(seen) = seen {
            assert_eq!(seen, [true, false, true, true, false, false, false]);
        }
        assert_eq!(fs::read(path("other/file")).unwrap(), b"other");
    }
}
