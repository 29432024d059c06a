//! Freezing the guest's upper file system, so that the host can copy its disk at one moment.
//!
//! The stream is that of a command ([`crate::exec`]). The agent flushes the file system, freezes it
//! (FIFREEZE), and writes [`FROZEN`] to standard output. Writers wait until it is thawed: at the end
//! of standard input, when the client closes the stream or has gone, or after the timeout. The exit
//! code is 0 if the client ended the input in time, [`EXPIRED`] after the timeout, and another one
//! if the file system cannot be frozen. Then standard output has the reason instead.

use serde::{Deserialize, Serialize};

/// Output of the agent when the file system is frozen.
pub const FROZEN: &[u8] = b"frozen\n";
/// Exit code after the timeout.
pub const EXPIRED: i32 = 124;
/// Longest timeout, in milliseconds. Longer requests are cut to it.
pub const TIMEOUT_MS_MAX: u32 = 60_000;

/// A request to freeze the upper file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FreezeRequest {
    /// Time after which the file system is thawed in any case, in milliseconds.
    pub timeout_ms: u32,
}
