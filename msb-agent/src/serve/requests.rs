//! Requests of the host, and their answers.

use std::time::{Duration, Instant};

use msb_wire::boot::{BootEvent, BootRequest};
use msb_wire::connect::{ConnectFailure, ConnectRequest};
use msb_wire::exec::{ExecEvent, FailureKind};
use msb_wire::frame::{FrameKind, flags, put_message};
use msb_wire::freeze::FreezeRequest;
use msb_wire::guest::{InitEvent, InitRequest};
use msb_wire::handshake::Hello;
use msb_wire::samples::SamplesRequest;
use msb_wire::sandbox::{ClockEvent, PingEvent, Request};
use rustix::process::Pid;

use super::Agent;
use crate::boot::{self, GuestState};
use crate::connection::{CONNECTIONS_MAX, TcpConnection, put_connect_event};
use crate::console::reason;
use crate::exec::{self, StartRefusal};
use crate::init::OPERATIONS;
use crate::samples::SampleStream;
use crate::session::{CommandSession, put_event};
use crate::spawn::Spawner;
use crate::{clock, files, freeze, handover, key_agent, sftp};

/// Maximum number of commands.
const SESSIONS_MAX: usize = 1024;

/// Delay between the end of the boot and the loading of the remaining modules, so that they do not
/// delay a short command or the start of a long one.
const MODULES_DELAY: Duration = Duration::from_secs(1);

impl Agent {
    pub(super) fn open(&mut self, stream: u32, message: &[u8]) {
        match serde_json::from_slice(message) {
            Ok(Request::Boot(request)) => self.boot(stream, *request),
            Ok(Request::Connect(request)) => self.connect(stream, &request),
            Ok(Request::Sftp(request)) => {
                self.start(stream, |guest, spawner| sftp::start(guest, stream, &request, spawner))
            }
            Ok(Request::KeyAgent(request)) => self
                .start(stream, |guest, spawner| key_agent::start(guest, stream, &request, spawner)),
            Ok(Request::Exec(request)) => {
                self.start(stream, |guest, spawner| exec::start(guest, stream, &request, spawner));
                if request.main {
                    self.main = Some(stream);
                }
            }
            Ok(Request::Files(request)) => {
                self.start(stream, |_, spawner| files::start(stream, &request, spawner))
            }
            Ok(Request::Freeze(request)) => self.freeze(stream, &request),
            Ok(Request::Clock(request)) => {
                let event = match clock::correct(request.unix_ns) {
                    Ok((behind_ms, stepped)) => ClockEvent::Clock { behind_ms, stepped },
                    Err(error) => ClockEvent::Failed { message: reason(error) },
                };
                self.put_last(stream, serde_json::to_vec(&event));
            }
            Ok(Request::Samples(request)) => self.start_samples(stream, request),
            Ok(Request::Init(request)) => self.hand_over(stream, &request),
            Ok(Request::Shutdown(request)) => self.shut_down(stream, &request),
            Ok(Request::Quiesce) => self.quiesce(stream),
            Ok(Request::Wake(request)) => self.wake(stream, request),
            Ok(Request::Ping) => self.put_last(stream, serde_json::to_vec(&PingEvent::Pong)),
            Ok(
                request @ (Request::StartBackup
                | Request::EndBackup
                | Request::Drain
                | Request::SaveMemory
                | Request::EndSave
                | Request::Pause
                | Request::Resume
                | Request::Stop(_)
                | Request::Wait
                | Request::Signal(_)
                | Request::Attach(_)
                | Request::Network(_)),
            ) => {
                self.refuse(stream, unsupported(request.operation()));
            }
            Err(error) => self.refuse(stream, unreadable_request(message, &error)),
        }
    }

    /// Freezes the upper file system. Only one stream can do so at a time.
    pub(super) fn freeze(&mut self, stream: u32, request: &FreezeRequest) {
        if self.frozen.is_some() {
            let is_left =
                |stream| self.sessions.get(&stream).is_some_and(CommandSession::is_closed);
            if self.frozen.is_some_and(is_left) && self.next_freeze.is_none() {
                // The client is gone, and the helper process is about to thaw it.
                self.next_freeze = Some((stream, request.clone()));
                return;
            }
            let message = "the file system is frozen already";
            return self.refuse(stream, StartRefusal::new(FailureKind::Other, message));
        }
        self.start(stream, |guest, spawner| freeze::start(&guest.upper, stream, request, spawner));
        self.frozen = self.sessions.contains_key(&stream).then_some(stream);
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
                    self.modules_due = Some(Instant::now() + MODULES_DELAY);
                    boot::ready()
                }
                Err(failed) => failed,
            }
        };
        self.put_last(stream, serde_json::to_vec(&event));
    }

    /// Starts the image's init, in whose namespace all later processes run.
    fn hand_over(&mut self, stream: u32, request: &InitRequest) {
        let started = match &self.guest {
            None => Err("the guest is not set up".to_owned()),
            Some(_) if self.init.is_some() => Err("the init is running already".to_owned()),
            // A helper process of the last file operation may still exist; it is about to end.
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

    /// Starts a command, or a helper process that serves a stream like a command.
    fn start(
        &mut self,
        stream: u32,
        start: impl FnOnce(&GuestState, &mut Spawner) -> Result<(CommandSession, Pid), StartRefusal>,
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
        start: impl FnOnce(&GuestState, &mut Spawner) -> Result<(CommandSession, Pid), StartRefusal>,
    ) -> Result<(CommandSession, ExecEvent), StartRefusal> {
        let Some(guest) = &self.guest else {
            return Err(StartRefusal::new(FailureKind::Other, "the guest is not set up"));
        };
        if self.stopping.is_some() {
            return Err(StartRefusal::new(FailureKind::Other, "the guest is shutting down"));
        }
        if self.sessions.len() >= SESSIONS_MAX {
            let message = format!("{SESSIONS_MAX} commands are running already");
            return Err(StartRefusal::new(FailureKind::ResourceLimit, message));
        }
        let (session, pid) = start(guest, &mut self.spawner)?;
        Ok((session, ExecEvent::Started { pid: pid.as_raw_pid().unsigned_abs() }))
    }

    fn connect(&mut self, stream: u32, request: &ConnectRequest) {
        let refused = if self.guest.is_none() || self.stopping.is_some() {
            Some((ConnectFailure::Other, "the guest is not set up".to_owned()))
        } else if self.connections.len() >= CONNECTIONS_MAX {
            let message = format!("{CONNECTIONS_MAX} connections are open already");
            Some((ConnectFailure::ResourceLimit, message))
        } else {
            None
        };
        if let Some((kind, message)) = refused {
            let event = TcpConnection::refused(kind, message);
            put_connect_event(&mut self.port.outgoing, stream, flags::END, &event);
        } else {
            self.connections.insert(stream, TcpConnection::start(stream, request));
        }
    }

    pub(super) fn refuse(&mut self, stream: u32, refusal: StartRefusal) {
        let event = ExecEvent::Failed { kind: refusal.kind, message: refusal.message };
        put_event(&mut self.port.outgoing, stream, flags::END, &event);
    }

    pub(super) fn put_last(&mut self, stream: u32, event: serde_json::Result<Vec<u8>>) {
        if let Ok(json) = event {
            put_message(&mut self.port.outgoing, stream, FrameKind::Event, flags::END, &json);
        }
    }

    /// Starts the stream of samples. There is one host, which has one such stream.
    fn start_samples(&mut self, stream: u32, request: SamplesRequest) {
        let refused = match &self.guest {
            None => "the guest is not set up".to_owned(),
            Some(_) if self.samples.is_some() => "the stream of samples is open already".to_owned(),
            Some(guest) => match SampleStream::start(stream, request, &guest.upper) {
                Ok(samples) => {
                    self.samples = Some(samples);
                    return;
                }
                Err(error) => reason(error),
            },
        };
        self.refuse(stream, StartRefusal::new(FailureKind::Other, refused));
    }
}

fn unsupported(operation: &str) -> StartRefusal {
    let hello = Hello::of(concat!("msb-agent ", env!("CARGO_PKG_VERSION")), &[]);
    let message = hello.require(operation).err().map(|error| error.to_string()).unwrap_or_default();
    StartRefusal::new(FailureKind::UnsupportedOperation, message)
}

/// Returns the refusal for a request that cannot be parsed: unsupported if its operation is
/// unknown, else malformed.
fn unreadable_request(message: &[u8], error: &serde_json::Error) -> StartRefusal {
    let value: serde_json::Value = serde_json::from_slice(message).unwrap_or_default();
    match value.get("op").and_then(|op| op.as_str()) {
        Some(op) if !OPERATIONS.contains(&op) => unsupported(op),
        _ => StartRefusal::new(FailureKind::Other, format!("invalid request: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(json: &str) -> StartRefusal {
        unreadable_request(
            json.as_bytes(),
            &serde_json::from_slice::<Request>(json.as_bytes()).unwrap_err(),
        )
    }

    #[test]
    fn an_operation_of_another_version_is_refused_by_name() {
        let refusal = refusal(r#"{"op":"teleport","to":"mars"}"#);
        assert_eq!(refusal.kind, FailureKind::UnsupportedOperation);
        assert!(
            refusal.message.ends_with("does not know the operation 'teleport'"),
            "{}",
            refusal.message
        );
    }

    #[test]
    fn a_malformed_request_for_a_known_operation_reports_the_error() {
        for json in [r#"{"op":"exec"}"#, "{", r#"{"op":5}"#] {
            assert_eq!(refusal(json).kind, FailureKind::Other, "{json}");
        }
    }
}
