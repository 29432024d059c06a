//! Restoring a VM from a boot state: fills the memory, passes the state of the devices, and lets
//! the VM run.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use anyhow::{Context, ensure};
use libmsb::machine::SHARE_BUS;
use rustix::fs::{SeekFrom, seek, sendfile};
use serde_json::json;

use super::qmp::QmpMonitor;
use super::store::{BootState, MemoryCopy};

/// Name by which QEMU knows the pipe.
const PIPE: &str = "boot-state";
/// Bytes of memory that are read at once: they stay in the processor's cache.
const BLOCK_BYTES: u64 = 256 * 1024;

/// A VM that waits for its state.
#[derive(Debug)]
pub(crate) struct StateRestore {
    /// The state to restore.
    pub(crate) state: BootState,
    /// The guest's memory.
    pub(crate) memory: OwnedFd,
}

impl StateRestore {
    /// Fills the memory and lets the VM run.
    pub(crate) fn run(self, monitor: &mut QmpMonitor) -> anyhow::Result<()> {
        let StateRestore { state, memory } = self;
        let memory = File::from(memory);
        ensure!(
            memory.metadata()?.len() == state.header.memory_bytes,
            "the state is of a VM with another memory size"
        );
        for copy in &state.header.memory {
            fill(&memory, &state.file, copy).context("cannot fill the guest's memory")?;
        }
        let devices = read_devices(&state)?;
        if state.header.guest.is_none() {
            monitor.exclude_shared_memory()?;
        }
        let (theirs, ours) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        monitor.send_fd(PIPE, theirs.as_fd())?;
        drop(theirs);
        monitor.execute("migrate-incoming", json!({ "uri": format!("fd:{PIPE}") }))?;
        File::from(ours).write_all(&devices).context("cannot write the VM state to QEMU")
    }
}

/// Reads the state of the devices, and compares it with its checksum.
pub(super) fn read_devices(state: &BootState) -> anyhow::Result<Vec<u8>> {
    let mut devices = vec![0; state.header.devices.bytes as usize];
    state.file.read_exact_at(&mut devices, state.header.devices.at)?;
    if let Some(guest) = &state.header.guest {
        ensure!(
            crc32fast::hash(&devices) == guest.devices_crc,
            "the state of the devices does not match its checksum"
        );
    }
    Ok(devices)
}

/// Fills a range of the memory. A range with a checksum is read for it.
fn fill(memory: &File, file: &File, copy: &MemoryCopy) -> anyhow::Result<()> {
    if copy.crc.is_some() {
        return read_checked(file, copy, |bytes, at| memory.write_all_at(bytes, at));
    }
    seek(memory, SeekFrom::Start(copy.to))?;
    let mut offset = copy.from.at;
    let end = copy.from.at + copy.from.bytes;
    while offset < end {
        let left = (end - offset) as usize;
        let count = sendfile(memory, file, Some(&mut offset), left)?;
        ensure!(count > 0, "the file is truncated");
    }
    Ok(())
}

/// Reads a range of the memory in parts, and compares it with its checksum.
pub(super) fn read_checked(
    file: &File,
    copy: &MemoryCopy,
    mut with: impl FnMut(&[u8], u64) -> std::io::Result<()>,
) -> anyhow::Result<()> {
    let mut hasher = crc32fast::Hasher::new();
    let mut block = vec![0; copy.from.bytes.min(BLOCK_BYTES) as usize];
    let mut done = 0;
    while done < copy.from.bytes {
        let count = (copy.from.bytes - done).min(BLOCK_BYTES) as usize;
        file.read_exact_at(&mut block[..count], copy.from.at + done)?;
        hasher.update(&block[..count]);
        with(&block[..count], copy.to + done)?;
        done += count as u64;
    }
    ensure!(
        copy.crc == Some(hasher.finalize()),
        "the memory at {:#x} does not match its checksum",
        copy.to
    );
    Ok(())
}

/// Hot-plugs a share into a running VM. `socket` is the VM's end of the connection to the share
/// server.
pub(crate) fn plug_share(
    monitor: &mut QmpMonitor,
    socket: &UnixStream,
    tag: &str,
) -> anyhow::Result<()> {
    const NAME: &str = "share0";
    monitor.send_fd(NAME, socket.as_fd())?;
    let address = json!({ "type": "fd", "data": { "str": NAME } });
    monitor.execute(
        "chardev-add",
        json!({
            "id": NAME,
            "backend": { "type": "socket", "data": { "addr": address, "server": false } },
        }),
    )?;
    monitor.execute(
        "device_add",
        json!({
            "driver": "vhost-user-fs-pci",
            "id": NAME,
            "chardev": NAME,
            "tag": tag,
            "queue-size": 1024,
            "bus": SHARE_BUS,
        }),
    )?;
    Ok(())
}
