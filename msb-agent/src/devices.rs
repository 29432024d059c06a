//! Virtio devices that stay without a driver until the boot request.
//!
//! The memory of a guest that has said hello is kept, and later guests start from it with other disks and another network
//! (msb-run(1), "Start from memory"). So no driver may have read a disk, a network or a share by then: their drivers are
//! loaded with automatic probing off, and devices that the kernel has probed by itself are unbound. [`probe`] binds them
//! when the boot request has come, as the machine has them then.
//!
//! The console port and the balloon are bound from the start: the machine that starts from memory has the same ones.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::console::reason;

/// The bus of virtio devices (kernel: Documentation/ABI/testing/sysfs-bus-*, drivers_autoprobe and drivers_probe).
const DEVICES: &str = "/sys/bus/virtio/devices";
const AUTOPROBE: &str = "/sys/bus/virtio/drivers_autoprobe";
const PROBE: &str = "/sys/bus/virtio/drivers_probe";
/// Devices that virtiofs is bound to.
const VIRTIOFS: &str = "/sys/bus/virtio/drivers/virtiofs";

/// Device types (virtio 1.2, section 5).
const CONSOLE: u32 = 3;
const BALLOON: u32 = 5;

/// Time for a share that is plugged in to appear.
const SHARE_TIMEOUT: Duration = Duration::from_secs(10);

/// Turns automatic probing off: drivers that are loaded from now on bind no device.
pub(crate) fn hold() -> io::Result<()> {
    fs::write(AUTOPROBE, "0")
}

/// Unbinds what the kernel bound by itself, and binds the balloon. Returns an error when a device is left that holds state
/// of the machine as it is now.
pub(crate) fn settle() -> Result<(), String> {
    for device in list().map_err(|error| format!("cannot list '{DEVICES}': {}", reason(error)))? {
        let name = device.name.as_str();
        match (device.kind, device.driver.as_deref()) {
            (CONSOLE, _) | (BALLOON, Some(_)) => {}
            // Without its driver the guest works, and gives no memory back.
            (BALLOON, None) => drop(fs::write(PROBE, name)),
            (_, None) => {}
            (_, Some(driver)) => fs::write(driver.join("unbind"), name)
                .map_err(|error| format!("cannot unbind '{name}': {}", reason(error)))?,
        }
    }
    Ok(())
}

/// Binds all devices, and those that are plugged in from now on.
pub(crate) fn probe() -> Result<(), String> {
    fs::write(AUTOPROBE, "1")
        .map_err(|error| format!("cannot write '{AUTOPROBE}': {}", reason(error)))?;
    for device in list().map_err(|error| format!("cannot list '{DEVICES}': {}", reason(error)))? {
        if device.driver.is_none() {
            // Whoever needs the device says that it is missing.
            let _ = fs::write(PROBE, &device.name);
        }
    }
    Ok(())
}

/// Waits until virtiofs has a device: a machine gets its shares after its start.
pub(crate) fn wait_for_share() -> Result<(), String> {
    let end = Instant::now() + SHARE_TIMEOUT;
    let mut pause = Duration::from_micros(500);
    while !is_bound(Path::new(VIRTIOFS)) {
        if Instant::now() >= end {
            return Err("no virtiofs device appeared".to_owned());
        }
        sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
    Ok(())
}

/// Returns whether a driver has a device. A kernel without the driver has no such directory; then mounting tells.
fn is_bound(driver: &Path) -> bool {
    let Ok(entries) = fs::read_dir(driver) else {
        return true;
    };
    entries
        .flatten()
        .any(|entry| entry.file_name().as_encoded_bytes().starts_with(b"virtio"))
}

/// A device on the bus.
struct Device {
    name: String,
    /// Its type.
    kind: u32,
    /// The directory of its driver.
    driver: Option<PathBuf>,
}

fn list() -> io::Result<Vec<Device>> {
    let mut devices = Vec::new();
    for entry in fs::read_dir(DEVICES)?.flatten() {
        let path = entry.path();
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let kind = fs::read_to_string(path.join("device")).unwrap_or_default();
        let driver = path.join("driver");
        devices.push(Device {
            name,
            kind: parse_kind(&kind),
            driver: driver.exists().then_some(driver),
        });
    }
    // In the order of their numbers, so that disks and interfaces are named in the machine's order.
    devices.sort_by_key(|device| (device.name.len(), device.name.clone()));
    Ok(devices)
}

/// Parses the content of `device`: `0x0002`. What cannot be parsed is no type, which is 0.
fn parse_kind(text: &str) -> u32 {
    let digits = text.trim().trim_start_matches("0x");
    u32::from_str_radix(digits, 16).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_is_hexadecimal() {
        assert_eq!(parse_kind("0x001a\n"), 26);
        assert_eq!(parse_kind(""), 0);
    }
}
