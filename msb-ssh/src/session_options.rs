//! Options of a session that has not started: environment, terminal, agent forwarding.
//!
//! A client may open many sessions and start none, so the memory of its options is limited over all
//! of its sessions together. An option counts until the guest has it.

use std::sync::Arc;

use msb_wire::exec::WindowSize;
use msb_wire::text::Text;
use russh::server::Msg;
use russh::{ChannelWriteHalf, Pty};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::limits::{SETTINGS_BYTES, TERMINAL_MODES, VARIABLE_BYTES, VARIABLES};

/// Bytes that one client may still use, as permits of a semaphore.
pub(crate) type OptionBudget = Arc<Semaphore>;

/// Returns the budget of one client.
pub(crate) fn new_budget() -> OptionBudget {
    Arc::new(Semaphore::new(SETTINGS_BYTES))
}

/// A session that has not started.
pub(crate) struct PendingSession {
    pub(crate) channel: Arc<ChannelWriteHalf<Msg>>,
    pub(crate) options: SessionOptions,
}

/// Options of a session.
pub(crate) struct SessionOptions {
    pub(crate) env: Vec<Text>,
    pub(crate) tty: Option<WindowSize>,
    pub(crate) tty_modes: Vec<(u8, u32)>,
    /// Allows the guest to use the client's agent.
    pub(crate) key_agent: bool,
    /// Budget that the options take.
    pub(crate) reserved: Option<OwnedSemaphorePermit>,
    new_budget: OptionBudget,
}

impl SessionOptions {
    /// Returns empty options.
    pub(crate) fn new(new_budget: &OptionBudget) -> SessionOptions {
        SessionOptions {
            env: Vec::new(),
            tty: None,
            tty_modes: Vec::new(),
            key_agent: false,
            reserved: None,
            new_budget: Arc::clone(new_budget),
        }
    }

    /// Reserves bytes of the budget; returns false if there are too few.
    pub(crate) fn reserve(&mut self, bytes: usize) -> bool {
        let Ok(bytes) = u32::try_from(bytes) else {
            return false;
        };
        let Ok(more) = Arc::clone(&self.new_budget).try_acquire_many_owned(bytes) else {
            return false;
        };
        match &mut self.reserved {
            Some(reserved) => reserved.merge(more),
            None => self.reserved = Some(more),
        }
        true
    }

    /// Sets an environment variable if it is valid and there is budget for it.
    pub(crate) fn set_variable(&mut self, name: &str, value: &str) -> bool {
        let bytes = name.len() + value.len();
        let fits = !name.is_empty()
            && !name.contains(['=', '\0'])
            && !value.contains('\0')
            && bytes <= VARIABLE_BYTES
            && self.env.len() < VARIABLES
            && self.reserve(bytes);
        if fits {
            self.env.push(Text::from(format!("{name}={value}")));
        }
        fits
    }

    /// Sets the terminal, once.
    pub(crate) fn set_terminal(
        &mut self,
        kind: &str,
        size: WindowSize,
        modes: &[(Pty, u32)],
    ) -> bool {
        if self.tty.is_some() || !self.set_variable("TERM", kind) {
            return false;
        }
        self.tty = Some(size);
        let modes = modes.iter().take(TERMINAL_MODES);
        self.tty_modes = modes.map(|(mode, value)| (*mode as u8, *value)).collect();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_many_sessions_share_one_budget() {
        let new_budget = new_budget();
        let value = "v".repeat(VARIABLE_BYTES - 1);
        let mut sessions: Vec<SessionOptions> = Vec::new();
        let mut set = 0;
        for _ in 0..512 {
            let mut session = SessionOptions::new(&new_budget);
            set += (0..VARIABLES).filter(|_| session.set_variable("N", &value)).count();
            sessions.push(session);
        }
        assert_eq!(set, SETTINGS_BYTES / VARIABLE_BYTES);
        assert!(!sessions[511].reserve(1) && !sessions[511].set_variable("N", ""));
        // A session that has started or ended no longer counts.
        drop(sessions[0].reserved.take());
        assert!(sessions[511].set_variable("N", &value));
    }

    #[test]
    fn a_session_has_one_terminal_and_limited_variables() {
        let mut session = SessionOptions::new(&new_budget());
        let size = WindowSize { rows: 24, cols: 80 };
        assert!(!session.set_terminal("a\0b", size, &[]) && session.tty.is_none());
        assert!(session.set_terminal("xterm", size, &[]));
        assert!(!session.set_terminal("xterm", size, &[]));
        assert_eq!(session.env, [Text::from("TERM=xterm")]);
        for bad in ["", "a=b", "a\0"] {
            assert!(!session.set_variable(bad, "x"), "{bad:?}");
        }
        assert!(!session.set_variable("N", &"v".repeat(VARIABLE_BYTES)));
        let set = (0..1000).filter(|_| session.set_variable("N", "1")).count();
        assert_eq!(set, VARIABLES - 1);
    }
}
