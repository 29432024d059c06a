//! Manifests of snapshots: `manifest.json`, man page msb-state(5).
//!
//! The format is that of microsandbox 0.5.5, so that both programs read the same snapshots and call
//! them by the same digest. A manifest is canonical: compact JSON with the fields in the order of
//! [`SnapshotManifest`] and sorted labels. Its SHA-256 is the identity of the snapshot.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// Version of the format.
pub const MANIFEST_VERSION: u32 = 1;
/// Longest manifest, in bytes.
pub const MANIFEST_BYTES_MAX: u64 = 1024 * 1024;
/// Largest disk, in bytes: 1 TiB, as for a sandbox.
pub const DISK_BYTES_MAX: u64 = 1 << 40;
/// The only format of a disk.
pub const DISK_FORMAT: &str = "raw";
/// The only file system of a disk.
pub const DISK_FSTYPE: &str = "ext4";
/// Prefix of labels that the program sets itself.
pub const RESERVED_PREFIX: &str = "msb.";
/// Label with the digest of the disk's data.
pub const LABEL_DATA: &str = "msb.data";
/// Label of a snapshot with memory: the digest of the header of the memory's file.
pub const LABEL_MEMORY: &str = "msb.memory";

/// A manifest of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotManifest {
    /// [`MANIFEST_VERSION`].
    pub schema: u32,
    /// [`DISK_FORMAT`].
    pub format: String,
    /// [`DISK_FSTYPE`].
    pub fstype: String,
    /// The pinned image below the disk.
    pub image: SnapshotImage,
    /// Digest of the snapshot that the sandbox was at before.
    pub parent: Option<Digest>,
    /// Time of the snapshot, RFC 3339.
    pub created_at: String,
    /// Labels, sorted.
    pub labels: BTreeMap<String, String>,
    /// The disk.
    pub upper: SnapshotDisk,
    /// Name of the sandbox.
    pub source_sandbox: Option<String>,
}

/// The image of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotImage {
    /// Reference at the creation of the sandbox.
    #[serde(rename = "ref")]
    pub reference: String,
    /// Digest of its manifest.
    pub manifest_digest: Digest,
}

/// The disk of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotDisk {
    /// Name of the file, beside the manifest.
    pub file: String,
    /// Size of the file.
    pub size_bytes: u64,
    /// Digest of the file.
    pub integrity: Option<DiskIntegrity>,
}

/// A digest of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskIntegrity {
    /// Name of the algorithm.
    pub algorithm: String,
    /// The digest.
    pub digest: Digest,
}

impl SnapshotManifest {
    /// Parses and checks a manifest.
    pub fn parse(bytes: &[u8]) -> anyhow::Result<SnapshotManifest> {
        ensure!(
            bytes.len() as u64 <= MANIFEST_BYTES_MAX,
            "the manifest is longer than {MANIFEST_BYTES_MAX} bytes"
        );
        let manifest: SnapshotManifest =
            serde_json::from_slice(bytes).context("cannot understand the manifest")?;
        ensure!(
            manifest.schema == MANIFEST_VERSION,
            "the manifest has version {}, and this program supports version {MANIFEST_VERSION}",
            manifest.schema
        );
        ensure!(
            manifest.format == DISK_FORMAT && manifest.fstype == DISK_FSTYPE,
            "the disk is not {DISK_FORMAT} with {DISK_FSTYPE}"
        );
        ensure!(is_plain_name(&manifest.upper.file), "the name of the disk's file is not plain");
        let size = manifest.upper.size_bytes;
        ensure!(
            size > 0 && size <= DISK_BYTES_MAX && size.is_multiple_of(512),
            "the disk cannot have {size} bytes"
        );
        manifest.created()?;
        ensure!(manifest.to_bytes()? == bytes, "the manifest is not in canonical form");
        Ok(manifest)
    }

    /// Returns the manifest in canonical form.
    pub fn to_bytes(&self) -> anyhow::Result<Vec<u8>> {
        serde_json::to_vec(self).context("cannot write the manifest")
    }

    /// Returns the time of the snapshot.
    pub fn created(&self) -> anyhow::Result<jiff::Timestamp> {
        self.created_at.parse().context("the manifest has no valid time")
    }

    /// Returns whether the snapshot was made with the memory of its sandbox.
    pub fn has_memory(&self) -> bool {
        self.labels.contains_key(LABEL_MEMORY)
    }

    /// Returns the labels that the user has set.
    pub fn user_labels(&self) -> impl Iterator<Item = (&String, &String)> {
        self.labels.iter().filter(|(key, _)| !key.starts_with(RESERVED_PREFIX))
    }
}

/// Returns whether a text is a plain file name that no file of the program has.
fn is_plain_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    !name.is_empty()
        && name.len() <= 64
        && !name.starts_with('.')
        && name.bytes().all(plain)
        && name != super::layout::SNAPSHOT_MANIFEST
        && name != super::layout::LOCK
        && name != super::layout::MEMORY
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A manifest that microsandbox 0.5.5 wrote.
    const PEER: &str = r#"{"schema":1,"format":"raw","fstype":"ext4","image":{"ref":"busybox:test","manifest_digest":"sha256:9f09788ce20b62b8196de3708a6ab55d7ff6844b641554099b2e5d74666d2732"},"parent":null,"created_at":"2026-11-30T21:00:19.264644707+00:00","labels":{"a":"b","c":""},"upper":{"file":"upper.ext4","size_bytes":4294967296,"integrity":{"algorithm":"msb-sparse-sha256-v1","digest":"sha256:e72c3e45cf1cb7ce84cabe1077e3c002ad1331140b59c4cf4eca27fa63909273"}},"source_sandbox":"sb"}"#;

    #[test]
    fn a_manifest_of_microsandbox_is_canonical() {
        let manifest = SnapshotManifest::parse(PEER.as_bytes()).unwrap();
        assert_eq!(manifest.to_bytes().unwrap(), PEER.as_bytes());
        assert_eq!(manifest.upper.size_bytes, 4 << 30);
    }

    #[test]
    fn another_spelling_of_a_manifest_is_refused() {
        for (from, to) in [
            ("\"schema\":1,", "\"schema\": 1,"),
            ("\"schema\":1,", "\"schema\":2,"),
            ("\"schema\":1,", "\"schema\":1,\"x\":1,"),
            ("\"format\":\"raw\",\"fstype\":\"ext4\"", "\"fstype\":\"ext4\",\"format\":\"raw\""),
            ("\"format\":\"raw\"", "\"format\":\"qcow2\""),
            ("{\"a\":\"b\",\"c\":\"\"}", "{\"c\":\"\",\"a\":\"b\"}"),
            ("upper.ext4", "../upper.ext4"),
            ("upper.ext4", "manifest.json"),
            ("upper.ext4", "lock"),
            ("4294967296", "0"),
            ("4294967296", "4294967297"),
            ("4294967296", "18446744073709551104"),
            ("4294967296", "-512"),
            ("2026-11-30T", "2026-13-30T"),
            ("sha256:9f", "sha256:9F"),
        ] {
            let changed = PEER.replacen(from, to, 1);
            assert_ne!(changed, PEER, "{from}");
            assert!(SnapshotManifest::parse(changed.as_bytes()).is_err(), "{to}");
        }
    }
}
