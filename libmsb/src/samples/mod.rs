//! The sample file of a sandbox: its resource use, updated continuously for any number of readers.
//!
//! The file is beside the sandbox's socket and has two pages of [`PAGE_BYTES`], each with one
//! writer: the supervisor ([`SampleWriter`]) and msb-net ([`NetWriter`]), which gets a descriptor
//! and no path. msb-net updates its page all the time and maps it, so an update is a few stores and
//! no system call. A process that maps a file gets SIGBUS if the file shrinks, and a guest that has
//! broken into msb-net could shrink it. So the supervisor writes with pwrite(2), a few times a
//! minute, and a reader ([`read`]) copies the pages with pread(2).
//!
//! A sequence lock tells readers whether a copy is consistent, without blocking the writer. The
//! reader treats all contents as untrusted.
//!
//! All numbers are little-endian and unsigned, 8 bytes each unless stated otherwise:
//!
//! ```text
//!  0      8        12     16        24          32
//!  | magic | version | page | sequence | is there | 64 values …
//!            u32       u32
//! ```
//!
//! The sequence is odd while the page is written. Bit N of "is there" means that value N is known.
//! A value that is not known is missing, and never zero. New values get new places, so readers of
//! another release can use the values that they know.
//!
//! A file is live while its supervisor holds an open-file-description lock on it. A file that a
//! killed supervisor left behind is dead, and so is a file of an earlier boot. Counters start at
//! zero with each start of the virtual machine, recorded in [`Field::StartedUnixNs`], and never
//! decrease after that, whatever the guest reports.

/// Clocks of samples.
mod clock;
/// Pages: the writer's side of the sequence lock.
mod page;
/// The reader, which validates the contents.
mod reader;
/// Values of a page.
mod values;
/// The writers.
mod writer;

pub use clock::{boot_ns, unix_ns};
pub use reader::{SampleReader, Snapshot, read, read_net};
pub use values::{Field, FieldSlot, NetField, Values};
pub use writer::{NetWriter, SampleWriter, anonymous_net_file};

/// Size of a page in bytes. It equals the memory page size, so each writer maps its own page.
pub const PAGE_BYTES: usize = 4096;

/// Limit of values in a page.
pub const VALUES_MAX: usize = 64;

/// Default interval of samples, in milliseconds.
pub const INTERVAL_MS: u64 = 10_000;
/// Default interval of samples for a subscriber, in milliseconds.
pub const WATCH_INTERVAL_MS: u64 = 1000;

/// The first bytes of each page.
const MAGIC: [u8; 8] = *b"msbsampl";
/// Version of the layout.
const VERSION: u32 = 1;
/// Number of pages in a file.
const PAGES: usize = 2;
/// Number of the supervisor's page.
const SUPERVISOR: u32 = 0;
/// Number of msb-net's page.
const NET: u32 = 1;

/// Index of the sequence in a page, in words of 8 bytes.
const SEQUENCE_AT: usize = 2;
/// Index of the bit set of known values.
const PRESENT_AT: usize = 3;
/// Index of the first value.
const VALUES_AT: usize = 4;
/// Number of words of 8 bytes in a page, header included.
const WORDS: usize = PAGE_BYTES / 8;

/// Returns the first two words of a page: magic, version and page number.
fn title(page: u32) -> [u64; 2] {
    [u64::from_le_bytes(MAGIC), u64::from(VERSION) | u64::from(page) << 32]
}

#[cfg(test)]
mod tests;
