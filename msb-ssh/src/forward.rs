//! Forwarded connections: made by the guest's agent, carried on a channel.

use std::sync::{Arc, Mutex, PoisonError};

use libmsb::cli::escape::escape;
use msb_wire::client::ClientError;
use msb_wire::connect::{ConnectEvent, ConnectFailure, ConnectRequest};
use msb_wire::sandbox::Request;
use russh::server::{ChannelOpenHandle, Msg};
use russh::{ChannelId, ChannelOpenFailure, ChannelWriteHalf};

use crate::activity::Activity;
use crate::guest::{Call, Guest, Incoming};
use crate::input::Input;
use crate::limits::CONNECT_TIMEOUT_MS;
use crate::session::{Helper, pump};

/// Reasons of RFC 4254, 5.1.
mod reason {
    pub(super) const PROHIBITED: u32 = 1;
    pub(super) const CONNECT_FAILED: u32 = 2;
    pub(super) const SHORTAGE: u32 = 4;
}

/// A refusal for who may not.
pub(crate) fn prohibited(why: &str) -> ChannelOpenFailure {
    ChannelOpenFailure::Other {
        code: reason::PROHIBITED,
        reason: why.to_owned(),
    }
}

/// A refusal since there are too many already.
pub(crate) fn shortage(why: String) -> ChannelOpenFailure {
    ChannelOpenFailure::Other {
        code: reason::SHORTAGE,
        reason: why,
    }
}

/// A connection that a client wants.
pub(crate) struct Forward {
    pub(crate) guest: Arc<Guest>,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) channel: Arc<ChannelWriteHalf<Msg>>,
    pub(crate) input: Arc<Input>,
    pub(crate) activity: Arc<Activity>,
    /// Told when there will be no channel.
    pub(crate) refused: Refused,
}

/// Channels that were asked for and refused later: nobody closes them, so who counts them must hear of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Refused(Arc<Mutex<Vec<ChannelId>>>);

impl Refused {
    fn add(&self, id: ChannelId) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(id);
    }

    /// Those that came since the last time.
    pub(crate) fn take(&self) -> Vec<ChannelId> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Forward {
    /// Connects, answers the client, and carries bytes until both directions have ended.
    pub(crate) async fn run(self, reply: ChannelOpenHandle) {
        let request = Request::Connect(ConnectRequest {
            host: self.host,
            port: self.port,
            timeout_ms: CONNECT_TIMEOUT_MS,
        });
        match connect(&self.guest, &request).await {
            Ok(call) => {
                reply.accept().await;
                carry(call, &self.channel, self.input, &self.activity).await;
                let _ = self.channel.close().await;
            }
            Err(failure) => {
                // Before the client hears of it, who may ask for the next one at once.
                self.refused.add(self.channel.id());
                reply.reject(failure).await;
            }
        }
    }
}

async fn connect(guest: &Guest, request: &Request) -> Result<Call, ChannelOpenFailure> {
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
        Incoming::Event { message, .. } => match serde_json::from_slice(&message) {
            Ok(ConnectEvent::Connected { .. }) => Ok(call),
            Ok(ConnectEvent::Failed { kind, message }) => Err(match kind {
                ConnectFailure::ResourceLimit => failed(reason::SHORTAGE, &message),
                ConnectFailure::UnsupportedOperation => failed(reason::PROHIBITED, &message),
                _ => failed(reason::CONNECT_FAILED, &message),
            }),
            _ => Err(failed(reason::CONNECT_FAILED, "no answer that is known")),
        },
        Incoming::Data { .. } => Err(failed(reason::CONNECT_FAILED, "data came first")),
    }
}

async fn carry(
    mut call: Call,
    channel: &ChannelWriteHalf<Msg>,
    input: Arc<Input>,
    activity: &Activity,
) {
    let _input = Helper::spawn(pump(input, call.sender.clone()));
    while let Some(incoming) = call.receiver.recv().await {
        match incoming {
            Incoming::Data {
                channel: from,
                bytes,
                end,
            } => {
                activity.touch();
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
            Incoming::Event { last: true, .. } => return,
            Incoming::Event { .. } => {}
        }
    }
}
