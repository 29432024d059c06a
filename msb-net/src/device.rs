//! The frame stream: each Ethernet frame follows its length (four bytes, big-endian) on a connected
//! stream socket.
//!
//! Many frames are read at once into one buffer and handled in place: TCP payload goes from there
//! to the host's socket. Small frames to the guest are gathered and written at the end of a turn.
//! TCP payload is written at once, from its ring, after the gathered frames. Back-pressure: when
//! the stream accepts no more, the rest of a partly written frame is kept, connections wait, and
//! small frames beyond [`TRANSMIT_BYTES_MAX`] are dropped.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, sendmsg, sockopt};

use crate::ip::ETHERNET_HEADER_BYTES;
use crate::limits::{FRAME_BYTES_MAX, RECEIVE_BYTES, SOCKET_BUFFER_BYTES, TRANSMIT_BYTES_MAX};

/// Size of the length before each frame.
pub(crate) const LENGTH_BYTES: usize = 4;

/// Result of reading the frame stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReceiveStatus {
    /// Bytes were read, and more may follow.
    More,
    /// Bytes were read, and no more are available now.
    Last,
    /// No bytes are available now.
    Empty,
    /// The peer closed the stream.
    Closed,
}

/// The receiving half of the frame stream.
pub(crate) struct FrameReceiver {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// Frames and bytes received from the guest.
    pub(crate) frames: u64,
    pub(crate) bytes: u64,
}

impl FrameReceiver {
    pub(crate) fn new() -> FrameReceiver {
        FrameReceiver {
            buffer: vec![0; RECEIVE_BYTES].into_boxed_slice(),
            start: 0,
            end: 0,
            frames: 0,
            bytes: 0,
        }
    }

    /// Reads once. All frames returned before must have been handled.
    pub(crate) fn fill(&mut self, socket: BorrowedFd<'_>) -> io::Result<ReceiveStatus> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.buffer.len() - self.start < LENGTH_BYTES + FRAME_BYTES_MAX {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        match recv(socket, &mut self.buffer[self.end..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => Ok(ReceiveStatus::Closed),
            Ok((count, _)) => {
                let last = count < self.buffer.len() - self.end;
                self.end += count;
                Ok(if last { ReceiveStatus::Last } else { ReceiveStatus::More })
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(ReceiveStatus::Empty),
            Err(rustix::io::Errno::CONNRESET) => Ok(ReceiveStatus::Closed),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns the range of the next complete frame in the buffer. An oversized length is an error
    /// that breaks the stream.
    pub(crate) fn next_frame(&mut self) -> io::Result<Option<Range<usize>>> {
        let Some(length) = self.buffer[self.start..self.end].first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*length) as usize;
        if length > FRAME_BYTES_MAX {
            let message = format!("invalid frame length: {length} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        let start = self.start + LENGTH_BYTES;
        if self.end < start + length {
            return Ok(None);
        }
        self.start = start + length;
        self.frames += 1;
        self.bytes += length as u64;
        Ok(Some(start..start + length))
    }

    /// Returns the whole buffer, in which frames stay valid until the next [`FrameReceiver::fill`].
    pub(crate) fn buffer(&self) -> &[u8] {
        &self.buffer
    }

    /// Returns the bytes of a range in the buffer.
    pub(crate) fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.buffer[range]
    }
}

/// The sending half of the frame stream.
pub(crate) struct FrameTransmitter {
    socket: OwnedFd,
    queue: Vec<u8>,
    written: usize,
    /// The stream accepted less than it was given and has not become writable since.
    blocked: bool,
    /// Number of small frames dropped for lack of space.
    pub(crate) dropped: u64,
    /// Frames and bytes sent to the guest.
    pub(crate) frames: u64,
    pub(crate) bytes: u64,
}

impl FrameTransmitter {
    /// Creates the sending half on a non-blocking socket.
    pub(crate) fn new(socket: OwnedFd) -> FrameTransmitter {
        // A smaller buffer is only slower.
        let _ = sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER_BYTES);
        let _ = sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER_BYTES);
        FrameTransmitter {
            socket,
            queue: Vec::new(),
            written: 0,
            blocked: false,
            dropped: 0,
            frames: 0,
            bytes: 0,
        }
    }

    /// Returns the socket.
    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Returns whether the stream accepts no bytes now (back-pressure).
    pub(crate) fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Queues a small frame, which `write` appends to the buffer.
    pub(crate) fn push_frame(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        if self.queue.len() - self.written > TRANSMIT_BYTES_MAX {
            self.dropped += 1;
            return;
        }
        let start = self.queue.len();
        self.queue.extend_from_slice(&[0; LENGTH_BYTES]);
        write(&mut self.queue);
        let length = self.queue.len() - start - LENGTH_BYTES;
        debug_assert!((ETHERNET_HEADER_BYTES..=FRAME_BYTES_MAX).contains(&length));
        self.queue[start..start + LENGTH_BYTES].copy_from_slice(&(length as u32).to_be_bytes());
        self.frames += 1;
        self.bytes += length as u64;
    }

    /// Writes queued frames. An error breaks the stream.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while self.written < self.queue.len() && !self.blocked {
            let parts = [IoSlice::new(&self.queue[self.written..])];
            let (count, blocked) = send(self.socket.as_fd(), &parts)?;
            self.written += count;
            self.blocked = blocked;
        }
        if self.written == self.queue.len() {
            self.queue.clear();
            self.written = 0;
        } else if self.written > TRANSMIT_BYTES_MAX {
            self.queue.drain(..self.written);
            self.written = 0;
        }
        Ok(())
    }

    /// Notes that the stream is writable again.
    pub(crate) fn set_writable(&mut self) {
        self.blocked = false;
    }

    /// Writes complete frames with their lengths: `parts` hold them one after the other, `sizes`
    /// the size of each. Returns how many were accepted; a partly written frame counts as accepted,
    /// and its rest is queued.
    pub(crate) fn write_frames(
        &mut self,
        parts: &[IoSlice<'_>],
        sizes: &[usize],
    ) -> io::Result<usize> {
        self.flush()?;
        if self.blocked {
            return Ok(0);
        }
        let (mut count, blocked) = send(self.socket.as_fd(), parts)?;
        self.blocked = blocked;
        let mut taken = 0;
        let mut start = 0;
        for size in sizes {
            if count == 0 {
                break;
            }
            taken += 1;
            self.bytes += (*size - LENGTH_BYTES) as u64;
            if count < *size {
                let rest = start + count..start + size;
                copy_range(&mut self.queue, parts, rest);
                // A stream that accepted a part accepts no more now.
                self.blocked = true;
                break;
            }
            count -= size;
            start += size;
        }
        self.frames += taken as u64;
        Ok(taken)
    }
}

/// Writes to the socket. Returns the number of bytes accepted, and whether the socket accepts no
/// more now.
fn send(socket: BorrowedFd<'_>, parts: &[IoSlice<'_>]) -> io::Result<(usize, bool)> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    match sendmsg(socket, parts, &mut SendAncillaryBuffer::default(), flags) {
        Ok(count) => Ok((count, false)),
        Err(rustix::io::Errno::AGAIN) => Ok((0, true)),
        Err(rustix::io::Errno::INTR) => Ok((0, false)),
        Err(error) => Err(error.into()),
    }
}

/// Copies a range of the concatenated parts.
fn copy_range(out: &mut Vec<u8>, parts: &[IoSlice<'_>], range: Range<usize>) {
    let mut at = 0;
    for part in parts {
        let start = range.start.clamp(at, at + part.len()) - at;
        let end = range.end.clamp(at, at + part.len()) - at;
        out.extend_from_slice(&part[start..end]);
        at += part.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn frames_are_found_across_any_read_boundaries() {
        let (mut theirs, ours) = UnixStream::pair().unwrap();
        let mut stream = Vec::new();
        for length in [14usize, 60, 1514, 65534] {
            stream.extend_from_slice(&(length as u32).to_be_bytes());
            stream.extend(std::iter::repeat_n(length as u8, length));
        }
        let mut receiver = FrameReceiver::new();
        let mut found = Vec::new();
        for round in 0..20 {
            for part in stream.chunks(7 + round * 911) {
                theirs.write_all(part).unwrap();
                assert_eq!(receiver.fill(ours.as_fd()).unwrap(), ReceiveStatus::Last);
                while let Some(range) = receiver.next_frame().unwrap() {
                    found.push(receiver.bytes(range).to_vec());
                }
            }
        }
        assert_eq!(found.len(), 80);
        assert!(found.iter().all(|frame| frame.iter().all(|byte| *byte == frame.len() as u8)));
        assert_eq!(receiver.fill(ours.as_fd()).unwrap(), ReceiveStatus::Empty);
    }

    #[test]
    fn an_invalid_length_breaks_the_stream() {
        let (mut theirs, ours) = UnixStream::pair().unwrap();
        theirs.write_all(&[0xff; 4]).unwrap();
        let mut receiver = FrameReceiver::new();
        receiver.fill(ours.as_fd()).unwrap();
        assert!(receiver.next_frame().is_err());
    }

    #[test]
    fn a_partly_written_frame_is_completed() {
        let (mut theirs, ours) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let mut transmitter = FrameTransmitter::new(ours.into());
        let frame =
            [(LENGTH_BYTES as u8)..255u8; 1].map(|range| range.collect::<Vec<u8>>()).concat();
        let mut sent: usize = 0;
        while !transmitter.is_blocked() {
            let length = (frame.len() as u32).to_be_bytes();
            let parts = [IoSlice::new(&length), IoSlice::new(&frame)];
            sent += transmitter.write_frames(&parts, &[LENGTH_BYTES + frame.len()]).unwrap();
        }
        let mut received = Vec::new();
        loop {
            let mut buffer = [0; 65536];
            match theirs.read(&mut buffer) {
                Ok(count) => received.extend_from_slice(&buffer[..count]),
                Err(_) if transmitter.queue.is_empty() => break,
                Err(_) => {
                    transmitter.set_writable();
                    transmitter.flush().unwrap();
                }
            }
        }
        assert_eq!(received.len(), sent * (LENGTH_BYTES + frame.len()));
        assert!(
            received.chunks(LENGTH_BYTES + frame.len()).all(|part| part[LENGTH_BYTES..] == frame)
        );
    }

    #[test]
    fn small_frames_beyond_the_limit_are_dropped() {
        let (_theirs, ours) = UnixStream::pair().unwrap();
        let mut transmitter = FrameTransmitter::new(ours.into());
        while transmitter.dropped == 0 {
            transmitter.push_frame(|out| out.extend_from_slice(&[0; 60]));
        }
        assert!(transmitter.queue.len() < TRANSMIT_BYTES_MAX + FRAME_BYTES_MAX);
    }
}
