//! The host's client: one call over a Unix socket, blocking, without an async runtime.
//!
//! A [`ClientConnection`] connects and performs the handshake; [`ClientConnection::open`] turns it
//! into one [`ClientCall`]. The call has a reader, for one thread, and a [`CallSender`], which any
//! number of threads can share. Sending is subject to flow control: it blocks until the other side
//! has granted credit, so a slow command never fills memory.

use std::fmt;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;

use crate::credit::{ReceiveCredit, SendCredit};
use crate::frame::{self, Assembler, CHANNELS, Decoder, FrameKind, flags};
use crate::handshake::{Hello, UnsupportedOperation, VersionMismatch};
use crate::limits::{DATA_BYTES, HELLO_TIMEOUT_MS, WINDOW_BYTES};
use crate::samples::SamplesRequest;
use crate::sandbox::Request;

/// Number of the one stream of a connection.
const STREAM: u32 = 1;

/// Longest path of a socket: `sun_path` of unix(7) has 108 bytes, the terminating NUL included.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// An error of opening a call.
#[derive(Debug)]
pub enum ClientError {
    /// The socket is missing, or no process listens on it.
    Connect(io::Error),
    /// The connection broke.
    Io(io::Error),
    /// The peer's hello is missing or invalid.
    Hello(String),
    /// The peer accepted the connection but sent no hello in time.
    Silent,
    /// There is no common version.
    Version(VersionMismatch),
    /// The peer does not serve the operation.
    Unsupported(UnsupportedOperation),
}

impl ClientError {
    /// Returns whether the peer is missing or has gone. Invalid data from a peer does not count.
    pub fn is_gone(&self) -> bool {
        match self {
            // An inner error means that another user's process listens there, not the supervisor.
            ClientError::Connect(error) => error.get_ref().is_none(),
            ClientError::Io(error) => error.kind() != io::ErrorKind::InvalidData,
            _ => false,
        }
    }
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClientError::Connect(_) => f.write_str("cannot reach the sandbox"),
            ClientError::Io(_) => f.write_str("the connection to the sandbox broke"),
            ClientError::Hello(reason) => {
                write!(f, "handshake with the sandbox's supervisor failed: {reason}")
            }
            ClientError::Silent => f.write_str("the sandbox's supervisor does not answer"),
            ClientError::Version(error) => error.fmt(f),
            ClientError::Unsupported(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ClientError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ClientError::Connect(error) | ClientError::Io(error) => Some(error),
            _ => None,
        }
    }
}

impl From<io::Error> for ClientError {
    fn from(error: io::Error) -> ClientError {
        ClientError::Io(error)
    }
}

/// A connection to a supervisor, after the handshake.
#[derive(Debug)]
pub struct ClientConnection {
    socket: UnixStream,
    decoder: Decoder,
    peer: Hello,
}

impl ClientConnection {
    /// Connects to a sandbox's socket. `program` is the name that this program sends in its hello.
    pub fn connect(socket: &Path, program: &str) -> Result<ClientConnection, ClientError> {
        ClientConnection::from_socket(
            connect_checked(socket).map_err(ClientError::Connect)?,
            program,
        )
    }

    /// Returns whether a process listens on a socket. The listener sees a client that disconnects
    /// at once.
    pub fn is_served(socket: &Path) -> bool {
        let absent = [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused];
        !connect_checked(socket).is_err_and(|error| absent.contains(&error.kind()))
    }

    /// Performs the handshake over a connected socket.
    pub fn from_socket(
        mut socket: UnixStream,
        program: &str,
    ) -> Result<ClientConnection, ClientError> {
        let hello = serde_json::to_vec(&Hello::of(program, &[])).map_err(io::Error::from)?;
        let mut out = Vec::new();
        frame::put_message(&mut out, frame::CONNECTION, FrameKind::Hello, 0, &hello);
        socket.write_all(&out)?;
        socket.set_read_timeout(Some(Duration::from_millis(HELLO_TIMEOUT_MS)))?;
        let mut decoder = Decoder::new();
        let peer = read_hello(&mut socket, &mut decoder)?;
        socket.set_read_timeout(None)?;
        peer.negotiate().map_err(ClientError::Version)?;
        Ok(ClientConnection { socket, decoder, peer })
    }

    /// Returns the peer's hello.
    pub fn peer(&self) -> &Hello {
        &self.peer
    }

    /// Returns the socket, for example to look up the process at its other end.
    pub fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// Returns the socket and the peer's hello, for a program that makes several calls on one
    /// connection and reads the frames itself. Nothing beyond the hello has been read: the peer
    /// sends nothing more before a request.
    pub fn into_socket(self) -> (UnixStream, Hello) {
        (self.socket, self.peer)
    }

    /// Opens the connection's call.
    pub fn open(self, request: &Request) -> Result<ClientCall, ClientError> {
        for operation in request.supervisor_operations() {
            self.peer.require(operation).map_err(ClientError::Unsupported)?;
        }
        let message = serde_json::to_vec(request).map_err(io::Error::from)?;
        let mut out = Vec::new();
        frame::put_message(&mut out, STREAM, FrameKind::Open, 0, &message);
        let mut socket = self.socket;
        socket.write_all(&out)?;
        let shared = Arc::new(CallState {
            socket: Mutex::new(socket.try_clone()?),
            hang_up: socket.try_clone()?,
            gates: Mutex::new(ChannelCredits::default()),
            opened: Condvar::new(),
        });
        let reader = CallReader {
            socket,
            decoder: self.decoder,
            assembler: Assembler::new(),
            shared: Arc::clone(&shared),
        };
        Ok(ClientCall { reader, sender: CallSender { shared } })
    }
}

/// Subscribes to samples at an interval for as long as the socket is open. The caller does not read
/// from the socket, writes nothing more to it and waits for no answer; see [`crate::samples`]. A
/// supervisor that does not know the request only refuses it.
pub fn subscribe(
    socket: &Path,
    program: &str,
    request: SamplesRequest,
) -> Result<UnixStream, ClientError> {
    let mut socket = connect_checked(socket).map_err(ClientError::Connect)?;
    let hello = serde_json::to_vec(&Hello::of(program, &[])).map_err(io::Error::from)?;
    let request = serde_json::to_vec(&Request::Samples(request)).map_err(io::Error::from)?;
    let mut out = Vec::new();
    frame::put_message(&mut out, frame::CONNECTION, FrameKind::Hello, 0, &hello);
    frame::put_message(&mut out, STREAM, FrameKind::Open, 0, &request);
    socket.write_all(&out)?;
    Ok(socket)
}

/// Connects a socket, before the handshake. A path that is too long for a socket address is opened
/// through a descriptor of its directory.
///
/// The listener must run as this user or root: another user's process could have taken the place of
/// the sandbox.
pub fn connect_checked(path: &Path) -> io::Result<UnixStream> {
    let socket = connect(path)?;
    check_peer(&socket)?;
    Ok(socket)
}

/// Checks that the process at the other end of a Unix socket runs as this user or root.
pub fn check_peer(socket: &UnixStream) -> io::Result<()> {
    let uid = rustix::net::sockopt::socket_peercred(socket)?.uid;
    if uid.is_root() || uid == rustix::process::geteuid() {
        return Ok(());
    }
    let message = format!("the other end belongs to another user (uid {})", uid.as_raw());
    Err(io::Error::new(io::ErrorKind::PermissionDenied, message))
}

fn connect(path: &Path) -> io::Result<UnixStream> {
    if path.as_os_str().len() <= SOCKET_PATH_BYTES_MAX {
        return UnixStream::connect(path);
    }
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let directory = std::fs::File::open(directory)?;
    UnixStream::connect(Path::new(&format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name))
}

fn read_hello(socket: &mut UnixStream, decoder: &mut Decoder) -> Result<Hello, ClientError> {
    let mut assembler = Assembler::new();
    loop {
        while let Some(frame) = decoder.next_frame().map_err(io::Error::from)? {
            if frame.header.kind != FrameKind::Hello {
                return Err(ClientError::Hello("unexpected frame before hello".to_owned()));
            }
            if let Some(message) =
                assembler.push(&frame.header, frame.payload()).map_err(io::Error::from)?
            {
                return serde_json::from_slice(&message)
                    .map_err(|error| ClientError::Hello(error.to_string()));
            }
        }
        match decoder.fill(socket) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(ClientError::Silent);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// An open call.
#[derive(Debug)]
pub struct ClientCall {
    /// The receiving half, for one thread.
    pub reader: CallReader,
    /// The sending half, for any number of threads.
    pub sender: CallSender,
}

#[derive(Debug, Default)]
struct ChannelCredits {
    send: [SendCredit; CHANNELS],
    receive: [ReceiveCredit; CHANNELS],
    /// Bytes received and not yet granted back, per channel.
    outstanding: [u32; CHANNELS],
    closed: bool,
}

#[derive(Debug)]
struct CallState {
    socket: Mutex<UnixStream>,
    /// A duplicate of the socket, to shut the connection down while another thread blocks in a
    /// write.
    hang_up: UnixStream,
    gates: Mutex<ChannelCredits>,
    opened: Condvar,
}

impl CallState {
    fn gates(&self) -> MutexGuard<'_, ChannelCredits> {
        self.gates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner).write_all(bytes)
    }
}

/// The sending half of a call.
#[derive(Clone, Debug)]
pub struct CallSender {
    shared: Arc<CallState>,
}

impl CallSender {
    /// Sends data on a channel. Blocks while there is no credit (flow control). Fails when the call
    /// is over.
    pub fn data(&self, channel: u8, mut bytes: &[u8]) -> io::Result<()> {
        let mut out = Vec::new();
        while !bytes.is_empty() {
            let count = self.wait_for_credit(channel, bytes.len().min(DATA_BYTES))?;
            let (now, later) = bytes.split_at(count);
            out.clear();
            frame::put_data(&mut out, STREAM, channel, now);
            self.shared.send(&out)?;
            bytes = later;
        }
        Ok(())
    }

    fn wait_for_credit(&self, channel: u8, wanted: usize) -> io::Result<usize> {
        let index = usize::from(channel);
        let waiting =
            |gates: &mut ChannelCredits| !gates.closed && gates.send[index].available() == 0;
        let mut gates = self
            .shared
            .opened
            .wait_while(self.shared.gates(), waiting)
            .unwrap_or_else(PoisonError::into_inner);
        if gates.closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let count = wanted.min(gates.send[index].available());
        if gates.send[index].spend(count) {
            Ok(count)
        } else {
            Err(io::ErrorKind::InvalidData.into())
        }
    }

    /// Sends the end of a channel.
    pub fn end(&self, channel: u8) -> io::Result<()> {
        let mut out = Vec::new();
        frame::put_frame(&mut out, STREAM, FrameKind::Data, channel, flags::END, &[]);
        self.shared.send(&out)
    }

    /// Sends a control message.
    pub fn control(&self, message: &impl Serialize) -> io::Result<()> {
        let mut out = Vec::new();
        frame::put_message(&mut out, STREAM, FrameKind::Control, 0, &serde_json::to_vec(message)?);
        self.shared.send(&out)
    }

    /// Records received bytes as consumed and grants credit for more.
    pub fn used(&self, channel: u8, bytes: usize) -> io::Result<()> {
        let index = usize::from(channel);
        let grant = {
            let mut gates = self.shared.gates();
            let grant = gates.receive[index].used(bytes);
            gates.outstanding[index] = gates.outstanding[index].saturating_sub(grant.unwrap_or(0));
            grant
        };
        let Some(bytes) = grant else { return Ok(()) };
        let mut out = Vec::new();
        frame::put_credit(&mut out, STREAM, channel, bytes);
        self.shared.send(&out)
    }

    /// Shuts the connection down: the reader sees end of file.
    pub fn hang_up(&self) {
        // An error means that it is shut down already.
        let _ = self.shared.hang_up.shutdown(std::net::Shutdown::Both);
    }

    /// Asks the peer to end the call. The last event still comes.
    pub fn close(&self) -> io::Result<()> {
        let mut out = Vec::new();
        frame::put_frame(&mut out, STREAM, FrameKind::Close, 0, 0, &[]);
        self.shared.send(&out)
    }
}

/// A message or data from the other side.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming {
    /// Bytes of a channel. Once consumed, return them with [`CallSender::used`].
    Data {
        /// The channel.
        channel: u8,
        /// The bytes; may be empty at the end of the channel.
        bytes: Vec<u8>,
        /// True if nothing follows on this channel.
        end: bool,
    },
    /// An event, in JSON.
    Event {
        /// The JSON text.
        message: Vec<u8>,
        /// True if the call is over.
        last: bool,
    },
}

/// The receiving half of a call.
#[derive(Debug)]
pub struct CallReader {
    socket: UnixStream,
    decoder: Decoder,
    assembler: Assembler,
    shared: Arc<CallState>,
}

impl CallReader {
    /// Waits for the next item. `None` when the other side has closed the connection.
    pub fn receive(&mut self) -> io::Result<Option<Incoming>> {
        self.receive_after(|_| ())
    }

    /// [`CallReader::receive`] with a call of `wait` before each read of the socket, which blocks
    /// until data is there. For callers that wait for another event as well.
    pub fn receive_after(
        &mut self,
        mut wait: impl FnMut(BorrowedFd<'_>),
    ) -> io::Result<Option<Incoming>> {
        loop {
            while let Some(frame) = self.decoder.next_frame()? {
                let (header, credit) = (frame.header, frame.credit());
                if header.stream != STREAM {
                    return Err(invalid("frame of a stream that was not opened"));
                }
                match header.kind {
                    FrameKind::Credit => self.shared.grant(header.channel, credit.unwrap_or(0))?,
                    FrameKind::Data => {
                        let bytes = frame.payload().to_vec();
                        self.shared.receive(header.channel, bytes.len())?;
                        return Ok(Some(Incoming::Data {
                            channel: header.channel,
                            bytes,
                            end: header.ends(),
                        }));
                    }
                    FrameKind::Event => {
                        if let Some(message) = self.assembler.push(&header, frame.payload())? {
                            return Ok(Some(Incoming::Event { message, last: header.ends() }));
                        }
                    }
                    FrameKind::Hello | FrameKind::Open | FrameKind::Control | FrameKind::Close => {
                        return Err(invalid("frame that only a client may send"));
                    }
                }
            }
            wait(self.socket.as_fd());
            if self.decoder.fill(&mut self.socket)? == 0 {
                return if self.decoder.is_mid_frame() {
                    Err(io::ErrorKind::UnexpectedEof.into())
                } else {
                    Ok(None)
                };
            }
        }
    }
}

impl Drop for CallReader {
    fn drop(&mut self) {
        // Grants are no longer processed, so a sender that waits for one must fail.
        self.shared.gates().closed = true;
        self.shared.opened.notify_all();
    }
}

impl CallState {
    fn grant(&self, channel: u8, bytes: u32) -> io::Result<()> {
        let mut gates = self.gates();
        if !gates.send[usize::from(channel)].grant(bytes) {
            return Err(invalid("credit exceeds the window"));
        }
        drop(gates);
        self.opened.notify_all();
        Ok(())
    }

    fn receive(&self, channel: u8, bytes: usize) -> io::Result<()> {
        let outstanding = &mut self.gates().outstanding[usize::from(channel)];
        *outstanding = outstanding.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        if *outstanding > WINDOW_BYTES {
            Err(invalid("data exceeds the granted credit"))
        } else {
            Ok(())
        }
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::ExecRequest;
    use crate::frame::{STDIN, STDOUT};
    use crate::handshake::operation;
    use std::io::Read;

    /// A peer that performs the handshake and then runs `act`.
    fn peer(
        operations: &'static [&'static str],
        act: impl FnOnce(&mut UnixStream) + Send + 'static,
    ) -> UnixStream {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        std::thread::spawn(move || {
            let mut out = Vec::new();
            let hello = serde_json::to_vec(&Hello::of("peer 1", operations)).unwrap();
            frame::put_message(&mut out, 0, FrameKind::Hello, 0, &hello);
            theirs.write_all(&out).unwrap();
            act(&mut theirs);
        });
        ours
    }

    fn exec() -> Request {
        Request::Exec(ExecRequest { argv: vec!["true".into()], ..ExecRequest::default() })
    }

    #[test]
    fn a_call_that_the_peer_does_not_know_fails_alone() {
        // The peer stays until it has the client's hello.
        let socket = peer(&[operation::STOP], |socket| drop(socket.read(&mut [0; 256])));
        let connection = ClientConnection::from_socket(socket, "test 1").unwrap();
        let error = connection.open(&exec()).unwrap_err();
        assert!(matches!(error, ClientError::Unsupported(_)), "{error}");
    }

    #[test]
    fn a_sender_without_credit_waits_for_it_and_learns_when_none_will_come() {
        let socket = peer(&[operation::EXEC], |socket| {
            let mut received = vec![0; WINDOW_BYTES as usize / 2];
            socket.read_exact(&mut received).unwrap();
            let mut out = Vec::new();
            frame::put_credit(&mut out, STREAM, STDIN, 100);
            socket.write_all(&out).unwrap();
            let mut rest = Vec::new();
            let _ = socket.read_to_end(&mut rest);
        });
        let call = ClientConnection::from_socket(socket, "test 1").unwrap().open(&exec()).unwrap();
        let sender = call.sender.clone();
        let writer = std::thread::spawn(move || {
            sender.data(STDIN, &vec![7; WINDOW_BYTES as usize + 100]).unwrap();
            sender.data(STDIN, b"no credit is left for this")
        });
        let mut reader = call.reader;
        reader.socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        assert!(reader.receive().is_err());
        drop(reader);
        assert_eq!(writer.join().unwrap().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_peer_that_sends_more_than_it_may_is_refused() {
        let socket = peer(&[operation::EXEC], |socket| {
            let mut out = Vec::new();
            frame::put_data(&mut out, STREAM, STDOUT, &vec![0; WINDOW_BYTES as usize + 1]);
            let _ = socket.write_all(&out);
        });
        let mut call =
            ClientConnection::from_socket(socket, "test 1").unwrap().open(&exec()).unwrap();
        let error =
            std::iter::from_fn(|| Some(call.reader.receive())).find_map(Result::err).unwrap();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_peer_that_is_not_ours_is_told_apart() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"SSH-2.0-OpenSSH_9.2p1 and more\r\n").unwrap();
        assert!(ClientConnection::from_socket(ours, "test 1").is_err());
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert!(ClientConnection::from_socket(ours, "test 1").is_err());
    }
}
