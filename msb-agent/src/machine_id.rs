//! machine-id(5): the id that distinguishes this guest from all others, including those with the
//! same image.
//!
//! The id is in a file on a tmpfs that is mounted over the image's empty file. It is not on the
//! disk, so a copy of the disk gets the id of its own sandbox.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::stat;
use rustix::mount::mount_bind;

use crate::console::{log, reason};
use crate::kernel_mounts::restore_times;
use crate::names;

const PATH: &str = "/etc/machine-id";

/// Temporary name of the file, in memory.
const SOURCE: &str = "/dev/shm/.machine-id";

/// Number of digits of an id.
const DIGITS: usize = 32;

/// Content that distributions write to have the id set on first boot.
const UNINITIALIZED: &str = "uninitialized";

/// Sets the machine id, unless the image or a user has set one. A failure does not stop the boot.
pub(crate) fn set(id: &str) {
    if !is_valid(id) {
        return log("invalid machine-id from the host");
    }
    match is_unset().and_then(|wanted| if wanted { put(id) } else { Ok(()) }) {
        Ok(()) => {}
        Err(error) => log(&format!("cannot set '{PATH}': {}", reason(error))),
    }
}

/// Replaces the machine id that [`set`] has set before the memory was saved. Programs that have the
/// file open see the new one.
pub(crate) fn replace(id: &str) {
    if !names::is_mounted(PATH) {
        return set(id);
    }
    if !is_valid(id) {
        return log("invalid machine-id from the host");
    }
    if let Err(error) = fs::write(PATH, format!("{id}\n")) {
        log(&format!("cannot set '{PATH}': {}", reason(error)));
    }
}

fn is_valid(id: &str) -> bool {
    id.len() == DIGITS && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Returns whether the file is empty, and creates it if it is missing. A file that is not a regular
/// one is left alone.
fn is_unset() -> io::Result<bool> {
    let metadata = match fs::symlink_metadata(PATH) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let before = stat("/etc")?;
            let mut options = OpenOptions::new();
            options.write(true).create_new(true).mode(0o444);
            options.open(PATH)?;
            restore_times("/etc", &before);
            return Ok(true);
        }
        metadata => metadata?,
    };
    if !metadata.is_file() || metadata.len() > 2 * DIGITS as u64 {
        return Ok(false);
    }
    let text = fs::read_to_string(PATH)?;
    Ok(matches!(text.trim(), "" | UNINITIALIZED))
}

fn put(id: &str) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o444);
    let mut file = options.open(SOURCE)?;
    let mounted = writeln!(file, "{id}").and_then(|()| Ok(mount_bind(SOURCE, PATH)?));
    let removed = fs::remove_file(SOURCE);
    mounted.and(removed)
}
