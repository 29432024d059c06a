//! Writes the segments of one connection to the frame stream.

use std::io::{self, IoSlice};

use super::header_template::{HEADERS_BYTES_MAX, HeaderTemplate, SegmentFields};
use super::segment::flag;
use super::send_half::SendHalf;
use crate::device::{FrameTransmitter, LENGTH_BYTES};

/// Limit of frames written at once.
pub(super) const SEGMENTS_MAX: usize = 64;

/// An empty options list.
const NO_OPTIONS: &[u8] = &[];

/// Queues a segment with options, without payload.
pub(super) fn push_options(
    template: &HeaderTemplate,
    transmitter: &mut FrameTransmitter,
    fields: SegmentFields,
    options: &[u8],
) {
    let header = template.headers(fields, options, [&[], &[]]);
    transmitter.push_frame(|out| {
        out.extend_from_slice(&header[LENGTH_BYTES..template.len()]);
        out.extend_from_slice(options);
    });
}

/// Queues a segment with a payload in two parts.
pub(super) fn push_segment(
    template: &HeaderTemplate,
    transmitter: &mut FrameTransmitter,
    fields: SegmentFields,
    (first, second): (&[u8], &[u8]),
) {
    let header = template.headers(fields, NO_OPTIONS, [first, second]);
    transmitter.push_frame(|out| {
        out.extend_from_slice(&header[LENGTH_BYTES..template.len()]);
        out.extend_from_slice(first);
        out.extend_from_slice(second);
    });
}

/// Writes segments of these sizes straight from the send half's buffer, from SND.NXT on. `fields`
/// hold the acknowledgement and the window. Returns how many segments were accepted.
pub(super) fn write_segments(
    template: &HeaderTemplate,
    transmitter: &mut FrameTransmitter,
    send: &SendHalf,
    fields: SegmentFields,
    sizes: &[usize],
) -> io::Result<usize> {
    let mut headers = [[0; HEADERS_BYTES_MAX]; SEGMENTS_MAX];
    let mut parts = [IoSlice::new(&[]); 3 * SEGMENTS_MAX];
    let mut totals = [0; SEGMENTS_MAX];
    let header_bytes = template.len();
    let offset = send.nxt() - send.una();
    let mut at = offset;
    for (number, size) in sizes.iter().enumerate() {
        let (first, second) = send.buffer.slices(at, *size);
        let mut flags = flag::ACK;
        if at + size == send.buffer.len() {
            flags |= flag::PSH;
        }
        if send.carries_fin(at + size) {
            flags |= flag::FIN;
        }
        let fields = SegmentFields { seq: (send.una() + at).0, flags, ..fields };
        headers[number] = template.headers(fields, NO_OPTIONS, [first, second]);
        totals[number] = header_bytes + size;
        at += size;
    }
    at = offset;
    for ((number, size), header) in sizes.iter().enumerate().zip(&headers) {
        let (first, second) = send.buffer.slices(at, *size);
        parts[3 * number] = IoSlice::new(&header[..header_bytes]);
        parts[3 * number + 1] = IoSlice::new(first);
        parts[3 * number + 2] = IoSlice::new(second);
        at += size;
    }
    transmitter.write_frames(&parts[..3 * sizes.len()], &totals[..sizes.len()])
}
