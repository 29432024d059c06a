//! `msb create`: a sandbox that lasts until it is stopped, and stays after that.

use std::ffi::OsString;

use clap::Parser;
use libmsb::cli::args::SandboxName;
use libmsb::cli::output;
use libmsb::reference::Reference;
use libmsb::state::Home;
use libmsb::state::spec::MainBounds;

use super::SettingArgs;
use super::start::BondArgs;
use crate::launch::launch;
use crate::make::{MakeArgs, discard_unchanged, make};

/// Make a sandbox from an image, and start it
#[derive(Debug, Parser)]
#[command(
    name = "msb-create",
    version,
    override_usage = "msb create [OPTIONS] IMAGE [-- COMMAND...]",
    after_help = "Examples:\n  msb create --name web --label team=ml nginx\n  name=$(msb create --no-start alpine)"
)]
pub(crate) struct CreateArgs {
    /// The image
    image: Reference,
    /// The main command and its arguments, in place of the image's
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
    /// Name of the sandbox (default: a new one, which is printed)
    #[arg(short, long)]
    name: Option<SandboxName>,
    /// Only make it
    #[arg(long, conflicts_with = "bond_fd")]
    no_start: bool,
    #[command(flatten)]
    bond: BondArgs,
    #[command(flatten)]
    setting: SettingArgs,
    #[command(flatten)]
    making: MakeArgs,
}

pub(crate) fn run(args: CreateArgs) -> anyhow::Result<()> {
    let home = Home::from_env()?;
    let made = make(
        &home,
        &args.image,
        args.name.as_ref(),
        false,
        (&args.making, &args.setting, &args.command),
        MainBounds::default(),
    )?;
    let name = made.sandbox.name.clone();
    if !args.no_start {
        let bond = args.bond.take()?;
        let started = launch(&name, made.lock, bond).and_then(|mut new| new.wait_until_ready());
        if let Err(error) = started {
            discard_unchanged(&made.sandbox)?;
            return Err(error);
        }
    }
    if args.name.is_none() {
        output::print(&name)?;
    }
    Ok(())
}
