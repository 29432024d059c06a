//! Copies of files and directories, from the host into a guest or out of it.
//!
//! The client opens a stream with a [`FilesRequest`]. The agent answers `started` or `failed` as
//! for a command (see [`crate::exec`]). Then the source sends the files as [`record`]s: the client
//! on the channel of standard input, the agent on that of standard output. A client that sends
//! files receives problems, and the end, on standard output. The last event is `exited`.
//!
//! A record names one directory or file, relative to the open directory, and never a path. So the
//! receiver resolves no paths: it goes from descriptor to descriptor, one name at a time, and
//! follows no link. This rules out symlink races. Both sides of both directions use the code of
//! this module, since either side may be hostile.

use serde::{Deserialize, Serialize};

use crate::text::Text;

/// The receiver: writes files from records.
pub mod receive;
/// The format of records, with a reader and a writer.
pub mod record;
/// The sender: reads files and writes records.
pub mod send;
#[cfg(test)]
mod tests;

/// A request to copy files into or out of a guest, or to change files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesRequest {
    /// Direction of the copy.
    pub direction: Direction,
    /// The file or directory in the guest, an absolute path.
    pub path: Text,
    /// Into the guest: the name to create below an existing directory. Without it, the contents of
    /// the source go there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Text>,
    /// Into the guest: true if `path` must be an existing directory.
    #[serde(default, rename = "into_folder")]
    pub into_directory: bool,
    /// Out of the guest: true to follow `path` if it is a symbolic link.
    #[serde(default)]
    pub follow: bool,
    /// User that reads or writes in the guest: `USER|UID[:GROUP|GID]`; root if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Text>,
    /// True to keep owners, and the set-user-ID, set-group-ID and sticky bits.
    #[serde(default)]
    pub archive: bool,
    /// True to keep extended attributes.
    #[serde(default)]
    pub xattrs: bool,
    /// Into the guest: true if `path` must not exist.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub exclusive: bool,
    /// Permission bits (07777) that `path` gets after the change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
}

impl FilesRequest {
    /// Returns whether an older peer would ignore a part of the request.
    pub fn is_patch(&self) -> bool {
        self.direction == Direction::Append || self.exclusive || self.mode.is_some()
    }
}

/// Direction of a copy, or a change without a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Out of the guest.
    Get,
    /// Into the guest.
    Put,
    /// Into the guest: appends the data of one file to the existing file `path`.
    Append,
    /// No copy: creates the directory `path`, with its parents, unless it exists.
    #[serde(rename = "make_folder")]
    MakeDirectory,
    /// No copy: removes `path`, with its contents if it is a directory. It may be missing. Links
    /// are not followed, and other file systems are not entered.
    Remove,
}

impl Direction {
    /// Returns whether the client sends records.
    pub fn takes_data(self) -> bool {
        matches!(self, Direction::Put | Direction::Append)
    }

    /// Returns whether no files are copied. The agent then answers [`record::Record::Done`] or
    /// [`record::Record::Failed`].
    pub fn is_change(self) -> bool {
        matches!(self, Direction::MakeDirectory | Direction::Remove)
    }
}
