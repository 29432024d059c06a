//! Packets that come in pieces (RFC 791, 3.2; RFC 8200, 4.5).
//!
//! Pieces that overlap have no honest use and end the packet (RFC 5722), in both families. What is kept is bounded in
//! packets, pieces, bytes and time; the oldest packet goes first.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Instant;

use crate::ip::{Packet, Piece};
use crate::limits::{
    FRAGMENTED_PACKETS_MAX, FRAGMENTS_BYTES_TOTAL, FRAGMENTS_OF_PACKET_MAX, FRAGMENTS_TIMEOUT,
};

/// Largest payload of a packet.
const PAYLOAD_BYTES_MAX: usize = 65535;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Id {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    id: u32,
}

#[derive(Debug)]
struct Incomplete {
    id: Id,
    since: Instant,
    /// Offset and bytes, in no order.
    pieces: Vec<(usize, Vec<u8>)>,
    bytes: usize,
    total: Option<usize>,
    broken: bool,
}

/// Packets of which pieces are missing.
#[derive(Debug, Default)]
pub(crate) struct Fragments {
    packets: VecDeque<Incomplete>,
    bytes: usize,
}

impl Fragments {
    /// Takes a piece; gives the payload of the packet when it was the last one missing.
    pub(crate) fn add(
        &mut self,
        packet: &Packet<'_>,
        piece: Piece,
        now: Instant,
    ) -> Option<Vec<u8>> {
        self.forget(now);
        let id = Id {
            source: packet.source,
            destination: packet.destination,
            protocol: packet.protocol,
            id: piece.id,
        };
        let place = match self.packets.iter().position(|packet| packet.id == id) {
            Some(place) => place,
            None => self.begin(id, now),
        };
        let incomplete = self.packets.get_mut(place)?;
        let before = incomplete.bytes;
        incomplete.add(piece, packet.payload);
        self.bytes = self.bytes + incomplete.bytes - before;
        let whole = incomplete.take_whole();
        if whole.is_some() {
            self.remove(place);
        }
        while self.bytes > FRAGMENTS_BYTES_TOTAL {
            self.remove(0);
        }
        whole
    }

    fn begin(&mut self, id: Id, now: Instant) -> usize {
        if self.packets.len() >= FRAGMENTED_PACKETS_MAX {
            self.remove(0);
        }
        self.packets.push_back(Incomplete {
            id,
            since: now,
            pieces: Vec::new(),
            bytes: 0,
            total: None,
            broken: false,
        });
        self.packets.len() - 1
    }

    fn forget(&mut self, now: Instant) {
        while self
            .packets
            .front()
            .is_some_and(|packet| now.saturating_duration_since(packet.since) > FRAGMENTS_TIMEOUT)
        {
            self.remove(0);
        }
    }

    fn remove(&mut self, place: usize) {
        if let Some(packet) = self.packets.remove(place) {
            self.bytes -= packet.bytes;
        }
    }
}

impl Incomplete {
    fn add(&mut self, piece: Piece, bytes: &[u8]) {
        let end = piece.offset + bytes.len();
        let overlaps = |(offset, other): &(usize, Vec<u8>)| {
            *offset < end && piece.offset < offset + other.len()
        };
        let known_end = self
            .total
            .is_some_and(|total| end > total || (!piece.more && end != total));
        let bad = end > PAYLOAD_BYTES_MAX
            || bytes.is_empty()
            || (piece.more && !bytes.len().is_multiple_of(8))
            || known_end
            || self.pieces.len() >= FRAGMENTS_OF_PACKET_MAX
            || self.pieces.iter().any(overlaps);
        if bad || self.broken {
            // What is left of it is refused until it is forgotten.
            self.broken = true;
            self.pieces = Vec::new();
            self.bytes = 0;
            return;
        }
        if !piece.more {
            self.total = Some(end);
        }
        self.bytes += bytes.len();
        self.pieces.push((piece.offset, bytes.to_vec()));
    }

    /// Without overlaps, it is whole when there are as many bytes as it has.
    fn take_whole(&mut self) -> Option<Vec<u8>> {
        if self.broken || self.total != Some(self.bytes) {
            return None;
        }
        self.pieces.sort_unstable_by_key(|(offset, _)| *offset);
        Some(
            self.pieces
                .iter()
                .flat_map(|(_, bytes)| bytes.iter().copied())
                .collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn packet(payload: &[u8]) -> Packet<'_> {
        Packet {
            mac: [0; 6],
            source: "172.16.0.2".parse().unwrap(),
            destination: "1.1.1.1".parse().unwrap(),
            protocol: 17,
            hop_limit: 64,
            piece: None,
            payload,
            whole: payload,
        }
    }

    fn piece(id: u32, offset: usize, more: bool) -> Piece {
        Piece { id, offset, more }
    }

    #[test]
    fn pieces_in_any_order_give_the_packet() {
        let now = Instant::now();
        let bytes: Vec<u8> = (0..100).collect();
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0], [2, 0, 1]] {
            let mut fragments = Fragments::default();
            let mut whole = None;
            for number in order {
                let (start, end) = (number * 40, (number * 40 + 40).min(100));
                assert_eq!(whole, None);
                whole = fragments.add(&packet(&bytes[start..end]), piece(7, start, end < 100), now);
            }
            assert_eq!(whole.as_deref(), Some(&bytes[..]));
            assert_eq!((fragments.bytes, fragments.packets.len()), (0, 0));
        }
    }

    #[test]
    fn pieces_that_overlap_or_go_too_far_end_the_packet() {
        let now = Instant::now();
        for (offset, length, more) in [
            (8, 16, true),
            (65528, 16, false),
            (24, 7, true),
            (0, 0, true),
        ] {
            let mut fragments = Fragments::default();
            fragments.add(&packet(&[1; 16]), piece(1, 0, true), now);
            fragments.add(&packet(&vec![2; length]), piece(1, offset, more), now);
            assert_eq!(
                fragments.add(&packet(&[3; 8]), piece(1, 16, false), now),
                None,
                "{offset}"
            );
            assert_eq!(fragments.bytes, 0);
        }
    }

    #[test]
    fn a_flood_of_pieces_stays_within_bounds_and_is_forgotten() {
        let now = Instant::now();
        let mut fragments = Fragments::default();
        for id in 0..10_000 {
            fragments.add(&packet(&[0; 60000]), piece(id, 0, true), now);
            assert!(fragments.bytes <= FRAGMENTS_BYTES_TOTAL);
            assert!(fragments.packets.len() <= FRAGMENTED_PACKETS_MAX);
        }
        for offset in 0..10_000 {
            fragments.add(&packet(&[0; 8]), piece(77, offset * 8 % 65000, true), now);
        }
        fragments.add(
            &packet(&[0; 8]),
            piece(1, 0, true),
            now + Duration::from_secs(60),
        );
        assert_eq!((fragments.bytes, fragments.packets.len()), (8, 1));
    }
}
