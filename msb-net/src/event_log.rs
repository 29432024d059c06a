//! The event log: one JSON object a line, written to a descriptor that another process reads. This
//! process has no file to write to.
//!
//! The log never waits for its reader. Up to [`QUEUE_BYTES_MAX`] bytes are queued; later events
//! are counted, and the count is reported when there is space again.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::Duration;

use libmsb::jsonl;
use libmsb::net::ports::Transport;
use rustix::io::{Errno, write};
use serde::Serialize;

use crate::dns;
use crate::flow::Flow;
use crate::policy::{ConnectionFacts, Verdict};
use crate::published_port::PublishedPort;

/// Limit of queued bytes.
const QUEUE_BYTES_MAX: usize = 256 * 1024;

/// An event. msb-net(1) lists them.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum LogEvent<'a> {
    /// A connection or a flow of datagrams was opened.
    Open {
        id: u64,
        guest: String,
        remote: String,
        #[serde(flatten)]
        judged: &'a JudgedFlow,
    },
    /// A connection or flow was closed.
    Close {
        protocol: &'a str,
        id: u64,
        guest: String,
        remote: String,
        bytes_up: u64,
        bytes_down: u64,
        duration_ms: u64,
        how: &'a str,
    },
    /// A connection or flow was denied.
    Deny {
        guest: String,
        remote: String,
        #[serde(flatten)]
        judged: &'a JudgedFlow,
        text: &'a str,
    },
    /// A port was published or removed.
    Port { change: PortChange, host: String, guest: u16, transport: Transport },
    /// The limit of connections was reached.
    Limit { protocol: &'a str, guest: String, remote: String },
    /// An operation on the host failed.
    Trouble { what: &'a str, error: String },
    /// Events were dropped for lack of space.
    Lost { events: u64 },
}

/// Change of a published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PortChange {
    /// The port now leads to the guest.
    Published,
    /// The port no longer leads to the guest.
    Removed,
}

/// The facts and the verdict of a flow, which `msb net replay` evaluates again.
#[derive(Debug, Serialize)]
struct JudgedFlow {
    #[serde(flatten)]
    facts: ConnectionFacts,
    #[serde(flatten)]
    verdict: Verdict,
}

/// The event log.
#[derive(Debug, Default)]
pub(crate) struct EventLog {
    reader: Option<OwnedFd>,
    queue: VecDeque<u8>,
    lost: u64,
    /// Number of connections and datagrams that were denied.
    pub(crate) denied: u64,
    /// The flow allowed last: mostly the connection that is opened next.
    allowed: Option<(Flow, JudgedFlow)>,
}

impl EventLog {
    /// Creates a log that writes to a non-blocking descriptor, or discards all events.
    pub(crate) fn new(reader: Option<OwnedFd>) -> EventLog {
        EventLog { reader, ..EventLog::default() }
    }

    fn queue_event(&mut self, event: &impl Serialize) {
        if self.reader.is_none() {
            return;
        }
        if self.queue.len() > QUEUE_BYTES_MAX {
            self.lost += 1;
            return;
        }
        if self.lost > 0 {
            let lost = LogEvent::Lost { events: std::mem::take(&mut self.lost) };
            self.append_line(&lost);
        }
        self.append_line(event);
    }

    fn append_line(&mut self, event: &impl Serialize) {
        let mut line = Vec::new();
        if jsonl::write(&mut line, event).is_ok() {
            self.queue.extend(line);
        }
    }

    /// Writes queued events as far as possible. After the reader has closed, events are discarded.
    pub(crate) fn flush(&mut self) {
        let Some(reader) = &self.reader else { return };
        while !self.queue.is_empty() {
            match write(reader, self.queue.as_slices().0) {
                Ok(count) => drop(self.queue.drain(..count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => {
                    self.reader = None;
                    self.queue.clear();
                    return;
                }
            }
        }
    }

    /// Returns whether events wait for a slow reader.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Records an allowed flow; it is reported when it is opened.
    pub(crate) fn log_allowed(&mut self, flow: Flow, facts: ConnectionFacts, verdict: Verdict) {
        let judged = JudgedFlow { facts, verdict };
        self.allowed = self.reader.is_some().then_some((flow, judged));
    }

    /// Reports an opened connection or flow that was allowed before.
    pub(crate) fn log_open(&mut self, flow: &Flow, id: u64) {
        if let Some((_, judged)) = self.allowed.take_if(|(allowed, _)| allowed == flow) {
            let (guest, remote) = endpoint_texts(flow);
            self.queue_event(&LogEvent::Open { id, guest, remote, judged: &judged });
        }
    }

    /// Reports an answered DNS query.
    pub(crate) fn log_dns(&mut self, event: &dns::DnsEvent) {
        self.queue_event(event);
    }

    /// Reports a closed connection or flow.
    pub(crate) fn log_close(
        &mut self,
        flow: &Flow,
        protocol: &str,
        id: u64,
        (bytes_up, bytes_down): (u64, u64),
        duration: Duration,
        how: &str,
    ) {
        if self.reader.is_some() {
            let (guest, remote) = endpoint_texts(flow);
            let duration_ms = duration.as_millis() as u64;
            self.queue_event(&LogEvent::Close {
                protocol,
                id,
                guest,
                remote,
                bytes_up,
                bytes_down,
                duration_ms,
                how,
            });
        }
    }

    /// Counts and reports a denied connection or flow.
    pub(crate) fn log_deny(&mut self, flow: &Flow, facts: &ConnectionFacts, verdict: Verdict) {
        self.denied += 1;
        if self.reader.is_some() {
            let (guest, remote) = endpoint_texts(flow);
            let facts = facts.clone();
            self.queue_event(&LogEvent::Deny {
                guest,
                remote,
                judged: &JudgedFlow { facts, verdict },
                text: verdict.reason.text(),
            });
        }
    }

    /// Reports a change of a published port.
    pub(crate) fn log_port(&mut self, port: &PublishedPort, change: PortChange) {
        if self.reader.is_some() {
            self.queue_event(&LogEvent::Port {
                change,
                host: port.host.to_string(),
                guest: port.guest,
                transport: port.transport,
            });
        }
    }

    /// Reports a connection refused because of the limit.
    pub(crate) fn log_limit(&mut self, flow: &Flow, protocol: &str) {
        if self.reader.is_some() {
            let (guest, remote) = endpoint_texts(flow);
            self.queue_event(&LogEvent::Limit { protocol, guest, remote });
        }
    }

    /// Reports a failed operation on the host.
    pub(crate) fn log_trouble(&mut self, what: &str, error: &std::io::Error) {
        self.queue_event(&LogEvent::Trouble { what, error: error.to_string() });
    }
}

fn endpoint_texts(flow: &Flow) -> (String, String) {
    let text = |end: crate::flow::FlowEndpoint| std::net::SocketAddr::from(end).to_string();
    (text(flow.guest), text(flow.remote))
}
