//! What a guest mounts besides its root: folders of the host, disks, memory.

use serde::{Deserialize, Serialize};

use crate::text::Text;

/// One mount of the guest. The agent mounts parents before children, whatever the order of the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestMount {
    /// Where, an absolute path of the guest. What is missing of it is made.
    pub target: Text,
    /// What.
    pub source: MountSource,
    /// Whether nothing can be written. The host holds to it too; here it only gives programs the right error.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// Whether no program in it can be started.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub noexec: bool,
    /// Whether programs in it give nobody the rights of their owner.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub nosuid: bool,
    /// Whether device nodes in it are none.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub nodev: bool,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum MountSource {
    /// A folder or a file of the host.
    Share {
        /// The tag of the virtiofs device.
        tag: String,
        /// The entry of the share's root, one plain name.
        entry: String,
        /// Whether it is a file.
        #[serde(default)]
        file: bool,
    },
    /// A disk with a file system.
    Disk {
        /// Serial number of the disk.
        serial: String,
        /// The kind of file system; without it the agent tries those that the kernel has.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        fstype: Option<String>,
        /// Whether the file system, an ext4, grows to its disk.
        #[serde(default)]
        grow: bool,
    },
    /// Memory of the guest.
    Tmpfs {
        /// How much of it at most; without it, what the kernel thinks right: half of all.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        size_bytes: Option<u64>,
    },
}
