//! `msb-image`: pulls, loads, saves, imports and removes images, and keeps the image store.

use std::process::ExitCode;

use clap::CommandFactory;
use libmsb::cli::{args as cli_args, error as cli_error};
use libmsb::complete;
use libmsb::state::config::apply_log_level;
use msb_image::{Args, TOOL};

fn main() -> ExitCode {
    cli_error::catch_bugs(TOOL);
    if let Some(code) = complete::serve(TOOL, Args::command) {
        return code;
    }
    let parsed = cli_args::parse::<Args>(TOOL, std::env::args_os());
    apply_log_level();
    match parsed {
        Ok(args) => cli_error::exit_code(TOOL, msb_image::run(args)),
        Err(code) => code,
    }
}
