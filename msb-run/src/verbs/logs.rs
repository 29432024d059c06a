//! `msb logs`: shows the output of a sandbox's commands.
//!
//! Log entries are printed as they came, so that the output is the same byte for byte. Only options
//! that work on lines (`--tail`, `--grep`, `--timestamps`) first join the entries to lines.

use std::collections::{HashMap, VecDeque};
use std::io::{self, BufWriter, Write};
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use clap::{Parser, ValueEnum};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use libmsb::cli::args::{SandboxName, parse_duration};
use libmsb::cli::error::Failure;
use libmsb::cli::escape::escape;
use libmsb::cli::{output, style};
use libmsb::logs::{Cursor, LogEntry, LogReader, LogSource, OpenError};
use libmsb::state::sandboxes::Sandbox;
use libmsb::state::{Home, layout};
use regex::bytes::Regex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use serde::Serialize;

const TOOL: &str = "msb-logs";

/// ID of the main command in the output; its entries have none in the log.
const MAIN_SESSION: &str = "main";

/// Poll interval for the end of a sandbox, which causes no inotify event.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Poll interval while the sandbox is about to end, or has no log yet.
const SHORT_POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Longest joined line, in bytes. Longer lines are printed in parts.
const LINE_BYTES_MAX: usize = 1024 * 1024;

/// Show the output of the commands of a sandbox
#[derive(Debug, Parser)]
#[command(
    name = TOOL,
    version,
    after_help = "Examples:\n  msb logs -f worker\n  msb logs --since 10m --grep error worker\n  msb logs --format json --source all worker | jq ."
)]
pub(crate) struct LogsArgs {
    /// Name of the sandbox, running or not
    name: SandboxName,
    /// Print new output until the sandbox ends
    #[arg(short, long)]
    follow: bool,
    /// Start with the last LINES lines, or all
    #[arg(short = 'n', long, value_name = "LINES", value_parser = parse_tail)]
    tail: Option<TailLimit>,
    /// Print output from TIME on: a time, or an age such as 10m
    ///
    /// TIME is RFC 3339, a date, a date and time in the local time zone, or an age with the unit
    /// `s`, `m`, `h` or `d`.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    since: Option<Timestamp>,
    /// Print output before TIME
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    until: Option<Timestamp>,
    /// Print the time before each line, in the local time zone with its offset
    #[arg(short, long)]
    timestamps: bool,
    /// Select stdout, stderr, output, system, kernel or all [default: stdout,stderr,output]
    ///
    /// Several sources are separated by commas. `output` is both streams of a command on a
    /// terminal. `system` is remarks of msb and the output of the supervisor process. `kernel` is
    /// the kernel and the agent of the guest. The output of the kernel and of the supervisor
    /// process has no time: it is printed first, and omitted with `--since`, `--until` and
    /// `--after-cursor`.
    #[arg(long, value_name = "SOURCE", value_delimiter = ',', value_parser = parse_source)]
    source: Vec<SourceFilter>,
    /// Print lines that match a regular expression only
    #[arg(long, value_name = "REGEX")]
    grep: Option<Regex>,
    /// Print the output of this job or session only
    #[arg(long, alias = "session", value_name = "ID")]
    job: Option<String>,
    /// Print a JSON object per line
    ///
    /// The form is that of the log, see msb-events(5).
    #[arg(long, value_enum)]
    format: Option<LogsFormat>,
    /// Same as --format json
    #[arg(long, conflicts_with = "format")]
    json: bool,
    /// Color standard error, times and remarks
    #[arg(long, value_enum, value_name = "WHEN", default_value = "auto")]
    color: ColorMode,
    /// Same as --color never
    #[arg(long, conflicts_with = "color")]
    no_color: bool,
    /// Color each line by its job or session instead
    #[arg(long)]
    color_sessions: bool,
    /// Print the ID of the job or session before each line; the main command has 'main'
    #[arg(long)]
    show_id: bool,
    /// Print a cursor at the end
    ///
    /// The cursor is a position after the printed output. It is a last line `-- cursor: ...`, or
    /// with JSON an object with the field `cursor`.
    #[arg(long)]
    show_cursor: bool,
    /// With JSON, print the cursor of each entry in its field `cursor`
    ///
    /// The cursor is a position after the entry. Entries of the kernel and of the supervisor
    /// process have none.
    #[arg(long, conflicts_with_all = ["tail", "grep", "timestamps"])]
    cursors: bool,
    /// Print output after this cursor only
    ///
    /// The position is found after a rotation of the log and after a restart of the sandbox. If it
    /// is gone, that is an error, `MissedRotation`.
    #[arg(long, value_name = "CURSOR", value_parser = parse_cursor)]
    after_cursor: Option<Cursor>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogsFormat {
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ColorMode {
    /// If standard output is a terminal and `$NO_COLOR` is not set
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

#[derive(Clone, Copy, Debug)]
enum TailLimit {
    All,
    Lines(usize),
}

fn parse_tail(text: &str) -> Result<TailLimit, String> {
    match text {
        "all" => Ok(TailLimit::All),
        _ => text
            .parse()
            .map(TailLimit::Lines)
            .map_err(|_| "neither a number of lines nor 'all'".to_owned()),
    }
}

#[derive(Clone, Copy, Debug)]
enum SourceFilter {
    All,
    One(LogSource),
}

fn parse_source(word: &str) -> Result<SourceFilter, String> {
    match word.parse() {
        Ok(source) => Ok(SourceFilter::One(source)),
        Err(()) if word == "all" => Ok(SourceFilter::All),
        Err(()) => Err("not one of stdout, stderr, output, system, kernel, all".to_owned()),
    }
}

fn parse_cursor(text: &str) -> Result<Cursor, String> {
    text.parse()
}

/// Parses a duration before now, a time of RFC 3339, or a local date and time.
fn parse_time(text: &str) -> Result<Timestamp, String> {
    if let Ok(ago) = parse_duration(text) {
        let before =
            Timestamp::now().checked_sub(jiff::SignedDuration::try_from(ago).unwrap_or_default());
        return before.map_err(|_| "out of range".to_owned());
    }
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let invalid = || {
        "not a time, such as 2026-11-23T14:05:00Z, '2026-11-23 14:05', 2026-11-23, or 10m (ago)"
            .to_owned()
    };
    let local = text
        .parse::<jiff::civil::DateTime>()
        .or_else(|_| format!("{text}:00").parse())
        .map_err(|_| invalid())?;
    let zoned = local.to_zoned(TimeZone::system()).map_err(|_| invalid())?;
    Ok(zoned.timestamp())
}

impl LogsArgs {
    fn sources(&self) -> Vec<LogSource> {
        if self.source.is_empty() {
            return LogSource::COMMANDS.to_vec();
        }
        let wanted = self.source.iter().flat_map(|wanted| match wanted {
            SourceFilter::All => LogSource::ALL.to_vec(),
            SourceFilter::One(source) => vec![*source],
        });
        wanted.collect()
    }

    fn is_json(&self) -> bool {
        self.json || self.format == Some(LogsFormat::Json)
    }

    fn is_colored(&self) -> bool {
        !self.no_color
            && !self.is_json()
            && match self.color {
                ColorMode::Auto => style::is_colored(),
                ColorMode::Always => true,
                ColorMode::Never => false,
            }
    }

    fn accepts(&self, entry: &LogEntry) -> bool {
        let in_time = match entry.time {
            Some(time) => {
                self.since.is_none_or(|since| time >= since)
                    && self.until.is_none_or(|until| time < until)
            }
            // The time of the entry is unknown.
            None => self.since.is_none() && self.until.is_none(),
        };
        in_time && (self.job.is_none() || self.job == entry.session)
    }
}

pub(crate) fn run(args: LogsArgs) -> anyhow::Result<()> {
    if args.cursors && !args.is_json() {
        return Err(Failure::usage("--cursors is an option of JSON")
            .hint("add --format json")
            .into());
    }
    let home = Home::from_env()?;
    let sandbox = home.sandboxes().find(&args.name)?;
    let mut reader = match LogReader::open(&sandbox, &args.sources(), args.after_cursor.as_ref()) {
        Ok(reader) => reader,
        Err(error @ OpenError::Missed(_)) => {
            return Err(Failure::failed(error.to_string())
                .hint("read from the start: omit --after-cursor")
                .into());
        }
        Err(error) => return Err(error.into()),
    };
    let mut printer = LogPrinter::new(&args);
    let mut alive = args.follow && sandbox.is_alive().unwrap_or(false);
    printer.take_all(&mut reader)?;
    printer.print_held_back()?;
    let watch = alive.then(|| LogWatch::new(&sandbox, &args.sources()));
    if let Some(mut watch) = watch {
        while alive && args.until.is_none_or(|until| Timestamp::now() < until) {
            watch.wait(printer.is_ending, None)?;
            // Check the lock first, so that everything written before the end is read after it.
            alive = sandbox.is_alive().unwrap_or(false);
            printer.take_all(&mut reader)?;
        }
    }
    printer.end()?;
    if let Some(cursor) = reader.cursor().filter(|_| args.show_cursor) {
        printer.cursor(&cursor)?;
    }
    Ok(())
}

/// A watch on the log files of a sandbox, through inotify.
pub(super) struct LogWatch {
    inotify: Option<rustix::fd::OwnedFd>,
    files: Vec<PathBuf>,
}

impl LogWatch {
    /// Watches the files, not the directory: it also has the disk, which changes all the time.
    pub(super) fn new(sandbox: &Sandbox, sources: &[LogSource]) -> LogWatch {
        let mut files = vec![sandbox.path(layout::EXEC_LOG)];
        for (source, file) in
            [(LogSource::System, layout::SUPERVISOR_LOG), (LogSource::Kernel, layout::CONSOLE_LOG)]
        {
            if sources.contains(&source) {
                files.push(sandbox.path(file));
            }
        }
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        LogWatch {
            // Each user has only a limited number of inotify instances. Without one, poll.
            inotify: inotify::init(flags).ok(),
            files,
        }
    }

    /// Waits until a log may have grown, `also` is readable, or the poll interval ends, which is
    /// short if `soon`.
    pub(super) fn wait(&mut self, soon: bool, also: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut watched = self.inotify.is_some();
        for file in &self.files {
            let events = inotify::WatchFlags::MODIFY | inotify::WatchFlags::MOVE_SELF;
            // After a rotation the name refers to another file. Adding the same file again has no
            // effect.
            let added =
                self.inotify.as_ref().map(|inotify| inotify::add_watch(inotify, file, events));
            watched &= matches!(added, Some(Ok(_)));
        }
        let pause = if watched && !soon { POLL_INTERVAL } else { SHORT_POLL_INTERVAL };
        let pause =
            Timespec { tv_sec: pause.as_secs() as i64, tv_nsec: i64::from(pause.subsec_nanos()) };
        let mut fds: Vec<PollFd<'_>> = self
            .inotify
            .iter()
            .map(|inotify| PollFd::new(inotify, PollFlags::IN))
            .chain(also.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)))
            .collect();
        match poll(&mut fds, Some(&pause)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        // Drop the notifications: they only say that something has changed.
        let mut events = [0; 4096];
        if let Some(inotify) = &self.inotify {
            while rustix::io::read(inotify, &mut events).is_ok() {}
        }
        Ok(())
    }
}

#[derive(Serialize)]
struct LogRow<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    t: Option<String>,
    s: &'a str,
    d: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    e: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cursor: Option<String>,
}

/// Source and session of a line.
type LineStream = (LogSource, Option<String>);

struct LogPrinter<'a> {
    args: &'a LogsArgs,
    out: BufWriter<output::Stdout>,
    colored: bool,
    by_line: bool,
    /// Lines without their end.
    unfinished: HashMap<LineStream, LogEntry>,
    /// Candidates for the last lines.
    last: Option<VecDeque<LogEntry>>,
    lines: usize,
    zone: TimeZone,
    /// Set when the sandbox has announced its end.
    is_ending: bool,
}

impl<'a> LogPrinter<'a> {
    fn new(args: &'a LogsArgs) -> LogPrinter<'a> {
        let lines = match args.tail {
            Some(TailLimit::Lines(lines)) => Some(lines),
            _ => None,
        };
        let colored = args.is_colored();
        LogPrinter {
            args,
            out: BufWriter::new(output::stdout()),
            colored,
            by_line: lines.is_some()
                || args.grep.is_some()
                || args.timestamps
                || args.show_id
                || colored,
            unfinished: HashMap::new(),
            last: lines.map(|_| VecDeque::new()),
            lines: lines.unwrap_or(0),
            zone: TimeZone::system(),
            is_ending: false,
        }
    }

    fn take_all(&mut self, reader: &mut LogReader) -> anyhow::Result<()> {
        while let Some(entry) = reader.next_entry().context("cannot read the logs")? {
            if !self.args.accepts(&entry) {
                continue;
            }
            if self.args.cursors {
                let cursor = entry.time.and_then(|_| reader.cursor());
                self.print_json(&entry, cursor.as_ref())?;
            } else {
                self.take(entry)?;
            }
        }
        self.is_ending = reader.is_ending();
        self.flush()
    }

    fn take(&mut self, entry: LogEntry) -> anyhow::Result<()> {
        if !self.by_line {
            return self.print(&entry);
        }
        let stream = (entry.source, entry.session.clone());
        let mut whole = match self.unfinished.remove(&stream) {
            // The time of a line is the time of its start.
            Some(mut started) => {
                started.data.extend_from_slice(&entry.data);
                started
            }
            None => entry.clone(),
        };
        while let Some(end) = whole.data.iter().position(|byte| *byte == b'\n') {
            let rest = whole.data.split_off(end + 1);
            self.line(std::mem::replace(&mut whole, LogEntry { data: rest, ..entry.clone() }))?;
        }
        if whole.data.len() > LINE_BYTES_MAX {
            return self.line(whole);
        }
        if !whole.data.is_empty() {
            self.unfinished.insert(stream, whole);
        }
        Ok(())
    }

    fn line(&mut self, line: LogEntry) -> anyhow::Result<()> {
        let text = line.data.strip_suffix(b"\n").unwrap_or(&line.data);
        if self.args.grep.as_ref().is_some_and(|grep| !grep.is_match(text)) {
            return Ok(());
        }
        let Some(last) = &mut self.last else {
            return self.print(&line);
        };
        last.push_back(line);
        if last.len() > self.lines {
            last.pop_front();
        }
        Ok(())
    }

    /// Prints the lines held back for `--tail`, after all existing entries are read. New lines are
    /// printed at once.
    fn print_held_back(&mut self) -> anyhow::Result<()> {
        if !self.args.follow {
            self.print_unfinished()?;
        }
        for line in self.last.take().into_iter().flatten() {
            self.print(&line)?;
        }
        self.flush()
    }

    fn end(&mut self) -> anyhow::Result<()> {
        self.print_unfinished()?;
        self.flush()
    }

    fn print_unfinished(&mut self) -> anyhow::Result<()> {
        let mut lines: Vec<LogEntry> = self.unfinished.drain().map(|(_, line)| line).collect();
        lines.sort_by_key(|line| line.time);
        lines.into_iter().try_for_each(|line| self.line(line))
    }

    fn print(&mut self, entry: &LogEntry) -> anyhow::Result<()> {
        if self.args.is_json() {
            return Ok(self.print_json(entry, None)?);
        }
        let mut text = Vec::new();
        if self.args.timestamps {
            let time = entry.time.map_or_else(|| "-".to_owned(), |time| self.time(time));
            let time =
                if self.colored { format!("\x1b[2m{time}\x1b[0m ") } else { format!("{time} ") };
            text.extend_from_slice(time.as_bytes());
        }
        let session = entry.session.as_deref().unwrap_or(MAIN_SESSION);
        if self.args.show_id {
            text.extend_from_slice(format!("{} ", escape(session)).as_bytes());
        }
        match (self.colored, entry.source) {
            (true, LogSource::Stdout | LogSource::Stderr | LogSource::Output)
                if self.args.color_sessions =>
            {
                write_colored(&mut text, session_color(session), &entry.data)
            }
            (true, LogSource::Stderr) => write_colored(&mut text, "31", &entry.data),
            (true, LogSource::System | LogSource::Kernel) => {
                write_colored(&mut text, "2", &entry.data)
            }
            _ => text.extend_from_slice(&entry.data),
        }
        if entry.source == LogSource::Stderr {
            // Ignore errors: a user who closed standard error does not want its output.
            self.flush()?;
            let _ = io::stderr().write_all(&text);
            return Ok(());
        }
        Ok(self.out.write_all(&text)?)
    }

    fn time(&self, time: Timestamp) -> String {
        let zoned = time.to_zoned(self.zone.clone());
        zoned.strftime("%Y-%m-%dT%H:%M:%S%.3f%:z").to_string()
    }

    fn cursor(&mut self, cursor: &Cursor) -> anyhow::Result<()> {
        let line = if self.args.is_json() {
            serde_json::json!({ "cursor": cursor.to_string() }).to_string()
        } else {
            format!("-- cursor: {cursor}")
        };
        writeln!(self.out, "{line}")?;
        self.flush()
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        Ok(self.out.flush()?)
    }

    fn print_json(&mut self, entry: &LogEntry, cursor: Option<&Cursor>) -> io::Result<()> {
        let text = std::str::from_utf8(&entry.data);
        let encoded = text.is_err().then(|| BASE64.encode(&entry.data));
        let row = LogRow {
            t: entry.time.map(libmsb::time::text),
            s: entry.source.name(),
            d: encoded.as_deref().or(text.ok()).unwrap_or_default(),
            id: entry.session.as_deref(),
            e: encoded.is_some().then_some("b64"),
            cursor: cursor.map(Cursor::to_string),
        };
        libmsb::jsonl::write(&mut self.out, &row)
    }
}

/// Returns the color of a session: the same one in each run.
fn session_color(session: &str) -> &'static str {
    const COLORS: [&str; 6] = ["32", "33", "34", "35", "36", "31"];
    let sum: usize = session.bytes().map(usize::from).sum();
    COLORS[sum % COLORS.len()]
}

fn write_colored(out: &mut Vec<u8>, color: &str, line: &[u8]) {
    let (text, end) = match line.strip_suffix(b"\n") {
        Some(text) => (text, &b"\n"[..]),
        None => (line, &b""[..]),
    };
    out.extend_from_slice(format!("\x1b[{color}m").as_bytes());
    out.extend_from_slice(text);
    out.extend_from_slice(b"\x1b[0m");
    out.extend_from_slice(end);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_typed_in_many_ways() {
        let zulu: Timestamp = "2026-11-23T14:05:00Z".parse().unwrap();
        assert_eq!(parse_time("2026-11-23T14:05:00Z").unwrap(), zulu);
        assert_eq!(parse_time("2026-11-23T15:05:00+01:00").unwrap(), zulu);
        for text in ["2026-11-23", "2026-11-23 14:05", "2026-11-23T14:05:09.5", "10m", "2d"] {
            assert!(parse_time(text).is_ok(), "{text}");
        }
        for text in ["", "yesterday", "10x", "2026-13-01"] {
            assert!(parse_time(text).is_err(), "{text}");
        }
    }
}
