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
        let options = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(options)
            .open(path);
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
    page(file, NET).unwrap_or_default()
}

fn read_from(file: &File) -> anyhow::Result<Option<Snapshot>> {
    if !lock::is_locked(file)? {
        return Ok(None);
    }
    let sandbox = page(file, SUPERVISOR)?.context("the page of the supervisor is empty")?;
    if !is_of_this_boot(&sandbox) {
        return Ok(None);
    }
    // What msb-net wrote is not what the sandbox's life hangs on.
    let net = read_net(file);
    Ok(Some(Snapshot { sandbox, net }))
}

fn is_of_this_boot(values: &Values<Field>) -> bool {
    let written = [Field::BootIdHigh, Field::BootIdLow].map(|field| values.get(field));
    match (clock::boot_id(), written) {
        (Some([high, low]), [Some(a), Some(b)]) => (high, low) == (a, b),
        _ => true,
    }
}

/// The values of a page; `None` for one that nobody has written yet.
fn page<S: Slot>(file: &File, number: u32) -> anyhow::Result<Option<Values<S>>> {
    for _ in 0..ATTEMPTS {
        let one = record(file, number)?;
        if one[..2] == [0, 0] {
            return Ok(None);
        }
        ensure!(one[..2] == title(number), "it has another form or version");
        let two = record(file, number)?;
        // A copy need not be made in order. But the second began after the first was complete: when both are the same,
        // with the same even sequence, no write lies in between.
        if one == two && one[SEQUENCE_AT] % 2 == 0 {
            let mut values = [0; VALUES_MAX];
            values.copy_from_slice(&one[VALUES_AT..]);
            return Ok(Some(Values::from_parts(one[PRESENT_AT], values)));
        }
        std::thread::yield_now();
    }
    anyhow::bail!("it is being written all the time")
}

fn record(file: &File, number: u32) -> io::Result<[u64; VALUES_AT + VALUES_MAX]> {
    let mut bytes = [0; RECORD_BYTES];
    debug_assert!((number as usize) < PAGES);
    file.read_exact_at(&mut bytes, (number as usize * PAGE_BYTES) as u64)?;
    let mut words = [0; VALUES_AT + VALUES_MAX];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    Ok(words)
}
