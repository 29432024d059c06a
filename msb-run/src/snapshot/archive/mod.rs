//! Archives of snapshots: a tar stream, compressed with zstd unless that is switched off.
//!
//! Each snapshot is a directory of the archive, with these files in this order:
//!
//! * `manifest.json`
//! * `base`, in an incremental archive: the digest of the snapshot that the receiver has
//! * `upper.ext4`: the disk, or, with a base, the blocks that differ from those of the base; a
//!   sparse entry of the old GNU format, which microsandbox 0.5.5 reads
//! * `upper.sha256`: the digest of the disk's data
//! * `memory.state`, on request: the memory of a running sandbox, which is imported on request only
//! * `image.tar`, on request: the image, as `msb image save` writes it
//!
//! The stream is deterministic: it depends on the manifest and on the contents of the disk alone,
//! not on the layout of files, on times or on owners.

/// Writing archives.
pub(crate) mod export;
/// Reading archives.
pub(crate) mod import;
/// The tar format, as far as archives need it.
pub(crate) mod tar;

/// File with the digest of an incremental archive's base.
pub(crate) const BASE: &str = "base";
/// File with the digest of the disk's data.
pub(crate) const DATA_DIGEST: &str = "upper.sha256";
/// File with the image.
pub(crate) const IMAGE: &str = "image.tar";
/// Size of a block of a disk, in bytes.
pub(crate) const BLOCK_BYTES: u64 = 4096;
