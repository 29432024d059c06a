//! Free memory of the guest, before its state is saved.
//!
//! The kernel leaves free pages as they were: those of its own compressed image, of the initramfs
//! and of the page cache. They would be saved with the boot state, and be resident in each VM that
//! starts from it.

use std::fs;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};

/// Memory that is left alone besides what the kernel reserves, in bytes.
const RESERVE_BYTES: u64 = 64 << 20;

/// Most memory that is cleared, in bytes. A kernel that boots uses little more, and memory that was
/// never used is zero already.
const CLEARED_BYTES_MAX: u64 = 1 << 30;

/// Clears free memory: a child process allocates it, which makes the kernel write zeros, and ends.
/// Should memory run short, the kernel kills the child, and less is cleared.
pub(crate) fn clear() {
    let bytes = free_bytes().saturating_sub(RESERVE_BYTES).min(CLEARED_BYTES_MAX) as usize;
    if bytes == 0 {
        return;
    }
    // SAFETY: the agent has no other thread yet, so that the child may use everything that it has.
    match unsafe { libc::fork() } {
        0 => {
            let _ = fs::write("/proc/self/oom_score_adj", "1000");
            allocate(bytes);
            // SAFETY: ends the child at once, without destructors or handlers of the agent.
            unsafe { libc::_exit(0) }
        }
        child if child > 0 => {
            // SAFETY: waits for the child from above; a null pointer asks for no status.
            unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
        }
        _ => {}
    }
}

/// Allocates memory, all of it with zeros. Huge pages keep this short, also under emulation.
fn allocate(bytes: usize) {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new private mapping at an address that the kernel chooses, which overlaps no other
    // memory.
    let Ok(memory) = (unsafe { mmap_anonymous(std::ptr::null_mut(), bytes, access, flags) }) else {
        return;
    };
    for advice in [Advice::LinuxHugepage, Advice::LinuxPopulateWrite] {
        // SAFETY: the whole range is the mapping from above, which nothing else refers to; neither
        // advice changes contents.
        let _ = unsafe { madvise(memory, bytes, advice) };
    }
}

/// Returns the memory that can be allocated, in bytes (proc_meminfo(5)): what is free, without the
/// kernel's reserves, which `MemAvailable` leaves out.
fn free_bytes() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().trim_end_matches(" kB").parse::<u64>().ok()
    };
    let free = kib("MemFree:").unwrap_or(0).min(kib("MemAvailable:").unwrap_or(0));
    free.saturating_mul(1024)
}
