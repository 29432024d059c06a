//! Virtio devices that get no driver before the boot request.
//!
//! The memory of a guest after its Hello is saved as boot state, and later guests start from it
//! with other disks and another network (msb-run(1), "Start from memory"). So no driver may have
//! read a disk, a network device or a share by then: their drivers are loaded with automatic
//! probing off, and devices that the kernel has probed itself are unbound. [`probe`] binds them
//! after the boot request, with the devices that the VM has then.
//!
//! The console port and the balloon are bound from the start: a VM that starts from memory has the
//! same ones.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use crate::console::reason;

/// The virtio bus (kernel: Documentation/ABI/testing/sysfs-bus-*, drivers_autoprobe and
/// drivers_probe).
const DEVICES: &str = "/sys/bus/virtio/devices";
const AUTOPROBE: &str = "/sys/bus/virtio/drivers_autoprobe";
const PROBE: &str = "/sys/bus/virtio/drivers_probe";
/// Directory with the devices that virtiofs is bound to.
const VIRTIOFS: &str = "/sys/bus/virtio/drivers/virtiofs";

/// Device types (virtio 1.2, section 5).
const CONSOLE: u32 = 3;
const BALLOON: u32 = 5;

/// Timeout for a hot-plugged share to appear.
const SHARE_TIMEOUT: Duration = Duration::from_secs(10);

/// Turns automatic probing off: drivers that are loaded later bind no device.
pub(crate) fn disable_autoprobe() -> io::Result<()> {
    fs::write(AUTOPROBE, "0")
}

/// Unbinds devices that the kernel bound itself, and binds the balloon. Returns an error if a
/// device that holds state of the current VM remains bound.
pub(crate) fn unbind_devices() -> Result<(), String> {
    for device in list().map_err(|error| format!("cannot list '{DEVICES}': {}", reason(error)))? {
        let name = device.name.as_str();
        match (device.kind, device.driver.as_deref()) {
            (CONSOLE, _) | (BALLOON, Some(_)) => {}
            // The guest works without its driver, but does not return memory.
            (BALLOON, None) => drop(fs::write(PROBE, name)),
            (_, None) => {}
            (_, Some(driver)) => fs::write(driver.join("unbind"), name)
                .map_err(|error| format!("cannot unbind '{name}': {}", reason(error)))?,
        }
    }
    Ok(())
}

/// Binds all devices, and turns automatic probing on for devices that are plugged in later.
pub(crate) fn probe() -> Result<(), String> {
    fs::write(AUTOPROBE, "1")
        .map_err(|error| format!("cannot write '{AUTOPROBE}': {}", reason(error)))?;
    for device in list().map_err(|error| format!("cannot list '{DEVICES}': {}", reason(error)))? {
        if device.driver.is_none() {
            // The user of the device reports that it is missing.
            let _ = fs::write(PROBE, &device.name);
        }
    }
    Ok(())
}

/// Mounts the virtiofs file system with this tag, and waits for its device before: a VM gets its
/// shares after its start. The error is complete but for the tag.
pub(crate) fn mount_share(tag: &str, at: &str) -> Result<(), String> {
    let end = Instant::now() + SHARE_TIMEOUT;
    let mut pause = Duration::from_micros(500);
    loop {
        if is_bound(Path::new(VIRTIOFS)) {
            match mount(tag, at, c"virtiofs", MountFlags::empty(), c"") {
                // The kernel knows the tag a moment after the device is in the driver's directory
                // (fs/fuse/virtio_fs.c, virtio_fs_probe; drivers/base/dd.c, really_probe).
                Err(Errno::INVAL) if Instant::now() < end => {}
                result => return result.map_err(reason),
            }
        } else if Instant::now() >= end {
            return Err("no virtiofs device appeared".to_owned());
        }
        sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

/// Returns whether a driver has a device. A kernel without the driver has no such directory; the
/// mount then reports the error.
fn is_bound(driver: &Path) -> bool {
    let Ok(entries) = fs::read_dir(driver) else {
        return true;
    };
    entries.flatten().any(|entry| entry.file_name().as_encoded_bytes().starts_with(b"virtio"))
}

/// A device on the bus.
struct VirtioDevice {
    name: String,
    /// Device type.
    kind: u32,
    /// Directory of its driver.
    driver: Option<PathBuf>,
}

fn list() -> io::Result<Vec<VirtioDevice>> {
    let mut devices = Vec::new();
    for entry in fs::read_dir(DEVICES)?.flatten() {
        let path = entry.path();
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let kind = fs::read_to_string(path.join("device")).unwrap_or_default();
        let driver = path.join("driver");
        devices.push(VirtioDevice {
            name,
            kind: parse_kind(&kind),
            driver: driver.exists().then_some(driver),
        });
    }
    // In numerical order, so that disks and interfaces are named in the order of the VM's devices.
    devices.sort_by_key(|device| (device.name.len(), device.name.clone()));
    Ok(devices)
}

/// Parses the content of `device`, such as `0x0002`. Returns 0, which is no type, if it is
/// malformed.
fn parse_kind(text: &str) -> u32 {
    let digits = text.trim().trim_start_matches("0x");
    u32::from_str_radix(digits, 16).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_types_are_hexadecimal() {
        assert_eq!(parse_kind("0x001a\n"), 26);
        assert_eq!(parse_kind(""), 0);
    }
}
