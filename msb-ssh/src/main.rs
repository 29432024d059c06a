//! `msb-ssh`: an SSH server in front of a sandbox.

use std::process::ExitCode;

fn main() -> ExitCode {
    libmsb::cli::main(msb_ssh::TOOL, msb_ssh::run)
}
