//! Exit codes, the same in every tool. The page msb(1) has them for users.

use super::error::Kind;

/// Done.
pub const DONE: u8 = 0;
/// The request failed.
pub const FAILED: u8 = 1;
/// The command line is wrong.
pub const USAGE: u8 = 2;
/// There is no such sandbox, image, ….
pub const NOT_FOUND: u8 = 3;
/// It is there, but its state does not allow that.
pub const WRONG_STATE: u8 = 4;
/// A bug of ours (EX_SOFTWARE of sysexits.h).
pub const BUG: u8 = 70;

/// `run` and `exec`: the command did not end in time and was killed. The code of timeout(1).
pub const TIMED_OUT: u8 = 124;
/// `run` and `exec`: we failed, the guest's command was never started. The rule of docker, env(1) and timeout(1).
pub const COMMAND_NOT_STARTED: u8 = 125;
/// `run` and `exec`: the command is there but cannot be executed.
pub const COMMAND_NOT_EXECUTABLE: u8 = 126;
/// `run` and `exec`: there is no such command in the guest.
pub const COMMAND_NOT_FOUND: u8 = 127;

/// The exit code of a kind of failure.
pub fn code(kind: Kind) -> u8 {
    match kind {
        Kind::Failed => FAILED,
        Kind::Usage => USAGE,
        Kind::NotFound => NOT_FOUND,
        Kind::WrongState => WRONG_STATE,
        Kind::Bug => BUG,
    }
}

/// The exit code of a process that a signal killed, as shells have it.
pub fn of_signal(signal: i32) -> u8 {
    128 + (signal & 127) as u8
}
