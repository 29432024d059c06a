//! A stream socket that carries frames and never makes the supervisor wait.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use msb_wire::frame::{Decoder, Frame, FrameError};

/// What a read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// Bytes; there may be frames in them.
    Some,
    /// Nothing for now.
    Nothing,
    /// The end: the other side has closed, or broke.
    Closed,
}

/// The socket, what came and is not looked at yet, and what is to go and did not fit yet.
#[derive(Debug)]
pub(crate) struct Link {
    socket: UnixStream,
    decoder: Decoder,
    out: Vec<u8>,
    out_start: usize,
}

impl Link {
    pub(crate) fn new(socket: UnixStream) -> io::Result<Link> {
        socket.set_nonblocking(true)?;
        Ok(Link {
            socket,
            decoder: Decoder::new(),
            out: Vec::new(),
            out_start: 0,
        })
    }

    /// Reads once.
    pub(crate) fn receive(&mut self) -> Received {
        match self.decoder.fill(&mut self.socket) {
            Ok(0) => Received::Closed,
            Ok(_) => Received::Some,
            Err(error) if is_momentary(&error) => Received::Nothing,
            Err(_) => Received::Closed,
        }
    }

    /// The next frame of what was read.
    pub(crate) fn next_frame(&mut self) -> Result<Option<Frame<'_>>, FrameError> {
        self.decoder.next_frame()
    }

    /// Appends to what is to go.
    pub(crate) fn queue(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// Bytes that are to go.
    pub(crate) fn queued(&self) -> usize {
        self.out.len() - self.out_start
    }

    /// Writes as much as fits now. An error when the other side is gone.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while self.out_start < self.out.len() {
            match self.socket.write(&self.out[self.out_start..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => self.out_start += count,
                Err(error) if is_momentary(&error) => break,
                Err(error) => return Err(error),
            }
        }
        self.shrink();
        Ok(())
    }

    /// Gives back what was written, without moving the rest about each time.
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

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn is_momentary(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}
