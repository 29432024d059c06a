//! Names, paths and digests of snapshots, as typed.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use libmsb::cli::error::Failure;
use libmsb::cli::escape::escape;
use libmsb::digest::Digest;
use libmsb::state::Home;
use libmsb::state::snapshots::{Snapshot, SnapshotEntry, SnapshotName, no_such_snapshot};

use super::digest_of;

/// Fewest digits of an abbreviated digest.
const DIGITS_MIN: usize = 6;

/// A snapshot as typed: a name, a path, or a digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SnapshotArg {
    /// A name, or the first digits of a digest if there is no such name.
    Name(SnapshotName),
    /// A path: it contains `/`.
    Path(PathBuf),
    /// `sha256:` and the first digits of a digest.
    Digest(String),
}

impl fmt::Display for SnapshotArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SnapshotArg::Name(name) => name.fmt(f),
            SnapshotArg::Path(path) => escape(path.as_os_str().as_encoded_bytes()).fmt(f),
            SnapshotArg::Digest(digits) => write!(f, "sha256:{digits}"),
        }
    }
}

/// Parses a snapshot; a value parser for clap.
pub(crate) fn parse_snapshot(typed: OsString) -> Result<SnapshotArg, Failure> {
    if typed.as_encoded_bytes().contains(&b'/') || typed == "." || typed == ".." {
        return Ok(SnapshotArg::Path(typed.into()));
    }
    let text = typed.to_string_lossy();
    if let Some(digits) = text.strip_prefix("sha256:") {
        let valid = |digit: u8| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit);
        if digits.len() < DIGITS_MIN || digits.len() > 64 || !digits.bytes().all(valid) {
            return Err(Failure::usage(format!("'{}' is not a digest", escape(text.as_ref())))
                .hint(format!("give at least {DIGITS_MIN} hexadecimal digits after 'sha256:'")));
        }
        return Ok(SnapshotArg::Digest(digits.to_owned()));
    }
    text.parse().map(SnapshotArg::Name)
}

impl SnapshotArg {
    /// Finds and opens the snapshot.
    pub(crate) fn open(&self, home: &Home) -> anyhow::Result<Snapshot> {
        match self {
            SnapshotArg::Name(name) if home.snapshots().path(name).is_dir() => {
                home.snapshots().find(name)
            }
            SnapshotArg::Name(name) => match find_by_digits(home, name.as_str())? {
                Some(snapshot) if name.as_str().len() >= DIGITS_MIN => Ok(snapshot),
                _ => Err(no_such_snapshot(name.as_str()).into()),
            },
            SnapshotArg::Path(path) if path.is_dir() => Snapshot::open(path),
            SnapshotArg::Path(path) => Err(no_such_snapshot(&path.to_string_lossy()).into()),
            SnapshotArg::Digest(digits) => find_by_digits(home, digits)?
                .ok_or_else(|| no_such_snapshot(&format!("sha256:{digits}")).into()),
        }
    }

    /// Returns the directory of a new snapshot.
    pub(crate) fn target(&self, home: &Home) -> anyhow::Result<PathBuf> {
        match self {
            SnapshotArg::Name(name) => Ok(home.snapshots().path(name)),
            SnapshotArg::Path(path) => new_path(path),
            SnapshotArg::Digest(_) => {
                Err(Failure::usage("a new snapshot needs a name or a path").into())
            }
        }
    }
}

/// Resolves the directory above a new path.
fn new_path(path: &Path) -> anyhow::Result<PathBuf> {
    let cannot = || Failure::usage(format!("'{}' cannot be a new directory", path.display()));
    let absolute = std::path::absolute(path)?;
    let (parent, name) = absolute.parent().zip(absolute.file_name()).ok_or_else(cannot)?;
    let parent = parent.canonicalize().map_err(|error| {
        Failure::not_found(format!("cannot open '{}': {error}", parent.display()))
    })?;
    Ok(parent.join(name))
}

fn find_by_digits(home: &Home, digits: &str) -> anyhow::Result<Option<Snapshot>> {
    let mut found: Option<Snapshot> = None;
    for entry in home.snapshots().list()? {
        let Ok(snapshot) = entry.snapshot else { continue };
        if !digest_of(&snapshot.manifest)?.hex().starts_with(digits) {
            continue;
        }
        if found.as_ref().is_some_and(|other| other.manifest != snapshot.manifest) {
            let message = format!("several snapshots have a digest that starts with '{digits}'");
            return Err(Failure::usage(message).hint("give more digits").into());
        }
        found = Some(snapshot);
    }
    Ok(found)
}

/// Returns the names of the snapshots whose parent has this digest.
pub(crate) fn children(entries: &[SnapshotEntry], parent: Digest) -> Vec<&str> {
    let is_child = |entry: &&SnapshotEntry| {
        let snapshot = entry.snapshot.as_ref();
        snapshot.is_ok_and(|snapshot| snapshot.manifest.parent == Some(parent))
    };
    entries.iter().filter(is_child).map(|entry| entry.name.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_contains_a_slash_and_a_digest_has_its_prefix() {
        let parse = |text: &str| parse_snapshot(text.into());
        assert!(matches!(parse("base-1.2").unwrap(), SnapshotArg::Name(_)));
        for path in ["./x", "/a/b", "a/b", "~/x", ".", ".."] {
            assert!(matches!(parse(path).unwrap(), SnapshotArg::Path(_)), "{path}");
        }
        assert!(matches!(parse("sha256:0123ab").unwrap(), SnapshotArg::Digest(_)));
        for wrong in ["", "-x", ".hidden", "a b", "sha256:", "sha256:01", "sha256:01234X"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
