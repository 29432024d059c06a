//! The frame stream: each Ethernet frame after its length, four bytes, big-endian, on a connected stream socket.
//!
//! Frames are read many at a time into one buffer and handled where they lie: the bytes of TCP go from there to the host's
//! socket. Small frames to the guest are gathered and written at the end of a turn; the bytes of TCP are written at once,
//! from where they wait, behind what was gathered. When the stream takes no more, what is left of a frame that was begun
//! waits, connections wait, and small frames beyond [`TRANSMIT_BYTES_MAX`] are lost.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, sendmsg, sockopt};

use crate::ip::ETHERNET;
use crate::limits::{FRAME_BYTES_MAX, RECEIVE_BYTES, SOCKET_BUFFER_BYTES, TRANSMIT_BYTES_MAX};

/// Bytes of the length before each frame.
pub(crate) const LENGTH: usize = 4;

/// What came of reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// Frames may be there, and more may follow.
    Some,
    /// Frames may be there; they were all that there was.
    Last,
    /// Nothing, for now.
    Nothing,
    /// The other side is gone.
    Closed,
}

/// The reading side.
pub(crate) struct Receiver {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// Frames and bytes from the guest.
    pub(crate) frames: u64,
    pub(crate) bytes: u64,
}

impl Receiver {
    pub(crate) fn new() -> Receiver {
        Receiver {
            buffer: vec![0; RECEIVE_BYTES].into_boxed_slice(),
            start: 0,
            end: 0,
            frames: 0,
            bytes: 0,
        }
    }

    /// Reads once. Frames that were read before must have been handled.
    pub(crate) fn fill(&mut self, socket: BorrowedFd<'_>) -> io::Result<Received> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.buffer.len() - self.start < LENGTH + FRAME_BYTES_MAX {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        match recv(socket, &mut self.buffer[self.end..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => Ok(Received::Closed),
            Ok((count, _)) => {
                let last = count < self.buffer.len() - self.end;
                self.end += count;
                Ok(if last { Received::Last } else { Received::Some })
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(Received::Nothing),
            Err(rustix::io::Errno::CONNRESET) => Ok(Received::Closed),
            Err(error) => Err(error.into()),
        }
    }

    /// The place of the next whole frame in the buffer. An error: the stream is broken, since no frame is so long.
    pub(crate) fn next_frame(&mut self) -> io::Result<Option<Range<usize>>> {
        let Some(length) = self.buffer[self.start..self.end].first_chunk::<LENGTH>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*length) as usize;
        if length > FRAME_BYTES_MAX {
            let message = format!("a frame of {length} bytes: no frame is so long");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        let start = self.start + LENGTH;
        if self.end < start + length {
            return Ok(None);
        }
        self.start = start + length;
        self.frames += 1;
        self.bytes += length as u64;
        Ok(Some(start..start + length))
    }

    /// All of the buffer, where frames that were found lie until the next [`Receiver::fill`].
    pub(crate) fn all(&self) -> &[u8] {
        &self.buffer
    }

    /// Bytes at a place in the buffer.
    pub(crate) fn bytes(&self, place: Range<usize>) -> &[u8] {
        &self.buffer[place]
    }
}

/// The writing side.
pub(crate) struct Transmitter {
    socket: OwnedFd,
    waiting: Vec<u8>,
    written: usize,
    /// The stream took less than it was given, and has not said since that it takes more.
    blocked: bool,
    /// Small frames that found no room.
    pub(crate) lost: u64,
    /// Frames and bytes to the guest.
    pub(crate) frames: u64,
    pub(crate) bytes: u64,
}

impl Transmitter {
    /// Takes the socket, which must not block.
    pub(crate) fn new(socket: OwnedFd) -> Transmitter {
        // As much as the system allows; a smaller one is only slower.
        let _ = sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER_BYTES);
        let _ = sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER_BYTES);
        Transmitter {
            socket,
            waiting: Vec::new(),
            written: 0,
            blocked: false,
            lost: 0,
            frames: 0,
            bytes: 0,
        }
    }

    /// The socket.
    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether nothing can be written now.
    pub(crate) fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Takes a small frame, which `write` appends to what it is given.
    pub(crate) fn push(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        if self.waiting.len() - self.written > TRANSMIT_BYTES_MAX {
            self.lost += 1;
            return;
        }
        let start = self.waiting.len();
        self.waiting.extend_from_slice(&[0; LENGTH]);
        write(&mut self.waiting);
        let length = self.waiting.len() - start - LENGTH;
        debug_assert!((ETHERNET..=FRAME_BYTES_MAX).contains(&length));
        self.waiting[start..start + LENGTH].copy_from_slice(&(length as u32).to_be_bytes());
        self.frames += 1;
        self.bytes += length as u64;
    }

    /// Writes what waits. An error: the stream is broken.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while self.written < self.waiting.len() && !self.blocked {
            let parts = [IoSlice::new(&self.waiting[self.written..])];
            let (count, blocked) = send(self.socket.as_fd(), &parts)?;
            self.written += count;
            self.blocked = blocked;
        }
        if self.written == self.waiting.len() {
            self.waiting.clear();
            self.written = 0;
        } else if self.written > TRANSMIT_BYTES_MAX {
            self.waiting.drain(..self.written);
            self.written = 0;
        }
        Ok(())
    }

    /// The stream takes more.
    pub(crate) fn unblock(&mut self) {
        self.blocked = false;
    }

    /// Writes frames that stand ready with their lengths: `parts` hold them, one behind the other, and `sizes` says how
    /// long each is. Gives how many were taken; a frame that the stream took a part of is taken.
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
        let mut begun = 0;
        for size in sizes {
            if count == 0 {
                break;
            }
            taken += 1;
            self.bytes += (*size - LENGTH) as u64;
            if count < *size {
                let rest = begun + count..begun + size;
                keep(&mut self.waiting, parts, rest);
                // A stream that took a part will take no more now.
                self.blocked = true;
                break;
            }
            count -= size;
            begun += size;
        }
        self.frames += taken as u64;
        Ok(taken)
    }
}

/// Writes; gives the bytes that were taken, and whether the stream takes no more now.
fn send(socket: BorrowedFd<'_>, parts: &[IoSlice<'_>]) -> io::Result<(usize, bool)> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    match sendmsg(socket, parts, &mut SendAncillaryBuffer::default(), flags) {
        Ok(count) => Ok((count, false)),
        Err(rustix::io::Errno::AGAIN) => Ok((0, true)),
        Err(rustix::io::Errno::INTR) => Ok((0, false)),
        Err(error) => Err(error.into()),
    }
}

/// Copies a range of what the parts hold together.
fn keep(out: &mut Vec<u8>, parts: &[IoSlice<'_>], range: Range<usize>) {
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
    fn frames_are_found_however_they_are_cut() {
        let (mut theirs, ours) = UnixStream::pair().unwrap();
        let mut stream = Vec::new();
        for length in [14usize, 60, 1514, 65534] {
            stream.extend_from_slice(&(length as u32).to_be_bytes());
            stream.extend(std::iter::repeat_n(length as u8, length));
        }
        let mut receiver = Receiver::new();
        let mut found = Vec::new();
        for round in 0..20 {
            for part in stream.chunks(7 + round * 911) {
                theirs.write_all(part).unwrap();
                assert_eq!(receiver.fill(ours.as_fd()).unwrap(), Received::Last);
                while let Some(place) = receiver.next_frame().unwrap() {
                    found.push(receiver.bytes(place).to_vec());
                }
            }
        }
        assert_eq!(found.len(), 80);
        assert!(
            found
                .iter()
                .all(|frame| frame.iter().all(|byte| *byte == frame.len() as u8))
        );
        assert_eq!(receiver.fill(ours.as_fd()).unwrap(), Received::Nothing);
    }

    #[test]
    fn a_length_that_no_frame_has_breaks_the_stream() {
        let (mut theirs, ours) = UnixStream::pair().unwrap();
        theirs.write_all(&[0xff; 4]).unwrap();
        let mut receiver = Receiver::new();
        receiver.fill(ours.as_fd()).unwrap();
        assert!(receiver.next_frame().is_err());
    }

    #[test]
    fn what_a_full_stream_took_in_part_is_written_to_its_end() {
        let (mut theirs, ours) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let mut transmitter = Transmitter::new(ours.into());
        let frame = [(LENGTH as u8)..255u8; 1]
            .map(|range| range.collect::<Vec<u8>>())
            .concat();
        let mut sent: usize = 0;
        while !transmitter.is_blocked() {
            let length = (frame.len() as u32).to_be_bytes();
            let parts = [IoSlice::new(&length), IoSlice::new(&frame)];
            sent += transmitter
                .write_frames(&parts, &[LENGTH + frame.len()])
                .unwrap();
        }
        let mut received = Vec::new();
        loop {
            let mut buffer = [0; 65536];
            match theirs.read(&mut buffer) {
                Ok(count) => received.extend_from_slice(&buffer[..count]),
                Err(_) if transmitter.waiting.is_empty() => break,
                Err(_) => {
                    transmitter.unblock();
                    transmitter.flush().unwrap();
                }
            }
        }
        assert_eq!(received.len(), sent * (LENGTH + frame.len()));
        assert!(
            received
                .chunks(LENGTH + frame.len())
                .all(|part| part[LENGTH..] == frame)
        );
    }

    #[test]
    fn small_frames_that_nobody_takes_are_lost_in_the_end() {
        let (_theirs, ours) = UnixStream::pair().unwrap();
        let mut transmitter = Transmitter::new(ours.into());
        while transmitter.lost == 0 {
            transmitter.push(|out| out.extend_from_slice(&[0; 60]));
        }
        assert!(transmitter.waiting.len() < TRANSMIT_BYTES_MAX + FRAME_BYTES_MAX);
    }
}
