//! Ownership checks: a directory that another user owns or can write to is refused.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::Context;

use crate::cli::error::Failure;

/// Mode bits that let other users write.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// Returns whether a user is trusted: this user, or root.
pub fn is_trusted(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}

/// Checks an existing directory that this user relies on: it must belong to this user or root, and
/// no other user may write to it. Symbolic links are followed if they are trusted, too.
pub fn check_dir(path: &Path) -> anyhow::Result<()> {
    let cannot = || format!("cannot stat '{}'", path.display());
    let link = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        // The later use reports that it is no directory, or not accessible.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotADirectory | io::ErrorKind::PermissionDenied
            ) =>
        {
            return Ok(());
        }
        link => link.with_context(cannot)?,
    };
    check(path, &link)?;
    if link.is_symlink() {
        match std::fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            target => check(path, &target.with_context(cannot)?)?,
        }
    }
    Ok(())
}

fn check(path: &Path, data: &Metadata) -> anyhow::Result<()> {
    let shown = path.display();
    if !is_trusted(data.uid()) {
        let message = format!("'{shown}' belongs to another user (uid {})", data.uid());
        let us = rustix::process::geteuid().as_raw();
        let hint = format!(
            "set MSB_HOME to a directory of your own, or if its contents are yours: \
             chown -R {us} '{shown}'"
        );
        return Err(Failure::failed(message).hint(hint).into());
    }
    // A link has no mode of its own.
    if !data.is_symlink() && data.mode() & WRITABLE_BY_OTHERS != 0 {
        let message =
            format!("other users can write to '{shown}' (mode {:04o})", data.mode() & 0o7777);
        let hint = format!("if you trust its contents: chmod go-w '{shown}'");
        return Err(Failure::failed(message).hint(hint).into());
    }
    Ok(())
}

/// Returns whether a directory such as `$XDG_RUNTIME_DIR` belongs to this user. After su(1) the
/// variable may still name that of another user.
pub(super) fn is_own_dir(path: &Path) -> bool {
    let us = rustix::process::geteuid().as_raw();
    std::fs::metadata(path).is_ok_and(|data| {
        data.is_dir() && data.uid() == us && data.mode() & WRITABLE_BY_OTHERS == 0
    })
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, set_permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::cli::error::hint;

    #[test]
    fn a_directory_that_others_can_write_to_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let home = directory.path().join("home");
        check_dir(&home).unwrap();
        std::fs::create_dir(&home).unwrap();
        symlink(&home, directory.path().join("link")).unwrap();
        for (mode, trusted) in [(0o700, true), (0o755, true), (0o775, false), (0o1777, false)] {
            set_permissions(&home, Permissions::from_mode(mode)).unwrap();
            for path in [home.clone(), directory.path().join("link")] {
                assert_eq!(check_dir(&path).is_ok(), trusted, "{mode:o} {path:?}");
            }
            assert_eq!(is_own_dir(&home), trusted, "{mode:o}");
        }
        let error = check_dir(&home).unwrap_err();
        let expected = format!("if you trust its contents: chmod go-w '{}'", home.display());
        assert_eq!(hint(&error), Some(&*expected));
        // A path that is not a directory is not refused here.
        std::fs::write(directory.path().join("file"), "").unwrap();
        check_dir(&directory.path().join("file/below")).unwrap();
    }

    #[test]
    fn only_this_user_and_root_are_trusted() {
        let us = rustix::process::geteuid().as_raw();
        assert!(is_trusted(us) && is_trusted(0));
        assert!(!is_trusted(us + 1));
        assert!(!is_own_dir(Path::new("/nowhere")));
        if us != 0 {
            // Owned by root, not by this user.
            assert!(!is_own_dir(Path::new("/usr")));
            check_dir(Path::new("/usr")).unwrap();
        }
    }
}
