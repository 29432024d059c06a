//! The boot request: the first request to a guest's agent.
//!
//! All settings of the guest are sent here and none on the kernel's command line. So they have no
//! limit of a few kilobytes, and `/proc/cmdline` does not show them.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::guest::GuestSettings;
use crate::mount::GuestMount;
use crate::text::Text;

/// A request to set the guest up. Answered by one [`BootEvent`], which ends the stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootRequest {
    /// Source of the root file system.
    pub root: Root,
    /// The guest's host name.
    pub hostname: String,
    /// The guest's machine-id(5), 32 hexadecimal digits. Installed if the image has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_id: Option<String>,
    /// Environment variables of every command (`NAME=value`). The command's own variables override
    /// them.
    #[serde(default)]
    pub env: Vec<Text>,
    /// Working directory of commands that name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<Text>,
    /// User of commands that name none: `USER|UID[:GROUP|GID]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Text>,
    /// The network, if the guest has one. The agent must serve
    /// [`crate::handshake::operation::NET`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net: Option<BootNet>,
    /// Mounts besides the root. The agent must serve [`crate::handshake::operation::MOUNTS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<GuestMount>,
    /// The host's clock, in nanoseconds since 1970.
    pub clock_unix_ns: u64,
    /// Random bytes in hexadecimal digits, for the guest's entropy pool.
    #[serde(default)]
    pub entropy_hex: String,
    /// Certificate authorities that the guest trusts. The agent must serve
    /// [`crate::handshake::operation::TRUST`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<BootTrust>,
    /// Settings that older agents ignore.
    #[serde(default)]
    pub guest: GuestSettings,
}

/// The network interface of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootNet {
    /// Hardware address of the interface.
    pub mac: [u8; 6],
    /// Maximum transmission unit, in bytes.
    pub mtu: u32,
    /// Addresses, each with its gateway.
    pub addresses: Vec<BootAddress>,
    /// Name servers, for `/etc/resolv.conf`.
    pub nameservers: Vec<IpAddr>,
    /// Search domains, for the same file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Host names, for `/etc/hosts`.
    #[serde(default)]
    pub hosts: Vec<(IpAddr, String)>,
}

/// Certificate authorities that a guest trusts besides those of its image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootTrust {
    /// Certificates, PEM. Empty if the guest no longer trusts those of its earlier boots.
    pub certificates: String,
}

/// An IP address of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootAddress {
    /// The address.
    pub address: IpAddr,
    /// Length of the network prefix, in bits.
    pub prefix: u8,
    /// Default gateway, in the same network.
    pub gateway: IpAddr,
}

/// Source of the root file system. Disks are named by their serial numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Root {
    /// An overlay: an EROFS image as the lower layer, an ext4 file system as the upper.
    Overlay {
        /// Serial number of the disk with the EROFS image.
        lower: String,
        /// Serial number of the disk with the ext4 file system. The file system grows to the size
        /// of the disk.
        upper: String,
    },
    /// An overlay: an EROFS image as the lower layer, memory as the upper. Changes are lost when
    /// the guest ends.
    OverlayInMemory {
        /// Serial number of the disk with the EROFS image.
        lower: String,
        /// Limit of the upper layer, in MiB.
        size_mib: u64,
    },
    /// A directory of the host, mounted writable. The agent must serve
    /// [`crate::handshake::operation::BOOT_ROOT`].
    Share {
        /// Tag of the virtiofs device.
        tag: String,
        /// Entry of the share's root: one plain name.
        entry: String,
    },
    /// A disk with a file system, mounted writable. The agent must serve
    /// [`crate::handshake::operation::BOOT_ROOT`].
    Disk {
        /// Serial number of the disk.
        serial: String,
        /// File system type. Without it the agent tries those that the kernel supports.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        fstype: Option<String>,
    },
}

/// The result of a boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum BootEvent {
    /// The guest accepts commands.
    Ready {
        /// Release of the guest's kernel, as `uname -r` prints it.
        kernel: String,
        /// Time from the kernel's start until now, in nanoseconds (CLOCK_BOOTTIME).
        ready_ns: u64,
    },
    /// The guest cannot be used.
    Failed {
        /// The failed step: `modules`, `root`, `hostname`, ….
        stage: String,
        /// The reason.
        message: String,
    },
}
