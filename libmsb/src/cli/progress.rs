//! Progress of long steps: a line on standard error, if that is a terminal.

use std::io::{self, IsTerminal, Read, Write};
use std::time::{Duration, Instant};

/// Interval between two drawings of the line.
const REDRAW: Duration = Duration::from_millis(100);

/// A progress line on standard error. It is erased when this is dropped.
#[derive(Debug)]
pub struct ProgressMeter {
    total: Option<u64>,
    done: u64,
    drawn: Instant,
}

impl ProgressMeter {
    /// Starts a progress meter if `wanted` and standard error is a terminal. `total` is the number
    /// of bytes, if it is known.
    pub fn start(total: Option<u64>, wanted: bool) -> Option<ProgressMeter> {
        let shown = wanted && io::stderr().is_terminal();
        shown.then(|| ProgressMeter { total, done: 0, drawn: Instant::now() })
    }

    /// Adds bytes that are done.
    pub fn advance(&mut self, bytes: u64) {
        self.done += bytes;
        if self.drawn.elapsed() < REDRAW {
            return;
        }
        self.drawn = Instant::now();
        let line = format!("\r{}\x1b[K", self.line());
        drop(io::stderr().write_all(line.as_bytes()));
    }

    fn line(&self) -> String {
        let mib = |bytes: u64| bytes >> 20;
        match self.total.filter(|total| *total > 0) {
            Some(total) => {
                let percent = (self.done.min(total) * 100).checked_div(total).unwrap_or(100);
                format!("{percent:3} %  {} of {} MiB", mib(self.done), mib(total))
            }
            None => format!("{} MiB", mib(self.done)),
        }
    }
}

impl Drop for ProgressMeter {
    fn drop(&mut self) {
        drop(io::stderr().write_all(b"\r\x1b[K"));
    }
}

/// A reader or writer that advances a progress meter.
#[derive(Debug)]
pub struct Counting<T> {
    inner: T,
    meter: Option<ProgressMeter>,
}

impl<T> Counting<T> {
    /// Wraps a reader or writer.
    pub fn new(inner: T, meter: Option<ProgressMeter>) -> Counting<T> {
        Counting { inner, meter }
    }

    fn count(&mut self, bytes: usize) {
        if let Some(meter) = &mut self.meter {
            meter.advance(bytes as u64);
        }
    }
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.count(count);
        Ok(count)
    }
}

impl<W: Write> Write for Counting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.count(count);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_has_the_share_of_a_known_total() {
        let line = |total, done| ProgressMeter { total, done, drawn: Instant::now() }.line();
        assert_eq!(line(Some(200 << 20), 50 << 20), " 25 %  50 of 200 MiB");
        // A file that has grown meanwhile.
        assert_eq!(line(Some(1 << 20), 2 << 20), "100 %  2 of 1 MiB");
        assert_eq!(line(None, 3 << 20), "3 MiB");
        assert_eq!(line(Some(0), 0), "0 MiB");
    }

    #[test]
    fn a_counting_stream_passes_everything_on() {
        let mut out = Vec::new();
        let mut reader = Counting::new(&b"abc"[..], None);
        let mut writer = Counting::new(&mut out, None);
        assert_eq!(io::copy(&mut reader, &mut writer).unwrap(), 3);
        assert_eq!(out, b"abc");
    }
}
