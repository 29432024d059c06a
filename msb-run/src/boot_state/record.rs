//! Recording a boot state: the devices through the VM's monitor, and the guest's memory.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use msb_wire::handshake::Hello;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, SeekFrom, memfd_create, seek};
use rustix::io::Errno;
use serde_json::json;

use super::qmp::QmpMonitor;
use super::saved::SavedGuest;
use super::store::{
    BootState, DEVICES_BYTES_MAX, FileExtent, MemoryCopy, PAGE_BYTES, StateHeader, StateRecording,
    write_header,
};
use crate::engine::kind::{TscRate, VmKind};

/// Timeout of QEMU for writing the state of its devices.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes of memory that are read at once.
const BLOCK_BYTES: usize = 1024 * 1024;
/// Maximum gap of zero pages within one extent. A separate extent costs a header entry and a system
/// call.
const GAP_BYTES: u64 = 16 * PAGE_BYTES;
/// Maximum number of gaps in a memory: the gaps of a large one are larger.
const GAPS_MAX: u64 = 64 * 1024;
/// Number of the set of descriptors in QEMU that has the file of the devices.
const FD_SET: u32 = 2;
/// An empty description of the devices, which QEMU expects at the end of a stream: the type of the
/// section, its length, and JSON.
const NO_DESCRIPTION: &[u8] = b"\x06\0\0\0\x02{}";
/// Name by which QEMU knows the pipe.
const PIPE: &str = "boot-state";

/// Metadata of a boot state.
#[derive(Debug)]
pub(crate) struct StateMetadata {
    pub(crate) kind: VmKind,
    pub(crate) tsc_khz: TscRate,
    pub(crate) hello: Hello,
}

/// Stops a VM and records its state. The VM cannot be used afterwards.
pub(crate) fn take_state(
    monitor: &mut QmpMonitor,
    memory: &OwnedFd,
    recording: StateRecording,
    metadata: StateMetadata,
) -> anyhow::Result<(StateRecording, BootState)> {
    let header = write_state(monitor, memory, &recording, metadata)?;
    let file = recording.new.file.try_clone()?;
    Ok((recording, BootState { file, header }))
}

fn write_state(
    monitor: &mut QmpMonitor,
    memory: &OwnedFd,
    recording: &StateRecording,
    metadata: StateMetadata,
) -> anyhow::Result<StateHeader> {
    let devices = read_devices(monitor)?;
    write_file(&devices, memory, &recording.new.file, metadata, None)
}

/// Stops a running VM and writes its state to a file. The VM can go on afterwards.
pub(crate) fn save_state(
    monitor: &mut QmpMonitor,
    memory: &OwnedFd,
    file: &File,
    metadata: StateMetadata,
    guest: SavedGuest,
) -> anyhow::Result<()> {
    // The processors stand before the devices are written, and do not run by themselves in a VM
    // that is restored.
    monitor.execute("stop", json!({}))?;
    let written = read_devices_in_use(monitor)
        .and_then(|devices| write_file(&devices, memory, file, metadata, Some(guest)));
    if written.is_err() {
        // The error of the state says more.
        let _ = continue_saved(monitor);
    }
    written.map(drop)
}

/// Lets a VM go on whose state was saved.
pub(crate) fn continue_saved(monitor: &mut QmpMonitor) -> anyhow::Result<()> {
    monitor.execute("cont", json!({}))?;
    // QEMU closes the file of the devices only while the vCPUs run. It fails if there is none.
    let _ = monitor.execute("remove-fd", json!({ "fdset-id": FD_SET }));
    Ok(())
}

/// Returns the state of the devices of a VM whose vCPUs stand and whose disks are in use. QEMU
/// does not migrate such a VM, since the format of the image's disk does not support it, but that
/// concerns only a disk that two processes open at once. The stream has no memory.
fn read_devices_in_use(monitor: &mut QmpMonitor) -> anyhow::Result<Vec<u8>> {
    let file = File::from(memfd_create("msb-devices", MemfdFlags::CLOEXEC)?);
    // QEMU compares the access mode of the descriptor with the one that it wants.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let writable = File::options().write(true).open(path).context("cannot open a memfd")?;
    monitor.add_fd(FD_SET, writable.as_fd())?;
    let arguments = json!({ "filename": format!("/dev/fdset/{FD_SET}"), "live": false });
    monitor.execute("xen-save-devices-state", arguments)?;
    let bytes = file.metadata()?.len();
    ensure!(
        bytes <= DEVICES_BYTES_MAX,
        "the state of the devices is longer than {DEVICES_BYTES_MAX} bytes"
    );
    let mut devices = vec![0; bytes as usize];
    file.read_exact_at(&mut devices, 0)?;
    devices.extend_from_slice(NO_DESCRIPTION);
    Ok(devices)
}

/// Writes a state: the memory, the devices, and the header. That of a running guest has checksums.
fn write_file(
    devices: &[u8],
    memory: &OwnedFd,
    file: &File,
    metadata: StateMetadata,
    guest: Option<SavedGuest>,
) -> anyhow::Result<StateHeader> {
    let memory = File::from(memory.try_clone()?);
    let memory_bytes = memory.metadata()?.len();
    let (copies, end) = copy_memory(&memory, file, memory_bytes, guest.is_some())
        .context("cannot copy the guest's memory")?;
    file.write_all_at(devices, end).context("cannot write the state of the devices")?;
    let mut guest = guest.map(Box::new);
    if let Some(guest) = &mut guest {
        guest.devices_crc = crc32fast::hash(devices);
    }
    let header = StateHeader {
        kind: metadata.kind,
        tsc_khz: metadata.tsc_khz,
        hello: metadata.hello,
        memory_bytes,
        devices: FileExtent { at: end, bytes: devices.len() as u64 },
        memory: copies,
        guest,
    };
    write_header(file, &header, end + devices.len() as u64)?;
    Ok(header)
}

/// Stops the VM and returns the state of its devices: QEMU's migration stream without the memory,
/// which is shared.
fn read_devices(monitor: &mut QmpMonitor) -> anyhow::Result<Vec<u8>> {
    // The guest waits and changes nothing, so QEMU need not scan the memory twice, however long a
    // scan takes.
    monitor.execute(
        "migrate-set-parameters",
        json!({ "max-bandwidth": 1_u64 << 40, "downtime-limit": 2_000_000 }),
    )?;
    monitor.exclude_shared_memory()?;
    let (ours, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    monitor.send_fd(PIPE, theirs.as_fd())?;
    drop(theirs);
    monitor.execute("migrate", json!({ "uri": format!("fd:{PIPE}") }))?;
    let devices = read_all(&ours)?;
    monitor.wait_for("query-migrate", |status| match status {
        "completed" => Some(Ok(())),
        "failed" | "cancelled" => Some(Err("QEMU cannot write the VM state".to_owned())),
        _ => None,
    })?;
    Ok(devices)
}

fn read_all(pipe: &OwnedFd) -> anyhow::Result<Vec<u8>> {
    let end = Instant::now() + TIMEOUT;
    let mut bytes = Vec::new();
    let mut some = vec![0; 64 * 1024];
    let mut reader = File::from(pipe.try_clone()?);
    loop {
        let left = Timespec::try_from(end.saturating_duration_since(Instant::now()))?;
        let mut polled = [PollFd::new(pipe, PollFlags::IN)];
        match poll(&mut polled, Some(&left)) {
            Ok(0) => anyhow::bail!("QEMU did not write the VM state in time"),
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let count = reader.read(&mut some)?;
        if count == 0 {
            return Ok(bytes);
        }
        bytes.extend_from_slice(&some[..count]);
        ensure!(
            bytes.len() as u64 <= DEVICES_BYTES_MAX,
            "the state of the devices is longer than {DEVICES_BYTES_MAX} bytes"
        );
    }
}

/// Copies the memory that is not zero behind the file's first page. Returns the extents and the end
/// of the last one.
fn copy_memory(
    memory: &File,
    file: &File,
    memory_bytes: u64,
    has_crc: bool,
) -> anyhow::Result<(Vec<MemoryCopy>, u64)> {
    let gap = GAP_BYTES.max((memory_bytes / GAPS_MAX).next_multiple_of(PAGE_BYTES));
    let mut out = PageWriter { file, copies: Vec::new(), end: PAGE_BYTES, gap, has_crc };
    let mut block = vec![0; BLOCK_BYTES];
    let mut at = 0;
    while let Some((start, end)) = next_data(memory, at)? {
        at = start;
        while at < end {
            let count = BLOCK_BYTES.min((end - at) as usize);
            memory.read_exact_at(&mut block[..count], at)?;
            out.block(&block[..count], at)?;
            at += count as u64;
        }
    }
    Ok((out.copies, out.end))
}

/// Returns the next data range of a sparse file.
fn next_data(file: &File, from: u64) -> rustix::io::Result<Option<(u64, u64)>> {
    match seek(file, SeekFrom::Data(from)) {
        Ok(start) => Ok(Some((start, seek(file, SeekFrom::Hole(start))?))),
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error),
    }
}

struct PageWriter<'a> {
    file: &'a File,
    copies: Vec<MemoryCopy>,
    end: u64,
    gap: u64,
    has_crc: bool,
}

impl PageWriter<'_> {
    /// Writes the pages of a block that are not zero, in runs with small gaps.
    fn block(&mut self, block: &[u8], at: u64) -> std::io::Result<()> {
        let mut run: Option<(u64, u64)> = None;
        for (number, page) in block.chunks(PAGE_BYTES as usize).enumerate() {
            if is_zero(page) {
                continue;
            }
            let start = number as u64 * PAGE_BYTES;
            let end = start + page.len() as u64;
            run = match run {
                Some((first, last)) if start - last <= self.gap => Some((first, end)),
                Some(done) => {
                    self.run(block, done, at)?;
                    Some((start, end))
                }
                None => Some((start, end)),
            };
        }
        run.map_or(Ok(()), |run| self.run(block, run, at))
    }

    fn run(&mut self, block: &[u8], (start, end): (u64, u64), at: u64) -> std::io::Result<()> {
        let pages = &block[start as usize..end as usize];
        self.file.write_all_at(pages, self.end)?;
        let (to, bytes) = (at + start, end - start);
        let crc_after = |crc| {
            let mut hasher = crc32fast::Hasher::new_with_initial(crc);
            hasher.update(pages);
            hasher.finalize()
        };
        match self.copies.last_mut() {
            Some(last) if last.to + last.from.bytes == to => {
                last.from.bytes += bytes;
                last.crc = last.crc.map(crc_after);
            }
            _ => {
                let from = FileExtent { at: self.end, bytes };
                let crc = self.has_crc.then(|| crc_after(0));
                self.copies.push(MemoryCopy { to, from, crc });
            }
        }
        self.end += bytes;
        Ok(())
    }
}

fn is_zero(page: &[u8]) -> bool {
    let words = page.chunks_exact(16);
    words.remainder().iter().all(|byte| *byte == 0)
        && words
            .into_iter()
            .all(|word| u128::from_ne_bytes(word.try_into().unwrap_or([1; 16])) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_zero_is_copied_and_comes_back_where_it_was() {
        let page = PAGE_BYTES as usize;
        let mut memory = vec![0; 3 * BLOCK_BYTES];
        // A single page; across the border of two blocks; behind a hole of the file; behind a large
        // gap.
        for at in [
            5 * page,
            BLOCK_BYTES - page,
            BLOCK_BYTES,
            BLOCK_BYTES + 3 * page,
            2 * BLOCK_BYTES + 200 * page,
        ] {
            memory[at..at + page].fill(7);
        }
        memory[5 * page + 1] = 0;
        let file = File::from(memfd_create("memory", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(memory.len() as u64 + PAGE_BYTES).unwrap();
        for (number, part) in memory.chunks(page).enumerate() {
            if !is_zero(part) {
                file.write_all_at(part, (number * page) as u64).unwrap();
            }
        }
        let out = tempfile::tempfile().unwrap();
        let (copies, end) = copy_memory(&file, &out, 3 * BLOCK_BYTES as u64, true).unwrap();
        assert_eq!(copies.len(), 4, "{copies:?}");
        assert_eq!(end, PAGE_BYTES + copies.iter().map(|copy| copy.from.bytes).sum::<u64>());
        let mut back = vec![0; memory.len()];
        for copy in copies {
            let (to, bytes) = (copy.to as usize, copy.from.bytes as usize);
            out.read_exact_at(&mut back[to..to + bytes], copy.from.at).unwrap();
            assert_eq!(copy.crc, Some(crc32fast::hash(&back[to..to + bytes])));
        }
        assert!(back == memory);
    }
}
