//! Readers of a sandbox's logs, whether the sandbox runs, is stopped, or is broken.
//!
//! The output of commands is in `exec.log`, as JSON lines with times (msb-events(5)). The output of
//! the guest's kernel and of the supervisor is plain text without times. All logs are followed
//! across log rotation.

use std::io;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use serde::Deserialize;

use crate::state::layout;
use crate::state::sandboxes::Sandbox;

/// Reading across log rotation.
mod rotated;

pub use rotated::{Cursor, MissedRotation};
use rotated::{Line, RotatedReader};

/// Source of a log entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LogSource {
    /// Standard output of a command.
    Stdout,
    /// Standard error of a command.
    Stderr,
    /// Standard output and error of a command on a terminal.
    Output,
    /// msb itself.
    System,
    /// The guest's kernel and agent.
    Kernel,
}

impl LogSource {
    /// All sources.
    pub const ALL: [LogSource; 5] = [
        LogSource::Stdout,
        LogSource::Stderr,
        LogSource::Output,
        LogSource::System,
        LogSource::Kernel,
    ];

    /// Sources that are output of commands.
    pub const COMMANDS: [LogSource; 3] = [LogSource::Stdout, LogSource::Stderr, LogSource::Output];

    /// Returns the name of the source, as in options and JSON.
    pub fn name(self) -> &'static str {
        match self {
            LogSource::Stdout => "stdout",
            LogSource::Stderr => "stderr",
            LogSource::Output => "output",
            LogSource::System => "system",
            LogSource::Kernel => "kernel",
        }
    }
}

impl FromStr for LogSource {
    type Err = ();

    fn from_str(word: &str) -> Result<LogSource, ()> {
        let mut all = LogSource::ALL.into_iter();
        all.find(|source| source.name() == word).ok_or(())
    }
}

/// An entry of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Time; unknown for the output of the kernel and of the supervisor's process.
    pub time: Option<Timestamp>,
    /// Source of the entry.
    pub source: LogSource,
    /// Session that printed it, unless it was the main command.
    pub session: Option<String>,
    /// The output, byte for byte.
    pub data: Vec<u8>,
}

/// A line of `exec.log`.
#[derive(Deserialize)]
struct LogLine {
    #[serde(with = "crate::time")]
    t: Timestamp,
    s: String,
    d: String,
    #[serde(default)]
    e: Option<String>,
    #[serde(default)]
    id: Option<String>,
}

/// A reader of a sandbox's logs, from their start to their end, and further as they grow.
#[derive(Debug)]
pub struct LogReader {
    exec: RotatedReader,
    kernel: Option<RotatedReader>,
    supervisor: Option<RotatedReader>,
    sources: Vec<LogSource>,
    ending: bool,
}

/// Start of the last message of a supervisor in the log. A reason may follow.
pub const LAST_MESSAGE: &str = "sandbox stopped";

impl LogReader {
    /// Opens the logs. Missing files count as empty. With a cursor, the log of commands is read
    /// from there on.
    pub fn open(
        sandbox: &Sandbox,
        sources: &[LogSource],
        after: Option<&Cursor>,
    ) -> Result<LogReader, OpenError> {
        let exec = RotatedReader::open(sandbox.path(layout::EXEC_LOG), after)?;
        let plain = |source, file: &str| {
            let wanted = after.is_none() && sources.contains(&source);
            let open = || RotatedReader::open(sandbox.path(file), None);
            wanted.then(open).transpose()
        };
        Ok(LogReader {
            exec,
            kernel: plain(LogSource::Kernel, layout::CONSOLE_LOG)?,
            supervisor: plain(LogSource::System, layout::SUPERVISOR_LOG)?,
            sources: sources.to_vec(),
            ending: false,
        })
    }

    /// Returns the next entry; `None` if there is none yet.
    pub fn next_entry(&mut self) -> io::Result<Option<LogEntry>> {
        for (reader, source) in
            [(&mut self.kernel, LogSource::Kernel), (&mut self.supervisor, LogSource::System)]
        {
            if let Some(line) = reader.as_mut().map(RotatedReader::next_line).transpose()?.flatten()
            {
                return Ok(Some(plain(source, line)));
            }
        }
        while let Some(line) = self.exec.next_line()? {
            // A line that a power failure or a full disk has cut is skipped.
            let Some(entry) = parse(&line) else { continue };
            self.ending = entry.source == LogSource::System
                && entry.data.starts_with(LAST_MESSAGE.as_bytes());
            if self.sources.contains(&entry.source) {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    /// Returns whether the last entry says that the sandbox has ended, or is about to.
    pub fn is_ending(&self) -> bool {
        self.ending
    }

    /// Returns the position in the log of commands after the last entry; `None` if there is no log
    /// yet.
    pub fn cursor(&self) -> Option<Cursor> {
        self.exec.cursor()
    }
}

/// An error of opening logs.
#[derive(Debug)]
pub enum OpenError {
    /// A file cannot be opened or read.
    Io(io::Error),
    /// The entries after the cursor were rotated away.
    Missed(MissedRotation),
}

impl std::fmt::Display for OpenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            OpenError::Io(_) => f.write_str("cannot read the logs"),
            OpenError::Missed(missed) => missed.fmt(f),
        }
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            OpenError::Io(error) => Some(error),
            OpenError::Missed(_) => None,
        }
    }
}

impl From<io::Error> for OpenError {
    fn from(error: io::Error) -> OpenError {
        OpenError::Io(error)
    }
}

fn plain(source: LogSource, line: Line) -> LogEntry {
    LogEntry { time: None, source, session: None, data: line }
}

fn parse(line: &[u8]) -> Option<LogEntry> {
    let logged: LogLine = serde_json::from_slice(line).ok()?;
    let data = match logged.e.as_deref() {
        None => logged.d.into_bytes(),
        Some("b64") => BASE64.decode(logged.d).ok()?,
        Some(_) => return None,
    };
    Some(LogEntry {
        time: Some(logged.t),
        source: logged.s.parse().ok()?,
        session: logged.id,
        data,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::sandboxes::Sandboxes;

    #[test]
    fn portions_are_read_byte_for_byte_and_broken_lines_are_passed_over() {
        let directory = tempfile::tempdir().unwrap();
        let log = concat!(
            "{\"t\":\"2026-11-23T14:05:09.120Z\",\"s\":\"stdout\",\"d\":\"a\\n\"}\n",
            "{\"t\":\"2026-11-23T14:0\n",
            "{\"t\":\"2026-11-23T14:05:09.121Z\",\"s\":\"later\",\"d\":\"\"}\n",
            "{\"t\":\"2026-11-23T14:05:09.121Z\",\"s\":\"stderr\",\"d\":\"//4=\",\"e\":\"b64\",\"id\":\"7\"}\n",
        );
        let sandboxes = Sandboxes::at(
            directory.path().to_owned(),
            directory.path().join("events"),
            directory.path().join("run"),
        );
        let sandbox = sandboxes.named(&"x".parse().unwrap());
        std::fs::create_dir(&sandbox.dir).unwrap();
        std::fs::write(sandbox.path(layout::EXEC_LOG), log).unwrap();
        std::fs::write(sandbox.path(layout::CONSOLE_LOG), "Linux\n").unwrap();
        let mut reader = LogReader::open(&sandbox, &LogSource::ALL, None).unwrap();
        let mut entries = Vec::new();
        while let Some(entry) = reader.next_entry().unwrap() {
            entries.push((entry.source, entry.session, entry.data));
        }
        assert_eq!(
            entries,
            [
                (LogSource::Kernel, None, b"Linux\n".to_vec()),
                (LogSource::Stdout, None, b"a\n".to_vec()),
                (LogSource::Stderr, Some("7".to_owned()), vec![0xff, 0xfe]),
            ]
        );
    }
}
