//! The state directory: that it can be used, and what is in it.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use libmsb::cli::error::Failure;
use libmsb::state::sandboxes::Entry;
use libmsb::state::{Home, layout};
use rustix::fs::{Access, StatVfs, StatVfsMountFlags, access, statvfs};

use super::{Check, Status};

const AREA: &str = "state";

/// Free space below which nothing can be expected to work, and below which it will soon run out, in MiB.
const FULL_MIB: u64 = 64;
const LOW_MIB: u64 = 1024;

const ELSEWHERE: &str =
    "set MSB_HOME to a folder on a disk that has room, and that you may write to";

/// The folder, and if it is there what is in it.
pub(super) fn checks(home: &Home) -> Vec<Check> {
    let mut checks = vec![folder(home.root())];
    if checks.iter().any(|check| check.status == Status::Problem) {
        return checks;
    }
    checks.extend(version(home));
    checks.push(space(home.root()));
    if home.runtime() != home.root().join("run") {
        checks.extend(runtime(home.runtime()));
    }
    checks.extend(sandboxes(home));
    checks.extend(boot_states(home));
    checks
}

/// The states of guests that later guests start from, if there are any.
fn boot_states(home: &Home) -> Option<Check> {
    let entries = std::fs::read_dir(home.boot_dir()).ok()?.flatten();
    let sizes: Vec<u64> = entries
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.as_encoded_bytes();
            name.ends_with(layout::BOOT_STATE.as_bytes()) && !name.starts_with(b".")
        })
        .filter_map(|entry| Some(entry.metadata().ok()?.blocks() * 512))
        .collect();
    if sizes.is_empty() {
        return None;
    }
    let mib = sizes.iter().sum::<u64>() / (1024 * 1024);
    let found = format!("{}, {mib} MiB", sizes.len());
    Some(Check::new(AREA, "boot states", Status::Ok, found))
}

fn folder(root: &Path) -> Check {
    let problem = |what: String| {
        Check::failure(
            AREA,
            "folder",
            Status::Problem,
            Failure::failed(what).hint(ELSEWHERE),
        )
    };
    let shown = root.display();
    let meta = match std::fs::metadata(root) {
        Ok(meta) => meta,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return match can_be_made(root) {
                Ok(()) => {
                    let found = format!("'{shown}' is not there yet: the first command makes it");
                    Check::new(AREA, "folder", Status::Ok, found)
                }
                Err(ancestor) => problem(format!(
                    "'{shown}' cannot be made: '{}' may not be written to",
                    ancestor.display()
                )),
            };
        }
        Err(error) => {
            let error = anyhow::Error::new(error).context(format!("cannot look at '{shown}'"));
            return Check::failed(AREA, "folder", Status::Problem, &error).mend(ELSEWHERE);
        }
    };
    if !meta.is_dir() {
        return problem(format!("'{shown}' is no folder"));
    }
    if access(root, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK).is_err() {
        return problem(format!("'{shown}' may not be read and written by you"));
    }
    if meta.mode() & 0o077 != 0 {
        let found = format!(
            "'{shown}' is open to others (mode {:04o})",
            meta.mode() & 0o7777
        );
        return Check::new(AREA, "folder", Status::Warning, found)
            .mend(format!("chmod 700 '{shown}'"));
    }
    Check::new(AREA, "folder", Status::Ok, shown.to_string())
}

/// Whether somebody who may write to the nearest folder that is there could make this one; else that folder.
fn can_be_made(root: &Path) -> Result<(), &Path> {
    let there = root
        .ancestors()
        .find(|ancestor| ancestor.exists())
        .unwrap_or(root);
    if there.is_dir() && access(there, Access::WRITE_OK | Access::EXEC_OK).is_ok() {
        Ok(())
    } else {
        Err(there)
    }
}

/// A version that is not ours. One that is, and one that is not there yet, go without saying.
fn version(home: &Home) -> Option<Check> {
    let error = home.check_version().err()?;
    Some(Check::failed(AREA, "version", Status::Problem, &error))
}

fn space(root: &Path) -> Check {
    let there = root
        .ancestors()
        .find(|ancestor| ancestor.exists())
        .unwrap_or(root);
    match statvfs(there) {
        Ok(disk) => judge_space(&disk),
        Err(error) => {
            let error = anyhow::Error::new(std::io::Error::from(error))
                .context(format!("cannot ask for the space on '{}'", there.display()));
            Check::failed(AREA, "disk", Status::Warning, &error)
        }
    }
}

fn judge_space(disk: &StatVfs) -> Check {
    if disk.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Check::new(
            AREA,
            "disk",
            Status::Problem,
            "the disk is mounted read-only",
        )
        .mend(ELSEWHERE);
    }
    // Some file systems count no files.
    if disk.f_files > 0 && disk.f_favail == 0 {
        return Check::new(
            AREA,
            "disk",
            Status::Problem,
            "the disk takes no more files",
        )
        .mend(ELSEWHERE);
    }
    let mib = disk.f_bavail.saturating_mul(disk.f_frsize) / (1024 * 1024);
    let found = format!("{mib} MiB free");
    let status = match mib {
        ..FULL_MIB => Status::Problem,
        FULL_MIB..LOW_MIB => Status::Warning,
        _ => return Check::new(AREA, "disk", Status::Ok, found),
    };
    let how = format!("remove what you do not need: msb ls, msb images; or {ELSEWHERE}");
    Check::new(AREA, "disk", status, found).mend(how)
}

/// A folder for sockets that is not as it should be.
fn runtime(folder: &Path) -> Option<Check> {
    let ancestor = can_be_made(folder).err()?;
    let found = format!(
        "no socket can be made in '{}': '{}' may not be written to",
        folder.display(),
        ancestor.display()
    );
    let how = "set XDG_RUNTIME_DIR to a folder of yours, or to nothing: then sockets are in the state directory";
    Some(Check::new(AREA, "sockets", Status::Problem, found).mend(how))
}

fn sandboxes(home: &Home) -> Vec<Check> {
    let entries = match home.sandboxes().list() {
        Ok(entries) => entries,
        Err(error) => return vec![Check::failed(AREA, "sandboxes", Status::Problem, &error)],
    };
    let mut checks = vec![Check::new(AREA, "sandboxes", Status::Ok, counted(&entries))];
    let broken = entries.iter().filter(|entry| entry.seen.is_err());
    checks.extend(broken.filter_map(|entry| {
        let error = entry.seen.as_ref().err()?;
        let check = Check::failed(AREA, "broken", Status::Warning, error);
        Some(check.mend(format!(
            "restore the file, or remove the sandbox: msb rm {}",
            entry.name
        )))
    }));
    checks
}

fn counted(entries: &[Entry]) -> String {
    let running = entries
        .iter()
        .filter(|entry| entry.seen.as_ref().is_ok_and(|seen| seen.state.is_active()))
        .count();
    match entries.len() {
        0 => "none".to_owned(),
        count => format!("{count}, {running} of them running"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(free_mib: u64, free_files: u64, flags: StatVfsMountFlags) -> Status {
        let mut disk = statvfs("/").unwrap();
        disk.f_frsize = 1024 * 1024;
        disk.f_bavail = free_mib;
        (disk.f_files, disk.f_favail) = (1000, free_files);
        disk.f_flag = flags;
        judge_space(&disk).status
    }

    #[test]
    fn a_disk_without_room_files_or_permission_to_write_is_a_problem() {
        let empty = StatVfsMountFlags::empty();
        assert_eq!(disk(5000, 10, empty), Status::Ok);
        assert_eq!(disk(500, 10, empty), Status::Warning);
        assert_eq!(disk(10, 10, empty), Status::Problem);
        assert_eq!(disk(5000, 0, empty), Status::Problem);
        assert_eq!(disk(5000, 10, StatVfsMountFlags::RDONLY), Status::Problem);
    }

    #[test]
    fn looking_makes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("a/b");
        let checks = checks(&Home::at(&root));
        assert!(
            checks.iter().all(|check| check.status == Status::Ok),
            "{checks:?}"
        );
        assert!(!folder.path().join("a").exists());
    }
}
