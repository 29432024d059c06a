//! `msb config`: the form of sandbox files.

use clap::{Parser, Subcommand};
use libmsb::cli::output;

use crate::sandbox_file::schema;

const TOOL: &str = "msb-config";

/// Print the schema of sandbox files
#[derive(Debug, Parser)]
#[command(
    name = TOOL,
    version,
    after_help = "Example:\n  msb config schema > sandbox.schema.json"
)]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    verb: ConfigVerb,
}

#[derive(Debug, Subcommand)]
enum ConfigVerb {
    /// Print the JSON Schema of the files of `msb run --file`
    #[command(after_help = "Example:\n  msb config schema | jq '.properties | keys'")]
    Schema,
}

pub(crate) fn run(args: ConfigArgs) -> anyhow::Result<()> {
    match args.verb {
        ConfigVerb::Schema => Ok(output::print(schema::TEXT.trim_end())?),
    }
}
