//! Kernel modules, uncompressed and without the parts that only slow down loading.
//!
//! Debian 13 and Fedora compress modules with xz, Ubuntu and Arch with zstd. They are uncompressed
//! once, when the initramfs is made: the guest's kernel may not be able to, and would do it at each
//! boot.
//!
//! In software emulation a guest spends a third of its loading time on verifying the signature and
//! on parsing type information (BTF). Neither protects it: the modules come from the host, which
//! could also supply another kernel.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::Context;
use libmsb::cli::error::Failure;

/// Largest module, uncompressed, in bytes. Those of guests have less than 2 MiB.
const BYTES_MAX: u64 = 64 * 1024 * 1024;

/// The form of a module's file, by the end of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Xz,
    Zstd,
}

fn compression(path: &Path) -> Result<Compression, Failure> {
    let extension = path.extension().and_then(|extension| extension.to_str());
    match extension.unwrap_or_default() {
        "ko" => Ok(Compression::None),
        "gz" => Ok(Compression::Gzip),
        "xz" => Ok(Compression::Xz),
        "zst" => Ok(Compression::Zstd),
        _ => Err(Failure::failed(format!(
            "the kernel module '{}' has an unknown compression",
            path.display()
        ))
        .hint("use a kernel whose modules are plain, gzip, xz or zstd files")),
    }
}

/// Checks that a module can be read, by its name.
pub(crate) fn check_name(path: &Path) -> Result<(), Failure> {
    compression(path).map(drop)
}

/// Reads a module, uncompressed.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let cannot = || format!("cannot read '{}'", path.display());
    let file = File::open(path).with_context(cannot)?;
    let reader: Box<dyn Read> = match compression(path)? {
        Compression::None => Box::new(file),
        Compression::Gzip => Box::new(flate2::read::GzDecoder::new(file)),
        Compression::Xz => Box::new(lzma_rust2::XzReader::new(file, false)),
        Compression::Zstd => Box::new(zstd::Decoder::new(file).with_context(cannot)?),
    };
    let mut module = Vec::new();
    reader.take(BYTES_MAX + 1).read_to_end(&mut module).with_context(cannot)?;
    anyhow::ensure!(module.len() as u64 <= BYTES_MAX, "'{}' is too large", path.display());
    Ok(module)
}

/// End of a signed module (kernel: Documentation/admin-guide/module-signing.rst).
const SIGNATURE_MARK: &[u8] = b"~Module signature appended~\n";
/// Size of `struct module_signature`: eight bytes of kinds and lengths, then the signature's
/// length, big-endian.
const SIGNATURE_INFO_BYTES: usize = 12;

/// Offsets in the ELF64 header and in its section headers (elf(5)).
const E_SHOFF: usize = 0x28;
const SECTION_HEADER_BYTES: usize = 64;
const E_SHNUM: usize = 0x3c;
const E_SHSTRNDX: usize = 0x3e;
const SH_OFFSET: usize = 0x18;

/// Removes signature and type information from a module. A module of unknown form stays as it is.
pub(crate) fn strip(mut module: Vec<u8>) -> Vec<u8> {
    if let Some(length) = unsigned_length(&module) {
        module.truncate(length);
    }
    hide_sections(&mut module, &[b".BTF", b".BTF_ids"]);
    module
}

fn unsigned_length(module: &[u8]) -> Option<usize> {
    let signed = module.strip_suffix(SIGNATURE_MARK)?;
    let info = signed.last_chunk::<SIGNATURE_INFO_BYTES>()?;
    let [.., a, b, c, d] = *info;
    let signature = usize::try_from(u32::from_be_bytes([a, b, c, d])).ok()?;
    signed.len().checked_sub(SIGNATURE_INFO_BYTES)?.checked_sub(signature)
}

/// Clears the names of sections. The kernel finds them by name, and ignores them without one.
fn hide_sections(module: &mut [u8], names_to_hide: &[&[u8]]) -> Option<()> {
    if !module.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let table = usize::try_from(u64::from_le_bytes(bytes(module, E_SHOFF)?)).ok()?;
    let count = usize::from(u16::from_le_bytes(bytes(module, E_SHNUM)?));
    let names = usize::from(u16::from_le_bytes(bytes(module, E_SHSTRNDX)?));
    let header = |section: usize| table.checked_add(section.checked_mul(SECTION_HEADER_BYTES)?);
    let names_at = header(names)?.checked_add(SH_OFFSET)?;
    let names_at = usize::try_from(u64::from_le_bytes(bytes(module, names_at)?)).ok()?;
    for section in 0..count {
        let at = header(section)?;
        let name_at = names_at.checked_add(u32::from_le_bytes(bytes(module, at)?) as usize)?;
        let name = module.get(name_at..)?.split(|byte| *byte == 0).next()?;
        if names_to_hide.contains(&name) {
            // Every string table starts with an empty name.
            module.get_mut(at..at + 4)?.fill(0);
        }
    }
    Some(())
}

fn bytes<const N: usize>(module: &[u8], at: usize) -> Option<[u8; N]> {
    module.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(module: &[u8], signature: &[u8]) -> Vec<u8> {
        let mut info = [0; SIGNATURE_INFO_BYTES];
        info[8..].copy_from_slice(&(signature.len() as u32).to_be_bytes());
        [module, signature, &info, SIGNATURE_MARK].concat()
    }

    #[test]
    fn a_signature_is_cut_off_and_a_broken_one_is_left() {
        assert_eq!(strip(signed(b"module", b"signature")), b"module");
        let mut broken = signed(b"m", b"s");
        let at = broken.len() - SIGNATURE_MARK.len() - 4;
        broken[at] = 0xff;
        assert_eq!(strip(broken.clone()), broken);
        assert_eq!(strip(SIGNATURE_MARK.to_vec()), SIGNATURE_MARK);
    }

    /// Returns an ELF file of three sections: none, names, and `.BTF`.
    fn elf() -> Vec<u8> {
        let names = b"\0.shstrtab\0.BTF\0";
        let table = 0x80;
        let mut file = vec![0; table + 3 * SECTION_HEADER_BYTES];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[E_SHOFF] = table as u8;
        file[E_SHNUM] = 3;
        file[E_SHSTRNDX] = 1;
        file[0x40..0x40 + names.len()].copy_from_slice(names);
        file[table + SECTION_HEADER_BYTES] = 1;
        file[table + SECTION_HEADER_BYTES + SH_OFFSET] = 0x40;
        file[table + 2 * SECTION_HEADER_BYTES] = 11;
        file
    }

    /// `printf module | xz --check=crc32`, as the modules of Debian.
    const XZ: &[u8] = b"\
        \xfd\x37\x7a\x58\x5a\x00\x00\x01\x69\x22\xde\x36\x02\x00\x21\x01\x16\x00\x00\
        \x00\x74\x2f\xe5\xa3\x01\x00\x05\x6d\x6f\x64\x75\x6c\x65\x00\x00\x00\x28\x26\
        \x24\x0c\x00\x01\x1a\x06\xc5\xea\xc8\x79\x90\x42\x99\x0d\x01\x00\x00\x00\x00\
        \x01\x59\x5a";

    #[test]
    fn a_module_of_each_compression_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::write(path("a.ko"), "module").unwrap();
        std::fs::write(path("a.ko.zst"), zstd::encode_all(&b"module"[..], 1).unwrap()).unwrap();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut gzip, b"module").unwrap();
        std::fs::write(path("a.ko.gz"), gzip.finish().unwrap()).unwrap();
        std::fs::write(path("a.ko.xz"), XZ).unwrap();
        for name in ["a.ko", "a.ko.gz", "a.ko.xz", "a.ko.zst"] {
            assert_eq!(read(&path(name)).unwrap(), b"module", "{name}");
        }
        std::fs::write(path("b.ko.xz"), &XZ[..20]).unwrap();
        assert!(read(&path("b.ko.xz")).is_err());
        assert!(check_name(Path::new("a.ko.lz4")).is_err());
    }

    #[test]
    fn a_section_with_type_information_loses_its_name_and_others_keep_theirs() {
        let file = strip(elf());
        assert_eq!(file[0x80 + SECTION_HEADER_BYTES], 1);
        assert_eq!(file[0x80 + 2 * SECTION_HEADER_BYTES], 0);
    }

    #[test]
    fn a_file_that_is_cut_off_anywhere_does_no_harm() {
        let whole = elf();
        for length in 0..whole.len() {
            assert_eq!(strip(whole[..length].to_vec()).len(), length);
        }
    }
}
