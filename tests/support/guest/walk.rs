//! A file tree as text: everything that a program could see of each path, so that two trees are
//! equal when their texts are.
//!
//! One line a path, sorted bytewise: path, type, mode, owner, then `name=value` for what the type
//! has. The size of a directory and its link count are not there, since they belong to the file
//! system and not to the tree. Directories on another file system are not entered nor shown.

use std::ffi::{CStr, OsStr};
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{FileType, major, minor};
use sha2::{Digest, Sha256};

/// Attributes in which overlayfs keeps its own notes.
const OVERLAY_PREFIX: &[u8] = b"trusted.overlay.";

/// Prints the tree of `/` without what is mounted in it, through a mount of it alone at `place`.
pub(crate) fn print_under_mounts(place: &Path) -> io::Result<()> {
    fs::create_dir(place)?;
    rustix::mount::mount_bind("/", place)?;
    print(place)
}

/// Prints the tree below `root`.
pub(crate) fn print(root: &Path) -> io::Result<()> {
    let device = fs::symlink_metadata(root)?.dev();
    let mut entries = Vec::new();
    let mut directories = vec![Vec::new()];
    while let Some(directory) = directories.pop() {
        for found in
            fs::read_dir(under(root, &directory)).map_err(|error| name(&directory, error))?
        {
            let mut path = directory.clone();
            path.push(b'/');
            path.extend_from_slice(found?.file_name().as_bytes());
            let metadata =
                fs::symlink_metadata(under(root, &path)).map_err(|error| name(&path, error))?;
            if metadata.is_dir() {
                if metadata.dev() != device {
                    continue;
                }
                directories.push(path.clone());
            }
            entries.push((path, metadata));
        }
    }
    entries.push((b"/".to_vec(), fs::symlink_metadata(root)?));
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    let mut out = io::BufWriter::new(io::stdout().lock());
    for (path, metadata) in &entries {
        let line = line(&under(root, path), path, metadata).map_err(|error| name(path, error))?;
        out.write_all(&line)?;
    }
    out.flush()
}

/// Returns the path on this machine of a path of the tree. `directory` is empty for the root, else
/// begins with a slash.
fn under(root: &Path, directory: &[u8]) -> std::path::PathBuf {
    let mut bytes = root.as_os_str().as_bytes().to_vec();
    bytes.extend_from_slice(directory);
    OsStr::from_bytes(&bytes).into()
}

fn name(path: &[u8], error: io::Error) -> io::Error {
    io::Error::other(format!("{}: {error}", escape(path)))
}

fn line(place: &Path, path: &[u8], metadata: &Metadata) -> io::Result<Vec<u8>> {
    let kind = FileType::from_raw_mode(metadata.mode());
    let letter = match kind {
        FileType::RegularFile => 'f',
        FileType::Directory => 'd',
        FileType::Symlink => 'l',
        FileType::CharacterDevice => 'c',
        FileType::BlockDevice => 'b',
        FileType::Fifo => 'p',
        FileType::Socket => 's',
        FileType::Unknown => '?',
    };
    let mut line = format!(
        "{} {letter} {:04o} {}:{}",
        escape(path),
        metadata.mode() & 0o7777,
        metadata.uid(),
        metadata.gid()
    );
    line += &format!(" mtime={}.{:09}", metadata.mtime(), metadata.mtime_nsec());
    if kind != FileType::Directory {
        line += &format!(" nlink={}", metadata.nlink());
    }
    match kind {
        FileType::RegularFile => {
            line += &format!(" size={} sha256={}", metadata.len(), content_hash(place)?)
        }
        FileType::Symlink => {
            line += &format!(" target={}", escape(fs::read_link(place)?.as_os_str().as_bytes()))
        }
        FileType::CharacterDevice | FileType::BlockDevice => {
            line += &format!(" rdev={}:{}", major(metadata.rdev()), minor(metadata.rdev()));
        }
        _ => {}
    }
    for (name, value) in attributes(place)? {
        line += &format!(" {}={}", escape(&name), hex(&value));
    }
    line.push('\n');
    Ok(line.into_bytes())
}

fn content_hash(place: &Path) -> io::Result<String> {
    let mut file = File::open(place)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hash.finalize())),
            length => hash.update(buffer.get(..length).unwrap_or_default()),
        }
    }
}

/// Extended attributes, sorted by name.
fn attributes(place: &Path) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut names = vec![0; 64 * 1024];
    let length = match rustix::fs::llistxattr(place, &mut names[..]) {
        Ok(length) => length,
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(error.into()),
    };
    names.truncate(length);
    let mut attributes = Vec::new();
    for name in names.split_inclusive(|byte| *byte == 0) {
        let name = CStr::from_bytes_with_nul(name).map_err(io::Error::other)?;
        if name.to_bytes().starts_with(OVERLAY_PREFIX) {
            continue;
        }
        let mut value = vec![0; 64 * 1024];
        let length = rustix::fs::lgetxattr(place, name, &mut value[..])?;
        value.truncate(length);
        attributes.push((name.to_bytes().to_vec(), value));
    }
    attributes.sort();
    Ok(attributes)
}

/// Printable bytes as they are, all others (and the backslash) as `\xNN`.
fn escape(bytes: &[u8]) -> String {
    let one = |byte: &u8| match byte {
        b'!'..=b'~' if *byte != b'\\' => char::from(*byte).to_string(),
        _ => format!("\\x{byte:02x}"),
    };
    bytes.iter().map(one).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
