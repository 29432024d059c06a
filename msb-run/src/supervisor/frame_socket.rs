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
    /// Number of bytes that may still be written, while the rest of the output is held back.
    limit: Option<usize>,
}

impl FrameSocket {
    pub(crate) fn new(socket: UnixStream) -> io::Result<FrameSocket> {
        socket.set_nonblocking(true)?;
        Ok(FrameSocket {
            socket,
            decoder: Decoder::new(),
            out: Vec::new(),
            out_start: 0,
            limit: None,
        })
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

    /// Holds all output back that is queued from now on.
    pub(crate) fn hold(&mut self) {
        self.limit = Some(self.queued());
    }

    /// Writes all output again.
    pub(crate) fn release(&mut self) {
        self.limit = None;
    }

    /// Returns the number of bytes that may be written now.
    pub(crate) fn writable(&self) -> usize {
        self.limit.map_or(self.queued(), |limit| limit.min(self.queued()))
    }

    /// Writes as much as the socket takes. Returns an error when the peer is gone.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while self.writable() > 0 {
            let end = self.out_start + self.writable();
            match self.socket.write(&self.out[self.out_start..end]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.out_start += count;
                    self.limit = self.limit.map(|limit| limit - count);
                }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn output_that_is_queued_after_a_hold_is_written_after_the_release() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut socket = FrameSocket::new(ours).unwrap();
        socket.queue().extend_from_slice(b"before");
        socket.hold();
        socket.queue().extend_from_slice(b"after");
        assert_eq!(socket.writable(), 6);
        socket.flush().unwrap();
        assert_eq!((socket.writable(), socket.queued()), (0, 5));
        let mut read = [0; 32];
        assert_eq!(theirs.read(&mut read).unwrap(), 6);
        socket.release();
        socket.flush().unwrap();
        assert_eq!(theirs.read(&mut read).unwrap(), 5);
        assert_eq!(&read[..5], b"after");
    }
}
