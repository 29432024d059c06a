//! Disks by serial number: the order in which they appear says nothing.

use std::fs;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A block device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Disk {
    /// Its node.
    pub(crate) node: PathBuf,
    /// Its size, in bytes.
    pub(crate) bytes: u64,
}

/// Bytes of a serial number that virtio-blk carries.
const SERIAL_BYTES: usize = 20;

/// The kernel counts in these, whatever the disk does.
const SECTOR_BYTES: u64 = 512;

/// Time for a disk to appear.
const PATIENCE: Duration = Duration::from_secs(10);

/// Finds disks by their serial numbers, waiting for them to appear. The first that does not is the error.
pub(crate) fn find<const N: usize>(serials: [&str; N]) -> Result<[Disk; N], String> {
    let end = Instant::now() + PATIENCE;
    let mut pause = Duration::from_millis(1);
    loop {
        let there = look();
        let found = serials.map(|serial| {
            there
                .iter()
                .find(|(of, _)| of == as_carried(serial))
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

/// A serial number as it comes out of the disk.
fn as_carried(serial: &str) -> &[u8] {
    serial
        .as_bytes()
        .get(..SERIAL_BYTES)
        .unwrap_or(serial.as_bytes())
}

/// All disks with a serial number. Each is asked once, since the question goes to the host.
fn look() -> Vec<(Vec<u8>, Disk)> {
    let Ok(entries) = fs::read_dir("/sys/block") else {
        return Vec::new();
    };
    let disks = entries.flatten().filter_map(|entry| {
        let serial = fs::read(entry.path().join("serial"))
            .ok()?
            .trim_ascii()
            .to_vec();
        let sectors: u64 = fs::read_to_string(entry.path().join("size"))
            .ok()?
            .trim()
            .parse()
            .ok()?;
        let node = PathBuf::from("/dev").join(entry.file_name());
        node.exists().then_some((
            serial,
            Disk {
                node,
                bytes: sectors.checked_mul(SECTOR_BYTES)?,
            },
        ))
    });
    disks.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_serial_number_is_cut_as_the_disk_cuts_it() {
        assert_eq!(
            as_carried("exactly-twenty-chars-and-more"),
            b"exactly-twenty-chars"
        );
        assert_eq!(as_carried("msb-root"), b"msb-root");
    }
}
