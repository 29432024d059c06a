//! Keeping the blocks of the upper disk that the guest overwrites, so that the host can copy the
//! disk of one moment while the guest runs.
//!
//! The supervisor serves it with the engine qemu. From the answer to `start_backup` on, each block
//! of the upper disk is copied to a sparse file in the directory of the sandbox before the guest
//! overwrites it. The copy of the disk is then: the data ranges of that moment, read at any time,
//! and over them the data ranges of the file. The backup ends at `end_backup` or when the client
//! that started it disconnects.

use serde::{Deserialize, Serialize};

use crate::sandbox::PauseFailure;

/// An answer to `start_backup` or `end_backup`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum BackupEvent {
    /// Overwritten blocks are kept from now on.
    Started {
        /// Name of the file in the directory of the sandbox. It is removed at the end.
        file: String,
    },
    /// No further block is kept. The file is complete, and its name is removed.
    Ended,
    /// The request failed, and the sandbox keeps its state.
    Failed {
        /// The kind of failure.
        kind: PauseFailure,
        /// The reason, for people.
        message: String,
        /// A hint.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hint: Option<String>,
    },
}
