//! Events, one JSON object a line, on a descriptor that somebody else reads: this process has no file to write to.
//!
//! Nobody waits for the reader. What it does not take in time waits up to [`WAITING_BYTES_MAX`]; events beyond are counted,
//! and the count is told when there is room again.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::Duration;

use libmsb::jsonl;
use libmsb::net::ports::Transport;
use rustix::io::{Errno, write};
use serde::Serialize;

use crate::dns;
use crate::flow::Flow;
use crate::policy::{Facts, Verdict};
use crate::ports::Port;

/// Bytes of events that wait for the reader.
const WAITING_BYTES_MAX: usize = 256 * 1024;

/// The events. Man page msb-net(1) lists them.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Event<'a> {
    /// A connection or a flow of datagrams begins.
    Open {
        id: u64,
        guest: String,
        remote: String,
        #[serde(flatten)]
        judged: &'a Judged,
    },
    /// It ends.
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
    /// It was not allowed.
    Deny {
        guest: String,
        remote: String,
        #[serde(flatten)]
        judged: &'a Judged,
        text: &'a str,
    },
    /// A port is published, or is no more.
    Port {
        change: PortChange,
        host: String,
        guest: u16,
        transport: Transport,
    },
    /// There are as many as there may be.
    Limit {
        protocol: &'a str,
        guest: String,
        remote: String,
    },
    /// Something of the host fails.
    Trouble { what: &'a str, error: String },
    /// Events that found no room.
    Lost { events: u64 },
}

/// What became of a published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PortChange {
    /// It leads into the guest from now on.
    Published,
    /// It does no more.
    Removed,
}

/// What was judged, and how: what `msb net replay` judges again.
#[derive(Debug, Serialize)]
struct Judged {
    #[serde(flatten)]
    facts: Facts,
    #[serde(flatten)]
    verdict: Verdict,
}

/// Where events go.
#[derive(Debug, Default)]
pub(crate) struct Log {
    reader: Option<OwnedFd>,
    waiting: VecDeque<u8>,
    lost: u64,
    /// Connections and datagrams that were refused.
    pub(crate) denied: u64,
    /// What was allowed last: mostly the connection that is opened next.
    allowed: Option<(Flow, Judged)>,
}

impl Log {
    /// To a descriptor, which must not block, or nowhere.
    pub(crate) fn new(reader: Option<OwnedFd>) -> Log {
        Log {
            reader,
            ..Log::default()
        }
    }

    fn put(&mut self, event: &impl Serialize) {
        if self.reader.is_none() {
            return;
        }
        if self.waiting.len() > WAITING_BYTES_MAX {
            self.lost += 1;
            return;
        }
        if self.lost > 0 {
            let lost = Event::Lost {
                events: std::mem::take(&mut self.lost),
            };
            self.append(&lost);
        }
        self.append(event);
    }

    fn append(&mut self, event: &impl Serialize) {
        let mut line = Vec::new();
        if jsonl::write(&mut line, event).is_ok() {
            self.waiting.extend(line);
        }
    }

    /// Writes what waits, as far as it goes. A reader that is gone is no more written to.
    pub(crate) fn flush(&mut self) {
        let Some(reader) = &self.reader else { return };
        while !self.waiting.is_empty() {
            match write(reader, self.waiting.as_slices().0) {
                Ok(count) => drop(self.waiting.drain(..count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => {
                    self.reader = None;
                    self.waiting.clear();
                    return;
                }
            }
        }
    }

    /// Whether something waits for a reader that is slow.
    pub(crate) fn waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// A connection was allowed; it is told of when it is opened.
    pub(crate) fn allowed(&mut self, flow: Flow, facts: Facts, verdict: Verdict) {
        let judged = Judged { facts, verdict };
        self.allowed = self.reader.is_some().then_some((flow, judged));
    }

    pub(crate) fn open(&mut self, flow: &Flow, id: u64) {
        if let Some((_, judged)) = self.allowed.take_if(|(allowed, _)| allowed == flow) {
            let (guest, remote) = ends(flow);
            self.put(&Event::Open {
                id,
                guest,
                remote,
                judged: &judged,
            });
        }
    }

    /// A question for a name has its answer.
    pub(crate) fn dns(&mut self, event: &dns::Event) {
        self.put(event);
    }

    pub(crate) fn close(
        &mut self,
        flow: &Flow,
        protocol: &str,
        id: u64,
        (bytes_up, bytes_down): (u64, u64),
        lasted: Duration,
        how: &str,
    ) {
        if self.reader.is_some() {
            let (guest, remote) = ends(flow);
            let duration_ms = lasted.as_millis() as u64;
            self.put(&Event::Close {
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

    pub(crate) fn deny(&mut self, flow: &Flow, facts: &Facts, verdict: Verdict) {
        self.denied += 1;
        if self.reader.is_some() {
            let (guest, remote) = ends(flow);
            let facts = facts.clone();
            self.put(&Event::Deny {
                guest,
                remote,
                judged: &Judged { facts, verdict },
                text: verdict.reason.text(),
            });
        }
    }

    pub(crate) fn port(&mut self, port: &Port, change: PortChange) {
        if self.reader.is_some() {
            self.put(&Event::Port {
                change,
                host: port.host.to_string(),
                guest: port.guest,
                transport: port.transport,
            });
        }
    }

    pub(crate) fn limit(&mut self, flow: &Flow, protocol: &str) {
        if self.reader.is_some() {
            let (guest, remote) = ends(flow);
            self.put(&Event::Limit {
                protocol,
                guest,
                remote,
            });
        }
    }

    pub(crate) fn trouble(&mut self, what: &str, error: &std::io::Error) {
        self.put(&Event::Trouble {
            what,
            error: error.to_string(),
        });
    }
}

fn ends(flow: &Flow) -> (String, String) {
    let text = |end: crate::flow::End| std::net::SocketAddr::from(end).to_string();
    (text(flow.guest), text(flow.remote))
}
