//! `msb restart`: stop and start again, with the same disk.

use clap::Parser;
use libmsb::state::Home;

use super::selection::{Selection, for_each};
use super::start::start;
use super::stop::{Patience, stop};
use crate::launch::Bond;

const TOOL: &str = "msb-restart";

/// Stop sandboxes, if they run, and start them again
#[derive(Debug, Parser)]
#[command(
    name = TOOL,
    version,
    after_help = "Examples:\n  msb restart web\n  msb restart --label team=ml -t 60"
)]
pub(crate) struct RestartArgs {
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    patience: Patience,
}

pub(crate) fn run(args: RestartArgs) -> anyhow::Result<()> {
    let home = Home::from_env()?;
    let names = args.selection.names(TOOL, &home)?;
    for_each(TOOL, &names, |name| {
        if home.sandboxes().find(name)?.is_alive()? {
            stop(&home, name, args.patience.time())?;
        }
        start(&home, name, Bond::None).map(drop)
    })
}
