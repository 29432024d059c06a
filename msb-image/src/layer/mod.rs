//! Layers: the tar of an image layer, converted once into two files.
//!
//! `.data` holds the contents of files, each starting at a 4 KiB block, so that a disk can refer to
//! it. `.index` holds every other byte of the tar in order, and the position of each file's
//! contents. Together they rebuild the tar byte for byte; the index alone is enough to plan a disk.

/// Conversion of a layer (compressed or not) to the two files.
pub(crate) mod convert;
/// The data file.
pub(crate) mod data;
/// The index file.
pub(crate) mod index;
/// PAX extended headers: records of `length key=value`.
mod pax;
/// Rebuilding the tar from the two files.
pub(crate) mod rebuild;
/// Maps of sparse files.
mod sparse;
/// A strict reader of tar archives.
pub(crate) mod tar;

/// Size of a block in the data file and on the disk.
pub(crate) const BLOCK_BYTES: u64 = 4096;
