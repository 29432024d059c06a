//! Segments of TCP (RFC 9293, 3.1): what one says, and the header of one to the guest.

use std::cmp::Ordering;
use std::ops::{Add, AddAssign, Sub};

/// Bytes of a header without options.
pub(crate) const HEADER: usize = 20;

/// Bits of the header.
pub(crate) mod flag {
    pub(crate) const FIN: u8 = 1;
    pub(crate) const SYN: u8 = 2;
    pub(crate) const RST: u8 = 4;
    pub(crate) const PSH: u8 = 8;
    pub(crate) const ACK: u8 = 16;
}

/// A sequence number: it begins anew after 2^32, so that "before" means less than half of that before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seq(pub(crate) u32);

impl PartialOrd for Seq {
    fn partial_cmp(&self, other: &Seq) -> Option<Ordering> {
        Some((self.0.wrapping_sub(other.0) as i32).cmp(&0))
    }
}

impl Add<usize> for Seq {
    type Output = Seq;
    fn add(self, bytes: usize) -> Seq {
        Seq(self.0.wrapping_add(bytes as u32))
    }
}

impl AddAssign<usize> for Seq {
    fn add_assign(&mut self, bytes: usize) {
        *self = *self + bytes;
    }
}

/// Bytes from the other to this one; 0 if that is not before it.
impl Sub for Seq {
    type Output = usize;
    fn sub(self, other: Seq) -> usize {
        (self.0.wrapping_sub(other.0) as i32).max(0) as usize
    }
}

/// A segment from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment<'a> {
    pub(crate) source: u16,
    pub(crate) destination: u16,
    pub(crate) seq: Seq,
    pub(crate) ack: Seq,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    pub(crate) options: &'a [u8],
    pub(crate) payload: &'a [u8],
}

impl<'a> Segment<'a> {
    /// Reads a segment. `None`: it is broken.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Segment<'a>> {
        let (header, rest) = bytes.split_first_chunk::<HEADER>()?;
        let length = usize::from(header[12] >> 4) * 4;
        let (options, payload) = rest.split_at_checked(length.checked_sub(HEADER)?)?;
        let be32 = |at: usize| {
            Seq(u32::from_be_bytes([
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

    pub(crate) fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }

    /// Sequence numbers that it takes.
    pub(crate) fn length(&self) -> usize {
        self.payload.len() + usize::from(self.has(flag::SYN)) + usize::from(self.has(flag::FIN))
    }
}

/// What a SYN offers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Offer {
    /// The largest segment.
    pub(crate) mss: Option<u16>,
    /// The shift of windows.
    pub(crate) shift: Option<u8>,
}

const OPTION_END: u8 = 0;
const OPTION_NOTHING: u8 = 1;
const OPTION_MSS: u8 = 2;
const OPTION_WINDOW_SCALE: u8 = 3;
/// Larger shifts are to be taken as this one (RFC 7323, 2.3).
const SHIFT_MAX: u8 = 14;

impl Offer {
    /// Reads options; broken ones end the list.
    pub(crate) fn parse(mut options: &[u8]) -> Offer {
        let mut offer = Offer::default();
        loop {
            let (kind, length) = match options {
                [] | [OPTION_END, ..] => return offer,
                [OPTION_NOTHING, rest @ ..] => {
                    options = rest;
                    continue;
                }
                [kind, length, ..] => (*kind, usize::from(*length)),
                [_] => return offer,
            };
            let Some((option, rest)) = options.split_at_checked(length).filter(|_| length >= 2)
            else {
                return offer;
            };
            match (kind, &option[2..]) {
                (OPTION_MSS, [high, low]) => offer.mss = Some(u16::from_be_bytes([*high, *low])),
                (OPTION_WINDOW_SCALE, [shift]) => offer.shift = Some((*shift).min(SHIFT_MAX)),
                _ => {}
            }
            options = rest;
        }
    }

    /// As options, padded to whole words.
    pub(crate) fn write(self, out: &mut Vec<u8>) {
        if let Some(mss) = self.mss {
            let [high, low] = mss.to_be_bytes();
            out.extend_from_slice(&[OPTION_MSS, 4, high, low]);
        }
        if let Some(shift) = self.shift {
            out.extend_from_slice(&[OPTION_NOTHING, OPTION_WINDOW_SCALE, 3, shift]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequence_numbers_go_round() {
        let (before, after) = (Seq(u32::MAX - 1), Seq(u32::MAX - 1) + 10);
        assert!(before < after);
        assert_eq!((after - before, before - after), (10, 0));
    }

    #[test]
    fn an_offer_is_read_as_it_was_written_and_broken_ones_do_not_matter() {
        let offer = Offer {
            mss: Some(65480),
            shift: Some(7),
        };
        let mut bytes = Vec::new();
        offer.write(&mut bytes);
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(Offer::parse(&bytes), offer);
        for broken in [&[2, 0][..], &[2, 1], &[3], &[2, 9, 1], &[99, 255]] {
            assert_eq!(Offer::parse(broken), Offer::default());
        }
        assert_eq!(Offer::parse(&[3, 3, 200]).shift, Some(14));
    }

    #[test]
    fn a_header_that_says_more_than_there_is_is_none() {
        let mut bytes = [0; HEADER];
        for words in 0..16 {
            bytes[12] = words << 4;
            assert_eq!(Segment::parse(&bytes).is_some(), words == 5, "{words}");
        }
    }
}
