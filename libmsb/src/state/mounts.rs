//! What a sandbox mounts besides its root: the field `mounts` of `spec.json`. man page msb-spec(5).

use msb_wire::text::Text;
use serde::{Deserialize, Serialize};

use super::volumes::VolumeName;
use crate::machine::Format;

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Where, an absolute path of the guest.
    pub target: Text,
    /// What.
    #[serde(flatten)]
    pub source: Source,
    /// Whether the guest can only read. Older files say `readonly`.
    #[serde(default, alias = "readonly", skip_serializing_if = "is_off")]
    pub read_only: bool,
    /// Whether no program in it can be started.
    #[serde(default, skip_serializing_if = "is_off")]
    pub noexec: bool,
    /// Whether programs in it give nobody the rights of their owner.
    #[serde(default, skip_serializing_if = "is_off")]
    pub nosuid: bool,
    /// Whether device nodes in it are none.
    #[serde(default, skip_serializing_if = "is_off")]
    pub nodev: bool,
}

fn is_off(flag: &bool) -> bool {
    !flag
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Source {
    /// A folder or a file of the host.
    Bind {
        /// Its path: absolute, and free of symbolic links when it was written down. One that appears in it later is an
        /// error at the next start.
        source: Text,
    },
    /// A named volume.
    Volume {
        /// The volume.
        name: VolumeName,
    },
    /// A disk image with a file system.
    Disk {
        /// The image's path, as that of a bind.
        source: Text,
        /// Its format, as the user declared it.
        format: Format,
        /// The kind of file system; without it the guest tries those that its kernel has.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        fstype: Option<String>,
    },
    /// Memory of the guest.
    Tmpfs {
        /// How much of it at most, in MiB; without it half of the guest's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        size_mib: Option<u64>,
    },
}

impl Mount {
    /// A mount that can be written to, without any restriction.
    pub fn new(target: Text, source: Source) -> Mount {
        Mount {
            target,
            source,
            read_only: false,
            noexec: false,
            nosuid: false,
            nodev: false,
        }
    }

    /// The words of its options, as they are typed: `ro,noexec`.
    pub fn options(&self) -> String {
        let access = if self.read_only { "ro" } else { "rw" };
        let flags = [
            (self.noexec, "noexec"),
            (self.nosuid, "nosuid"),
            (self.nodev, "nodev"),
        ];
        let flags = flags.iter().filter(|(on, _)| *on).map(|(_, word)| *word);
        std::iter::once(access)
            .chain(flags)
            .collect::<Vec<_>>()
            .join(",")
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
