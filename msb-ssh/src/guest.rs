//! Calls to a sandbox, many over one connection to its supervisor.
//!
//! A supervisor takes a number of clients and of streams of each. So the calls of all SSH clients share a few
//! connections, each with one task that reads its frames; a call hears what is for it on a queue that its own windows
//! bound, and sends under its own credit, so that none waits for another.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use msb_wire::client::{ClientError, Connection};
use msb_wire::credit::{ReceiveCredit, SendCredit};
use msb_wire::frame::{self, Assembler, CHANNELS, Decoder, Header, Kind, flags};
use msb_wire::handshake::Hello;
use msb_wire::limits::{CLIENT_STREAMS_MAX, DATA_BYTES, WINDOW_BYTES};
use msb_wire::sandbox::Request;
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, mpsc};

/// What we call ourselves.
const PROGRAM: &str = concat!("msb-ssh ", env!("CARGO_PKG_VERSION"));

/// A sandbox, by the socket of its supervisor.
#[derive(Debug)]
pub(crate) struct Guest {
    socket: PathBuf,
    links: Mutex<Vec<Weak<Link>>>,
}

/// One connection to the supervisor.
#[derive(Debug)]
struct Link {
    hello: Hello,
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    calls: Mutex<Calls>,
}

#[derive(Debug, Default)]
struct Calls {
    next: u32,
    open: HashMap<u32, Arc<Shared>>,
    /// Nothing comes any more.
    over: bool,
}

/// What a call's owner and the connection's reader share.
#[derive(Debug)]
struct Shared {
    gates: Mutex<Gates>,
    granted: Notify,
    /// Gone when nothing comes any more, so that the owner's queue ends though the owner may still send.
    incoming: Mutex<Option<mpsc::UnboundedSender<Incoming>>>,
}

#[derive(Debug, Default)]
struct Gates {
    send: [SendCredit; CHANNELS],
    receive: [ReceiveCredit; CHANNELS],
    /// Bytes that came and were not granted back yet.
    outstanding: [u32; CHANNELS],
    over: bool,
}

/// What came for a call.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// Bytes of a channel, to be given back with [`Sender::used`].
    Data {
        /// The channel.
        channel: u8,
        /// The bytes.
        bytes: Vec<u8>,
        /// Nothing follows on this channel.
        end: bool,
    },
    /// A message in JSON.
    Event {
        /// The message.
        message: Vec<u8>,
        /// The call is over.
        last: bool,
    },
}

/// An open call. When both halves are dropped before its last event, it is closed.
#[derive(Debug)]
pub(crate) struct Call {
    /// What we say.
    pub(crate) sender: Sender,
    /// What the other side says. `None` when the connection has ended.
    pub(crate) receiver: mpsc::UnboundedReceiver<Incoming>,
}

/// The writing half of a call.
#[derive(Clone, Debug)]
pub(crate) struct Sender {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    link: Arc<Link>,
    shared: Arc<Shared>,
    stream: u32,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Guest {
    /// The sandbox whose supervisor serves this socket.
    pub(crate) fn at(socket: PathBuf) -> Guest {
        Guest {
            socket,
            links: Mutex::default(),
        }
    }

    /// Opens a call.
    pub(crate) async fn open(&self, request: &Request) -> Result<Call, ClientError> {
        let message = serde_json::to_vec(request).map_err(io::Error::from)?;
        let (link, stream, shared, receiver) = loop {
            let link = self.link().await?;
            for operation in request.needs() {
                link.hello
                    .require(operation)
                    .map_err(ClientError::Unsupported)?;
            }
            // Another call may have taken the last place in between.
            if let Some((stream, shared, receiver)) = link.place() {
                break (link, stream, shared, receiver);
            }
        };
        let sender = Sender {
            inner: Arc::new(Inner {
                link,
                shared,
                stream,
            }),
        };
        let mut out = Vec::new();
        frame::put_message(&mut out, stream, Kind::Open, 0, &message);
        sender.write(&out).await?;
        Ok(Call { sender, receiver })
    }

    /// A connection with a place for one more call.
    async fn link(&self) -> Result<Arc<Link>, ClientError> {
        let usable = {
            let mut links = locked(&self.links);
            links.retain(|link| link.strong_count() > 0);
            links
                .iter()
                .filter_map(Weak::upgrade)
                .find(|link| link.has_room())
        };
        if let Some(link) = usable {
            return Ok(link);
        }
        let socket = self.socket.clone();
        // Saying hello waits, though not for long.
        let connected = tokio::task::spawn_blocking(move || Connection::connect(&socket, PROGRAM));
        let connection = connected
            .await
            .map_err(|error| ClientError::Io(io::Error::other(error)))??;
        let (socket, hello) = connection.into_socket();
        socket.set_nonblocking(true)?;
        let (reader, writer) = UnixStream::from_std(socket)?.into_split();
        let link = Arc::new(Link {
            hello,
            writer: tokio::sync::Mutex::new(writer),
            calls: Mutex::new(Calls {
                next: 1,
                ..Calls::default()
            }),
        });
        tokio::spawn(read_frames(reader, Arc::downgrade(&link)));
        locked(&self.links).push(Arc::downgrade(&link));
        Ok(link)
    }
}

impl Link {
    fn has_room(&self) -> bool {
        let calls = locked(&self.calls);
        !calls.over && calls.open.len() < CLIENT_STREAMS_MAX
    }

    fn place(&self) -> Option<(u32, Arc<Shared>, mpsc::UnboundedReceiver<Incoming>)> {
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
        let shared = Arc::new(Shared {
            gates: Mutex::default(),
            granted: Notify::new(),
            incoming: Mutex::new(Some(incoming)),
        });
        calls.open.insert(stream, Arc::clone(&shared));
        Some((stream, shared, receiver))
    }

    /// The call of a stream. One whose owner has gone still has its place, until its last event.
    fn call(&self, stream: u32) -> io::Result<Arc<Shared>> {
        let calls = locked(&self.calls);
        let call = calls.open.get(&stream).map(Arc::clone);
        call.ok_or_else(|| invalid("a frame of a stream that is not open"))
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

impl Shared {
    /// Nothing can be sent any more, and nothing comes.
    fn end(&self) {
        locked(&self.gates).over = true;
        self.granted.notify_one();
        locked(&self.incoming).take();
    }

    /// Gives the owner what came. Whose owner has gone is told nothing.
    fn deliver(&self, incoming: Incoming) {
        if let Some(queue) = locked(&self.incoming).as_ref() {
            let _ = queue.send(incoming);
        }
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Reads frames until the connection ends or nobody needs it any more.
async fn read_frames(mut reader: OwnedReadHalf, link: Weak<Link>) {
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

fn take_frames(link: &Link, decoder: &mut Decoder, messages: &mut Assembler) -> io::Result<()> {
    while let Some(frame) = decoder.next_frame()? {
        let header = frame.header;
        let call = link.call(header.stream)?;
        match header.kind {
            Kind::Credit => {
                let bytes = frame.credit().unwrap_or(0);
                if !locked(&call.gates).send[usize::from(header.channel)].grant(bytes) {
                    return Err(invalid("more credit than a window"));
                }
                call.granted.notify_one();
            }
            Kind::Data => take_data(&call, &header, frame.payload())?,
            Kind::Event => {
                let Some(message) = messages.push(&header, frame.payload())? else {
                    continue;
                };
                let last = header.ends();
                call.deliver(Incoming::Event { message, last });
                if last {
                    locked(&link.calls).open.remove(&header.stream);
                    messages.forget(header.stream);
                    call.end();
                }
            }
            Kind::Hello | Kind::Open | Kind::Control | Kind::Close => {
                return Err(invalid("a frame that only a client may send"));
            }
        }
    }
    Ok(())
}

fn take_data(call: &Shared, header: &Header, payload: &[u8]) -> io::Result<()> {
    let channel = usize::from(header.channel);
    {
        let outstanding = &mut locked(&call.gates).outstanding[channel];
        *outstanding = outstanding.saturating_add(header.length as u32);
        if *outstanding > WINDOW_BYTES {
            return Err(invalid("more data than there was credit for"));
        }
    }
    // Whose owner has gone gets no credit: it ends by its closing.
    call.deliver(Incoming::Data {
        channel: header.channel,
        bytes: payload.to_vec(),
        end: header.ends(),
    });
    Ok(())
}

impl Sender {
    async fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let mut writer = self.inner.link.writer.lock().await;
        writer.write_all(bytes).await
    }

    /// Sends data; waits while there is no credit. An error when the call is over. For one task a channel.
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
        let shared = &self.inner.shared;
        loop {
            {
                let mut gates = locked(&shared.gates);
                if gates.over {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                let credit = &mut gates.send[usize::from(channel)];
                let count = wanted.min(credit.available());
                if count > 0 && credit.spend(count) {
                    return Ok(count);
                }
            }
            shared.granted.notified().await;
        }
    }

    /// Says that no more data comes on a channel.
    pub(crate) async fn end(&self, channel: u8) -> io::Result<()> {
        let mut out = Vec::new();
        frame::put_frame(
            &mut out,
            self.inner.stream,
            Kind::Data,
            channel,
            flags::END,
            &[],
        );
        self.write(&out).await
    }

    /// Sends a message about the call.
    pub(crate) async fn control(&self, message: &impl Serialize) -> io::Result<()> {
        let json = serde_json::to_vec(message)?;
        let mut out = Vec::new();
        frame::put_message(&mut out, self.inner.stream, Kind::Control, 0, &json);
        self.write(&out).await
    }

    /// Says that received data was used up, so that more may come.
    pub(crate) async fn used(&self, channel: u8, bytes: usize) -> io::Result<()> {
        let index = usize::from(channel);
        let grant = {
            let mut gates = locked(&self.inner.shared.gates);
            if gates.over {
                return Ok(());
            }
            let grant = gates.receive[index].used(bytes);
            gates.outstanding[index] = gates.outstanding[index].saturating_sub(grant.unwrap_or(0));
            grant
        };
        let Some(grant) = grant else { return Ok(()) };
        let mut out = Vec::new();
        frame::put_credit(&mut out, self.inner.stream, channel, grant);
        self.write(&out).await
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if locked(&self.shared.gates).over {
            return;
        }
        let (link, stream) = (Arc::clone(&self.link), self.stream);
        // Without a runtime the process is ending, and its connections with it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let mut out = Vec::new();
                frame::put_frame(&mut out, stream, Kind::Close, 0, 0, &[]);
                // A connection that is broken has closed all of its calls.
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

    /// A supervisor that says hello and then does what it is told.
    fn supervisor(act: impl FnOnce(StdStream) + Send + 'static) -> (tempfile::TempDir, Guest) {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        std::thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            let hello = serde_json::to_vec(&Hello::of("test 1", &[operation::EXEC])).unwrap();
            let mut out = Vec::new();
            put_message(&mut out, 0, Kind::Hello, 0, &hello);
            client.write_all(&out).unwrap();
            act(client);
        });
        (folder, Guest::at(socket))
    }

    /// Keeps the connection until the client hangs up: one that went earlier would fail the client's calls.
    fn stay(mut client: StdStream) {
        let _ = std::io::copy(&mut client, &mut std::io::sink());
    }

    fn exec() -> Request {
        Request::Exec(ExecRequest::default())
    }

    /// Frames of the client, until one fits.
    fn wait_for(client: &mut StdStream, decoder: &mut Decoder, wanted: impl Fn(&Header) -> bool) {
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
    async fn two_calls_share_a_connection_and_hear_their_own() {
        let (_folder, guest) = supervisor(|mut client| {
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
                Some(Incoming::Data { bytes, .. }) => assert_eq!(bytes, expected),
                other => panic!("{other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn a_call_that_is_dropped_is_closed_and_others_go_on() {
        let (closed, was_closed) = tokio::sync::oneshot::channel();
        let (_folder, guest) = supervisor(move |mut client| {
            let mut decoder = Decoder::new();
            wait_for(&mut client, &mut decoder, |h| h.kind == Kind::Close);
            let _ = closed.send(());
            let mut out = Vec::new();
            put_credit(&mut out, 2, STDIN, 0);
            let end = serde_json::to_vec(&ExecEvent::StdinClosed).unwrap();
            put_message(&mut out, 1, Kind::Event, flags::END, &end);
            put_data(&mut out, 2, STDOUT, b"still here");
            client.write_all(&out).unwrap();
            stay(client);
        });
        let first = guest.open(&exec()).await.unwrap();
        let mut second = guest.open(&exec()).await.unwrap();
        drop(first);
        was_closed.await.unwrap();
        assert!(matches!(
            second.receiver.recv().await,
            Some(Incoming::Data { .. })
        ));
    }

    #[tokio::test]
    async fn the_end_of_the_connection_ends_who_waits_for_credit() {
        let (_folder, guest) = supervisor(|mut client| {
            let mut decoder = Decoder::new();
            let mut left = WINDOW_BYTES as usize;
            while left > 0 {
                while let Some(frame) = decoder.next_frame().unwrap() {
                    if frame.header.kind == Kind::Data {
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
    async fn an_operation_that_is_not_served_fails_alone() {
        let (_folder, guest) = supervisor(stay);
        let _first = guest.open(&exec()).await.unwrap();
        let error = guest.open(&Request::Ping).await.unwrap_err();
        assert!(matches!(error, ClientError::Unsupported(_)), "{error}");
        assert!(guest.open(&exec()).await.is_ok());
    }
}
