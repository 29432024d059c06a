//! A page: the writer's side of the sequence lock, in memory and in a file.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::{
    FieldSlot, PAGE_BYTES, PRESENT_AT, SEQUENCE_AT, VALUES_AT, VALUES_MAX, Values, WORDS, title,
};

/// A mapped page of a file. It has one writer, in one process.
#[derive(Debug)]
pub(super) struct Page {
    start: NonNull<AtomicU64>,
}

// SAFETY: the mapping belongs to this value alone, is not tied to a thread, and all access goes
// through atomics.
unsafe impl Send for Page {}

impl Page {
    /// Maps a page of a file. The file must be long enough, and no other process may be able to
    /// shrink it.
    pub(super) fn map(file: &File, page: u32) -> io::Result<Page> {
        let at = page as usize * PAGE_BYTES;
        if file.metadata()?.len() < (at + PAGE_BYTES) as u64 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // SAFETY: a new mapping is asked for at a place of the kernel's choice; the descriptor is
        // open for the call, the offset is a multiple of the page size, and the answer is checked
        // before use.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGE_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                at as libc::off_t,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Page { start })
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is PAGE_BYTES long, aligned to a page, and lives as long as `self`;
        // its contents are plain bytes that are only accessed as atomics in this process.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), WORDS) }
    }

    /// Writes the page's header, before any reader can see it.
    pub(super) fn write_header(&self, page: u32) {
        for (word, value) in self.words().iter().zip(title(page)) {
            word.store(value.to_le(), Ordering::Relaxed);
        }
    }

    /// Publishes values under the sequence lock. A reader gets the old or the new values, never a
    /// mixture.
    pub(super) fn publish<S: FieldSlot>(&self, values: &Values<S>) {
        let words = self.words();
        let sequence = &words[SEQUENCE_AT];
        // A writer that was killed during a write leaves an odd sequence.
        let before = u64::from_le(sequence.load(Ordering::Relaxed)) & !1;
        sequence.store(before.wrapping_add(1).to_le(), Ordering::Relaxed);
        fence(Ordering::Release);
        words[PRESENT_AT].store(values.present.to_le(), Ordering::Relaxed);
        let places = &words[VALUES_AT..][..S::ALL.len()];
        for (word, value) in places.iter().zip(&values.values) {
            word.store(value.to_le(), Ordering::Relaxed);
        }
        sequence.store(before.wrapping_add(2).to_le(), Ordering::Release);
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` with this length, and no borrow of it remains.
        unsafe { libc::munmap(self.start.as_ptr().cast(), PAGE_BYTES) };
    }
}

/// Writes the first page of a file under the sequence lock, after `sequence`, the last one. A
/// reader gets the old or the new values.
pub(super) fn write_first<S: FieldSlot>(
    file: &File,
    page: u32,
    sequence: &mut u64,
    values: &Values<S>,
) -> io::Result<()> {
    let at = |word: usize| word as u64 * 8;
    let mut words = [0; VALUES_AT - PRESENT_AT + VALUES_MAX];
    words[0] = values.present;
    words[VALUES_AT - PRESENT_AT..].copy_from_slice(&values.values);
    file.write_all_at(&bytes(&title(page)), 0)?;
    file.write_all_at(&bytes(&[*sequence + 1]), at(SEQUENCE_AT))?;
    file.write_all_at(&bytes(&words), at(PRESENT_AT))?;
    *sequence += 2;
    file.write_all_at(&bytes(&[*sequence]), at(SEQUENCE_AT))
}

fn bytes(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
