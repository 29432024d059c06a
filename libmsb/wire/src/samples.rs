//! What a guest costs, as its agent sees it.
//!
//! The supervisor opens one stream with a [`SamplesRequest`]; the agent answers [`SamplesEvent::Sample`] at once and then
//! at each interval, without an end. [`SamplesControl`] changes the interval; closing the stream ends it.
//!
//! A client opens a stream to the supervisor with the same request, and by that subscribes: as long as it is connected,
//! samples are taken at its interval, unless the sandbox has one of its own. Nothing is said on that stream; the samples
//! are in the sandbox's sample file.
//!
//! What a kernel does not tell is missing. All of it is the guest's word.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::limits::{SAMPLES_INTERVAL_MS_MAX, SAMPLES_INTERVAL_MS_MIN};

/// Asks for samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SamplesRequest {
    /// Time between two samples, in milliseconds; see [`interval`].
    pub interval_ms: u64,
}

/// What the supervisor says on the open stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum SamplesControl {
    /// From now on at this interval.
    Interval {
        /// In milliseconds; see [`interval`].
        interval_ms: u64,
    },
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum SamplesEvent {
    /// How it is now.
    Sample(GuestSample),
    /// The stream was closed.
    Closed,
}

/// How a guest is at one moment. Counters count from the start of its kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GuestSample {
    /// CPU time of all processors, in nanoseconds: neither idle, nor waiting for a disk, nor stolen by the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_ns: Option<u64>,
    /// Memory that the kernel manages, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_total_bytes: Option<u64>,
    /// Memory that could still be given to programs, in bytes.
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
    /// Bytes that the network interfaces received; loopback is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rx_bytes: Option<u64>,
    /// Bytes that they sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tx_bytes: Option<u64>,
    /// Packets that they received.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rx_packets: Option<u64>,
    /// Packets that they sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tx_packets: Option<u64>,
    /// Processes, those of the kernel itself not counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processes: Option<u64>,
    /// Processes that the kernel killed for lack of memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_kills: Option<u64>,
    /// Size of the file system that is written to, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upper_size_bytes: Option<u64>,
    /// What is used of it, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upper_used_bytes: Option<u64>,
}

/// An interval that was asked for, within the limits.
pub fn interval(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds.clamp(SAMPLES_INTERVAL_MS_MIN, SAMPLES_INTERVAL_MS_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_not_said_and_not_zero() {
        let sample = GuestSample {
            cpu_ns: Some(0),
            ..GuestSample::default()
        };
        let json = serde_json::to_string(&SamplesEvent::Sample(sample.clone())).unwrap();
        assert_eq!(json, r#"{"type":"sample","cpu_ns":0}"#);
        let read: SamplesEvent = serde_json::from_str(&json).unwrap();
        assert_eq!(read, SamplesEvent::Sample(sample));
    }

    #[test]
    fn no_interval_keeps_a_guest_busy() {
        assert_eq!(interval(0), Duration::from_millis(SAMPLES_INTERVAL_MS_MIN));
        assert_eq!(
            interval(u64::MAX),
            Duration::from_millis(SAMPLES_INTERVAL_MS_MAX)
        );
    }
}
