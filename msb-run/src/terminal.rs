//! The user's terminal while a command of the guest uses it.

use std::io;

use msb_wire::exec::WindowSize;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// The terminal in raw mode: every key goes to the guest. It is as before when this is dropped.
#[derive(Debug)]
pub(crate) struct RawTerminal {
    before: Termios,
    raw: Termios,
}

impl RawTerminal {
    /// Puts the terminal of standard input into raw mode. `None` when it is no terminal.
    pub(crate) fn enter() -> io::Result<Option<RawTerminal>> {
        let Ok(before) = tcgetattr(rustix::stdio::stdin()) else {
            return Ok(None);
        };
        let mut raw = before.clone();
        raw.make_raw();
        let terminal = RawTerminal { before, raw };
        terminal.resume()?;
        Ok(Some(terminal))
    }

    /// Raw mode again, after a stop.
    pub(crate) fn resume(&self) -> io::Result<()> {
        Ok(tcsetattr(
            rustix::stdio::stdin(),
            OptionalActions::Drain,
            &self.raw,
        )?)
    }

    /// As before, for a stop.
    pub(crate) fn suspend(&self) {
        // When the terminal is gone there is nothing to be put back.
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Drain, &self.before);
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        self.suspend();
    }
}

/// Size of the terminal at standard output, else at standard input; 24 by 80 when neither is one.
pub(crate) fn window_size() -> WindowSize {
    let size =
        tcgetwinsize(rustix::stdio::stdout()).or_else(|_| tcgetwinsize(rustix::stdio::stdin()));
    match size {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => WindowSize {
            rows: size.ws_row,
            cols: size.ws_col,
        },
        _ => WindowSize { rows: 24, cols: 80 },
    }
}
