//! Agent forwarding: the client's SSH agent, as a socket in the guest.
//!
//! The guest reports each connection to the socket and its data ([`msb_wire::key_agent`]). Each
//! connection opens a channel to the client (draft-miller-ssh-agent, "auth-agent@openssh.com"). The
//! guest is not trusted: connections beyond the limit are refused, and an invalid message ends the
//! forwarding. A client that does not read blocks only its own socket.

use std::collections::HashMap;
use std::sync::Arc;

use msb_wire::exec::ExecEvent;
use msb_wire::frame::{STDIN, STDOUT};
use msb_wire::key_agent::{AgentMessage, CONNECTIONS_MAX, KeyAgentRequest, PIECE_BYTES_MAX};
use msb_wire::sandbox::Request;
use msb_wire::text::Text;
use russh::server::{Handle, Msg};
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use tokio::sync::Mutex;

use crate::guest::{CallSender, GuestCall, GuestClient, IncomingMessage};
use crate::scoped_task::ScopedTask;

/// Maximum length of a socket path in bytes. The limit of unix(7) is lower.
const PATH_BYTES_MAX: usize = 4096;

/// An agent socket in the guest. Dropping it removes the socket.
pub(crate) struct AgentSocket {
    /// Path in the guest.
    pub(crate) path: Text,
    _task: ScopedTask,
}

/// Sender with a lock, so that messages are not interleaved.
type SharedSender = Arc<Mutex<CallSender>>;

/// Asks the guest for a socket that is forwarded to the client behind `handle`.
pub(crate) async fn open(
    guest: &GuestClient,
    request: KeyAgentRequest,
    handle: Handle,
) -> Result<AgentSocket, String> {
    let opened = guest.open(&Request::KeyAgent(request)).await;
    let mut call = opened.map_err(|error| error.to_string())?;
    let mut received = Vec::new();
    let path = loop {
        if !receive(&mut call, &mut received).await? {
            continue;
        }
        let mut rest = &received[..];
        match AgentMessage::take(&mut rest) {
            Ok(None) => {}
            Ok(Some(AgentMessage::Path(path)))
                if path.len() <= PATH_BYTES_MAX && !path.contains(&0) =>
            {
                let path = Text(path.to_vec());
                let taken = received.len() - rest.len();
                received.drain(..taken);
                break path;
            }
            _ => return Err("the guest did not report the path of the socket".to_owned()),
        }
    };
    let relay = AgentRelay {
        sender: Arc::new(Mutex::new(call.sender.clone())),
        handle,
        open: HashMap::new(),
    };
    let _task = ScopedTask::spawn(relay.run(call, received));
    Ok(AgentSocket { path, _task })
}

/// Receives the next message; returns false if it held no data. Fails when the call has ended.
async fn receive(call: &mut GuestCall, received: &mut Vec<u8>) -> Result<bool, String> {
    let ended = || "the call has ended".to_owned();
    match call.receiver.recv().await.ok_or_else(ended)? {
        IncomingMessage::Data { channel, bytes, .. } => {
            if channel == STDOUT {
                received.extend_from_slice(&bytes);
            }
            let used = call.sender.used(channel, bytes.len()).await;
            used.map_err(|error| error.to_string())?;
            Ok(channel == STDOUT)
        }
        IncomingMessage::Event { message, last: true } => {
            Err(match serde_json::from_slice(&message) {
                Ok(ExecEvent::Failed { message, .. }) => message,
                _ => ended(),
            })
        }
        IncomingMessage::Event { .. } => Ok(false),
    }
}

/// Connections of one agent socket.
struct AgentRelay {
    sender: SharedSender,
    handle: Handle,
    open: HashMap<u32, (ChannelWriteHalf<Msg>, ScopedTask)>,
}

impl AgentRelay {
    async fn run(mut self, mut call: GuestCall, mut received: Vec<u8>) {
        loop {
            let mut rest = &received[..];
            loop {
                match AgentMessage::take(&mut rest) {
                    Ok(Some(piece)) => self.take(piece).await,
                    Ok(None) => break,
                    Err(_) => return,
                }
            }
            let taken = received.len() - rest.len();
            received.drain(..taken);
            if receive(&mut call, &mut received).await.is_err() {
                return;
            }
        }
    }

    async fn take(&mut self, piece: AgentMessage<'_>) {
        match piece {
            AgentMessage::Opened(id) => self.connect(id).await,
            AgentMessage::Data(id, data) => {
                if let Some((channel, _)) = self.open.get(&id)
                    && channel.data_bytes(data.to_vec()).await.is_err()
                {
                    self.open.remove(&id);
                }
            }
            AgentMessage::Closed(id) => {
                if let Some((channel, _)) = self.open.remove(&id) {
                    let _ = channel.eof().await;
                    let _ = channel.close().await;
                }
            }
            AgentMessage::Path(_) => {}
        }
    }

    async fn connect(&mut self, id: u32) {
        if self.open.len() < CONNECTIONS_MAX
            && !self.open.contains_key(&id)
            && let Ok(channel) = self.handle.channel_open_agent().await
        {
            let (reader, writer) = channel.split();
            let pump = ScopedTask::spawn(pump(reader, id, Arc::clone(&self.sender)));
            self.open.insert(id, (writer, pump));
        } else {
            let _ = send_message(&self.sender, AgentMessage::Closed(id)).await;
        }
    }
}

async fn send_message(sender: &SharedSender, piece: AgentMessage<'_>) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    piece.put(&mut bytes);
    sender.lock().await.data(STDIN, &bytes).await
}

/// Relays bytes from the client's agent to the guest.
async fn pump(mut reader: ChannelReadHalf, id: u32, sender: SharedSender) {
    while let Some(message) = reader.wait().await {
        match message {
            ChannelMsg::Data { data } => {
                for part in data.chunks(PIECE_BYTES_MAX) {
                    if send_message(&sender, AgentMessage::Data(id, part)).await.is_err() {
                        return;
                    }
                }
            }
            ChannelMsg::Eof | ChannelMsg::Close => break,
            _ => {}
        }
    }
    let _ = send_message(&sender, AgentMessage::Closed(id)).await;
}
