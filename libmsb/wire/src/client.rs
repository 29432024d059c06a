//! The host's side of a call, over a Unix socket; blocking, without a runtime.
//!
//! A [`Connection`] is made and says hello; [`Connection::open`] turns it into one [`Call`]. The call has a reader, for
//! one thread, and a [`Sender`], which any number of threads may share: sending data waits until the other side
//! has granted credit for it, so a slow command never fills memory.

use std::fmt;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;

use crate::credit::{ReceiveCredit, SendCredit};
use crate::frame::{self, Assembler, CHANNELS, Decoder, Kind, flags};
use crate::handshake::{Hello, UnsupportedOperation, VersionMismatch};
use crate::limits::{DATA_BYTES, HELLO_TIMEOUT_MS, WINDOW_BYTES};
use crate::samples::SamplesRequest;
use crate::sandbox::Request;

/// The stream of a connection's one call.
const STREAM: u32 = 1;

/// `sun_path` of unix(7) has 108 bytes, its end included.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Why a call could not be made.
#[derive(Debug)]
pub enum ClientError {
    /// The socket is not there or nobody serves it.
    Connect(io::Error),
    /// The connection broke.
    Io(io::Error),
    /// The peer did not say hello as it should.
    Hello(String),
    /// The peer is there and says nothing.
    Silent,
    /// No common version.
    Version(VersionMismatch),
    /// The peer does not serve this operation.
    Unsupported(UnsupportedOperation),
}

impl ClientError {
    /// Whether nobody is there, or any more. What a peer said and cannot be read is another matter.
    pub fn is_gone(&self) -> bool {
        match self {
            // Somebody else is there, in the place of the supervisor.
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
                write!(f, "the sandbox's supervisor did not say hello: {reason}")
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

/// A connection to a supervisor, after hello.
#[derive(Debug)]
pub struct Connection {
    socket: UnixStream,
    decoder: Decoder,
    peer: Hello,
}

impl Connection {
    /// Connects to a sandbox's socket. `program` is what we call ourselves.
    pub fn connect(socket: &Path, program: &str) -> Result<Connection, ClientError> {
        Connection::over(reach(socket).map_err(ClientError::Connect)?, program)
    }

    /// Whether somebody listens at a socket. Whoever does sees a client that goes at once.
    pub fn is_served(socket: &Path) -> bool {
        let nobody = [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused];
        !reach(socket).is_err_and(|error| nobody.contains(&error.kind()))
    }

    /// Says hello over a connected socket.
    pub fn over(mut socket: UnixStream, program: &str) -> Result<Connection, ClientError> {
        let hello = serde_json::to_vec(&Hello::of(program, &[])).map_err(io::Error::from)?;
        let mut out = Vec::new();
        frame::put_message(&mut out, frame::CONNECTION, Kind::Hello, 0, &hello);
        socket.write_all(&out)?;
        socket.set_read_timeout(Some(Duration::from_millis(HELLO_TIMEOUT_MS)))?;
        let mut decoder = Decoder::new();
        let peer = read_hello(&mut socket, &mut decoder)?;
        socket.set_read_timeout(None)?;
        peer.agree().map_err(ClientError::Version)?;
        Ok(Connection {
            socket,
            decoder,
            peer,
        })
    }

    /// What the peer said of itself.
    pub fn peer(&self) -> &Hello {
        &self.peer
    }

    /// The socket: whose process serves it can be asked of it.
    pub fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// The socket and what the peer said of itself, for a program that has several calls on one connection and reads the
    /// frames itself. Nothing was read beyond the peer's hello: it says nothing more before it is asked.
    pub fn into_socket(self) -> (UnixStream, Hello) {
        (self.socket, self.peer)
    }

    /// Opens the connection's call.
    pub fn open(self, request: &Request) -> Result<Call, ClientError> {
        for operation in request.needs() {
            self.peer
                .require(operation)
                .map_err(ClientError::Unsupported)?;
        }
        let message = serde_json::to_vec(request).map_err(io::Error::from)?;
        let mut out = Vec::new();
        frame::put_message(&mut out, STREAM, Kind::Open, 0, &message);
        let mut socket = self.socket;
        socket.write_all(&out)?;
        let shared = Arc::new(Shared {
            socket: Mutex::new(socket.try_clone()?),
            hang_up: socket.try_clone()?,
            gates: Mutex::new(Gates::default()),
            opened: Condvar::new(),
        });
        let reader = Reader {
            socket,
            decoder: self.decoder,
            assembler: Assembler::new(),
            shared: Arc::clone(&shared),
        };
        Ok(Call {
            reader,
            sender: Sender { shared },
        })
    }
}

/// Has samples taken at an interval for as long as the socket is open: it is not read, nothing more is written to it, and
/// no answer is waited for; see [`crate::samples`]. A supervisor that does not know the request refuses it, and no more.
pub fn subscribe(
    socket: &Path,
    program: &str,
    request: SamplesRequest,
) -> Result<UnixStream, ClientError> {
    let mut socket = reach(socket).map_err(ClientError::Connect)?;
    let hello = serde_json::to_vec(&Hello::of(program, &[])).map_err(io::Error::from)?;
    let request = serde_json::to_vec(&Request::Samples(request)).map_err(io::Error::from)?;
    let mut out = Vec::new();
    frame::put_message(&mut out, frame::CONNECTION, Kind::Hello, 0, &hello);
    frame::put_message(&mut out, STREAM, Kind::Open, 0, &request);
    socket.write_all(&out)?;
    Ok(socket)
}

/// A socket that is connected, before any hello. Its path may be longer than an address takes: then it goes through the
/// folder's descriptor.
///
/// Who listens must be this user or root: another one could have taken the place of the sandbox.
pub fn reach(path: &Path) -> io::Result<UnixStream> {
    let socket = connect(path)?;
    check_peer(&socket)?;
    Ok(socket)
}

/// Checks that the process at the other end of a Unix socket is of this user or root.
pub fn check_peer(socket: &UnixStream) -> io::Result<()> {
    let uid = rustix::net::sockopt::socket_peercred(socket)?.uid;
    if uid.is_root() || uid == rustix::process::geteuid() {
        return Ok(());
    }
    let message = format!(
        "the other end belongs to another user (uid {})",
        uid.as_raw()
    );
    Err(io::Error::new(io::ErrorKind::PermissionDenied, message))
}

fn connect(path: &Path) -> io::Result<UnixStream> {
    if path.as_os_str().len() <= SOCKET_PATH_BYTES_MAX {
        return UnixStream::connect(path);
    }
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let folder = std::fs::File::open(folder)?;
    UnixStream::connect(Path::new(&format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name))
}

fn read_hello(socket: &mut UnixStream, decoder: &mut Decoder) -> Result<Hello, ClientError> {
    let mut assembler = Assembler::new();
    loop {
        while let Some(frame) = decoder.next_frame().map_err(io::Error::from)? {
            if frame.header.kind != Kind::Hello {
                return Err(ClientError::Hello(
                    "it said something else first".to_owned(),
                ));
            }
            if let Some(message) = assembler
                .push(&frame.header, frame.payload())
                .map_err(io::Error::from)?
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
pub struct Call {
    /// What the other side says. For one thread.
    pub reader: Reader,
    /// What we say. For any number of threads.
    pub sender: Sender,
}

#[derive(Debug, Default)]
struct Gates {
    send: [SendCredit; CHANNELS],
    receive: [ReceiveCredit; CHANNELS],
    /// Bytes that came and were not granted back yet.
    outstanding: [u32; CHANNELS],
    closed: bool,
}

#[derive(Debug)]
struct Shared {
    socket: Mutex<UnixStream>,
    /// The same socket, to break the connection off while somebody waits to write.
    hang_up: UnixStream,
    gates: Mutex<Gates>,
    opened: Condvar,
}

impl Shared {
    fn gates(&self) -> MutexGuard<'_, Gates> {
        self.gates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        self.socket
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write_all(bytes)
    }
}

/// The writing half of a call.
#[derive(Clone, Debug)]
pub struct Sender {
    shared: Arc<Shared>,
}

impl Sender {
    /// Sends data; waits while there is no credit. An error when the call is over.
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
        let waiting = |gates: &mut Gates| !gates.closed && gates.send[index].available() == 0;
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

    /// Says that no more data comes on a channel.
    pub fn end(&self, channel: u8) -> io::Result<()> {
        let mut out = Vec::new();
        frame::put_frame(&mut out, STREAM, Kind::Data, channel, flags::END, &[]);
        self.shared.send(&out)
    }

    /// Sends a message about the call.
    pub fn control(&self, message: &impl Serialize) -> io::Result<()> {
        let mut out = Vec::new();
        frame::put_message(
            &mut out,
            STREAM,
            Kind::Control,
            0,
            &serde_json::to_vec(message)?,
        );
        self.shared.send(&out)
    }

    /// Says that received data was used up, so that more may come.
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

    /// Breaks the connection off: the reader sees its end.
    pub fn hang_up(&self) {
        // Should it be broken already, that is as good.
        let _ = self.shared.hang_up.shutdown(std::net::Shutdown::Both);
    }

    /// Says that we have lost interest. The last event still comes.
    pub fn close(&self) -> io::Result<()> {
        let mut out = Vec::new();
        frame::put_frame(&mut out, STREAM, Kind::Close, 0, 0, &[]);
        self.shared.send(&out)
    }
}

/// What came from the other side.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming {
    /// Bytes of a channel. Give them back with [`Sender::used`] when they are used up.
    Data {
        /// The channel.
        channel: u8,
        /// The bytes; may be empty at the end.
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

/// The reading half of a call.
#[derive(Debug)]
pub struct Reader {
    socket: UnixStream,
    decoder: Decoder,
    assembler: Assembler,
    shared: Arc<Shared>,
}

impl Reader {
    /// Waits for what comes next. `None` when the other side has closed the connection.
    pub fn receive(&mut self) -> io::Result<Option<Incoming>> {
        self.receive_after(|_| ())
    }

    /// [`Reader::receive`], with `wait` before each read of the socket, which blocks until there is something: for whoever
    /// has to wait for something else as well.
    pub fn receive_after(
        &mut self,
        mut wait: impl FnMut(BorrowedFd<'_>),
    ) -> io::Result<Option<Incoming>> {
        loop {
            while let Some(frame) = self.decoder.next_frame()? {
                let (header, credit) = (frame.header, frame.credit());
                if header.stream != STREAM {
                    return Err(invalid("a frame of a stream that was never opened"));
                }
                match header.kind {
                    Kind::Credit => self.shared.grant(header.channel, credit.unwrap_or(0))?,
                    Kind::Data => {
                        let bytes = frame.payload().to_vec();
                        self.shared.receive(header.channel, bytes.len())?;
                        return Ok(Some(Incoming::Data {
                            channel: header.channel,
                            bytes,
                            end: header.ends(),
                        }));
                    }
                    Kind::Event => {
                        if let Some(message) = self.assembler.push(&header, frame.payload())? {
                            return Ok(Some(Incoming::Event {
                                message,
                                last: header.ends(),
                            }));
                        }
                    }
                    Kind::Hello | Kind::Open | Kind::Control | Kind::Close => {
                        return Err(invalid("a frame that only a client may send"));
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

impl Drop for Reader {
    fn drop(&mut self) {
        // Nobody takes grants any more: whoever waits for one must learn that none will come.
        self.shared.gates().closed = true;
        self.shared.opened.notify_all();
    }
}

impl Shared {
    fn grant(&self, channel: u8, bytes: u32) -> io::Result<()> {
        let mut gates = self.gates();
        if !gates.send[usize::from(channel)].grant(bytes) {
            return Err(invalid("more credit than a window"));
        }
        drop(gates);
        self.opened.notify_all();
        Ok(())
    }

    fn receive(&self, channel: u8, bytes: usize) -> io::Result<()> {
        let outstanding = &mut self.gates().outstanding[usize::from(channel)];
        *outstanding = outstanding.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        if *outstanding > WINDOW_BYTES {
            Err(invalid("more data than there was credit for"))
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

    /// A peer that says hello and then does what it is told.
    fn peer(
        operations: &'static [&'static str],
        act: impl FnOnce(&mut UnixStream) + Send + 'static,
    ) -> UnixStream {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        std::thread::spawn(move || {
            let mut out = Vec::new();
            let hello = serde_json::to_vec(&Hello::of("peer 1", operations)).unwrap();
            frame::put_message(&mut out, 0, Kind::Hello, 0, &hello);
            theirs.write_all(&out).unwrap();
            act(&mut theirs);
        });
        ours
    }

    fn exec() -> Request {
        Request::Exec(ExecRequest {
            argv: vec!["true".into()],
            ..ExecRequest::default()
        })
    }

    #[test]
    fn a_call_that_the_peer_does_not_know_fails_alone() {
        let connection = Connection::over(peer(&[operation::STOP], |_| {}), "test 1").unwrap();
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
        let call = Connection::over(socket, "test 1")
            .unwrap()
            .open(&exec())
            .unwrap();
        let sender = call.sender.clone();
        let writer = std::thread::spawn(move || {
            sender
                .data(STDIN, &vec![7; WINDOW_BYTES as usize + 100])
                .unwrap();
            sender.data(STDIN, b"no credit is left for this")
        });
        let mut reader = call.reader;
        reader
            .socket
            .set_read_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        assert!(reader.receive().is_err());
        drop(reader);
        assert_eq!(
            writer.join().unwrap().unwrap_err().kind(),
            io::ErrorKind::BrokenPipe
        );
    }

    #[test]
    fn a_peer_that_sends_more_than_it_may_is_refused() {
        let socket = peer(&[operation::EXEC], |socket| {
            let mut out = Vec::new();
            frame::put_data(
                &mut out,
                STREAM,
                STDOUT,
                &vec![0; WINDOW_BYTES as usize + 1],
            );
            let _ = socket.write_all(&out);
        });
        let mut call = Connection::over(socket, "test 1")
            .unwrap()
            .open(&exec())
            .unwrap();
        let error = std::iter::from_fn(|| Some(call.reader.receive()))
            .find_map(Result::err)
            .unwrap();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_peer_that_is_not_ours_is_told_apart() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs
            .write_all(b"SSH-2.0-OpenSSH_9.2p1 and more\r\n")
            .unwrap();
        assert!(Connection::over(ours, "test 1").is_err());
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert!(Connection::over(ours, "test 1").is_err());
    }
}
