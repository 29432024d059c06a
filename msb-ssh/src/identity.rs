//! The keys of a sandbox and of its owner: Ed25519, made when they are first needed, in files of mode 0600.
//!
//! A sandbox's host key lies in its folder, stays the same as long as the sandbox is there, and goes with it. The owner's
//! key lies in the state directory: whoever can read it can run commands in every sandbox anyway, so it is always let in.

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

/// Bytes of a file with a key.
const KEY_FILE_BYTES: u64 = 64 * 1024;

/// Bits of a mode that let others in.
const OTHERS: u32 = 0o077;

/// The host key of a sandbox.
pub(crate) fn of_host(home: &Home, name: &SandboxName) -> anyhow::Result<PrivateKey> {
    let folder = home.sandboxes().find(name)?.path(layout::SSH);
    load_or_make(&folder, layout::HOST_KEY, &format!("msb-{name}"))
}

/// The key with which this user reaches their own sandboxes.
pub(crate) fn of_owner(home: &Home) -> anyhow::Result<PrivateKey> {
    load_or_make(&folder(home), layout::OWNER_KEY, "msb-owner")
}

/// Where the owner's key is.
pub(crate) fn owner_path(home: &Home) -> PathBuf {
    folder(home).join(layout::OWNER_KEY)
}

/// The owner's key, if there is one yet.
pub(crate) fn owner_if_made(home: &Home) -> anyhow::Result<Option<PublicKey>> {
    Ok(load(&owner_path(home))?.map(|key| key.public_key().clone()))
}

/// The folder of what belongs to no sandbox.
pub(crate) fn folder(home: &Home) -> PathBuf {
    home.root().join(layout::SSH)
}

fn load_or_make(folder: &Path, name: &str, comment: &str) -> anyhow::Result<PrivateKey> {
    let path = folder.join(name);
    if let Some(key) = load(&path)? {
        return Ok(key);
    }
    write::create_dir(folder)?;
    // Two who come at once must agree on one key.
    let _held = Lock::exclusive(&folder.join(layout::LOCK))?;
    if let Some(key) = load(&path)? {
        return Ok(key);
    }
    let key = generate(comment)?;
    let text = key
        .to_openssh(LineEnding::LF)
        .context("cannot write a key")?;
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

/// A key that others can read is none.
fn load(path: &Path) -> anyhow::Result<Option<PrivateKey>> {
    let Some(bytes) = write::read_bounded(path, KEY_FILE_BYTES)? else {
        return Ok(None);
    };
    let metadata =
        std::fs::metadata(path).with_context(|| format!("cannot read '{}'", path.display()))?;
    if !is_trusted(metadata.uid()) {
        let message = format!("the key '{}' belongs to another user", path.display());
        let hint = format!("remove it, and a new one is made: rm '{}'", path.display());
        return Err(Failure::failed(message).hint(hint).into());
    }
    if metadata.permissions().mode() & OTHERS != 0 {
        let message = format!("others can read the key '{}'", path.display());
        let hint = format!("if they have not: chmod 600 '{}'", path.display());
        return Err(Failure::failed(message).hint(hint).into());
    }
    let key = PrivateKey::from_openssh(bytes)
        .with_context(|| format!("'{}' is no private key", path.display()))?;
    Ok(Some(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_for_its_owner_alone() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("ssh");
        let first = load_or_make(&folder, "key", "c").unwrap();
        let second = load_or_make(&folder, "key", "c").unwrap();
        assert_eq!(first.public_key(), second.public_key());
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&folder), mode(&folder.join("key"))), (0o700, 0o600));
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let home = tempfile::tempdir().unwrap();
        load_or_make(home.path(), "key", "c").unwrap();
        let path = home.path().join("key");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        let error = load(&path).unwrap_err().to_string();
        assert!(error.starts_with("others can read the key"), "{error}");
    }
}
