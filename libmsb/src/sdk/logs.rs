//! Logs of a sandbox.

use jiff::Timestamp;
use serde::Deserialize;

use super::address::Address;
use super::error::Error;
use super::lines::Lines;
use crate::cli::error::Code;
use crate::logs::{LogEntry, LogSource};

/// Selection of log entries.
#[derive(Clone, Debug, Default)]
pub struct LogOptions {
    /// Sources; all if this is empty.
    pub sources: Vec<LogSource>,
    /// Number of entries to start with: the last ones. All by default.
    pub tail: Option<usize>,
    /// Time of the first entry, RFC 3339, or an age such as `10m`.
    pub since: Option<String>,
    /// Time after the last entry.
    pub until: Option<String>,
    /// Cursor of the entry before the first.
    pub from_cursor: Option<String>,
    /// True to wait for new entries, until the sandbox ends.
    pub follow: bool,
}

/// A stream of log entries.
///
/// ```no_run
/// # use libmsb::sdk::{LogOptions, Sandbox};
/// # fn main() -> Result<(), libmsb::sdk::Error> {
/// let options = LogOptions { follow: true, ..LogOptions::default() };
/// for entry in Sandbox::get("worker")?.log_stream(&options)? {
///     println!("{}", String::from_utf8_lossy(&entry?.data));
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct LogStream {
    lines: Lines,
    cursor: Option<String>,
}

/// A line of `msb logs --format json --cursors`; see msb-logs(1).
#[derive(Deserialize)]
struct Line {
    #[serde(default, with = "crate::time::optional")]
    t: Option<Timestamp>,
    s: String,
    #[serde(default)]
    id: Option<String>,
    d: String,
    #[serde(default)]
    e: Option<String>,
    #[serde(default)]
    cursor: Option<String>,
}

impl LogStream {
    pub(super) fn open(
        sandbox: &Address,
        job: Option<&str>,
        options: &LogOptions,
    ) -> Result<LogStream, Error> {
        let mut args = vec!["--format=json".to_owned(), "--cursors".to_owned()];
        let sources: Vec<&str> = options.sources.iter().map(|source| source.name()).collect();
        let sources = if sources.is_empty() { "all".to_owned() } else { sources.join(",") };
        args.push(format!("--source={sources}"));
        args.extend(options.tail.map(|count| format!("--tail={count}")));
        args.extend(options.since.as_ref().map(|time| format!("--since={time}")));
        args.extend(options.until.as_ref().map(|time| format!("--until={time}")));
        args.extend(options.from_cursor.as_ref().map(|at| format!("--after-cursor={at}")));
        args.extend(job.map(|job| format!("--job={job}")));
        args.extend(options.follow.then(|| "--follow".to_owned()));
        args.extend(["--".to_owned(), sandbox.name().to_owned()]);
        Ok(LogStream { lines: Lines::start(&sandbox.home, "msb-logs", args)?, cursor: None })
    }

    /// Waits for the next entry; `None` at the end.
    pub fn recv(&mut self) -> Result<Option<LogEntry>, Error> {
        let Some(line) = self.lines.next::<Line>()? else { return Ok(None) };
        let data = match line.e.as_deref() {
            None => line.d.into_bytes(),
            Some("b64") => base64::Engine::decode(&base64::prelude::BASE64_STANDARD, &line.d)
                .map_err(|error| Error::new(Code::Failed, format!("invalid log entry: {error}")))?,
            Some(other) => {
                return Err(Error::new(
                    Code::Failed,
                    format!("unknown encoding '{other}' of a log"),
                ));
            }
        };
        self.cursor = line.cursor;
        let unknown =
            |()| Error::new(Code::Failed, format!("unknown source '{}' of a log", line.s));
        Ok(Some(LogEntry {
            time: line.t,
            source: line.s.parse().map_err(unknown)?,
            session: line.id,
            data,
        }))
    }

    /// Returns the cursor of the last entry, for [`LogOptions::from_cursor`].
    pub fn cursor(&self) -> Option<&str> {
        self.cursor.as_deref()
    }
}

impl Iterator for LogStream {
    type Item = Result<LogEntry, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.recv().transpose()
    }
}
