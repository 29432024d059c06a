//! `msb net replay`: evaluates a sandbox's log under another policy.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use anyhow::Context;
use libmsb::cli::output;
use libmsb::jsonl;
use libmsb::net::rule::Action;
use serde::Serialize;

use crate::args::{OutputFormat, ReplayArgs};
use crate::explain::{self, ExplainCase, ExplainedCase};
use crate::policy::PolicyEngine;

/// Types of net.log lines that have a verdict; other lines are ignored.
const VERDICT_TYPES: [&str; 3] = ["open", "deny", "dns"];

/// A logged case with its old and its new verdict.
#[derive(Debug, Serialize)]
struct ReplayedCase<'a> {
    /// Line number in the log.
    line: u64,
    /// Action in the log.
    was: Action,
    #[serde(flatten)]
    now: ExplainedCase<'a>,
}

/// Numbers of replayed and of changed cases.
#[derive(Debug, Default)]
struct ReplayCounts {
    cases: u64,
    changed: u64,
}

/// Runs `msb net replay`.
pub(crate) fn run(args: ReplayArgs) -> anyhow::Result<()> {
    let engine = explain::policy_engine(&args.policy)?;
    let counts = replay(&args, &engine, &mut open(&args.log)?)
        .with_context(|| format!("cannot replay '{}'", args.log.display()))?;
    if args.format.is_none() {
        eprintln!("{} of {} differ", counts.changed, counts.cases);
    }
    Ok(())
}

fn open(path: &Path) -> anyhow::Result<Box<dyn BufRead>> {
    if path == Path::new("-") {
        return Ok(Box::new(io::stdin().lock()));
    }
    let file = File::open(path).with_context(|| format!("cannot open '{}'", path.display()))?;
    Ok(Box::new(BufReader::new(file)))
}

fn replay(
    args: &ReplayArgs,
    engine: &PolicyEngine,
    log: &mut dyn BufRead,
) -> anyhow::Result<ReplayCounts> {
    let mut counts = ReplayCounts::default();
    let mut log = log;
    for line in 1.. {
        let Some(value) = jsonl::read::<serde_json::Value>(&mut log, line)? else {
            break;
        };
        let Some((was, case)) = parse_line(value).with_context(|| format!("line {line}"))? else {
            continue;
        };
        let now = explain::explain(engine, &case);
        let same = now.verdict.action == was;
        counts.cases += 1;
        counts.changed += u64::from(!same);
        if !same || args.all {
            print(&ReplayedCase { line, was, now }, args.format)?;
        }
    }
    Ok(counts)
}

/// Parses a line of the log: the logged action and the case. `None` if the line has no verdict.
fn parse_line(value: serde_json::Value) -> anyhow::Result<Option<(Action, ExplainCase)>> {
    let kind = value.get("type").and_then(|kind| kind.as_str());
    if !kind.is_some_and(|kind| VERDICT_TYPES.contains(&kind)) {
        return Ok(None);
    }
    let action = value.get("action").cloned().unwrap_or_default();
    let action = serde_json::from_value(action).context("invalid action")?;
    Ok(Some((action, serde_json::from_value(value)?)))
}

fn print(replayed: &ReplayedCase<'_>, format: Option<OutputFormat>) -> anyhow::Result<()> {
    if format == Some(OutputFormat::Json) {
        let mut stdout = output::stdout();
        jsonl::write(&mut stdout, replayed)?;
        return Ok(io::Write::flush(&mut stdout)?);
    }
    let ReplayedCase { line, was, now } = replayed;
    Ok(output::print(&format!("line {line}: {} (was {was})", now.sentence()))?)
}
