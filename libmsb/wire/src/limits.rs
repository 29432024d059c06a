//! Every bound of the protocol. A peer that goes beyond one of them is broken or hostile, and is told so or cut off.

use crate::frame::HEADER_BYTES;

/// Largest payload of one frame, in bytes. Small, so that no stream holds up the others for long.
pub const PAYLOAD_BYTES_MAX: usize = 64 * 1024;

/// What a sender puts into one frame of data, in bytes: with the header these are whole pages. A guest's port takes pages,
/// and an interrupt for each few, which the last bytes of a longer frame would have for themselves.
pub const DATA_BYTES: usize = PAYLOAD_BYTES_MAX - HEADER_BYTES;

/// Largest message (request, event, control), in bytes, put together from frames with [`crate::frame::flags::MORE`].
/// Above what Linux takes as arguments and environment of one program (2 MiB with the usual stack limit).
pub const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Bytes that a sender may have under way on one channel before the receiver grants more.
pub const WINDOW_BYTES: u32 = 256 * 1024;

/// A receiver grants credit again when it has used this much of the window, in bytes: two frames, while two more are under
/// way. Each grant wakes the other side.
pub const CREDIT_STEP_BYTES: u32 = 2 * DATA_BYTES as u32;

/// Streams that one client may have open at a time.
pub const CLIENT_STREAMS_MAX: usize = 64;

/// Clients that a supervisor serves at a time.
pub const CLIENTS_MAX: usize = 256;

/// Time that a peer has to say hello, in milliseconds.
pub const HELLO_TIMEOUT_MS: u64 = 10_000;

/// Shortest time between two samples of a guest, in milliseconds.
pub const SAMPLES_INTERVAL_MS_MIN: u64 = 100;

/// Longest time between two samples of a guest, in milliseconds: a day.
pub const SAMPLES_INTERVAL_MS_MAX: u64 = 24 * 60 * 60 * 1000;
