//! The reader's side: the checked door.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use super::{
    Field, NET, NetField, PAGE_BYTES, PAGES, PRESENT_AT, SEQUENCE_AT, SUPERVISOR, Slot, VALUES_AT,
    VALUES_MAX, Values, clock, title,
};
use crate::state::lock;

/// Times that a page is read before it is said to be written without end. A write takes less than a microsecond.
const ATTEMPTS: u32 = 100;
/// Bytes of a page that say something.
const RECORD_BYTES: usize = (VALUES_AT + VALUES_MAX) * 8;

/// What a sample file said at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// From the supervisor.
    pub sandbox: Values<Field>,
    /// From msb-net, if the sandbox has it.
    pub net: Option<Values<NetField>>,
}

/// A sample file that is kept open, to be read again and again. One that a later life of the sandbox makes is another file:
/// then nobody keeps this one any more.
#[derive(Debug)]
pub struct Reader {
    file: File,
    path: PathBuf,
}

impl Reader {
    /// Opens the file. `None` when there is none.
    pub fn open(path: &Path) -> anyhow::Result<Option<Reader>> {
        let open = |more| {
            let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY | more;
            let mut options = OpenOptions::new();
            options.read(true).custom_flags(flags).open(path)
        };
        // Its file system need not note each time that it is read. That is for its owner to say: others are refused.
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
        ensure!(regular, "'{}' is no regular file", path.display());
        let path = path.to_owned();
        Ok(Some(Reader { file, path }))
    }

    /// What it says now. `None` when nobody keeps it: that life of the sandbox is over. A file that is not what it should
    /// be is an error that names it.
    pub fn read(&self) -> anyhow::Result<Option<Snapshot>> {
        read_from(&self.file)
            .with_context(|| format!("cannot read the samples in '{}'", self.path.display()))
    }
}

/// Reads the sample file of a sandbox once: [`Reader::read`]. `None` also when there is no file.
pub fn read(path: &Path) -> anyhow::Result<Option<Snapshot>> {
    match Reader::open(path)? {
        Some(reader) => reader.read(),
        None => Ok(None),
    }
}

/// What msb-net counts in a file that was given to it; `None` before it has begun, and when it writes nonsense.
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
    // What msb-net wrote is not what the sandbox's life hangs on.
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

/// The values of a page; `None` for one that nobody has written yet. Looks first at the copies, if there are any.
fn page<S: Slot>(
    file: &File,
    copies: Option<&[Copy; 2]>,
    number: u32,
) -> anyhow::Result<Option<Values<S>>> {
    let mut copied = copies.map(|copies| copies.each_ref().map(|copy| record_in(copy, number)));
    for _ in 0..ATTEMPTS {
        // A copy need not be made in order. But the second began after the first was complete: when both are the same,
        // with the same even sequence, no write lies in between.
        let [one, two] = match copied.take() {
            Some(records) => records,
            None => [record(file, number)?, record(file, number)?],
        };
        if one[..2] == [0, 0] {
            return Ok(None);
        }
        ensure!(one[..2] == title(number), "it has another form or version");
        if one == two && one[SEQUENCE_AT] % 2 == 0 {
            let mut values = [0; VALUES_MAX];
            values.copy_from_slice(&one[VALUES_AT..]);
            return Ok(Some(Values::from_parts(one[PRESENT_AT], values)));
        }
        std::thread::yield_now();
    }
    anyhow::bail!("it is being written all the time")
}

/// What a page says.
type Record = [u64; VALUES_AT + VALUES_MAX];

/// The file up to where its last page says no more.
type Copy = [u8; (PAGES - 1) * PAGE_BYTES + RECORD_BYTES];

/// Both pages in one call: of many sandboxes, the calls are what a reader's time goes into. What the file does not have is
/// zero, as in a page that nobody has written.
fn copy(file: &File) -> anyhow::Result<Copy> {
    let mut copy = [0; (PAGES - 1) * PAGE_BYTES + RECORD_BYTES];
    let count = file.read_at(&mut copy, 0)?;
    ensure!(count >= RECORD_BYTES, "it is cut off");
    Ok(copy)
}

fn record(file: &File, number: u32) -> io::Result<Record> {
    let mut bytes = [0; RECORD_BYTES];
    debug_assert!((number as usize) < PAGES);
    file.read_exact_at(&mut bytes, (number as usize * PAGE_BYTES) as u64)?;
    Ok(words(&bytes))
}

fn record_in(copy: &Copy, number: u32) -> Record {
    words(&copy[number as usize * PAGE_BYTES..][..RECORD_BYTES])
}

fn words(bytes: &[u8]) -> Record {
    let mut words = [0; VALUES_AT + VALUES_MAX];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    words
}
