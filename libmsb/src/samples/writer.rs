//! The writers' side.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::{MemfdFlags, memfd_create};

use super::page::{Page, write_first};
use super::{Field, NET, NetField, PAGE_BYTES, PAGES, SUPERVISOR, Slot, Values, clock};
use crate::state::lock::Lock;
use crate::state::write;

/// The sample file of a sandbox that lives, written by its supervisor. It is removed with this.
#[derive(Debug)]
pub struct Writer {
    file: File,
    sequence: u64,
    values: Values<Field>,
    lock: Lock,
    path: PathBuf,
}

impl Writer {
    /// Makes the file, in the place of one that a killed supervisor has left. For the holder of the sandbox's lock. It
    /// appears whole, with the values that are known now.
    pub fn create(path: &Path, fill: impl FnOnce(&mut Values<Field>)) -> anyhow::Result<Writer> {
        let cannot = || format!("cannot make the sample file '{}'", path.display());
        write::create_dir(path.parent().unwrap_or(Path::new("/")))?;
        let new = new_name(path);
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(cannot);
            }
            _ => {}
        }
        let lock = Lock::try_exclusive(&new)?.with_context(cannot)?;
        let file = reopen(&lock).with_context(cannot)?;
        file.set_len((PAGES * PAGE_BYTES) as u64)
            .with_context(cannot)?;
        let mut values = Values::new();
        if let Some([high, low]) = clock::boot_id() {
            values.set(Field::BootIdHigh, high);
            values.set(Field::BootIdLow, low);
        }
        fill(&mut values);
        let mut sequence = 0;
        write_first(&file, SUPERVISOR, &mut sequence, &values).with_context(cannot)?;
        std::fs::rename(&new, path).with_context(cannot)?;
        Ok(Writer {
            file,
            sequence,
            values,
            lock,
            path: path.to_owned(),
        })
    }

    /// What was written last.
    pub fn values(&self) -> &Values<Field> {
        &self.values
    }

    /// Changes values, and lets them be seen. A file system that is full, which memory may be, does not show them.
    pub fn update(&mut self, change: impl FnOnce(&mut Values<Field>)) {
        change(&mut self.values);
        let _ = write_first(&self.file, SUPERVISOR, &mut self.sequence, &self.values);
    }

    /// A descriptor of the file for msb-net, which makes a [`NetWriter`] of it. It does not hold the lock: the sandbox is
    /// not alive because msb-net is.
    pub fn net_descriptor(&self) -> io::Result<OwnedFd> {
        Ok(reopen(&self.lock)?.into())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // What is left is a file that nobody holds, and looks dead.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The name under which the file is made.
fn new_name(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default();
    let mut new = std::ffi::OsString::from(crate::state::layout::NEW_PREFIX);
    new.push(name);
    path.with_file_name(new)
}

/// The locked file once more, as an open file of its own.
fn reopen(lock: &Lock) -> io::Result<File> {
    use std::os::fd::AsFd;
    let path = format!("/proc/self/fd/{}", lock.as_fd().as_raw_fd());
    OpenOptions::new().read(true).write(true).open(path)
}

/// A file for msb-net to count in where the sandbox has no samples. It has no name, and nobody looks for it.
pub fn nameless_net_file() -> io::Result<OwnedFd> {
    let file = File::from(memfd_create("msb-net-counters", MemfdFlags::CLOEXEC)?);
    file.set_len((PAGES * PAGE_BYTES) as u64)?;
    Ok(file.into())
}

/// The counters of msb-net, in the page that is its own.
#[derive(Debug)]
pub struct NetWriter {
    page: Page,
    values: Values<NetField>,
}

impl NetWriter {
    /// Over the descriptor that [`Writer::net_descriptor`] gave; it is not needed afterwards. All counters begin at zero.
    pub fn from_fd(file: OwnedFd) -> io::Result<NetWriter> {
        let page = Page::map(&File::from(file), NET)?;
        page.entitle(NET);
        let mut values = Values::new();
        for field in NetField::ALL {
            values.set(*field, 0);
        }
        page.publish(&values);
        Ok(NetWriter { page, values })
    }

    /// The counters, to add to. Nobody sees them before [`NetWriter::publish`].
    pub fn counters(&mut self) -> &mut Values<NetField> {
        &mut self.values
    }

    /// Lets the counters be seen: a few stores, for each turn of a loop.
    pub fn publish(&self) {
        self.page.publish(&self.values);
    }
}
