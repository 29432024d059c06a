//! Changes of files in a stored configuration.

use std::ffi::OsStr;

use libmsb::cli::error::Failure;
use libmsb::state::guest::{FileBody, GuestChange};
use msb_wire::text::Text;
use serde::Deserialize;

use crate::guest::changes::{SourceType, source};
use crate::guest::guest_path::guest_path;

/// Largest mode: all permission bits.
const MODE_MAX: u32 = 0o7777;

/// A change of the files of the root, made before the first boot.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) enum StoredPatch {
    /// Writes a file with a text.
    Text {
        /// Absolute path in the guest.
        path: String,
        /// Content.
        content: String,
        /// Permission bits.
        #[serde(default)]
        mode: Option<u32>,
        /// True to replace an existing file.
        #[serde(default)]
        replace: bool,
    },
    /// Writes a file with any bytes.
    File {
        /// Absolute path in the guest.
        path: String,
        /// Content.
        content: Vec<u8>,
        /// Permission bits.
        #[serde(default)]
        mode: Option<u32>,
        /// True to replace an existing file.
        #[serde(default)]
        replace: bool,
    },
    /// Copies a file of the host.
    CopyFile {
        /// Path on the host.
        src: String,
        /// Absolute path in the guest.
        dst: String,
        /// Permission bits.
        #[serde(default)]
        mode: Option<u32>,
        /// True to replace an existing file.
        #[serde(default)]
        replace: bool,
    },
    /// Copies a directory of the host.
    CopyDir {
        /// Path on the host.
        src: String,
        /// Absolute path in the guest.
        dst: String,
        /// True to copy into an existing directory.
        #[serde(default)]
        replace: bool,
    },
    /// Creates a symbolic link.
    Symlink {
        /// Target of the link.
        target: String,
        /// Absolute path of the link in the guest.
        link: String,
        /// True to replace an existing file.
        #[serde(default)]
        replace: bool,
    },
    /// Creates a directory, with its parents.
    Mkdir {
        /// Absolute path in the guest.
        path: String,
        /// Permission bits.
        #[serde(default)]
        mode: Option<u32>,
    },
    /// Removes a file or directory, if it exists.
    Remove {
        /// Absolute path in the guest.
        path: String,
    },
    /// Appends a text to a file.
    Append {
        /// Absolute path in the guest.
        path: String,
        /// The text.
        content: String,
    },
}

/// Converts a change of a stored configuration.
pub(super) fn guest_change(stored: &StoredPatch) -> anyhow::Result<GuestChange> {
    // A slash at the end would name the directory that the file goes into.
    let at = |path: &str| guest_path(path.trim_end_matches('/').as_bytes());
    let bits = |mode: &Option<u32>| match mode {
        Some(mode) if *mode > MODE_MAX => {
            Err(Failure::usage(format!("invalid mode {mode:o} of a patch")))
        }
        mode => Ok(*mode),
    };
    Ok(match stored {
        StoredPatch::Text { path, content, mode, replace } => GuestChange::Write {
            path: at(path)?,
            body: FileBody(content.clone().into_bytes()),
            mode: bits(mode)?,
            exclusive: !replace,
        },
        StoredPatch::File { path, content, mode, replace } => GuestChange::Write {
            path: at(path)?,
            body: FileBody(content.clone()),
            mode: bits(mode)?,
            exclusive: !replace,
        },
        StoredPatch::CopyFile { src, dst, mode, replace } => GuestChange::Copy {
            from: source(OsStr::new(src), SourceType::File)?,
            to: at(dst)?,
            mode: bits(mode)?,
            exclusive: !replace,
        },
        StoredPatch::CopyDir { src, dst, replace } => GuestChange::Copy {
            from: source(OsStr::new(src), SourceType::Directory)?,
            to: at(dst)?,
            mode: None,
            exclusive: !replace,
        },
        StoredPatch::Symlink { target, link, replace } => GuestChange::Link {
            path: at(link)?,
            target: Text::from(target.clone()),
            exclusive: !replace,
        },
        StoredPatch::Mkdir { path, mode } => {
            GuestChange::MakeDirectory { path: at(path)?, mode: bits(mode)? }
        }
        StoredPatch::Remove { path } => GuestChange::Remove { path: at(path)? },
        StoredPatch::Append { path, content } => {
            GuestChange::Append { path: at(path)?, body: FileBody(content.clone().into_bytes()) }
        }
    })
}
