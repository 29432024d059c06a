//! Port forwarding (`direct-tcpip`): the guest's agent opens the connection, a channel carries it.

use std::sync::{Arc, Mutex, PoisonError};

use libmsb::cli::escape::escape;
use msb_wire::client::ClientError;
use msb_wire::connect::{ConnectEvent, ConnectFailure, ConnectRequest};
use msb_wire::sandbox::Request;
use russh::server::{ChannelOpenHandle, Msg};
use russh::{ChannelId, ChannelOpenFailure, ChannelWriteHalf};

use crate::guest::{GuestCall, GuestClient, IncomingMessage};
use crate::idle_timer::IdleTimer;
use crate::input::InputQueue;
use crate::limits::CONNECT_TIMEOUT_MS;
use crate::scoped_task::ScopedTask;
use crate::session::pump;

/// Reason codes of SSH_MSG_CHANNEL_OPEN_FAILURE, RFC 4254 section 5.1.
mod reason {
    pub(super) const PROHIBITED: u32 = 1;
    pub(super) const CONNECT_FAILED: u32 = 2;
    pub(super) const SHORTAGE: u32 = 4;
}

/// Returns a refusal for a request that is not permitted.
pub(crate) fn prohibited(why: &str) -> ChannelOpenFailure {
    ChannelOpenFailure::Other { code: reason::PROHIBITED, reason: why.to_owned() }
}

/// Returns a refusal for a request beyond a limit.
pub(crate) fn shortage(why: String) -> ChannelOpenFailure {
    ChannelOpenFailure::Other { code: reason::SHORTAGE, reason: why }
}

/// A forwarded connection that a client asked for.
pub(crate) struct PortForward {
    pub(crate) guest: Arc<GuestClient>,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) channel: Arc<ChannelWriteHalf<Msg>>,
    pub(crate) input: Arc<InputQueue>,
    pub(crate) idle_timer: Arc<IdleTimer>,
    /// Receives the channel's id if the connection fails.
    pub(crate) refused: RefusedChannels,
}

/// Channels that were refused after the client asked for them. Such a channel is never closed, so
/// the handler must be able to remove it from its count.
#[derive(Clone, Debug, Default)]
pub(crate) struct RefusedChannels(Arc<Mutex<Vec<ChannelId>>>);

impl RefusedChannels {
    fn add(&self, id: ChannelId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(id);
    }

    /// Takes the ids that were added since the last call.
    pub(crate) fn take(&self) -> Vec<ChannelId> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl PortForward {
    /// Connects, answers the client, and relays bytes until both directions have ended.
    pub(crate) async fn run(self, reply: ChannelOpenHandle) {
        let request = Request::Connect(ConnectRequest {
            host: self.host,
            port: self.port,
            timeout_ms: CONNECT_TIMEOUT_MS,
        });
        match connect(&self.guest, &request).await {
            Ok(call) => {
                reply.accept().await;
                carry(call, &self.channel, self.input, &self.idle_timer).await;
                let _ = self.channel.close().await;
            }
            Err(failure) => {
                // Before the answer: after it, the client may ask for the next channel at once.
                self.refused.add(self.channel.id());
                reply.reject(failure).await;
            }
        }
    }
}

async fn connect(guest: &GuestClient, request: &Request) -> Result<GuestCall, ChannelOpenFailure> {
    let failed = |code, reason: &str| ChannelOpenFailure::Other {
        code,
        reason: escape(reason).into_owned(),
    };
    let mut call = guest.open(request).await.map_err(|error| {
        let code = match error {
            ClientError::Unsupported(_) => reason::PROHIBITED,
            _ => reason::CONNECT_FAILED,
        };
        failed(code, &error.to_string())
    })?;
    let ended = || failed(reason::CONNECT_FAILED, "the sandbox has ended");
    match call.receiver.recv().await.ok_or_else(ended)? {
        IncomingMessage::Event { message, .. } => match serde_json::from_slice(&message) {
            Ok(ConnectEvent::Connected { .. }) => Ok(call),
            Ok(ConnectEvent::Failed { kind, message }) => Err(match kind {
                ConnectFailure::ResourceLimit => failed(reason::SHORTAGE, &message),
                ConnectFailure::UnsupportedOperation => failed(reason::PROHIBITED, &message),
                _ => failed(reason::CONNECT_FAILED, &message),
            }),
            _ => Err(failed(reason::CONNECT_FAILED, "unexpected answer from the guest")),
        },
        IncomingMessage::Data { .. } => {
            Err(failed(reason::CONNECT_FAILED, "unexpected data from the guest"))
        }
    }
}

async fn carry(
    mut call: GuestCall,
    channel: &ChannelWriteHalf<Msg>,
    input: Arc<InputQueue>,
    idle_timer: &IdleTimer,
) {
    let _input = ScopedTask::spawn(pump(input, call.sender.clone()));
    while let Some(incoming) = call.receiver.recv().await {
        match incoming {
            IncomingMessage::Data { channel: from, bytes, end } => {
                idle_timer.touch();
                let count = bytes.len();
                if channel.data_bytes(bytes).await.is_err()
                    || call.sender.used(from, count).await.is_err()
                {
                    return;
                }
                if end && channel.eof().await.is_err() {
                    return;
                }
            }
            IncomingMessage::Event { last: true, .. } => return,
            IncomingMessage::Event { .. } => {}
        }
    }
}
