//! A kernel of the user for the krun engine: an uncompressed vmlinux with all drivers built in.
//!
//! libkrun describes its devices on the kernel's command line, which distributions' kernels ignore
//! (`VIRTIO_MMIO_CMDLINE_DEVICES`). Such a kernel would hang without disks, console and agent, so
//! it is refused.

use std::io::Read;
use std::path::Path;

use anyhow::Context;
use flate2::read::GzDecoder;
use libmsb::cli::error::Failure;

/// Options that the kernel needs, each with a string that is in the kernel only if the option is
/// on. They must be built in: no modules are loaded.
const OPTIONS: [(&str, &[u8]); 8] = [
    ("VIRTIO_MMIO_CMDLINE_DEVICES", b"\0virtio_mmio.device\0"),
    ("VIRTIO_BLK", b"\0virtio_blk.queue_depth\0"),
    ("VIRTIO_CONSOLE", b"\0virtio_console\0"),
    ("EROFS_FS", b"\0erofs\0"),
    ("EXT4_FS", b"\0ext4\0"),
    ("OVERLAY_FS", b"\0overlay.redirect_dir\0"),
    ("DEVTMPFS", b"devtmpfs: initialized"),
    ("BLK_DEV_INITRD", b"unpack rootfs image as initramfs"),
];

/// Maximum size of the kernel, in bytes.
const KERNEL_BYTES_MAX: u64 = 512 * 1024 * 1024;
/// Maximum size of the unpacked configuration, in bytes.
const CONFIG_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// Markers around the configuration in a kernel that contains it (`IKCONFIG`).
const CONFIG_START: &[u8] = b"IKCFG_ST";
const CONFIG_END: &[u8] = b"IKCFG_ED";

/// Offset in the header of an ELF file (elf(5)), and the value for x86-64.
const E_MACHINE: usize = 18;
const EM_X86_64: [u8; 2] = [62, 0];

/// Offset of "HdrS" in a compressed kernel (Documentation/arch/x86/boot.rst).
const HEADER_AT: usize = 0x202;

/// Refuses a kernel that the krun engine cannot boot.
pub(crate) fn check(path: &Path) -> anyhow::Result<()> {
    let cannot = || format!("cannot read the kernel '{}'", path.display());
    let file = std::fs::File::open(path).with_context(cannot)?;
    let mut kernel = Vec::new();
    file.take(KERNEL_BYTES_MAX).read_to_end(&mut kernel).with_context(cannot)?;
    let missing = match form(&kernel) {
        KernelFormat::Vmlinux => missing(&kernel),
        KernelFormat::Compressed => {
            return Err(wrong_format(path, "is a compressed kernel (bzImage)"));
        }
        KernelFormat::Other => return Err(wrong_format(path, "is not a kernel for x86-64")),
    };
    if missing.is_empty() {
        return Ok(());
    }
    Err(Failure::failed(format!(
        "the kernel '{}' was built without {}, which the engine krun needs",
        path.display(),
        missing.iter().map(|option| format!("CONFIG_{option}")).collect::<Vec<_>>().join(", ")
    ))
    .hint(
        "kernels of distributions lack these: unset MSB_KERNEL to use libkrunfw, \
         or use the engine qemu",
    )
    .into())
}

fn wrong_format(path: &Path, what: &str) -> anyhow::Error {
    Failure::failed(format!(
        "'{}' {what}, and the engine krun needs an uncompressed vmlinux",
        path.display()
    ))
    .hint("the kernel's scripts/extract-vmlinux makes one; or unset MSB_KERNEL to use libkrunfw")
    .into()
}

#[derive(Debug, PartialEq, Eq)]
enum KernelFormat {
    Vmlinux,
    Compressed,
    Other,
}

fn form(kernel: &[u8]) -> KernelFormat {
    let at = |offset: usize, bytes: &[u8]| kernel.get(offset..offset + bytes.len()) == Some(bytes);
    if at(0, b"\x7fELF\x02\x01") && at(E_MACHINE, &EM_X86_64) {
        KernelFormat::Vmlinux
    } else if at(HEADER_AT, b"HdrS") {
        KernelFormat::Compressed
    } else {
        KernelFormat::Other
    }
}

/// Returns the missing options: from the kernel's own configuration if it contains that, else by
/// the missing strings.
fn missing(kernel: &[u8]) -> Vec<&'static str> {
    let config = configuration(kernel);
    let has = |option: &str, sign: &[u8]| match &config {
        Some(config) => config.lines().any(|line| {
            line.strip_prefix("CONFIG_").and_then(|line| line.strip_prefix(option)) == Some("=y")
        }),
        None => contains(kernel, sign),
    };
    OPTIONS.iter().filter(|(option, sign)| !has(option, sign)).map(|(option, _)| *option).collect()
}

fn configuration(kernel: &[u8]) -> Option<String> {
    let start = position(kernel, CONFIG_START)? + CONFIG_START.len();
    let end = start + position(&kernel[start..], CONFIG_END)?;
    let mut text = String::new();
    GzDecoder::new(&kernel[start..end]).take(CONFIG_BYTES_MAX).read_to_string(&mut text).ok()?;
    Some(text)
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    position(bytes, wanted).is_some()
}

fn position(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    memchr::memmem::find(bytes, wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::io::Write;

    fn vmlinux(contents: &[u8]) -> tempfile::NamedTempFile {
        let mut head = [0; 64];
        head[..6].copy_from_slice(b"\x7fELF\x02\x01");
        head[E_MACHINE] = EM_X86_64[0];
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[&head, contents].concat()).unwrap();
        file
    }

    fn refusal(contents: &[u8]) -> String {
        check(vmlinux(contents).path()).unwrap_err().to_string()
    }

    #[test]
    fn a_kernel_says_by_its_strings_what_it_has() {
        let all: Vec<u8> = OPTIONS.iter().flat_map(|(_, sign)| sign.iter().copied()).collect();
        check(vmlinux(&all).path()).unwrap();
        for (option, sign) in OPTIONS {
            let others: Vec<u8> = OPTIONS
                .iter()
                .filter(|(other, _)| *other != option)
                .flat_map(|(_, sign)| sign.iter().copied())
                .collect();
            let message = refusal(&others);
            assert!(message.contains(&format!("CONFIG_{option},")), "{option} {sign:?}: {message}");
        }
    }

    #[test]
    fn a_configuration_that_it_carries_counts_more_than_its_strings() {
        let carried = |value: &str| {
            let text: String =
                OPTIONS.iter().map(|(option, _)| format!("CONFIG_{option}={value}\n")).collect();
            let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
            packed.write_all(text.as_bytes()).unwrap();
            [CONFIG_START, &packed.finish().unwrap(), CONFIG_END].concat()
        };
        check(vmlinux(&carried("y")).path()).unwrap();
        assert!(refusal(&carried("m")).contains("CONFIG_EROFS_FS"));
    }

    #[test]
    fn a_file_that_is_not_a_vmlinux_is_named_by_its_format() {
        let refusal_of = |contents: &[u8]| {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(contents).unwrap();
            check(file.path()).unwrap_err().to_string()
        };
        let mut compressed = vec![0; 0x300];
        compressed[HEADER_AT..HEADER_AT + 4].copy_from_slice(b"HdrS");
        assert!(refusal_of(&compressed).contains("bzImage"));
        for other in [&b""[..], b"text", b"\x7fELF\x01\x01"] {
            assert!(refusal_of(other).contains("not a kernel"));
        }
    }
}
