//! Collections as JSON lines: `msb-metrics jsonl`, and reading what it wrote.
//!
//! Each sandbox has a line of the type `sample`, each end of one a line of the type `exit`, and a line of the type
//! `collected` says that the collection is complete.

use std::io::{self, BufRead, Read, Write};

use jiff::Timestamp;
use libmsb::cli::output;
use libmsb::jsonl::{self, LINE_BYTES_MAX};
use serde::{Deserialize, Serialize};

use crate::args::JsonlArgs;
use crate::collect::Collector;
use crate::exits::Exit;
use crate::log;
use crate::sample::{Collection, Sample};
use crate::ticks::Ticks;

/// Sandboxes of a collection that is read.
const SAMPLES_MAX: usize = 100_000;
/// Bytes of lines after which they are written.
const WRITE_BYTES: usize = 64 << 10;

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

/// Writes a collection: whole lines, many in one write.
pub(crate) fn write(out: &mut impl Write, collection: &Collection) -> anyhow::Result<()> {
    let mut lines = Vec::with_capacity(WRITE_BYTES);
    for sample in &collection.samples {
        jsonl::write(&mut lines, &LineRef::Sample(sample))?;
        if lines.len() >= WRITE_BYTES {
            out.write_all(&lines)?;
            lines.clear();
        }
    }
    for exit in &collection.exits {
        jsonl::write(&mut lines, &LineRef::Exit(exit))?;
    }
    let end = LineRef::Collected {
        timestamp: collection.at,
        sandboxes: collection.samples.len(),
    };
    jsonl::write(&mut lines, &end)?;
    out.write_all(&lines)?;
    Ok(out.flush()?)
}

/// Reads collections.
pub(crate) struct Reader<R> {
    input: R,
    number: u64,
    /// Lines that were passed over.
    foreign: u64,
}

impl<R: BufRead> Reader<R> {
    /// From the first line.
    pub(crate) fn new(input: R) -> Reader<R> {
        Reader {
            input,
            number: 0,
            foreign: 0,
        }
    }

    /// The next collection; none at the end. One that the end cut off counts as far as it goes. A line that is none of ours
    /// is told and passed over.
    pub(crate) fn next(&mut self) -> io::Result<Option<Collection>> {
        let mut collection = Collection {
            at: Timestamp::UNIX_EPOCH,
            samples: Vec::new(),
            exits: Vec::new(),
        };
        loop {
            match self.line()? {
                Some(Ok(Line::Sample(sample))) if collection.samples.len() < SAMPLES_MAX => {
                    collection.at = collection.at.max(sample.timestamp);
                    collection.samples.push(*sample);
                }
                Some(Ok(Line::Exit(exit))) if collection.exits.len() < SAMPLES_MAX => {
                    collection.exits.push(exit);
                }
                Some(Ok(Line::Collected { timestamp })) => {
                    collection.at = timestamp;
                    return Ok(Some(collection));
                }
                Some(Ok(Line::Other)) => self.pass_over("its type is unknown"),
                Some(Ok(_)) => {
                    self.pass_over(&format!("more than {SAMPLES_MAX} in one collection"));
                }
                Some(Err(why)) => self.pass_over(&why),
                None if collection.samples.is_empty() && collection.exits.is_empty() => {
                    self.tell_of_all();
                    return Ok(None);
                }
                None => return Ok(Some(collection)),
            }
        }
    }

    /// The next line, or what is wrong with it; none at the end.
    fn line(&mut self) -> io::Result<Option<Result<Line, String>>> {
        self.number += 1;
        let mut line = Vec::new();
        let mut bounded = self.input.by_ref().take(LINE_BYTES_MAX);
        if bounded.read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        if line.last() != Some(&b'\n') {
            // What is left of a line that is too long is not another line.
            let rest = self.input.skip_until(b'\n')?;
            return Ok(Some(Err(if rest == 0 {
                "it is cut off".to_owned()
            } else {
                format!("it is longer than {LINE_BYTES_MAX} bytes")
            })));
        }
        Ok(Some(serde_json::from_slice(&line).map_err(|error| {
            // Its place in the line; that of the line is told anyway.
            error.to_string().replace(" at line 1 column ", " at byte ")
        })))
    }

    /// Tells the first one, with its number: whoever mixes something in does so again and again.
    fn pass_over(&mut self, why: &str) {
        self.foreign += 1;
        if self.foreign == 1 {
            log::warn(&format!(
                "line {} is passed over, and so are others that are no lines of metrics: {why}",
                self.number
            ));
        }
    }

    /// How many there were in the end.
    fn tell_of_all(&self) {
        if self.foreign > 1 {
            log::warn(&format!("{} lines were passed over", self.foreign));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = r#"{"type":"sample","name":"web","timestamp":"2026-11-23T14:00:00Z"}"#;
    const END: &str = r#"{"type":"collected","timestamp":"2026-11-23T14:00:00Z","sandboxes":1}"#;

    /// How many samples each collection has, and how many lines were passed over.
    fn read(text: &[u8]) -> (Vec<usize>, u64) {
        let mut reader = Reader::new(text);
        let mut counts = Vec::new();
        while let Some(collection) = reader.next().unwrap() {
            counts.push(collection.samples.len());
        }
        (counts, reader.foreign)
    }

    #[test]
    fn lines_that_are_none_of_ours_are_passed_over() {
        let long = "x".repeat(LINE_BYTES_MAX as usize + 5);
        // The rest of a line that is too long may look like one of ours.
        let long_and_ours = format!("{}{SAMPLE}", " ".repeat(LINE_BYTES_MAX as usize));
        for foreign in [
            "no JSON",
            "{}",
            r#"{"type":"later"}"#,
            "",
            &long,
            &long_and_ours,
        ] {
            let text = format!("{SAMPLE}\n{foreign}\n{SAMPLE}\n{END}\n{SAMPLE}\n{END}\n");
            let shown = &foreign[..foreign.len().min(20)];
            assert_eq!(read(text.as_bytes()), (vec![2, 1], 1), "{shown:?}");
        }
        let bytes = [b"\xff\xfe\n", SAMPLE.as_bytes(), b"\n"].concat();
        assert_eq!(read(&bytes), (vec![1], 1));
    }

    #[test]
    fn a_collection_that_the_end_cut_off_counts_as_far_as_it_goes() {
        let text = format!("{SAMPLE}\n{SAMPLE}\n{}", &SAMPLE[..30]);
        assert_eq!(read(text.as_bytes()), (vec![2], 1));
        assert_eq!(read(&SAMPLE.as_bytes()[..30]), (vec![], 1));
        assert_eq!(read(b""), (vec![], 0));
    }
}
