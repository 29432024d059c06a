//! Access to files: rules of landlock(7).
//!
//! Open descriptors stay usable. Files that are opened later must be at or below a path in a rule.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use super::StepOutcome;

/// Landlock version of the rights used here. An older kernel enforces the rights that it supports.
const FILES: ABI = ABI::V5;

/// Access that a rule allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathAccess {
    /// Read files and list directories.
    Read,
    /// Read and execute files.
    Execute,
    /// Read, write, create and remove files and directories; use devices.
    Write,
    /// Create, remove and rename directories within one directory. No access to existing files.
    Directories,
}

impl PathAccess {
    fn rights(self) -> BitFlags<AccessFs> {
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        match self {
            PathAccess::Read => read,
            PathAccess::Execute => read | AccessFs::Execute,
            PathAccess::Write => AccessFs::from_all(FILES) & !BitFlags::from(AccessFs::Execute),
            PathAccess::Directories => AccessFs::MakeDir | AccessFs::RemoveDir | AccessFs::ReadDir,
        }
    }
}

/// File or directory of a rule.
#[derive(Debug)]
pub enum RulePath<'a> {
    /// A path. If it does not exist, the rule is ignored.
    Path(PathBuf),
    /// A descriptor, which works for unlinked files too.
    Open(BorrowedFd<'a>),
}

impl<P: AsRef<Path>> From<P> for RulePath<'_> {
    fn from(path: P) -> Self {
        RulePath::Path(path.as_ref().to_owned())
    }
}

/// Landlock scope: access beyond files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LandlockScope {
    /// Signals only to processes of the same Landlock domain.
    Confined,
    /// Signals as the system permits, and TCP ports can be bound.
    Ports,
}

/// Restricts file access to the paths in the rules. Connecting to TCP ports and to abstract sockets
/// of other processes is denied too, where the kernel supports it, within `reach`.
pub fn restrict_paths(rules: &[(RulePath<'_>, PathAccess)], reach: LandlockScope) -> StepOutcome {
    match restrict(rules, reach) {
        Ok(RulesetStatus::FullyEnforced) => StepOutcome::Complete,
        Ok(RulesetStatus::PartiallyEnforced) => {
            StepOutcome::Partial("this kernel's Landlock is older and lacks some rights".to_owned())
        }
        Ok(_) => StepOutcome::Failed("this kernel has no Landlock".to_owned()),
        Err(error) => StepOutcome::Failed(error.to_string()),
    }
}

fn restrict(
    rules: &[(RulePath<'_>, PathAccess)],
    reach: LandlockScope,
) -> Result<RulesetStatus, RulesetError> {
    let mut scope = BitFlags::from(Scope::AbstractUnixSocket);
    let mut net = BitFlags::from(AccessNet::ConnectTcp);
    if reach == LandlockScope::Confined {
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
            RulePath::Open(open) => allow(ruleset, open, *access)?,
            RulePath::Path(path) => match PathFd::new(path) {
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
    access: PathAccess,
) -> Result<RulesetCreated, RulesetError> {
    let mut rights = access.rights();
    let is_directory = place
        .as_fd()
        .try_clone_to_owned()
        .and_then(|open| File::from(open).metadata())
        .is_ok_and(|metadata| metadata.is_dir());
    if !is_directory {
        // Landlock rejects the other rights for a file.
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

    /// Runs a function in a thread of its own, to which the rules are limited.
    fn confined<T: Send + 'static>(
        rules: Vec<(PathBuf, PathAccess)>,
        act: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let thread = std::thread::spawn(move || {
            let rules: Vec<(RulePath<'_>, PathAccess)> =
                rules.into_iter().map(|(path, access)| (RulePath::Path(path), access)).collect();
            match restrict_paths(&rules, LandlockScope::Confined) {
                StepOutcome::Failed(_) => None,
                _ => Some(act()),
            }
        });
        thread.join().unwrap()
    }

    #[test]
    fn what_was_not_named_is_out_of_reach_and_what_was_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for name in ["read", "write", "other"] {
            fs::create_dir(path(name)).unwrap();
            fs::write(path(name).join("file"), name).unwrap();
        }
        let rules = vec![
            (path("read"), PathAccess::Read),
            (path("write"), PathAccess::Write),
            (path("missing"), PathAccess::Write),
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
        // Without Landlock there is nothing to check.
        if let Some(seen) = seen {
            assert_eq!(seen, [true, false, true, true, false, false, false]);
        }
        assert_eq!(fs::read(path("other/file")).unwrap(), b"other");
    }
}
