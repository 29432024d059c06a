//! `msb logs`: what a sandbox's commands printed.
//!
//! Portions are printed as they came, so that output is the same byte for byte. Only what looks at lines (the last ones,
//! those that match, those with a time before them) puts portions together into lines first.

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
use libmsb::cli::{output, style};
use libmsb::logs::{Cursor, Entry, OpenError, Reader, Source};
use libmsb::state::sandboxes::Sandbox;
use libmsb::state::{Home, layout};
use regex::bytes::Regex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use serde::Serialize;

const TOOL: &str = "msb-logs";

/// Pause between looks at a sandbox that may have ended: nothing else tells.
const LOOK: Duration = Duration::from_secs(1);

/// The same when it is about to end, or has no log yet.
const SHORT_LOOK: Duration = Duration::from_millis(50);

/// Longest line that is put together, in bytes; what is longer comes in parts.
const LINE_BYTES_MAX: usize = 1024 * 1024;

/// Show what the commands of a sandbox printed
#[derive(Debug, Parser)]
#[command(
    name = TOOL,
    version,
    after_help = "Examples:\n  msb logs -f worker\n  msb logs --since 10m --grep error worker\n  msb logs --format json --source all worker | jq ."
)]
pub(crate) struct LogsArgs {
    /// The sandbox, running or not
    name: SandboxName,
    /// Go on until the sandbox ends
    #[arg(short, long)]
    follow: bool,
    /// Only the last so many lines
    #[arg(short = 'n', long, value_name = "LINES", value_parser = parse_tail)]
    tail: Option<Tail>,
    /// Only what is newer: a time, or how long ago, as 10m
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    since: Option<Timestamp>,
    /// Only what is older
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    until: Option<Timestamp>,
    /// Put the time before each line
    #[arg(short, long)]
    timestamps: bool,
    /// Whose: stdout, stderr, output, system, kernel, all (default: the first three)
    #[arg(long, value_name = "SOURCE", value_delimiter = ',', value_parser = parse_source)]
    source: Vec<Wanted>,
    /// Only lines that match
    #[arg(long, value_name = "REGEX")]
    grep: Option<Regex>,
    /// Only what this job, or session, printed
    #[arg(long, alias = "session", value_name = "ID")]
    job: Option<String>,
    /// How to print it
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// The same as --format json
    #[arg(long, conflicts_with = "format")]
    json: bool,
    /// Whether to color standard error, times and remarks
    #[arg(long, value_enum, value_name = "WHEN", default_value = "auto")]
    color: Color,
    /// The same as --color never
    #[arg(long, conflicts_with = "color")]
    no_color: bool,
    /// Print a cursor at the end
    #[arg(long)]
    show_cursor: bool,
    /// Only what comes behind a cursor that was printed before
    #[arg(long, value_name = "CURSOR", value_parser = parse_cursor)]
    after_cursor: Option<Cursor>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// One JSON object a line
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Color {
    /// When standard output is a terminal
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

#[derive(Clone, Copy, Debug)]
enum Tail {
    All,
    Lines(usize),
}

fn parse_tail(text: &str) -> Result<Tail, String> {
    match text {
        "all" => Ok(Tail::All),
        _ => text
            .parse()
            .map(Tail::Lines)
            .map_err(|_| "neither a number of lines nor 'all'".to_owned()),
    }
}

#[derive(Clone, Copy, Debug)]
enum Wanted {
    All,
    One(Source),
}

fn parse_source(word: &str) -> Result<Wanted, String> {
    match word.parse() {
        Ok(source) => Ok(Wanted::One(source)),
        Err(()) if word == "all" => Ok(Wanted::All),
        Err(()) => Err("not one of stdout, stderr, output, system, kernel, all".to_owned()),
    }
}

fn parse_cursor(text: &str) -> Result<Cursor, String> {
    text.parse()
}

/// How long ago, RFC 3339, or a date and time on the user's clock.
fn parse_time(text: &str) -> Result<Timestamp, String> {
    if let Ok(ago) = parse_duration(text) {
        let before =
            Timestamp::now().checked_sub(jiff::SignedDuration::try_from(ago).unwrap_or_default());
        return before.map_err(|_| "before all times".to_owned());
    }
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let wrong = || {
        "not a time, such as 2026-11-23T14:05:00Z, '2026-11-23 14:05', 2026-11-23, or 10m (ago)"
            .to_owned()
    };
    let local = text
        .parse::<jiff::civil::DateTime>()
        .or_else(|_| format!("{text}:00").parse())
        .map_err(|_| wrong())?;
    let zoned = local.to_zoned(TimeZone::system()).map_err(|_| wrong())?;
    Ok(zoned.timestamp())
}

impl LogsArgs {
    fn sources(&self) -> Vec<Source> {
        if self.source.is_empty() {
            return Source::COMMANDS.to_vec();
        }
        let wanted = self.source.iter().flat_map(|wanted| match wanted {
            Wanted::All => Source::ALL.to_vec(),
            Wanted::One(source) => vec![*source],
        });
        wanted.collect()
    }

    fn is_json(&self) -> bool {
        self.json || self.format == Some(Format::Json)
    }

    fn is_colored(&self) -> bool {
        !self.no_color
            && !self.is_json()
            && match self.color {
                Color::Auto => style::is_colored(),
                Color::Always => true,
                Color::Never => false,
            }
    }

    fn takes(&self, entry: &Entry) -> bool {
        let in_time = match entry.time {
            Some(time) => {
                self.since.is_none_or(|since| time >= since)
                    && self.until.is_none_or(|until| time < until)
            }
            // Nobody knows when it was.
            None => self.since.is_none() && self.until.is_none(),
        };
        in_time && (self.job.is_none() || self.job == entry.session)
    }
}

pub(crate) fn run(args: LogsArgs) -> anyhow::Result<()> {
    let home = Home::from_env()?;
    let sandbox = home.sandboxes().find(&args.name)?;
    let mut reader = match Reader::open(&sandbox, &args.sources(), args.after_cursor.as_ref()) {
        Ok(reader) => reader,
        Err(error @ OpenError::Missed(_)) => {
            return Err(Failure::failed(error.to_string())
                .hint("read from the begin: leave out --after-cursor")
                .into());
        }
        Err(error) => return Err(error.into()),
    };
    let mut printer = Printer::new(&args);
    let mut alive = args.follow && sandbox.is_alive().unwrap_or(false);
    printer.take_all(&mut reader)?;
    printer.end_of_past()?;
    let watch = alive.then(|| Watch::new(&sandbox, &args.sources()));
    if let Some(mut watch) = watch {
        while alive && args.until.is_none_or(|until| Timestamp::now() < until) {
            watch.wait(printer.is_ending, None)?;
            // Asked first: what was written until the end is then read after it.
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

/// Waits for logs to grow.
pub(super) struct Watch {
    inotify: Option<rustix::fd::OwnedFd>,
    files: Vec<PathBuf>,
}

impl Watch {
    /// The files themselves are watched: in the same folder lies a disk, which changes all the time.
    pub(super) fn new(sandbox: &Sandbox, sources: &[Source]) -> Watch {
        let mut files = vec![sandbox.path(layout::EXEC_LOG)];
        for (source, file) in [
            (Source::System, layout::SUPERVISOR_LOG),
            (Source::Kernel, layout::CONSOLE_LOG),
        ] {
            if sources.contains(&source) {
                files.push(sandbox.path(file));
            }
        }
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        Watch {
            // There are few of them for each user. Without one we look from time to time.
            inotify: inotify::init(flags).ok(),
            files,
        }
    }

    /// Waits until something may have been written, or `also` can be read; not for long, and shortly when `soon`.
    pub(super) fn wait(&mut self, soon: bool, also: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut watched = self.inotify.is_some();
        for file in &self.files {
            let events = inotify::WatchFlags::MODIFY | inotify::WatchFlags::MOVE_SELF;
            // After a rotation the name stands for another file; the same file again changes nothing.
            let added = self
                .inotify
                .as_ref()
                .map(|inotify| inotify::add_watch(inotify, file, events));
            watched &= matches!(added, Some(Ok(_)));
        }
        let pause = if watched && !soon { LOOK } else { SHORT_LOOK };
        let pause = Timespec {
            tv_sec: pause.as_secs() as i64,
            tv_nsec: i64::from(pause.subsec_nanos()),
        };
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
        // What they say is only that something has changed.
        let mut events = [0; 4096];
        if let Some(inotify) = &self.inotify {
            while rustix::io::read(inotify, &mut events).is_ok() {}
        }
        Ok(())
    }
}

#[derive(Serialize)]
struct Row<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    t: Option<String>,
    s: &'a str,
    d: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    e: Option<&'a str>,
}

/// Whose line it is.
type Stream = (Source, Option<String>);

struct Printer<'a> {
    args: &'a LogsArgs,
    out: BufWriter<output::Stdout>,
    colored: bool,
    by_line: bool,
    /// Lines whose end has not come.
    unfinished: HashMap<Stream, Entry>,
    /// Lines that may be among the last.
    last: Option<VecDeque<Entry>>,
    lines: usize,
    zone: TimeZone,
    /// The sandbox has said that it ends.
    is_ending: bool,
}

impl<'a> Printer<'a> {
    fn new(args: &'a LogsArgs) -> Printer<'a> {
        let lines = match args.tail {
            Some(Tail::Lines(lines)) => Some(lines),
            _ => None,
        };
        let colored = args.is_colored();
        Printer {
            args,
            out: BufWriter::new(output::stdout()),
            colored,
            by_line: lines.is_some() || args.grep.is_some() || args.timestamps || colored,
            unfinished: HashMap::new(),
            last: lines.map(|_| VecDeque::new()),
            lines: lines.unwrap_or(0),
            zone: TimeZone::system(),
            is_ending: false,
        }
    }

    fn take_all(&mut self, reader: &mut Reader) -> anyhow::Result<()> {
        while let Some(entry) = reader.next_entry().context("cannot read the logs")? {
            if self.args.takes(&entry) {
                self.take(entry)?;
            }
        }
        self.is_ending = reader.is_ending();
        self.flush()
    }

    fn take(&mut self, entry: Entry) -> anyhow::Result<()> {
        if !self.by_line {
            return self.print(&entry);
        }
        let stream = (entry.source, entry.session.clone());
        let mut whole = match self.unfinished.remove(&stream) {
            // The time of a line is that of its begin.
            Some(mut begun) => {
                begun.data.extend_from_slice(&entry.data);
                begun
            }
            None => entry.clone(),
        };
        while let Some(end) = whole.data.iter().position(|byte| *byte == b'\n') {
            let rest = whole.data.split_off(end + 1);
            self.line(std::mem::replace(
                &mut whole,
                Entry {
                    data: rest,
                    ..entry.clone()
                },
            ))?;
        }
        if whole.data.len() > LINE_BYTES_MAX {
            return self.line(whole);
        }
        if !whole.data.is_empty() {
            self.unfinished.insert(stream, whole);
        }
        Ok(())
    }

    fn line(&mut self, line: Entry) -> anyhow::Result<()> {
        let text = line.data.strip_suffix(b"\n").unwrap_or(&line.data);
        if self
            .args
            .grep
            .as_ref()
            .is_some_and(|grep| !grep.is_match(text))
        {
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

    /// Everything that was there is read. What comes now is not to be kept waiting for being the last.
    fn end_of_past(&mut self) -> anyhow::Result<()> {
        if !self.args.follow {
            self.unfinished_lines()?;
        }
        for line in self.last.take().into_iter().flatten() {
            self.print(&line)?;
        }
        self.flush()
    }

    fn end(&mut self) -> anyhow::Result<()> {
        self.unfinished_lines()?;
        self.flush()
    }

    fn unfinished_lines(&mut self) -> anyhow::Result<()> {
        let mut lines: Vec<Entry> = self.unfinished.drain().map(|(_, line)| line).collect();
        lines.sort_by_key(|line| line.time);
        lines.into_iter().try_for_each(|line| self.line(line))
    }

    fn print(&mut self, entry: &Entry) -> anyhow::Result<()> {
        if self.args.is_json() {
            return Ok(self.print_json(entry)?);
        }
        let mut text = Vec::new();
        if self.args.timestamps {
            let time = entry
                .time
                .map_or_else(|| "-".to_owned(), |time| self.time(time));
            let time = if self.colored {
                format!("\x1b[2m{time}\x1b[0m ")
            } else {
                format!("{time} ")
            };
            text.extend_from_slice(time.as_bytes());
        }
        match (self.colored, entry.source) {
            (true, Source::Stderr) => paint(&mut text, "31", &entry.data),
            (true, Source::System | Source::Kernel) => paint(&mut text, "2", &entry.data),
            _ => text.extend_from_slice(&entry.data),
        }
        if entry.source == Source::Stderr {
            // Whoever closed it wants none of it.
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

    fn print_json(&mut self, entry: &Entry) -> io::Result<()> {
        let text = std::str::from_utf8(&entry.data);
        let encoded = text.is_err().then(|| BASE64.encode(&entry.data));
        let row = Row {
            t: entry.time.map(|time| format!("{time:.3}")),
            s: entry.source.word(),
            d: encoded.as_deref().or(text.ok()).unwrap_or_default(),
            id: entry.session.as_deref(),
            e: encoded.is_some().then_some("b64"),
        };
        libmsb::jsonl::write(&mut self.out, &row)
    }
}

fn paint(out: &mut Vec<u8>, color: &str, line: &[u8]) {
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
        for text in [
            "2026-11-23",
            "2026-11-23 14:05",
            "2026-11-23T14:05:09.5",
            "10m",
            "2d",
        ] {
            assert!(parse_time(text).is_ok(), "{text}");
        }
        for text in ["", "yesterday", "10x", "2026-13-01"] {
            assert!(parse_time(text).is_err(), "{text}");
        }
    }
}
