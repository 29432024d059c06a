//! Standard output: data only.
//!
//! A write to a closed pipe (`msb ls | head -1`) fails with [`ClosedPipe`] inside its [`io::Error`],
//! and [`super::error::report`] prints nothing. Any other broken pipe (to a sandbox, to a child) is an
//! ordinary error.

use std::fmt;
use std::io::{self, IsTerminal, StdoutLock, Write};

/// An error: the reader of standard output has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClosedPipe;

impl fmt::Display for ClosedPipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the reader of the output has gone")
    }
}

impl std::error::Error for ClosedPipe {}

/// Standard output, locked and line-buffered like the standard library's. Call [`Write::flush`] at
/// the end: an error at process exit, such as a full disk, would be lost.
#[derive(Debug)]
pub struct Stdout(StdoutLock<'static>);

/// Returns standard output whose errors [`super::error::report`] recognizes.
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
        io::ErrorKind::BrokenPipe => io::Error::new(io::ErrorKind::BrokenPipe, ClosedPipe),
        kind => io::Error::new(
            kind,
            format!("cannot write to standard output: {}", super::error::clean(&error.to_string())),
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

/// Returns whether standard output is a terminal.
pub fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Returns whether the error is that the reader of standard output has gone: marked by [`Stdout`],
/// or a broken pipe without context.
pub fn is_closed(error: &anyhow::Error) -> bool {
    let marked = |cause: &(dyn std::error::Error + 'static)| {
        cause
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
            .is_some_and(|inner| inner.is::<ClosedPipe>())
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
        assert_eq!(full.to_string(), "cannot write to standard output: no space left on device");
    }
}
