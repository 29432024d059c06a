//! Freezing a running guest for a copy of its disk.
//!
//! The guest's kernel flushes the upper file system and holds its writers ([`msb_wire::freeze`]).
//! The VMM has no cache of its own: what the guest has flushed is in the file on the host.

use anyhow::bail;
use libmsb::cli::args::SandboxName;
use libmsb::cli::error::{Code, Failure};
use libmsb::cli::escape::escape;
use libmsb::state::Home;
use msb_wire::client::{ClientCall, Incoming};
use msb_wire::exec::{ExecEvent, FailureKind};
use msb_wire::frame::STDIN;
use msb_wire::freeze::{EXPIRED, FROZEN, FreezeRequest};
use msb_wire::sandbox::Request;

use crate::verbs::connect;

/// Longest output of a guest that cannot freeze its file system.
const REASON_BYTES_MAX: usize = 1024;

/// A guest whose upper file system is frozen. It is thawed when this is dropped.
pub(super) struct FrozenGuest {
    call: ClientCall,
    timeout_ms: u32,
}

impl FrozenGuest {
    /// Freezes the upper file system of a running sandbox for at most a time.
    pub(super) fn freeze(
        home: &Home,
        name: &SandboxName,
        timeout_ms: u32,
    ) -> anyhow::Result<FrozenGuest> {
        let request = Request::Freeze(FreezeRequest { timeout_ms });
        let call = connect(home, name)?.open(&request)?;
        let mut guest = FrozenGuest { call, timeout_ms };
        let mut output = Vec::new();
        loop {
            match guest.call.reader.receive()? {
                Some(Incoming::Data { channel, bytes, .. }) => {
                    guest.call.sender.used(channel, bytes.len())?;
                    output.extend(bytes);
                    if output == FROZEN {
                        return Ok(guest);
                    }
                    output.truncate(REASON_BYTES_MAX);
                }
                Some(Incoming::Event { message, last: true }) => {
                    return Err(refused(&message, &output));
                }
                Some(Incoming::Event { .. }) => {}
                None => bail!("the sandbox ended before its disk could be copied"),
            }
        }
    }

    /// Thaws the file system. Fails if it was not frozen all the time.
    pub(super) fn thaw(mut self) -> anyhow::Result<()> {
        self.call.sender.end(STDIN)?;
        loop {
            match self.call.reader.receive()? {
                Some(Incoming::Event { message, last: true }) => {
                    return match serde_json::from_slice(&message) {
                        Ok(ExecEvent::Exited { code: Some(0), .. }) => Ok(()),
                        Ok(ExecEvent::Exited { code: Some(EXPIRED), .. }) => {
                            Err(self.expired().into())
                        }
                        _ => Err(Failure::failed("the guest thawed its file system early").into()),
                    };
                }
                Some(_) => {}
                None => bail!("the sandbox ended before its disk was copied"),
            }
        }
    }

    fn expired(&self) -> Failure {
        let seconds = self.timeout_ms / 1000;
        Failure::failed(format!("the copy of the disk took longer than {seconds} s"))
            .hint("stop the sandbox first, or use a file system with reflinks")
    }
}

/// Returns the error of an agent that did not freeze.
fn refused(message: &[u8], output: &[u8]) -> anyhow::Error {
    match serde_json::from_slice(message) {
        Ok(ExecEvent::Failed { kind, message }) => {
            let message = escape(&message).into_owned();
            match kind {
                FailureKind::UnsupportedOperation => {
                    Failure::failed(message).code(Code::UnsupportedOperation)
                }
                FailureKind::Paused => Failure::wrong_state(message),
                _ => Failure::failed(message),
            }
            .into()
        }
        _ => {
            let reason = escape(output.trim_ascii());
            anyhow::anyhow!("the guest cannot freeze its file system: {reason}")
        }
    }
}
