//! States of a connection, with the names of RFC 9293, 3.3.2.
//!
//! After the handshake each half closes by itself, so the half-closed states of the RFC are pairs of
//! [`SendState`] and [`ReceiveState`]. CLOSING and LAST-ACK differ only in the FIN that came first,
//! and both wait for the acknowledgement of ours. TIME-WAIT is not needed: no segment of an older
//! connection can arrive over the frame stream.
//!
//! | send \ receive        | `Open`, `Ending` | `FinReceived`, `Delivered` |
//! |-----------------------|------------------|----------------------------|
//! | `Open`, `Ending`      | ESTABLISHED      | CLOSE-WAIT                 |
//! | `FinSent`             | FIN-WAIT-1       | CLOSING, LAST-ACK          |
//! | `FinAcked`            | FIN-WAIT-2       | CLOSED, once delivered     |

use super::segment::SeqNumber;

/// State of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The guest sent a SYN, and the host's socket is connecting. Nothing was sent to the guest
    /// yet.
    Connecting,
    /// SYN-RECEIVED: the host's socket is connected, and the SYN was answered.
    SynReceived,
    /// SYN-SENT: a peer called a published port, and a SYN was sent to the guest.
    SynSent,
    /// ESTABLISHED, and the half-closed states.
    Established,
}

/// State of the send half: the stream from the host to the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum SendState {
    /// The host's stream is open.
    #[default]
    Open,
    /// The host's stream has ended; the FIN is to be sent after the last byte.
    Ending,
    /// The FIN was sent.
    FinSent,
    /// The guest acknowledged the FIN.
    FinAcked,
}

impl SendState {
    /// Returns the state after the end of the host's stream.
    pub(super) fn end(self) -> SendState {
        match self {
            SendState::Open => SendState::Ending,
            other => other,
        }
    }

    /// Returns the state after the FIN was sent.
    pub(super) fn send_fin(self) -> SendState {
        match self {
            SendState::Ending => SendState::FinSent,
            other => other,
        }
    }

    /// Returns the state after an acknowledgement of the FIN. It may come after the FIN was
    /// declared lost.
    pub(super) fn acknowledge_fin(self) -> SendState {
        match self {
            SendState::Ending | SendState::FinSent => SendState::FinAcked,
            other => other,
        }
    }

    /// Returns the state after all data in flight was declared lost: the FIN is sent again.
    pub(super) fn go_back(self) -> SendState {
        match self {
            SendState::FinSent => SendState::Ending,
            other => other,
        }
    }

    /// Returns whether the host's stream has ended.
    pub(super) fn is_at_end(self) -> bool {
        self != SendState::Open
    }
}

/// State of the receive half: the stream from the guest to the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum ReceiveState {
    /// The guest's stream is open.
    #[default]
    Open,
    /// A FIN with this sequence number arrived in this turn; bytes before it may still be refused.
    Ending(SeqNumber),
    /// The FIN and all bytes before it were received; buffered bytes may remain.
    FinReceived,
    /// All bytes were written to the host's socket, and its sending half was shut down.
    Delivered,
}

impl ReceiveState {
    /// Returns the state after a FIN with this sequence number, before the bytes are delivered.
    pub(super) fn announce_fin(self, seq: SeqNumber) -> ReceiveState {
        match self {
            ReceiveState::Open => ReceiveState::Ending(seq),
            other => other,
        }
    }

    /// Returns the state after bytes before the FIN did not fit: the guest retransmits both.
    pub(super) fn refuse_fin(self) -> ReceiveState {
        match self {
            ReceiveState::Ending(_) => ReceiveState::Open,
            other => other,
        }
    }

    /// Returns the state after all bytes up to a sequence number were received.
    pub(super) fn receive_up_to(self, nxt: SeqNumber) -> ReceiveState {
        match self {
            ReceiveState::Ending(seq) if seq == nxt => ReceiveState::FinReceived,
            other => other,
        }
    }

    /// Returns the state after all bytes were written to the host's socket.
    pub(super) fn deliver(self) -> ReceiveState {
        match self {
            ReceiveState::FinReceived => ReceiveState::Delivered,
            other => other,
        }
    }

    /// Returns whether the guest's FIN was received.
    pub(super) fn is_at_end(self) -> bool {
        matches!(self, ReceiveState::FinReceived | ReceiveState::Delivered)
    }
}

/// Reason for the end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CloseReason {
    /// Both sides closed.
    Closed,
    /// The guest sent a reset.
    GuestReset,
    /// The peer reset the connection, or could not be reached.
    HostReset,
    /// The guest stopped answering.
    GuestSilent,
    /// The policy denies the connection.
    Denied,
}

impl CloseReason {
    /// Returns the text for the event log.
    pub(super) fn text(self) -> &'static str {
        match self {
            CloseReason::Closed => "closed",
            CloseReason::GuestReset => "reset by guest",
            CloseReason::HostReset => "reset by peer",
            CloseReason::GuestSilent => "guest does not answer",
            CloseReason::Denied => "denied",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_of_the_send_half_leads_to_one_state() {
        use SendState::{Ending, FinAcked, FinSent, Open};
        // Columns: end of the host's stream, FIN sent, FIN acknowledged, data declared lost.
        let table = [
            (Open, [Ending, Open, Open, Open]),
            (Ending, [Ending, FinSent, FinAcked, Ending]),
            (FinSent, [FinSent, FinSent, FinAcked, Ending]),
            (FinAcked, [FinAcked; 4]),
        ];
        for (from, to) in table {
            let after = [from.end(), from.send_fin(), from.acknowledge_fin(), from.go_back()];
            assert_eq!(after, to, "{from:?}");
            assert_eq!(from.is_at_end(), from != Open);
        }
    }

    #[test]
    fn every_event_of_the_receive_half_leads_to_one_state() {
        use ReceiveState::{Delivered, Ending, FinReceived, Open};
        let (seq, later) = (SeqNumber(7), SeqNumber(9));
        // Columns: FIN announced, FIN refused, bytes received up to 7, up to 9, bytes delivered.
        let table = [
            (Open, [Ending(later), Open, Open, Open, Open]),
            (Ending(seq), [Ending(seq), Open, FinReceived, Ending(seq), Ending(seq)]),
            (FinReceived, [FinReceived, FinReceived, FinReceived, FinReceived, Delivered]),
            (Delivered, [Delivered; 5]),
        ];
        for (from, to) in table {
            let after = [
                from.announce_fin(later),
                from.refuse_fin(),
                from.receive_up_to(seq),
                from.receive_up_to(later),
                from.deliver(),
            ];
            assert_eq!(after, to, "{from:?}");
            assert_eq!(from.is_at_end(), matches!(from, FinReceived | Delivered));
        }
    }
}
