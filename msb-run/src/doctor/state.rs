//! Checks of the state directory and its contents.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use libmsb::cli::error::Failure;
use libmsb::state::sandboxes::SandboxEntry;
use libmsb::state::{Home, layout};
use rustix::fs::{Access, StatVfs, StatVfsMountFlags, access, statvfs};

use super::{CheckStatus, DoctorCheck};

const AREA: &str = "state";

/// Free space in MiB: below the first value nothing can be expected to work, below the second it
/// will soon run out.
const FULL_MIB: u64 = 64;
const LOW_MIB: u64 = 1024;

const ELSEWHERE: &str = "set MSB_HOME to a writable directory on a disk with free space";

/// Returns the checks of the directory and, if it exists, of its contents.
pub(super) fn checks(home: &Home) -> Vec<DoctorCheck> {
    let mut checks = vec![root_directory(home.root())];
    if checks.iter().any(|check| check.status == CheckStatus::Problem) {
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

/// Returns a check of the boot states, if there are any.
fn boot_states(home: &Home) -> Option<DoctorCheck> {
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
    Some(DoctorCheck::new(AREA, "boot states", CheckStatus::Ok, found))
}

fn root_directory(root: &Path) -> DoctorCheck {
    let problem = |what: String| {
        DoctorCheck::failure(
            AREA,
            "folder",
            CheckStatus::Problem,
            Failure::failed(what).hint(ELSEWHERE),
        )
    };
    let shown = root.display();
    let meta = match std::fs::metadata(root) {
        Ok(meta) => meta,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return match check_creatable(root) {
                Ok(()) => {
                    let found =
                        format!("'{shown}' does not exist yet: the first command creates it");
                    DoctorCheck::new(AREA, "folder", CheckStatus::Ok, found)
                }
                Err(ancestor) => problem(format!(
                    "cannot create '{shown}': no permission to write to '{}'",
                    ancestor.display()
                )),
            };
        }
        Err(error) => {
            let error =
                anyhow::Error::new(error).context(format!("cannot get metadata of '{shown}'"));
            return DoctorCheck::failed(AREA, "folder", CheckStatus::Problem, &error)
                .with_fix(ELSEWHERE);
        }
    };
    if !meta.is_dir() {
        return problem(format!("'{shown}' is not a directory"));
    }
    if access(root, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK).is_err() {
        return problem(format!("no permission to read and write '{shown}'"));
    }
    if meta.mode() & 0o077 != 0 {
        let found =
            format!("'{shown}' is accessible to other users (mode {:04o})", meta.mode() & 0o7777);
        return DoctorCheck::new(AREA, "folder", CheckStatus::Warning, found)
            .with_fix(format!("chmod 700 '{shown}'"));
    }
    DoctorCheck::new(AREA, "folder", CheckStatus::Ok, shown.to_string())
}

/// Checks whether this user can create the directory. Returns the nearest existing ancestor
/// otherwise.
fn check_creatable(root: &Path) -> Result<(), &Path> {
    let there = root.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(root);
    if there.is_dir() && access(there, Access::WRITE_OK | Access::EXEC_OK).is_ok() {
        Ok(())
    } else {
        Err(there)
    }
}

/// Returns a failed check if the state directory has an unsupported version. A supported or missing
/// version gives none.
fn version(home: &Home) -> Option<DoctorCheck> {
    let error = home.check_version().err()?;
    Some(DoctorCheck::failed(AREA, "version", CheckStatus::Problem, &error))
}

fn space(root: &Path) -> DoctorCheck {
    let there = root.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(root);
    match statvfs(there) {
        Ok(disk) => check_free_space(&disk),
        Err(error) => {
            let error = anyhow::Error::new(std::io::Error::from(error))
                .context(format!("cannot get the free space of '{}'", there.display()));
            DoctorCheck::failed(AREA, "disk", CheckStatus::Warning, &error)
        }
    }
}

fn check_free_space(disk: &StatVfs) -> DoctorCheck {
    if disk.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return DoctorCheck::new(
            AREA,
            "disk",
            CheckStatus::Problem,
            "the disk is mounted read-only",
        )
        .with_fix(ELSEWHERE);
    }
    // Some file systems report no number of files.
    if disk.f_files > 0 && disk.f_favail == 0 {
        return DoctorCheck::new(AREA, "disk", CheckStatus::Problem, "the disk has no free inodes")
            .with_fix(ELSEWHERE);
    }
    let mib = disk.f_bavail.saturating_mul(disk.f_frsize) / (1024 * 1024);
    let found = format!("{mib} MiB free");
    let status = match mib {
        ..FULL_MIB => CheckStatus::Problem,
        FULL_MIB..LOW_MIB => CheckStatus::Warning,
        _ => return DoctorCheck::new(AREA, "disk", CheckStatus::Ok, found),
    };
    let how = format!("remove unused sandboxes and images: msb ls, msb images; or {ELSEWHERE}");
    DoctorCheck::new(AREA, "disk", status, found).with_fix(how)
}

/// Checks the runtime directory for sockets. Returns a check only if no socket can be created.
fn runtime(directory: &Path) -> Option<DoctorCheck> {
    let ancestor = check_creatable(directory).err()?;
    let found = format!(
        "cannot create sockets in '{}': no permission to write to '{}'",
        directory.display(),
        ancestor.display()
    );
    let how = "set XDG_RUNTIME_DIR to a writable directory, or unset it to use the state directory";
    Some(DoctorCheck::new(AREA, "sockets", CheckStatus::Problem, found).with_fix(how))
}

fn sandboxes(home: &Home) -> Vec<DoctorCheck> {
    let entries = match home.sandboxes().list() {
        Ok(entries) => entries,
        Err(error) => {
            return vec![DoctorCheck::failed(AREA, "sandboxes", CheckStatus::Problem, &error)];
        }
    };
    let mut checks = vec![DoctorCheck::new(AREA, "sandboxes", CheckStatus::Ok, summary(&entries))];
    let broken = entries.iter().filter(|entry| entry.seen.is_err());
    checks.extend(broken.filter_map(|entry| {
        let error = entry.seen.as_ref().err()?;
        let check = DoctorCheck::failed(AREA, "broken", CheckStatus::Warning, error);
        Some(
            check.with_fix(format!(
                "restore the file, or remove the sandbox: msb rm {}",
                entry.name
            )),
        )
    }));
    checks
}

fn summary(entries: &[SandboxEntry]) -> String {
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

    fn disk(free_mib: u64, free_files: u64, flags: StatVfsMountFlags) -> CheckStatus {
        let mut disk = statvfs("/").unwrap();
        disk.f_frsize = 1024 * 1024;
        disk.f_bavail = free_mib;
        (disk.f_files, disk.f_favail) = (1000, free_files);
        disk.f_flag = flags;
        check_free_space(&disk).status
    }

    #[test]
    fn a_disk_without_room_files_or_permission_to_write_is_a_problem() {
        let empty = StatVfsMountFlags::empty();
        assert_eq!(disk(5000, 10, empty), CheckStatus::Ok);
        assert_eq!(disk(500, 10, empty), CheckStatus::Warning);
        assert_eq!(disk(10, 10, empty), CheckStatus::Problem);
        assert_eq!(disk(5000, 0, empty), CheckStatus::Problem);
        assert_eq!(disk(5000, 10, StatVfsMountFlags::RDONLY), CheckStatus::Problem);
    }

    #[test]
    fn looking_makes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("a/b");
        let checks = checks(&Home::at(&root));
        assert!(checks.iter().all(|check| check.status == CheckStatus::Ok), "{checks:?}");
        assert!(!directory.path().join("a").exists());
    }
}
