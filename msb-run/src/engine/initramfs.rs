//! The initramfs (initial RAM disk): the agent as `/init`, and below `/modules` the kernel modules
//! that the guest needs for its disks and its connection to the host. `/modules/load` lists them in
//! load order, `/modules/held` those whose devices wait for the boot request, and `/modules/later`
//! those that are loaded when the guest is up.
//!
//! An initramfs is made once for each kernel, agent and set of modules, and is cached in the state
//! directory under a name derived from all three. The format is "newc" of cpio (kernel:
//! Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::HashMap;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use libmsb::cli::error::Failure;
use libmsb::state::lock::Lock;
use libmsb::state::{layout, write};
use sha2::{Digest, Sha256};

use super::kernel::GuestKernel;
use super::kernel_module;

/// Version of the contents that this code makes.
const VERSION: u32 = 5;

/// The checksum that [`CHECKSUM_USERS`] request from the kernel by the name of the algorithm, so that
/// modules.dep(5) does not list its module. Some kernels have it built in, as Debian's for clouds;
/// that of Debian for other machines has not.
const CHECKSUM: &str = "crc32c_generic";
const CHECKSUM_USERS: [&str; 2] = ["libcrc32c", "ext4"];

const MODE_DIRECTORY: u32 = libc::S_IFDIR | 0o755;
const MODE_PROGRAM: u32 = libc::S_IFREG | 0o755;
const MODE_FILE: u32 = libc::S_IFREG | 0o644;
const MODE_CONSOLE: u32 = libc::S_IFCHR | 0o600;

/// Kernel modules of an initramfs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct InitramfsModules<'a> {
    /// Modules that every guest needs.
    pub(crate) needed: &'a [&'a str],
    /// Modules that every guest needs and whose devices get no driver before the boot request. They
    /// include those of `later` that the kernel has. With them the guest can be recorded.
    pub(crate) held: Option<&'a [&'a str]>,
    /// Modules that are loaded when the guest is up, if the kernel has them.
    pub(crate) later: &'a [&'a str],
}

/// Returns the initramfs for a kernel with these modules. A missing one is made after the kernel
/// has passed a check.
pub(crate) fn find_or_make(
    directory: &Path,
    kernel: &GuestKernel,
    agent: &Path,
    modules: InitramfsModules<'_>,
    check: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<PathBuf> {
    let path = directory.join(format!("{}.cpio", cache_key(kernel, agent, modules)?));
    if path.is_file() {
        return Ok(path);
    }
    write::create_dir(directory)?;
    // Of many simultaneous starts, one makes it. A second one would be another file, and VMs may
    // open only the file that existed when they started.
    let _maker = Lock::exclusive(&directory.join(layout::LOCK))?;
    if path.is_file() {
        return Ok(path);
    }
    check(&kernel.image)?;
    let contents = build(kernel, agent, modules)?;
    write::replace(&path, &contents)?;
    Ok(path)
}

/// Returns the cache key of the contents. Files are identified by size and time: they are replaced,
/// never changed.
fn cache_key(
    kernel: &GuestKernel,
    agent: &Path,
    modules: InitramfsModules<'_>,
) -> anyhow::Result<String> {
    let mut hash = Sha256::new();
    hash.update(VERSION.to_le_bytes());
    let dependencies = kernel.modules.as_ref().map(|directory| directory.join("modules.dep"));
    for file in
        [Some(kernel.image.as_path()), Some(agent), dependencies.as_deref()].into_iter().flatten()
    {
        let meta =
            std::fs::metadata(file).with_context(|| format!("cannot stat '{}'", file.display()))?;
        hash.update(file.as_os_str().as_bytes());
        for number in [meta.size() as i64, meta.mtime(), meta.mtime_nsec(), meta.ino() as i64] {
            hash.update(number.to_le_bytes());
        }
    }
    let held = modules.held.map(|held| [&["held"], held].concat());
    for list in [modules.needed, held.as_deref().unwrap_or_default(), modules.later] {
        list.iter().for_each(|name| hash.update(format!("\0{name}")));
        hash.update("\n");
    }
    Ok(hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect())
}

fn build(
    kernel: &GuestKernel,
    agent: &Path,
    modules: InitramfsModules<'_>,
) -> anyhow::Result<Vec<u8>> {
    let mut archive = CpioArchive::default();
    let agent =
        std::fs::read(agent).with_context(|| format!("cannot read '{}'", agent.display()))?;
    archive.add("dev", MODE_DIRECTORY, &[]);
    // The kernel opens it for PID 1 before any file system is mounted.
    archive.add_device("dev/console", MODE_CONSOLE, (5, 1));
    for directory in ["proc", "sys", "modules"] {
        archive.add(directory, MODE_DIRECTORY, &[]);
    }
    archive.add("init", MODE_PROGRAM, &agent);
    if let Some(directory) = &kernel.modules {
        add_modules(&mut archive, directory, modules)?;
    }
    Ok(archive.finish())
}

fn add_modules(
    archive: &mut CpioArchive,
    directory: &Path,
    modules: InitramfsModules<'_>,
) -> anyhow::Result<()> {
    let (text, built_in) = read_module_lists(directory)?;
    let needed = load_order(&text, &built_in, modules.needed, directory)?;
    let mut later: Vec<&str> = modules
        .later
        .iter()
        .filter_map(|name| load_order(&text, &built_in, &[*name], directory).ok())
        .flatten()
        .collect();
    later.retain(|file| !needed.contains(file));
    add_module_files(archive, directory, "load", &needed)?;
    let Some(held) = modules.held else {
        return add_module_files(archive, directory, "later", &later);
    };
    let mut held = load_order(&text, &built_in, held, directory)?;
    held.extend(later);
    let mut seen = needed;
    held.retain(|file| {
        !seen.contains(file) && {
            seen.push(file);
            true
        }
    });
    add_module_files(archive, directory, "held", &held)
}

/// Adds modules and the list of their names in load order.
fn add_module_files(
    archive: &mut CpioArchive,
    directory: &Path,
    list: &str,
    files: &[&str],
) -> anyhow::Result<()> {
    let mut order = String::new();
    for file in files {
        let path = directory.join(file);
        let name = module_name(file);
        let contents = kernel_module::read(&path)?;
        let module = kernel_module::strip(contents);
        archive.add(&format!("modules/{name}.ko"), MODE_FILE, &module);
        order.push_str(&format!("{name}.ko\n"));
    }
    archive.add(&format!("modules/{list}"), MODE_FILE, order.as_bytes());
    Ok(())
}

/// Checks that a kernel has these modules in a form that the agent can load. Writes nothing.
pub(crate) fn check(kernel: &GuestKernel, wanted: &[&str]) -> anyhow::Result<()> {
    let Some(directory) = &kernel.modules else {
        return Ok(());
    };
    let (text, built_in) = read_module_lists(directory)?;
    for file in load_order(&text, &built_in, wanted, directory)? {
        let path = directory.join(file);
        kernel_module::check_name(&path)?;
        std::fs::File::open(&path).with_context(|| format!("cannot read '{}'", path.display()))?;
    }
    Ok(())
}

/// Reads the dependencies of the modules, and the list of built-in modules.
fn read_module_lists(directory: &Path) -> anyhow::Result<(String, String)> {
    let list = directory.join("modules.dep");
    let needs = std::fs::read_to_string(&list)
        .with_context(|| format!("cannot read '{}'", list.display()))?;
    let built_in = std::fs::read_to_string(directory.join("modules.builtin")).unwrap_or_default();
    Ok((needs, built_in))
}

/// Returns the files of the wanted modules and their dependencies in load order. Modules that are
/// built into the kernel are left out.
fn load_order<'a>(
    dependencies: &'a str,
    built_in: &str,
    wanted: &[&str],
    directory: &Path,
) -> anyhow::Result<Vec<&'a str>> {
    let lines: HashMap<String, (&str, &str)> = dependencies
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(file, needs)| (module_name(file), (file, needs)))
        .collect();
    let is_built_in = |name: &str| built_in.lines().any(|file| module_name(file) == name);
    let mut order: Vec<&str> = Vec::new();
    for name in wanted {
        let Some((file, needs)) = lines.get(*name) else {
            if is_built_in(name) {
                continue;
            }
            return Err(Failure::failed(format!(
                "the kernel in '{}' has no module '{name}'",
                directory.display()
            ))
            .hint("use another kernel, such as Debian's linux-image-cloud-amd64")
            .into());
        };
        // modules.dep(5) lists all dependencies of a module; the last is the first to load.
        for file in needs.split_whitespace().rev().chain([*file]) {
            let needs_checksum = CHECKSUM_USERS.contains(&module_name(file).as_str());
            if let Some((checksum, _)) = lines.get(CHECKSUM).filter(|_| needs_checksum)
                && !order.contains(checksum)
            {
                order.push(checksum);
            }
            if !order.contains(&file) {
                order.push(file);
            }
        }
    }
    Ok(order)
}

/// Returns the module name of a file: `kernel/fs/virtio-x.ko.xz` is the module `virtio_x`.
fn module_name(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.split('.').next().unwrap_or(name).replace('-', "_")
}

/// A cpio archive in the format "newc".
#[derive(Default)]
struct CpioArchive {
    bytes: Vec<u8>,
    entries: u32,
}

impl CpioArchive {
    fn add(&mut self, name: &str, mode: u32, contents: &[u8]) {
        self.entry(name, mode, contents, (0, 0));
    }

    fn add_device(&mut self, name: &str, mode: u32, number: (u32, u32)) {
        self.entry(name, mode, &[], number);
    }

    fn entry(&mut self, name: &str, mode: u32, contents: &[u8], (major, minor): (u32, u32)) {
        self.entries += 1;
        let (inode, size, name_size) = (self.entries, contents.len(), name.len() + 1);
        // Writing to a vector does not fail.
        let _ = write!(
            self.bytes,
            "070701{inode:08x}{mode:08x}{0:08x}{0:08x}{1:08x}{0:08x}{size:08x}{0:08x}\
             {0:08x}{major:08x}{minor:08x}{name_size:08x}{0:08x}{name}\0",
            0, 1
        );
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[], (0, 0));
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEPENDENCIES: &str = "\
kernel/lib/crc.ko:
kernel/fs/erofs.ko: kernel/lib/crc.ko
kernel/drivers/virtio/virtio.ko:
kernel/drivers/virtio/virtio_ring.ko: kernel/drivers/virtio/virtio.ko
kernel/drivers/block/virtio-blk.ko: kernel/drivers/virtio/virtio_ring.ko \
            kernel/drivers/virtio/virtio.ko
";

    #[test]
    fn a_module_is_loaded_after_all_that_it_needs_and_once() {
        let order =
            load_order(DEPENDENCIES, "", &["virtio_blk", "erofs", "virtio_ring"], Path::new("/m"))
                .unwrap();
        let names: Vec<String> = order.into_iter().map(module_name).collect();
        assert_eq!(names, ["virtio", "virtio_ring", "virtio_blk", "crc", "erofs"]);
    }

    #[test]
    fn a_checksum_that_is_a_module_is_loaded_before_its_users() {
        let files =
            "k/libcrc32c.ko:\nk/erofs.ko: k/libcrc32c.ko\nk/ext4.ko: k/jbd2.ko\nk/jbd2.ko:\n";
        let names = |text: &str| -> Vec<String> {
            let order = load_order(text, "", &["erofs", "ext4"], Path::new("/m")).unwrap();
            order.into_iter().map(module_name).collect()
        };
        assert_eq!(names(files), ["libcrc32c", "erofs", "jbd2", "ext4"]);
        let with_module = format!("{files}k/crc32c_generic.ko:\n");
        assert_eq!(names(&with_module), ["crc32c_generic", "libcrc32c", "erofs", "jbd2", "ext4"]);
    }

    #[test]
    fn a_built_in_module_is_left_out_and_a_missing_one_is_an_error() {
        let built_in = "kernel/fs/ext4/ext4.ko\n";
        assert!(load_order(DEPENDENCIES, built_in, &["ext4"], Path::new("/m")).unwrap().is_empty());
        let error = load_order(DEPENDENCIES, built_in, &["overlay"], Path::new("/m")).unwrap_err();
        assert_eq!(error.to_string(), "the kernel in '/m' has no module 'overlay'");
    }

    #[test]
    fn entries_begin_at_multiples_of_four() {
        let mut archive = CpioArchive::default();
        archive.add("a", MODE_FILE, b"12345");
        archive.add("init", MODE_PROGRAM, b"x");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let second = bytes.windows(6).skip(1).position(|window| window == b"070701").unwrap() + 1;
        assert_eq!(second % 4, 0);
    }
}
