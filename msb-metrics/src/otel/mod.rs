//! `msb metrics otel`: exports to an OpenTelemetry collector.
//!
//! One thread collects on time, independent of the network; another exports the queued collections
//! ([`queue`]), each in requests of its own, so that no sample is replaced by a later one.
//! Messages are encoded by hand ([`message`]): with a thousand sandboxes the same attributes occur
//! in tens of thousands of points, and are encoded once.

/// Certificates of the collector: trusted CAs and verification errors.
mod certificates;
/// Addresses of collectors.
mod endpoint;
/// Export thread with retries.
mod exporter;
/// OTLP over gRPC.
#[cfg(feature = "grpc")]
mod grpc;
/// Request headers.
mod headers;
/// OTLP over HTTP.
mod http;
/// Encoder of requests.
mod message;
/// Results of attempts to export.
mod outcome;
/// Encoder for protocol buffers.
mod protobuf;
/// Queue of collections.
mod queue;
/// Responses of collectors.
mod response;

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Context;

use self::exporter::Exporter;
use self::message::ExportResource;
use self::outcome::ExportTransport;
use self::queue::ExportQueue;
use crate::args::{OtelArgs, Protocol};
use crate::collect::{Collector, SampleFilter};
use crate::interval::IntervalTimer;
use crate::lines::CollectionReader;
use crate::log;

/// A queued collection, whose requests are encoded again and again.
#[cfg(feature = "testing")]
#[derive(Debug)]
pub struct OtlpEncoder(queue::QueuedCollection);

#[cfg(feature = "testing")]
impl OtlpEncoder {
    /// Creates an encoder of a collection.
    pub fn new(collection: crate::sample::Collection) -> OtlpEncoder {
        let exits = crate::exits::ExitCounters::default();
        OtlpEncoder(queue::QueuedCollection { number: 0, collection, exits })
    }

    /// Encodes the requests, and returns their size in bytes.
    pub fn encoded_len(&self) -> usize {
        let resource = ExportResource::default();
        let stats = message::ExporterStats::new(jiff::Timestamp::UNIX_EPOCH);
        let mut memory = protobuf::ReverseBuffer::default();
        let mut requests = message::ExportRequests::of(&resource, &stats, &self.0, &mut memory);
        let mut bytes = 0;
        while let Some(request) = requests.next(&mut memory) {
            bytes += request.len();
        }
        bytes
    }
}

/// Collects and exports until a signal arrives or the input ends.
pub(crate) fn run(args: OtelArgs) -> anyhow::Result<()> {
    let transport: Box<dyn ExportTransport> = match args.protocol {
        Protocol::Http => Box::new(http::HttpTransport::new(&args)?),
        #[cfg(feature = "grpc")]
        Protocol::Grpc => Box::new(grpc::GrpcTransport::new(&args)?),
    };
    let buffer = Arc::new(ExportQueue::new(args.max_buffered));
    let resource = ExportResource::new(&args);
    // A panic of the export thread ends the program, as every panic does (`catch_bugs`). Signals
    // are blocked before the second thread starts, so that it inherits the mask.
    let mut timer = IntervalTimer::new(args.collect.collect_interval)?;
    let exporter = Exporter::new(Arc::clone(&buffer), transport, resource, args.flush_interval);
    let exporting = thread::Builder::new()
        .name("export".to_owned())
        .spawn(move || exporter.run())
        .context("cannot start a thread")?;
    log::info(&format!("exporting to {}", endpoint::without_secrets(&args.endpoint)));
    let collected = if args.stdin {
        collect_lines(&args, &buffer, &timer)
    } else {
        collect_files(&args, &buffer, &mut timer)
    };
    // One last attempt, within the export timeout. A second signal ends it early.
    buffer.stop();
    wait_for(&exporting, args.export_timeout, &timer);
    let left = buffer.len();
    if left > 0 {
        log::error(&format!("{left} collections were not exported"));
    }
    collected
}

fn collect_files(
    args: &OtelArgs,
    buffer: &ExportQueue,
    timer: &mut IntervalTimer,
) -> anyhow::Result<()> {
    let mut collector = Collector::new(&args.collect)?;
    while timer.wait()? {
        buffer.push(collector.collect());
    }
    // Include the time since the last tick.
    buffer.push(collector.collect());
    Ok(())
}

/// Reads collections from standard input in a separate thread, because a signal must not wait for a
/// line.
fn collect_lines(
    args: &OtelArgs,
    buffer: &Arc<ExportQueue>,
    timer: &IntervalTimer,
) -> anyhow::Result<()> {
    let filter = SampleFilter::of(&args.collect);
    let buffer = Arc::clone(buffer);
    let reading = thread::Builder::new()
        .name("read".to_owned())
        .spawn(move || {
            let mut reader = CollectionReader::new(std::io::stdin().lock());
            while let Some(collection) = reader.next_collection()? {
                buffer.push_blocking(filter.of_collection(collection));
            }
            Ok(())
        })
        .context("cannot start a thread")?;
    while !reading.is_finished() {
        if timer.wait_for_signal(POLL_INTERVAL)? {
            return Ok(());
        }
    }
    join_thread(reading)
}

/// Returns the result of a finished thread, and propagates its panic.
fn join_thread<T>(thread: thread::JoinHandle<T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Interval at which a thread is checked for its end.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

fn wait_for(exporting: &thread::JoinHandle<()>, timeout: Duration, timer: &IntervalTimer) {
    let end = std::time::Instant::now() + timeout + POLL_INTERVAL;
    // The first signal is still pending; the next one is a second signal.
    timer.forget();
    while !exporting.is_finished() && std::time::Instant::now() < end {
        if timer.wait_for_signal(POLL_INTERVAL).unwrap_or(true) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_panic_of_a_thread_is_propagated() {
        let died =
            thread::spawn(|| -> anyhow::Result<()> { std::panic::resume_unwind(Box::new("x")) });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| join_thread(died)));
        assert!(result.is_err());
        assert!(join_thread(thread::spawn(|| anyhow::Ok(()))).is_ok());
    }
}
