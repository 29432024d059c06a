//! `msb ping`: whether the guests of sandboxes are alive.

use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use libmsb::cli::args::{SandboxName, parse_duration};
use libmsb::cli::error::Failure;
use libmsb::cli::output;
use libmsb::jsonl;
use libmsb::state::Home;
use msb_wire::client::Incoming;
use msb_wire::sandbox::{PingEvent, Request};
use serde::Serialize;

use super::connect;
use super::selection::{Selection, for_each};

const TOOL: &str = "msb-ping";

/// Ask sandboxes for a sign of life; it counts as use
#[derive(Debug, Parser)]
#[command(
    name = TOOL,
    version,
    after_help = "Examples:\n  msb ping web\n  until msb ping -q web; do sleep 1; done"
)]
pub(crate) struct PingArgs {
    #[command(flatten)]
    selection: Selection,
    /// Time for an answer
    #[arg(short, long, default_value = "5", value_parser = parse_duration)]
    timeout: Duration,
    /// How to print the answers
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Print nothing
    #[arg(short, long, conflicts_with = "format")]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// One JSON object a line
    Json,
}

#[derive(Serialize)]
struct Answer<'a> {
    name: &'a str,
    milliseconds: f64,
}

pub(crate) fn run(args: PingArgs) -> anyhow::Result<()> {
    let home = Home::from_env()?;
    let names = args.selection.names(TOOL, &home)?;
    for_each(TOOL, &names, |name| {
        let milliseconds = ping(&home, name, args.timeout)?.as_secs_f64() * 1000.0;
        let name = name.as_str();
        if args.format == Some(Format::Json) {
            output::print(&jsonl::to_string(&Answer { name, milliseconds })?)?;
        } else if !args.quiet {
            output::print(&format!("{name}: {milliseconds:.2} ms"))?;
        }
        Ok(())
    })
}

/// The time from the question to the guest's answer.
fn ping(home: &Home, name: &SandboxName, timeout: Duration) -> anyhow::Result<Duration> {
    let connection = connect(home, name)?;
    let begin = Instant::now();
    let no_answer = || {
        Failure::failed(format!("the guest of '{name}' gives no answer"))
            .hint("its console is in the sandbox's folder: console.log")
    };
    connection
        .socket()
        .set_read_timeout(Some(timeout.max(Duration::from_millis(1))))?;
    let mut call = connection.open(&Request::Ping)?;
    while let Ok(Some(incoming)) = call.reader.receive() {
        if let Incoming::Event {
            message,
            last: true,
        } = incoming
        {
            return match serde_json::from_slice(&message) {
                Ok(PingEvent::Pong) => Ok(begin.elapsed()),
                Err(_) => Err(super::refusal(name, &message).into()),
            };
        }
    }
    Err(no_answer().into())
}
