//! Samples of a guest's resource use, as its agent measures it.
//!
//! The supervisor opens one stream with a [`SamplesRequest`]. The agent answers
//! [`SamplesEvent::Sample`] at once and then at each interval, without an end. [`SamplesControl`]
//! changes the interval; closing the stream ends it.
//!
//! A client opens a stream to the supervisor with the same request and so subscribes: while it is
//! connected, samples are taken at its interval, unless the sandbox has an interval of its own.
//! Nothing is sent on that stream; the samples are in the sandbox's sample file.
//!
//! Values that a kernel does not report are missing. All values come from the guest and are not
//! trusted.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::limits::{SAMPLES_INTERVAL_MS_MAX, SAMPLES_INTERVAL_MS_MIN};

/// A request for samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SamplesRequest {
    /// Interval of samples, in milliseconds; see [`interval`].
    pub interval_ms: u64,
}

/// A control message of the supervisor on the open stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum SamplesControl {
    /// Changes the interval.
    Interval {
        /// New interval, in milliseconds; see [`interval`].
        interval_ms: u64,
    },
}

/// An event of the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum SamplesEvent {
    /// A new sample.
    Sample(Box<GuestSample>),
    /// The stream was closed.
    Closed,
}

/// Resource use of a guest at one moment. Counters count from the start of its kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GuestSample {
    /// CPU time of all processors, in nanoseconds, without idle time, I/O wait and steal time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_ns: Option<u64>,
    /// Memory that the kernel manages, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_total_bytes: Option<u64>,
    /// Memory that is available to programs, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_available_bytes: Option<u64>,
    /// Time in which some task waited for a processor, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_some_us: Option<u64>,
    /// Time in which some task waited for memory, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_some_us: Option<u64>,
    /// Time in which all tasks waited for memory, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_full_us: Option<u64>,
    /// Time in which some task waited for a disk, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_some_us: Option<u64>,
    /// Time in which all tasks waited for a disk, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_full_us: Option<u64>,
    /// Bytes read from all disks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_read_bytes: Option<u64>,
    /// Bytes written to all disks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_written_bytes: Option<u64>,
    /// Bytes received by the network interfaces, without loopback.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rx_bytes: Option<u64>,
    /// Bytes sent by the network interfaces, without loopback.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tx_bytes: Option<u64>,
    /// Packets received by the network interfaces, without loopback.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rx_packets: Option<u64>,
    /// Packets sent by the network interfaces, without loopback.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tx_packets: Option<u64>,
    /// Processes, without kernel threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processes: Option<u64>,
    /// Processes killed by the kernel because it was out of memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_kills: Option<u64>,
    /// Size of the writable file system, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upper_size_bytes: Option<u64>,
    /// Used space of the writable file system, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upper_used_bytes: Option<u64>,
}

/// Returns a requested interval, clamped to the limits.
pub fn interval(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds.clamp(SAMPLES_INTERVAL_MS_MIN, SAMPLES_INTERVAL_MS_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_not_said_and_not_zero() {
        let sample = GuestSample { cpu_ns: Some(0), ..GuestSample::default() };
        let json = serde_json::to_string(&SamplesEvent::Sample(Box::new(sample.clone()))).unwrap();
        assert_eq!(json, r#"{"type":"sample","cpu_ns":0}"#);
        let read: SamplesEvent = serde_json::from_str(&json).unwrap();
        assert_eq!(read, SamplesEvent::Sample(Box::new(sample)));
    }

    #[test]
    fn no_interval_keeps_a_guest_busy() {
        assert_eq!(interval(0), Duration::from_millis(SAMPLES_INTERVAL_MS_MIN));
        assert_eq!(interval(u64::MAX), Duration::from_millis(SAMPLES_INTERVAL_MS_MAX));
    }
}
