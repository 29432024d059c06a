//! Sessions: a command, a shell or a file transfer on one channel.

use std::sync::Arc;

use libmsb::cli::escape::escape;
use libmsb::cli::typed::command_name;
use msb_wire::exec::ExecEvent;
use msb_wire::frame::{STDERR, STDIN};
use msb_wire::key_agent::KeyAgentRequest;
use msb_wire::sandbox::Request;
use msb_wire::text::Text;
use russh::server::{Handle, Msg};
use russh::{ChannelWriteHalf, Sig};
use tokio::sync::OwnedSemaphorePermit;

use crate::controls::SessionControls;
use crate::guest::{CallSender, GuestClient, IncomingMessage};
use crate::idle_timer::IdleTimer;
use crate::input::InputQueue;
use crate::key_agent;
use crate::scoped_task::ScopedTask;

/// Data type code of standard error, RFC 4254 section 5.2.
const SSH_EXTENDED_DATA_STDERR: u32 = 1;

/// Signals with a name in SSH (RFC 4254 section 6.10), and their numbers on Linux.
const SIGNALS: [(&str, i32); 13] = [
    ("ABRT", 6),
    ("ALRM", 14),
    ("FPE", 8),
    ("HUP", 1),
    ("ILL", 4),
    ("INT", 2),
    ("KILL", 9),
    ("PIPE", 13),
    ("QUIT", 3),
    ("SEGV", 11),
    ("TERM", 15),
    ("USR1", 10),
    ("USR2", 12),
];

/// Returns the number of a signal from the client.
pub(crate) fn signal_number(signal: &Sig) -> Option<i32> {
    let name = match signal {
        Sig::ABRT => "ABRT",
        Sig::ALRM => "ALRM",
        Sig::FPE => "FPE",
        Sig::HUP => "HUP",
        Sig::ILL => "ILL",
        Sig::INT => "INT",
        Sig::KILL => "KILL",
        Sig::PIPE => "PIPE",
        Sig::QUIT => "QUIT",
        Sig::SEGV => "SEGV",
        Sig::TERM => "TERM",
        Sig::USR1 => "USR1",
        Sig::Custom(name) => name,
    };
    let known = SIGNALS.iter().find(|(known, _)| *known == name);
    known.map(|(_, number)| *number)
}

fn signal_name(number: i32) -> Sig {
    match number {
        1 => Sig::HUP,
        2 => Sig::INT,
        3 => Sig::QUIT,
        4 => Sig::ILL,
        6 => Sig::ABRT,
        8 => Sig::FPE,
        9 => Sig::KILL,
        10 => Sig::USR1,
        11 => Sig::SEGV,
        13 => Sig::PIPE,
        14 => Sig::ALRM,
        15 => Sig::TERM,
        other => Sig::Custom(format!("{other}@linux")),
    }
}

/// Parts of one session.
pub(crate) struct ChannelSession {
    pub(crate) guest: Arc<GuestClient>,
    pub(crate) channel: Arc<ChannelWriteHalf<Msg>>,
    pub(crate) handle: Handle,
    pub(crate) input: Arc<InputQueue>,
    pub(crate) idle_timer: Arc<IdleTimer>,
    pub(crate) controls: Arc<SessionControls>,
    /// Warnings about refused requests, printed first.
    pub(crate) refusals: Vec<&'static str>,
    /// Request for agent forwarding, if the client asked for it.
    pub(crate) key_agent: Option<KeyAgentRequest>,
    /// Budget of the session's options, held until the guest has the request.
    pub(crate) reserved: Option<OwnedSemaphorePermit>,
}

impl ChannelSession {
    /// Runs the session to its end and reports its exit status. A client that has gone gets no
    /// report.
    pub(crate) async fn run(mut self, mut request: Request) {
        let (channel, handle) = (Arc::clone(&self.channel), self.handle.clone());
        let id = channel.id();
        for refusal in std::mem::take(&mut self.refusals) {
            write_stderr(&channel, refusal).await;
        }
        let _socket = self.offer_key_agent(&mut request).await;
        match self.relay(request).await {
            Some(ExecEvent::Exited { code: None, signal: Some(signal), oom_killed }) => {
                let message = if oom_killed { "the guest ran out of memory" } else { "" };
                let name = signal_name(signal);
                let _ = handle
                    .exit_signal_request(id, name, false, message.into(), String::new())
                    .await;
            }
            Some(event) => {
                if let ExecEvent::Failed { message, .. } = &event {
                    report_failure(&channel, message).await;
                }
                let code = event.exit_code().unwrap_or(125);
                let _ = channel.exit_status(code.unsigned_abs()).await;
            }
            // The sandbox has ended; the disconnect message of the connection says so.
            None => return,
        }
        let _ = channel.eof().await;
        let _ = channel.close().await;
    }

    /// Creates a socket for agent forwarding, if the client asked for it, and sets SSH_AUTH_SOCK.
    /// The session goes on without it if that fails.
    async fn offer_key_agent(&mut self, request: &mut Request) -> Option<key_agent::AgentSocket> {
        let (wanted, Request::Exec(exec)) = (self.key_agent.take()?, request) else {
            return None;
        };
        match key_agent::open(&self.guest, wanted, self.handle.clone()).await {
            Ok(socket) => {
                let variable = [b"SSH_AUTH_SOCK=", socket.path.as_bytes()].concat();
                exec.env.push(Text(variable));
                Some(socket)
            }
            Err(why) => {
                let message = format!("warning: agent forwarding failed: {}", escape(&why));
                write_stderr(&self.channel, &message).await;
                None
            }
        }
    }

    async fn relay(self, request: Request) -> Option<ExecEvent> {
        let mut call = match self.guest.open(&request).await {
            Ok(call) => call,
            Err(error) => {
                return Some(ExecEvent::Failed {
                    kind: msb_wire::exec::FailureKind::Other,
                    message: error.to_string(),
                });
            }
        };
        drop((request, self.reserved));
        let _input = ScopedTask::spawn(pump(Arc::clone(&self.input), call.sender.clone()));
        let _controls = ScopedTask::spawn(send_controls(self.controls, call.sender.clone()));
        while let Some(incoming) = call.receiver.recv().await {
            match incoming {
                IncomingMessage::Data { channel, bytes, .. } => {
                    self.idle_timer.touch();
                    let count = bytes.len();
                    let sent = match channel {
                        STDERR => {
                            self.channel.extended_data_bytes(SSH_EXTENDED_DATA_STDERR, bytes).await
                        }
                        _ => self.channel.data_bytes(bytes).await,
                    };
                    sent.ok()?;
                    call.sender.used(channel, count).await.ok()?;
                }
                IncomingMessage::Event { message, last } if last => {
                    return serde_json::from_slice(&message).ok();
                }
                IncomingMessage::Event { .. } => {}
            }
        }
        None
    }
}

/// Reports why the command did not start.
async fn report_failure(channel: &ChannelWriteHalf<Msg>, message: &str) {
    let message = format!("error: in the guest: {}", escape(message));
    write_stderr(channel, &message).await;
}

/// Writes a line to standard error of the session.
async fn write_stderr(channel: &ChannelWriteHalf<Msg>, message: &str) {
    let line = format!("{}: {message}\r\n", command_name(crate::tool::TOOL));
    let _ = channel.extended_data_bytes(SSH_EXTENDED_DATA_STDERR, line.into_bytes()).await;
}

/// Relays input from the client to the guest until one of them ends.
pub(crate) async fn pump(input: Arc<InputQueue>, sender: CallSender) {
    while let Some(bytes) = input.next().await {
        if sender.data(STDIN, &bytes).await.is_err() {
            return;
        }
    }
    let _ = sender.end(STDIN).await;
}

async fn send_controls(controls: Arc<SessionControls>, sender: CallSender) {
    while sender.control(&controls.next().await).await.is_ok() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_mapped_in_both_directions() {
        for (name, number) in SIGNALS {
            let sent = signal_number(&Sig::Custom(name.to_owned()));
            assert_eq!(sent, Some(number));
            if number != 12 {
                assert_eq!(signal_number(&signal_name(number)), Some(number));
            }
        }
        assert_eq!(signal_number(&Sig::Custom("NONE".to_owned())), None);
    }
}
