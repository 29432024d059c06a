//! Samples for the host, at an interval, on one stream that the supervisor opens.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use msb_wire::samples::{GuestSample, SamplesControl, SamplesRequest, interval};

use crate::statistics::KernelStatistics;

/// The stream of samples.
pub(crate) struct SampleStream {
    stream: u32,
    interval: Duration,
    due: Instant,
    statistics: KernelStatistics,
}

impl SampleStream {
    /// Starts the stream. The first sample is due at once. `upper` is the writable file system.
    pub(crate) fn start(
        stream: u32,
        request: SamplesRequest,
        upper: &OwnedFd,
    ) -> io::Result<SampleStream> {
        Ok(SampleStream {
            stream,
            interval: interval(request.interval_ms),
            due: Instant::now(),
            statistics: KernelStatistics::open(upper)?,
        })
    }

    /// Returns the samples if they use this stream.
    pub(crate) fn on(samples: &mut Option<SampleStream>, stream: u32) -> Option<&mut SampleStream> {
        samples.as_mut().filter(|samples| samples.stream == stream)
    }

    /// Returns the stream id.
    pub(crate) fn stream(&self) -> u32 {
        self.stream
    }

    /// Returns the time of the next sample.
    pub(crate) fn due(&self) -> Instant {
        self.due
    }

    /// Returns the next sample if it is due. Samples that were missed while the VM was paused are
    /// skipped.
    pub(crate) fn next(&mut self) -> Option<GuestSample> {
        let now = Instant::now();
        if now < self.due {
            return None;
        }
        self.due = (self.due + self.interval).max(now);
        Some(self.statistics.take_sample())
    }

    /// Changes the interval; the next sample is due at once. Controls of a later version are
    /// ignored.
    pub(crate) fn control(&mut self, message: &[u8]) {
        if let Ok(SamplesControl::Interval { interval_ms }) = serde_json::from_slice(message) {
            self.interval = interval(interval_ms);
            self.due = Instant::now();
        }
    }
}
