//! `msb events`: prints the events of sandboxes, as JSON lines.
//!
//! Reads the event log from the requested position, line by line as it was written, and then
//! watches its directory. After a log rotation the rest of the old file is read before the new one.

use std::borrow::Cow;
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
use libmsb::events::{Event, rotated_path};
use libmsb::jsonl::{self, LINE_BYTES_MAX};
use libmsb::state::Home;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;

/// Print events of sandboxes as JSON lines
#[derive(Debug, Parser)]
#[command(
    name = "msb-events",
    version,
    after_help = "Examples:\n  msb events\n  msb events --since 1h --no-follow | jq -r 'select(.type == \"crashed\").sandbox'"
)]
pub(crate) struct EventsArgs {
    /// Print events of these sandboxes only
    #[arg(value_name = "NAME")]
    names: Vec<SandboxName>,
    /// Start at TIME: RFC 3339, or an age such as 10m
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    since: Option<jiff::Timestamp>,
    /// Print events up to TIME, then exit
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    until: Option<jiff::Timestamp>,
    /// Print events of this type only, such as crashed
    #[arg(long = "type", value_name = "TYPE")]
    types: Vec<String>,
    /// Print the events so far, then exit
    #[arg(long)]
    no_follow: bool,
}

/// Parses a time such as `2026-11-23T14:05:09Z`, or a duration before now such as `10m`.
fn parse_time(text: &str) -> Result<jiff::Timestamp, Failure> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let invalid = |_| {
        Failure::usage(format!(
            "'{}' is neither a time such as 2026-11-23T14:05:09Z nor a duration such as 10m",
            libmsb::cli::escape::escape(text)
        ))
    };
    let ago = parse_duration(text).map_err(invalid)?;
    let past = jiff::Timestamp::now().checked_sub(ago);
    past.map_err(|_| Failure::usage(format!("the time '{text}' is out of range")))
}

pub(crate) fn run(args: EventsArgs) -> anyhow::Result<()> {
    let home = Home::from_env()?;
    let log = home.events();
    // Watch before reading, so that no event is missed between.
    let watch = (!args.no_follow).then(|| DirectoryWatch::new(home.root())).transpose()?;
    let all = args.since.is_some() || args.no_follow;
    let mut reader = EventLogReader::open(&log, all)?;
    loop {
        while let Some(line) = reader.next_line()? {
            if is_past_end(&line, &args) {
                return Ok(());
            }
            if matches_filters(&line, &args) {
                output::print(&jsonl::escape_text(&with_common_time(line.trim_end())))?;
            }
        }
        let Some(watch) = &watch else { return Ok(()) };
        let left = args.until.map(|until| until.duration_since(jiff::Timestamp::now()));
        if left.is_some_and(|left| left.is_negative()) {
            return Ok(());
        }
        watch.wait(left.and_then(|left| Duration::try_from(left).ok()))?;
    }
}

/// Returns an event with its time in the common form: logs of earlier versions have another one. The
/// time is the first field.
fn with_common_time(line: &str) -> Cow<'_, str> {
    const START: &str = "{\"t\":\"";
    let parts = line.strip_prefix(START).and_then(|rest| rest.split_once('"'));
    match parts.map(|(time, rest)| (time.parse::<jiff::Timestamp>(), rest)) {
        Some((Ok(time), rest)) => {
            Cow::Owned(format!("{START}{}\"{rest}", libmsb::time::text(time)))
        }
        _ => Cow::Borrowed(line),
    }
}

/// Returns whether an event passes the filters. A line that cannot be parsed was truncated by a
/// power failure or a full disk, and is ignored.
fn matches_filters(line: &str, args: &EventsArgs) -> bool {
    let Ok(event) = serde_json::from_str::<Event>(line) else {
        return false;
    };
    let named = args.names.iter().any(|name| name.as_str() == event.sandbox);
    let typed = args.types.iter().any(|name| name == event.what.name());
    (args.names.is_empty() || named)
        && (args.types.is_empty() || typed)
        && args.since.is_none_or(|since| event.t >= since)
}

fn is_past_end(line: &str, args: &EventsArgs) -> bool {
    let Some(until) = args.until else {
        return false;
    };
    serde_json::from_str::<Event>(line).is_ok_and(|event| event.t > until)
}

/// A reader of the event log that handles log rotation.
struct EventLogReader {
    path: PathBuf,
    /// Unread rest of the rotated file.
    old: Option<BufReader<File>>,
    current: Option<BufReader<File>>,
    /// Incomplete line at the end of the file.
    partial: Vec<u8>,
}

impl EventLogReader {
    /// Opens the log at the start of the older file, or at the end of the current one.
    fn open(path: &Path, all: bool) -> anyhow::Result<EventLogReader> {
        let mut reader = EventLogReader {
            path: path.to_owned(),
            old: None,
            current: open(path)?,
            partial: Vec::new(),
        };
        if all {
            reader.old = open(&rotated_path(path))?;
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
            if is_same_file(current.get_ref(), &self.path) {
                return Ok(None);
            }
            // The log was rotated: read the rest of the old file, then the new one.
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

/// Reads a complete line. An incomplete one stays in `partial`.
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

fn is_same_file(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let (Ok(open), Ok(named)) = (file.metadata(), std::fs::metadata(path)) else {
        return true;
    };
    (open.dev(), open.ino()) == (named.dev(), named.ino())
}

/// A watch on the state directory, through inotify.
struct DirectoryWatch(OwnedFd);

impl DirectoryWatch {
    fn new(directory: &Path) -> anyhow::Result<DirectoryWatch> {
        let cannot = || format!("cannot watch '{}'", directory.display());
        let inotify = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
            .with_context(cannot)?;
        let flags = inotify::WatchFlags::MODIFY
            | inotify::WatchFlags::CREATE
            | inotify::WatchFlags::MOVED_TO;
        match inotify::add_watch(&inotify, directory, flags) {
            Ok(_) => Ok(DirectoryWatch(inotify)),
            Err(rustix::io::Errno::NOENT) => Err(Failure::not_found(format!(
                "the state directory '{}' does not exist yet",
                directory.display()
            ))
            .hint("create a sandbox first: msb create IMAGE")
            .into()),
            Err(error) => Err(error).with_context(cannot),
        }
    }

    fn wait(&self, timeout: Option<Duration>) -> anyhow::Result<()> {
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: timeout.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        });
        match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for events"),
        }
        // Drop the notifications: the caller reads the log in any case.
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut changes = inotify::Reader::new(&self.0, &mut buffer);
        while changes.next().is_ok() {}
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_of_an_earlier_version_gets_the_common_form_of_its_time() {
        let rest = r#"","type":"frozen","sandbox":"web"}"#;
        let old = format!("{{\"t\":\"2026-11-23T14:05:09.123456789Z{rest}");
        let new = format!("{{\"t\":\"2026-11-23T14:05:09.123456+00:00{rest}");
        assert_eq!(with_common_time(&old), new);
        assert_eq!(with_common_time(&new), new);
        assert_eq!(with_common_time("{}"), "{}");
    }
}
