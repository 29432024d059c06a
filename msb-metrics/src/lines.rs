//! Collections as JSON lines: `msb metrics jsonl`, and a reader for its output.
//!
//! Each sandbox has a line of type `sample` and each exit a line of type `exit`. A line of type
//! `collected` ends the collection.

use std::io::{self, BufRead, Read, Write};

use jiff::Timestamp;
use libmsb::cli::output;
use libmsb::jsonl::{self, LINE_BYTES_MAX};
use serde::{Deserialize, Serialize};

use crate::args::JsonlArgs;
use crate::collect::Collector;
use crate::exits::SandboxExit;
use crate::interval::IntervalTimer;
use crate::log;
use crate::sample::{Collection, Sample};

/// Maximum number of samples in a collection that is read.
const SAMPLES_MAX: usize = 100_000;
/// Buffered bytes after which lines are written.
const WRITE_BYTES: usize = 64 << 10;

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum JsonLineRef<'a> {
    Sample(&'a Sample),
    Exit(&'a SandboxExit),
    Collected {
        #[serde(with = "libmsb::time")]
        timestamp: Timestamp,
        sandboxes: usize,
    },
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum JsonLine {
    Sample(Box<Sample>),
    Exit(SandboxExit),
    Collected {
        #[serde(with = "libmsb::time")]
        timestamp: Timestamp,
    },
    /// A line type of a later version.
    #[serde(other)]
    Other,
}

/// Prints collections.
pub(crate) fn run(args: JsonlArgs) -> anyhow::Result<()> {
    let mut collector = Collector::new(&args.collect)?;
    let mut timer = IntervalTimer::new(args.collect.collect_interval)?;
    let mut left = args.count;
    while left != Some(0) && timer.wait()? {
        write(&mut output::stdout(), &collector.collect())?;
        left = left.map(|count| count - 1);
    }
    Ok(())
}

/// Writes a collection: whole lines, many in one write.
pub fn write(out: &mut impl Write, collection: &Collection) -> anyhow::Result<()> {
    let mut lines = Vec::with_capacity(WRITE_BYTES);
    for sample in &collection.samples {
        jsonl::write(&mut lines, &JsonLineRef::Sample(sample))?;
        if lines.len() >= WRITE_BYTES {
            out.write_all(&lines)?;
            lines.clear();
        }
    }
    for exit in &collection.exits {
        jsonl::write(&mut lines, &JsonLineRef::Exit(exit))?;
    }
    let end =
        JsonLineRef::Collected { timestamp: collection.at, sandboxes: collection.samples.len() };
    jsonl::write(&mut lines, &end)?;
    out.write_all(&lines)?;
    Ok(out.flush()?)
}

/// Reader of collections.
pub struct CollectionReader<R> {
    input: R,
    number: u64,
    /// Number of skipped lines.
    skipped: u64,
}

impl<R: BufRead> CollectionReader<R> {
    /// Returns a reader for `input`.
    pub fn new(input: R) -> CollectionReader<R> {
        CollectionReader { input, number: 0, skipped: 0 }
    }

    /// Returns the next collection, or `None` at the end of input. If the input ends inside a
    /// collection, returns the part that was read. Other lines are reported and skipped.
    pub fn next_collection(&mut self) -> io::Result<Option<Collection>> {
        let mut collection =
            Collection { at: Timestamp::UNIX_EPOCH, samples: Vec::new(), exits: Vec::new() };
        loop {
            match self.line()? {
                Some(Ok(JsonLine::Sample(sample))) if collection.samples.len() < SAMPLES_MAX => {
                    collection.at = collection.at.max(sample.timestamp);
                    collection.samples.push(*sample);
                }
                Some(Ok(JsonLine::Exit(exit))) if collection.exits.len() < SAMPLES_MAX => {
                    collection.exits.push(exit);
                }
                Some(Ok(JsonLine::Collected { timestamp })) => {
                    collection.at = timestamp;
                    return Ok(Some(collection));
                }
                Some(Ok(JsonLine::Other)) => self.skip_line("unknown type"),
                Some(Ok(_)) => {
                    self.skip_line(&format!("more than {SAMPLES_MAX} lines in one collection"));
                }
                Some(Err(why)) => self.skip_line(&why),
                None if collection.samples.is_empty() && collection.exits.is_empty() => {
                    self.report_skipped();
                    return Ok(None);
                }
                None => return Ok(Some(collection)),
            }
        }
    }

    /// Returns the next line or the reason why it is invalid, or `None` at the end of input.
    fn line(&mut self) -> io::Result<Option<Result<JsonLine, String>>> {
        self.number += 1;
        let mut line = Vec::new();
        let mut bounded = self.input.by_ref().take(LINE_BYTES_MAX);
        if bounded.read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        if line.last() != Some(&b'\n') {
            // The rest of an overlong line is not another line.
            let rest = self.input.skip_until(b'\n')?;
            return Ok(Some(Err(if rest == 0 {
                "the line is truncated".to_owned()
            } else {
                format!("the line is longer than {LINE_BYTES_MAX} bytes")
            })));
        }
        Ok(Some(serde_json::from_slice(&line).map_err(|error| {
            // Keep only the position in the line; the caller reports the line number.
            error.to_string().replace(" at line 1 column ", " at byte ")
        })))
    }

    /// Counts a skipped line. Reports only the first, with its number, because there are usually
    /// many.
    fn skip_line(&mut self, why: &str) {
        self.skipped += 1;
        if self.skipped == 1 {
            log::warn(&format!(
                "skipping line {} and any others that are not metrics: {why}",
                self.number
            ));
        }
    }

    /// Reports the number of skipped lines at the end.
    fn report_skipped(&self) {
        if self.skipped > 1 {
            log::warn(&format!("skipped {} lines", self.skipped));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = r#"{"type":"sample","name":"web","timestamp":"2026-11-23T14:00:00Z"}"#;
    const END: &str = r#"{"type":"collected","timestamp":"2026-11-23T14:00:00Z","sandboxes":1}"#;

    /// Returns the number of samples in each collection, and the number of skipped lines.
    fn read(text: &[u8]) -> (Vec<usize>, u64) {
        let mut reader = CollectionReader::new(text);
        let mut counts = Vec::new();
        while let Some(collection) = reader.next_collection().unwrap() {
            counts.push(collection.samples.len());
        }
        (counts, reader.skipped)
    }

    #[test]
    fn foreign_lines_are_skipped() {
        let long = "x".repeat(LINE_BYTES_MAX as usize + 5);
        // The rest of an overlong line may look like a valid line.
        let long_and_ours = format!("{}{SAMPLE}", " ".repeat(LINE_BYTES_MAX as usize));
        for skipped in ["no JSON", "{}", r#"{"type":"later"}"#, "", &long, &long_and_ours] {
            let text = format!("{SAMPLE}\n{skipped}\n{SAMPLE}\n{END}\n{SAMPLE}\n{END}\n");
            let shown = &skipped[..skipped.len().min(20)];
            assert_eq!(read(text.as_bytes()), (vec![2, 1], 1), "{shown:?}");
        }
        let bytes = [b"\xff\xfe\n", SAMPLE.as_bytes(), b"\n"].concat();
        assert_eq!(read(&bytes), (vec![1], 1));
    }

    #[test]
    fn a_truncated_collection_is_returned_in_part() {
        let text = format!("{SAMPLE}\n{SAMPLE}\n{}", &SAMPLE[..30]);
        assert_eq!(read(text.as_bytes()), (vec![2], 1));
        assert_eq!(read(&SAMPLE.as_bytes()[..30]), (vec![], 1));
        assert_eq!(read(b""), (vec![], 0));
    }
}
