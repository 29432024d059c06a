//! Ranges of guest addresses.

/// Size of a huge page. AMD's and Intel's manuals of the architecture, "2-MByte page translation".
pub(super) const HUGE_BYTES: usize = 2 * 1024 * 1024;

/// The gap in the guest's addresses that libkrun leaves for devices, up to 4 GiB (krun-arch,
/// `layout.rs`).
pub(super) const GAP: usize = 0xd000_0000;

/// A range of guest addresses in one mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemoryRange {
    /// The first guest address.
    pub(crate) guest: usize,
    /// The length.
    pub(crate) bytes: usize,
}

impl MemoryRange {
    /// Returns whether the range ends below the gap.
    pub(super) fn is_below_gap(&self) -> bool {
        let end = self.guest.checked_add(self.bytes);
        end.is_some_and(|end| end <= GAP)
    }
}
