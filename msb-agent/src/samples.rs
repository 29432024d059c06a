//! Samples for the host, at an interval: one stream, opened by the supervisor.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use msb_wire::samples::{GuestSample, SamplesControl, SamplesRequest, interval};

use crate::gauges::Gauges;

/// The open stream.
pub(crate) struct Samples {
    stream: u32,
    interval: Duration,
    due: Instant,
    gauges: Gauges,
}

impl Samples {
    /// The first sample is due at once. `upper` is the file system that is written to.
    pub(crate) fn start(
        stream: u32,
        request: SamplesRequest,
        upper: &OwnedFd,
    ) -> io::Result<Samples> {
        Ok(Samples {
            stream,
            interval: interval(request.interval_ms),
            due: Instant::now(),
            gauges: Gauges::open(upper)?,
        })
    }

    /// The samples, if they go over this stream.
    pub(crate) fn on(samples: &mut Option<Samples>, stream: u32) -> Option<&mut Samples> {
        samples.as_mut().filter(|samples| samples.stream == stream)
    }

    /// The number of the stream.
    pub(crate) fn stream(&self) -> u32 {
        self.stream
    }

    /// When the next sample is to be taken.
    pub(crate) fn due(&self) -> Instant {
        self.due
    }

    /// The next sample, when it is time. Those that were missed, when the machine was stopped, are not made up for.
    pub(crate) fn next(&mut self) -> Option<GuestSample> {
        let now = Instant::now();
        if now < self.due {
            return None;
        }
        self.due = (self.due + self.interval).max(now);
        Some(self.gauges.look())
    }

    /// The host wants another interval: the next sample is due at once. What a later version says means nothing.
    pub(crate) fn control(&mut self, message: &[u8]) {
        if let Ok(SamplesControl::Interval { interval_ms }) = serde_json::from_slice(message) {
            self.interval = interval(interval_ms);
            self.due = Instant::now();
        }
    }
}
