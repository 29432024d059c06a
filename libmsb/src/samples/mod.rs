//! The sample file of a sandbox: what it costs, written as the work is done and read by whoever wants to know.
//!
//! The file lies beside the sandbox's socket and has two pages of [`PAGE_BYTES`], each with one writer: the supervisor
//! ([`Writer`]) and msb-net ([`NetWriter`]), which is handed a descriptor and never sees a name. msb-net, which has something
//! to say all the time, maps its page, so that an update is a few stores and no system call. A file that shrinks under a
//! mapping is the end of who mapped it (SIGBUS), and a guest that has broken into msb-net could shrink it: so the supervisor
//! writes with pwrite(2), a few times a minute, and a reader ([`read`]) takes copies with pread(2), and knows by the
//! sequence lock whether one is whole. Everything in it is hostile until that door is passed.
//!
//! All numbers are little-endian and unsigned, 8 bytes each but where it says otherwise:
//!
//! ```text
//!  0      8        12     16        24          32
//!  | magic | version | page | sequence | is there | 64 values …
//!            u32       u32
//! ```
//!
//! The sequence is odd while the page is written. Bit N of "is there" says that value N is known: what is not known is
//! missing, and never zero. New values take new places, so a page of another release can be read as far as it is known.
//!
//! A file counts only while its supervisor holds an open-file-description lock on it: what a killed one has left looks
//! dead, and so does the file of an earlier boot. Counters begin at zero with each start of the machine, which is
//! told in [`Field::StartedUnixNs`], and never go back after that, whatever the guest says.

/// The clocks of samples.
mod clock;
/// A page in memory.
mod page;
/// The reader's side: the checked door.
mod reader;
/// What a page holds.
mod values;
/// The writers' side.
mod writer;

pub use clock::{boot_ns, unix_ns};
pub use reader::{Reader, Snapshot, read, read_net};
pub use values::{Field, NetField, Slot, Values};
pub use writer::{NetWriter, Writer, nameless_net_file};

/// Size of a page in bytes; that of memory, so that each writer maps its own.
pub const PAGE_BYTES: usize = 4096;

/// Values that a page has room for.
pub const VALUES_MAX: usize = 64;

/// Time between two samples when nobody watches, in milliseconds.
pub const INTERVAL_MS: u64 = 10_000;
/// Time between two samples for one who watches and does not say, in milliseconds.
pub const WATCH_INTERVAL_MS: u64 = 1000;

/// The first bytes of each page.
const MAGIC: [u8; 8] = *b"msbsampl";
/// The version of the layout.
const VERSION: u32 = 1;
/// Pages of a file.
const PAGES: usize = 2;
/// The supervisor's page.
const SUPERVISOR: u32 = 0;
/// That of msb-net.
const NET: u32 = 1;

/// Where the sequence is in a page, in values of 8 bytes.
const SEQUENCE_AT: usize = 2;
/// Where it says which values are there.
const PRESENT_AT: usize = 3;
/// Where the first value is.
const VALUES_AT: usize = 4;
/// Values of 8 bytes in a page, header included.
const WORDS: usize = PAGE_BYTES / 8;

/// The first two values of 8 bytes of a page, which say what it is.
fn title(page: u32) -> [u64; 2] {
    [
        u64::from_le_bytes(MAGIC),
        u64::from(VERSION) | u64::from(page) << 32,
    ]
}

#[cfg(test)]
mod tests;
