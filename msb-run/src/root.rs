//! Source of a guest's root file system: parsing of the image argument, and its resolution.
//!
//! The kind depends on the argument's text alone, never on what exists at that path. An argument
//! that looks like a path (`/…`, `./…`, `../…`, `.`, `..`) is a path; it is a disk image if a
//! format is given or follows from the end of its name. Every other argument is an image reference.
//! So a directory that happens to be called `alpine` does not take the place of the image.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::Context;
use libmsb::cli::error::{Code, Failure};
use libmsb::cli::escape::escape;
use libmsb::machine::DiskImageFormat;
use libmsb::reference::Reference;
use libmsb::state::Home;
use libmsb::state::image_name::ImageName;
use libmsb::state::images::Config;
use libmsb::state::lock::Lock;
use libmsb::state::snapshots::Snapshot;
use libmsb::state::spec::{RootSource, SpecImage};
use msb_wire::text::Text;

use crate::mounts::{format_of_name, is_path, parse_format, parse_fstype, resolved};
use crate::pull::{self, PullPolicy, RegistryLogin};
use crate::snapshot::reference::SnapshotArg;

/// The image argument as typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RootArg {
    /// A name of an image: a reference, ID or digest.
    Image(ImageName),
    /// A directory of the host.
    Directory(Text),
    /// A disk image with a file system.
    Disk { path: Text, format: DiskImageFormat, fstype: Option<String> },
    /// A snapshot: its image, and its disk above it.
    Snapshot(SnapshotArg),
}

/// A root file system that exists.
pub(crate) struct ResolvedRoot {
    /// Source for the specification.
    pub(crate) root: RootSource,
    /// Configuration of the image; empty for a directory or disk image.
    pub(crate) config: Config,
    /// Snapshot with the disk above the image.
    pub(crate) snapshot: Option<Snapshot>,
    /// Lock on the image store, held until the sandbox exists and pins the image.
    pub(crate) in_use: Option<Lock>,
}

/// Parses the image argument; a value parser for clap.
pub(crate) fn parse_root(typed: OsString) -> Result<RootArg, Failure> {
    if is_path(typed.as_bytes()) {
        return parse_path(typed.as_bytes());
    }
    let text = typed.to_str().ok_or_else(|| {
        let shown = escape(typed.as_bytes());
        Failure::usage(format!("'{shown}' is not an image reference: it is not UTF-8"))
    })?;
    Ok(RootArg::Image(text.parse()?))
}

/// Parses `PATH` or `PATH:WORD,…`, where a word is `raw`, `qcow2` or `fstype=NAME`.
fn parse_path(typed: &[u8]) -> Result<RootArg, Failure> {
    let mut parts = typed.splitn(2, |byte| *byte == b':');
    let (path, words) = (parts.next().unwrap_or_default(), parts.next());
    let mut format = format_of_name(path);
    let mut fstype = None;
    let invalid = |why: String| {
        let shown = escape(typed);
        Failure::usage(format!("invalid root '{shown}': {why}")).hint(
            "give a directory, as ./root, or a disk image, as ./root.img or ./root:raw,fstype=ext4",
        )
    };
    if let Some(words) = words {
        let words = std::str::from_utf8(words)
            .map_err(|_| invalid("the text after ':' is not UTF-8".to_owned()))?;
        for word in words.split(',') {
            match word.strip_prefix("fstype=") {
                Some(name) => fstype = Some(parse_fstype(name)?),
                None => {
                    let parsed = parse_format(word).map_err(|error| invalid(error.to_string()))?;
                    format = Some(parsed);
                }
            }
        }
    }
    let path = Text(path.to_vec());
    match (format, words) {
        (Some(format), _) => Ok(RootArg::Disk { path, format, fstype }),
        (None, None) => Ok(RootArg::Directory(path)),
        (None, Some(_)) => Err(invalid("the disk format is missing".to_owned())),
    }
}

impl RootArg {
    /// Resolves the source. Pulls an image according to `pull`, with the credentials `login`;
    /// resolves the symbolic links of a path.
    pub(crate) fn resolve(
        &self,
        home: &Home,
        pull: PullPolicy,
        login: Option<&RegistryLogin>,
    ) -> anyhow::Result<ResolvedRoot> {
        let path = match self {
            RootArg::Image(name) => return find_image(home, name, pull, login),
            RootArg::Snapshot(snapshot) => return open_snapshot(home, snapshot, pull),
            RootArg::Directory(path) | RootArg::Disk { path, .. } => path,
        };
        if pull == PullPolicy::Always {
            let message = format!("cannot pull '{self}': not an image");
            return Err(Failure::usage(message).into());
        }
        let root = self.source_at(resolved(path)?);
        check_type(&root)?;
        Ok(ResolvedRoot { root, config: Config::default(), snapshot: None, in_use: None })
    }

    fn source_at(&self, path: Text) -> RootSource {
        match self {
            RootArg::Disk { format, fstype, .. } => {
                RootSource::RootImage { path, format: *format, fstype: fstype.clone() }
            }
            _ => RootSource::RootDirectory { path },
        }
    }

    /// Returns whether a sandbox with this root was created from this argument.
    pub(crate) fn matches(&self, home: &Home, root: &RootSource) -> anyhow::Result<bool> {
        Ok(match (self, root) {
            (RootArg::Image(typed), RootSource::Image(image)) => {
                typed.matches(&home.images(), &image.reference, &image.manifest_digest)?
            }
            (RootArg::Image(_) | RootArg::Snapshot(_), _) => false,
            (RootArg::Directory(path) | RootArg::Disk { path, .. }, root) => {
                self.source_at(resolved(path)?) == *root
            }
        })
    }
}

impl fmt::Display for RootArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RootArg::Image(name) if name.is_id() => name.fmt(f),
            RootArg::Image(name) => name.reference().fmt(f),
            RootArg::Snapshot(snapshot) => snapshot.fmt(f),
            RootArg::Directory(path) | RootArg::Disk { path, .. } => escape(path.as_bytes()).fmt(f),
        }
    }
}

fn find_image(
    home: &Home,
    name: &ImageName,
    pull: PullPolicy,
    login: Option<&RegistryLogin>,
) -> anyhow::Result<ResolvedRoot> {
    let images = home.images();
    pull::pull_if_needed(&images, name, pull, login)?;
    let in_use = if images.root().is_dir() { Some(Lock::shared(&images.lock())?) } else { None };
    let image = images.find(name)?;
    images.mark_used(&image.reference);
    Ok(ResolvedRoot {
        root: RootSource::Image(SpecImage {
            reference: image.reference.to_string(),
            manifest_digest: image.manifest_digest,
        }),
        config: image.config.config().clone().unwrap_or_default(),
        snapshot: None,
        in_use,
    })
}

/// Opens a snapshot and its image, which is pulled by its digest if it is missing.
fn open_snapshot(
    home: &Home,
    snapshot: &SnapshotArg,
    pull: PullPolicy,
) -> anyhow::Result<ResolvedRoot> {
    let snapshot = snapshot.open(home)?;
    let pinned = &snapshot.manifest.image;
    let reference: Reference = pinned.reference.parse()?;
    let images = home.images();
    let is_missing = || !images.manifest_path(&pinned.manifest_digest).exists();
    let missing = || {
        let shown = escape(&pinned.reference);
        Failure::not_found(format!(
            "the image of the snapshot '{}' is missing: {shown} with the digest {}",
            snapshot.name, pinned.manifest_digest
        ))
        .code(Code::SnapshotImageMissing)
        .hint("load it, or import the snapshot again from an archive made with --with-image")
    };
    if is_missing() {
        let by_digest: ImageName =
            reference.with_digest(pinned.manifest_digest).to_string().parse()?;
        if pull != PullPolicy::Never {
            pull::pull_if_needed(&images, &by_digest, PullPolicy::IfMissing, None)
                .with_context(missing)?;
        }
    }
    let in_use = if images.root().is_dir() { Some(Lock::shared(&images.lock())?) } else { None };
    if is_missing() {
        return Err(missing().into());
    }
    let image = images.open(&reference, &pinned.manifest_digest)?;
    images.mark_used(&image.reference);
    let root = RootSource::Image(SpecImage {
        reference: image.reference.to_string(),
        manifest_digest: image.manifest_digest,
    });
    let config = image.config.config().clone().unwrap_or_default();
    Ok(ResolvedRoot { root, config, snapshot: Some(snapshot), in_use })
}

/// Checks that the path has the right type. Refuses the host's own root: it would bring the host
/// kernel's file systems along and could not boot.
fn check_type(root: &RootSource) -> Result<(), Failure> {
    let (path, directory) = match root {
        RootSource::Image(_) => return Ok(()),
        RootSource::RootDirectory { path } => (path, true),
        RootSource::RootImage { path, .. } => (path, false),
    };
    let shown = escape(path.as_bytes());
    let path = Path::new(OsStr::from_bytes(path.as_bytes()));
    match (directory, path.is_dir()) {
        (true, true) if path == Path::new("/") => {
            Err(Failure::usage("cannot use '/' of the host as the root of a guest")
                .hint("mount a part of it: -v /usr:/usr:ro"))
        }
        (true, true) => Ok(()),
        (true, false) => Err(Failure::usage(format!("'{shown}' is not a directory"))
            .hint(format!("for a disk image add the format: '{shown}:raw'"))),
        (false, true) => Err(Failure::usage(format!("'{shown}' is a directory, not a disk image"))
            .hint(format!("for a directory end the path with '/': '{shown}/'"))),
        (false, false) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(typed: &str) -> RootArg {
        parse_root(typed.into()).unwrap()
    }

    fn disk(typed: &str) -> (String, DiskImageFormat, Option<String>) {
        match parsed(typed) {
            RootArg::Disk { path, format, fstype } => (path.to_lossy(), format, fstype),
            other => panic!("{typed}: {other:?}"),
        }
    }

    #[test]
    fn a_path_differs_from_an_image_by_its_text() {
        for image in ["alpine", "localhost:5000/a/b:raw", "a/b.img", "x.qcow2"] {
            assert!(matches!(parsed(image), RootArg::Image(_)), "{image}");
        }
        for directory in ["/", ".", "..", "./alpine", "../x", "/srv/root", "./x.img/"] {
            assert_eq!(parsed(directory), RootArg::Directory(directory.into()));
        }
    }

    #[test]
    fn the_format_of_a_disk_is_given_or_follows_from_its_name() {
        let is = |typed: &str, path: &str, format, fstype: Option<&str>| {
            assert_eq!(disk(typed), (path.to_owned(), format, fstype.map(str::to_owned)));
        };
        is("./r.img", "./r.img", DiskImageFormat::Raw, None);
        is("/r.img:qcow2", "/r.img", DiskImageFormat::Qcow2, None);
        is("/r:raw,fstype=ext4", "/r", DiskImageFormat::Raw, Some("ext4"));
        is("/r.qcow2:fstype=xfs", "/r.qcow2", DiskImageFormat::Qcow2, Some("xfs"));
    }

    #[test]
    fn an_invalid_root_is_refused() {
        for typed in
            ["", "/r:", "/r:vmdk", "/r:fstype=ext4", "/r:raw,fstype=", "/r:raw:ro", "./a:b"]
        {
            assert!(parse_root(typed.into()).is_err(), "{typed}");
        }
    }
}
