//! The specification of a sandbox: `spec.json`, written at its creation. man page msb-spec(5).

use std::borrow::Cow;
use std::collections::BTreeMap;

use msb_wire::exec::Rlimit;
use msb_wire::text::Text;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::machine::{DiskImageFormat, EngineChoice};
use crate::net::NetSpec;
use crate::state::guest::{GuestSpec, RootDisk};
use crate::state::mounts::Mount;

/// Version of the file's format.
pub const SPEC_VERSION: u32 = 1;
/// Longest file, in bytes: enough for a megabyte of environment variables.
pub const SPEC_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// The specification of a sandbox.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// [`SPEC_VERSION`].
    pub version: u32,
    /// Name of the sandbox, and of its directory.
    pub name: String,
    /// Source of the root file system.
    #[serde(flatten)]
    pub root: RootSource,
    /// True for an ephemeral sandbox: it is removed with its disk when its main command ends.
    #[serde(default)]
    pub ephemeral: bool,
    /// Time of the creation.
    #[serde(with = "crate::time")]
    pub created_at: jiff::Timestamp,
    /// Labels, for selection and metrics.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Virtual processors.
    pub cpus: u32,
    /// Memory of the guest, in MiB.
    pub memory_mib: u32,
    /// Requested engine.
    #[serde(default)]
    pub engine: EngineChoice,
    /// Boot mode. `None`: from memory, if a boot state exists; a restricted guest boots cold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<BootMode>,
    /// Size of the upper's disk, in MiB. It is sparse, so unwritten blocks take no space. 0 without
    /// a disk.
    pub upper_mib: u64,
    /// Host name of the guest.
    pub hostname: String,
    /// Environment variables of every command (`NAME=value`): the image's, then the user's.
    #[serde(default)]
    pub env: Vec<Text>,
    /// Working directory of commands that name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<Text>,
    /// User of commands that name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Text>,
    /// The main command: entrypoint and arguments, resolved. Empty: none.
    #[serde(default)]
    pub command: Vec<Text>,
    /// True if the sandbox, when no client is attached, outlives its main command and runs until it
    /// is stopped.
    #[serde(default, rename = "lasting")]
    pub persistent: bool,
    /// Mounts besides the root.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// Idle timeout in milliseconds: the sandbox is stopped after this time without use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout_ms: Option<u64>,
    /// Maximum duration in milliseconds: the sandbox is stopped after this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_duration_ms: Option<u64>,
    /// Settings of samples.
    #[serde(default, skip_serializing_if = "MetricsSpec::is_default")]
    pub metrics: MetricsSpec,
    /// The network.
    #[serde(default = "NetSpec::none")]
    pub net: NetSpec,
    /// The guest's machine-id(5): 32 hexadecimal digits, unique to this sandbox and the same at
    /// each start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_id: Option<String>,
    /// Limits of the main command of a detached sandbox.
    #[serde(default, skip_serializing_if = "MainLimits::is_empty")]
    pub main: MainLimits,
    /// The snapshot that the disk is at: the parent of the sandbox's next snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Digest>,
    /// Settings of the guest.
    #[serde(default, skip_serializing_if = "is_plain")]
    pub guest: GuestSpec,
    /// Fields of later versions, which are preserved.
    #[serde(flatten)]
    pub other: serde_json::Map<String, serde_json::Value>,
}

impl Spec {
    /// Returns the upper. `None`: the root is not an image, and is itself writable.
    pub fn upper(&self) -> Option<&RootDisk> {
        self.root.image().map(|_| &self.guest.root_disk)
    }
}

/// Source of a root file system: one of these fields is present in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RootSource {
    /// An image, which is never changed.
    Image(SpecImage),
    /// A directory of the host, which the guest changes.
    #[serde(rename = "root_folder")]
    RootDirectory {
        /// Path, as for a bind mount ([`crate::state::mounts::Source::Bind`]).
        path: Text,
    },
    /// A disk image with a file system, which the guest changes.
    RootImage {
        /// Path, as for a bind mount.
        path: Text,
        /// Format, as declared by the user.
        format: DiskImageFormat,
        /// File system type. Without it the guest tries those that its kernel supports.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        fstype: Option<String>,
    },
}

impl RootSource {
    /// Returns the image, if it is one.
    pub fn image(&self) -> Option<&SpecImage> {
        match self {
            RootSource::Image(image) => Some(image),
            RootSource::RootDirectory { .. } | RootSource::RootImage { .. } => None,
        }
    }

    /// Returns the name for people: the reference of an image, else the path.
    pub fn name(&self) -> Cow<'_, str> {
        match self {
            RootSource::Image(image) => Cow::Borrowed(&image.reference),
            RootSource::RootDirectory { path } | RootSource::RootImage { path, .. } => {
                Cow::Owned(path.to_lossy())
            }
        }
    }
}

/// Boot mode of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum BootMode {
    /// Cold boot: its kernel boots.
    Cold,
    /// From a boot state, the saved memory of a guest of the same kind. Without one, the guest
    /// boots cold and saves its state.
    Memory,
}

/// Settings of samples of a sandbox's resource use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MetricsSpec {
    /// Interval of samples in milliseconds, which overrides those of subscribers; 0 for no samples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample_interval_ms: Option<u64>,
}

impl MetricsSpec {
    fn is_default(&self) -> bool {
        *self == MetricsSpec::default()
    }

    /// Returns whether no samples are taken.
    pub fn is_off(&self) -> bool {
        self.sample_interval_ms == Some(0)
    }
}

/// Limits of the main command of a detached sandbox.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MainLimits {
    /// Resource limits, instead of those that it would inherit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rlimits: Vec<Rlimit>,
    /// Timeout in milliseconds, after which it is killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

impl MainLimits {
    /// Returns whether there are no limits.
    pub fn is_empty(&self) -> bool {
        *self == MainLimits::default()
    }
}

/// Returns whether it is the default, which serde skips.
fn is_plain(guest: &GuestSpec) -> bool {
    *guest == GuestSpec::default()
}

/// The pinned image of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpecImage {
    /// Canonical reference, at the creation of the sandbox.
    pub reference: String,
    /// Digest of the manifest that the reference named then.
    pub manifest_digest: Digest,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn spec(root: (&str, Value)) -> Value {
        json!({
            "version": SPEC_VERSION, "name": "x", "created_at": "2026-01-01T00:00:00Z", "cpus": 1, "memory_mib": 512,
            "upper_mib": 0, "hostname": "x", "later": 1, root.0: root.1
        })
    }

    #[test]
    fn a_root_is_the_one_field_that_names_it() {
        let digest = format!("sha256:{}", "0".repeat(64));
        for (field, value, name) in [
            ("image", json!({ "reference": "a", "manifest_digest": digest }), "a"),
            ("root_folder", json!({ "path": "/srv/r" }), "/srv/r"),
            ("root_image", json!({ "path": "/r", "format": "raw", "fstype": "ext4" }), "/r"),
        ] {
            let read: Spec = serde_json::from_value(spec((field, value.clone()))).unwrap();
            assert_eq!(read.root.name(), name);
            assert_eq!(read.upper().is_some(), field == "image");
            let written = serde_json::to_value(&read).unwrap();
            assert_eq!((&written[field], &written["later"]), (&value, &json!(1)));
        }
    }

    #[test]
    fn a_file_that_names_no_root_is_refused() {
        assert!(serde_json::from_value::<Spec>(spec(("other", json!({})))).is_err());
        assert!(serde_json::from_value::<Spec>(spec(("image", json!("a")))).is_err());
    }
}
