//! Commands, shells and file transfer: one channel each.

use std::sync::Arc;

use libmsb::cli::escape::escape;
use msb_wire::exec::ExecEvent;
use msb_wire::frame::{STDERR, STDIN};
use msb_wire::key_agent::KeyAgentRequest;
use msb_wire::sandbox::Request;
use msb_wire::text::Text;
use russh::server::{Handle, Msg};
use russh::{ChannelWriteHalf, Sig};
use tokio::sync::OwnedSemaphorePermit;

use crate::activity::Activity;
use crate::controls::Controls;
use crate::guest::{Guest, Incoming, Sender};
use crate::input::Input;
use crate::key_agent;

/// The extended data that is standard error. RFC 4254, 5.2.
const EXTENDED_STDERR: u32 = 1;

/// Signals that have a name in SSH (RFC 4254, 6.10), and their numbers on Linux.
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

/// The number of a signal that a client names.
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

/// What a session is made of.
pub(crate) struct Session {
    pub(crate) guest: Arc<Guest>,
    pub(crate) channel: Arc<ChannelWriteHalf<Msg>>,
    pub(crate) handle: Handle,
    pub(crate) input: Arc<Input>,
    pub(crate) activity: Arc<Activity>,
    pub(crate) controls: Arc<Controls>,
    /// What the client wants and does not get, said before anything else.
    pub(crate) refusals: Vec<&'static str>,
    /// Whether the guest may use the client's agent, and as whom.
    pub(crate) key_agent: Option<KeyAgentRequest>,
    /// The room that the request takes, until the guest has it.
    pub(crate) held: Option<OwnedSemaphorePermit>,
}

/// A task that ends with its owner.
pub(crate) struct Helper(tokio::task::JoinHandle<()>);

impl Helper {
    /// Starts it.
    pub(crate) fn spawn(work: impl Future<Output = ()> + Send + 'static) -> Helper {
        Helper(tokio::spawn(work))
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Session {
    /// Runs it to its end and tells the client. Nothing can be told to one that has gone.
    pub(crate) async fn run(mut self, mut request: Request) {
        let (channel, handle) = (Arc::clone(&self.channel), self.handle.clone());
        let id = channel.id();
        for refusal in std::mem::take(&mut self.refusals) {
            say(&channel, refusal).await;
        }
        let _socket = self.offer_key_agent(&mut request).await;
        match self.converse(request).await {
            Some(ExecEvent::Exited {
                code: None,
                signal: Some(signal),
                oom_killed,
            }) => {
                let message = if oom_killed {
                    "the guest ran out of memory"
                } else {
                    ""
                };
                let name = signal_name(signal);
                let _ = handle
                    .exit_signal_request(id, name, false, message.into(), String::new())
                    .await;
            }
            Some(event) => {
                if let ExecEvent::Failed { message, .. } = &event {
                    tell(&channel, message).await;
                }
                let code = event.exit_code().unwrap_or(125);
                let _ = channel.exit_status(code.unsigned_abs()).await;
            }
            // The sandbox has ended; the connection says so.
            None => return,
        }
        let _ = channel.eof().await;
        let _ = channel.close().await;
    }

    /// A socket for the client's agent, if it is wanted, and its place among the variables. Without it the session goes on.
    async fn offer_key_agent(&mut self, request: &mut Request) -> Option<key_agent::Socket> {
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
                let message = format!("warning: no agent in the guest: {}", escape(&why));
                say(&self.channel, &message).await;
                None
            }
        }
    }

    async fn converse(self, request: Request) -> Option<ExecEvent> {
        let mut call = match self.guest.open(&request).await {
            Ok(call) => call,
            Err(error) => {
                return Some(ExecEvent::Failed {
                    kind: msb_wire::exec::FailureKind::Other,
                    message: error.to_string(),
                });
            }
        };
        drop((request, self.held));
        let _input = Helper::spawn(pump(Arc::clone(&self.input), call.sender.clone()));
        let _controls = Helper::spawn(control(self.controls, call.sender.clone()));
        while let Some(incoming) = call.receiver.recv().await {
            match incoming {
                Incoming::Data { channel, bytes, .. } => {
                    self.activity.touch();
                    let count = bytes.len();
                    let sent = match channel {
                        STDERR => {
                            self.channel
                                .extended_data_bytes(EXTENDED_STDERR, bytes)
                                .await
                        }
                        _ => self.channel.data_bytes(bytes).await,
                    };
                    sent.ok()?;
                    call.sender.used(channel, count).await.ok()?;
                }
                Incoming::Event { message, last } if last => {
                    return serde_json::from_slice(&message).ok();
                }
                Incoming::Event { .. } => {}
            }
        }
        None
    }
}

/// Says why there is no command.
async fn tell(channel: &ChannelWriteHalf<Msg>, message: &str) {
    let message = format!("error: in the guest: {}", escape(message));
    say(channel, &message).await;
}

/// Says something on standard error.
async fn say(channel: &ChannelWriteHalf<Msg>, message: &str) {
    let line = format!("{}: {message}\r\n", crate::TOOL);
    let _ = channel
        .extended_data_bytes(EXTENDED_STDERR, line.into_bytes())
        .await;
}

/// From the client to the guest, until either has no more.
pub(crate) async fn pump(input: Arc<Input>, sender: Sender) {
    while let Some(bytes) = input.next().await {
        if sender.data(STDIN, &bytes).await.is_err() {
            return;
        }
    }
    let _ = sender.end(STDIN).await;
}

async fn control(controls: Arc<Controls>, sender: Sender) {
    while sender.control(&controls.next().await).await.is_ok() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_go_both_ways_under_their_names() {
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
