//! TCP connections to ports inside a sandbox.

use std::io::{self, Read, Write};
use std::time::Duration;

use msb_wire::client::{CallReader, CallSender, ClientCall, ClientConnection, Incoming};
use msb_wire::connect::{ConnectEvent, ConnectRequest};
use msb_wire::frame::{STDIN, STDOUT};
use msb_wire::sandbox::Request;

use super::error::Error;
use crate::cli::error::Code;

/// A TCP connection that the guest has made, so that `127.0.0.1` is the guest's own address and no
/// port needs to be published. The network policy of the sandbox applies.
///
/// ```no_run
/// # use std::io::{Read, Write};
/// # use std::time::Duration;
/// # use libmsb::sdk::Sandbox;
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let sandbox = Sandbox::get("worker")?;
/// let mut server = sandbox.connect_tcp("127.0.0.1", 8000, Duration::from_secs(10))?;
/// server.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
/// let mut answer = String::new();
/// server.read_to_string(&mut answer)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct GuestTcpStream {
    sender: CallSender,
    reader: CallReader,
    peer: String,
    bytes: Vec<u8>,
    taken: usize,
    ended: bool,
}

/// The writing half of a [`GuestTcpStream`], for another thread.
#[derive(Clone, Debug)]
pub struct GuestTcpWriter {
    sender: CallSender,
}

impl GuestTcpStream {
    pub(super) fn open(
        connection: ClientConnection,
        host: &str,
        port: u16,
        timeout: Duration,
    ) -> Result<GuestTcpStream, Error> {
        let timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        let request = ConnectRequest { host: host.to_owned(), port, timeout_ms };
        let ClientCall { mut reader, sender } = connection.open(&Request::Connect(request))?;
        let gone = || Error::new(Code::SandboxNotRunning, "the sandbox ended before the answer");
        let Some(Incoming::Event { message, .. }) = reader.receive()? else { return Err(gone()) };
        match serde_json::from_slice(&message) {
            Ok(ConnectEvent::Connected { peer }) => {
                let (bytes, taken, ended) = (Vec::new(), 0, false);
                Ok(GuestTcpStream { sender, reader, peer, bytes, taken, ended })
            }
            Ok(ConnectEvent::Failed { message, .. }) => Err(Error::new(Code::Failed, message)),
            _ => Err(Error::new(Code::Failed, "invalid answer of the guest")),
        }
    }

    /// Returns the address and port of the peer.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// Returns the writing half, for another thread.
    pub fn writer(&self) -> GuestTcpWriter {
        GuestTcpWriter { sender: self.sender.clone() }
    }
}

impl Read for GuestTcpStream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.taken == self.bytes.len() && !self.ended {
            match self.reader.receive()? {
                Some(Incoming::Data { channel: STDOUT, bytes, end }) => {
                    self.sender.used(STDOUT, bytes.len())?;
                    (self.bytes, self.taken) = (bytes, 0);
                    self.ended = end;
                }
                Some(Incoming::Data { .. }) => {}
                Some(Incoming::Event { message, .. }) => {
                    self.ended = true;
                    let event = serde_json::from_slice(&message).map_err(io::Error::from)?;
                    if let ConnectEvent::Ended { error: Some(error) } = event {
                        return Err(io::Error::new(io::ErrorKind::ConnectionReset, error));
                    }
                }
                None => return Err(io::ErrorKind::ConnectionAborted.into()),
            }
        }
        let rest = self.bytes.get(self.taken..).unwrap_or_default();
        let count = rest.len().min(into.len());
        for (to, from) in into.iter_mut().zip(rest) {
            *to = *from;
        }
        self.taken += count;
        Ok(count)
    }
}

impl Write for GuestTcpStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl GuestTcpWriter {
    /// Sends the end of the data. The other direction stays open.
    pub fn shutdown(&self) -> io::Result<()> {
        self.sender.end(STDIN)
    }
}

impl Write for GuestTcpWriter {
    /// Writes bytes. Blocks while the peer does not read.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.sender.data(STDIN, bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
