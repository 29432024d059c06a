//! The guest's kernel: the distribution's, or one that the user names.

use std::cmp::Ordering;
use std::fs::{File, Metadata};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use libmsb::cli::error::Failure;

use super::distribution::{self, HostPackage};

/// Directory of the distribution's kernels.
const KERNELS: &str = "/boot";
/// Directories of kernel modules; each release has a subdirectory.
const MODULES: &[&str] = &["/lib/modules", "/usr/lib/modules"];
/// Environment variable with a kernel, or a directory to search.
pub(crate) const VARIABLE: &str = "MSB_KERNEL";

/// A kernel on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GuestKernel {
    /// The image file.
    pub(crate) image: PathBuf,
    /// The directory of its modules, if it has any.
    pub(crate) modules: Option<PathBuf>,
}

/// Returns the kernel that `MSB_KERNEL` names, else the newest one that the distribution has
/// installed.
pub(crate) fn find() -> anyhow::Result<GuestKernel> {
    let Some(from_environment) = from_environment() else {
        return newest_in(Path::new(KERNELS));
    };
    if kernel_metadata(&from_environment)?.is_dir() {
        newest_in(&from_environment)
    } else {
        read_kernel(from_environment)
    }
}

/// Returns the value of [`VARIABLE`].
pub(crate) fn from_environment() -> Option<PathBuf> {
    let value = std::env::var_os(VARIABLE).filter(|value| !value.is_empty());
    value.map(PathBuf::from)
}

/// Returns the metadata of the file that [`VARIABLE`] names.
pub(crate) fn kernel_metadata(path: &Path) -> anyhow::Result<Metadata> {
    std::fs::metadata(path).map_err(|error| {
        Failure::failed(format!(
            "cannot use the kernel '{}' that {VARIABLE} names: {error}",
            path.display()
        ))
        .hint(format!("name another file, or unset {VARIABLE} to use the installed one"))
        .into()
    })
}

fn newest_in(directory: &Path) -> anyhow::Result<GuestKernel> {
    let names = std::fs::read_dir(directory).map(|entries| {
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect::<Vec<_>>()
    });
    let mut releases: Vec<String> = names
        .unwrap_or_default()
        .iter()
        .filter_map(|name| Some(name.strip_prefix("vmlinuz-")?.to_owned()))
        .collect();
    // A kernel for virtual machines starts faster than a generic one, whatever its version.
    releases.sort_by(|a, b| is_for_vms(a).cmp(&is_for_vms(b)).then_with(|| compare_releases(a, b)));
    let with_modules = releases.iter().rev().find(|release| modules_of(release).is_some());
    let Some(release) = with_modules else {
        return Err(Failure::failed(format!(
            "no kernel for the guest in '{}'",
            directory.display()
        ))
        .hint(format!(
            "install one: {}; or name one: {VARIABLE}=/path/to/vmlinuz",
            distribution::how_to_install(HostPackage::Kernel)
        ))
        .into());
    };
    read_kernel(directory.join(format!("vmlinuz-{release}")))
}

fn is_for_vms(release: &str) -> bool {
    ["cloud", "virt", "kvm"].iter().any(|word| release.contains(word))
}

fn read_kernel(image: PathBuf) -> anyhow::Result<GuestKernel> {
    let file = match File::open(&image) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            return Err(Failure::failed(format!(
                "cannot read the kernel '{}': permission denied",
                image.display()
            ))
            .hint(format!("make it readable for all users: sudo chmod +r {}", image.display()))
            .into());
        }
        opened => {
            opened.with_context(|| format!("cannot open the kernel '{}'", image.display()))?
        }
    };
    let Some(release) = release_of(&file) else {
        return Err(Failure::failed(format!(
            "'{}' is not a kernel that can be booted on this host",
            image.display()
        ))
        .hint("a bzImage (vmlinuz) or an uncompressed ELF vmlinux for x86-64 is needed")
        .into());
    };
    let modules = release.as_deref().and_then(modules_of);
    Ok(GuestKernel { image, modules })
}

/// Returns the release that a kernel's image contains: `Some(None)` for a vmlinux, which has it at
/// no fixed offset; `None` for a file that is not a kernel. The layout of a bzImage is that of
/// Documentation/arch/x86/boot.rst: "HdrS" at 0x202, and at 0x20e the offset of the version string,
/// relative to 0x200.
fn release_of(file: &File) -> Option<Option<String>> {
    let mut head = [0; 0x210];
    file.read_exact_at(&mut head, 0).ok()?;
    if head.starts_with(b"\x7fELF") {
        return Some(None);
    }
    if &head[0x202..0x206] != b"HdrS" {
        return None;
    }
    let at = u64::from(u16::from_le_bytes([head[0x20e], head[0x20f]])) + 0x200;
    let mut text = [0; 256];
    let count = file.read_at(&mut text, at).ok()?;
    let release = text[..count].split(|byte| *byte == b' ' || *byte == 0).next()?;
    Some(std::str::from_utf8(release).ok().filter(|release| !release.is_empty()).map(str::to_owned))
}

fn modules_of(release: &str) -> Option<PathBuf> {
    if release.contains('/') || release.starts_with('.') {
        return None;
    }
    MODULES
        .iter()
        .map(|root| Path::new(root).join(release))
        .find(|directory| directory.join("modules.dep").is_file())
}

/// Compares releases in version order: numbers by value, the rest by characters.
fn compare_releases(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a, b);
    loop {
        let (left, right) = (next_part(&mut a), next_part(&mut b));
        let order = match (left, right) {
            (None, None) => return Ordering::Equal,
            (Some(left), Some(right)) => match (left.parse::<u64>(), right.parse::<u64>()) {
                (Ok(left), Ok(right)) => left.cmp(&right),
                _ => left.cmp(right),
            },
            (left, right) => left.is_some().cmp(&right.is_some()),
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

/// Returns the next run of digits, or of other characters.
fn next_part<'a>(text: &mut &'a str) -> Option<&'a str> {
    let digits = text.chars().next()?.is_ascii_digit();
    let end = text.find(|c: char| c.is_ascii_digit() != digits).unwrap_or(text.len());
    let (part, rest) = text.split_at(end);
    *text = rest;
    Some(part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn releases_compare_by_the_value_of_their_numbers() {
        let mut releases = ["6.1.0-9-amd64", "6.12.1-amd64", "6.1.0-56-amd64", "5.10.0-1-amd64"];
        releases.sort_by(|a, b| compare_releases(a, b));
        assert_eq!(releases, ["5.10.0-1-amd64", "6.1.0-9-amd64", "6.1.0-56-amd64", "6.12.1-amd64"]);
    }

    #[test]
    fn a_file_that_is_no_kernel_is_refused_with_a_hint() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vmlinuz");
        File::create(&path).unwrap().write_all(&[0; 4096]).unwrap();
        let error = read_kernel(path).unwrap_err();
        assert!(error.to_string().contains("is not a kernel"), "{error}");
    }

    #[test]
    fn the_release_is_read_from_the_image() {
        let mut image = vec![0_u8; 0x1000];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x20e..0x210].copy_from_slice(&0x300_u16.to_le_bytes());
        image[0x500..0x511].copy_from_slice(b"6.9.1-test (x@y) ");
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&image).unwrap();
        assert_eq!(release_of(&file), Some(Some("6.9.1-test".to_owned())));
    }

    #[test]
    fn an_empty_directory_has_no_kernel() {
        let directory = tempfile::tempdir().unwrap();
        assert!(
            newest_in(directory.path())
                .unwrap_err()
                .to_string()
                .starts_with("no kernel for the guest")
        );
    }
}
