//! A non-blocking stream socket that carries frames.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use msb_wire::frame::{Decoder, Frame, FrameError};

/// The result of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadOutcome {
    /// Bytes were read; they may complete frames.
    Some,
    /// Nothing to read for now.
    Nothing,
    /// The peer has closed the connection, or it failed.
    Closed,
}

/// A socket with its unparsed input and its unwritten output.
#[derive(Debug)]
pub(crate) struct FrameSocket {
    socket: UnixStream,
    decoder: Decoder,
    out: Vec<u8>,
    out_start: usize,
}

impl FrameSocket {
    pub(crate) fn new(socket: UnixStream) -> io::Result<FrameSocket> {
        socket.set_nonblocking(true)?;
        Ok(FrameSocket { socket, decoder: Decoder::new(), out: Vec::new(), out_start: 0 })
    }

    /// Reads once.
    pub(crate) fn receive(&mut self) -> ReadOutcome {
        match self.decoder.fill(&mut self.socket) {
            Ok(0) => ReadOutcome::Closed,
            Ok(_) => ReadOutcome::Some,
            Err(error) if is_transient(&error) => ReadOutcome::Nothing,
            Err(_) => ReadOutcome::Closed,
        }
    }

    /// Returns the next frame of the input.
    pub(crate) fn next_frame(&mut self) -> Result<Option<Frame<'_>>, FrameError> {
        self.decoder.next_frame()
    }

    /// Returns the output buffer, for appending.
    pub(crate) fn queue(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// Returns the number of bytes that are not written yet.
    pub(crate) fn queued(&self) -> usize {
        self.out.len() - self.out_start
    }

    /// Writes as much as the socket takes. Returns an error when the peer is gone.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while self.out_start < self.out.len() {
            match self.socket.write(&self.out[self.out_start..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => self.out_start += count,
                Err(error) if is_transient(&error) => break,
                Err(error) => return Err(error),
            }
        }
        self.shrink();
        Ok(())
    }

    /// Discards written bytes, without moving the rest at each call.
    fn shrink(&mut self) {
        if self.out_start == self.out.len() {
            self.out.clear();
            self.out_start = 0;
            self.out.shrink_to(256 * 1024);
        } else if self.out_start > 256 * 1024 {
            self.out.drain(..self.out_start);
            self.out_start = 0;
        }
    }
}

impl AsFd for FrameSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
