//! Changes of the guest's files that carry no data: directories that are created, paths that are
//! removed.
//!
//! The user of the sandbox requests them before any program of the image has run, so paths are
//! resolved normally. The last component of a removed path is never followed, and other file
//! systems are not entered.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, statat, unlinkat};
use rustix::io::Errno;

use crate::console::reason;

/// Maximum depth of directories when removing. Each level holds a descriptor.
const DEPTH_MAX: usize = 512;

/// Creates a directory with its parents.
pub(crate) fn create_directory(path: &Path) -> Result<(), String> {
    let made = DirBuilder::new().recursive(true).mode(0o755).create(path);
    made.map_err(|error| {
        let shown = path.display();
        format!("cannot create the directory '{shown}': {}", reason(error))
    })
}

/// Sets the permission bits of a path, if given.
pub(crate) fn set_mode(path: &Path, mode: Option<u32>) -> Result<(), String> {
    let Some(mode) = mode else {
        return Ok(());
    };
    fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(|error| format!("cannot set the mode of '{}': {}", path.display(), reason(error)))
}

/// Checks that nothing has this path, not even a symbolic link.
pub(crate) fn check_missing(path: &Path) -> Result<(), String> {
    match fs::symlink_metadata(path) {
        Ok(_) => Err(format!("'{}' exists", path.display())),
        Err(_) => Ok(()),
    }
}

/// Removes a path if it exists.
pub(crate) fn remove(path: &Path) -> Result<(), String> {
    let cannot =
        |error: io::Error| format!("cannot remove '{}': {}", path.display(), error_text(error));
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(cannot(Errno::BUSY.into()));
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match openat(CWD, parent, flags, Mode::empty()) {
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(cannot(error.into())),
        Ok(directory) => remove_child(directory.as_fd(), name, DEPTH_MAX).map_err(cannot),
    }
}

fn error_text(error: io::Error) -> String {
    if error.kind() == io::ErrorKind::CrossesDevices {
        return "another file system is mounted there".to_owned();
    }
    reason(error)
}

/// Removes an entry of a directory, recursively.
fn remove_child(directory: BorrowedFd<'_>, name: &OsStr, depth: usize) -> io::Result<()> {
    let stat = match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(()),
        stat => stat?,
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Ok(unlinkat(directory, name, AtFlags::empty())?);
    }
    // Only for directories: on overlayfs, a file has the device number of the file system that it
    // is stored on.
    if stat.st_dev != statat(directory, "", AtFlags::EMPTY_PATH)?.st_dev {
        return Err(Errno::XDEV.into());
    }
    let depth = depth.checked_sub(1).ok_or(Errno::LOOP)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let child = openat(directory, name, flags, Mode::empty())?;
    for name in names(&child)? {
        remove_child(child.as_fd(), OsStr::from_bytes(&name), depth)?;
    }
    Ok(unlinkat(directory, name, AtFlags::REMOVEDIR)?)
}

/// Returns all names in a directory. Removing entries while reading could skip some or return them
/// twice.
fn names(directory: &OwnedFd) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A temporary directory, removed when dropped.
    struct TempDirectory(std::path::PathBuf);

    impl TempDirectory {
        fn new(name: &str) -> TempDirectory {
            let path =
                std::env::temp_dir().join(format!("msb-agent-{name}-{}", std::process::id()));
            fs::create_dir(&path).unwrap();
            TempDirectory(path)
        }
    }

    impl Drop for TempDirectory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn remove_deletes_a_tree_without_following_links() {
        let directory = TempDirectory::new("remove");
        let (tree, kept) = (directory.0.join("tree"), directory.0.join("kept"));
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), "x").unwrap();
        fs::write(tree.join("a/b/file"), "x").unwrap();
        symlink(&kept, tree.join("link")).unwrap();
        remove(&tree).unwrap();
        assert!(!tree.exists());
        assert_eq!(fs::read(kept.join("file")).unwrap(), b"x");
    }

    #[test]
    fn removing_a_missing_path_succeeds_and_the_root_fails() {
        let directory = TempDirectory::new("nothing");
        remove(&directory.0.join("a/b")).unwrap();
        remove(&directory.0.join("a")).unwrap();
        for path in ["/", "/.."] {
            assert!(remove(Path::new(path)).is_err(), "{path}");
        }
    }

    #[test]
    fn remove_does_not_cross_file_systems() {
        let error = remove(Path::new("/proc")).unwrap_err();
        assert!(error.ends_with("another file system is mounted there"), "{error}");
    }
}
