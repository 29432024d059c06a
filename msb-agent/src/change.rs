//! Changes of the guest's files that bring no files along: folders that are made, and what is removed.
//!
//! The user of the sandbox asks for them before anything of the image has run, so paths are resolved as any program
//! would; but the last part of what is removed is never followed, and no other file system is gone into.

use std::ffi::OsStr;
use std::fs::DirBuilder;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, statat, unlinkat};
use rustix::io::Errno;

use crate::console::reason;

/// How deep folders are gone into when they are removed. Each level holds a descriptor.
const DEPTH_MAX: usize = 512;

/// Makes a folder, and those above it.
pub(crate) fn make_folder(path: &Path) -> Result<(), String> {
    let made = DirBuilder::new().recursive(true).mode(0o755).create(path);
    made.map_err(|error| {
        let shown = path.display();
        format!("cannot make the folder '{shown}': {}", reason(error))
    })
}

/// Removes what is at a path, if something is.
pub(crate) fn remove(path: &Path) -> Result<(), String> {
    let cannot = |error: io::Error| format!("cannot remove '{}': {}", path.display(), words(error));
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(cannot(Errno::BUSY.into()));
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match openat(CWD, parent, flags, Mode::empty()) {
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(cannot(error.into())),
        Ok(folder) => remove_child(folder.as_fd(), name, DEPTH_MAX).map_err(cannot),
    }
}

fn words(error: io::Error) -> String {
    if error.kind() == io::ErrorKind::CrossesDevices {
        return "another file system is mounted there".to_owned();
    }
    reason(error)
}

/// Removes a name in a folder, with all that is below it.
fn remove_child(folder: BorrowedFd<'_>, name: &OsStr, depth: usize) -> io::Result<()> {
    let stat = match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(()),
        stat => stat?,
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Ok(unlinkat(folder, name, AtFlags::empty())?);
    }
    // Only folders: on an overlay, files have the number of the file system that they lie on.
    if stat.st_dev != statat(folder, "", AtFlags::EMPTY_PATH)?.st_dev {
        return Err(Errno::XDEV.into());
    }
    let depth = depth.checked_sub(1).ok_or(Errno::LOOP)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let child = openat(folder, name, flags, Mode::empty())?;
    for name in names(&child)? {
        remove_child(child.as_fd(), OsStr::from_bytes(&name), depth)?;
    }
    Ok(unlinkat(folder, name, AtFlags::REMOVEDIR)?)
}

/// The names in a folder, all of them: what is removed while they are read would be passed over or come twice.
fn names(folder: &OwnedFd) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
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
    use std::fs;
    use std::os::unix::fs::symlink;

    /// A folder of its own, which goes in the end.
    struct Folder(std::path::PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let path =
                std::env::temp_dir().join(format!("msb-agent-{name}-{}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Folder(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_tree_is_removed_and_what_its_links_name_is_not() {
        let folder = Folder::new("remove");
        let (tree, kept) = (folder.0.join("tree"), folder.0.join("kept"));
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
    fn what_is_not_there_is_removed_already_and_the_root_never() {
        let folder = Folder::new("nothing");
        remove(&folder.0.join("a/b")).unwrap();
        remove(&folder.0.join("a")).unwrap();
        for path in ["/", "/.."] {
            assert!(remove(Path::new(path)).is_err(), "{path}");
        }
    }

    #[test]
    fn another_file_system_is_left_alone() {
        let error = remove(Path::new("/proc")).unwrap_err();
        assert!(
            error.ends_with("another file system is mounted there"),
            "{error}"
        );
    }
}
