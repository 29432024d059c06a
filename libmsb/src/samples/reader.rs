//! The reader of sample files: the reading side of the sequence lock, with validation of untrusted
//! contents.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use super::{
    Field, FieldSlot, NET, NetField, PAGE_BYTES, PAGES, PRESENT_AT, SEQUENCE_AT, SUPERVISOR,
    VALUES_AT, VALUES_MAX, Values, clock, title,
};
use crate::state::lock;

/// Limit of attempts to read a page before it counts as permanently locked. A write takes less than
/// a microsecond.
const ATTEMPTS: u32 = 100;
/// Used bytes of a page.
const RECORD_BYTES: usize = (VALUES_AT + VALUES_MAX) * 8;

/// The contents of a sample file at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Values from the supervisor.
    pub sandbox: Values<Field>,
    /// Values from msb-net, if the sandbox has it.
    pub net: Option<Values<NetField>>,
}

/// A sample file that is kept open for repeated reads. The next run of the sandbox creates another
/// file; this one is then dead.
#[derive(Debug)]
pub struct SampleReader {
    file: File,
    path: PathBuf,
}

impl SampleReader {
    /// Opens the file. `None` if it does not exist.
    pub fn open(path: &Path) -> anyhow::Result<Option<SampleReader>> {
        let open = |more| {
            let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY | more;
            let mut options = OpenOptions::new();
            options.read(true).custom_flags(flags).open(path)
        };
        // O_NOATIME saves a write for each read. Only the owner may set it; others get an error.
        let opened = match open(libc::O_NOATIME) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => open(0),
            opened => opened,
        };
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot open '{}'", path.display()));
            }
        };
        let regular = file.metadata().is_ok_and(|file| file.is_file());
        ensure!(regular, "'{}' is not a regular file", path.display());
        let path = path.to_owned();
        Ok(Some(SampleReader { file, path }))
    }

    /// Returns the current contents. `None` if the file is dead: that run of the sandbox is over.
    /// An invalid file is an error with its path.
    pub fn read(&self) -> anyhow::Result<Option<Snapshot>> {
        read_from(&self.file)
            .with_context(|| format!("cannot read the samples in '{}'", self.path.display()))
    }
}

/// Reads the sample file of a sandbox once: [`SampleReader::read`]. `None` also if there is no
/// file.
pub fn read(path: &Path) -> anyhow::Result<Option<Snapshot>> {
    match SampleReader::open(path)? {
        Some(reader) => reader.read(),
        None => Ok(None),
    }
}

/// Returns the counters of msb-net in a file that was passed to it; `None` before its first update,
/// and if the contents are invalid.
pub fn read_net(file: &File) -> Option<Values<NetField>> {
    page(file, None, NET).unwrap_or_default()
}

fn read_from(file: &File) -> anyhow::Result<Option<Snapshot>> {
    if !lock::is_locked(file)? {
        return Ok(None);
    }
    let copies = [copy(file)?, copy(file)?];
    let sandbox =
        page(file, Some(&copies), SUPERVISOR)?.context("the page of the supervisor is empty")?;
    if !is_of_this_boot(&sandbox) {
        return Ok(None);
    }
    // An invalid page of msb-net must not fail the supervisor.
    let net = page(file, Some(&copies), NET).unwrap_or_default();
    Ok(Some(Snapshot { sandbox, net }))
}

fn is_of_this_boot(values: &Values<Field>) -> bool {
    let written = [Field::BootIdHigh, Field::BootIdLow].map(|field| values.get(field));
    match (clock::boot_id(), written) {
        (Some([high, low]), [Some(a), Some(b)]) => (high, low) == (a, b),
        _ => true,
    }
}

/// Returns the values of a page; `None` if it has not been written yet. Uses the copies first, if
/// there are any.
fn page<S: FieldSlot>(
    file: &File,
    copies: Option<&[FileCopy; 2]>,
    number: u32,
) -> anyhow::Result<Option<Values<S>>> {
    let mut copied = copies.map(|copies| copies.each_ref().map(|copy| record_in(copy, number)));
    for _ in 0..ATTEMPTS {
        // A copy need not be made in order. But the second one started after the first was
        // complete: if both are the same, with the same even sequence, no write was in between.
        let [one, two] = match copied.take() {
            Some(records) => records,
            None => [record(file, number)?, record(file, number)?],
        };
        if one[..2] == [0, 0] {
            return Ok(None);
        }
        ensure!(one[..2] == title(number), "unknown format or version");
        if one == two && one[SEQUENCE_AT] % 2 == 0 {
            let mut values = [0; VALUES_MAX];
            values.copy_from_slice(&one[VALUES_AT..]);
            return Ok(Some(Values::from_parts(one[PRESENT_AT], values)));
        }
        std::thread::yield_now();
    }
    anyhow::bail!("no consistent copy: a writer holds its sequence lock")
}

/// The used words of a page.
type PageWords = [u64; VALUES_AT + VALUES_MAX];

/// The file up to the used words of its last page.
type FileCopy = [u8; (PAGES - 1) * PAGE_BYTES + RECORD_BYTES];

/// Copies both pages in one system call: with many sandboxes, system calls dominate a reader's
/// time. Bytes beyond the end of the file are zero, as in an unwritten page.
fn copy(file: &File) -> anyhow::Result<FileCopy> {
    let mut copy = [0; (PAGES - 1) * PAGE_BYTES + RECORD_BYTES];
    let count = file.read_at(&mut copy, 0)?;
    ensure!(count >= RECORD_BYTES, "it is truncated");
    Ok(copy)
}

fn record(file: &File, number: u32) -> io::Result<PageWords> {
    let mut bytes = [0; RECORD_BYTES];
    debug_assert!((number as usize) < PAGES);
    file.read_exact_at(&mut bytes, (number as usize * PAGE_BYTES) as u64)?;
    Ok(words(&bytes))
}

fn record_in(copy: &FileCopy, number: u32) -> PageWords {
    words(&copy[number as usize * PAGE_BYTES..][..RECORD_BYTES])
}

fn words(bytes: &[u8]) -> PageWords {
    let mut words = [0; VALUES_AT + VALUES_MAX];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    words
}
