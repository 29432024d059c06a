//! What a sandbox should be: `spec.json`, written when it is made. man page msb-spec(5).

use std::borrow::Cow;
use std::collections::BTreeMap;

use msb_wire::exec::Rlimit;
use msb_wire::text::Text;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::machine::{EngineChoice, Format};
use crate::net::NetSpec;
use crate::state::guest::{GuestSpec, RootDisk};
use crate::state::mounts::Mount;

/// The version of the file's form.
pub const SPEC_VERSION: u32 = 1;
/// Longest file, in bytes. A megabyte of environment fits.
pub const SPEC_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// What a sandbox should be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// [`SPEC_VERSION`].
    pub version: u32,
    /// The sandbox's name, which is that of its folder too.
    pub name: String,
    /// Where its root file system comes from.
    #[serde(flatten)]
    pub root: RootSource,
    /// Whether it goes when its main command ends, and its disk with it.
    #[serde(default)]
    pub ephemeral: bool,
    /// When it was made.
    pub created_at: jiff::Timestamp,
    /// Labels, for selecting and for metrics.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Virtual processors.
    pub cpus: u32,
    /// Memory of the guest, in MiB.
    pub memory_mib: u32,
    /// What runs it.
    #[serde(default)]
    pub engine: EngineChoice,
    /// How its guest is started. None: from memory, if a state of the kind is kept; a restricted guest boots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<BootMode>,
    /// Size of the writable disk, in MiB. It is sparse: what is not written takes no room. 0 where there is none.
    pub upper_mib: u64,
    /// Host name of the guest.
    pub hostname: String,
    /// Variables of every command (`NAME=value`): the image's, then the user's.
    #[serde(default)]
    pub env: Vec<Text>,
    /// Directory of every command that names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<Text>,
    /// User of every command that names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Text>,
    /// The main command: entrypoint and arguments, as they were resolved. Empty: there is none.
    #[serde(default)]
    pub command: Vec<Text>,
    /// Whether the sandbox, when nobody is attached to it, outlives its main command and ends only when it is stopped.
    #[serde(default)]
    pub lasting: bool,
    /// What is mounted besides the root.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// Nobody has used it for so many milliseconds: then it is stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout_ms: Option<u64>,
    /// It has run for so many milliseconds: then it is stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_duration_ms: Option<u64>,
    /// Samples of what it costs.
    #[serde(default, skip_serializing_if = "MetricsSpec::is_default")]
    pub metrics: MetricsSpec,
    /// Its network.
    #[serde(default = "NetSpec::none")]
    pub net: NetSpec,
    /// The guest's machine-id(5): 32 hexadecimal digits, of this sandbox alone and the same at each start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_id: Option<String>,
    /// What the main command may use, when nobody is attached to the sandbox.
    #[serde(default, skip_serializing_if = "MainBounds::is_empty")]
    pub main: MainBounds,
    /// What the guest is made of and may do.
    #[serde(default, skip_serializing_if = "is_plain")]
    pub guest: GuestSpec,
    /// Fields of later versions, kept.
    #[serde(flatten)]
    pub other: serde_json::Map<String, serde_json::Value>,
}

impl Spec {
    /// What of an image's guest is written goes there. `None`: the root is no image, and is written to itself.
    pub fn upper(&self) -> Option<&RootDisk> {
        self.root.image().map(|_| &self.guest.root_disk)
    }
}

/// Where a root file system comes from: the one field of these names that the file has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RootSource {
    /// An image, which is never changed.
    Image(SpecImage),
    /// A folder of the host, which the guest changes.
    RootFolder {
        /// Its path, as that of a bind ([`crate::state::mounts::Source::Bind`]).
        path: Text,
    },
    /// A disk image with a file system, which the guest changes.
    RootImage {
        /// Its path, as that of a bind.
        path: Text,
        /// Its format, as the user declared it.
        format: Format,
        /// The kind of file system; without it the guest tries those that its kernel has.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        fstype: Option<String>,
    },
}

impl RootSource {
    /// The image, if it is one.
    pub fn image(&self) -> Option<&SpecImage> {
        match self {
            RootSource::Image(image) => Some(image),
            RootSource::RootFolder { .. } | RootSource::RootImage { .. } => None,
        }
    }

    /// What people call it: the reference of an image, else the path.
    pub fn name(&self) -> Cow<'_, str> {
        match self {
            RootSource::Image(image) => Cow::Borrowed(&image.reference),
            RootSource::RootFolder { path } | RootSource::RootImage { path, .. } => {
                Cow::Owned(path.to_lossy())
            }
        }
    }
}

/// How a guest is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum BootMode {
    /// Its kernel boots.
    Cold,
    /// From the memory of a guest of the same kind that has booted, if its state is kept; else it boots and leaves its state.
    Memory,
}

/// Whether and how often samples are taken of what a sandbox costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MetricsSpec {
    /// Time between two samples, in milliseconds, whoever watches; 0 for none at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample_interval_ms: Option<u64>,
}

impl MetricsSpec {
    fn is_default(&self) -> bool {
        *self == MetricsSpec::default()
    }

    /// Whether no samples are taken.
    pub fn is_off(&self) -> bool {
        self.sample_interval_ms == Some(0)
    }
}

/// What the main command of a detached sandbox may use.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MainBounds {
    /// Limits of its resources, in place of those that it would inherit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rlimits: Vec<Rlimit>,
    /// It has run for so many milliseconds: then it is killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

impl MainBounds {
    /// Whether it may use what it likes.
    pub fn is_empty(&self) -> bool {
        *self == MainBounds::default()
    }
}

/// Whether a guest need not be described.
fn is_plain(guest: &GuestSpec) -> bool {
    *guest == GuestSpec::default()
}

/// The image of a sandbox, pinned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpecImage {
    /// The reference in its full form, as it was when the sandbox was made.
    pub reference: String,
    /// The manifest that the reference named then.
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
            (
                "image",
                json!({ "reference": "a", "manifest_digest": digest }),
                "a",
            ),
            ("root_folder", json!({ "path": "/srv/r" }), "/srv/r"),
            (
                "root_image",
                json!({ "path": "/r", "format": "raw", "fstype": "ext4" }),
                "/r",
            ),
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
