//! `msb uninstall`: removes aliases.

use clap::Parser;
use libmsb::state::Home;
use libmsb::state::aliases::AliasName;

use super::selection::for_each;

const TOOL: &str = "msb-uninstall";

/// Remove commands that `msb install` made
#[derive(Debug, Parser)]
#[command(name = TOOL, version, after_help = "Example:\n  msb uninstall py")]
pub(crate) struct UninstallArgs {
    /// Names of the commands
    #[arg(required = true, value_name = "NAME")]
    names: Vec<AliasName>,
}

pub(crate) fn run(args: UninstallArgs) -> anyhow::Result<()> {
    let aliases = Home::from_env()?.aliases();
    for_each(TOOL, &args.names, |name| {
        aliases.remove(name)?;
        Ok(Some(name.to_string()))
    })
}
