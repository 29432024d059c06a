//! The first request of a guest's life.
//!
//! Everything that the guest must know travels here and never on the kernel's command line: there is no limit of a
//! few kilobytes, and nothing to be read in `/proc/cmdline`.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::guest::Settings;
use crate::mount::GuestMount;
use crate::text::Text;

/// Sets the guest up. Answered by one [`BootEvent`], which ends the stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootRequest {
    /// Where the root file system comes from.
    pub root: Root,
    /// The guest's host name.
    pub hostname: String,
    /// The guest's machine-id(5), 32 hexadecimal digits; put in place where the image has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_id: Option<String>,
    /// Variables of every command (`NAME=value`), below those of the command itself.
    #[serde(default)]
    pub env: Vec<Text>,
    /// Directory of every command that names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<Text>,
    /// User of every command that names none: `USER|UID[:GROUP|GID]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Text>,
    /// The network, if the guest has one; an agent must serve [`crate::handshake::operation::NET`] for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net: Option<BootNet>,
    /// What is mounted besides the root. Needs [`crate::handshake::operation::MOUNTS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<GuestMount>,
    /// The host's clock, in nanoseconds since 1970.
    pub clock_unix_ns: u64,
    /// Random bytes in hexadecimal digits, for the guest's entropy pool.
    #[serde(default)]
    pub entropy_hex: String,
    /// What commands may do.
    #[serde(default)]
    pub guest: Settings,
}

/// A guest's network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootNet {
    /// The hardware address by which the interface is found.
    pub mac: [u8; 6],
    /// Largest packet, in bytes.
    pub mtu: u32,
    /// Addresses, each with its way out.
    pub addresses: Vec<BootAddress>,
    /// Name servers, for `/etc/resolv.conf`.
    pub nameservers: Vec<IpAddr>,
    /// Names of hosts, for `/etc/hosts`.
    #[serde(default)]
    pub hosts: Vec<(IpAddr, String)>,
}

/// An address of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootAddress {
    /// The address.
    pub address: IpAddr,
    /// Bits of its network's prefix.
    pub prefix: u8,
    /// The way to all others, in the same network.
    pub gateway: IpAddr,
}

/// Where the root file system comes from. Disks are named by their serial number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Root {
    /// An EROFS image below, an ext4 file system above.
    Overlay {
        /// Serial number of the disk with the EROFS image.
        lower: String,
        /// Serial number of the disk with the ext4 file system, which grows to the size of its disk.
        upper: String,
    },
    /// An EROFS image below, memory above: what is written is gone when the guest ends.
    OverlayInMemory {
        /// Serial number of the disk with the EROFS image.
        lower: String,
        /// How much may be written, in MiB.
        size_mib: u64,
    },
    /// A folder of the host, which is written to itself. Needs [`crate::handshake::operation::BOOT_ROOT`].
    Share {
        /// The tag of the virtiofs device.
        tag: String,
        /// The entry of the share's root, one plain name.
        entry: String,
    },
    /// The file system of a disk, which is written to itself. Needs [`crate::handshake::operation::BOOT_ROOT`].
    Disk {
        /// Serial number of the disk.
        serial: String,
        /// The kind of file system; without it the agent tries those that the kernel has.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        fstype: Option<String>,
    },
}

/// How the boot ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum BootEvent {
    /// The guest takes commands.
    Ready {
        /// Release of the guest's kernel, as `uname -r` has it.
        kernel: String,
        /// Nanoseconds from the kernel's start to now (CLOCK_BOOTTIME).
        ready_ns: u64,
    },
    /// The guest cannot be used.
    Failed {
        /// What was being done: `modules`, `root`, `hostname`, ….
        stage: String,
        /// Why it failed.
        message: String,
    },
}
