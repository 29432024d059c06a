//! `msb fork`: copies a sandbox.

use std::collections::BTreeSet;

use clap::Parser;
use libmsb::cli::args::SandboxName;
use libmsb::cli::error::Failure;
use libmsb::cli::output;
use libmsb::state::Home;

use crate::snapshot::fork::{fork, fork_with_memory};

const TOOL: &str = "msb-fork";

/// Copy a sandbox under other names
#[derive(Debug, Parser)]
#[command(
    name = TOOL,
    version,
    after_help = "Example:\n  msb fork base --names a,b,c | msb start -"
)]
pub(crate) struct ForkArgs {
    /// Name of the sandbox to copy
    sandbox: SandboxName,
    /// Set the names of the copies, separated by commas
    #[arg(long, required = true, value_delimiter = ',', value_name = "NAME")]
    names: Vec<SandboxName>,
    /// Copy the memory of the running sandbox too
    ///
    /// At its first start, each copy continues where the sandbox was; see **Memory** in
    /// msb-snapshot(1).
    #[arg(long)]
    memory: bool,
    /// Do not print the names
    #[arg(short, long)]
    quiet: bool,
}

pub(crate) fn run(args: ForkArgs) -> anyhow::Result<()> {
    let home = Home::from_env()?;
    let sandbox = home.sandboxes().find(&args.sandbox)?;
    let names: BTreeSet<&str> = args.names.iter().map(SandboxName::as_str).collect();
    if names.len() != args.names.len() {
        return Err(Failure::usage("two copies have the same name").into());
    }
    if args.memory {
        fork_with_memory(&home, &sandbox, &args.names)?;
    } else {
        fork(&home, &sandbox, &args.names)?;
    }
    if !args.quiet {
        for name in &args.names {
            output::print(name)?;
        }
    }
    Ok(())
}
