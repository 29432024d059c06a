//! Disks by serial number; the order in which they appear is arbitrary.

use std::fs;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A block device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Disk {
    /// Device node.
    pub(crate) node: PathBuf,
    /// Size in bytes.
    pub(crate) bytes: u64,
}

/// Maximum length of a virtio-blk serial number.
const SERIAL_BYTES: usize = 20;

/// Unit of the kernel's sizes, independent of the disk.
const SECTOR_BYTES: u64 = 512;

/// Timeout for a disk to appear.
const APPEAR_TIMEOUT: Duration = Duration::from_secs(10);

/// Finds disks by their serial numbers, and waits for them to appear. The error names the first
/// that does not.
pub(crate) fn find<const N: usize>(serials: [&str; N]) -> Result<[Disk; N], String> {
    let end = Instant::now() + APPEAR_TIMEOUT;
    let mut pause = Duration::from_millis(1);
    loop {
        let there = list();
        let found = serials.map(|serial| {
            there
                .iter()
                .find(|(of, _)| of == truncated_serial(serial))
                .map(|(_, disk)| disk.clone())
        });
        if let Some(missing) = found.iter().position(Option::is_none) {
            if Instant::now() >= end {
                return Err(format!(
                    "no disk with the serial number '{}' appeared",
                    serials[missing]
                ));
            }
        } else {
            return Ok(found.map(Option::unwrap_or_default));
        }
        sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Returns a serial number as the disk reports it: truncated.
fn truncated_serial(serial: &str) -> &[u8] {
    serial.as_bytes().get(..SERIAL_BYTES).unwrap_or(serial.as_bytes())
}

/// Lists all disks with a serial number. Each is asked once per call, because the request goes to
/// the host.
fn list() -> Vec<(Vec<u8>, Disk)> {
    let Ok(entries) = fs::read_dir("/sys/block") else {
        return Vec::new();
    };
    let disks = entries.flatten().filter_map(|entry| {
        let serial = fs::read(entry.path().join("serial")).ok()?.trim_ascii().to_vec();
        let sectors: u64 =
            fs::read_to_string(entry.path().join("size")).ok()?.trim().parse().ok()?;
        let node = PathBuf::from("/dev").join(entry.file_name());
        node.exists().then_some((serial, Disk { node, bytes: sectors.checked_mul(SECTOR_BYTES)? }))
    });
    disks.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_serial_number_is_truncated_like_the_disks() {
        assert_eq!(truncated_serial("exactly-twenty-chars-and-more"), b"exactly-twenty-chars");
        assert_eq!(truncated_serial("msb-root"), b"msb-root");
    }
}
