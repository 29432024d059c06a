//! `msb events`: what happens to sandboxes, as JSON lines.
//!
//! The file of events is read from where the user wants it, line by line as it was written; then its folder is watched.
//! When the file is set aside, the rest of it is read before the new one.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use libmsb::cli::args::{SandboxName, parse_duration};
use libmsb::cli::error::Failure;
use libmsb::cli::output;
use libmsb::events::{Event, set_aside};
use libmsb::jsonl::{self, LINE_BYTES_MAX};
use libmsb::state::Home;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;

/// Print what happens to sandboxes, as JSON lines, from now on
#[derive(Debug, Parser)]
#[command(
    name = "msb-events",
    version,
    after_help = "Examples:\n  msb events\n  msb events --since 1h --no-follow | jq -r 'select(.type == \"crashed\").sandbox'"
)]
pub(crate) struct EventsArgs {
    /// Only of these sandboxes
    #[arg(value_name = "NAME")]
    names: Vec<SandboxName>,
    /// From there on: a time as in RFC 3339, or how long ago, as 10m
    #[arg(long, value_name = "TIME", value_parser = parse_moment)]
    since: Option<jiff::Timestamp>,
    /// Up to there, and then end
    #[arg(long, value_name = "TIME", value_parser = parse_moment)]
    until: Option<jiff::Timestamp>,
    /// Only events of this type, as 'crashed'
    #[arg(long = "type", value_name = "TYPE")]
    types: Vec<String>,
    /// Print what there is, and end
    #[arg(long)]
    no_follow: bool,
}

/// `2026-11-23T14:05:09Z`, or `10m` for ten minutes ago.
fn parse_moment(text: &str) -> Result<jiff::Timestamp, Failure> {
    if let Ok(moment) = text.parse() {
        return Ok(moment);
    }
    let wrong = |_| {
        Failure::usage(format!(
            "'{}' is neither a time such as 2026-11-23T14:05:09Z nor a duration such as 10m",
            libmsb::cli::escape::escape(text)
        ))
    };
    let ago = parse_duration(text).map_err(wrong)?;
    let past = jiff::Timestamp::now().checked_sub(ago);
    past.map_err(|_| Failure::usage(format!("'{text}' is too long ago")))
}

pub(crate) fn run(args: EventsArgs) -> anyhow::Result<()> {
    let home = Home::from_env()?;
    let log = home.events();
    // Watched before it is read: nothing falls between.
    let watch = (!args.no_follow)
        .then(|| Watch::new(home.root()))
        .transpose()?;
    let all = args.since.is_some() || args.no_follow;
    let mut reader = LogReader::open(&log, all)?;
    loop {
        while let Some(line) = reader.next_line()? {
            if is_over(&line, &args) {
                return Ok(());
            }
            if is_wanted(&line, &args) {
                output::print(&jsonl::escape_text(line.trim_end()))?;
            }
        }
        let Some(watch) = &watch else { return Ok(()) };
        let left = args
            .until
            .map(|until| until.duration_since(jiff::Timestamp::now()));
        if left.is_some_and(|left| left.is_negative()) {
            return Ok(());
        }
        watch.wait(left.and_then(|left| Duration::try_from(left).ok()))?;
    }
}

/// A line that cannot be understood was cut off by a power cut or a full disk: it says nothing to anybody.
fn is_wanted(line: &str, args: &EventsArgs) -> bool {
    let Ok(event) = serde_json::from_str::<Event>(line) else {
        return false;
    };
    let named = args.names.iter().any(|name| name.as_str() == event.sandbox);
    let typed = args.types.iter().any(|name| name == event.what.word());
    (args.names.is_empty() || named)
        && (args.types.is_empty() || typed)
        && args.since.is_none_or(|since| event.t >= since)
}

fn is_over(line: &str, args: &EventsArgs) -> bool {
    let Some(until) = args.until else {
        return false;
    };
    serde_json::from_str::<Event>(line).is_ok_and(|event| event.t > until)
}

/// Reads the lines of the log, over the moments when a full file is set aside.
struct LogReader {
    path: PathBuf,
    /// What is still to be read of the file that was set aside.
    old: Option<BufReader<File>>,
    current: Option<BufReader<File>>,
    /// The begin of a line whose end is not there yet.
    partial: Vec<u8>,
}

impl LogReader {
    /// From the begin of the older file, or from the end of the current one.
    fn open(path: &Path, all: bool) -> anyhow::Result<LogReader> {
        let mut reader = LogReader {
            path: path.to_owned(),
            old: None,
            current: open(path)?,
            partial: Vec::new(),
        };
        if all {
            reader.old = open(&set_aside(path))?;
        } else if let Some(current) = &mut reader.current {
            std::io::Seek::seek(current, std::io::SeekFrom::End(0))?;
        }
        Ok(reader)
    }

    fn next_line(&mut self) -> anyhow::Result<Option<String>> {
        loop {
            if let Some(old) = &mut self.old {
                match read_line(old, &mut self.partial)? {
                    Some(line) => return Ok(Some(line)),
                    None => self.old = None,
                }
                self.partial.clear();
            }
            if self.current.is_none() {
                self.current = open(&self.path)?;
            }
            let Some(current) = &mut self.current else {
                return Ok(None);
            };
            if let Some(line) = read_line(current, &mut self.partial)? {
                return Ok(Some(line));
            }
            if is_still(current.get_ref(), &self.path) {
                return Ok(None);
            }
            // It was set aside: what was written to it in between is read once more, then the new one.
            self.old = self.current.take();
        }
    }
}

fn open(path: &Path) -> anyhow::Result<Option<BufReader<File>>> {
    match File::open(path) {
        Ok(file) => Ok(Some(BufReader::new(file))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot open '{}'", path.display())),
    }
}

/// A whole line, or nothing: what there is of a line stays in `partial`.
fn read_line(
    reader: &mut BufReader<File>,
    partial: &mut Vec<u8>,
) -> anyhow::Result<Option<String>> {
    use std::io::Read;
    let room = LINE_BYTES_MAX.saturating_sub(partial.len() as u64);
    reader.by_ref().take(room).read_until(b'\n', partial)?;
    let over = partial.len() as u64 >= LINE_BYTES_MAX;
    if partial.last() != Some(&b'\n') && !over {
        return Ok(None);
    }
    let line = std::mem::take(partial);
    Ok(Some(String::from_utf8_lossy(&line).into_owned()))
}

fn is_still(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let (Ok(open), Ok(named)) = (file.metadata(), std::fs::metadata(path)) else {
        return true;
    };
    (open.dev(), open.ino()) == (named.dev(), named.ino())
}

/// Wakes when something in the state directory changes.
struct Watch(OwnedFd);

impl Watch {
    fn new(folder: &Path) -> anyhow::Result<Watch> {
        let cannot = || format!("cannot watch '{}'", folder.display());
        let inotify = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
            .with_context(cannot)?;
        let flags = inotify::WatchFlags::MODIFY
            | inotify::WatchFlags::CREATE
            | inotify::WatchFlags::MOVED_TO;
        match inotify::add_watch(&inotify, folder, flags) {
            Ok(_) => Ok(Watch(inotify)),
            Err(rustix::io::Errno::NOENT) => Err(Failure::not_found(format!(
                "there is no state directory '{}' yet",
                folder.display()
            ))
            .hint("it is made with the first image or sandbox")
            .into()),
            Err(error) => Err(error).with_context(cannot),
        }
    }

    fn wait(&self, patience: Option<Duration>) -> anyhow::Result<()> {
        let patience = patience.map(|patience| Timespec {
            tv_sec: patience.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: i64::from(patience.subsec_nanos()),
        });
        match poll(
            &mut [PollFd::new(&self.0, PollFlags::IN)],
            patience.as_ref(),
        ) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for events"),
        }
        // What changed does not matter: the log is looked at.
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut changes = inotify::Reader::new(&self.0, &mut buffer);
        while changes.next().is_ok() {}
        Ok(())
    }
}
