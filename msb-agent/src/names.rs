//! The guest's names: `/etc/hostname` and `/etc/hosts`.
//!
//! Lines of the image stay in `/etc/hosts`. The lines of the sandbox stand before them between two
//! marks, so that they take precedence, and so that the next boot finds and replaces them. A file
//! that is not a regular file is replaced and never written through: the image controls it. A file
//! or directory that the user mounted there belongs to the host, and only a missing or empty file
//! of it is written.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};

use rustix::fs::{AtFlags, CWD, StatxFlags, stat, statx};

use crate::console::{log, reason};
use crate::kernel_mounts::restore_times;

const HOSTNAME: &str = "/etc/hostname";
const HOSTS: &str = "/etc/hosts";

/// Marks around the lines of the sandbox.
const BEGIN: &str = "# BEGIN lines of the sandbox, written at each boot";
const END: &str = "# END lines of the sandbox";

/// Maximum size of a hosts file that is changed, in bytes.
const HOSTS_BYTES_MAX: u64 = 1024 * 1024;

/// Lines for the local host, for files without any.
const LOCALHOST: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
                         ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n";

/// Writes the files. Failures are logged on the console.
pub(crate) fn write_files(hostname: &str, others: &[(IpAddr, String)]) {
    let before = stat("/etc");
    if before.is_err() {
        let root = stat("/");
        let _ = DirBuilder::new().mode(0o755).create("/etc");
        if let Ok(root) = root {
            restore_times("/", &root);
        }
    }
    update(HOSTNAME, |_| format!("{hostname}\n").into_bytes());
    update(HOSTS, |there| hosts(there, hostname, others));
    if let Ok(before) = before {
        restore_times("/etc", &before);
    }
}

/// Replaces the content of a file, given its present content.
fn update(path: &str, content: impl FnOnce(&[u8]) -> Vec<u8>) {
    let updated = read(path).and_then(|there| {
        let new = content(there.as_deref().unwrap_or_default());
        let is_regular = fs::symlink_metadata(path).is_ok_and(|file| file.is_file());
        match there {
            Some(there) if is_regular && there == new => Ok(()),
            Some(there) if !there.is_empty() && is_mounted(path) => Ok(()),
            Some(there) if there.is_empty() && is_mounted(path) => write_in_place(path, &new),
            _ => replace(path, &new),
        }
    });
    if let Err(error) = updated {
        log(&format!("cannot write '{path}': {}", reason(error)));
    }
}

/// Reads a file. `None` if there is none: also a link to nothing, and anything but a regular file.
/// Opens without blocking, because an image may have a fifo there.
fn read(path: &str) -> io::Result<Option<Vec<u8>>> {
    let is_openable = fs::metadata(path).is_ok_and(|file| file.is_file());
    if !is_openable {
        return Ok(None);
    }
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    let mut content = Vec::new();
    file.take(HOSTS_BYTES_MAX + 1).read_to_end(&mut content)?;
    if content.len() as u64 > HOSTS_BYTES_MAX {
        return Err(io::Error::from(io::ErrorKind::FileTooLarge));
    }
    Ok(Some(content))
}

/// Returns whether a path is on another mount than the root directory.
pub(crate) fn is_mounted(path: &str) -> bool {
    let mount = |path: &str| {
        let found = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::MNT_ID).ok()?;
        let has_id = StatxFlags::from_bits_retain(found.stx_mask).contains(StatxFlags::MNT_ID);
        has_id.then_some(found.stx_mnt_id)
    };
    let (root, there) = (mount("/"), mount(path));
    there.is_some() && there != root
}

fn write_in_place(path: &str, content: &[u8]) -> io::Result<()> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    OpenOptions::new().write(true).custom_flags(flags).open(path)?.write_all(content)
}

/// Puts a new file in the place of any other but a directory with entries.
fn replace(path: &str, content: &[u8]) -> io::Result<()> {
    let new = format!("{path}.msb-new");
    match fs::symlink_metadata(path) {
        Ok(file) if file.is_dir() => fs::remove_dir(path)?,
        // A rename over a device of an overlay is refused by some kernels.
        Ok(file) if file.file_type().is_char_device() || file.file_type().is_block_device() => {
            fs::remove_file(path)?;
        }
        _ => {}
    }
    let _ = fs::remove_file(&new);
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(&new)
        .and_then(|mut file| file.write_all(content))
        .and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written
}

/// Returns a hosts file with the lines of the sandbox before the other lines of an existing one.
fn hosts(there: &[u8], hostname: &str, others: &[(IpAddr, String)]) -> Vec<u8> {
    let kept = without_marked(there);
    let has_localhost = names(&kept).any(|name| name.eq_ignore_ascii_case(b"localhost"));
    let mut file = Vec::new();
    file.extend_from_slice(BEGIN.as_bytes());
    file.push(b'\n');
    if !has_localhost {
        file.extend_from_slice(LOCALHOST.as_bytes());
    }
    // The name of the local host itself needs no other address.
    if !hostname.eq_ignore_ascii_case("localhost") {
        let short = hostname.split('.').next().filter(|short| !short.is_empty());
        let short = short.filter(|short| *short != hostname && *short != "localhost");
        let short = short.map_or(String::new(), |short| format!(" {short}"));
        file.extend_from_slice(format!("127.0.1.1\t{hostname}{short}\n").as_bytes());
    }
    for (address, name) in others {
        file.extend_from_slice(format!("{address}\t{name}\n").as_bytes());
    }
    file.extend_from_slice(END.as_bytes());
    file.push(b'\n');
    file.extend_from_slice(&kept);
    file
}

/// Returns a file without the lines between the marks. A mark without its other one is a comment.
fn without_marked(file: &[u8]) -> Vec<u8> {
    let lines: Vec<&[u8]> = file.split_inclusive(|byte| *byte == b'\n').collect();
    let is = |line: &&[u8], mark: &str| line.trim_ascii_end() == mark.as_bytes();
    let mut kept = Vec::with_capacity(file.len());
    let mut at = 0;
    while at < lines.len() {
        let end = is(&lines[at], BEGIN)
            .then(|| lines[at..].iter().position(|line| is(line, END)))
            .flatten();
        match end {
            Some(end) => at += end + 1,
            None => {
                kept.extend_from_slice(lines[at]);
                at += 1;
            }
        }
    }
    kept
}

/// Returns all names of a hosts file.
fn names(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    file.split(|byte| *byte == b'\n').flat_map(|line| {
        let line = line.split(|byte| *byte == b'#').next().unwrap_or_default();
        let words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        words.skip(1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(there: &str, hostname: &str) -> String {
        let gateway = ("172.16.0.1".parse().unwrap(), "host.test".to_owned());
        String::from_utf8(hosts(there.as_bytes(), hostname, &[gateway])).unwrap()
    }

    #[test]
    fn a_new_file_has_the_local_host_the_name_and_the_other_hosts() {
        let file = text("", "box.example");
        assert!(file.contains("127.0.0.1\tlocalhost\n::1\tlocalhost "), "{file}");
        assert!(file.contains("\n127.0.1.1\tbox.example box\n172.16.0.1\thost.test\n"), "{file}");
        assert!(text("", "box").contains("\n127.0.1.1\tbox\n"));
        assert!(!text("", "localhost").contains("127.0.1.1"));
        assert!(text("", "localhost.localdomain").contains("127.0.1.1\tlocalhost.localdomain\n"));
    }

    #[test]
    fn lines_of_the_image_stay_and_follow() {
        let image = "127.0.0.1 localhost # box\n10.0.0.9\tbox\n";
        let file = text(image, "box");
        assert!(file.ends_with(&format!("{END}\n{image}")), "{file}");
        assert_eq!(file.matches("localhost").count(), 1);
        assert!(file.find("127.0.1.1\tbox").unwrap() < file.find("10.0.0.9").unwrap());
        assert!(text("10.0.0.9 other", "box").ends_with("10.0.0.9 other"));
        assert!(text("# localhost\n", "box").contains("127.0.0.1\tlocalhost\n"));
    }

    #[test]
    fn the_next_boot_replaces_only_its_own_lines() {
        let first = text("10.0.0.9\tother\n", "box") + "10.0.0.10\tadded\n";
        let second = text(&first, "new");
        assert_eq!(second, text("10.0.0.9\tother\n10.0.0.10\tadded\n", "new"));
        assert!(!second.contains("\tbox"), "{second}");
        let unclosed = format!("{BEGIN}\n10.0.0.9\tother\n");
        assert!(text(&unclosed, "box").ends_with(&unclosed));
    }
}
