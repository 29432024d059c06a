//! The user's terminal while a command of the guest uses it.

use std::io;

use msb_wire::exec::WindowSize;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// A terminal in raw mode, in which every key goes to the guest. Dropping this restores the former
/// mode.
#[derive(Debug)]
pub(crate) struct RawTerminal {
    before: Termios,
    raw: Termios,
}

impl RawTerminal {
    /// Puts the terminal of standard input into raw mode. Returns `None` if standard input is not a
    /// terminal.
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

    /// Enters raw mode again after a stop.
    pub(crate) fn resume(&self) -> io::Result<()> {
        Ok(tcsetattr(rustix::stdio::stdin(), OptionalActions::Drain, &self.raw)?)
    }

    /// Restores the former mode before a stop.
    pub(crate) fn suspend(&self) {
        // An error means that the terminal is gone, with nothing to restore.
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Drain, &self.before);
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        self.suspend();
    }
}

/// Returns the size of the terminal at standard output, else at standard input; 24 by 80 if neither
/// is one.
pub(crate) fn window_size() -> WindowSize {
    let size =
        tcgetwinsize(rustix::stdio::stdout()).or_else(|_| tcgetwinsize(rustix::stdio::stdin()));
    match size {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => {
            WindowSize { rows: size.ws_row, cols: size.ws_col }
        }
        _ => WindowSize { rows: 24, cols: 80 },
    }
}
