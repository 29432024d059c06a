//! The client's SSH agent, for the guest: a socket there, whose connections are channels to the client.
//!
//! The guest says who connected and what was said ([`msb_wire::key_agent`]); each connection opens a channel
//! (draft-miller-ssh-agent, "auth-agent@openssh.com"). The guest is believed nothing: who opens more connections than
//! agreed is hung up on, and what is no piece ends the socket. A client that does not read holds up this socket alone.

use std::collections::HashMap;
use std::sync::Arc;

use msb_wire::exec::ExecEvent;
use msb_wire::frame::{STDIN, STDOUT};
use msb_wire::key_agent::{CONNECTIONS_MAX, KeyAgentRequest, PIECE_BYTES_MAX, Piece};
use msb_wire::sandbox::Request;
use msb_wire::text::Text;
use russh::server::{Handle, Msg};
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use tokio::sync::Mutex;

use crate::guest::{Call, Guest, Incoming, Sender};
use crate::session::Helper;

/// Bytes of a path that a socket may have. unix(7) has room for fewer.
const PATH_BYTES_MAX: usize = 4096;

/// A socket in the guest. It goes with this value.
pub(crate) struct Socket {
    /// Where it is.
    pub(crate) path: Text,
    _task: Helper,
}

/// One after the other: pieces must not mix.
type Way = Arc<Mutex<Sender>>;

/// Has the guest make a socket for the client at the other end of `handle`.
pub(crate) async fn open(
    guest: &Guest,
    request: KeyAgentRequest,
    handle: Handle,
) -> Result<Socket, String> {
    let opened = guest.open(&Request::KeyAgent(request)).await;
    let mut call = opened.map_err(|error| error.to_string())?;
    let mut received = Vec::new();
    let path = loop {
        if !receive(&mut call, &mut received).await? {
            continue;
        }
        let mut rest = &received[..];
        match Piece::take(&mut rest) {
            Ok(None) => {}
            Ok(Some(Piece::Path(path))) if path.len() <= PATH_BYTES_MAX && !path.contains(&0) => {
                let path = Text(path.to_vec());
                let taken = received.len() - rest.len();
                received.drain(..taken);
                break path;
            }
            _ => return Err("the guest did not say where the socket is".to_owned()),
        }
    };
    let relay = Relay {
        way: Arc::new(Mutex::new(call.sender.clone())),
        handle,
        open: HashMap::new(),
    };
    let _task = Helper::spawn(relay.run(call, received));
    Ok(Socket { path, _task })
}

/// Takes what came next; false when it was no data. An error when nothing comes any more.
async fn receive(call: &mut Call, received: &mut Vec<u8>) -> Result<bool, String> {
    let ended = || "it has ended".to_owned();
    match call.receiver.recv().await.ok_or_else(ended)? {
        Incoming::Data { channel, bytes, .. } => {
            if channel == STDOUT {
                received.extend_from_slice(&bytes);
            }
            let used = call.sender.used(channel, bytes.len()).await;
            used.map_err(|error| error.to_string())?;
            Ok(channel == STDOUT)
        }
        Incoming::Event {
            message,
            last: true,
        } => Err(match serde_json::from_slice(&message) {
            Ok(ExecEvent::Failed { message, .. }) => message,
            _ => ended(),
        }),
        Incoming::Event { .. } => Ok(false),
    }
}

/// The connections of one socket.
struct Relay {
    way: Way,
    handle: Handle,
    open: HashMap<u32, (ChannelWriteHalf<Msg>, Helper)>,
}

impl Relay {
    async fn run(mut self, mut call: Call, mut received: Vec<u8>) {
        loop {
            let mut rest = &received[..];
            loop {
                match Piece::take(&mut rest) {
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

    async fn take(&mut self, piece: Piece<'_>) {
        match piece {
            Piece::Opened(id) => self.connect(id).await,
            Piece::Data(id, data) => {
                if let Some((channel, _)) = self.open.get(&id)
                    && channel.data_bytes(data.to_vec()).await.is_err()
                {
                    self.open.remove(&id);
                }
            }
            Piece::Closed(id) => {
                if let Some((channel, _)) = self.open.remove(&id) {
                    let _ = channel.eof().await;
                    let _ = channel.close().await;
                }
            }
            Piece::Path(_) => {}
        }
    }

    async fn connect(&mut self, id: u32) {
        if self.open.len() < CONNECTIONS_MAX
            && !self.open.contains_key(&id)
            && let Ok(channel) = self.handle.channel_open_agent().await
        {
            let (reader, writer) = channel.split();
            let pump = Helper::spawn(pump(reader, id, Arc::clone(&self.way)));
            self.open.insert(id, (writer, pump));
        } else {
            let _ = say(&self.way, Piece::Closed(id)).await;
        }
    }
}

async fn say(way: &Way, piece: Piece<'_>) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    piece.put(&mut bytes);
    way.lock().await.data(STDIN, &bytes).await
}

/// From the client's agent to the guest.
async fn pump(mut reader: ChannelReadHalf, id: u32, way: Way) {
    while let Some(message) = reader.wait().await {
        match message {
            ChannelMsg::Data { data } => {
                for part in data.chunks(PIECE_BYTES_MAX) {
                    if say(&way, Piece::Data(id, part)).await.is_err() {
                        return;
                    }
                }
            }
            ChannelMsg::Eof | ChannelMsg::Close => break,
            _ => {}
        }
    }
    let _ = say(&way, Piece::Closed(id)).await;
}
