//! Layers: a tar of an image, converted once into two files.
//!
//! `.data` holds the contents of files, each from a 4 KiB block on, so that a disk can point into it. `.index` holds
//! every other byte of the tar in order, and where the contents lie: from both the tar can be rebuilt byte for byte,
//! and the index alone is enough to lay out a disk.

/// Reading a layer (compressed or not) and writing the two files.
pub(crate) mod convert;
/// The file of contents.
pub(crate) mod data;
/// The file of all else.
pub(crate) mod index;
/// Extended headers of a tar: records of `length key=value`.
mod pax;
/// From the two files back to the tar.
pub(crate) mod rebuild;
/// Maps of sparse files.
mod sparse;
/// A strict reader of tar archives.
pub(crate) mod tar;

/// Size of a block, in the data file and on the disk.
pub(crate) const BLOCK_BYTES: u64 = 4096;
