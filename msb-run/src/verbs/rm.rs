//! `msb rm`: remove sandboxes.

use std::time::Duration;

use clap::Parser;
use libmsb::state::Home;

use super::selection::{Selection, for_each};
use super::stop::stop;

const TOOL: &str = "msb-rm";

/// Remove sandboxes, with their disks
#[derive(Debug, Parser)]
#[command(name = TOOL, version, after_help = "Examples:\n  msb rm web\n  msb ls -q --stopped | msb rm -")]
pub(crate) struct RmArgs {
    #[command(flatten)]
    selection: Selection,
    /// Kill those that run
    #[arg(short, long)]
    force: bool,
}

pub(crate) fn run(args: RmArgs) -> anyhow::Result<()> {
    let home = Home::from_env()?;
    let sandboxes = home.sandboxes();
    let names = args.selection.names(TOOL, &home)?;
    let removed = for_each(TOOL, &names, |name| {
        let sandbox = sandboxes.find(name)?;
        if args.force && sandbox.is_alive()? {
            stop(&home, name, Duration::ZERO)?;
            if !sandbox.dir.is_dir() {
                // It went with its command.
                return Ok(());
            }
        }
        let lock = sandbox.lock()?;
        sandbox.remove_held()?;
        drop(lock);
        Ok(())
    });
    sandboxes.sweep();
    removed
}
