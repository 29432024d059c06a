//! `msb restart`: stop and start again, with the same disk.

use std::time::Duration;

use clap::Parser;
use libmsb::cli::args::parse_duration;
use libmsb::state::Home;

use super::selection::{Selection, for_each};
use super::start::start;
use super::stop::stop;
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
    /// Kill them at once
    #[arg(short, long)]
    force: bool,
    /// Time for the guest to shut down, in seconds or with a unit, before it is killed
    #[arg(short, long, default_value = "10", value_parser = parse_duration)]
    timeout: Duration,
}

pub(crate) fn run(args: RestartArgs) -> anyhow::Result<()> {
    let home = Home::from_env()?;
    let timeout = if args.force {
        Duration::ZERO
    } else {
        args.timeout
    };
    let names = args.selection.names(TOOL, &home)?;
    for_each(TOOL, &names, |name| {
        if home.sandboxes().find(name)?.is_alive()? {
            stop(&home, name, timeout)?;
        }
        start(&home, name, Bond::None).map(drop)
    })
}
