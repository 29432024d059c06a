//! `msb exec`: a command in a running sandbox.

use std::ffi::OsString;

use clap::Parser;
use libmsb::cli::args::SandboxName;
use libmsb::state::Home;
use msb_wire::text::Text;

use super::{CommandArgs, connect, tell_end};
use crate::session::{self, Streams};

const TOOL: &str = "msb-exec";

/// Run a command in a running sandbox
#[derive(Debug, Parser)]
#[command(
    name = TOOL,
    version,
    override_usage = "msb exec [OPTIONS] NAME [-- COMMAND...]",
    after_help = "Examples:\n  msb exec worker -- python3 -c 'print(1)'\n  msb exec worker            # a shell"
)]
pub(crate) struct ExecArgs {
    /// The sandbox
    name: SandboxName,
    /// The command and its arguments (default: /bin/sh)
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
    #[command(flatten)]
    connected: CommandArgs,
}

pub(crate) fn run(args: ExecArgs) -> anyhow::Result<u8> {
    let home = Home::from_env()?;
    let mut argv: Vec<Text> = args.command.iter().cloned().map(Text::from).collect();
    if argv.is_empty() {
        argv.push(Text::from("/bin/sh"));
    }
    let tty = args.connected.is_tty();
    let mut request = args.connected.request(argv, tty);
    request.env.extend(
        args.connected
            .setting
            .env()?
            .iter()
            .map(|variable| Text::from(variable.to_assignment())),
    );
    let connection = connect(&home, &args.name)?;
    let (outcome, _) = session::run(connection, request, Streams::take(tty)?)?;
    tell_end(TOOL, &outcome)
}
