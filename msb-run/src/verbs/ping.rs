//! `msb ping`: checks that the guests of sandboxes respond.

use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use libmsb::cli::args::{SandboxName, parse_duration};
use libmsb::cli::error::Failure;
use libmsb::jsonl;
use libmsb::state::Home;
use msb_wire::client::Incoming;
use msb_wire::sandbox::{PingEvent, Request};
use serde::Serialize;

use super::connect;
use super::selection::{SelectionArgs, for_each};

const TOOL: &str = "msb-ping";

/// Check that the guests of running sandboxes respond
#[derive(Debug, Parser)]
#[command(
    name = TOOL,
    version,
    after_help = "Examples:\n  msb ping web\n  until msb ping -q web; do sleep 1; done"
)]
pub(crate) struct PingArgs {
    #[command(flatten)]
    selection: SelectionArgs,
    /// Set the time to wait for an answer, in seconds or with a unit
    #[arg(short, long, default_value = "5", value_parser = parse_duration)]
    timeout: Duration,
    /// Print a JSON object per line
    #[arg(long, value_enum)]
    format: Option<PingFormat>,
    /// Print nothing
    #[arg(short, long, conflicts_with = "format")]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PingFormat {
    Json,
}

#[derive(Serialize)]
struct PingReply<'a> {
    name: &'a str,
    milliseconds: f64,
}

pub(crate) fn run(args: PingArgs) -> anyhow::Result<()> {
    let home = Home::from_env()?;
    let names = args.selection.names(TOOL, &home)?;
    for_each(TOOL, &names, |name| {
        let milliseconds = ping(&home, name, args.timeout)?.as_secs_f64() * 1000.0;
        let name = name.as_str();
        if args.format == Some(PingFormat::Json) {
            return Ok(Some(jsonl::to_string(&PingReply { name, milliseconds })?));
        }
        Ok((!args.quiet).then(|| format!("{name}: {milliseconds:.2} ms")))
    })
}

/// Returns the time from the request to the guest's answer.
fn ping(home: &Home, name: &SandboxName, timeout: Duration) -> anyhow::Result<Duration> {
    let connection = connect(home, name)?;
    let start = Instant::now();
    let no_answer = || {
        Failure::failed(format!("the guest of '{name}' does not respond"))
            .hint(format!("read the guest's console: msb logs --source kernel {name}"))
    };
    connection.socket().set_read_timeout(Some(timeout.max(Duration::from_millis(1))))?;
    let mut call = connection.open(&Request::Ping)?;
    while let Ok(Some(incoming)) = call.reader.receive() {
        if let Incoming::Event { message, last: true } = incoming {
            return match serde_json::from_slice(&message) {
                Ok(PingEvent::Pong) => Ok(start.elapsed()),
                Err(_) => Err(super::refusal(name, &message).into()),
            };
        }
    }
    Err(no_answer().into())
}
