//! TCP segments (RFC 9293, 3.1): sequence numbers, the header, and the options of a SYN.

use std::cmp::Ordering;
use std::ops::{Add, AddAssign, Sub};

/// Size of the header without options.
pub(crate) const TCP_HEADER_BYTES: usize = 20;

/// Control bits of the header.
pub(crate) mod flag {
    pub(crate) const FIN: u8 = 1;
    pub(crate) const SYN: u8 = 2;
    pub(crate) const RST: u8 = 4;
    pub(crate) const PSH: u8 = 8;
    pub(crate) const ACK: u8 = 16;
}

/// A sequence number, compared modulo 2^32: one number is before another if the distance is less
/// than 2^31.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SeqNumber(pub(crate) u32);

impl PartialOrd for SeqNumber {
    fn partial_cmp(&self, other: &SeqNumber) -> Option<Ordering> {
        Some((self.0.wrapping_sub(other.0) as i32).cmp(&0))
    }
}

impl Add<usize> for SeqNumber {
    type Output = SeqNumber;
    fn add(self, bytes: usize) -> SeqNumber {
        SeqNumber(self.0.wrapping_add(bytes as u32))
    }
}

impl AddAssign<usize> for SeqNumber {
    fn add_assign(&mut self, bytes: usize) {
        *self = *self + bytes;
    }
}

/// Returns the distance from the other number to this one; 0 if the other is not before it.
impl Sub for SeqNumber {
    type Output = usize;
    fn sub(self, other: SeqNumber) -> usize {
        (self.0.wrapping_sub(other.0) as i32).max(0) as usize
    }
}

/// A segment from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment<'a> {
    pub(crate) source: u16,
    pub(crate) destination: u16,
    pub(crate) seq: SeqNumber,
    pub(crate) ack: SeqNumber,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    pub(crate) options: &'a [u8],
    pub(crate) payload: &'a [u8],
}

impl<'a> Segment<'a> {
    /// Parses a segment. `None`: the header is invalid.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Segment<'a>> {
        let (header, rest) = bytes.split_first_chunk::<TCP_HEADER_BYTES>()?;
        let length = usize::from(header[12] >> 4) * 4;
        let (options, payload) = rest.split_at_checked(length.checked_sub(TCP_HEADER_BYTES)?)?;
        let be32 = |at: usize| {
            SeqNumber(u32::from_be_bytes([
                header[at],
                header[at + 1],
                header[at + 2],
                header[at + 3],
            ]))
        };
        let be16 = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        Some(Segment {
            source: be16(0),
            destination: be16(2),
            seq: be32(4),
            ack: be32(8),
            flags: header[13],
            window: be16(14),
            options,
            payload,
        })
    }

    /// Returns whether all of these control bits are set.
    pub(crate) fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }

    /// Returns the number of sequence numbers that the segment takes (SEG.LEN).
    pub(crate) fn seq_len(&self) -> usize {
        self.payload.len() + usize::from(self.has(flag::SYN)) + usize::from(self.has(flag::FIN))
    }
}

/// The options of a SYN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SynOptions {
    /// Maximum segment size.
    pub(crate) mss: Option<u16>,
    /// Shift count of the window scale option (RFC 7323): windows are scaled in both directions if
    /// both sides send it.
    pub(crate) window_scale: Option<u8>,
}

const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_MSS: u8 = 2;
const OPTION_WINDOW_SCALE: u8 = 3;
/// Largest valid shift count; larger ones are treated as this one (RFC 7323, 2.3).
const WINDOW_SCALE_MAX: u8 = 14;

impl SynOptions {
    /// Parses options; an invalid option ends the list.
    pub(crate) fn parse(mut bytes: &[u8]) -> SynOptions {
        let mut options = SynOptions::default();
        loop {
            let (kind, length) = match bytes {
                [] | [OPTION_END, ..] => return options,
                [OPTION_NOP, rest @ ..] => {
                    bytes = rest;
                    continue;
                }
                [kind, length, ..] => (*kind, usize::from(*length)),
                [_] => return options,
            };
            let Some((option, rest)) = bytes.split_at_checked(length).filter(|_| length >= 2)
            else {
                return options;
            };
            match (kind, &option[2..]) {
                (OPTION_MSS, [high, low]) => options.mss = Some(u16::from_be_bytes([*high, *low])),
                (OPTION_WINDOW_SCALE, [shift]) => {
                    options.window_scale = Some((*shift).min(WINDOW_SCALE_MAX));
                }
                _ => {}
            }
            bytes = rest;
        }
    }

    /// Appends the options, padded to whole words.
    pub(crate) fn write(self, out: &mut Vec<u8>) {
        if let Some(mss) = self.mss {
            let [high, low] = mss.to_be_bytes();
            out.extend_from_slice(&[OPTION_MSS, 4, high, low]);
        }
        if let Some(window_scale) = self.window_scale {
            out.extend_from_slice(&[OPTION_NOP, OPTION_WINDOW_SCALE, 3, window_scale]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequence_numbers_wrap_around() {
        let (before, after) = (SeqNumber(u32::MAX - 1), SeqNumber(u32::MAX - 1) + 10);
        assert!(before < after);
        assert_eq!((after - before, before - after), (10, 0));
    }

    #[test]
    fn syn_options_round_trip_and_invalid_ones_are_ignored() {
        let options = SynOptions { mss: Some(65480), window_scale: Some(7) };
        let mut bytes = Vec::new();
        options.write(&mut bytes);
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(SynOptions::parse(&bytes), options);
        for broken in [&[2, 0][..], &[2, 1], &[3], &[2, 9, 1], &[99, 255]] {
            assert_eq!(SynOptions::parse(broken), SynOptions::default());
        }
        assert_eq!(SynOptions::parse(&[3, 3, 200]).window_scale, Some(14));
    }

    #[test]
    fn a_header_longer_than_the_segment_is_rejected() {
        let mut bytes = [0; TCP_HEADER_BYTES];
        for words in 0..16 {
            bytes[12] = words << 4;
            assert_eq!(Segment::parse(&bytes).is_some(), words == 5, "{words}");
        }
    }
}
