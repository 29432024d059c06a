//! What a connection sends to its guest.

use std::io::{self, IoSlice};
use std::time::Instant;

use super::connection::{Connection, Over, RTO_MAX, SHIFT, Stage};
use super::segment::{Offer, Seq, flag};
use super::template::{HEAD_BYTES_MAX, Says};
use crate::device::Transmitter;
use crate::limits::RING_BYTES_MAX;
use libmsb::net::network::Network;

/// Frames that are written at once.
const FRAMES_MAX: usize = 64;
/// A segment is sent again so often: about ten minutes.
const RETRIES_MAX: u32 = 14;
/// A SYN so often: about half a minute. A guest is there or it is not.
const SYN_RETRIES_MAX: u32 = 6;

/// A header's numbers are written at the end of what was begun.
const NO_OPTIONS: &[u8] = &[];

impl Connection {
    /// The shift of the window as it is told.
    fn shift(&self) -> u8 {
        if self.scaled { SHIFT } else { 0 }
    }

    /// The window as it is told, and remembered. What was offered is never taken back.
    fn offer_window(&mut self) -> u16 {
        let shift = self.shift();
        let edge = self.rcv + self.to_host.room_max();
        if edge > self.edge {
            self.edge = edge;
        }
        let window = (self.edge - self.rcv).div_ceil(1 << shift).min(0xffff);
        let told = self.rcv + (window << shift);
        if told < self.edge || window < 0xffff {
            self.edge = told;
        }
        window as u16
    }

    fn says(&mut self, seq: Seq, flags: u8) -> Says {
        Says {
            seq: seq.0,
            ack: self.rcv.0,
            flags,
            window: self.offer_window(),
        }
    }

    fn push(&self, transmitter: &mut Transmitter, says: Says, options: &[u8]) {
        let head = self.template.head(says, options, [&[], &[]]);
        transmitter.push(|out| {
            out.extend_from_slice(&head[crate::device::LENGTH..self.template.len()]);
            out.extend_from_slice(options);
        });
    }

    /// The SYN, with an acknowledgement if the guest called.
    pub(super) fn send_syn(&mut self, network: &Network, transmitter: &mut Transmitter) {
        let called = self.stage == Stage::Answered;
        let headers = if self.flow.guest.address.is_ipv4() {
            40
        } else {
            60
        };
        let offer = Offer {
            mss: Some(network.mtu - headers),
            shift: (self.scaled || !called).then_some(SHIFT),
        };
        let mut options = Vec::with_capacity(8);
        offer.write(&mut options);
        let mut says = self.says(self.una, flag::SYN | if called { flag::ACK } else { 0 });
        // The window of a SYN is never shifted.
        let window = RING_BYTES_MAX.min(0xffff);
        says.window = window as u16;
        self.edge = self.rcv + window;
        if !called {
            says.ack = 0;
        }
        self.push(transmitter, says, &options);
        self.next = self.una + 1;
        self.max = self.next;
    }

    /// An acknowledgement.
    pub(super) fn send_ack(&mut self, transmitter: &mut Transmitter) {
        self.owed.told();
        let says = self.says(self.next, flag::ACK);
        self.push(transmitter, says, NO_OPTIONS);
    }

    /// An acknowledgement if the guest could send much more than it knows.
    pub(super) fn send_ack_if_window_opened(&mut self, transmitter: &mut Transmitter) {
        let room = self.to_host.room_max().min(0xffff << self.shift());
        let offered = self.edge - self.rcv;
        if room >= offered + RING_BYTES_MAX / 4 || (offered < self.mss && room >= 2 * self.mss) {
            self.send_ack(transmitter);
        }
    }

    /// Breaks it off.
    pub(super) fn send_reset(&mut self, transmitter: &mut Transmitter) {
        let seq = if self.stage == Stage::Dialing {
            Seq(0)
        } else {
            self.next
        };
        let says = self.says(seq, flag::RST | flag::ACK);
        self.push(transmitter, says, NO_OPTIONS);
    }

    /// A segment that the guest has seen already: it answers with what it expects and what it takes.
    fn send_probe(&mut self, transmitter: &mut Transmitter) {
        let seq = Seq(self.una.0.wrapping_sub(1));
        let says = self.says(seq, flag::ACK);
        self.push(transmitter, says, NO_OPTIONS);
    }

    /// The first segment that is not acknowledged, again.
    pub(super) fn send_again(&mut self, transmitter: &mut Transmitter) {
        self.sample = None;
        let count = self.mss.min(self.to_guest.len()).min(self.max - self.una);
        if count == 0 {
            if self.fin_sent && !self.fin_acked {
                let says = self.says(self.una, flag::FIN | flag::ACK);
                self.push(transmitter, says, NO_OPTIONS);
            }
            return;
        }
        let says = self.says(self.una, flag::ACK | flag::PSH);
        let (first, second) = self.to_guest.slices(0, count);
        let head = self.template.head(says, NO_OPTIONS, [first, second]);
        transmitter.push(|out| {
            out.extend_from_slice(&head[crate::device::LENGTH..self.template.len()]);
            out.extend_from_slice(first);
            out.extend_from_slice(second);
        });
    }

    /// Its deadline has come.
    pub(super) fn expire(
        &mut self,
        network: &Network,
        transmitter: &mut Transmitter,
        now: Instant,
    ) -> io::Result<()> {
        self.retries += 1;
        let max = if self.stage == Stage::Open {
            RETRIES_MAX
        } else {
            SYN_RETRIES_MAX
        };
        if self.retries > max {
            self.send_reset(transmitter);
            self.over = Some(Over::Silent);
            return Ok(());
        }
        self.sample = None;
        match self.stage {
            Stage::Dialing => {
                self.send_reset(transmitter);
                self.over = Some(Over::HostReset);
                return Ok(());
            }
            Stage::Answered | Stage::Calling => self.send_syn(network, transmitter),
            Stage::Open if self.max > self.una => {
                // All that was under way counts as lost; what the guest has it will say.
                self.next = self.una;
                self.fin_sent = false;
                (self.recover, self.duplicates) = (None, 0);
                self.transmit_frames(transmitter, now, 1, true)?;
            }
            Stage::Open => {
                if self.is_stalled() && self.window > 0 {
                    self.transmit_frames(transmitter, now, 1, true)?;
                } else {
                    self.send_probe(transmitter);
                }
            }
        }
        self.rto = (self.rto * 2).min(RTO_MAX);
        self.arm(now);
        if self.max == self.una && !self.is_stalled() {
            // It was asked whether it is there.
            self.deadline = now + RTO_MAX;
        }
        Ok(())
    }

    /// Sends what the guest takes.
    pub(super) fn transmit(
        &mut self,
        transmitter: &mut Transmitter,
        now: Instant,
    ) -> io::Result<()> {
        if self.stage != Stage::Open {
            return Ok(());
        }
        while !transmitter.is_blocked() {
            if self.transmit_frames(transmitter, now, FRAMES_MAX, false)? == 0 {
                break;
            }
        }
        self.transmit_end(transmitter, now);
        if self.is_stalled() {
            self.deadline = self.deadline.min(now + self.rto);
        }
        Ok(())
    }

    fn transmit_end(&mut self, transmitter: &mut Transmitter, now: Instant) {
        let end = self.una + self.to_guest.len();
        if !self.host_done || self.fin_sent || self.next != end {
            return;
        }
        let says = self.says(self.next, flag::FIN | flag::ACK);
        self.push(transmitter, says, NO_OPTIONS);
        self.fin_sent = true;
        self.next = end + 1;
        self.sent(now);
    }

    /// `next` has moved.
    fn sent(&mut self, now: Instant) {
        self.owed.answered(now);
        if self.max == self.una {
            self.deadline = now + self.rto;
        }
        if self.sample.is_none() && self.next > self.max {
            self.sample = Some((self.next, now));
        }
        if self.next > self.max {
            self.max = self.next;
        }
    }

    /// Sends frames; gives how many. `force`: also a small one, which fills what the window has.
    fn transmit_frames(
        &mut self,
        transmitter: &mut Transmitter,
        now: Instant,
        frames: usize,
        force: bool,
    ) -> io::Result<usize> {
        let sent = self.next - self.una;
        let unsent = self.to_guest.len().saturating_sub(sent);
        let usable = self.window.saturating_sub(sent).min(unsent);
        let mut sizes = [0; FRAMES_MAX];
        let mut count = 0;
        let mut left = usable;
        while count < frames.min(FRAMES_MAX) && left > 0 {
            let size = self.mss.min(left);
            if size < self.mss && left < unsent - (usable - left) && !force && !self.is_worth(size)
            {
                break;
            }
            sizes[count] = size;
            count += 1;
            left -= size;
        }
        if count == 0 {
            if force && self.host_done && unsent == 0 {
                self.transmit_end(transmitter, now);
            }
            return Ok(0);
        }
        let taken = self.write(transmitter, sent, &mut sizes[..count])?;
        if taken > 0 {
            let end = sent + sizes[..taken].iter().sum::<usize>();
            self.next = self.una + end;
            if self.ends_at(end) {
                self.fin_sent = true;
                self.next += 1;
            }
            self.sent(now);
        }
        Ok(taken)
    }

    /// Whether the segment that reaches this far says that it is the last: when the host has said all, and the guest takes
    /// one number more.
    fn ends_at(&self, end: usize) -> bool {
        self.host_done && end == self.to_guest.len() && end < self.window
    }

    /// Whether less than a whole segment is to be sent though more waits: when nothing is under way, and it is much of what
    /// the guest ever takes (RFC 9293, 3.8.6.2.1).
    fn is_worth(&self, size: usize) -> bool {
        self.max == self.una && size >= self.window_max / 2
    }

    fn write(
        &mut self,
        transmitter: &mut Transmitter,
        offset: usize,
        sizes: &mut [usize],
    ) -> io::Result<usize> {
        let mut heads = [[0; HEAD_BYTES_MAX]; FRAMES_MAX];
        let mut parts = [IoSlice::new(&[]); 3 * FRAMES_MAX];
        let mut totals = [0; FRAMES_MAX];
        let head_bytes = self.template.len();
        let window = self.says(self.next, flag::ACK);
        let mut at = offset;
        for (number, size) in sizes.iter().enumerate() {
            let (first, second) = self.to_guest.slices(at, *size);
            let mut flags = flag::ACK;
            if at + size == self.to_guest.len() {
                flags |= flag::PSH;
            }
            if self.ends_at(at + size) {
                flags |= flag::FIN;
            }
            let says = Says {
                seq: (self.una + at).0,
                flags,
                ..window
            };
            heads[number] = self.template.head(says, NO_OPTIONS, [first, second]);
            totals[number] = head_bytes + size;
            at += size;
        }
        at = offset;
        for ((number, size), head) in sizes.iter().enumerate().zip(&heads) {
            let (first, second) = self.to_guest.slices(at, *size);
            parts[3 * number] = IoSlice::new(&head[..head_bytes]);
            parts[3 * number + 1] = IoSlice::new(first);
            parts[3 * number + 2] = IoSlice::new(second);
            at += size;
        }
        transmitter.write_frames(&parts[..3 * sizes.len()], &totals[..sizes.len()])
    }
}
