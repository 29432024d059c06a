//! The logs of a sandbox, for reading: whether it runs, is stopped, or is broken.
//!
//! What commands printed is in `exec.log`, as lines of JSON that carry times (msb-events(5)); what the guest's kernel and
//! the supervisor said is plain text without. All are rotated while they are read.

use std::io;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use serde::Deserialize;

use crate::state::layout;
use crate::state::sandboxes::Sandbox;

/// Files that are renamed when they are full.
mod rotated;

pub use rotated::{Cursor, MissedRotation};
use rotated::{Line, RotatedReader};

/// Who said something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// Standard output of a command.
    Stdout,
    /// Standard error of a command.
    Stderr,
    /// Both, of a command on a terminal.
    Output,
    /// msb itself.
    System,
    /// The guest's kernel and agent.
    Kernel,
}

impl Source {
    /// All of them.
    pub const ALL: [Source; 5] = [
        Source::Stdout,
        Source::Stderr,
        Source::Output,
        Source::System,
        Source::Kernel,
    ];

    /// What commands print.
    pub const COMMANDS: [Source; 3] = [Source::Stdout, Source::Stderr, Source::Output];

    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Source::Stdout => "stdout",
            Source::Stderr => "stderr",
            Source::Output => "output",
            Source::System => "system",
            Source::Kernel => "kernel",
        }
    }
}

impl FromStr for Source {
    type Err = ();

    fn from_str(word: &str) -> Result<Source, ()> {
        let mut all = Source::ALL.into_iter();
        all.find(|source| source.word() == word).ok_or(())
    }
}

/// A portion of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// When; unknown for what the kernel and the supervisor's process printed.
    pub time: Option<Timestamp>,
    /// From where.
    pub source: Source,
    /// Which session, other than the main command.
    pub session: Option<String>,
    /// What was said, byte for byte.
    pub data: Vec<u8>,
}

/// A line of `exec.log`.
#[derive(Deserialize)]
struct Logged {
    t: Timestamp,
    s: String,
    d: String,
    #[serde(default)]
    e: Option<String>,
    #[serde(default)]
    id: Option<String>,
}

/// Reads the logs of a sandbox, from their begin to their end and on as they grow.
#[derive(Debug)]
pub struct Reader {
    exec: RotatedReader,
    kernel: Option<RotatedReader>,
    supervisor: Option<RotatedReader>,
    sources: Vec<Source>,
    ending: bool,
}

/// How the last remark of a supervisor in the log begins; a reason may follow.
pub const LAST_REMARK: &str = "sandbox stopped";

impl Reader {
    /// Opens the logs. Files that are not there have nothing in them. With a cursor, the log of commands goes on behind it.
    pub fn open(
        sandbox: &Sandbox,
        sources: &[Source],
        after: Option<&Cursor>,
    ) -> Result<Reader, OpenError> {
        let exec = RotatedReader::open(sandbox.path(layout::EXEC_LOG), after)?;
        let plain = |source, file: &str| {
            let wanted = after.is_none() && sources.contains(&source);
            let open = || RotatedReader::open(sandbox.path(file), None);
            wanted.then(open).transpose()
        };
        Ok(Reader {
            exec,
            kernel: plain(Source::Kernel, layout::CONSOLE_LOG)?,
            supervisor: plain(Source::System, layout::SUPERVISOR_LOG)?,
            sources: sources.to_vec(),
            ending: false,
        })
    }

    /// The next portion; `None` when there is none for now.
    pub fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        for (reader, source) in [
            (&mut self.kernel, Source::Kernel),
            (&mut self.supervisor, Source::System),
        ] {
            if let Some(line) = reader
                .as_mut()
                .map(RotatedReader::next_line)
                .transpose()?
                .flatten()
            {
                return Ok(Some(plain(source, line)));
            }
        }
        while let Some(line) = self.exec.next_line()? {
            // What a power cut or a full disk has left of a line is not worth losing the others for.
            let Some(entry) = parse(&line) else { continue };
            self.ending =
                entry.source == Source::System && entry.data.starts_with(LAST_REMARK.as_bytes());
            if self.sources.contains(&entry.source) {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    /// Whether the last that was read says that the sandbox has ended, or is about to.
    pub fn is_ending(&self) -> bool {
        self.ending
    }

    /// The place in the log of commands behind what was read; `None` when there is no log yet.
    pub fn cursor(&self) -> Option<Cursor> {
        self.exec.cursor()
    }
}

/// Why logs cannot be read.
#[derive(Debug)]
pub enum OpenError {
    /// A file cannot be opened or read.
    Io(io::Error),
    /// What the cursor stands for is gone.
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

fn plain(source: Source, line: Line) -> Entry {
    Entry {
        time: None,
        source,
        session: None,
        data: line,
    }
}

fn parse(line: &[u8]) -> Option<Entry> {
    let logged: Logged = serde_json::from_slice(line).ok()?;
    let data = match logged.e.as_deref() {
        None => logged.d.into_bytes(),
        Some("b64") => BASE64.decode(logged.d).ok()?,
        Some(_) => return None,
    };
    Some(Entry {
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
        let folder = tempfile::tempdir().unwrap();
        let log = concat!(
            "{\"t\":\"2026-11-23T14:05:09.120Z\",\"s\":\"stdout\",\"d\":\"a\\n\"}\n",
            "{\"t\":\"2026-11-23T14:0\n",
            "{\"t\":\"2026-11-23T14:05:09.121Z\",\"s\":\"later\",\"d\":\"\"}\n",
            "{\"t\":\"2026-11-23T14:05:09.121Z\",\"s\":\"stderr\",\"d\":\"//4=\",\"e\":\"b64\",\"id\":\"7\"}\n",
        );
        let sandboxes = Sandboxes::at(
            folder.path().to_owned(),
            folder.path().join("events"),
            folder.path().join("run"),
        );
        let sandbox = sandboxes.named(&"x".parse().unwrap());
        std::fs::create_dir(&sandbox.dir).unwrap();
        std::fs::write(sandbox.path(layout::EXEC_LOG), log).unwrap();
        std::fs::write(sandbox.path(layout::CONSOLE_LOG), "Linux\n").unwrap();
        let mut reader = Reader::open(&sandbox, &Source::ALL, None).unwrap();
        let mut entries = Vec::new();
        while let Some(entry) = reader.next_entry().unwrap() {
            entries.push((entry.source, entry.session, entry.data));
        }
        assert_eq!(
            entries,
            [
                (Source::Kernel, None, b"Linux\n".to_vec()),
                (Source::Stdout, None, b"a\n".to_vec()),
                (Source::Stderr, Some("7".to_owned()), vec![0xff, 0xfe]),
            ]
        );
    }
}
