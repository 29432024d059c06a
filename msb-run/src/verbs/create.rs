//! `msb create`: a sandbox that lasts until it is stopped, and stays after that.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::Context;
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, Parser};
use libmsb::cli::args::SandboxName;
use libmsb::cli::error::{Code, Failure, print_warning};
use libmsb::cli::output;
use libmsb::state::Home;
use libmsb::state::spec::MainBounds;

use super::SettingArgs;
use super::start::BondArgs;
use crate::launch::launch;
use crate::make::{MakeArgs, discard_unchanged, make};
use crate::microsandbox::{self, Stored};
use crate::root::{TypedRoot, parse_root};

const TOOL: &str = "msb-create";

/// Make a sandbox from an image, and start it
#[derive(Debug, Parser)]
#[command(
    name = TOOL,
    version,
    override_usage = "msb create [OPTIONS] IMAGE [-- COMMAND...]",
    after_help = "Examples:\n  msb create --name web --label team=ml nginx\n  name=$(msb create --no-start alpine)"
)]
pub(crate) struct CreateArgs {
    /// The image; or a folder or disk image of the host as the whole root, by its path
    #[arg(required_unless_present = "from_microsandbox", value_parser = OsStringValueParser::new().try_map(parse_root))]
    image: Option<TypedRoot>,
    /// The main command and its arguments, in place of the image's
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
    /// Name of the sandbox (default: a new one, which is printed)
    #[arg(short, long)]
    name: Option<SandboxName>,
    #[command(flatten)]
    from: FromArgs,
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

/// A sandbox of another program that this one is to be like.
#[derive(Debug, Args)]
struct FromArgs {
    /// Make it as a stored configuration of microsandbox 0.5 says; what is typed has the last word
    #[arg(long, value_name = "FILE")]
    from_microsandbox: Option<PathBuf>,
    /// With that, leave out what sandboxes of this version cannot have, in place of an error
    #[arg(long, requires = "from_microsandbox")]
    leave_out: bool,
}

impl FromArgs {
    /// What the file says, if there is one. What of it cannot be had is told.
    fn read(&self) -> anyhow::Result<Option<Stored>> {
        let Some(path) = &self.from_microsandbox else {
            return Ok(None);
        };
        let stored = microsandbox::read(path)?;
        if !stored.lacking.is_empty() && !self.leave_out {
            let lacking = stored.lacking.join("; ");
            return Err(Failure::failed(format!(
                "the configuration has what sandboxes of this version cannot have: {lacking}"
            ))
            .code(Code::UnsupportedOperation)
            .hint("make it without: --leave-out")
            .into());
        }
        for what in stored.lacking.iter().chain(&stored.unused) {
            print_warning(TOOL, &format!("left out: {what}"));
        }
        Ok(Some(stored))
    }
}

/// Takes over what a stored configuration says where nothing was typed.
fn fill_in(args: &mut CreateArgs, stored: &Stored) -> anyhow::Result<()> {
    args.making.fill_in(stored)?;
    args.setting.fill_in(stored);
    if args.image.is_none() {
        args.image = stored.root()?;
    }
    if args.name.is_none() {
        args.name = stored.name.as_deref().map(str::parse).transpose()?;
    }
    Ok(())
}

pub(crate) fn run(mut args: CreateArgs) -> anyhow::Result<()> {
    let home = Home::from_env()?;
    let chose_name = args.name.is_some();
    if let Some(stored) = args.from.read()? {
        fill_in(&mut args, &stored)?;
    }
    let image = args
        .image
        .as_ref()
        .context(Failure::usage("the configuration names no image"))?;
    let made = make(
        &home,
        image,
        args.name.as_ref(),
        false,
        (&args.making, &args.setting, &args.command),
        MainBounds::default(),
        |_| Ok(()),
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
    if !chose_name {
        output::print(&name)?;
    }
    Ok(())
}
