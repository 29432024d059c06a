//! Where the guest's memory comes to lie in this process.
//!
//! The processor's second page tables, which lead from the guest's addresses to this process's, have entries for 4 KiB and
//! for [`HUGE_BYTES`]. KVM uses the large ones only where both addresses leave the same remainder, and where the host
//! has a huge page. Each entry costs an exit of the guest, and a booting kernel touches tens of megabytes.
//!
//! libkrun takes each part of the memory from mmap(2), at no address of its choice. The system then puts a mapping at
//! the end of the highest hole that has room for it (Linux, mm/mmap.c, `vm_unmapped_area`), and so can be led: a page
//! that nobody may touch ends the hole where the part is to end. A system that decides otherwise costs speed and nothing
//! else.

use std::ptr;

use rustix::io;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// What a large entry is for. AMD's and Intel's manuals of the architecture, "2-MByte page translation".
pub(super) const HUGE_BYTES: usize = 2 * 1024 * 1024;

const PAGE_BYTES: usize = 4096;

/// Room above the first part, where small mappings that are made before it go in place of its own.
const SMALL_BYTES: usize = 4 * 1024 * 1024;

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

/// Leads the next mappings of these sizes, so that large entries fit them. Whatever else is mapped in between is small.
pub(super) fn lead(parts: &[Part]) -> io::Result<()> {
    let room: usize = parts.iter().map(|part| part.bytes + HUGE_BYTES).sum();
    let mut end = end_of_hole(room + 2 * SMALL_BYTES)? - SMALL_BYTES;
    for part in parts {
        let start = fitting_start(end - PAGE_BYTES, part);
        refuse(start + part.bytes)?;
        end = start;
    }
    Ok(())
}

/// The highest start of a part that ends at `limit` or before.
fn fitting_start(limit: usize, part: &Part) -> usize {
    let highest = limit - part.bytes;
    highest - highest.wrapping_sub(part.guest) % HUGE_BYTES
}

/// Where a mapping of so many bytes ends that is put where the system wants.
pub(super) fn end_of_hole(bytes: usize) -> io::Result<usize> {
    // SAFETY: a new mapping that nobody else knows of; it overlaps nothing.
    let start = unsafe { mmap_anonymous(ptr::null_mut(), bytes, ProtFlags::empty(), reserved())? };
    // SAFETY: it is that mapping.
    unsafe { munmap(start, bytes)? };
    Ok(start.addr() + bytes)
}

/// A page at this address, which nobody may touch and which stays.
fn refuse(address: usize) -> io::Result<()> {
    keep_out(address, PAGE_BYTES).map(drop)
}

/// Keeps mappings out of a free place, which is at `address`, as long as it lives.
pub(super) fn keep_out(address: usize, bytes: usize) -> io::Result<*mut libc::c_void> {
    let wanted = ptr::without_provenance_mut(address);
    let flags = reserved() | MapFlags::FIXED_NOREPLACE;
    // SAFETY: a new mapping that nobody may read or write; with this flag it replaces none.
    unsafe { mmap_anonymous(wanted, bytes, ProtFlags::empty(), flags) }
}

/// Addresses without memory.
fn reserved() -> MapFlags {
    MapFlags::PRIVATE | MapFlags::NORESERVE
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

    /// What libkrun does afterwards, in a process in which others map things meanwhile: so a few tries.
    #[test]
    fn mappings_come_to_lie_where_large_entries_fit() {
        let fits = || {
            let parts = parts(64 << 20, Some(KERNEL));
            lead(&parts).unwrap();
            parts.iter().all(|part| {
                let access = ProtFlags::READ | ProtFlags::WRITE;
                // SAFETY: a new mapping that overlaps nothing.
                let start = unsafe {
                    mmap_anonymous(ptr::null_mut(), part.bytes, access, reserved()).unwrap()
                };
                start.addr() % HUGE_BYTES == part.guest % HUGE_BYTES
            })
        };
        assert!((0..5).any(|_| fits()));
    }
}
