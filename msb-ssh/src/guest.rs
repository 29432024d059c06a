//! Calls to the guest's agent, multiplexed over connections to the supervisor.
//!
//! A supervisor limits its clients and the streams of each. So the calls of all SSH clients share a
//! few connections, and each connection has one task that reads its frames. A call receives its
//! messages on a queue of its own, which its flow-control windows bound, and sends under its own
//! credit, so no call blocks another.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use msb_wire::client::{ClientConnection, ClientError};
use msb_wire::credit::{ReceiveCredit, SendCredit};
use msb_wire::frame::{self, Assembler, CHANNELS, Decoder, FrameHeader, FrameKind, flags};
use msb_wire::handshake::Hello;
use msb_wire::limits::{CLIENT_STREAMS_MAX, DATA_BYTES, WINDOW_BYTES};
use msb_wire::sandbox::Request;
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, mpsc};

/// Name that is sent in the handshake.
const PROGRAM: &str = concat!("msb-ssh ", env!("CARGO_PKG_VERSION"));

/// Client of a sandbox's supervisor: opens calls, and connections as they are needed.
#[derive(Debug)]
pub(crate) struct GuestClient {
    socket: PathBuf,
    links: Mutex<Vec<Weak<SupervisorLink>>>,
}

/// One connection to the supervisor.
#[derive(Debug)]
struct SupervisorLink {
    hello: Hello,
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    calls: Mutex<CallTable>,
}

#[derive(Debug, Default)]
struct CallTable {
    next: u32,
    open: HashMap<u32, Arc<CallState>>,
    /// Set when the connection has ended.
    over: bool,
}

/// State of a call, shared by its owner and the connection's reader.
#[derive(Debug)]
struct CallState {
    credit_state: Mutex<CallCredit>,
    granted: Notify,
    /// Sender of the owner's queue. It is dropped when the call ends, so that the queue ends while
    /// the owner may still send.
    incoming: Mutex<Option<mpsc::UnboundedSender<IncomingMessage>>>,
}

#[derive(Debug, Default)]
struct CallCredit {
    send: [SendCredit; CHANNELS],
    receive: [ReceiveCredit; CHANNELS],
    /// Received bytes for which no credit has been returned yet.
    outstanding: [u32; CHANNELS],
    over: bool,
}

/// A message that came for a call.
#[derive(Debug)]
pub(crate) enum IncomingMessage {
    /// Bytes of a channel. [`CallSender::used`] returns their credit.
    Data {
        /// Channel number.
        channel: u8,
        /// Payload.
        bytes: Vec<u8>,
        /// End of the channel.
        end: bool,
    },
    /// A message in JSON.
    Event {
        /// Message text.
        message: Vec<u8>,
        /// Last message of the call.
        last: bool,
    },
}

/// An open call. It is closed when both halves are dropped before its last event.
#[derive(Debug)]
pub(crate) struct GuestCall {
    /// Sending half.
    pub(crate) sender: CallSender,
    /// Receiving half. It returns `None` when the connection has ended.
    pub(crate) receiver: mpsc::UnboundedReceiver<IncomingMessage>,
}

/// Sending half of a call.
#[derive(Clone, Debug)]
pub(crate) struct CallSender {
    inner: Arc<SenderInner>,
}

#[derive(Debug)]
struct SenderInner {
    link: Arc<SupervisorLink>,
    state: Arc<CallState>,
    stream: u32,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl GuestClient {
    /// Returns a client for the supervisor behind this socket. It connects with the first call.
    pub(crate) fn at(socket: PathBuf) -> GuestClient {
        GuestClient { socket, links: Mutex::default() }
    }

    /// Opens a call.
    pub(crate) async fn open(&self, request: &Request) -> Result<GuestCall, ClientError> {
        let message = serde_json::to_vec(request).map_err(io::Error::from)?;
        let (link, stream, state, receiver) = loop {
            let link = self.link().await?;
            for operation in request.supervisor_operations() {
                link.hello.require(operation).map_err(ClientError::Unsupported)?;
            }
            // Another call may have taken the last free stream in between.
            if let Some((stream, state, receiver)) = link.place() {
                break (link, stream, state, receiver);
            }
        };
        let sender = CallSender { inner: Arc::new(SenderInner { link, state, stream }) };
        let mut out = Vec::new();
        frame::put_message(&mut out, stream, FrameKind::Open, 0, &message);
        sender.write(&out).await?;
        Ok(GuestCall { sender, receiver })
    }

    /// Returns a connection with a free stream, and opens one if there is none.
    async fn link(&self) -> Result<Arc<SupervisorLink>, ClientError> {
        let usable = {
            let mut links = locked(&self.links);
            links.retain(|link| link.strong_count() > 0);
            links.iter().filter_map(Weak::upgrade).find(|link| link.has_room())
        };
        if let Some(link) = usable {
            return Ok(link);
        }
        let socket = self.socket.clone();
        // The handshake blocks for a short time.
        let connected =
            tokio::task::spawn_blocking(move || ClientConnection::connect(&socket, PROGRAM));
        let connection =
            connected.await.map_err(|error| ClientError::Io(io::Error::other(error)))??;
        let (socket, hello) = connection.into_socket();
        socket.set_nonblocking(true)?;
        let (reader, writer) = UnixStream::from_std(socket)?.into_split();
        let link = Arc::new(SupervisorLink {
            hello,
            writer: tokio::sync::Mutex::new(writer),
            calls: Mutex::new(CallTable { next: 1, ..CallTable::default() }),
        });
        tokio::spawn(read_frames(reader, Arc::downgrade(&link)));
        locked(&self.links).push(Arc::downgrade(&link));
        Ok(link)
    }
}

impl SupervisorLink {
    fn has_room(&self) -> bool {
        let calls = locked(&self.calls);
        !calls.over && calls.open.len() < CLIENT_STREAMS_MAX
    }

    fn place(&self) -> Option<(u32, Arc<CallState>, mpsc::UnboundedReceiver<IncomingMessage>)> {
        let mut calls = locked(&self.calls);
        if calls.over || calls.open.len() >= CLIENT_STREAMS_MAX {
            return None;
        }
        while calls.next == frame::CONNECTION || calls.open.contains_key(&calls.next) {
            calls.next = calls.next.wrapping_add(1);
        }
        let stream = calls.next;
        calls.next = calls.next.wrapping_add(1);
        let (incoming, receiver) = mpsc::unbounded_channel();
        let state = Arc::new(CallState {
            credit_state: Mutex::default(),
            granted: Notify::new(),
            incoming: Mutex::new(Some(incoming)),
        });
        calls.open.insert(stream, Arc::clone(&state));
        Some((stream, state, receiver))
    }

    /// Returns the call of a stream. A call whose owner has gone keeps its stream until its last
    /// event.
    fn call(&self, stream: u32) -> io::Result<Arc<CallState>> {
        let calls = locked(&self.calls);
        let call = calls.open.get(&stream).map(Arc::clone);
        call.ok_or_else(|| invalid("frame of a stream that is not open"))
    }

    fn end(&self) {
        let open = {
            let mut calls = locked(&self.calls);
            calls.over = true;
            std::mem::take(&mut calls.open)
        };
        for call in open.into_values() {
            call.end();
        }
    }
}

impl CallState {
    /// Ends the call: nothing can be sent or received any more.
    fn end(&self) {
        locked(&self.credit_state).over = true;
        self.granted.notify_one();
        locked(&self.incoming).take();
    }

    /// Queues a message for the owner; drops it if the owner has gone.
    fn deliver(&self, incoming: IncomingMessage) {
        if let Some(queue) = locked(&self.incoming).as_ref() {
            let _ = queue.send(incoming);
        }
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Reads frames until the connection ends or no call uses it any more.
async fn read_frames(mut reader: OwnedReadHalf, link: Weak<SupervisorLink>) {
    let mut decoder = Decoder::new();
    let mut messages = Assembler::new();
    loop {
        let count = reader.read(decoder.room()).await.unwrap_or(0);
        decoder.filled(count);
        let Some(link) = link.upgrade() else { return };
        if count == 0 || take_frames(&link, &mut decoder, &mut messages).is_err() {
            return link.end();
        }
    }
}

fn take_frames(
    link: &SupervisorLink,
    decoder: &mut Decoder,
    messages: &mut Assembler,
) -> io::Result<()> {
    while let Some(frame) = decoder.next_frame()? {
        let header = frame.header;
        let call = link.call(header.stream)?;
        match header.kind {
            FrameKind::Credit => {
                let bytes = frame.credit().unwrap_or(0);
                if !locked(&call.credit_state).send[usize::from(header.channel)].grant(bytes) {
                    return Err(invalid("credit exceeds the window"));
                }
                call.granted.notify_one();
            }
            FrameKind::Data => take_data(&call, &header, frame.payload())?,
            FrameKind::Event => {
                let Some(message) = messages.push(&header, frame.payload())? else {
                    continue;
                };
                let last = header.ends();
                call.deliver(IncomingMessage::Event { message, last });
                if last {
                    locked(&link.calls).open.remove(&header.stream);
                    messages.forget(header.stream);
                    call.end();
                }
            }
            FrameKind::Hello | FrameKind::Open | FrameKind::Control | FrameKind::Close => {
                return Err(invalid("frame that only a client may send"));
            }
        }
    }
    Ok(())
}

fn take_data(call: &CallState, header: &FrameHeader, payload: &[u8]) -> io::Result<()> {
    let channel = usize::from(header.channel);
    {
        let outstanding = &mut locked(&call.credit_state).outstanding[channel];
        *outstanding = outstanding.saturating_add(header.length as u32);
        if *outstanding > WINDOW_BYTES {
            return Err(invalid("data exceeds the credit"));
        }
    }
    // A call whose owner has gone returns no credit: its Close frame ends it.
    call.deliver(IncomingMessage::Data {
        channel: header.channel,
        bytes: payload.to_vec(),
        end: header.ends(),
    });
    Ok(())
}

impl CallSender {
    async fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let mut writer = self.inner.link.writer.lock().await;
        writer.write_all(bytes).await
    }

    /// Sends data, and waits while there is no credit. Fails when the call has ended. Only one task
    /// may send on a channel.
    pub(crate) async fn data(&self, channel: u8, mut bytes: &[u8]) -> io::Result<()> {
        let mut out = Vec::new();
        while !bytes.is_empty() {
            let count = self.credit(channel, bytes.len().min(DATA_BYTES)).await?;
            let (now, later) = bytes.split_at(count);
            out.clear();
            frame::put_data(&mut out, self.inner.stream, channel, now);
            self.write(&out).await?;
            bytes = later;
        }
        Ok(())
    }

    async fn credit(&self, channel: u8, wanted: usize) -> io::Result<usize> {
        let state = &self.inner.state;
        loop {
            {
                let mut credit_state = locked(&state.credit_state);
                if credit_state.over {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                let credit = &mut credit_state.send[usize::from(channel)];
                let count = wanted.min(credit.available());
                if count > 0 && credit.spend(count) {
                    return Ok(count);
                }
            }
            state.granted.notified().await;
        }
    }

    /// Ends a channel of the call.
    pub(crate) async fn end(&self, channel: u8) -> io::Result<()> {
        let mut out = Vec::new();
        frame::put_frame(&mut out, self.inner.stream, FrameKind::Data, channel, flags::END, &[]);
        self.write(&out).await
    }

    /// Sends a control message.
    pub(crate) async fn control(&self, message: &impl Serialize) -> io::Result<()> {
        let json = serde_json::to_vec(message)?;
        let mut out = Vec::new();
        frame::put_message(&mut out, self.inner.stream, FrameKind::Control, 0, &json);
        self.write(&out).await
    }

    /// Returns credit for data that was received and used.
    pub(crate) async fn used(&self, channel: u8, bytes: usize) -> io::Result<()> {
        let index = usize::from(channel);
        let grant = {
            let mut credit_state = locked(&self.inner.state.credit_state);
            if credit_state.over {
                return Ok(());
            }
            let grant = credit_state.receive[index].used(bytes);
            credit_state.outstanding[index] =
                credit_state.outstanding[index].saturating_sub(grant.unwrap_or(0));
            grant
        };
        let Some(grant) = grant else { return Ok(()) };
        let mut out = Vec::new();
        frame::put_credit(&mut out, self.inner.stream, channel, grant);
        self.write(&out).await
    }
}

impl Drop for SenderInner {
    fn drop(&mut self) {
        if locked(&self.state.credit_state).over {
            return;
        }
        let (link, stream) = (Arc::clone(&self.link), self.stream);
        // Without a runtime the process is exiting, and its connections close with it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let mut out = Vec::new();
                frame::put_frame(&mut out, stream, FrameKind::Close, 0, 0, &[]);
                // A broken connection has ended all of its calls already.
                let _ = link.writer.lock().await.write_all(&out).await;
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use msb_wire::exec::{ExecEvent, ExecRequest};
    use msb_wire::frame::{STDIN, STDOUT, put_credit, put_data, put_message};
    use msb_wire::handshake::operation;
    use std::io::Write;
    use std::os::unix::net::{UnixListener, UnixStream as StdStream};

    /// Starts a supervisor that sends its Hello and then calls `act`.
    fn supervisor(
        act: impl FnOnce(StdStream) + Send + 'static,
    ) -> (tempfile::TempDir, GuestClient) {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        std::thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            let hello = serde_json::to_vec(&Hello::of("test 1", &[operation::EXEC])).unwrap();
            let mut out = Vec::new();
            put_message(&mut out, 0, FrameKind::Hello, 0, &hello);
            client.write_all(&out).unwrap();
            act(client);
        });
        (directory, GuestClient::at(socket))
    }

    /// Keeps the connection open until the client closes it; otherwise the client's calls would
    /// fail.
    fn stay(mut client: StdStream) {
        let _ = std::io::copy(&mut client, &mut std::io::sink());
    }

    fn exec() -> Request {
        Request::Exec(ExecRequest::default())
    }

    /// Reads frames of the client until one matches.
    fn wait_for(
        client: &mut StdStream,
        decoder: &mut Decoder,
        wanted: impl Fn(&FrameHeader) -> bool,
    ) {
        loop {
            while let Some(frame) = decoder.next_frame().unwrap() {
                if wanted(&frame.header) {
                    return;
                }
            }
            assert!(decoder.fill(client).unwrap() > 0, "the client hung up");
        }
    }

    #[tokio::test]
    async fn two_calls_share_a_connection_and_get_their_own_data() {
        let (_directory, guest) = supervisor(|mut client| {
            let mut decoder = Decoder::new();
            wait_for(&mut client, &mut decoder, |header| header.stream == 2);
            let mut out = Vec::new();
            put_data(&mut out, 2, STDOUT, b"two");
            put_data(&mut out, 1, STDOUT, b"one");
            client.write_all(&out).unwrap();
            stay(client);
        });
        let mut first = guest.open(&exec()).await.unwrap();
        let mut second = guest.open(&exec()).await.unwrap();
        for (call, expected) in [(&mut first, &b"one"[..]), (&mut second, b"two")] {
            match call.receiver.recv().await {
                Some(IncomingMessage::Data { bytes, .. }) => assert_eq!(bytes, expected),
                other => panic!("{other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn a_dropped_call_is_closed_and_others_continue() {
        let (closed, was_closed) = tokio::sync::oneshot::channel();
        let (_directory, guest) = supervisor(move |mut client| {
            let mut decoder = Decoder::new();
            wait_for(&mut client, &mut decoder, |h| h.kind == FrameKind::Close);
            let _ = closed.send(());
            let mut out = Vec::new();
            put_credit(&mut out, 2, STDIN, 0);
            let end = serde_json::to_vec(&ExecEvent::StdinClosed).unwrap();
            put_message(&mut out, 1, FrameKind::Event, flags::END, &end);
            put_data(&mut out, 2, STDOUT, b"still here");
            client.write_all(&out).unwrap();
            stay(client);
        });
        let first = guest.open(&exec()).await.unwrap();
        let mut second = guest.open(&exec()).await.unwrap();
        drop(first);
        was_closed.await.unwrap();
        assert!(matches!(second.receiver.recv().await, Some(IncomingMessage::Data { .. })));
    }

    #[tokio::test]
    async fn the_end_of_the_connection_ends_a_wait_for_credit() {
        let (_directory, guest) = supervisor(|mut client| {
            let mut decoder = Decoder::new();
            let mut left = WINDOW_BYTES as usize;
            while left > 0 {
                while let Some(frame) = decoder.next_frame().unwrap() {
                    if frame.header.kind == FrameKind::Data {
                        left -= frame.header.length;
                    }
                }
                if left > 0 {
                    decoder.fill(&mut client).unwrap();
                }
            }
        });
        let mut call = guest.open(&exec()).await.unwrap();
        let more = vec![0; WINDOW_BYTES as usize + 1];
        let error = call.sender.data(STDIN, &more).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        assert!(call.receiver.recv().await.is_none());
    }

    #[tokio::test]
    async fn an_unsupported_operation_fails_alone() {
        let (_directory, guest) = supervisor(stay);
        let _first = guest.open(&exec()).await.unwrap();
        let error = guest.open(&Request::Ping).await.unwrap_err();
        assert!(matches!(error, ClientError::Unsupported(_)), "{error}");
        assert!(guest.open(&exec()).await.is_ok());
    }
}
