//! `msb restart`: stops sandboxes and starts them again with the same disk.

use clap::Parser;
use libmsb::state::Home;

use super::selection::{NamesArgs, SelectionArgs, for_each};
use super::start::start_again;
use super::stop::{StopTimeout, stop};
use crate::secrets;

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
        let sandbox = home.sandboxes().find(name)?;
        // Before the stop: a sandbox whose secrets cannot be read goes on.
        let secrets = secrets::resolve(&sandbox.spec()?)?;
        if sandbox.is_alive()? {
            stop(&home, name, args.stop_timeout.duration())?;
        }
        start_again(&home, name, secrets)?;
        Ok(args.names.line(name))
    })
}
