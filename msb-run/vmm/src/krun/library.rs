//! The guest's kernel in a library that this process loads (libkrunfw).

use std::ffi::{c_char, c_void};
use std::mem::ManuallyDrop;
use std::path::Path;
use std::ptr;

use anyhow::{Context, ensure};
use krun_vmm::vmm_config::kernel_bundle::KernelBundle;
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use rustix::io;
use rustix::mm::{
    Advice, MapFlags, MremapFlags, ProtFlags, madvise, mmap_anonymous, mremap_fixed, munmap,
};

use super::memory_range::{HUGE_BYTES, MemoryRange};

/// The function of the library that describes the kernel.
const SYMBOL: &[u8] = b"krunfw_get_kernel\0";

const PAGE_BYTES: usize = 4096;

/// Type of the symbol. It sets the kernel's guest address, its entry point and its size, and
/// returns its address in this process.
type GetKernel = unsafe extern "C" fn(*mut u64, *mut u64, *mut usize) -> *mut c_char;

/// The location of a loaded kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LoadedKernel {
    here: *mut c_void,
    pub(super) guest: MemoryRange,
    entry: u64,
}

impl LoadedKernel {
    /// Returns the location in libkrun's type.
    pub(super) fn bundle(&self) -> KernelBundle {
        KernelBundle {
            host_addr: self.here.addr() as u64,
            guest_addr: self.guest.guest as u64,
            entry_addr: self.entry,
            size: self.guest.bytes,
        }
    }
}

/// Loads the kernel permanently, at an address that allows huge pages.
///
/// The guest writes to nearly all of its kernel while it boots. From file-backed pages it would
/// read and then copy each page, one by one.
pub(super) fn load(path: &Path) -> anyhow::Result<LoadedKernel> {
    let mut library = open(path)?;
    let mut kernel = find(&library, path)?;
    let off = kernel.here.addr().wrapping_sub(kernel.guest.guest) % HUGE_BYTES;
    if off > 0 {
        drop(library);
        library = reopen_lower(path, kernel.guest.bytes, off)?;
        kernel = find(&library, path)?;
    }
    let _for_good = ManuallyDrop::new(library);
    // Without it the kernel is the same, but slower.
    let _ = move_to_anonymous_memory(&kernel);
    Ok(kernel)
}

/// Loads the library again `by` bytes lower. The loader takes the address that the system gives,
/// which is the end of the highest hole with room (Linux, mm/mmap.c, `vm_unmapped_area`); a
/// temporary mapping occupies that end. A system with another policy costs speed and nothing else.
fn reopen_lower(path: &Path, bytes: usize, by: usize) -> anyhow::Result<Library> {
    let room = bytes + HUGE_BYTES;
    let nothing = ProtFlags::empty();
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a new mapping that no other code refers to, of which the end is kept; it overlaps
    // nothing.
    let kept = unsafe {
        let start = mmap_anonymous(ptr::null_mut(), room, nothing, flags)?;
        munmap(start, room - by)?;
        start.wrapping_byte_add(room - by)
    };
    let library = open(path);
    // SAFETY: it is what was kept.
    unsafe { munmap(kept, by)? };
    library
}

fn open(path: &Path) -> anyhow::Result<Library> {
    let shown = path.display();
    // SAFETY: the user has chosen this library, and its initial functions (it has none) run as we
    // do.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }
        .with_context(|| format!("cannot load '{shown}'"))?;
    kernel_symbol(&library).with_context(|| format!("'{shown}' contains no kernel"))?;
    Ok(library)
}

fn kernel_symbol(library: &Library) -> Result<GetKernel, libloading::Error> {
    // SAFETY: that is what the symbol is, as libkrun declares it.
    unsafe { library.get::<GetKernel>(SYMBOL).map(|symbol| *symbol) }
}

fn find(library: &Library, path: &Path) -> anyhow::Result<LoadedKernel> {
    let (mut guest, mut entry, mut bytes) = (0, 0, 0);
    // SAFETY: it takes three places to write to.
    let here = unsafe { kernel_symbol(library)?(&raw mut guest, &raw mut entry, &raw mut bytes) };
    let guest = usize::try_from(guest)?;
    let part = MemoryRange { guest, bytes };
    ensure!(
        part.is_below_gap() && bytes > 0,
        "the kernel in '{}' does not fit into a guest",
        path.display()
    );
    Ok(LoadedKernel { here: here.cast(), guest: part, entry })
}

/// Replaces the file-backed pages with anonymous memory of the same content.
fn move_to_anonymous_memory(kernel: &LoadedKernel) -> io::Result<()> {
    let bytes = kernel.guest.bytes;
    if !(kernel.here.addr() | bytes).is_multiple_of(PAGE_BYTES) {
        // Other data on its last page would be lost.
        return Err(io::Errno::INVAL);
    }
    let room = bytes + HUGE_BYTES;
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping that no other code refers to; it overlaps nothing.
    let start = unsafe { mmap_anonymous(ptr::null_mut(), room, access, flags)? };
    // Page table entries are moved without a copy where both addresses have the same remainder.
    let skipped = kernel.here.addr().wrapping_sub(start.addr()) % HUGE_BYTES;
    let copy = start.wrapping_byte_add(skipped);
    // SAFETY: all within that mapping, which is readable and writable, as the kernel's bytes are
    // readable. What moves is whole pages, and replaces pages of a library to which only libkrun
    // refers later. What is left of the mapping on either side is given back.
    unsafe {
        // A host without huge pages has small ones.
        let _ = madvise(copy, bytes, Advice::LinuxHugepage);
        ptr::copy_nonoverlapping(kernel.here.cast::<u8>(), copy.cast::<u8>(), bytes);
        mremap_fixed(copy, bytes, bytes, MremapFlags::MAYMOVE, kernel.here)?;
        if skipped > 0 {
            munmap(start, skipped)?;
        }
        munmap(copy.wrapping_byte_add(bytes), room - skipped - bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_none_and_one_without_a_kernel_are_told_apart() {
        let refusal = |path: &str| format!("{:#}", load(Path::new(path)).unwrap_err());
        assert!(refusal("/nowhere/libkrunfw.so.5").starts_with("cannot load"));
        let other = refusal("libc.so.6");
        assert!(other.starts_with("'libc.so.6' contains no kernel"), "{other}");
    }

    /// As large as a kernel, with a size that is no multiple of a huge page.
    #[test]
    fn a_kernel_of_a_file_is_the_same_afterwards_and_is_memory_that_can_be_written() {
        const BYTES: usize = 5 * 1024 * 1024 + 3 * 4096;
        let content: Vec<u8> = (0..BYTES).map(|at| (at / 7 % 251) as u8).collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &content).unwrap();
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping that overlaps nothing.
        let here = unsafe {
            let opened = std::fs::File::options().read(true).open(file.path()).unwrap();
            rustix::mm::mmap(ptr::null_mut(), BYTES, access, MapFlags::PRIVATE, &opened, 0).unwrap()
        };
        let guest = MemoryRange { guest: 0, bytes: BYTES };
        let kernel = |guest| LoadedKernel { here, guest, entry: 0 };
        let short = MemoryRange { guest: 0, bytes: 1 };
        assert!(move_to_anonymous_memory(&kernel(short)).is_err());
        move_to_anonymous_memory(&kernel(guest)).unwrap();
        std::fs::write(file.path(), b"").unwrap();
        // SAFETY: it is that mapping, and no other code uses it. Of the file, which is empty now,
        // nothing could be read.
        let found = unsafe { std::slice::from_raw_parts_mut(here.cast::<u8>(), BYTES) };
        assert_eq!(found, content);
        found.fill(1);
    }
}
