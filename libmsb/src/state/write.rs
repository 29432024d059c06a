//! Files that are there whole or not at all.
//!
//! A file is written under another name in the same folder, flushed, and renamed; then the folder is flushed. Whatever
//! is killed at whatever moment, a reader sees the old or the new. A left-over `.new-…` file is inert.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::layout;

/// Larger than most files of the state directory.
const SMALL_FILE_BYTES: usize = 4096;

/// Replaces a file by new contents, mode 0600.
pub fn replace(path: &Path, contents: &[u8]) -> anyhow::Result<()> {
    let mut new = NewFile::create(path)?;
    new.file
        .write_all(contents)
        .with_context(|| cannot_write(path))?;
    new.commit()
}

/// Replaces a file by a value as one line of JSON.
pub fn replace_json<T: Serialize>(path: &Path, value: &T) -> anyhow::Result<()> {
    let mut json = serde_json::to_vec(value).with_context(|| cannot_write(path))?;
    json.push(b'\n');
    replace(path, &json)
}

/// Reads a file of JSON, which must not be longer than `bytes_max`. `Ok(None)` when there is no such file.
pub fn read_json<T: DeserializeOwned>(path: &Path, bytes_max: u64) -> anyhow::Result<Option<T>> {
    let Some(bytes) = read_bounded(path, bytes_max)? else {
        return Ok(None);
    };
    let value = serde_json::from_slice(&bytes)
        .with_context(|| format!("cannot understand '{}'", path.display()))?;
    Ok(Some(value))
}

/// Reads a file that must not be longer than `bytes_max`. `Ok(None)` when there is no such file.
pub fn read_bounded(path: &Path, bytes_max: u64) -> anyhow::Result<Option<Vec<u8>>> {
    use std::io::Read;
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot open '{}'", path.display()));
        }
    };
    // Most files are small: one read takes them whole, and ends before the buffer does.
    let mut bytes = vec![0; SMALL_FILE_BYTES];
    let cannot = || format!("cannot read '{}'", path.display());
    let count = (&file).read(&mut bytes).with_context(cannot)?;
    bytes.truncate(count);
    if count == SMALL_FILE_BYTES {
        let rest = bytes_max.saturating_add(1).saturating_sub(count as u64);
        file.take(rest)
            .read_to_end(&mut bytes)
            .with_context(cannot)?;
    }
    anyhow::ensure!(
        bytes.len() as u64 <= bytes_max,
        "'{}' is longer than {bytes_max} bytes",
        path.display()
    );
    Ok(Some(bytes))
}

/// A file under a temporary name, which takes its final name with [`NewFile::commit`] and is removed without it.
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
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary);
        let file = file.with_context(|| cannot_write(path))?;
        Ok(NewFile {
            file,
            temporary,
            path: path.to_owned(),
            done: false,
        })
    }

    /// Flushes the file, gives it its name, and flushes the folder.
    pub fn commit(mut self) -> anyhow::Result<()> {
        self.file
            .sync_data()
            .with_context(|| cannot_write(&self.path))?;
        std::fs::rename(&self.temporary, &self.path).with_context(|| cannot_write(&self.path))?;
        self.done = true;
        sync_dir(self.path.parent().unwrap_or(Path::new(".")))
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.done {
            // Nothing can be done about a failure here, and a left-over is inert.
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

fn cannot_write(path: &Path) -> String {
    format!("cannot write '{}'", path.display())
}

/// Makes a folder and those above it, mode 0700. An existing one is left as it is.
pub fn create_dir(path: &Path) -> anyhow::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.with_context(|| format!("cannot create the folder '{}'", path.display()))
}

/// Flushes a folder: the names in it survive a power cut.
pub fn sync_dir(path: &Path) -> anyhow::Result<()> {
    let flushed = File::open(path).and_then(|folder| folder.sync_all());
    flushed.with_context(|| format!("cannot flush the folder '{}'", path.display()))
}

/// Eight random bytes in hexadecimal digits, for names.
pub fn random_hex() -> anyhow::Result<String> {
    let mut bytes = [0; 8];
    random(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A random machine-id(5): 32 hexadecimal digits, in the form of a UUID of version 4 without its dashes.
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
    anyhow::ensure!(
        count == buffer.len(),
        "the kernel gave too few random bytes"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_has_the_new_contents_and_leaves_nothing_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("status.json");
        replace(&path, b"old").unwrap();
        replace_json(&path, &[1, 2]).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"[1,2]\n");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_is_not_committed_is_never_seen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spec.json");
        replace(&path, b"kept").unwrap();
        let mut new = NewFile::create(&path).unwrap();
        new.file.write_all(b"half").unwrap();
        drop(new);
        assert_eq!(std::fs::read(&path).unwrap(), b"kept");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn broken_or_overlong_json_is_an_error_that_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.json");
        std::fs::write(&path, b"{").unwrap();
        let error = read_json::<serde_json::Value>(&path, 100).unwrap_err();
        assert!(error.to_string().contains("x.json"), "{error}");
        std::fs::write(&path, b"[1,2,3]").unwrap();
        assert!(
            read_json::<serde_json::Value>(&path, 3)
                .unwrap_err()
                .to_string()
                .contains("longer")
        );
        assert_eq!(
            read_json::<serde_json::Value>(&folder.path().join("none"), 3).unwrap(),
            None
        );
    }
}
