//! The identity of a snapshot.

use libmsb::digest::Digest;
use libmsb::state::snapshot_manifest::SnapshotManifest;
use sha2::{Digest as _, Sha256};

/// Returns the digest of a manifest, which identifies its snapshot.
pub(crate) fn digest_of(manifest: &SnapshotManifest) -> anyhow::Result<Digest> {
    Ok(Digest::of_bytes(Sha256::digest(manifest.to_bytes()?).into()))
}
