//! Every limit of the server.

use std::time::Duration;

/// Bytes that a client may send on a channel before we grant more. As many as OpenSSH grants: at 100 ms to the client and
/// back that is 20 MB/s.
pub(crate) const WINDOW_BYTES: u32 = 2 * 1024 * 1024;

/// Largest packet that we take, in bytes: what every client sends at most.
pub(crate) const PACKET_BYTES: u32 = 32 * 1024;

/// Bytes of one channel that wait for the guest, beyond which nothing more is granted.
pub(crate) const QUEUE_BYTES: usize = WINDOW_BYTES as usize;

/// Bytes of one client, all channels together, that wait for the guest. A client that keeps to its windows comes there
/// only with dozens of channels whose programs do not read; it is told so and sent away.
pub(crate) const CLIENT_QUEUE_BYTES: usize = 128 * 1024 * 1024;

/// Channels of one client at a time, when nobody says.
pub(crate) const CHANNELS: usize = 512;

/// Clients that are logged in at a time, when nobody says.
pub(crate) const CLIENTS: usize = 256;

/// Clients that have not logged in yet, at a time. One more, and the oldest one of the busiest source must go: so who
/// takes a fraction of a second to log in gets in, however many connections somebody else leaves half open.
pub(crate) const PENDING: usize = 100;

/// Failed attempts to log in, after which a connection is closed. A client tries each key of its agent, and has none left
/// after six with OpenSSH's server as well.
pub(crate) const AUTH_ATTEMPTS: usize = 6;

/// How long an answer to a failed attempt takes at least, so that it tells nothing by its time.
pub(crate) const REJECTION_TIME: Duration = Duration::from_millis(100);

/// Signs of life that may stay without an answer.
pub(crate) const KEEP_ALIVES: usize = 3;

/// Variables that one session may set, and bytes of each.
pub(crate) const VARIABLES: usize = 128;

/// Modes that a terminal may be given: the numbers that there are.
pub(crate) const TERMINAL_MODES: usize = 256;

/// Bytes of a variable's name and value together.
pub(crate) const VARIABLE_BYTES: usize = 32 * 1024;

/// Bytes of all variables and command lines of one client that the guest does not have yet, whatever the number of sessions.
/// As much as Linux takes for one program, with the usual limit of its stack.
pub(crate) const SETTINGS_BYTES: usize = 2 * 1024 * 1024;

/// Bytes of a file of authorized keys.
pub(crate) const KEYS_FILE_BYTES: u64 = 1024 * 1024;

/// Time for the guest to make a forwarded connection, in milliseconds.
pub(crate) const CONNECT_TIMEOUT_MS: u32 = 30_000;

/// Bytes that are sent with one key, and time that it is used, before a new one is agreed on. RFC 4253, 9.
pub(crate) const REKEY_BYTES: usize = 1 << 30;

/// See [`REKEY_BYTES`].
pub(crate) const REKEY_TIME: Duration = Duration::from_secs(3600);

/// Time for a client to take our last words.
pub(crate) const FAREWELL: Duration = Duration::from_secs(2);
