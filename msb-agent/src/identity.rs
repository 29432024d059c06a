//! Host name, `/etc/hosts`, loopback, limits: who the guest is.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::stat;
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::system::sethostname;

use crate::console::{log, reason};
use crate::mount::restore_times;
use crate::sys;

/// Open files of a process: what docker gives.
const OPEN_FILES: u64 = 1_048_576;

/// Sets everything that makes this guest itself. Nothing of it stops a boot but the name.
pub(crate) fn assume(hostname: &str, others: &[(IpAddr, String)]) -> Result<(), String> {
    sethostname(hostname.as_bytes())
        .map_err(|error| format!("cannot set '{hostname}': {}", reason(error)))?;
    write_files(hostname, others);
    Ok(())
}

/// Sets what all guests have in common.
pub(crate) fn assume_common() {
    tell("bring loopback up", sys::loopback_up());
    let limit = Rlimit {
        current: Some(OPEN_FILES),
        maximum: Some(OPEN_FILES),
    };
    tell(
        "set the limit of open files",
        setrlimit(Resource::Nofile, limit).map_err(io::Error::from),
    );
    allow_small_ports();
}

fn tell(what: &str, result: io::Result<()>) {
    if let Err(error) = result {
        log(&format!("cannot {what}: {}", reason(error)));
    }
}

/// As in docker's containers, a command that is not root may ping and listen on any port: the machine is its own.
fn allow_small_ports() {
    let _ = fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
    let _ = fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
}

/// Only where the image has nothing (or the empty files that container builds leave): what a user wrote stays.
fn write_files(hostname: &str, others: &[(IpAddr, String)]) {
    let before = stat("/etc");
    if before.is_err() {
        let root = stat("/");
        let _ = DirBuilder::new().mode(0o755).create("/etc");
        if let Ok(root) = root {
            restore_times("/", &root);
        }
    }
    write_unless_there("/etc/hostname", &format!("{hostname}\n"));
    write_unless_there("/etc/hosts", &hosts(hostname, others));
    if let Ok(before) = before {
        restore_times("/etc", &before);
    }
}

fn hosts(hostname: &str, others: &[(IpAddr, String)]) -> String {
    let short = hostname.split('.').next().unwrap_or(hostname);
    let names = if short == hostname {
        hostname.to_owned()
    } else {
        format!("{hostname} {short}")
    };
    let others: String = others
        .iter()
        .map(|(address, name)| format!("{address}\t{name}\n"))
        .collect();
    format!(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n\
         127.0.1.1\t{names}\n{others}"
    )
}

fn write_unless_there(path: &str, content: &str) {
    let mut options = OpenOptions::new();
    // Neither a symbolic link nor a fifo of the image leads anywhere or blocks.
    options
        .write(true)
        .mode(0o644)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY);
    let file = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() && metadata.len() == 0 => options.open(path),
        Ok(_) => return,
        Err(_) => options.create_new(true).open(path),
    };
    tell(
        &format!("write '{path}'"),
        file.and_then(|mut file| file.write_all(content.as_bytes())),
    );
}

/// Creates the directory that commands start in, as docker does.
pub(crate) fn create_cwd(path: &Path) {
    if path.is_absolute() && !path.exists() {
        let created = DirBuilder::new().recursive(true).mode(0o755).create(path);
        tell(
            &format!("create the working directory '{}'", path.display()),
            created,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_name_is_known_by_its_first_part_as_well() {
        assert!(hosts("box", &[]).ends_with("127.0.1.1\tbox\n"));
        assert!(hosts("box.example", &[]).ends_with("127.0.1.1\tbox.example box\n"));
    }

    #[test]
    fn other_hosts_follow() {
        let gateway = ("172.16.0.1".parse().unwrap(), "host.test".to_owned());
        assert!(hosts("box", &[gateway]).ends_with("\tbox\n172.16.0.1\thost.test\n"));
    }
}
