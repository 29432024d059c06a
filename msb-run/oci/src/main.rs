//! `msb-oci`: an OCI runtime whose containers are microVMs.
//!
//! An engine such as podman calls this program once for each operation. `create` leaves two
//! processes: `init`, whose process ID the engine sees, and the monitor, which starts `msb-run` and
//! passes its exit code to `init`.

mod args;
mod bundle;
mod cgroup;
mod client;
mod create;
mod init;
mod log;
mod monitor;
mod mount_tree;
mod state;
mod terminal;
mod verbs;

use std::process::ExitCode;

use clap::Parser;
use libmsb::cli::error;

/// Name of this program in messages.
const TOOL: &str = "msb-oci";

fn main() -> ExitCode {
    error::catch_bugs(TOOL);
    let args = match args::Args::try_parse() {
        Ok(args) => args,
        Err(error) => return libmsb::cli::args::report_usage(TOOL, &error).into(),
    };
    match verbs::run(&args) {
        Ok(code) => code.into(),
        Err(error) => {
            log::write_error(&args, &error);
            error::report(TOOL, &error).into()
        }
    }
}
