//! Where a guest's root file system comes from: what is typed in the image's place, and what comes of it.
//!
//! The kind is told by the words alone, and never by what lies there: what looks like a path (`/…`, `./…`, `../…`, `.`,
//! `..`) is one, and a disk image if its format is said, or told by how its name ends; everything else is an image's
//! reference. So a folder that happens to be called `alpine` does not take the place of the image.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use libmsb::cli::error::Failure;
use libmsb::cli::escape::escape;
use libmsb::machine::Format;
use libmsb::reference::Reference;
use libmsb::state::Home;
use libmsb::state::images::Config;
use libmsb::state::lock::Lock;
use libmsb::state::spec::{RootSource, SpecImage};
use msb_wire::text::Text;

use crate::mounts::{format_of_name, is_path, parse_format, parse_fstype, resolved};
use crate::pull::{self, PullPolicy};

/// What was typed in the image's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TypedRoot {
    /// An image.
    Image(Reference),
    /// A folder of the host.
    Folder(Text),
    /// A disk image with a file system.
    Disk {
        path: Text,
        format: Format,
        fstype: Option<String>,
    },
}

/// A root that is there.
pub(crate) struct Found {
    /// What goes into the specification.
    pub(crate) root: RootSource,
    /// What an image says of its commands. Others say nothing.
    pub(crate) config: Config,
    /// Held until the sandbox, which pins the image, is there.
    pub(crate) in_use: Option<Lock>,
}

/// For clap.
pub(crate) fn parse_root(typed: OsString) -> Result<TypedRoot, Failure> {
    if is_path(typed.as_bytes()) {
        return parse_path(typed.as_bytes());
    }
    let text = typed.to_str().ok_or_else(|| {
        let shown = escape(typed.as_bytes());
        Failure::usage(format!("'{shown}' is no image: it is not UTF-8"))
    })?;
    Ok(TypedRoot::Image(text.parse()?))
}

/// `PATH` or `PATH:WORD,…`, where a word is `raw`, `qcow2` or `fstype=NAME`.
fn parse_path(typed: &[u8]) -> Result<TypedRoot, Failure> {
    let mut parts = typed.splitn(2, |byte| *byte == b':');
    let (path, words) = (parts.next().unwrap_or_default(), parts.next());
    let mut format = format_of_name(path);
    let mut fstype = None;
    let wrong = |why: String| {
        let shown = escape(typed);
        Failure::usage(format!("cannot understand the root '{shown}': {why}"))
            .hint("a folder, as ./root; or a disk image, as ./root.img, ./root:qcow2 or ./root:raw,fstype=ext4")
    };
    if let Some(words) = words {
        let words = std::str::from_utf8(words)
            .map_err(|_| wrong("what stands behind the ':' is no word".to_owned()))?;
        for word in words.split(',') {
            match word.strip_prefix("fstype=") {
                Some(name) => fstype = Some(parse_fstype(name)?),
                None => {
                    let said = parse_format(word).map_err(|error| wrong(error.to_string()))?;
                    format = Some(said);
                }
            }
        }
    }
    let path = Text(path.to_vec());
    match (format, words) {
        (Some(format), _) => Ok(TypedRoot::Disk {
            path,
            format,
            fstype,
        }),
        (None, None) => Ok(TypedRoot::Folder(path)),
        (None, Some(_)) => Err(wrong("the format of the disk is not said".to_owned())),
    }
}

impl TypedRoot {
    /// Finds it. An image is pulled if it has to be; a path leads through no symbolic link afterwards.
    pub(crate) fn find(&self, home: &Home, pull: PullPolicy) -> anyhow::Result<Found> {
        let path = match self {
            TypedRoot::Image(reference) => return find_image(home, reference, pull),
            TypedRoot::Folder(path) | TypedRoot::Disk { path, .. } => path,
        };
        if pull == PullPolicy::Always {
            let message = format!("'{self}' is no image, and cannot be pulled");
            return Err(Failure::usage(message).into());
        }
        let root = self.at(resolved(path)?);
        check(&root)?;
        Ok(Found {
            root,
            config: Config::default(),
            in_use: None,
        })
    }

    fn at(&self, path: Text) -> RootSource {
        match self {
            TypedRoot::Disk { format, fstype, .. } => RootSource::RootImage {
                path,
                format: *format,
                fstype: fstype.clone(),
            },
            _ => RootSource::RootFolder { path },
        }
    }

    /// Whether a sandbox was made from it.
    pub(crate) fn is(&self, root: &RootSource) -> anyhow::Result<bool> {
        Ok(match (self, root) {
            (TypedRoot::Image(typed), RootSource::Image(image)) => {
                image.reference == typed.to_string()
            }
            (TypedRoot::Image(_), _) => false,
            (TypedRoot::Folder(path) | TypedRoot::Disk { path, .. }, root) => {
                self.at(resolved(path)?) == *root
            }
        })
    }
}

impl fmt::Display for TypedRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TypedRoot::Image(reference) => reference.fmt(f),
            TypedRoot::Folder(path) | TypedRoot::Disk { path, .. } => {
                escape(path.as_bytes()).fmt(f)
            }
        }
    }
}

fn find_image(home: &Home, reference: &Reference, pull: PullPolicy) -> anyhow::Result<Found> {
    let images = home.images();
    pull::bring(&images, reference, pull)?;
    let in_use = if images.root().is_dir() {
        Some(Lock::shared(&images.lock())?)
    } else {
        None
    };
    let image = images.find(reference)?;
    Ok(Found {
        root: RootSource::Image(SpecImage {
            reference: image.reference.to_string(),
            manifest_digest: image.manifest_digest,
        }),
        config: image.config.config().clone().unwrap_or_default(),
        in_use,
    })
}

/// A folder is a folder, and not the host's own root: its kernel's file systems come along, and nothing would boot.
fn check(root: &RootSource) -> Result<(), Failure> {
    let (path, folder) = match root {
        RootSource::Image(_) => return Ok(()),
        RootSource::RootFolder { path } => (path, true),
        RootSource::RootImage { path, .. } => (path, false),
    };
    let shown = escape(path.as_bytes());
    let path = Path::new(OsStr::from_bytes(path.as_bytes()));
    match (folder, path.is_dir()) {
        (true, true) if path == Path::new("/") => Err(Failure::usage(
            "the host's own root cannot be that of a guest",
        )
        .hint("mount what is needed of it: -v /usr:/usr:ro")),
        (true, true) => Ok(()),
        (true, false) => Err(
            Failure::usage(format!("'{shown}' is no folder")).hint(format!(
                "for a disk image say its format, as in '{shown}:raw'"
            )),
        ),
        (false, true) => Err(
            Failure::usage(format!("'{shown}' is a folder, and no disk image")).hint(format!(
                "for a folder of that name end it with a '/', as in '{shown}/'"
            )),
        ),
        (false, false) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(typed: &str) -> TypedRoot {
        parse_root(typed.into()).unwrap()
    }

    fn disk(typed: &str) -> (String, Format, Option<String>) {
        match parsed(typed) {
            TypedRoot::Disk {
                path,
                format,
                fstype,
            } => (path.to_lossy(), format, fstype),
            other => panic!("{typed}: {other:?}"),
        }
    }

    #[test]
    fn a_path_is_told_from_an_image_by_its_words() {
        for image in ["alpine", "localhost:5000/a/b:raw", "a/b.img", "x.qcow2"] {
            assert!(matches!(parsed(image), TypedRoot::Image(_)), "{image}");
        }
        for folder in ["/", ".", "..", "./alpine", "../x", "/srv/root", "./x.img/"] {
            assert_eq!(parsed(folder), TypedRoot::Folder(folder.into()));
        }
    }

    #[test]
    fn the_format_of_a_disk_is_said_or_told_by_its_name() {
        let is = |typed: &str, path: &str, format, fstype: Option<&str>| {
            assert_eq!(
                disk(typed),
                (path.to_owned(), format, fstype.map(str::to_owned))
            );
        };
        is("./r.img", "./r.img", Format::Raw, None);
        is("/r.img:qcow2", "/r.img", Format::Qcow2, None);
        is("/r:raw,fstype=ext4", "/r", Format::Raw, Some("ext4"));
        is(
            "/r.qcow2:fstype=xfs",
            "/r.qcow2",
            Format::Qcow2,
            Some("xfs"),
        );
    }

    #[test]
    fn what_cannot_be_understood_is_refused() {
        for typed in [
            "",
            "/r:",
            "/r:vmdk",
            "/r:fstype=ext4",
            "/r:raw,fstype=",
            "/r:raw:ro",
            "./a:b",
        ] {
            assert!(parse_root(typed.into()).is_err(), "{typed}");
        }
    }
}
