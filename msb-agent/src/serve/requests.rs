//! What the host asks for, and how it is answered.

use std::time::{Duration, Instant};

use msb_wire::boot::{BootEvent, BootRequest};
use msb_wire::connect::{ConnectFailure, ConnectRequest};
use msb_wire::exec::{ExecEvent, FailureKind};
use msb_wire::frame::{Kind, flags, put_message};
use msb_wire::guest::{InitEvent, InitRequest};
use msb_wire::handshake::Hello;
use msb_wire::samples::SamplesRequest;
use msb_wire::sandbox::{ClockEvent, PingEvent, Request};
use rustix::process::Pid;

use super::Agent;
use crate::boot::{self, Guest};
use crate::connection::{CONNECTIONS_MAX, Connection, put_connect_event};
use crate::console::reason;
use crate::exec::{self, Refusal};
use crate::init::OPERATIONS;
use crate::samples::Samples;
use crate::session::{Session, put_event};
use crate::spawn::Spawner;
use crate::{clock, files, handover, key_agent, sftp};

/// Commands at a time.
const SESSIONS_MAX: usize = 1024;

/// Time between a guest that takes commands and the modules that can wait: a command that is short, or just starts, is not
/// held up by them.
const LATER: Duration = Duration::from_secs(1);

impl Agent {
    pub(super) fn open(&mut self, stream: u32, message: &[u8]) {
        match serde_json::from_slice(message) {
            Ok(Request::Boot(request)) => self.boot(stream, request),
            Ok(Request::Connect(request)) => self.connect(stream, &request),
            Ok(Request::Sftp(request)) => self.start(stream, |guest, spawner| {
                sftp::start(guest, stream, &request, spawner)
            }),
            Ok(Request::KeyAgent(request)) => self.start(stream, |guest, spawner| {
                key_agent::start(guest, stream, &request, spawner)
            }),
            Ok(Request::Exec(request)) => self.start(stream, |guest, spawner| {
                exec::start(guest, stream, &request, spawner)
            }),
            Ok(Request::Files(request)) => {
                self.start(stream, |_, spawner| files::start(stream, &request, spawner))
            }
            Ok(Request::Clock(request)) => {
                let event = match clock::correct(request.unix_ns) {
                    Ok((behind_ms, stepped)) => ClockEvent::Clock { behind_ms, stepped },
                    Err(error) => ClockEvent::Failed {
                        message: reason(error),
                    },
                };
                self.put_last(stream, serde_json::to_vec(&event));
            }
            Ok(Request::Samples(request)) => self.start_samples(stream, request),
            Ok(Request::Init(request)) => self.hand_over(stream, &request),
            Ok(Request::Shutdown(request)) => self.shut_down(stream, &request),
            Ok(Request::Ping) => self.put_last(stream, serde_json::to_vec(&PingEvent::Pong)),
            Ok(
                request @ (Request::Pause
                | Request::Resume
                | Request::Stop(_)
                | Request::Wait
                | Request::Signal(_)
                | Request::Attach(_)
                | Request::Network(_)),
            ) => {
                self.refuse(stream, unsupported(request.operation()));
            }
            Err(error) => self.refuse(stream, misunderstood(message, &error)),
        }
    }

    fn boot(&mut self, stream: u32, request: BootRequest) {
        let event = if self.guest.is_some() {
            BootEvent::Failed {
                stage: "request".into(),
                message: "the guest is set up already".into(),
            }
        } else {
            match boot::boot(request, &self.modules) {
                Ok(guest) => {
                    self.guest = Some(guest);
                    self.later = Some(Instant::now() + LATER);
                    boot::ready()
                }
                Err(failed) => failed,
            }
        };
        self.put_last(stream, serde_json::to_vec(&event));
    }

    /// Starts the image's init, in whose namespace all that comes later is.
    fn hand_over(&mut self, stream: u32, request: &InitRequest) {
        let started = match &self.guest {
            None => Err("the guest is not set up".to_owned()),
            Some(_) if self.init.is_some() => Err("it runs already".to_owned()),
            // What serves the last change of the files may still be there: it is ours, and about to end.
            Some(guest) => handover::start(guest, request, &mut self.spawner),
        };
        let event = match started {
            Ok((pid, path)) => {
                self.init = Some(pid);
                self.has_children = true;
                InitEvent::Started { path }
            }
            Err(message) => InitEvent::Failed { message },
        };
        self.put_last(stream, serde_json::to_vec(&event));
    }

    /// Starts a command, or a process of our own that serves a stream as a command does.
    fn start(
        &mut self,
        stream: u32,
        start: impl FnOnce(&Guest, &mut Spawner) -> Result<(Session, Pid), Refusal>,
    ) {
        match self.try_start(start) {
            Ok((session, event)) => {
                self.has_children = true;
                self.sessions.insert(stream, session);
                put_event(&mut self.port.outgoing, stream, 0, &event);
            }
            Err(refusal) => self.refuse(stream, refusal),
        }
    }

    fn try_start(
        &mut self,
        start: impl FnOnce(&Guest, &mut Spawner) -> Result<(Session, Pid), Refusal>,
    ) -> Result<(Session, ExecEvent), Refusal> {
        let Some(guest) = &self.guest else {
            return Err(Refusal::new(FailureKind::Other, "the guest is not set up"));
        };
        if self.stopping.is_some() {
            return Err(Refusal::new(
                FailureKind::Other,
                "the guest is shutting down",
            ));
        }
        if self.sessions.len() >= SESSIONS_MAX {
            let message = format!("{SESSIONS_MAX} commands are running already");
            return Err(Refusal::new(FailureKind::ResourceLimit, message));
        }
        let (session, pid) = start(guest, &mut self.spawner)?;
        Ok((
            session,
            ExecEvent::Started {
                pid: pid.as_raw_pid().unsigned_abs(),
            },
        ))
    }

    fn connect(&mut self, stream: u32, request: &ConnectRequest) {
        let refused = if self.guest.is_none() || self.stopping.is_some() {
            Some((ConnectFailure::Other, "the guest is not up".to_owned()))
        } else if self.connections.len() >= CONNECTIONS_MAX {
            let message = format!("{CONNECTIONS_MAX} connections are open already");
            Some((ConnectFailure::ResourceLimit, message))
        } else {
            None
        };
        if let Some((kind, message)) = refused {
            let event = Connection::refused(kind, message);
            put_connect_event(&mut self.port.outgoing, stream, flags::END, &event);
        } else {
            self.connections
                .insert(stream, Connection::start(stream, request));
        }
    }

    pub(super) fn refuse(&mut self, stream: u32, refusal: Refusal) {
        let event = ExecEvent::Failed {
            kind: refusal.kind,
            message: refusal.message,
        };
        put_event(&mut self.port.outgoing, stream, flags::END, &event);
    }

    pub(super) fn put_last(&mut self, stream: u32, event: serde_json::Result<Vec<u8>>) {
        if let Ok(json) = event {
            put_message(
                &mut self.port.outgoing,
                stream,
                Kind::Event,
                flags::END,
                &json,
            );
        }
    }

    /// There is one host, and one stream of samples for it.
    fn start_samples(&mut self, stream: u32, request: SamplesRequest) {
        let refused = match &self.guest {
            None => "the guest is not set up".to_owned(),
            Some(_) if self.samples.is_some() => "samples are being taken already".to_owned(),
            Some(guest) => match Samples::start(stream, request, &guest.upper) {
                Ok(samples) => {
                    self.samples = Some(samples);
                    return;
                }
                Err(error) => reason(error),
            },
        };
        self.refuse(stream, Refusal::new(FailureKind::Other, refused));
    }
}

fn unsupported(operation: &str) -> Refusal {
    let hello = Hello::of(concat!("msb-agent ", env!("CARGO_PKG_VERSION")), &[]);
    let message = hello
        .require(operation)
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default();
    Refusal::new(FailureKind::UnsupportedOperation, message)
}

/// A request that is none of ours: another version's, or nonsense.
fn misunderstood(message: &[u8], error: &serde_json::Error) -> Refusal {
    let value: serde_json::Value = serde_json::from_slice(message).unwrap_or_default();
    match value.get("op").and_then(|op| op.as_str()) {
        Some(op) if !OPERATIONS.contains(&op) => unsupported(op),
        _ => Refusal::new(
            FailureKind::Other,
            format!("the request cannot be read: {error}"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(json: &str) -> Refusal {
        misunderstood(
            json.as_bytes(),
            &serde_json::from_slice::<Request>(json.as_bytes()).unwrap_err(),
        )
    }

    #[test]
    fn an_operation_of_another_version_is_refused_by_name() {
        let refusal = refusal(r#"{"op":"teleport","to":"mars"}"#);
        assert_eq!(refusal.kind, FailureKind::UnsupportedOperation);
        assert!(
            refusal
                .message
                .ends_with("does not know the operation 'teleport'"),
            "{}",
            refusal.message
        );
    }

    #[test]
    fn a_broken_request_for_a_known_operation_says_what_is_wrong() {
        for json in [r#"{"op":"exec"}"#, "{", r#"{"op":5}"#] {
            assert_eq!(refusal(json).kind, FailureKind::Other, "{json}");
        }
    }
}
