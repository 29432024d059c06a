//! Reassembly of fragmented IP packets (RFC 791, 3.2; RFC 8200, 4.5).
//!
//! Overlapping fragments have no honest use and discard the packet (RFC 5722), in both families.
//! Packets, fragments, bytes and time are limited; the oldest packet is discarded first.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Instant;

use crate::ip::{Fragment, Packet};
use crate::limits::{
    FRAGMENTED_PACKETS_MAX, FRAGMENTS_BYTES_TOTAL, FRAGMENTS_OF_PACKET_MAX, FRAGMENTS_TIMEOUT,
};

/// Largest payload of a packet.
const PAYLOAD_BYTES_MAX: usize = 65535;

/// The identity of a fragmented packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PacketId {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    id: u32,
}

/// A packet in reassembly.
#[derive(Debug)]
struct PartialPacket {
    id: PacketId,
    since: Instant,
    /// Offset and bytes, unordered.
    fragments: Vec<(usize, Vec<u8>)>,
    bytes: usize,
    total: Option<usize>,
    invalid: bool,
}

/// Packets with missing fragments.
#[derive(Debug, Default)]
pub struct FragmentReassembler {
    packets: VecDeque<PartialPacket>,
    bytes: usize,
}

impl FragmentReassembler {
    /// Adds a fragment. Returns the reassembled payload when it was the last one missing.
    pub fn add(
        &mut self,
        packet: &Packet<'_>,
        fragment: Fragment,
        now: Instant,
    ) -> Option<Vec<u8>> {
        self.discard_expired(now);
        let id = PacketId {
            source: packet.source,
            destination: packet.destination,
            protocol: packet.protocol,
            id: fragment.id,
        };
        let index = match self.packets.iter().position(|packet| packet.id == id) {
            Some(index) => index,
            None => self.start_packet(id, now),
        };
        let incomplete = self.packets.get_mut(index)?;
        let before = incomplete.bytes;
        incomplete.add(fragment, packet.payload);
        self.bytes = self.bytes + incomplete.bytes - before;
        let complete = incomplete.take_complete();
        if complete.is_some() {
            self.remove(index);
        }
        while self.bytes > FRAGMENTS_BYTES_TOTAL {
            self.remove(0);
        }
        complete
    }

    fn start_packet(&mut self, id: PacketId, now: Instant) -> usize {
        if self.packets.len() >= FRAGMENTED_PACKETS_MAX {
            self.remove(0);
        }
        self.packets.push_back(PartialPacket {
            id,
            since: now,
            fragments: Vec::new(),
            bytes: 0,
            total: None,
            invalid: false,
        });
        self.packets.len() - 1
    }

    fn discard_expired(&mut self, now: Instant) {
        while self
            .packets
            .front()
            .is_some_and(|packet| now.saturating_duration_since(packet.since) > FRAGMENTS_TIMEOUT)
        {
            self.remove(0);
        }
    }

    fn remove(&mut self, index: usize) {
        if let Some(packet) = self.packets.remove(index) {
            self.bytes -= packet.bytes;
        }
    }
}

impl PartialPacket {
    fn add(&mut self, fragment: Fragment, bytes: &[u8]) {
        let end = fragment.offset + bytes.len();
        let overlaps = |(offset, other): &(usize, Vec<u8>)| {
            *offset < end && fragment.offset < offset + other.len()
        };
        let known_end =
            self.total.is_some_and(|total| end > total || (!fragment.more && end != total));
        let invalid_fragment = end > PAYLOAD_BYTES_MAX
            || bytes.is_empty()
            || (fragment.more && !bytes.len().is_multiple_of(8))
            || known_end
            || self.fragments.len() >= FRAGMENTS_OF_PACKET_MAX
            || self.fragments.iter().any(overlaps);
        if invalid_fragment || self.invalid {
            // Later fragments of this packet are discarded until it expires.
            self.invalid = true;
            self.fragments = Vec::new();
            self.bytes = 0;
            return;
        }
        if !fragment.more {
            self.total = Some(end);
        }
        self.bytes += bytes.len();
        self.fragments.push((fragment.offset, bytes.to_vec()));
    }

    /// Returns the payload if it is complete: without overlaps, the number of bytes tells.
    fn take_complete(&mut self) -> Option<Vec<u8>> {
        if self.invalid || self.total != Some(self.bytes) {
            return None;
        }
        self.fragments.sort_unstable_by_key(|(offset, _)| *offset);
        Some(self.fragments.iter().flat_map(|(_, bytes)| bytes.iter().copied()).collect())
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
            fragment: None,
            payload,
            ip_bytes: payload,
        }
    }

    fn fragment(id: u32, offset: usize, more: bool) -> Fragment {
        Fragment { id, offset, more }
    }

    #[test]
    fn fragments_in_any_order_are_reassembled() {
        let now = Instant::now();
        let bytes: Vec<u8> = (0..100).collect();
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0], [2, 0, 1]] {
            let mut reassembler = FragmentReassembler::default();
            let mut complete = None;
            for number in order {
                let (start, end) = (number * 40, (number * 40 + 40).min(100));
                assert_eq!(complete, None);
                complete = reassembler.add(
                    &packet(&bytes[start..end]),
                    fragment(7, start, end < 100),
                    now,
                );
            }
            assert_eq!(complete.as_deref(), Some(&bytes[..]));
            assert_eq!((reassembler.bytes, reassembler.packets.len()), (0, 0));
        }
    }

    #[test]
    fn overlapping_or_oversized_fragments_discard_the_packet() {
        let now = Instant::now();
        for (offset, length, more) in
            [(8, 16, true), (65528, 16, false), (24, 7, true), (0, 0, true)]
        {
            let mut reassembler = FragmentReassembler::default();
            reassembler.add(&packet(&[1; 16]), fragment(1, 0, true), now);
            reassembler.add(&packet(&vec![2; length]), fragment(1, offset, more), now);
            assert_eq!(
                reassembler.add(&packet(&[3; 8]), fragment(1, 16, false), now),
                None,
                "{offset}"
            );
            assert_eq!(reassembler.bytes, 0);
        }
    }

    #[test]
    fn a_flood_of_fragments_stays_within_limits_and_expires() {
        let now = Instant::now();
        let mut reassembler = FragmentReassembler::default();
        for id in 0..10_000 {
            reassembler.add(&packet(&[0; 60000]), fragment(id, 0, true), now);
            assert!(reassembler.bytes <= FRAGMENTS_BYTES_TOTAL);
            assert!(reassembler.packets.len() <= FRAGMENTED_PACKETS_MAX);
        }
        for offset in 0..10_000 {
            reassembler.add(&packet(&[0; 8]), fragment(77, offset * 8 % 65000, true), now);
        }
        reassembler.add(&packet(&[0; 8]), fragment(1, 0, true), now + Duration::from_secs(60));
        assert_eq!((reassembler.bytes, reassembler.packets.len()), (8, 1));
    }
}
