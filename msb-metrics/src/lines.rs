//! Collections as JSON lines: `msb-metrics jsonl`, and reading what it wrote.
//!
//! Each sandbox has a line of the type `sample`, each end of one a line of the type `exit`, and a line of the type
//! `collected` says that the collection is complete.

use std::io::{BufRead, Write};

use jiff::Timestamp;
use libmsb::cli::output;
use libmsb::jsonl;
use serde::{Deserialize, Serialize};

use crate::args::JsonlArgs;
use crate::collect::Collector;
use crate::exits::Exit;
use crate::log;
use crate::sample::{Collection, Sample};
use crate::ticks::Ticks;

/// Sandboxes of a collection that is read.
const SAMPLES_MAX: usize = 100_000;

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum LineRef<'a> {
    Sample(&'a Sample),
    Exit(&'a Exit),
    Collected {
        timestamp: Timestamp,
        sandboxes: usize,
    },
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Line {
    Sample(Box<Sample>),
    Exit(Exit),
    Collected {
        timestamp: Timestamp,
    },
    /// What a later version writes means nothing to us.
    #[serde(other)]
    Other,
}

/// Prints collections.
pub(crate) fn run(args: JsonlArgs) -> anyhow::Result<()> {
    let mut collector = Collector::new(&args.collect)?;
    let mut ticks = Ticks::every(args.collect.collect_interval)?;
    let mut left = args.count;
    while left != Some(0) && ticks.wait()? {
        write(&mut output::stdout(), &collector.collect())?;
        left = left.map(|count| count - 1);
    }
    Ok(())
}

/// Writes a collection.
pub(crate) fn write(out: &mut impl Write, collection: &Collection) -> anyhow::Result<()> {
    for sample in &collection.samples {
        jsonl::write(out, &LineRef::Sample(sample))?;
    }
    for exit in &collection.exits {
        jsonl::write(out, &LineRef::Exit(exit))?;
    }
    let end = LineRef::Collected {
        timestamp: collection.at,
        sandboxes: collection.samples.len(),
    };
    jsonl::write(out, &end)?;
    Ok(out.flush()?)
}

/// Reads collections.
pub(crate) struct Reader<R> {
    input: R,
    number: u64,
}

impl<R: BufRead> Reader<R> {
    /// From the first line.
    pub(crate) fn new(input: R) -> Reader<R> {
        Reader { input, number: 0 }
    }

    /// The next collection; none at the end. One that the end cut off counts as far as it goes. A line that is none of ours
    /// is told and passed over.
    pub(crate) fn next(&mut self) -> anyhow::Result<Option<Collection>> {
        let mut collection = Collection {
            at: Timestamp::UNIX_EPOCH,
            samples: Vec::new(),
            exits: Vec::new(),
        };
        loop {
            self.number += 1;
            match jsonl::read::<Line>(&mut self.input, self.number)? {
                Some(Line::Sample(sample)) if collection.samples.len() < SAMPLES_MAX => {
                    collection.at = collection.at.max(sample.timestamp);
                    collection.samples.push(*sample);
                }
                Some(Line::Exit(exit)) if collection.exits.len() < SAMPLES_MAX => {
                    collection.exits.push(exit);
                }
                Some(Line::Collected { timestamp }) => {
                    collection.at = timestamp;
                    return Ok(Some(collection));
                }
                Some(Line::Other) => {}
                Some(_) => log::warn(&format!(
                    "line {}: more than {SAMPLES_MAX} in one collection",
                    self.number
                )),
                None if collection.samples.is_empty() && collection.exits.is_empty() => {
                    return Ok(None);
                }
                None => return Ok(Some(collection)),
            }
        }
    }
}
