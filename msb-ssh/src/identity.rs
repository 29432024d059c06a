//! Host keys and the owner's key: Ed25519, created on first use, in files of mode 0600.
//!
//! The host key of a sandbox is stored in the sandbox's directory, never changes, and is removed
//! with it. The owner's key is stored in the state directory. It is always accepted, because access
//! to the state directory already allows commands in every sandbox.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use libmsb::cli::args::SandboxName;
use libmsb::cli::error::Failure;
use libmsb::state::lock::Lock;
use libmsb::state::owner::is_trusted;
use libmsb::state::{Home, layout, write};
use russh::keys::ssh_key::LineEnding;
use russh::keys::ssh_key::private::Ed25519Keypair;
use russh::keys::{PrivateKey, PublicKey};

/// Maximum size of a key file in bytes.
const KEY_FILE_BYTES: u64 = 64 * 1024;

/// Mode bits that allow access for group or others.
const OTHERS: u32 = 0o077;

/// Returns the host key of a sandbox, and creates it if necessary.
pub(crate) fn host_key_of(home: &Home, name: &SandboxName) -> anyhow::Result<PrivateKey> {
    let directory = home.sandboxes().find(name)?.path(layout::SSH);
    load_or_create(&directory, layout::HOST_KEY, &format!("msb-{name}"))
}

/// Returns the key with which this user logs in to their own sandboxes, and creates it if
/// necessary.
pub(crate) fn owner_key(home: &Home) -> anyhow::Result<PrivateKey> {
    load_or_create(&directory(home), layout::OWNER_KEY, "msb-owner")
}

/// Returns the path of the owner's key.
pub(crate) fn owner_key_path(home: &Home) -> PathBuf {
    directory(home).join(layout::OWNER_KEY)
}

/// Returns the owner's public key if the key exists.
pub(crate) fn existing_owner_key(home: &Home) -> anyhow::Result<Option<PublicKey>> {
    Ok(load(&owner_key_path(home))?.map(|key| key.public_key().clone()))
}

/// Returns the directory for files that belong to no single sandbox.
pub(crate) fn directory(home: &Home) -> PathBuf {
    home.root().join(layout::SSH)
}

fn load_or_create(directory: &Path, name: &str, comment: &str) -> anyhow::Result<PrivateKey> {
    let path = directory.join(name);
    if let Some(key) = load(&path)? {
        return Ok(key);
    }
    write::create_dir(directory)?;
    // Processes that start at the same time must agree on one key.
    let _held = Lock::exclusive(&directory.join(layout::LOCK))?;
    if let Some(key) = load(&path)? {
        return Ok(key);
    }
    let key = generate(comment)?;
    let text = key.to_openssh(LineEnding::LF).context("cannot encode the key")?;
    write::replace(&path, text.as_bytes())?;
    Ok(key)
}

fn generate(comment: &str) -> anyhow::Result<PrivateKey> {
    let mut seed = [0; 32];
    write::random(&mut seed)?;
    let mut key = PrivateKey::from(Ed25519Keypair::from_seed(&seed));
    key.set_comment(comment);
    Ok(key)
}

/// Loads a key. Refuses a key that others can read.
fn load(path: &Path) -> anyhow::Result<Option<PrivateKey>> {
    let Some(bytes) = write::read_bounded(path, KEY_FILE_BYTES)? else {
        return Ok(None);
    };
    let metadata =
        std::fs::metadata(path).with_context(|| format!("cannot read '{}'", path.display()))?;
    if !is_trusted(metadata.uid()) {
        let message = format!("the key '{}' belongs to another user", path.display());
        let hint = format!("remove it, and a new key is created: rm '{}'", path.display());
        return Err(Failure::failed(message).hint(hint).into());
    }
    if metadata.permissions().mode() & OTHERS != 0 {
        let message = format!("other users can read the key '{}'", path.display());
        let hint = format!("if they have not read it: chmod 600 '{}'", path.display());
        return Err(Failure::failed(message).hint(hint).into());
    }
    let key = PrivateKey::from_openssh(bytes)
        .with_context(|| format!("'{}' is not a private key", path.display()))?;
    Ok(Some(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_created_once_with_mode_0600() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("ssh");
        let first = load_or_create(&directory, "key", "c").unwrap();
        let second = load_or_create(&directory, "key", "c").unwrap();
        assert_eq!(first.public_key(), second.public_key());
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&directory), mode(&directory.join("key"))), (0o700, 0o600));
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let home = tempfile::tempdir().unwrap();
        load_or_create(home.path(), "key", "c").unwrap();
        let path = home.path().join("key");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        let error = load(&path).unwrap_err().to_string();
        assert!(error.starts_with("other users can read the key"), "{error}");
    }
}
