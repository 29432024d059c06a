//! Credit-based flow control: the number of bytes that a sender may still send on a channel.
//!
//! Each channel starts with [`WINDOW_BYTES`]. The receiver grants more as it consumes data. So a
//! slow reader stalls only its own channel, and no buffer holds more than one window.

use crate::limits::{CREDIT_STEP_BYTES, WINDOW_BYTES};

/// Credit of a channel, at the sender.
#[derive(Clone, Copy, Debug)]
pub struct SendCredit {
    left: u64,
}

impl Default for SendCredit {
    fn default() -> Self {
        SendCredit { left: u64::from(WINDOW_BYTES) }
    }
}

impl SendCredit {
    /// Returns the number of bytes that may be sent now.
    pub fn available(&self) -> usize {
        self.left as usize
    }

    /// Subtracts sent bytes. Returns `false` if the credit does not cover them: a protocol
    /// violation.
    #[must_use]
    pub fn spend(&mut self, bytes: usize) -> bool {
        let Some(left) = self.left.checked_sub(bytes as u64) else {
            return false;
        };
        self.left = left;
        true
    }

    /// Adds a grant of the receiver. Returns `false` if the credit exceeds a window: a protocol
    /// violation.
    #[must_use]
    pub fn grant(&mut self, bytes: u32) -> bool {
        self.left = self.left.saturating_add(u64::from(bytes));
        self.left <= u64::from(WINDOW_BYTES)
    }
}

/// Credit of a channel, at the receiver: decides when to grant, and how much.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReceiveCredit {
    used: u32,
}

impl ReceiveCredit {
    /// Records bytes as consumed. Returns the grant to send, once it is worth a frame.
    pub fn used(&mut self, bytes: usize) -> Option<u32> {
        self.used = self.used.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        if self.used < CREDIT_STEP_BYTES {
            return None;
        }
        Some(std::mem::take(&mut self.used))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sender_never_has_more_than_a_window_under_way() {
        let mut credit = SendCredit::default();
        assert!(credit.spend(WINDOW_BYTES as usize));
        assert_eq!(credit.available(), 0);
        assert!(!credit.spend(1));
        assert!(credit.grant(10));
        assert_eq!(credit.available(), 10);
        assert!(!credit.grant(WINDOW_BYTES));
    }

    #[test]
    fn small_uses_are_granted_back_together() {
        let mut credit = ReceiveCredit::default();
        assert_eq!(credit.used(CREDIT_STEP_BYTES as usize - 1), None);
        assert_eq!(credit.used(1), Some(CREDIT_STEP_BYTES));
        assert_eq!(credit.used(1), None);
    }
}
