//! Files and folders, from the host into a guest or out of it.
//!
//! The stream of a copy: the client opens it with a [`FilesRequest`]; the agent answers `started` or `failed` as for a
//! command (see [`crate::exec`]). Then the side that has the files sends them as [`record`]s: the client on the channel
//! of standard input, the agent on that of standard output. A client that sends files hears of problems, and of the end,
//! on standard output. The last event is `exited`.
//!
//! Records name one folder or file at a time, relative to the folder that is open, and never a path. So the receiving
//! side needs to resolve nothing: it works from descriptor to descriptor, one name each, and follows no link. Both sides
//! of both directions are the code of this module, since either side may lie to the other.

use serde::{Deserialize, Serialize};

use crate::text::Text;

/// From records to files.
pub mod receive;
/// The form of what is sent.
pub mod record;
/// From files to records.
pub mod send;
#[cfg(test)]
mod tests;

/// Copies into or out of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesRequest {
    /// Which way.
    pub direction: Direction,
    /// The file or folder in the guest, absolute.
    pub path: Text,
    /// Into the guest: the name to take below an existing folder; without it, what is in the source goes there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Text>,
    /// Into the guest: `path` must be a folder that is there.
    #[serde(default)]
    pub into_folder: bool,
    /// Out of the guest: if `path` is a symbolic link, what it names is meant.
    #[serde(default)]
    pub follow: bool,
    /// Who reads or writes in the guest: `USER|UID[:GROUP|GID]`; root when it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Text>,
    /// Owners, and the bits set-user-id, set-group-id and sticky, are kept.
    #[serde(default)]
    pub archive: bool,
    /// Extended attributes are kept.
    #[serde(default)]
    pub xattrs: bool,
}

/// Which way a copy goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Out of the guest.
    Get,
    /// Into the guest.
    Put,
    /// Neither: the folder `path` is made, with those above it, where it is not there.
    MakeFolder,
    /// Neither: what is at `path` goes, and if it is a folder all that is in it; nothing need be there. Links are not
    /// followed, and other file systems are left alone.
    Remove,
}

impl Direction {
    /// Whether no files travel: the agent answers [`record::Record::Done`] or [`record::Record::Failed`].
    pub fn is_change(self) -> bool {
        matches!(self, Direction::MakeFolder | Direction::Remove)
    }
}
