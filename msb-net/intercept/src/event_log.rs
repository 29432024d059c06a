//! Events: one JSON object a line, written to a descriptor that the supervisor reads. It is never
//! waited for: events that do not fit are counted.

use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::sync::PoisonError;

use libmsb::jsonl;
use rustix::io::{Errno, write};
use serde::Serialize;

/// Longest text of a guest in an event, in bytes.
const TEXT_BYTES_MAX: usize = 256;

/// An event. msb-intercept(8) lists them.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum LogEvent<'a> {
    /// A request was answered.
    Http {
        id: u64,
        host: &'a str,
        method: &'a str,
        path: String,
        status: u16,
        duration_ms: u64,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        secrets: Vec<&'a str>,
    },
    /// A connection could not be intercepted.
    Tls { id: u64, host: &'a str, what: &'a str, error: String },
    /// A placeholder or a value was seen.
    Secret {
        id: u64,
        secret: &'a str,
        what: &'a str,
        #[serde(rename = "where")]
        place: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        form: Option<&'a str>,
        host: &'a str,
        method: &'a str,
        path: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        action: Option<String>,
    },
    /// The limit of connections was reached.
    InterceptLimit { id: u64, host: &'a str },
    /// Events were dropped for lack of space.
    Lost { events: u64 },
}

/// The event log.
#[derive(Debug, Default)]
pub(crate) struct EventLog {
    reader: Option<OwnedFd>,
    lost: Mutex<u64>,
}

impl EventLog {
    /// Creates a log that writes to a non-blocking descriptor, or discards all events.
    pub(crate) fn new(reader: Option<OwnedFd>) -> EventLog {
        EventLog { reader, lost: Mutex::new(0) }
    }

    /// Writes an event.
    pub(crate) fn log(&self, event: &LogEvent<'_>) {
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        if *lost > 0 && self.write(&LogEvent::Lost { events: *lost }) {
            *lost = 0;
        }
        if !self.write(event) {
            *lost += 1;
        }
    }

    fn write(&self, event: &LogEvent<'_>) -> bool {
        let Some(reader) = &self.reader else {
            return true;
        };
        let mut line = Vec::new();
        if jsonl::write(&mut line, event).is_err() {
            return false;
        }
        // A line fits into a pipe's atomic write: texts of the guest are cut.
        loop {
            match write(reader, &line) {
                Ok(count) => return count == line.len(),
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }
}

/// Returns a text of the guest for an event, cut to a limited length.
pub(crate) fn cut(text: &str) -> String {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_lines_and_lost_ones_are_counted() {
        let (read, written) = rustix::pipe::pipe().unwrap();
        rustix::io::ioctl_fionbio(&written, true).unwrap();
        let log = EventLog::new(Some(written));
        for _ in 0..4000 {
            log.log(&LogEvent::InterceptLimit { id: 1, host: "a.test" });
        }
        let mut bytes = vec![0; 1 << 20];
        let count = rustix::io::read(&read, &mut bytes[..]).unwrap();
        assert!(
            bytes[..count]
                .starts_with(b"{\"type\":\"intercept_limit\",\"id\":1,\"host\":\"a.test\"")
        );
        log.log(&LogEvent::InterceptLimit { id: 2, host: "a.test" });
        let count = rustix::io::read(&read, &mut bytes[..]).unwrap();
        assert!(bytes[..count].starts_with(b"{\"type\":\"lost\""));
        assert_eq!(cut(&"ä".repeat(200)).len(), 256);
    }
}
