//! Bytes between a connection and its host's socket, both ways.

use std::io::{IoSlice, IoSliceMut};

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, Shutdown, sendmsg, shutdown};

use super::connection::{Connection, Over};
use super::ring::Pool;
use super::segment::Seq;
use crate::limits::RING_BYTES_MIN;

/// Parts that one call writes (`UIO_MAXIOV` is 1024).
const PARTS_MAX: usize = 512;
/// Parts that a connection keeps room for between turns.
const PARTS_KEPT: usize = 32;
/// Bytes that are read at once from a host's socket.
const READ_BYTES: usize = 256 * 1024;
/// The same for a connection that has brought nothing yet.
const READ_BYTES_FIRST: usize = 16 * 1024;

/// What came of reading a host's socket.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Read {
    Some,
    Nothing,
}

pub(super) fn read_host(connection: &mut Connection, pool: &mut Pool) -> Read {
    if !connection.readable || connection.host_done || connection.over.is_some() {
        return Read::Nothing;
    }
    let wanted = wanted_of_host(connection);
    // Who has brought much will bring more, and has a ring for it at once: to grow is to copy. Most bring little.
    let expected = READ_BYTES_FIRST + connection.bytes_down as usize;
    let room = connection.to_guest.reserve(wanted.min(expected), pool);
    let wanted = wanted.min(room).min(READ_BYTES);
    if wanted == 0 {
        return Read::Nothing;
    }
    let (first, second) = connection.to_guest.room();
    let first_len = first.len().min(wanted);
    let second_len = second.len().min(wanted - first_len);
    let wanted = first_len + second_len;
    let mut parts = [
        IoSliceMut::new(&mut first[..first_len]),
        IoSliceMut::new(&mut second[..second_len]),
    ];
    match rustix::io::readv(&connection.socket, &mut parts) {
        Ok(0) => {
            connection.host_done = true;
            connection.readable = false;
            release_if_empty(connection, pool);
            Read::Some
        }
        Ok(count) => {
            connection.to_guest.advance(count);
            connection.bytes_down += count as u64;
            // Less than was asked for: there is no more, unless the end has come already.
            connection.readable = count == wanted || connection.hung_up;
            Read::Some
        }
        Err(Errno::AGAIN) => {
            connection.readable = false;
            release_if_empty(connection, pool);
            Read::Nothing
        }
        Err(Errno::INTR) => Read::Some,
        Err(_) => {
            connection.over = Some(Over::HostReset);
            Read::Nothing
        }
    }
}

/// Bytes that may be read of the host's socket: what the guest takes, in whole segments, since more would only wait here in
/// place of there. Where nothing is under way a little may wait nevertheless: it has the guest asked whether it takes more,
/// should it have said so unheard.
fn wanted_of_host(connection: &Connection) -> usize {
    let (window, len) = (connection.window, connection.to_guest.len());
    let wanted = window.saturating_sub(len);
    let whole = wanted - wanted % connection.mss;
    if len == 0 && whole == 0 {
        return window.max(RING_BYTES_MIN);
    }
    whole
}

fn release_if_empty(connection: &mut Connection, pool: &mut Pool) {
    if connection.to_guest.is_empty() {
        connection.to_guest.release(pool);
    }
}

/// Writes bytes that waited.
pub(super) fn drain_to_host(connection: &mut Connection, pool: &mut Pool) {
    while connection.writable && !connection.to_host.is_empty() {
        let (first, second) = connection.to_host.slices(0, connection.to_host.len());
        let wanted = first.len() + second.len();
        match write_host(connection, &[IoSlice::new(first), IoSlice::new(second)]) {
            Some(count) => {
                connection.writable = count == wanted;
                connection.bytes_up += count as u64;
                connection.to_host.consume(count, pool);
            }
            None => {
                connection.over = Some(Over::HostReset);
                return;
            }
        }
    }
}

/// Writes to the host's socket. `None`: it is broken.
fn write_host(connection: &Connection, parts: &[IoSlice<'_>]) -> Option<usize> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let none = &mut SendAncillaryBuffer::default();
    loop {
        match sendmsg(&connection.socket, parts, none, flags) {
            Ok(count) => return Some(count),
            Err(Errno::AGAIN) => return Some(0),
            Err(Errno::INTR) => {}
            Err(_) => return None,
        }
    }
}

/// The guest has said all, and all of it is written.
pub(super) fn shut_host(connection: &mut Connection) {
    if connection.guest_done && !connection.host_shut && connection.to_host.is_empty() {
        connection.host_shut = true;
        if connection.fin_acked {
            // The host said all before: the socket is closed at once, and that shuts it too.
            connection.over = Some(Over::Closed);
        } else {
            // A socket that is broken says so when it is read.
            let _ = shutdown(&connection.socket, Shutdown::Write);
        }
    }
}

/// Bytes of a turn, in the receiver's buffer or among the joined ones behind it.
fn lying([received, joined]: [&[u8]; 2], place: usize, length: usize) -> &[u8] {
    match place.checked_sub(received.len()) {
        None => &received[place..place + length],
        Some(place) => &joined[place..place + length],
    }
}

/// Takes the bytes of a turn: as many as possible go to the host's socket from where they lie.
pub(super) fn commit(connection: &mut Connection, pool: &mut Pool, received: [&[u8]; 2]) {
    let parts = std::mem::take(&mut connection.parts);
    let total: usize = parts.iter().map(|(_, length)| length).sum();
    let mut taken = 0;
    let direct = connection.writable
        && !connection.look
        && connection.to_host.is_empty()
        && connection.over.is_none();
    if direct && total > 0 {
        taken = write_parts(connection, &parts, received);
    }
    let mut skip = taken;
    for (place, length) in &parts {
        let gone = skip.min(*length);
        skip -= gone;
        let rest = &lying(received, *place, *length)[gone..];
        let kept = connection.to_host.push(rest, pool);
        taken += kept;
        if kept < rest.len() {
            break;
        }
    }
    connection.parts = parts;
    connection.parts.clear();
    connection.parts.shrink_to(PARTS_KEPT);
    if taken == total {
        take_early(connection, pool);
    } else {
        // There is no room for the rest: the guest sends it again.
        connection.owed.now();
        connection.rcv = Seq(connection.rcv.0.wrapping_sub((total - taken) as u32));
        connection.fin_at = None;
    }
    if connection
        .fin_at
        .take_if(|end| *end == connection.rcv)
        .is_some()
    {
        connection.rcv += 1;
        connection.edge += 1;
        connection.guest_done = true;
    }
}

/// Takes what came too early, and is next now.
fn take_early(connection: &mut Connection, pool: &mut Pool) {
    while let Some(bytes) = connection.next_early(pool) {
        let mut taken = 0;
        if connection.writable && !connection.look && connection.to_host.is_empty() {
            let Some(count) = write_host(connection, &[IoSlice::new(&bytes)]) else {
                connection.over = Some(Over::HostReset);
                return;
            };
            connection.writable = count == bytes.len();
            connection.bytes_up += count as u64;
            taken = count;
        }
        taken += connection.to_host.push(&bytes[taken..], pool);
        connection.rcv += taken;
        if taken < bytes.len() {
            return;
        }
    }
}

fn write_parts(
    connection: &mut Connection,
    parts: &[(usize, usize)],
    received: [&[u8]; 2],
) -> usize {
    let mut taken = 0;
    for some in parts.chunks(PARTS_MAX) {
        let mut slices = [IoSlice::new(&[]); PARTS_MAX];
        let mut wanted = 0;
        for (slice, (place, length)) in slices.iter_mut().zip(some) {
            *slice = IoSlice::new(lying(received, *place, *length));
            wanted += length;
        }
        let Some(count) = write_host(connection, &slices[..some.len()]) else {
            connection.over = Some(Over::HostReset);
            return taken;
        };
        taken += count;
        connection.bytes_up += count as u64;
        if count < wanted {
            connection.writable = false;
            break;
        }
    }
    taken
}
