//! Atomic replacement of files.
//!
//! A file is written under a temporary name in the same directory, flushed, and renamed; then the
//! directory is flushed. A reader sees the old or the new contents, whenever a program is killed. A
//! left-over `.new-…` file has no effect.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::layout;

/// Initial buffer size, larger than most files of the state directory.
const SMALL_FILE_BYTES: usize = 4096;

/// Replaces a file with new contents, mode 0600.
pub fn replace(path: &Path, contents: &[u8]) -> anyhow::Result<()> {
    let mut new = NewFile::create(path)?;
    new.file.write_all(contents).with_context(|| cannot_write(path))?;
    new.commit()
}

/// Replaces a file with a value as one line of JSON.
pub fn replace_json<T: Serialize>(path: &Path, value: &T) -> anyhow::Result<()> {
    let mut json = serde_json::to_vec(value).with_context(|| cannot_write(path))?;
    json.push(b'\n');
    replace(path, &json)
}

/// Reads a JSON file of at most `bytes_max`. `Ok(None)` if it does not exist.
pub fn read_json<T: DeserializeOwned>(path: &Path, bytes_max: u64) -> anyhow::Result<Option<T>> {
    let Some(bytes) = read_bounded(path, bytes_max)? else {
        return Ok(None);
    };
    let value = serde_json::from_slice(&bytes)
        .with_context(|| format!("cannot understand '{}'", path.display()))?;
    Ok(Some(value))
}

/// Reads a file of at most `bytes_max`. `Ok(None)` if it does not exist.
pub fn read_bounded(path: &Path, bytes_max: u64) -> anyhow::Result<Option<Vec<u8>>> {
    use std::io::Read;
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot open '{}'", path.display()));
        }
    };
    // Most files are small: one read returns all, and less than the buffer's size.
    let mut bytes = vec![0; SMALL_FILE_BYTES];
    let cannot = || format!("cannot read '{}'", path.display());
    let count = (&file).read(&mut bytes).with_context(cannot)?;
    bytes.truncate(count);
    if count == SMALL_FILE_BYTES {
        let rest = bytes_max.saturating_add(1).saturating_sub(count as u64);
        file.take(rest).read_to_end(&mut bytes).with_context(cannot)?;
    }
    anyhow::ensure!(
        bytes.len() as u64 <= bytes_max,
        "'{}' is longer than {bytes_max} bytes",
        path.display()
    );
    Ok(Some(bytes))
}

/// A file under a temporary name. [`NewFile::commit`] renames it to its final name; otherwise it is
/// removed.
#[derive(Debug)]
pub struct NewFile {
    /// The open file, for reading and writing.
    pub file: File,
    temporary: PathBuf,
    path: PathBuf,
    done: bool,
}

impl NewFile {
    /// Opens a temporary file beside `path`, mode 0600.
    pub fn create(path: &Path) -> anyhow::Result<NewFile> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // Long names are cut: the temporary name must fit into 255 bytes too.
        let short: String = name.chars().take(48).collect();
        let temporary =
            path.with_file_name(format!("{}{short}-{}", layout::NEW_PREFIX, random_hex()?));
        let file = create_file(&temporary).with_context(|| cannot_write(path))?;
        Ok(NewFile { file, temporary, path: path.to_owned(), done: false })
    }

    /// Returns the name of the temporary file.
    pub fn temporary_name(&self) -> String {
        self.temporary.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Flushes the file, renames it, and flushes the directory.
    pub fn commit(mut self) -> anyhow::Result<()> {
        self.file.sync_data().with_context(|| cannot_write(&self.path))?;
        std::fs::rename(&self.temporary, &self.path).with_context(|| cannot_write(&self.path))?;
        self.done = true;
        sync_dir(self.path.parent().unwrap_or(Path::new(".")))
    }

    /// Like [`NewFile::commit`], but returns `false` if a file of the final name exists.
    pub fn commit_absent(mut self) -> anyhow::Result<bool> {
        self.file.sync_data().with_context(|| cannot_write(&self.path))?;
        let renamed = renameat_with(CWD, &self.temporary, CWD, &self.path, RenameFlags::NOREPLACE);
        match renamed {
            Err(Errno::EXIST) => return Ok(false),
            renamed => renamed.with_context(|| cannot_write(&self.path))?,
        }
        self.done = true;
        sync_dir(self.path.parent().unwrap_or(Path::new(".")))?;
        Ok(true)
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.done {
            // An error can be ignored: a left-over file has no effect.
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

fn cannot_write(path: &Path) -> String {
    format!("cannot write '{}'", path.display())
}

/// Creates a file that does not exist yet, mode 0600, for reading and writing.
pub fn create_file(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

/// Creates a directory and its parents, mode 0700. An existing one is unchanged.
pub fn create_dir(path: &Path) -> anyhow::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.with_context(|| format!("cannot create the directory '{}'", path.display()))
}

/// Flushes a directory: its entries survive a power failure.
pub fn sync_dir(path: &Path) -> anyhow::Result<()> {
    let flushed = File::open(path).and_then(|directory| directory.sync_all());
    flushed.with_context(|| format!("cannot flush the directory '{}'", path.display()))
}

/// Returns eight random bytes in hexadecimal digits, for names.
pub fn random_hex() -> anyhow::Result<String> {
    let mut bytes = [0; 8];
    random(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Returns a random machine-id(5): 32 hexadecimal digits, in the form of a UUID of version 4
/// without dashes.
pub fn random_machine_id() -> anyhow::Result<String> {
    let mut bytes = [0; 16];
    random(&mut bytes)?;
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Fills a buffer from the kernel's random number generator.
pub fn random(buffer: &mut [u8]) -> anyhow::Result<()> {
    let count = rustix::rand::getrandom(&mut *buffer, rustix::rand::GetRandomFlags::empty())
        .context("cannot get random bytes from the kernel")?;
    anyhow::ensure!(count == buffer.len(), "the kernel gave too few random bytes");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_has_the_new_contents_and_leaves_nothing_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("status.json");
        replace(&path, b"old").unwrap();
        replace_json(&path, &[1, 2]).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"[1,2]\n");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_is_not_committed_is_never_seen() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("spec.json");
        replace(&path, b"kept").unwrap();
        let mut new = NewFile::create(&path).unwrap();
        new.file.write_all(b"half").unwrap();
        drop(new);
        assert_eq!(std::fs::read(&path).unwrap(), b"kept");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn broken_or_overlong_json_is_an_error_that_names_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.json");
        std::fs::write(&path, b"{").unwrap();
        let error = read_json::<serde_json::Value>(&path, 100).unwrap_err();
        assert!(error.to_string().contains("x.json"), "{error}");
        std::fs::write(&path, b"[1,2,3]").unwrap();
        assert!(
            read_json::<serde_json::Value>(&path, 3).unwrap_err().to_string().contains("longer")
        );
        assert_eq!(
            read_json::<serde_json::Value>(&directory.path().join("none"), 3).unwrap(),
            None
        );
    }
}
