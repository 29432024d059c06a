//! Where the guest's memory comes to lie in this process.
//!
//! The processor's second page tables, which lead from the guest's addresses to this process's, have entries for 4 KiB and
//! for [`HUGE_BYTES`]. KVM uses the large ones only where both addresses leave the same remainder, and where the host
//! has a huge page. Each entry costs an exit of the guest, and a booting kernel touches tens of megabytes.
//!
//! libkrun takes each part of the memory from mmap(2), at no address of its choice, and has no say in what the system
//! makes of that. So this program has a [`mmap`] of its own, which knows the guest's parts and passes everything else on.

use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::{Mutex, PoisonError};

use libc::off_t;
use rustix::io;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

/// What a large entry is for. AMD's and Intel's manuals of the architecture, "2-MByte page translation".
pub(super) const HUGE_BYTES: usize = 2 * 1024 * 1024;

/// How the guest's memory is asked for (vm-memory, `MmapRegion`).
const ACCESS: c_int = libc::PROT_READ | libc::PROT_WRITE;
const FLAGS: c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

/// Lengths of the guest's parts that are still to be mapped, and the addresses that are kept free for them.
static PLACES: Mutex<Vec<(usize, usize)>> = Mutex::new(Vec::new());

/// Where libkrun leaves a gap in the guest's addresses, for devices: from here up to 4 GiB (krun-arch, `layout.rs`).
const GAP: usize = 0xd000_0000;
const GAP_END: usize = 1 << 32;

/// Consecutive addresses of the guest, of one mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// The first address in the guest.
    pub(crate) guest: usize,
    /// The length.
    pub(crate) bytes: usize,
}

impl Part {
    /// Whether all of it has an address, in the guest's first gigabytes.
    pub(super) fn is_below_gap(&self) -> bool {
        let end = self.guest.checked_add(self.bytes);
        end.is_some_and(|end| end <= GAP)
    }
}

/// What libkrun maps for a guest, in this order: all around a kernel that is mapped already (krun-arch,
/// `arch_memory_regions`).
pub(super) fn parts(memory_bytes: usize, kernel: Option<Part>) -> Vec<Part> {
    let mut parts = Vec::new();
    let start = kernel.map_or(0, |kernel| {
        parts.push(Part {
            guest: 0,
            bytes: kernel.guest,
        });
        kernel.guest + kernel.bytes
    });
    let above = memory_bytes.saturating_sub(GAP);
    let bytes = if above == 0 {
        memory_bytes
    } else {
        GAP - start
    };
    parts.push(Part {
        guest: start,
        bytes,
    });
    if above > 0 {
        parts.push(Part {
            guest: GAP_END,
            bytes: above,
        });
    }
    parts
}

/// Keeps places free for these parts, which large entries fit: the next mappings of such lengths go there.
pub(super) fn prepare(parts: &[Part]) -> io::Result<()> {
    for part in parts {
        let room = part.bytes + HUGE_BYTES;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping that nobody else knows of; it overlaps nothing.
        let start =
            unsafe { mmap_anonymous(ptr::null_mut(), room, ProtFlags::empty(), flags)? }.addr();
        let fitting = start + part.guest.wrapping_sub(start) % HUGE_BYTES;
        let mut places = PLACES.lock().unwrap_or_else(PoisonError::into_inner);
        places.push((part.bytes, fitting));
    }
    Ok(())
}

/// The place that is kept for a mapping of this length, which is then free for others no more.
fn take(bytes: usize) -> Option<usize> {
    let mut places = PLACES.lock().unwrap_or_else(PoisonError::into_inner);
    let index = places.iter().position(|(length, _)| *length == bytes)?;
    Some(places.remove(index).1)
}

/// mmap(2), in place of the C library's, for all of this program. A part of the guest's memory goes where it fits, with
/// huge pages where the host gives them to who asks.
///
/// # Safety
/// As that of mmap(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn mmap(
    address: *mut c_void,
    bytes: usize,
    access: c_int,
    flags: c_int,
    fd: c_int,
    offset: off_t,
) -> *mut c_void {
    let map = |address: *mut c_void, flags: c_int| {
        // SAFETY: who calls vouches for the arguments; where `flags` is ours, the place is.
        let answer =
            unsafe { libc::syscall(libc::SYS_mmap, address, bytes, access, flags, fd, offset) };
        // An error is -1 in both.
        ptr::with_exposed_provenance_mut::<c_void>(answer.cast_unsigned() as usize)
    };
    let is_guest = address.is_null() && access == ACCESS && flags == FLAGS;
    let Some(place) = is_guest.then(|| take(bytes)).flatten() else {
        return map(address, flags);
    };
    let start = map(ptr::without_provenance_mut(place), flags | libc::MAP_FIXED);
    if start != libc::MAP_FAILED {
        // SAFETY: it is the new mapping. A host without huge pages has small ones.
        unsafe { libc::madvise(start, bytes, libc::MADV_HUGEPAGE) };
    }
    start
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNEL: Part = Part {
        guest: 16 << 20,
        bytes: 0x145_0000,
    };

    #[test]
    fn a_guests_memory_is_around_its_kernel_and_above_the_gap() {
        let part = |guest, bytes| Part { guest, bytes };
        let end = KERNEL.guest + KERNEL.bytes;
        assert_eq!(
            parts(512 << 20, Some(KERNEL)),
            [part(0, KERNEL.guest), part(end, 512 << 20)]
        );
        assert_eq!(
            parts(GAP + (1 << 30), Some(KERNEL)),
            [
                part(0, KERNEL.guest),
                part(end, GAP - end),
                part(GAP_END, 1 << 30)
            ]
        );
        assert_eq!(parts(GAP, None), [part(0, GAP)]);
        assert_eq!(parts(GAP + 4096, None), [part(0, GAP), part(GAP_END, 4096)]);
    }

    #[test]
    fn mappings_of_the_guest_come_to_lie_where_large_entries_fit() {
        let parts = parts(64 << 20, Some(KERNEL));
        prepare(&parts).unwrap();
        let mapped = |bytes| {
            // SAFETY: a new mapping that overlaps nothing.
            let start = unsafe { libc::mmap(ptr::null_mut(), bytes, ACCESS, FLAGS, -1, 0) };
            assert_ne!(start, libc::MAP_FAILED);
            // SAFETY: it is that mapping, which can be written to up to its last byte.
            unsafe { start.cast::<u8>().add(bytes - 1).write(1) };
            start.addr()
        };
        for part in &parts {
            // Others go where the system wants.
            mapped(part.bytes - 4096);
            assert_eq!(mapped(part.bytes) % HUGE_BYTES, part.guest % HUGE_BYTES);
        }
        assert!(PLACES.lock().unwrap().is_empty());
    }

    #[test]
    fn what_the_system_refuses_is_refused_here() {
        // SAFETY: a length of nothing is an error.
        let start = unsafe { libc::mmap(ptr::null_mut(), 0, ACCESS, FLAGS, -1, 0) };
        assert_eq!(start, libc::MAP_FAILED);
        let error = std::io::Error::last_os_error();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    }
}
