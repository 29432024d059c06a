//! machine-id(5): by what this guest differs from all others, also from those with the same image.
//!
//! The id lies in a file of a file system in memory that is mounted over the image's empty file. So it is not on the
//! disk: a copy of that, under another sandbox, gets the id of that sandbox.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::stat;
use rustix::mount::mount_bind;

use crate::console::{log, reason};
use crate::mount::restore_times;

const PATH: &str = "/etc/machine-id";

/// In memory; it has this name only for a moment.
const SOURCE: &str = "/dev/shm/.machine-id";

/// Digits of an id.
const DIGITS: usize = 32;

/// What installers of distributions write where the first boot is to put an id.
const UNINITIALIZED: &str = "uninitialized";

/// Gives the guest its id, unless the image or a user has given it one. Nothing of it stops a boot.
pub(crate) fn assume(id: &str) {
    let valid = id.len() == DIGITS
        && id
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if !valid {
        return log("the machine-id that the host sent is none");
    }
    match is_wanted().and_then(|wanted| if wanted { put(id) } else { Ok(()) }) {
        Ok(()) => {}
        Err(error) => log(&format!("cannot set '{PATH}': {}", reason(error))),
    }
}

/// Whether the file is empty; made if it is missing. What is no plain file is the image's own affair.
fn is_wanted() -> io::Result<bool> {
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
