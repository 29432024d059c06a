//! Settings of a guest: the field `guest` of `spec.json`. man page msb-spec(5).

use std::path::PathBuf;

use msb_wire::exec::Rlimit;
use msb_wire::guest::{InitRequest, Security};
use msb_wire::text::{Text, from_hex, to_hex};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::signal_number::SignalNumber;

/// Settings of a guest. Missing in files of older versions; then all have their defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestSpec {
    /// Privileges of commands.
    #[serde(default, skip_serializing_if = "Security::is_default")]
    pub security: Security,
    /// The upper: storage of changes to the root.
    #[serde(default, skip_serializing_if = "RootDisk::is_managed")]
    pub root_disk: RootDisk,
    /// The image's own init, which becomes the guest's first process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<InitRequest>,
    /// The program for shells, used if no command is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shell: Option<Text>,
    /// Resource limits of all commands.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rlimits: Vec<Rlimit>,
    /// Signal that asks the main command to end. `None`: SIGTERM, to all processes of the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<SignalNumber>,
    /// Directories that exist in the guest before its first command: the image's volumes. Absolute
    /// paths.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub directories: Vec<Text>,
    /// Changes of files before the first start of the image's programs, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<GuestChange>,
}

impl GuestSpec {
    /// Returns whether there are scripts. They take precedence over other programs.
    pub fn has_scripts(&self) -> bool {
        self.changes.iter().any(|change| matches!(change, GuestChange::Script { .. }))
    }
}

/// The upper: storage of a guest's changes to its root.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum RootDisk {
    /// A disk of the sandbox, created and removed with it.
    #[default]
    Managed,
    /// The guest's memory: changes are lost when the guest ends.
    Tmpfs {
        /// Limit of changes, in MiB.
        size_mib: u64,
    },
    /// A disk of the user with an ext4 file system. It is kept when the sandbox is removed.
    Disk {
        /// Absolute path of the file.
        path: PathBuf,
        /// Format, declared and never probed: a guest could write the header of another format.
        format: DiskFormat,
    },
}

impl RootDisk {
    /// Returns whether it is the default, which serde skips.
    pub fn is_managed(&self) -> bool {
        *self == RootDisk::Managed
    }
}

/// Format of a user's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskFormat {
    /// Raw: the bytes of the disk.
    Raw,
    /// QEMU's qcow2, without a backing file.
    Qcow2,
}

/// The content of a file: any bytes. In JSON it is a string if it is UTF-8, else `{"hex": "…"}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileBody(pub Vec<u8>);

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum BodyForm {
    Utf8(String),
    Raw { hex: String },
}

impl Serialize for FileBody {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match String::from_utf8(self.0.clone()) {
            Ok(text) => BodyForm::Utf8(text),
            Err(_) => BodyForm::Raw { hex: to_hex(&self.0) },
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for FileBody {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<FileBody, D::Error> {
        match BodyForm::deserialize(deserializer)? {
            BodyForm::Utf8(text) => Some(text.into_bytes()),
            BodyForm::Raw { hex } => from_hex(&hex),
        }
        .map(FileBody)
        .ok_or_else(|| D::Error::custom("not a string of hexadecimal digits"))
    }
}

/// A change of the guest's files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum GuestChange {
    /// Creates a script, which is executed by its name.
    Script {
        /// Name of the script.
        name: String,
        /// Content of the script.
        body: Text,
    },
    /// Copies a file or directory of the host. It is read when the change is applied.
    Copy {
        /// Absolute path on the host.
        from: Text,
        /// Absolute path in the guest.
        to: Text,
        /// Permission bits, instead of those of the source.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mode: Option<u32>,
        /// True if the path in the guest must not exist.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        exclusive: bool,
    },
    /// Writes a file.
    Write {
        /// Absolute path in the guest.
        path: Text,
        /// Content of the file.
        body: FileBody,
        /// Permission bits; 0644 by default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mode: Option<u32>,
        /// True if the path must not exist.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        exclusive: bool,
    },
    /// Appends to a file, which must exist.
    Append {
        /// Absolute path in the guest.
        path: Text,
        /// The bytes to append.
        body: FileBody,
    },
    /// Creates a symbolic link.
    Link {
        /// Absolute path of the link in the guest.
        path: Text,
        /// Target of the link.
        target: Text,
        /// True if the path must not exist. Otherwise it is removed first.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        exclusive: bool,
    },
    /// Creates a directory, with its parents.
    #[serde(rename = "make_folder")]
    MakeDirectory {
        /// Absolute path in the guest.
        path: Text,
        /// Permission bits of the directory; 0755 by default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mode: Option<u32>,
    },
    /// Removes a file or directory.
    Remove {
        /// Absolute path in the guest.
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

    #[test]
    fn the_content_of_a_file_may_hold_any_bytes() {
        for bytes in [&b""[..], b"text\n", b"\0", b"\0\x01\xff"] {
            let body = FileBody(bytes.to_vec());
            let json = serde_json::to_string(&body).unwrap();
            assert_eq!(serde_json::from_str::<FileBody>(&json).unwrap(), body, "{json}");
        }
        assert!(serde_json::from_str::<FileBody>(r#"{"hex":"f"}"#).is_err());
    }
}
