//! The row of an image in `msb image list` and `msb image inspect`.

use libmsb::digest::Digest;
use libmsb::state::images::{RefRecord, Store};
use serde::Serialize;

use crate::store::find::{ImageDocuments, layer};

/// An image in a list, as JSON.
#[derive(Debug, Serialize)]
pub(crate) struct ImageRow {
    pub(crate) reference: String,
    pub(crate) digest: Digest,
    pub(crate) size_bytes: Option<u64>,
    pub(crate) architecture: Option<String>,
    pub(crate) os: Option<String>,
    pub(crate) layer_count: Option<usize>,
    #[serde(with = "libmsb::time")]
    pub(crate) created_at: jiff::Timestamp,
    /// Time when a sandbox was last created from the image.
    pub(crate) last_used_at: Option<String>,
}

impl ImageRow {
    /// Builds the row of an image. Fields of a broken image are empty.
    pub(crate) fn new(
        store: &Store,
        record: &RefRecord,
        documents: Option<&ImageDocuments>,
    ) -> ImageRow {
        let diff_ids = documents.map(|documents| &documents.config.rootfs.diff_ids);
        let size = |diff_id: &Digest| layer(store, diff_id).map(|summary| summary.tar_bytes);
        ImageRow {
            reference: record.reference.clone(),
            digest: record.manifest_digest,
            size_bytes: diff_ids.and_then(|ids| ids.iter().map(size).sum()),
            architecture: documents.map(|documents| documents.config.platform.architecture.clone()),
            os: documents.map(|documents| documents.config.platform.os.clone()),
            layer_count: diff_ids.map(Vec::len),
            created_at: record.created_at,
            last_used_at: store.last_used(record).map(libmsb::time::text),
        }
    }
}

/// Formats a size for people.
pub(crate) fn size(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib < 1024.0 { format!("{mib:.1} MiB") } else { format!("{:.2} GiB", mib / 1024.0) }
}
