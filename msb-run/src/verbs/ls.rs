//! `msb ls`: lists the sandboxes.

use std::borrow::Cow;
use std::collections::BTreeMap;

use clap::{Parser, ValueEnum};
use libmsb::cli::error::{message, print_remark};
use libmsb::cli::output;
use libmsb::cli::style::{Table, when};
use libmsb::reference::Reference;
use libmsb::selector::Selector;
use libmsb::state::Home;
use libmsb::state::sandboxes::{SandboxEntry, SandboxSnapshot};
use libmsb::state::status::Reason;
use serde::Serialize;

use super::filter::Filter;
use super::selection::ListingArgs;

/// Status of a sandbox whose files cannot be read.
const BROKEN: &str = "Broken";

const TOOL: &str = "msb-ls";

/// List sandboxes
#[derive(Debug, Parser)]
#[command(
    name = TOOL,
    version,
    after_help = "Examples:\n  msb ls --label team=ml\n  msb ls --format json | jq -r '.[] | select(.status == \"Crashed\").name'"
)]
pub(crate) struct LsArgs {
    /// List only sandboxes that are starting, running, paused or stopping
    #[arg(long, conflicts_with = "stopped")]
    running: bool,
    /// List only the other sandboxes
    #[arg(long)]
    stopped: bool,
    /// List all sandboxes (the default; accepted for compatibility with docker)
    #[arg(short, long, conflicts_with_all = ["running", "stopped"])]
    all: bool,
    #[command(flatten)]
    listing: ListingArgs,
    /// Print an array of JSON objects
    #[arg(long, value_enum)]
    format: Option<LsFormat>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LsFormat {
    Json,
}

#[derive(Serialize)]
struct LsRow<'a> {
    name: &'a str,
    status: &'a str,
    image: Option<Cow<'a, str>>,
    created_at: Option<String>,
    /// Time at which the state was entered.
    updated_at: Option<String>,
    labels: BTreeMap<&'a str, &'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Reason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    oom_killed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

pub(crate) fn run(args: LsArgs) -> anyhow::Result<()> {
    let home = Home::from_env()?;
    let entries = home.sandboxes().list()?;
    let mut chosen: Vec<&SandboxEntry> = Vec::new();
    for entry in &entries {
        if is_chosen(&home, entry, &args)? {
            chosen.push(entry);
        }
    }
    if args.format == Some(LsFormat::Json) {
        return Ok(output::print_json(&chosen.iter().map(|entry| row(entry)).collect::<Vec<_>>())?);
    }
    if args.listing.quiet {
        for entry in chosen {
            output::print(&entry.name)?;
        }
        return Ok(());
    }
    if chosen.is_empty() {
        print_remark(TOOL, "no sandboxes");
        return Ok(());
    }
    let mut table = Table::new(&["NAME", "STATUS", "IMAGE", "CREATED"]);
    for entry in chosen {
        table.row(cells(entry, args.listing.absolute));
    }
    Ok(table.print()?)
}

fn is_chosen(home: &Home, entry: &SandboxEntry, args: &LsArgs) -> anyhow::Result<bool> {
    let meets_options = match &entry.seen {
        Ok(seen) => {
            Selector::all_match(&args.listing.label, &seen.spec.labels)
                && (!args.running || seen.state.is_active())
                && (!args.stopped || !seen.state.is_active())
        }
        Err(_) => !args.running && args.listing.label.is_empty(),
    };
    Ok(meets_options && Filter::all_match(home, &args.listing.filter, entry)?)
}

fn row(entry: &SandboxEntry) -> LsRow<'_> {
    match &entry.seen {
        Ok(SandboxSnapshot { spec, status, state }) => LsRow {
            name: &entry.name,
            status: state.name(),
            image: Some(spec.root.name()),
            created_at: Some(libmsb::time::text(spec.created_at)),
            updated_at: Some(libmsb::time::text(status.since)),
            labels: spec.labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect(),
            exit_code: status.exit_code,
            reason: status.reason,
            message: status.message.as_deref(),
            oom_killed: status.oom_killed,
            error: None,
        },
        Err(error) => LsRow {
            name: &entry.name,
            status: BROKEN,
            image: None,
            created_at: None,
            updated_at: None,
            labels: BTreeMap::new(),
            exit_code: None,
            reason: None,
            message: None,
            oom_killed: false,
            error: Some(message(error)),
        },
    }
}

/// Returns the state, with the reason if the sandbox ended abnormally.
fn state(seen: &SandboxSnapshot) -> String {
    let word = seen.state.name();
    match seen.status.reason.and_then(Reason::problem) {
        Some(why) if !seen.state.is_active() => format!("{word} ({why})"),
        _ => word.to_owned(),
    }
}

fn cells(entry: &SandboxEntry, absolute: bool) -> [String; 4] {
    match &entry.seen {
        Ok(seen) => {
            let image = seen.spec.root.name();
            let image = image
                .parse::<Reference>()
                .map_or_else(|_| image.to_string(), |image| image.familiar());
            [entry.name.clone(), state(seen), image, when(seen.spec.created_at, absolute)]
        }
        Err(error) => [entry.name.clone(), BROKEN.to_owned(), message(error), String::new()],
    }
}
