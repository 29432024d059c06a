//! Identity of the guest: host name, loopback, limits, directories.

use std::fs::{self, DirBuilder};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use msb_wire::text::Text;
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::system::sethostname;

use crate::console::{log, reason};
use crate::{names, sys};

/// Limit of open files of a process: same as docker.
const OPEN_FILES: u64 = 1_048_576;

/// Maximum number of symbolic links in a path, same as Linux.
const LINKS_MAX: usize = 40;

/// Sets the host name and `/etc/hosts`. Only a failure of the host name stops the boot.
pub(crate) fn set(hostname: &str, others: &[(IpAddr, String)]) -> Result<(), String> {
    sethostname(hostname.as_bytes())
        .map_err(|error| format!("cannot set '{hostname}': {}", reason(error)))?;
    names::write_files(hostname, others);
    Ok(())
}

/// Sets what all guests have in common: loopback and limits.
pub(crate) fn set_common() {
    log_failure("bring loopback up", sys::loopback_up());
    let limit = Rlimit { current: Some(OPEN_FILES), maximum: Some(OPEN_FILES) };
    log_failure(
        "set the limit of open files",
        setrlimit(Resource::Nofile, limit).map_err(io::Error::from),
    );
    allow_privileged_ports();
}

fn log_failure(what: &str, result: io::Result<()>) {
    if let Err(error) = result {
        log(&format!("cannot {what}: {}", reason(error)));
    }
}

/// Allows every user to ping and to listen on any port, as in docker's containers: the guest's
/// ports belong to it alone.
fn allow_privileged_ports() {
    let _ = fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
    let _ = fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
}

/// Creates the working directory of commands, as docker does.
pub(crate) fn create_cwd(path: &Path) {
    if path.is_absolute() {
        let created = create_directory(path, LINKS_MAX);
        log_failure(&format!("create the working directory '{}'", path.display()), created);
    }
}

/// Creates the volumes of the image, as docker does: builders leave them out of the layers.
pub(crate) fn create_directories(paths: &[Text]) {
    for path in paths {
        let path = Path::new(path.as_os_str());
        if path.is_absolute() {
            let created = create_directory(path, LINKS_MAX);
            log_failure(&format!("create the volume '{}'", path.display()), created);
        }
    }
}

/// Creates a directory with its parents, mode 0755, unless it exists. The target of a symbolic link
/// to nothing is created; all links stay within the guest's root.
fn create_directory(path: &Path, links_left: usize) -> io::Result<()> {
    let mut at = PathBuf::new();
    for component in path.components() {
        at.push(component);
        if at.is_dir() {
            continue;
        }
        match fs::read_link(&at) {
            Ok(_) if links_left == 0 => return Err(io::Error::from_raw_os_error(libc::ELOOP)),
            Ok(target) => {
                let parent = at.parent().unwrap_or(Path::new("/"));
                create_directory(&parent.join(target), links_left - 1)?;
            }
            Err(_) => DirBuilder::new().mode(0o755).create(&at)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn directories_are_created_through_links_to_nothing() {
        let top = std::env::temp_dir().join(format!("msb-agent-{}", std::process::id()));
        fs::create_dir(&top).unwrap();
        let link = |target: &Path, name: &str| symlink(target, top.join(name)).unwrap();
        link(&top.join("a/b"), "absolute");
        link(Path::new("loop"), "loop");
        link(Path::new("x/../y"), "relative");
        create_directory(&top.join("absolute/c"), LINKS_MAX).unwrap();
        create_directory(&top.join("relative/c"), LINKS_MAX).unwrap();
        let mode = fs::metadata(top.join("a/b/c")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7700, 0o700);
        assert!(top.join("y/c").is_dir());
        assert!(create_directory(&top.join("loop"), LINKS_MAX).is_err());
        fs::write(top.join("file"), "").unwrap();
        assert!(create_directory(&top.join("file/x"), LINKS_MAX).is_err());
        create_directory(&top, LINKS_MAX).unwrap();
        fs::remove_dir_all(top).unwrap();
    }
}
