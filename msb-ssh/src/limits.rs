//! Limits of the server.

use std::time::Duration;

/// Receive window of a channel in bytes. Same as OpenSSH: at a round-trip time of 100 ms it allows
/// 20 MB/s.
pub(crate) const WINDOW_BYTES: u32 = 2 * 1024 * 1024;

/// Largest packet in bytes that the server accepts; clients send no larger ones.
pub(crate) const PACKET_BYTES: u32 = 32 * 1024;

/// Bytes of one channel that may wait for the guest before its window is no longer extended.
pub(crate) const QUEUE_BYTES: usize = WINDOW_BYTES as usize;

/// Bytes of one client, over all channels, that may wait for the guest. A client that keeps to its
/// windows reaches this only with dozens of channels whose programs do not read; it is disconnected
/// with a message.
pub(crate) const CLIENT_QUEUE_BYTES: usize = 128 * 1024 * 1024;

/// Default limit of open channels of one client.
pub(crate) const CHANNELS: usize = 512;

/// Default limit of clients that are logged in.
pub(crate) const CLIENTS: usize = 256;

/// Limit of connections that have not authenticated. One more closes the oldest connection of the
/// source with the most of them, so a client that logs in within a fraction of a second succeeds
/// even while another source holds many connections half open.
pub(crate) const PENDING_LOGINS_MAX: usize = 100;

/// Failed authentication attempts after which a connection is closed. A client tries each key of
/// its agent; OpenSSH's server allows six as well.
pub(crate) const AUTH_ATTEMPTS: usize = 6;

/// Minimum time of the answer to a failed attempt, so that its timing reveals nothing.
pub(crate) const REJECTION_TIME: Duration = Duration::from_millis(100);

/// Keepalive messages that may stay unanswered.
pub(crate) const KEEPALIVE_COUNT_MAX: usize = 3;

/// Environment variables that one session may set.
pub(crate) const VARIABLES: usize = 128;

/// Terminal modes that one session may set: the range of their numbers.
pub(crate) const TERMINAL_MODES: usize = 256;

/// Bytes of the name and value of one environment variable together.
pub(crate) const VARIABLE_BYTES: usize = 32 * 1024;

/// Bytes of all environment variables and command lines of one client that have not been sent to
/// the guest, over all sessions. Same as Linux accepts for one program with the default stack
/// limit.
pub(crate) const SETTINGS_BYTES: usize = 2 * 1024 * 1024;

/// Maximum size of an authorized_keys file in bytes.
pub(crate) const KEYS_FILE_BYTES: u64 = 1024 * 1024;

/// Timeout of a forwarded connection in milliseconds.
pub(crate) const CONNECT_TIMEOUT_MS: u32 = 30_000;

/// Bytes that are sent with one key before a key re-exchange, RFC 4253 section 9.
pub(crate) const REKEY_BYTES: usize = 1 << 30;

/// Time that one key is used before a key re-exchange, RFC 4253 section 9.
pub(crate) const REKEY_TIME: Duration = Duration::from_secs(3600);

/// Time for a client to take the disconnect message.
pub(crate) const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(2);
