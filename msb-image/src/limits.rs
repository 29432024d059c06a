//! Every limit that untrusted archives meet. man page msb-image(1) lists them.
//!
//! They are generous: no image that people made on purpose comes near. What exceeds one is refused with a message that
//! names the limit; nothing is cut silently. Together they bound memory and time: whatever an archive holds, loading it
//! takes less than 1 GiB of memory.

/// Entries in the tar of a layer.
pub(crate) const LAYER_ENTRIES_MAX: u64 = 1_000_000;
/// Bytes of a layer's tar, uncompressed.
pub(crate) const LAYER_TAR_BYTES_MAX: u64 = 64 << 30;
/// Bytes of the file contents of a layer, with the holes of sparse files (which take no room on the disk).
pub(crate) const LAYER_DATA_BYTES_MAX: u64 = 1 << 40;
/// Bytes of tar for each byte that was read, over all layers of an image. gzip cannot exceed 1032, zstd and bombs can.
pub(crate) const EXPANSION_RATIO_MAX: u64 = 1_100;
/// The same for bytes that take room on the disk: what is compressed better is made for it, or zeros, which take none.
pub(crate) const STORED_RATIO_MAX: u64 = 200;
/// So many bytes more, once for an image, so that small ones are not looked at.
pub(crate) const EXPANSION_FREE_BYTES: u64 = 1 << 30;
/// Share of a file system that images leave free, one part in so many, and the most that they leave.
pub(crate) const RESERVE_SHARE: u64 = 20;
pub(crate) const RESERVE_BYTES_MAX: u64 = 1 << 30;
/// Window of a zstd frame, as a power of two: what the zstd program accepts without being told more.
pub(crate) const ZSTD_WINDOW_LOG_MAX: u32 = 27;
/// Bytes behind the end mark of a tar.
pub(crate) const TRAILER_BYTES_MAX: u64 = 64 << 20;

/// Bytes of a path, and of a link's target, as in Linux (PATH_MAX counts the terminator).
pub(crate) const PATH_BYTES_MAX: usize = 4095;
/// Bytes of one component of a path.
pub(crate) const COMPONENT_BYTES_MAX: usize = 255;
/// Folders within folders.
pub(crate) const DEPTH_MAX: usize = 1_024;
/// Symbolic links followed on the way to one entry, as in Linux.
pub(crate) const SYMLINKS_FOLLOWED_MAX: usize = 40;
/// Bytes of one PAX extended header.
pub(crate) const PAX_BYTES_MAX: u64 = 1 << 20;
/// Bytes of all extended attributes of one file, as Linux lists them.
pub(crate) const XATTR_BYTES_MAX: usize = 64 << 10;
/// Bytes of all different sets of extended attributes in one image: each set is kept once.
pub(crate) const IMAGE_XATTR_BYTES_MAX: usize = 32 << 20;
/// Pieces of a sparse file.
pub(crate) const SPARSE_PIECES_MAX: usize = 65_536;

/// Entries in an archive of images.
pub(crate) const ARCHIVE_ENTRIES_MAX: usize = 100_000;
/// Bytes of the names and link targets in an archive of images.
pub(crate) const ARCHIVE_NAMES_BYTES_MAX: usize = 16 << 20;
/// Bytes of all documents (JSON) of an archive that are kept in memory.
pub(crate) const DOCUMENTS_BYTES_MAX: u64 = 16 << 20;
/// Bytes of documents that are looked at, each as often as others name it: indexes can multiply like a bomb.
pub(crate) const DOCUMENTS_READ_BYTES_MAX: u64 = 64 << 20;
/// Names of one image.
pub(crate) const REFERENCES_MAX: usize = 1_000;
/// Layers converted from one stream before it is known which are needed. Each holds two open files.
pub(crate) const STREAMED_LAYERS_MAX: usize = 400;
/// Layers of a file that are converted at the same time, if there are as many processors: each takes up to 10 MiB.
pub(crate) const LAYERS_AT_ONCE: usize = 4;
/// Layers of one image.
pub(crate) const IMAGE_LAYERS_MAX: usize = 500;
/// Entries of one image: those of all its layers, and the files and folders that they make.
pub(crate) const IMAGE_ENTRIES_MAX: usize = 2_000_000;
/// Bytes of all names and link targets of one image.
pub(crate) const IMAGE_NAMES_BYTES_MAX: usize = 128 << 20;
/// Folders walked through on the way to all entries of one image. Links to long paths through further links make it
/// 80,000 for one entry; an image of a million files takes ten million.
pub(crate) const IMAGE_STEPS_MAX: usize = 32_000_000;
/// Images in one archive.
pub(crate) const IMAGES_MAX: usize = 1_000;
/// Indexes within indexes.
pub(crate) const INDEX_DEPTH_MAX: usize = 4;

/// Blocks of a disk: EROFS addresses them with 32 bits.
pub(crate) const DISK_BLOCKS_MAX: u64 = u32::MAX as u64;
/// Bytes of one extent of a disk.
pub(crate) const EXTENT_BYTES_MAX: u64 = 2 << 40;
