//! `msb rm`: removes sandboxes.

use std::time::Duration;

use clap::Parser;
use libmsb::state::Home;

use super::selection::{NamesArgs, SelectionArgs, for_each};
use super::stop::stop;

const TOOL: &str = "msb-rm";

/// Remove stopped sandboxes and their disks
#[derive(Debug, Parser)]
#[command(name = TOOL, version, after_help = "Examples:\n  msb rm web\n  msb ls -q --stopped | msb rm -")]
pub(crate) struct RmArgs {
    #[command(flatten)]
    selection: SelectionArgs,
    /// Kill running sandboxes first
    #[arg(short, long)]
    force: bool,
    #[command(flatten)]
    names: NamesArgs,
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
                // An ephemeral sandbox is removed when it stops.
                return Ok(args.names.line(name));
            }
        }
        let lock = sandbox.lock()?;
        sandbox.remove_locked()?;
        drop(lock);
        Ok(args.names.line(name))
    });
    sandboxes.sweep();
    removed
}
