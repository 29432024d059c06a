//! The writers of sample files.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::{MemfdFlags, memfd_create};

use super::page::{Page, write_first};
use super::{Field, FieldSlot, NET, NetField, PAGE_BYTES, PAGES, SUPERVISOR, Values, clock};
use crate::state::lock::Lock;
use crate::state::write;

/// The sample file of a live sandbox, written by its supervisor. It is removed when this is
/// dropped.
#[derive(Debug)]
pub struct SampleWriter {
    file: File,
    sequence: u64,
    values: Values<Field>,
    lock: Lock,
    path: PathBuf,
}

impl SampleWriter {
    /// Creates the file, and replaces that of a killed supervisor. The caller must hold the
    /// sandbox's lock. The file appears complete, with the values that are known now.
    pub fn create(
        path: &Path,
        fill: impl FnOnce(&mut Values<Field>),
    ) -> anyhow::Result<SampleWriter> {
        let cannot = || format!("cannot create the sample file '{}'", path.display());
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
        file.set_len((PAGES * PAGE_BYTES) as u64).with_context(cannot)?;
        let mut values = Values::new();
        if let Some([high, low]) = clock::boot_id() {
            values.set(Field::BootIdHigh, high);
            values.set(Field::BootIdLow, low);
        }
        fill(&mut values);
        let mut sequence = 0;
        write_first(&file, SUPERVISOR, &mut sequence, &values).with_context(cannot)?;
        std::fs::rename(&new, path).with_context(cannot)?;
        Ok(SampleWriter { file, sequence, values, lock, path: path.to_owned() })
    }

    /// Returns the last written values.
    pub fn values(&self) -> &Values<Field> {
        &self.values
    }

    /// Changes values and publishes them. If the file system is full, they are not published.
    pub fn update(&mut self, change: impl FnOnce(&mut Values<Field>)) {
        change(&mut self.values);
        let _ = write_first(&self.file, SUPERVISOR, &mut self.sequence, &self.values);
    }

    /// Returns a descriptor of the file for msb-net, which creates a [`NetWriter`] from it. It does
    /// not hold the lock, so msb-net does not keep the file live.
    pub fn net_descriptor(&self) -> io::Result<OwnedFd> {
        Ok(reopen(&self.lock)?.into())
    }
}

impl Drop for SampleWriter {
    fn drop(&mut self) {
        // If it fails, a file without a lock remains, which counts as dead.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Returns the temporary name of the file.
fn new_name(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default();
    let mut new = std::ffi::OsString::from(crate::state::layout::NEW_PREFIX);
    new.push(name);
    path.with_file_name(new)
}

/// Opens the locked file again, as an open file description of its own.
fn reopen(lock: &Lock) -> io::Result<File> {
    use std::os::fd::AsFd;
    let path = format!("/proc/self/fd/{}", lock.as_fd().as_raw_fd());
    OpenOptions::new().read(true).write(true).open(path)
}

/// Creates an unlinked file for the counters of msb-net, for a sandbox without samples.
pub fn anonymous_net_file() -> io::Result<OwnedFd> {
    let file = File::from(memfd_create("msb-net-counters", MemfdFlags::CLOEXEC)?);
    file.set_len((PAGES * PAGE_BYTES) as u64)?;
    Ok(file.into())
}

/// The counters of msb-net, in its own page.
#[derive(Debug)]
pub struct NetWriter {
    page: Page,
    values: Values<NetField>,
}

impl NetWriter {
    /// Maps the page over the descriptor from [`SampleWriter::net_descriptor`], which is closed.
    /// All counters start at zero.
    pub fn from_fd(file: OwnedFd) -> io::Result<NetWriter> {
        let page = Page::map(&File::from(file), NET)?;
        page.write_header(NET);
        let mut values = Values::new();
        for field in NetField::ALL {
            values.set(*field, 0);
        }
        page.publish(&values);
        Ok(NetWriter { page, values })
    }

    /// Returns the counters for updates. [`NetWriter::publish`] makes them visible.
    pub fn counters(&mut self) -> &mut Values<NetField> {
        &mut self.values
    }

    /// Publishes the counters: a few stores, on each iteration of an event loop.
    pub fn publish(&self) {
        self.page.publish(&self.values);
    }
}
