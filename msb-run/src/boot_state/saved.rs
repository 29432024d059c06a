//! The memory of a running guest in a file: part of a snapshot (`memory.state` in its directory), or
//! what a sandbox is to be started from next (the same name in its directory); man page
//! msb-state(5).
//!
//! The format is that of a boot state ([`super::store`]), with checksums and with what the
//! supervisor must know of the guest.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, ensure};
use libmsb::cli::error::{Code, Failure};
use libmsb::digest::Digest;
use msb_wire::text::Text;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::restore::{read_checked, read_devices};
use super::store::{BootState, read_header};
use crate::engine::kind::{TscRate, VmKind};

/// A guest whose memory was saved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedGuest {
    /// Time since the start of its kernel, in nanoseconds.
    pub(crate) uptime_ns: u64,
    /// Number of its virtual processors.
    pub(crate) cpus: u32,
    /// It has a network.
    pub(crate) net: bool,
    /// Number of the next stream on the agent's connection. The agent knows older ones, also of
    /// commands that do not go on.
    pub(crate) next_stream: u32,
    /// The commands that go on: jobs, and the main command.
    pub(crate) commands: Vec<SavedCommand>,
    /// CRC-32 of the state of the devices.
    pub(crate) devices_crc: u32,
}

/// A command in a guest whose memory was saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedCommand {
    /// Number of its stream on the agent's connection.
    pub(crate) stream: u32,
    /// It is the main command.
    pub(crate) main: bool,
    /// It has a terminal.
    pub(crate) tty: bool,
    /// Time until it is killed, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) timeout_ms: Option<u64>,
    /// The job that it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) job: Option<SavedJob>,
}

/// A job in a guest whose memory was saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedJob {
    pub(crate) id: String,
    pub(crate) command: Vec<Text>,
    pub(crate) stdin: bool,
    pub(crate) pid: Option<u32>,
    /// Time of its start, in milliseconds since 1970.
    pub(crate) started_ms: i64,
}

impl BootState {
    /// Opens the memory of a guest. Returns an error if the file is damaged as far as its header
    /// shows, and `None` if there is none.
    pub(crate) fn open_saved(path: &Path) -> anyhow::Result<Option<BootState>> {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let cannot = || format!("cannot read '{}'", path.display());
        let file = match File::options().read(true).custom_flags(flags).open(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            opened => opened.with_context(cannot)?,
        };
        ensure!(file.metadata()?.is_file(), "'{}' is not a regular file", path.display());
        BootState::of_file(file).with_context(cannot).map(Some)
    }

    /// Reads the header of a file with the memory of a guest.
    pub(crate) fn of_file(file: File) -> anyhow::Result<BootState> {
        let header = read_header(&file)?;
        ensure!(header.guest.is_some(), "it is not the memory of a running guest");
        ensure!(
            header.memory.iter().all(|copy| copy.crc.is_some()),
            "a range of the memory has no checksum"
        );
        Ok(BootState { file, header })
    }

    /// Reads all of the file, and compares it with its checksums.
    pub(crate) fn verify(&self) -> anyhow::Result<()> {
        read_devices(self)?;
        for copy in &self.header.memory {
            read_checked(&self.file, copy, |_, _| Ok(()))?;
        }
        Ok(())
    }

    /// Returns the digest of the header, which has the checksums of all other parts.
    pub(crate) fn digest(&self) -> anyhow::Result<Digest> {
        let json = serde_json::to_vec(&self.header)?;
        Ok(Digest::of_bytes(Sha256::digest(json).into()))
    }

    /// Refuses a virtual machine that cannot go on from this memory. `kind` is that of the virtual
    /// machine, if it has one.
    pub(crate) fn check_machine(
        &self,
        (cpus, memory_mib, net): (u32, u32, bool),
        kind: Option<&VmKind>,
    ) -> Result<(), Failure> {
        let header = &self.header;
        let unsupported = |why: String| {
            let message = format!("cannot go on from the saved memory: {why}");
            Failure::failed(message).code(Code::UnsupportedOperation)
        };
        let guest = header.guest.as_deref().cloned().unwrap_or_default();
        let saved_mib = header.memory_bytes >> 20;
        if u64::from(memory_mib) != saved_mib {
            return Err(unsupported(format!(
                "it has {saved_mib} MiB, and the sandbox has {memory_mib} MiB"
            )));
        }
        if cpus != guest.cpus {
            let (saved, wanted) = (guest.cpus, cpus);
            return Err(unsupported(format!(
                "it is of {saved} virtual CPUs, and the sandbox has {wanted}"
            )));
        }
        if net != guest.net {
            let with = |net| if net { "a network" } else { "no network" };
            let (saved, wanted) = (with(guest.net), with(net));
            return Err(unsupported(format!(
                "it is of a guest with {saved}, and the sandbox has {wanted}"
            )));
        }
        if kind != Some(&header.kind) {
            return Err(unsupported(
                "it was saved with another version of msb, of QEMU or of the guest's kernel, or on \
                 another processor"
                    .to_owned(),
            ));
        }
        if !header.tsc_khz.agrees(TscRate::measure()) {
            return Err(unsupported("the time stamp counter of this host has another rate".into()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot_state::store::{FileExtent, MemoryCopy, PAGE_BYTES, StateHeader, write_header};
    use msb_wire::handshake::Hello;

    fn saved(tsc: TscRate, crc: Option<u32>) -> File {
        let file = tempfile::tempfile().unwrap();
        let page = vec![7; PAGE_BYTES as usize];
        std::os::unix::fs::FileExt::write_all_at(&file, &page, PAGE_BYTES).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"devices", 2 * PAGE_BYTES).unwrap();
        let devices_crc = crc32fast::hash(b"devices");
        let guest = SavedGuest { cpus: 1, net: true, devices_crc, ..SavedGuest::default() };
        let header = StateHeader {
            kind: VmKind::named("a"),
            tsc_khz: tsc,
            hello: Hello::of("agent", &[]),
            memory_bytes: 512 << 20,
            devices: FileExtent { at: 2 * PAGE_BYTES, bytes: 7 },
            memory: vec![MemoryCopy {
                to: 0,
                from: FileExtent { at: PAGE_BYTES, bytes: PAGE_BYTES },
                crc: crc.or(Some(crc32fast::hash(&page))),
            }],
            guest: Some(Box::new(guest)),
        };
        write_header(&file, &header, 2 * PAGE_BYTES + 7).unwrap();
        file
    }

    #[test]
    fn damage_of_the_memory_and_of_the_devices_is_found() {
        let rate = TscRate(3_000_000);
        BootState::of_file(saved(rate, None)).unwrap().verify().unwrap();
        assert!(BootState::of_file(saved(rate, Some(1))).unwrap().verify().is_err());
        let file = saved(rate, None);
        std::os::unix::fs::FileExt::write_all_at(&file, b"D", 2 * PAGE_BYTES).unwrap();
        assert!(BootState::of_file(file).unwrap().verify().is_err());
    }

    #[test]
    fn a_machine_that_differs_is_refused_with_what_differs() {
        let state = BootState::of_file(saved(TscRate::measure(), None)).unwrap();
        let kind = VmKind::named("a");
        state.check_machine((1, 512, true), Some(&kind)).unwrap();
        for (machine, kind, words) in [
            ((2, 512, true), Some(&kind), "it is of 1 virtual CPUs, and the sandbox has 2"),
            ((1, 1024, true), Some(&kind), "it has 512 MiB, and the sandbox has 1024 MiB"),
            ((1, 512, false), Some(&kind), "the sandbox has no network"),
            ((1, 512, true), Some(&VmKind::named("b")), "another version"),
            ((1, 512, true), None, "another version"),
        ] {
            let error = state.check_machine(machine, kind).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        let slow = BootState::of_file(saved(TscRate(1000), None)).unwrap();
        let error = slow.check_machine((1, 512, true), Some(&kind)).unwrap_err().to_string();
        assert!(error.contains("another rate"), "{error}");
    }
}
