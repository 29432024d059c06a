//! Placement of the guest's memory in this process's address space.
//!
//! The processor's nested page tables map guest addresses to addresses of this process, with
//! entries for 4 KiB and for [`HUGE_BYTES`]. KVM uses the large ones only where both addresses have
//! the same remainder, and where the host has a huge page. Each entry costs an exit of the guest,
//! and a booting kernel touches tens of megabytes.
//!
//! libkrun maps each range of the memory with mmap(2), at an address that the kernel chooses. This
//! program therefore defines its own [`mmap`], which recognizes the guest's ranges and passes all
//! other calls on. It holds for the whole process, so it is a feature of the package, `huge-pages`,
//! which is on by default: a booting guest exits 2,400 times for its memory instead of 15,700 times.

use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::{Mutex, PoisonError};

use libc::off_t;
use rustix::io;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

use super::memory_range::{GAP, HUGE_BYTES, MemoryRange};

/// The end of the gap for devices.
const GAP_END: usize = 1 << 32;

/// Arguments with which the guest's memory is mapped (vm-memory, `MmapRegion`).
const ACCESS: c_int = libc::PROT_READ | libc::PROT_WRITE;
const FLAGS: c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

/// Lengths of the guest's ranges that are still to be mapped, with the addresses reserved for them.
static RESERVED: Mutex<Vec<(usize, usize)>> = Mutex::new(Vec::new());

/// Returns the ranges that libkrun maps for a guest, in this order: the memory around a kernel that
/// is mapped already (krun-arch, `arch_memory_regions`).
pub(super) fn memory_ranges(memory_bytes: usize, kernel: Option<MemoryRange>) -> Vec<MemoryRange> {
    let mut parts = Vec::new();
    let start = kernel.map_or(0, |kernel| {
        parts.push(MemoryRange { guest: 0, bytes: kernel.guest });
        kernel.guest + kernel.bytes
    });
    let above = memory_bytes.saturating_sub(GAP);
    let bytes = if above == 0 { memory_bytes } else { GAP - start };
    parts.push(MemoryRange { guest: start, bytes });
    if above > 0 {
        parts.push(MemoryRange { guest: GAP_END, bytes: above });
    }
    parts
}

/// Reserves addresses that allow huge pages for these ranges: the next mappings of their lengths
/// are placed there.
pub(super) fn reserve(parts: &[MemoryRange]) -> io::Result<()> {
    for part in parts {
        let room = part.bytes + HUGE_BYTES;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping that no other code refers to; it overlaps nothing.
        let start =
            unsafe { mmap_anonymous(ptr::null_mut(), room, ProtFlags::empty(), flags)? }.addr();
        let fitting = start + part.guest.wrapping_sub(start) % HUGE_BYTES;
        let mut places = RESERVED.lock().unwrap_or_else(PoisonError::into_inner);
        places.push((part.bytes, fitting));
    }
    Ok(())
}

/// Takes the address that is reserved for a mapping of this length.
fn take_reserved(bytes: usize) -> Option<usize> {
    let mut places = RESERVED.lock().unwrap_or_else(PoisonError::into_inner);
    let index = places.iter().position(|(length, _)| *length == bytes)?;
    Some(places.remove(index).1)
}

/// Replaces the C library's mmap(2) in this program. Places the guest's memory at a reserved
/// address and requests huge pages for it.
///
/// # Safety
/// As for mmap(2).
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
        // SAFETY: the caller guarantees the arguments; with `flags` from here, the address is
        // reserved.
        let answer =
            unsafe { libc::syscall(libc::SYS_mmap, address, bytes, access, flags, fd, offset) };
        // An error is -1 in both.
        ptr::with_exposed_provenance_mut::<c_void>(answer.cast_unsigned() as usize)
    };
    let is_guest = address.is_null() && access == ACCESS && flags == FLAGS;
    let Some(place) = is_guest.then(|| take_reserved(bytes)).flatten() else {
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

    const KERNEL: MemoryRange = MemoryRange { guest: 16 << 20, bytes: 0x145_0000 };

    #[test]
    fn a_guests_memory_is_around_its_kernel_and_above_the_gap() {
        let part = |guest, bytes| MemoryRange { guest, bytes };
        let end = KERNEL.guest + KERNEL.bytes;
        assert_eq!(
            memory_ranges(512 << 20, Some(KERNEL)),
            [part(0, KERNEL.guest), part(end, 512 << 20)]
        );
        assert_eq!(
            memory_ranges(GAP + (1 << 30), Some(KERNEL)),
            [part(0, KERNEL.guest), part(end, GAP - end), part(GAP_END, 1 << 30)]
        );
        assert_eq!(memory_ranges(GAP, None), [part(0, GAP)]);
        assert_eq!(memory_ranges(GAP + 4096, None), [part(0, GAP), part(GAP_END, 4096)]);
    }

    #[test]
    fn mappings_of_the_guest_come_to_lie_where_large_entries_fit() {
        let parts = memory_ranges(64 << 20, Some(KERNEL));
        reserve(&parts).unwrap();
        let mapped = |bytes| {
            // SAFETY: a new mapping that overlaps nothing.
            let start = unsafe { libc::mmap(ptr::null_mut(), bytes, ACCESS, FLAGS, -1, 0) };
            assert_ne!(start, libc::MAP_FAILED);
            // SAFETY: it is that mapping, which can be written to up to its last byte.
            unsafe { start.cast::<u8>().add(bytes - 1).write(1) };
            start.addr()
        };
        for part in &parts {
            // Other mappings go where the kernel chooses.
            mapped(part.bytes - 4096);
            assert_eq!(mapped(part.bytes) % HUGE_BYTES, part.guest % HUGE_BYTES);
        }
        assert!(RESERVED.lock().unwrap().is_empty());
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
