//! Limits of the protocol. A peer that exceeds one is broken or hostile: its call is refused or its
//! connection closed.

/// Size of a frame's header, in bytes.
pub const HEADER_BYTES: usize = 12;

/// Largest payload of one frame, in bytes. Small, so that no stream delays the others for long.
pub const PAYLOAD_BYTES_MAX: usize = 64 * 1024;

/// Bytes that a sender puts into one data frame: with the header these fill whole pages. A guest's
/// port is fed in pages, with an interrupt for each few, and the last bytes of a longer frame would
/// need one of their own.
pub const DATA_BYTES: usize = PAYLOAD_BYTES_MAX - HEADER_BYTES;

/// Largest message (request, event, control), in bytes, assembled from frames with
/// [`crate::frame::flags::MORE`]. Larger than the limit of Linux for arguments and environment of
/// one program (2 MiB with the usual stack limit).
pub const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Flow control window: bytes that may be in flight on one channel before the receiver grants more.
pub const WINDOW_BYTES: u32 = 256 * 1024;

/// Consumed bytes after which a receiver grants credit: two frames, while two more are in flight.
/// Each grant wakes the other side.
pub const CREDIT_STEP_BYTES: u32 = 2 * DATA_BYTES as u32;

/// Limit of open streams of one client.
pub const CLIENT_STREAMS_MAX: usize = 64;

/// Limit of clients of a supervisor.
pub const CLIENTS_MAX: usize = 256;

/// Timeout of the handshake, in milliseconds.
pub const HELLO_TIMEOUT_MS: u64 = 10_000;

/// Shortest interval of samples of a guest, in milliseconds.
pub const SAMPLES_INTERVAL_MS_MIN: u64 = 100;

/// Longest interval of samples of a guest, in milliseconds: a day.
pub const SAMPLES_INTERVAL_MS_MAX: u64 = 24 * 60 * 60 * 1000;
