//! Limits on untrusted archives and registries. The man page msb-image(1) lists them.
//!
//! They are generous: no image made on purpose comes near them. Input that exceeds one is rejected
//! with a message that names the limit; nothing is truncated silently. Together they bound memory
//! and time: loading any archive takes less than 1 GiB of memory.

/// Entries in the tar of a layer.
pub(crate) const LAYER_ENTRIES_MAX: u64 = 1_000_000;
/// Bytes of a layer's tar, uncompressed.
pub(crate) const LAYER_TAR_BYTES_MAX: u64 = 64 << 30;
/// Bytes of the file contents of a layer, with the holes of sparse files (which take no disk
/// space).
pub(crate) const LAYER_DATA_BYTES_MAX: u64 = 1 << 40;
/// Bytes of tar for each byte read, over all layers of an image, against decompression bombs. gzip
/// cannot exceed 1032; zstd and bombs can.
pub(crate) const EXPANSION_RATIO_MAX: u64 = 1_100;
/// Bytes stored on disk for each byte read. Data that compresses better was made for it, or is
/// zeros, which take no disk space.
pub(crate) const STORED_RATIO_MAX: u64 = 200;
/// Bytes of tar exempt from both ratios, once for each image, so that small images always pass.
pub(crate) const EXPANSION_FREE_BYTES: u64 = 1 << 30;
/// Share of a file system that images leave free (one part in this many), and its maximum.
pub(crate) const RESERVE_SHARE: u64 = 20;
pub(crate) const RESERVE_BYTES_MAX: u64 = 1 << 30;
/// Window of a zstd frame, as a power of two: the default limit of the zstd program.
pub(crate) const ZSTD_WINDOW_LOG_MAX: u32 = 27;
/// Bytes after the end mark of a tar.
pub(crate) const TRAILER_BYTES_MAX: u64 = 64 << 20;

/// MiB of memory.
pub(crate) const PATH_BYTES_MAX: usize = 4095;
/// Bytes of one component of a path.
pub(crate) const COMPONENT_BYTES_MAX: usize = 255;
/// Depth of nested directories.
pub(crate) const DEPTH_MAX: usize = 1_024;
/// Symbolic links followed while one path is resolved, as in Linux.
pub(crate) const SYMLINKS_FOLLOWED_MAX: usize = 40;
/// Bytes of one PAX extended header.
pub(crate) const PAX_BYTES_MAX: u64 = 1 << 20;
/// Bytes of all extended attributes of one file: the limit of Linux's listxattr(2).
pub(crate) const XATTR_BYTES_MAX: usize = 64 << 10;
/// Bytes of all distinct sets of extended attributes in one image; each set is stored once.
pub(crate) const IMAGE_XATTR_BYTES_MAX: usize = 32 << 20;
/// Pieces of a sparse file.
pub(crate) const SPARSE_PIECES_MAX: usize = 65_536;

/// Entries in an archive of images.
pub(crate) const ARCHIVE_ENTRIES_MAX: usize = 100_000;
/// Bytes of the names and link targets in an archive of images.
pub(crate) const ARCHIVE_NAMES_BYTES_MAX: usize = 16 << 20;
/// Bytes of all JSON documents of an archive that are kept in memory.
pub(crate) const DOCUMENTS_BYTES_MAX: u64 = 16 << 20;
/// Bytes of documents parsed, counted each time another document names one: nested indexes can
/// multiply like a decompression bomb.
pub(crate) const DOCUMENTS_READ_BYTES_MAX: u64 = 64 << 20;
/// Names of one image.
pub(crate) const REFERENCES_MAX: usize = 1_000;
/// Layers converted from one stream before the manifest shows which are needed. Each holds two open
/// files.
pub(crate) const STREAMED_LAYERS_MAX: usize = 400;
/// Layers of a file converted at the same time, if there are as many processors. Each takes up to
pub(crate) const LAYERS_AT_ONCE: usize = 4;
/// Layers of one image.
pub(crate) const IMAGE_LAYERS_MAX: usize = 500;
/// Entries of one image: those of all its layers, and the files and directories that they create.
pub(crate) const IMAGE_ENTRIES_MAX: usize = 2_000_000;
/// Bytes of all names and link targets of one image.
pub(crate) const IMAGE_NAMES_BYTES_MAX: usize = 128 << 20;
/// Path components walked to resolve all entries of one image. Links to long paths through further
/// links take 80,000 for one entry; an image of a million files takes ten million.
pub(crate) const IMAGE_STEPS_MAX: usize = 32_000_000;
/// Images in one archive.
pub(crate) const IMAGES_MAX: usize = 1_000;
/// Depth of nested indexes.
pub(crate) const INDEX_DEPTH_MAX: usize = 4;

/// Blocks of a disk: EROFS addresses them with 32 bits.
pub(crate) const DISK_BLOCKS_MAX: u64 = u32::MAX as u64;
/// Bytes of one extent of a disk.
pub(crate) const EXTENT_BYTES_MAX: u64 = 2 << 40;
