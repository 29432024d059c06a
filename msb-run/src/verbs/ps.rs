//! `msb ps`: lists running sandboxes and their main commands.

use std::borrow::Cow;
use std::net::IpAddr;

use clap::{Parser, ValueEnum};
use libmsb::cli::args::SandboxName;
use libmsb::cli::error::{print_remark, print_warning};
use libmsb::cli::output;
use libmsb::cli::quote::shell_line;
use libmsb::cli::style::{Table, when};
use libmsb::selector::Selector;
use libmsb::state::Home;
use libmsb::state::sandboxes::{SandboxEntry, SandboxSnapshot};
use msb_wire::text::Text;
use serde::Serialize;

use super::filter::Filter;
use super::selection::ListingArgs;

const TOOL: &str = "msb-ps";

/// Show running sandboxes and their main commands
#[derive(Debug, Parser)]
#[command(
    name = TOOL,
    version,
    after_help = "Examples:\n  msb ps\n  msb ps web --format json | jq -r .status"
)]
pub(crate) struct PsArgs {
    /// Show this sandbox only, in any state
    #[arg(value_name = "NAME", conflicts_with_all = ["all", "label", "filter"])]
    name: Option<SandboxName>,
    /// Include sandboxes that are not running
    #[arg(short, long)]
    all: bool,
    #[command(flatten)]
    listing: ListingArgs,
    /// Print an array of JSON objects, or with NAME one object
    #[arg(long, value_enum)]
    format: Option<PsFormat>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PsFormat {
    Json,
}

#[derive(Serialize)]
struct PsRow<'a> {
    name: &'a str,
    status: &'static str,
    image: Cow<'a, str>,
    /// Main command in shell syntax; `-` if there is none.
    command: String,
    /// Published ports, as `bind:host->guest/proto`.
    ports: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none", with = "libmsb::time::optional")]
    started_at: Option<jiff::Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
}

pub(crate) fn run(args: PsArgs) -> anyhow::Result<()> {
    let home = Home::from_env()?;
    let sandboxes = home.sandboxes();
    let entries = match &args.name {
        Some(name) => {
            vec![SandboxEntry {
                name: name.to_string(),
                seen: Ok(sandboxes.find(name)?.snapshot()?),
            }]
        }
        None => sandboxes.list()?,
    };
    for error in entries.iter().filter_map(|entry| entry.seen.as_ref().err()) {
        // `msb ls` lists it as broken; here its command is unknown.
        print_warning(TOOL, &libmsb::cli::error::message(error));
    }
    let mut rows: Vec<PsRow<'_>> = Vec::new();
    for (entry, seen) in entries.iter().filter_map(|entry| Some((entry, entry.seen.as_ref().ok()?)))
    {
        if args.name.is_some() || is_chosen(&home, entry, seen, &args)? {
            rows.push(row(&entry.name, seen));
        }
    }
    match (args.format, &args.name) {
        (Some(PsFormat::Json), Some(_)) => output::print_json(&rows[0])?,
        (Some(PsFormat::Json), None) => output::print_json(&rows)?,
        (None, _) if args.listing.quiet => {
            rows.iter().try_for_each(|row| output::print(row.name))?
        }
        (None, _) if rows.is_empty() => print_remark(TOOL, "no running sandboxes"),
        (None, _) => table(&rows, args.listing.absolute).print()?,
    }
    Ok(())
}

fn is_chosen(
    home: &Home,
    entry: &SandboxEntry,
    seen: &SandboxSnapshot,
    args: &PsArgs,
) -> anyhow::Result<bool> {
    // A filter on the state includes sandboxes that are not running, as with docker.
    let all = args.all || args.listing.filter.iter().any(Filter::is_status);
    Ok((all || seen.state.is_active())
        && Selector::all_match(&args.listing.label, &seen.spec.labels)
        && Filter::all_match(home, &args.listing.filter, entry)?)
}

fn row<'a>(name: &'a str, seen: &'a SandboxSnapshot) -> PsRow<'a> {
    let words = &seen.spec.command;
    PsRow {
        name,
        status: seen.state.name(),
        image: seen.spec.root.name(),
        command: if words.is_empty() { "-".to_owned() } else { command_line(words) },
        ports: published(seen),
        started_at: seen.status.started_at,
        exit_code: seen.status.exit_code,
    }
}

/// Quotes words as a shell needs them, and joins them.
pub(super) fn command_line(words: &[Text]) -> String {
    String::from_utf8_lossy(&shell_line(words.iter().map(Text::as_bytes))).into_owned()
}

/// Returns the published ports of a running sandbox.
fn published(seen: &SandboxSnapshot) -> Vec<String> {
    let ports = seen.spec.net.ports.iter();
    let ports = ports.filter(|_| seen.state.is_active());
    ports
        .map(|ports| {
            let host = match ports.bind() {
                IpAddr::V4(address) => format!("{address}:{}", ports.host()),
                IpAddr::V6(address) => format!("[{address}]:{}", ports.host()),
            };
            format!("{host}->{}/{}", ports.guest(), ports.transport())
        })
        .collect()
}

fn table(rows: &[PsRow<'_>], absolute: bool) -> Table {
    let mut table = Table::new(&["NAME", "STATUS", "IMAGE", "COMMAND", "PORTS", "STARTED"]);
    for row in rows {
        let image = row.image.parse::<libmsb::reference::Reference>();
        table.row([
            row.name.to_owned(),
            row.status.to_owned(),
            image.map_or_else(|_| row.image.to_string(), |image| image.familiar()),
            truncate_command(&row.command),
            row.ports.join(", "),
            row.started_at.map_or_else(String::new, |time| when(time, absolute)),
        ]);
    }
    table
}

/// Shortens a command to the width of its column. `msb inspect` shows all of it.
pub(super) fn truncate_command(command: &str) -> String {
    const WIDTH: usize = 40;
    if command.chars().count() <= WIDTH {
        return command.to_owned();
    }
    let start: String = command.chars().take(WIDTH - 3).collect();
    format!("{start}...")
}
