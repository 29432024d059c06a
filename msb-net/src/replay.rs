//! `msb net replay`: what a sandbox did, under another policy.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use anyhow::Context;
use libmsb::cli::output;
use libmsb::jsonl;
use libmsb::net::rule::Action;
use serde::Serialize;

use crate::arguments::{Format, Replay};
use crate::explain::{self, Case, Explained};
use crate::policy::Judge;

/// Lines of net.log that had a verdict; there are others, which are passed over.
const WITH_VERDICT: [&str; 3] = ["open", "deny", "dns"];

/// What was, and what would be.
#[derive(Debug, Serialize)]
struct Replayed<'a> {
    /// The line of the log.
    line: u64,
    /// What became of it.
    was: Action,
    #[serde(flatten)]
    now: Explained<'a>,
}

/// How many there were.
#[derive(Debug, Default)]
struct Counts {
    cases: u64,
    differ: u64,
}

pub(crate) fn run(args: Replay) -> anyhow::Result<()> {
    let judge = explain::judge(&args.policy)?;
    let counts = replay(&args, &judge, &mut open(&args.log)?)
        .with_context(|| format!("cannot replay '{}'", args.log.display()))?;
    if args.format.is_none() {
        eprintln!("{} of {} differ", counts.differ, counts.cases);
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

fn replay(args: &Replay, judge: &Judge, log: &mut dyn BufRead) -> anyhow::Result<Counts> {
    let mut counts = Counts::default();
    let mut log = log;
    for line in 1.. {
        let Some(value) = jsonl::read::<serde_json::Value>(&mut log, line)? else {
            break;
        };
        let Some((was, case)) = case(value).with_context(|| format!("line {line}"))? else {
            continue;
        };
        let now = explain::explain(judge, &case);
        let same = now.verdict.action == was;
        counts.cases += 1;
        counts.differ += u64::from(!same);
        if !same || args.all {
            print(&Replayed { line, was, now }, args.format)?;
        }
    }
    Ok(counts)
}

/// What a line of the log tells, and its verdict then; `None` if it is of another sort.
fn case(value: serde_json::Value) -> anyhow::Result<Option<(Action, Case)>> {
    let kind = value.get("type").and_then(|kind| kind.as_str());
    if !kind.is_some_and(|kind| WITH_VERDICT.contains(&kind)) {
        return Ok(None);
    }
    let action = value.get("action").cloned().unwrap_or_default();
    let action = serde_json::from_value(action).context("it has no action")?;
    Ok(Some((action, serde_json::from_value(value)?)))
}

fn print(replayed: &Replayed<'_>, format: Option<Format>) -> anyhow::Result<()> {
    if format == Some(Format::Json) {
        let mut stdout = output::stdout();
        jsonl::write(&mut stdout, replayed)?;
        return Ok(io::Write::flush(&mut stdout)?);
    }
    let Replayed { line, was, now } = replayed;
    Ok(output::print(&format!(
        "line {line}: {} (was {was})",
        now.sentence()
    ))?)
}
