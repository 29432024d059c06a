//! A machine that goes on from a state: its memory is filled, then it gets the state of the devices, and runs.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use anyhow::{Context, ensure};
use libmsb::machine::SHARE_BUS;
use rustix::fs::{SeekFrom, seek, sendfile};
use serde_json::json;

use super::monitor::Monitor;
use super::store::{BootState, Copy};

/// By this name QEMU knows the pipe.
const PIPE: &str = "boot-state";

/// A machine that waits for its state.
#[derive(Debug)]
pub(crate) struct Restore {
    /// What it goes on from.
    pub(crate) state: BootState,
    /// Its memory.
    pub(crate) memory: OwnedFd,
}

impl Restore {
    /// Fills the memory, and lets the machine go on.
    pub(crate) fn run(self, monitor: &mut Monitor) -> anyhow::Result<()> {
        let Restore { state, memory } = self;
        let memory = File::from(memory);
        ensure!(
            memory.metadata()?.len() == state.header.memory_bytes,
            "the state is of a machine with another memory"
        );
        for copy in &state.header.memory {
            fill(&memory, &state.file, copy).context("cannot fill the guest's memory")?;
        }
        let mut devices = vec![0; state.header.devices.bytes as usize];
        state
            .file
            .read_exact_at(&mut devices, state.header.devices.at)?;
        monitor.leave_memory_out()?;
        let (theirs, ours) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        monitor.hand_over(PIPE, theirs.as_fd())?;
        drop(theirs);
        monitor.execute("migrate-incoming", json!({ "uri": format!("fd:{PIPE}") }))?;
        File::from(ours)
            .write_all(&devices)
            .context("the machine does not take its state")
    }
}

fn fill(memory: &File, file: &File, copy: &Copy) -> anyhow::Result<()> {
    seek(memory, SeekFrom::Start(copy.to))?;
    let mut offset = copy.from.at;
    let end = copy.from.at + copy.from.bytes;
    while offset < end {
        let left = (end - offset) as usize;
        let count = sendfile(memory, file, Some(&mut offset), left)?;
        ensure!(count > 0, "the file was cut");
    }
    Ok(())
}

/// Plugs a share into a machine that runs. `socket`: the machine's end of the connection to the share's server.
pub(crate) fn plug_share(
    monitor: &mut Monitor,
    socket: &UnixStream,
    tag: &str,
) -> anyhow::Result<()> {
    const NAME: &str = "share0";
    monitor.hand_over(NAME, socket.as_fd())?;
    let address = json!({ "type": "fd", "data": { "str": NAME } });
    monitor.execute(
        "chardev-add",
        json!({ "id": NAME, "backend": { "type": "socket", "data": { "addr": address, "server": false } } }),
    )?;
    monitor.execute(
        "device_add",
        json!({ "driver": "vhost-user-fs-pci", "id": NAME, "chardev": NAME, "tag": tag, "queue-size": 1024, "bus": SHARE_BUS }),
    )?;
    Ok(())
}
