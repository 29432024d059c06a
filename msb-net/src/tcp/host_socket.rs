//! The host's socket of a connection, and its readiness.
//!
//! The socket is registered for edges: readiness is remembered until a call says otherwise.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, Shutdown, sendmsg, shutdown, sockopt};

/// Events that the socket is registered for.
pub(super) const HOST_EVENTS: EventFlags =
    EventFlags::IN.union(EventFlags::OUT).union(EventFlags::RDHUP).union(EventFlags::ET);

/// The end of the peer's stream, as events announced it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum PeerEnd {
    /// No event announced an end.
    #[default]
    Open,
    /// The peer closed its stream; bytes may remain to be read.
    HungUp,
    /// The socket has a pending error.
    Failed,
}

/// The socket failed; the connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HostFailure;

/// Result of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HostRead {
    /// Bytes were read.
    Bytes(usize),
    /// The stream has ended.
    End,
    /// Nothing is available now.
    Nothing,
    /// The call was interrupted.
    Interrupted,
}

/// The host's socket.
#[derive(Debug)]
pub(super) struct HostSocket {
    socket: OwnedFd,
    readable: bool,
    writable: bool,
    peer_end: PeerEnd,
    bytes_read: u64,
    bytes_written: u64,
}

impl HostSocket {
    pub(super) fn new(socket: OwnedFd) -> HostSocket {
        HostSocket {
            socket,
            readable: false,
            writable: false,
            peer_end: PeerEnd::Open,
            bytes_read: 0,
            bytes_written: 0,
        }
    }

    /// Returns the descriptor.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Replaces the socket by another one, which is writable.
    pub(super) fn replace(&mut self, socket: OwnedFd) {
        *self = HostSocket { writable: true, ..HostSocket::new(socket) };
    }

    /// Returns the socket itself.
    pub(super) fn into_inner(self) -> OwnedFd {
        self.socket
    }

    /// Returns whether a read may give bytes or the end.
    pub(super) fn is_readable(&self) -> bool {
        self.readable
    }

    /// Returns whether a write may be accepted.
    pub(super) fn is_writable(&self) -> bool {
        self.writable
    }

    /// Returns the announced end of the peer's stream.
    pub(super) fn peer_end(&self) -> PeerEnd {
        self.peer_end
    }

    /// Returns the numbers of bytes from the guest and to it.
    pub(super) fn bytes_up_and_down(&self) -> (u64, u64) {
        (self.bytes_written, self.bytes_read)
    }

    /// Notes an event.
    pub(super) fn note_event(&mut self, flags: EventFlags) {
        let end = if flags.contains(EventFlags::ERR) {
            PeerEnd::Failed
        } else if flags.intersects(EventFlags::RDHUP | EventFlags::HUP) {
            PeerEnd::HungUp
        } else {
            PeerEnd::Open
        };
        self.writable |= flags.contains(EventFlags::OUT);
        self.readable |= flags.contains(EventFlags::IN) || end > PeerEnd::Open;
        self.peer_end = self.peer_end.max(end);
    }

    /// Completes connecting: returns the error if it failed.
    pub(super) fn finish_connect(&mut self) -> Result<(), Errno> {
        sockopt::socket_error(&self.socket)??;
        self.writable = true;
        Ok(())
    }

    /// Reads into the buffers, which hold `wanted` bytes.
    pub(super) fn read(
        &mut self,
        buffers: &mut [IoSliceMut<'_>],
        wanted: usize,
    ) -> Result<HostRead, HostFailure> {
        match rustix::io::readv(&self.socket, buffers) {
            Ok(0) => {
                self.readable = false;
                Ok(HostRead::End)
            }
            Ok(count) => {
                self.bytes_read += count as u64;
                // A short read means that no more is available, unless the peer has closed.
                self.readable = count == wanted || self.peer_end > PeerEnd::Open;
                Ok(HostRead::Bytes(count))
            }
            Err(Errno::AGAIN) => {
                self.readable = false;
                Ok(HostRead::Nothing)
            }
            Err(Errno::INTR) => Ok(HostRead::Interrupted),
            Err(_) => Err(HostFailure),
        }
    }

    /// Writes the buffers, which hold `wanted` bytes. Returns the number of bytes accepted.
    pub(super) fn write(
        &mut self,
        buffers: &[IoSlice<'_>],
        wanted: usize,
    ) -> Result<usize, HostFailure> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let none = &mut SendAncillaryBuffer::default();
        let count = loop {
            match sendmsg(&self.socket, buffers, none, flags) {
                Ok(count) => break count,
                Err(Errno::AGAIN) => break 0,
                Err(Errno::INTR) => {}
                Err(_) => return Err(HostFailure),
            }
        };
        self.bytes_written += count as u64;
        self.writable = count == wanted;
        Ok(count)
    }

    /// Shuts down the sending half.
    pub(super) fn shut_down_sending(&self) {
        // An error of the socket shows when it is read.
        let _ = shutdown(&self.socket, Shutdown::Write);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    fn pair() -> (HostSocket, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (HostSocket::new(ours.into()), theirs)
    }

    fn read(host: &mut HostSocket, wanted: usize) -> Result<HostRead, HostFailure> {
        let mut bytes = vec![0; wanted];
        host.read(&mut [IoSliceMut::new(&mut bytes)], wanted)
    }

    #[test]
    fn readiness_lasts_until_a_short_read_or_write() {
        let (mut host, mut theirs) = pair();
        host.note_event(EventFlags::IN | EventFlags::OUT);
        assert!(host.is_readable() && host.is_writable());
        theirs.write_all(b"abc").unwrap();
        assert_eq!(read(&mut host, 2), Ok(HostRead::Bytes(2)));
        assert!(host.is_readable());
        assert_eq!(read(&mut host, 2), Ok(HostRead::Bytes(1)));
        assert!(!host.is_readable());
        assert_eq!(read(&mut host, 2), Ok(HostRead::Nothing));
        let bytes = vec![7; 1 << 20];
        let count = host.write(&[IoSlice::new(&bytes)], bytes.len()).unwrap();
        assert!(count < bytes.len() && !host.is_writable());
        assert_eq!(host.write(&[IoSlice::new(&bytes)], bytes.len()), Ok(0));
        assert_eq!(host.bytes_up_and_down(), (count as u64, 3));
        theirs.read_exact(&mut vec![0; count]).unwrap();
    }

    #[test]
    fn after_a_hang_up_a_short_read_is_followed_by_another() {
        let (mut host, mut theirs) = pair();
        theirs.write_all(b"last").unwrap();
        drop(theirs);
        host.note_event(EventFlags::IN | EventFlags::RDHUP);
        assert_eq!(host.peer_end(), PeerEnd::HungUp);
        assert_eq!(read(&mut host, 100), Ok(HostRead::Bytes(4)));
        assert!(host.is_readable());
        assert_eq!(read(&mut host, 100), Ok(HostRead::End));
        assert!(!host.is_readable());
        assert_eq!(host.write(&[IoSlice::new(b"x")], 1), Err(HostFailure));
    }

    #[test]
    fn an_announced_end_is_not_taken_back() {
        let (mut host, _theirs) = pair();
        for (flags, end) in [
            (EventFlags::OUT, PeerEnd::Open),
            (EventFlags::HUP, PeerEnd::HungUp),
            (EventFlags::IN, PeerEnd::HungUp),
            (EventFlags::ERR, PeerEnd::Failed),
            (EventFlags::RDHUP, PeerEnd::Failed),
        ] {
            host.note_event(flags);
            assert_eq!(host.peer_end(), end);
        }
        assert!(host.is_readable());
    }

    #[test]
    fn a_shut_down_socket_ends_the_peers_stream_only() {
        let (mut host, mut theirs) = pair();
        host.shut_down_sending();
        assert_eq!(theirs.read(&mut [0; 8]).unwrap(), 0);
        theirs.write_all(b"more").unwrap();
        assert_eq!(read(&mut host, 8), Ok(HostRead::Bytes(4)));
    }
}
