//! What a session will have, until it begins.
//!
//! A client may open many sessions and begin none, so what it sets is counted, over all of its sessions together. It
//! counts until the guest has it.

use std::sync::Arc;

use msb_wire::exec::WindowSize;
use msb_wire::text::Text;
use russh::server::Msg;
use russh::{ChannelWriteHalf, Pty};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::limits::{SETTINGS_BYTES, TERMINAL_MODES, VARIABLE_BYTES, VARIABLES};

/// Bytes that one client may still set; as many as a semaphore has permits.
pub(crate) type Room = Arc<Semaphore>;

/// Room for one client.
pub(crate) fn room() -> Room {
    Arc::new(Semaphore::new(SETTINGS_BYTES))
}

/// A session that has not begun.
pub(crate) struct Setting {
    pub(crate) channel: Arc<ChannelWriteHalf<Msg>>,
    pub(crate) what: What,
}

/// What it will have.
pub(crate) struct What {
    pub(crate) env: Vec<Text>,
    pub(crate) tty: Option<WindowSize>,
    pub(crate) tty_modes: Vec<(u8, u32)>,
    /// The guest may use the client's agent.
    pub(crate) key_agent: bool,
    /// The room that it takes.
    pub(crate) held: Option<OwnedSemaphorePermit>,
    room: Room,
}

impl What {
    /// Nothing yet.
    pub(crate) fn new(room: &Room) -> What {
        What {
            env: Vec::new(),
            tty: None,
            tty_modes: Vec::new(),
            key_agent: false,
            held: None,
            room: Arc::clone(room),
        }
    }

    /// Takes room for something; false when there is none.
    pub(crate) fn hold(&mut self, bytes: usize) -> bool {
        let Ok(bytes) = u32::try_from(bytes) else {
            return false;
        };
        let Ok(more) = Arc::clone(&self.room).try_acquire_many_owned(bytes) else {
            return false;
        };
        match &mut self.held {
            Some(held) => held.merge(more),
            None => self.held = Some(more),
        }
        true
    }

    /// Sets a variable, if it can be one and there is room.
    pub(crate) fn set_variable(&mut self, name: &str, value: &str) -> bool {
        let bytes = name.len() + value.len();
        let fits = !name.is_empty()
            && !name.contains(['=', '\0'])
            && !value.contains('\0')
            && bytes <= VARIABLE_BYTES
            && self.env.len() < VARIABLES
            && self.hold(bytes);
        if fits {
            self.env.push(Text::from(format!("{name}={value}")));
        }
        fits
    }

    /// Gives it a terminal, once.
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
    fn what_many_sessions_set_is_bounded_together_until_they_go() {
        let room = room();
        let value = "v".repeat(VARIABLE_BYTES - 1);
        let mut sessions: Vec<What> = Vec::new();
        let mut set = 0;
        for _ in 0..512 {
            let mut session = What::new(&room);
            set += (0..VARIABLES)
                .filter(|_| session.set_variable("N", &value))
                .count();
            sessions.push(session);
        }
        assert_eq!(set, SETTINGS_BYTES / VARIABLE_BYTES);
        assert!(!sessions[511].hold(1) && !sessions[511].set_variable("N", ""));
        // A session that has begun, or has gone, counts no more.
        drop(sessions[0].held.take());
        assert!(sessions[511].set_variable("N", &value));
    }

    #[test]
    fn a_session_has_one_terminal_and_so_many_variables() {
        let mut session = What::new(&room());
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
