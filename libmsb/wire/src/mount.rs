//! Mounts of a guest besides its root: directories of the host, disks, memory.

use serde::{Deserialize, Serialize};

use crate::text::Text;

/// A mount in the guest. The agent mounts parents before children, whatever the order of the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestMount {
    /// Mount point, an absolute path in the guest. Missing directories are created.
    pub target: Text,
    /// Source of the mount.
    pub source: MountSource,
    /// True for read-only. The host enforces it too; here it only gives programs the right error.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// True for `noexec`: programs cannot be executed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub noexec: bool,
    /// True for `nosuid`: the set-user-ID and set-group-ID bits have no effect.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub nosuid: bool,
    /// True for `nodev`: device nodes have no effect.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub nodev: bool,
}

/// Source of a mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum MountSource {
    /// A directory or a file of the host.
    Share {
        /// Tag of the virtiofs device.
        tag: String,
        /// Entry of the share's root: one plain name.
        entry: String,
        /// True for a file.
        #[serde(default)]
        file: bool,
    },
    /// A disk with a file system.
    Disk {
        /// Serial number of the disk.
        serial: String,
        /// File system type. Without it the agent tries those that the kernel supports.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        fstype: Option<String>,
        /// True to grow the file system, an ext4, to the size of its disk.
        #[serde(default)]
        grow: bool,
    },
    /// Memory of the guest.
    Tmpfs {
        /// Size limit in MiB. Without it the kernel's default applies: half of the memory.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        size_bytes: Option<u64>,
    },
}
