//! `msb restart`: stops sandboxes and starts them again with the same disk.

use clap::Parser;
use libmsb::state::Home;

use super::selection::{NamesArgs, SelectionArgs, for_each};
use super::start::start;
use super::stop::{StopTimeout, stop};
use crate::launch::Keepalive;

const TOOL: &str = "msb-restart";

/// Stop sandboxes and start them again
#[derive(Debug, Parser)]
#[command(
    name = TOOL,
    version,
    after_help = "Examples:\n  msb restart web\n  msb restart --label team=ml -t 60"
)]
pub(crate) struct RestartArgs {
    #[command(flatten)]
    selection: SelectionArgs,
    #[command(flatten)]
    stop_timeout: StopTimeout,
    #[command(flatten)]
    names: NamesArgs,
}

pub(crate) fn run(args: RestartArgs) -> anyhow::Result<()> {
    let home = Home::from_env()?;
    let names = args.selection.names(TOOL, &home)?;
    for_each(TOOL, &names, |name| {
        if home.sandboxes().find(name)?.is_alive()? {
            stop(&home, name, args.stop_timeout.duration())?;
        }
        start(&home, name, Keepalive::None)?;
        Ok(args.names.line(name))
    })
}
