//! What the tests run inside a guest, and on the host to compare with: one static program.
//!
//! - `walk ROOT` prints a line for each path below ROOT.
//! - `walk-under-mounts PLACE` does so for `/`, and shows what lies under its mount points. PLACE is made for it.
//! - `fork-exec COUNT PROGRAM` prints the mean time of a fork, exec and wait, in nanoseconds.
//! - As process 1 it restarts the machine at once: the least that a boot can lead to.

mod spawn;
mod walk;

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;

fn main() -> ExitCode {
    if std::process::id() == 1 {
        return restart();
    }
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let words: Vec<&str> = args.iter().filter_map(|arg| arg.to_str()).collect();
    let done = match words.as_slice() {
        ["walk", root] => walk::print(root.as_ref()),
        ["walk-under-mounts", place] => walk::print_under_mounts(place.as_ref()),
        ["fork-exec", count, program] => spawn::measure(count, program),
        _ => Err(io::Error::other(
            "usage: walk ROOT | walk-under-mounts PLACE | fork-exec COUNT PROGRAM",
        )),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("msb-test-guest: error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn restart() -> ExitCode {
    // The emulator is told to end where a machine would start again.
    match rustix::system::reboot(rustix::system::RebootCommand::Restart) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
