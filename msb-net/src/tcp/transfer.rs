//! Transfer of bytes between the halves of a connection and its host socket.

use std::io::{IoSlice, IoSliceMut};

use super::host_socket::{HostFailure, HostRead, HostSocket};
use super::receive_half::{ReceiveHalf, Span};
use super::ring_buffer::RingPool;
use super::send_half::SendHalf;

/// Limit of buffers per system call (`UIO_MAXIOV` is 1024).
const IO_SLICES_MAX: usize = 512;
/// Limit of bytes read at once from a host socket.
const READ_BYTES: usize = 256 * 1024;
/// The same for a connection that has received nothing yet.
const READ_BYTES_FIRST: usize = 16 * 1024;

/// Result of reading a host socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadOutcome {
    Progress,
    Nothing,
}

/// Reads from the host socket into the send half.
pub(super) fn read_host(
    host: &mut HostSocket,
    send: &mut SendHalf,
    pool: &mut RingPool,
) -> Result<ReadOutcome, HostFailure> {
    if !host.is_readable() || send.state.is_at_end() {
        return Ok(ReadOutcome::Nothing);
    }
    let wanted = send.read_budget();
    // A connection that has received much gets a large ring at once, since growing means copying.
    // Most receive little.
    let expected = READ_BYTES_FIRST + host.bytes_up_and_down().1 as usize;
    let room = send.buffer.reserve(wanted.min(expected), pool);
    let wanted = wanted.min(room).min(READ_BYTES);
    if wanted == 0 {
        return Ok(ReadOutcome::Nothing);
    }
    let (first, second) = send.buffer.free_space();
    let first_len = first.len().min(wanted);
    let second_len = second.len().min(wanted - first_len);
    let mut parts =
        [IoSliceMut::new(&mut first[..first_len]), IoSliceMut::new(&mut second[..second_len])];
    match host.read(&mut parts, first_len + second_len)? {
        HostRead::Bytes(count) => send.buffer.advance(count),
        HostRead::End => {
            send.state = send.state.end();
            release_if_empty(send, pool);
        }
        HostRead::Interrupted => {}
        HostRead::Nothing => {
            release_if_empty(send, pool);
            return Ok(ReadOutcome::Nothing);
        }
    }
    Ok(ReadOutcome::Progress)
}

fn release_if_empty(send: &mut SendHalf, pool: &mut RingPool) {
    if send.buffer.is_empty() {
        send.buffer.release(pool);
    }
}

/// Writes buffered bytes to the host socket.
pub(super) fn drain_to_host(
    receive: &mut ReceiveHalf,
    host: &mut HostSocket,
    pool: &mut RingPool,
) -> Result<(), HostFailure> {
    while host.is_writable() && !receive.buffer.is_empty() {
        let (first, second) = receive.buffer.slices(0, receive.buffer.len());
        let wanted = first.len() + second.len();
        let count = host.write(&[IoSlice::new(first), IoSlice::new(second)], wanted)?;
        receive.buffer.consume(count, pool);
    }
    Ok(())
}

/// Returns the bytes of a span in the receive buffer, or among the reassembled payload behind it.
fn span_bytes([received, reassembled]: [&[u8]; 2], span: Span) -> &[u8] {
    match span.offset.checked_sub(received.len()) {
        None => &received[span.offset..span.offset + span.len],
        Some(offset) => &reassembled[offset..offset + span.len],
    }
}

/// Delivers the bytes of a turn: with `direct`, as many as possible go to the host socket straight
/// from the receive buffer. An error of the socket is returned after the rest is done.
pub(super) fn deliver_batch(
    receive: &mut ReceiveHalf,
    host: &mut HostSocket,
    pool: &mut RingPool,
    received: [&[u8]; 2],
    direct: bool,
) -> Result<(), HostFailure> {
    let spans = receive.take_spans();
    let total: usize = spans.iter().map(|span| span.len).sum();
    let (mut taken, mut result) = (0, Ok(()));
    if direct && total > 0 && host.is_writable() && receive.buffer.is_empty() {
        (taken, result) = write_spans(host, &spans, received);
    }
    let mut skip = taken;
    for span in &spans {
        let gone = skip.min(span.len);
        skip -= gone;
        let rest = &span_bytes(received, *span)[gone..];
        let kept = receive.buffer.push(rest, pool);
        taken += kept;
        if kept < rest.len() {
            break;
        }
    }
    receive.finish_batch(spans, total - taken);
    if taken == total {
        result = result.and(deliver_out_of_order(receive, host, pool, direct));
    }
    receive.take_fin();
    result
}

/// Delivers kept segments that are no longer out of order.
fn deliver_out_of_order(
    receive: &mut ReceiveHalf,
    host: &mut HostSocket,
    pool: &mut RingPool,
    direct: bool,
) -> Result<(), HostFailure> {
    while let Some(bytes) = receive.next_in_order(pool) {
        let mut taken = 0;
        if direct && host.is_writable() && receive.buffer.is_empty() {
            taken = host.write(&[IoSlice::new(&bytes)], bytes.len())?;
        }
        taken += receive.buffer.push(&bytes[taken..], pool);
        receive.advance(taken);
        if taken < bytes.len() {
            break;
        }
    }
    Ok(())
}

/// Writes spans to the host socket. Returns the number of bytes accepted, and an error of the
/// socket.
fn write_spans(
    host: &mut HostSocket,
    spans: &[Span],
    received: [&[u8]; 2],
) -> (usize, Result<(), HostFailure>) {
    let mut taken = 0;
    for chunk in spans.chunks(IO_SLICES_MAX) {
        let mut slices = [IoSlice::new(&[]); IO_SLICES_MAX];
        let mut wanted = 0;
        for (slice, span) in slices.iter_mut().zip(chunk) {
            *slice = IoSlice::new(span_bytes(received, *span));
            wanted += span.len;
        }
        match host.write(&slices[..chunk.len()], wanted) {
            Ok(count) => taken += count,
            Err(failure) => return (taken, Err(failure)),
        }
        if !host.is_writable() {
            break;
        }
    }
    (taken, Ok(()))
}
