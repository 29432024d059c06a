//! `msb ls`: the sandboxes.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::SystemTime;

use clap::{Parser, ValueEnum};
use libmsb::cli::error::message;
use libmsb::cli::output;
use libmsb::cli::style::{Table, age};
use libmsb::reference::Reference;
use libmsb::selector::Selector;
use libmsb::state::Home;
use libmsb::state::sandboxes::{Entry, Seen};
use libmsb::state::status::Reason;
use serde::Serialize;

use super::selection::Listing;

/// The status of a sandbox whose files cannot be read.
const BROKEN: &str = "Broken";

/// List sandboxes
#[derive(Debug, Parser)]
#[command(
    name = "msb-ls",
    version,
    after_help = "Examples:\n  msb ls --label team=ml\n  msb ls --format json | jq -r '.[] | select(.status == \"Crashed\").name'"
)]
pub(crate) struct LsArgs {
    /// Only those that run
    #[arg(long, conflicts_with = "stopped")]
    running: bool,
    /// Only those that do not run
    #[arg(long)]
    stopped: bool,
    #[command(flatten)]
    listing: Listing,
    /// How to print them
    #[arg(long, value_enum)]
    format: Option<Format>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// One JSON array
    Json,
}

#[derive(Serialize)]
struct Row<'a> {
    name: &'a str,
    status: &'a str,
    image: Option<Cow<'a, str>>,
    created_at: Option<String>,
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
    let entries = Home::from_env()?.sandboxes().list()?;
    let chosen: Vec<&Entry> = entries
        .iter()
        .filter(|entry| is_chosen(entry, &args))
        .collect();
    if args.format == Some(Format::Json) {
        return Ok(output::print_json(
            &chosen.iter().map(|entry| row(entry)).collect::<Vec<_>>(),
        )?);
    }
    if args.listing.quiet {
        for entry in chosen {
            output::print(&entry.name)?;
        }
        return Ok(());
    }
    if chosen.is_empty() {
        eprintln!("no sandboxes");
        return Ok(());
    }
    let mut table = Table::new(&["NAME", "STATUS", "IMAGE", "CREATED"]);
    let now = SystemTime::now();
    for entry in chosen {
        table.row(cells(entry, now));
    }
    Ok(table.print()?)
}

fn is_chosen(entry: &Entry, args: &LsArgs) -> bool {
    let Ok(seen) = &entry.seen else {
        return !args.running && args.listing.label.is_empty();
    };
    Selector::all_match(&args.listing.label, &seen.spec.labels)
        && (!args.running || seen.state.is_active())
        && (!args.stopped || !seen.state.is_active())
}

fn row(entry: &Entry) -> Row<'_> {
    match &entry.seen {
        Ok(Seen {
            spec,
            status,
            state,
        }) => Row {
            name: &entry.name,
            status: state.word(),
            image: Some(spec.root.name()),
            created_at: Some(spec.created_at.to_string()),
            labels: spec
                .labels
                .iter()
                .map(|(key, value)| (key.as_str(), value.as_str()))
                .collect(),
            exit_code: status.exit_code,
            reason: status.reason,
            message: status.message.as_deref(),
            oom_killed: status.oom_killed,
            error: None,
        },
        Err(error) => Row {
            name: &entry.name,
            status: BROKEN,
            image: None,
            created_at: None,
            labels: BTreeMap::new(),
            exit_code: None,
            reason: None,
            message: None,
            oom_killed: false,
            error: Some(message(error)),
        },
    }
}

/// The state, and why it came to that when it is not what anybody wants.
fn state(seen: &Seen) -> String {
    let word = seen.state.word();
    match seen.status.reason.and_then(Reason::trouble) {
        Some(why) if !seen.state.is_active() => format!("{word} ({why})"),
        _ => word.to_owned(),
    }
}

fn cells(entry: &Entry, now: SystemTime) -> [String; 4] {
    match &entry.seen {
        Ok(seen) => {
            let image = seen.spec.root.name();
            let image = image
                .parse::<Reference>()
                .map_or_else(|_| image.to_string(), |image| image.familiar());
            [
                entry.name.clone(),
                state(seen),
                image,
                age(&SystemTime::from(seen.spec.created_at), now),
            ]
        }
        Err(error) => [
            entry.name.clone(),
            BROKEN.to_owned(),
            message(error),
            String::new(),
        ],
    }
}
