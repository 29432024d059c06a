//! Mounts of a sandbox besides its root: the field `mounts` of `spec.json`. man page msb-spec(5).

use msb_wire::text::Text;
use serde::{Deserialize, Serialize};

use super::volumes::VolumeName;
use crate::machine::DiskImageFormat;

/// A mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Mount point, an absolute path in the guest.
    pub target: Text,
    /// Source of the mount.
    #[serde(flatten)]
    pub source: Source,
    /// True for read-only. Older files have `readonly`.
    #[serde(default, alias = "readonly", skip_serializing_if = "is_off")]
    pub read_only: bool,
    /// True for `noexec`: programs cannot be executed.
    #[serde(default, skip_serializing_if = "is_off")]
    pub noexec: bool,
    /// True for `nosuid`: the set-user-ID and set-group-ID bits have no effect.
    #[serde(default, skip_serializing_if = "is_off")]
    pub nosuid: bool,
    /// True for `nodev`: device nodes have no effect.
    #[serde(default, skip_serializing_if = "is_off")]
    pub nodev: bool,
}

fn is_off(flag: &bool) -> bool {
    !flag
}

/// Source of a mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Source {
    /// A directory or a file of the host.
    Bind {
        /// Path: absolute, and without symbolic links when it was recorded. A symbolic link that
        /// appears in it later is an error at the next start.
        source: Text,
    },
    /// A named volume.
    Volume {
        /// Name of the volume.
        name: VolumeName,
    },
    /// A disk image with a file system.
    Disk {
        /// Path of the image, as for a bind mount.
        source: Text,
        /// Format, as declared by the user.
        format: DiskImageFormat,
        /// File system type. Without it the guest tries those that its kernel supports.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        fstype: Option<String>,
    },
    /// Memory of the guest.
    Tmpfs {
        /// Size limit in MiB; without it half of the guest's memory.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        size_mib: Option<u64>,
    },
}

impl Mount {
    /// Returns a writable mount without restrictions.
    pub fn new(target: Text, source: Source) -> Mount {
        Mount { target, source, read_only: false, noexec: false, nosuid: false, nodev: false }
    }

    /// Returns the options as on the command line: `ro,noexec`.
    pub fn options(&self) -> String {
        let access = if self.read_only { "ro" } else { "rw" };
        let flags = [(self.noexec, "noexec"), (self.nosuid, "nosuid"), (self.nodev, "nodev")];
        let flags = flags.iter().filter(|(on, _)| *on).map(|(_, word)| *word);
        std::iter::once(access).chain(flags).collect::<Vec<_>>().join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_comes_back_as_it_was_and_the_old_word_for_read_only_is_read() {
        let text = r#"{"target":"/src","kind":"bind","source":"/home/u/src","read_only":true}"#;
        let mount: Mount = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&mount).unwrap(), text);
        let old = text.replace("read_only", "readonly");
        assert_eq!(serde_json::from_str::<Mount>(&old).unwrap(), mount);
        assert_eq!(mount.options(), "ro");
    }

    #[test]
    fn a_kind_that_is_not_known_is_refused() {
        let text = r#"{"target":"/x","kind":"nfs","source":"h:/x"}"#;
        assert!(serde_json::from_str::<Mount>(text).is_err());
    }
}
