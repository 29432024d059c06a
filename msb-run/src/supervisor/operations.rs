//! The supervisor's hello messages, and the operations that it serves.

use msb_wire::handshake::{Hello, operation};

const PROGRAM: &str = concat!("msb-supervisor ", env!("CARGO_PKG_VERSION"));

/// Operations that clients may request from the supervisor, or through it from the guest's agent.
const OPERATIONS: &[&str] = &[
    operation::BACKUP,
    operation::CONNECT,
    operation::DRAIN,
    operation::EXEC,
    operation::EXEC_HOLD,
    operation::EXEC_LOG,
    operation::EXEC_LOGIN,
    operation::EXEC_RLIMIT,
    operation::FILES,
    operation::FILES_CHANGE,
    operation::FILES_PATCH,
    operation::JOBS,
    operation::JOBS_DETACH,
    operation::FREEZE,
    operation::KEY_AGENT,
    operation::MEMORY,
    operation::NETWORK,
    operation::PAUSE,
    operation::PING,
    operation::RESUME,
    operation::SAMPLES,
    operation::SFTP,
    operation::STOP,
    operation::WAIT,
];

/// Returns the hello for clients.
pub(crate) fn hello_for_clients() -> Hello {
    Hello::of(PROGRAM, OPERATIONS)
}

/// Returns the hello for the guest's agent.
pub(crate) fn hello_for_agent() -> Hello {
    Hello::of(PROGRAM, &[])
}
