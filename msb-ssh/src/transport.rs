//! Byte stream below a client's connection: a socket or a pair of pipes, with a way to cut it.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::net::{AddressFamily, getpeername, getsockname};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;

/// Any byte stream.
pub(crate) trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// Addresses of both ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConnectionAddresses {
    /// Address of the client.
    pub(crate) client: SocketAddr,
    /// Address of the server.
    pub(crate) server: SocketAddr,
}

/// Time since which writes to the peer have been blocked. The library sends no keepalive messages
/// while they are.
#[derive(Debug, Default)]
pub(crate) struct WriteStall(Mutex<Option<Instant>>);

impl WriteStall {
    fn set(&self, stalled: bool) {
        let mut since = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *since = stalled.then(|| since.unwrap_or_else(Instant::now));
    }

    /// Waits until writes have been blocked for `limit` or somewhat longer; waits forever without a
    /// limit.
    pub(crate) async fn wait(&self, limit: Option<Duration>) {
        let Some(limit) = limit else {
            return std::future::pending().await;
        };
        loop {
            let since = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let left = since.map_or(limit, |since| limit.saturating_sub(since.elapsed()));
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left).await;
        }
    }
}

/// A stream that ends when it is cut.
pub(crate) struct ClientTransport {
    stream: Box<dyn ByteStream>,
    stall: Arc<WriteStall>,
    cut: Option<oneshot::Receiver<()>>,
    is_cut: bool,
}

impl ClientTransport {
    /// Returns a transport over a stream. It ends when a message is sent on `cut`, but not when
    /// that sender is dropped.
    pub(crate) fn new(
        stream: Box<dyn ByteStream>,
        cut: oneshot::Receiver<()>,
        stall: &Arc<WriteStall>,
    ) -> ClientTransport {
        ClientTransport { stream, stall: Arc::clone(stall), cut: Some(cut), is_cut: false }
    }

    fn is_cut(&mut self, context: &mut Context<'_>) -> bool {
        if let Some(cut) = &mut self.cut
            && let Poll::Ready(sent) = Pin::new(cut).poll(context)
        {
            self.is_cut = sent.is_ok();
            self.cut = None;
        }
        self.is_cut
    }
}

impl AsyncRead for ClientTransport {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_cut(context) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for ClientTransport {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.is_cut(context) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.stall.set(written.is_pending());
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Returns standard input and output as one stream, and its addresses if it has any.
pub(crate) fn standard_streams()
-> anyhow::Result<(Box<dyn ByteStream>, Option<ConnectionAddresses>)> {
    let stdin = rustix::stdio::stdin().try_clone_to_owned().context("cannot use standard input")?;
    if let Ok(address) = getsockname(&stdin) {
        let client =
            getpeername(&stdin).ok().flatten().and_then(|peer| SocketAddr::try_from(peer).ok());
        let family = address.address_family();
        let server = SocketAddr::try_from(address).ok();
        let ends =
            client.zip(server).map(|(client, server)| ConnectionAddresses { client, server });
        return Ok((socket(stdin, family)?, ends));
    }
    let stdout =
        rustix::stdio::stdout().try_clone_to_owned().context("cannot use standard output")?;
    Ok((pipes(stdin, stdout), None))
}

/// Returns a stream over one socket: from inetd, or from a client that uses a socket for its
/// ProxyCommand.
fn socket(stdin: OwnedFd, family: AddressFamily) -> anyhow::Result<Box<dyn ByteStream>> {
    rustix::io::ioctl_fionbio(&stdin, true)?;
    if family == AddressFamily::UNIX {
        let socket = UnixStream::from_std(stdin.into())?;
        return Ok(Box::new(socket));
    }
    let socket = TcpStream::from_std(stdin.into())?;
    socket.set_nodelay(true)?;
    Ok(Box::new(socket))
}

/// Returns a stream over two pipes. Anything else (a file, a terminal) is read and written by
/// threads.
fn pipes(stdin: OwnedFd, stdout: OwnedFd) -> Box<dyn ByteStream> {
    let reader = pipe::Receiver::from_owned_fd(stdin);
    let writer = pipe::Sender::from_owned_fd(stdout);
    match (reader, writer) {
        (Ok(reader), Ok(writer)) => Box::new(tokio::io::join(reader, writer)),
        _ => Box::new(tokio::io::join(tokio::io::stdin(), tokio::io::stdout())),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_stalled_peer_is_detected_and_a_slow_one_is_not() {
        let (ours, mut theirs) = tokio::io::duplex(1);
        let (_cut, was_cut) = oneshot::channel();
        let stall = Arc::default();
        let mut transport = ClientTransport::new(Box::new(ours), was_cut, &stall);
        let writing = tokio::spawn(async move { transport.write_all(b"abc").await });
        let is_stalled = || stall.0.lock().unwrap().is_some();
        while !is_stalled() {
            tokio::task::yield_now().await;
        }
        stall.wait(Some(Duration::ZERO)).await;
        let before = *stall.0.lock().unwrap();
        theirs.read_u8().await.unwrap();
        while *stall.0.lock().unwrap() == before {
            tokio::task::yield_now().await;
        }
        theirs.read_u16().await.unwrap();
        writing.await.unwrap().unwrap();
        assert!(!is_stalled());
    }
}
