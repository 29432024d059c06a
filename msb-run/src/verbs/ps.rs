//! `msb ps`: the sandboxes that run, and what runs in them.

use std::borrow::Cow;
use std::net::IpAddr;
use std::time::SystemTime;

use clap::{Parser, ValueEnum};
use libmsb::cli::args::SandboxName;
use libmsb::cli::error::print_warning;
use libmsb::cli::output;
use libmsb::cli::style::{Table, age};
use libmsb::selector::Selector;
use libmsb::state::Home;
use libmsb::state::sandboxes::{Entry, Seen};
use msb_wire::text::Text;
use serde::Serialize;

use super::selection::Listing;

/// Show running sandboxes and their main commands
#[derive(Debug, Parser)]
#[command(
    name = "msb-ps",
    version,
    after_help = "Examples:\n  msb ps\n  msb ps web --format json | jq -r .status"
)]
pub(crate) struct PsArgs {
    /// Only this one, whatever its state
    #[arg(value_name = "NAME", conflicts_with_all = ["all", "label"])]
    name: Option<SandboxName>,
    /// Those that do not run, too
    #[arg(short, long)]
    all: bool,
    #[command(flatten)]
    listing: Listing,
    /// How to print them
    #[arg(long, value_enum)]
    format: Option<Format>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// JSON: an array, or one object when a name is given
    Json,
}

#[derive(Serialize)]
struct Row<'a> {
    name: &'a str,
    status: &'static str,
    image: Cow<'a, str>,
    /// The main command as a shell would take it; `-` when there is none.
    command: String,
    /// `bind:host->guest/proto`.
    ports: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<jiff::Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
}

pub(crate) fn run(args: PsArgs) -> anyhow::Result<()> {
    let sandboxes = Home::from_env()?.sandboxes();
    let entries = match &args.name {
        Some(name) => vec![Entry {
            name: name.to_string(),
            seen: Ok(sandboxes.find(name)?.look()?),
        }],
        None => sandboxes.list()?,
    };
    for error in entries.iter().filter_map(|entry| entry.seen.as_ref().err()) {
        // `msb ls` has a row for it; here nobody knows what it runs.
        print_warning("msb-ps", &libmsb::cli::error::message(error));
    }
    let rows: Vec<Row<'_>> = entries
        .iter()
        .filter_map(|entry| Some((entry.name.as_str(), entry.seen.as_ref().ok()?)))
        .filter(|(_, seen)| args.name.is_some() || is_chosen(seen, &args))
        .map(|(name, seen)| row(name, seen))
        .collect();
    match (args.format, &args.name) {
        (Some(Format::Json), Some(_)) => output::print_json(&rows[0])?,
        (Some(Format::Json), None) => output::print_json(&rows)?,
        (None, _) if args.listing.quiet => {
            rows.iter().try_for_each(|row| output::print(row.name))?
        }
        (None, _) if rows.is_empty() => eprintln!("no running sandboxes"),
        (None, _) => table(&rows).print()?,
    }
    Ok(())
}

fn is_chosen(seen: &Seen, args: &PsArgs) -> bool {
    (args.all || seen.state.is_active())
        && Selector::all_match(&args.listing.label, &seen.spec.labels)
}

fn row<'a>(name: &'a str, seen: &'a Seen) -> Row<'a> {
    let words = &seen.spec.command;
    Row {
        name,
        status: seen.state.word(),
        image: seen.spec.root.name(),
        command: if words.is_empty() {
            "-".to_owned()
        } else {
            command_line(words)
        },
        ports: published(seen),
        started_at: seen.status.started_at,
        exit_code: seen.status.exit_code,
    }
}

/// The words as a shell would take them.
pub(super) fn command_line(words: &[Text]) -> String {
    let words: Vec<String> = words.iter().map(|word| quoted(&word.to_lossy())).collect();
    words.join(" ")
}

/// Published ports of one that runs.
fn published(seen: &Seen) -> Vec<String> {
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

/// The word as a shell would take it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "%+,-./:=@_".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

fn table(rows: &[Row<'_>]) -> Table {
    let mut table = Table::new(&["NAME", "STATUS", "IMAGE", "COMMAND", "PORTS", "STARTED"]);
    let now = SystemTime::now();
    for row in rows {
        let image = row.image.parse::<libmsb::reference::Reference>();
        table.row([
            row.name.to_owned(),
            row.status.to_owned(),
            image.map_or_else(|_| row.image.to_string(), |image| image.familiar()),
            shortened(&row.command),
            row.ports.join(", "),
            row.started_at
                .map_or_else(String::new, |time| age(&SystemTime::from(time), now)),
        ]);
    }
    table
}

/// A long command would tear the table apart; `inspect` has the whole.
pub(super) fn shortened(command: &str) -> String {
    const WIDTH: usize = 40;
    if command.chars().count() <= WIDTH {
        return command.to_owned();
    }
    let begin: String = command.chars().take(WIDTH - 3).collect();
    format!("{begin}...")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_as_a_shell_needs_them() {
        assert_eq!(quoted("a/b-c=1"), "a/b-c=1");
        assert_eq!(quoted(""), "''");
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's"), "'it'\\''s'");
    }
}
