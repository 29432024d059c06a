//! `msb-metrics otel`: export to a collector of OpenTelemetry.
//!
//! One thread collects, on time, whatever the network does; another exports what waits in between ([`buffer`]), each
//! collection in requests of its own, so that no sample is lost in a later one. Messages are encoded by hand ([`message`]):
//! with a thousand sandboxes the same attributes are in tens of thousands of points, and are encoded once.

/// Whom the exporter trusts.
mod authorities;
/// Collections that wait.
mod buffer;
/// Sending what waits.
mod exporter;
/// OTLP over gRPC.
mod grpc;
/// Headers of requests.
mod headers;
/// OTLP over HTTP.
mod http;
/// From a collection to bytes.
mod message;
/// Protocol buffers, as far as they are needed.
mod protobuf;

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Context;

use self::buffer::Buffer;
use self::exporter::Exporter;
use self::message::Resource;
use crate::args::{OtelArgs, Protocol};
use crate::collect::{Choice, Collector};
use crate::lines::Reader;
use crate::log;
use crate::ticks::Ticks;

/// What is said of a try to export.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The collector has it; it may have refused some points, and say why.
    Taken {
        /// Points that it refused.
        rejected: u64,
        /// Its words.
        message: String,
    },
    /// Another try may do; not before some time, if the collector says so.
    Later {
        /// What went wrong.
        why: String,
        /// The collector's wish.
        after: Option<Duration>,
    },
    /// It will never be taken.
    Never {
        /// What is wrong with it.
        why: String,
    },
}

/// A way to a collector.
pub(crate) trait Transport: Send {
    /// Sends one request; does not take longer than the time that was set for exports.
    fn send(&mut self, request: &[u8]) -> Outcome;
}

/// Collects and exports until a signal comes, or the lines end.
pub(crate) fn run(args: OtelArgs) -> anyhow::Result<()> {
    let transport: Box<dyn Transport> = match args.protocol {
        Protocol::Http => Box::new(http::Http::new(&args)?),
        Protocol::Grpc => Box::new(grpc::Grpc::new(&args)?),
    };
    let buffer = Arc::new(Buffer::new(args.max_buffered));
    let resource = Resource::new(&args);
    // A panic of the thread that exports ends the program, as every panic does (`catch_bugs`): there is no collector that
    // goes on without it. Signals are blocked before there is a second thread, which then has them blocked, too.
    let mut ticks = Ticks::every(args.collect.collect_interval)?;
    let exporter = Exporter::new(
        Arc::clone(&buffer),
        transport,
        resource,
        args.flush_interval,
    );
    let exporting = thread::Builder::new()
        .name("export".to_owned())
        .spawn(move || exporter.run())
        .context("cannot start a thread")?;
    log::info(&format!("exporting to {}", without_secrets(&args.endpoint)));
    let collected = if args.stdin {
        collect_lines(&args, &buffer, &ticks)
    } else {
        collect_files(&args, &buffer, &mut ticks)
    };
    // The last ones: one try, in the time for one export. A second signal, or the end of that time, ends it.
    buffer.stop();
    wait_for(&exporting, args.export_timeout, &ticks);
    let left = buffer.len();
    if left > 0 {
        log::error(&format!("{left} collections were not exported"));
    }
    collected
}

fn collect_files(args: &OtelArgs, buffer: &Buffer, ticks: &mut Ticks) -> anyhow::Result<()> {
    let mut collector = Collector::new(&args.collect)?;
    while ticks.wait()? {
        buffer.push(collector.collect());
    }
    // What came since the last moment, too.
    buffer.push(collector.collect());
    Ok(())
}

/// Lines are read by a thread of their own, since a signal must not wait for one.
fn collect_lines(args: &OtelArgs, buffer: &Arc<Buffer>, ticks: &Ticks) -> anyhow::Result<()> {
    let choice = Choice::of(&args.collect);
    let buffer = Arc::clone(buffer);
    let reading = thread::Builder::new()
        .name("read".to_owned())
        .spawn(move || {
            let mut reader = Reader::new(std::io::stdin().lock());
            while let Some(collection) = reader.next()? {
                buffer.push_when_there_is_room(choice.of_collection(collection));
            }
            Ok(())
        })
        .context("cannot start a thread")?;
    while !reading.is_finished() {
        if ticks.signaled(LOOK)? {
            return Ok(());
        }
    }
    joined(reading)
}

/// What a thread that has ended gave. Its panic is ours: nothing that goes wrong in a thread is a success.
fn joined<T>(thread: thread::JoinHandle<T>) -> T {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Time between two looks at whether a thread has ended.
const LOOK: Duration = Duration::from_millis(100);

fn wait_for(exporting: &thread::JoinHandle<()>, patience: Duration, ticks: &Ticks) {
    let end = std::time::Instant::now() + patience + LOOK;
    // The first signal is still there to be read: a second one is another.
    ticks.forget();
    while !exporting.is_finished() && std::time::Instant::now() < end {
        if ticks.signaled(LOOK).unwrap_or(true) {
            return;
        }
    }
}

/// An address without the user and password that may be in it.
fn without_secrets(endpoint: &str) -> String {
    match (endpoint.split_once("://"), endpoint.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, place))) => format!("{scheme}://{place}"),
        _ => endpoint.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_panic_of_a_thread_is_no_success() {
        let died =
            thread::spawn(|| -> anyhow::Result<()> { std::panic::resume_unwind(Box::new("x")) });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| joined(died)));
        assert!(result.is_err());
        assert!(joined(thread::spawn(|| anyhow::Ok(()))).is_ok());
    }

    #[test]
    fn a_password_in_the_address_is_not_repeated() {
        assert_eq!(without_secrets("http://u:p@host/x"), "http://host/x");
        assert_eq!(without_secrets("http://host/x"), "http://host/x");
    }
}
