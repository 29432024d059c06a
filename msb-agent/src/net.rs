//! The guest's network: the interface, and resolv.conf.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;

use msb_wire::boot::BootNet;
use rustix::fs::stat;

use crate::console::{log, reason};
use crate::kernel_mounts::restore_times;
use crate::netlink::Netlink;

const INTERFACES: &str = "/sys/class/net";
const RESOLVERS: &str = "/etc/resolv.conf";

/// Sets the network up. Failures to write files are logged on the console and do not stop the boot.
pub(crate) fn set_up(net: &BootNet) -> Result<(), String> {
    let interface = find(net.mac)?;
    let name = &interface.name;
    let failed =
        |what: &str, error: io::Error| format!("cannot {what} '{name}': {}", reason(error));
    let number = index(name)?;
    // Addresses are configured statically, not by router advertisements. A kernel without IPv6 has
    // no such file.
    let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/accept_ra"), "0");
    let netlink = Netlink::open().map_err(|error| failed("open a netlink socket for", error))?;
    if !interface.has_address {
        netlink
            .set_hardware_address(number, net.mac)
            .map_err(|error| failed("set the hardware address of", error))?;
    }
    netlink.bring_up(number, net.mtu).map_err(|error| failed("bring up", error))?;
    for entry in &net.addresses {
        let added = netlink
            .add_address(number, entry.address, entry.prefix)
            .and_then(|()| netlink.add_default_route(number, entry.gateway));
        match added {
            Err(error) if entry.address.is_ipv4() => {
                return Err(failed("add an address to", error));
            }
            // A kernel without IPv6 still has an IPv4 network.
            Err(error) => log(&failed("add an IPv6 address to", error)),
            Ok(()) => {}
        }
    }
    write_resolvers(net);
    Ok(())
}

/// Changes the network of a guest from saved memory. The interface goes down for it, so the kernel
/// forgets the routes and the hardware address of the old gateway.
pub(crate) fn change(old: Option<&BootNet>, new: &BootNet) -> Result<(), String> {
    let interface = find(new.mac)?;
    let name = &interface.name;
    let failed =
        |what: &str, error: io::Error| format!("cannot {what} '{name}': {}", reason(error));
    let number = index(name)?;
    let netlink = Netlink::open().map_err(|error| failed("open a netlink socket for", error))?;
    netlink.bring_down(number).map_err(|error| failed("bring down", error))?;
    for entry in old.iter().flat_map(|old| &old.addresses) {
        // The kernel has removed IPv6 addresses by itself. A program may have removed others.
        let _ = netlink.delete_address(number, entry.address, entry.prefix);
    }
    set_up(new)
}

/// Returns the index of an interface.
fn index(name: &str) -> Result<u32, String> {
    fs::read_to_string(format!("{INTERFACES}/{name}/ifindex"))
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .ok_or_else(|| format!("'{name}' has no interface index"))
}

/// A network interface.
struct NetworkInterface {
    name: String,
    /// Set if it has the requested hardware address.
    has_address: bool,
}

/// Finds the interface with a hardware address, else the only virtio interface: a VM that was
/// started from memory has the address of the VM whose memory was saved.
fn find(mac: [u8; 6]) -> Result<NetworkInterface, String> {
    let wanted = mac.map(|byte| format!("{byte:02x}")).join(":");
    let entries = fs::read_dir(INTERFACES)
        .map_err(|error| format!("cannot list '{INTERFACES}': {}", reason(error)))?;
    let mut devices: Vec<NetworkInterface> = entries
        .flatten()
        .filter(|entry| entry.path().join("device/driver").exists())
        .filter_map(|entry| {
            let address = fs::read_to_string(entry.path().join("address")).unwrap_or_default();
            Some(NetworkInterface {
                name: entry.file_name().into_string().ok()?,
                has_address: address.trim() == wanted,
            })
        })
        .collect();
    if let Some(at) = devices.iter().position(|interface| interface.has_address) {
        return Ok(devices.swap_remove(at));
    }
    match devices.pop() {
        Some(only) if devices.is_empty() => Ok(only),
        _ => Err(format!("no network interface has the address {wanted}")),
    }
}

/// Writes the name servers of the host's configuration, as docker does. The file of an image
/// describes the host it was built on, or is a link to the file of a service that does not run
/// here, so it is replaced, not written through.
fn write_resolvers(net: &BootNet) {
    let text = resolv_conf(net);
    if fs::read_to_string(RESOLVERS).is_ok_and(|there| there == text) {
        return;
    }
    let before = stat("/etc");
    let written = match fs::remove_file(RESOLVERS) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(RESOLVERS)
            .and_then(|mut file| file.write_all(text.as_bytes())),
    };
    if let Err(error) = written {
        log(&format!("cannot write '{RESOLVERS}': {}", reason(error)));
    }
    if let Ok(before) = before {
        restore_times("/etc", &before);
    }
}

/// Returns the lines of resolv.conf(5).
fn resolv_conf(net: &BootNet) -> String {
    let mut text: String =
        net.nameservers.iter().map(|server| format!("nameserver {server}\n")).collect();
    if !net.search.is_empty() {
        text.push_str(&format!("search {}\n", net.search.join(" ")));
    }
    text
}
