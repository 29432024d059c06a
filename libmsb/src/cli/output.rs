//! Standard output: data only.
//!
//! When nobody reads it any more (`msb ls | head -1`), a write fails with [`Closed`] inside its [`io::Error`];
//! [`super::error::report`] knows it and stays quiet. A broken pipe to anybody else (a sandbox, a child) is an error
//! like any other.

use std::fmt;
use std::io::{self, IsTerminal, StdoutLock, Write};

/// Nobody reads our standard output any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed;

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nobody reads the output")
    }
}

impl std::error::Error for Closed {}

/// Standard output, locked, line by line as the standard library has it. Call [`Write::flush`] at the end: an error
/// at the end of the process would go unseen, and a full disk with it.
#[derive(Debug)]
pub struct Stdout(StdoutLock<'static>);

/// Standard output whose errors [`super::error::report`] understands.
pub fn stdout() -> Stdout {
    Stdout(io::stdout().lock())
}

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(mark)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(mark)
    }
}

fn mark(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::BrokenPipe => io::Error::new(io::ErrorKind::BrokenPipe, Closed),
        kind => io::Error::new(
            kind,
            format!(
                "cannot write to standard output: {}",
                super::error::clean(&error.to_string())
            ),
        ),
    }
}

/// Prints a line of data.
pub fn print(line: &(impl fmt::Display + ?Sized)) -> io::Result<()> {
    let mut stdout = stdout();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}

/// Prints a value as JSON, indented, with a newline at the end.
pub fn print_json<T: serde::Serialize + ?Sized>(value: &T) -> io::Result<()> {
    print(&crate::jsonl::to_string_pretty(value)?)
}

/// Whether people look at standard output.
pub fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Whether the error is that nobody reads our output any more: marked by [`Stdout`], or a broken pipe about which
/// nothing else is said.
pub fn is_closed(error: &anyhow::Error) -> bool {
    let marked = |cause: &(dyn std::error::Error + 'static)| {
        cause
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
            .is_some_and(|inner| inner.is::<Closed>())
    };
    let bare = || {
        error
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    };
    error.chain().any(marked) || (error.chain().count() == 1 && bare())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_reader_that_has_gone_is_marked() {
        let closed =
            anyhow::Error::new(mark(io::ErrorKind::BrokenPipe.into())).context("cannot list");
        assert!(is_closed(&closed));
        let full = anyhow::Error::new(mark(io::Error::from_raw_os_error(libc::ENOSPC)));
        assert!(!is_closed(&full));
        assert_eq!(
            full.to_string(),
            "cannot write to standard output: no space left on device"
        );
    }
}
