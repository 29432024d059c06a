//! What the tests run inside a guest, and on the host to compare with: one static program.
//!
//! - `walk ROOT [--without PATH]…` prints a line for each path below ROOT.
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
        ["walk", root, options @ ..] => {
            without(options).and_then(|without| walk::print(root.as_ref(), &without))
        }
        ["fork-exec", count, program] => spawn::measure(count, program),
        _ => Err(io::Error::other(
            "usage: walk ROOT [--without PATH]… | fork-exec COUNT PROGRAM",
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

/// The paths that are left out: the values of `--without`.
fn without(options: &[&str]) -> io::Result<Vec<Vec<u8>>> {
    let paths = options.chunks(2).map(|pair| match pair {
        ["--without", path] => Ok(path.as_bytes().to_vec()),
        _ => Err(io::Error::other("the options of walk are: --without PATH")),
    });
    paths.collect()
}

fn restart() -> ExitCode {
    // The emulator is told to end where a machine would start again.
    match rustix::system::reboot(rustix::system::RebootCommand::Restart) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
