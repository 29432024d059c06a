//! Exit codes, the same in every tool. msb(1) documents them.

use super::error::ErrorKind;

/// Success.
pub const DONE: u8 = 0;
/// The request failed.
pub const FAILED: u8 = 1;
/// The command line is wrong.
pub const USAGE: u8 = 2;
/// There is no such sandbox, image, ….
pub const NOT_FOUND: u8 = 3;
/// The state of the object does not allow the request.
pub const WRONG_STATE: u8 = 4;
/// A bug of msb (EX_SOFTWARE of sysexits.h).
pub const BUG: u8 = 70;

/// `msb run` and `msb exec`: the command did not end in time and was killed. The code of
/// timeout(1).
pub const TIMED_OUT: u8 = 124;
/// `msb run` and `msb exec`: the guest's command was not started because msb failed. The rule of
/// docker, env(1) and timeout(1).
pub const COMMAND_NOT_STARTED: u8 = 125;
/// `msb run` and `msb exec`: the command cannot be executed.
pub const COMMAND_NOT_EXECUTABLE: u8 = 126;
/// `msb run` and `msb exec`: the guest has no such command.
pub const COMMAND_NOT_FOUND: u8 = 127;

/// Returns the exit code of an error kind.
pub fn code(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::Failed => FAILED,
        ErrorKind::Usage => USAGE,
        ErrorKind::NotFound => NOT_FOUND,
        ErrorKind::WrongState => WRONG_STATE,
        ErrorKind::Bug => BUG,
    }
}

/// Returns the exit code of a process that a signal killed, as shells define it.
pub fn of_signal(signal: i32) -> u8 {
    128 + (signal & 127) as u8
}
