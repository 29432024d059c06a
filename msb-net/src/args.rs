//! What users type.

use clap::{Parser, Subcommand};

use crate::serve::ServeArgs;

/// The network of sandboxes
#[derive(Debug, Parser)]
#[command(
    name = "msb-net",
    version,
    about,
    disable_help_subcommand = true,
    arg_required_else_help = true
)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Its jobs.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Be the network of one guest: frames on a descriptor or a socket, under a policy
    Serve(Box<ServeArgs>),
}
