//! What a guest is made of and may do: the field `guest` of `spec.json`. man page msb-spec(5).

use std::path::PathBuf;

use msb_wire::guest::{InitRequest, Security};
use msb_wire::text::Text;
use serde::{Deserialize, Serialize};

/// What a guest is made of and may do. Missing in files of older versions, and then all of it is the default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestSpec {
    /// What its commands may do.
    #[serde(default, skip_serializing_if = "Security::is_default")]
    pub security: Security,
    /// Where what it writes goes.
    #[serde(default, skip_serializing_if = "RootDisk::is_managed")]
    pub root_disk: RootDisk,
    /// The image's own init, which becomes its first process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<InitRequest>,
    /// What runs when no command is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shell: Option<Text>,
    /// Changes of its files before anything of the image runs for the first time, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
}

impl GuestSpec {
    /// Whether it has scripts, which are found before other programs.
    pub fn has_scripts(&self) -> bool {
        self.changes
            .iter()
            .any(|change| matches!(change, Change::Script { .. }))
    }
}

/// Where what a guest writes to its root goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum RootDisk {
    /// To a disk of the sandbox, which is made and removed with it.
    #[default]
    Managed,
    /// To the guest's memory: it is gone when the guest ends.
    Tmpfs {
        /// How much may be written, in MiB.
        size_mib: u64,
    },
    /// To a disk of the user with an ext4 file system, which stays when the sandbox is removed.
    Disk {
        /// The file, absolute.
        path: PathBuf,
        /// Its format, which is declared and never probed: a guest could write another's header.
        format: DiskFormat,
    },
}

impl RootDisk {
    /// For serde: whether it need not be said.
    pub fn is_managed(&self) -> bool {
        *self == RootDisk::Managed
    }
}

/// Formats of a user's disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskFormat {
    /// The bytes of the disk.
    Raw,
    /// QEMU's own format, without a backing file.
    Qcow2,
}

/// A change of the guest's files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Change {
    /// A file that is executed by its name.
    Script {
        /// Its name.
        name: String,
        /// Its content.
        body: Text,
    },
    /// A file or folder of the host is copied; it is read when the change is made.
    Copy {
        /// On the host, absolute.
        from: Text,
        /// What it becomes in the guest, absolute.
        to: Text,
    },
    /// A folder is made, with those above it.
    MakeFolder {
        /// In the guest, absolute.
        path: Text,
    },
    /// What is there is removed.
    Remove {
        /// In the guest, absolute.
        path: Text,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_of_which_nothing_is_said_takes_no_room() {
        assert_eq!(serde_json::to_string(&GuestSpec::default()).unwrap(), "{}");
        let read: GuestSpec = serde_json::from_str("{}").unwrap();
        assert_eq!(read, GuestSpec::default());
    }
}
