//! Export thread: sends queued collections at an interval, each in its own requests, the oldest
//! first.
//!
//! A collection that fails stays at the front of the queue. Retries use exponential backoff: the
//! delay is the interval times 2, 4, … up to 32, or the delay that the collector asks for. When the
//! program stops there is one immediate last attempt.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::message::{ExportRequests, ExportResource, ExporterStats};
use super::outcome::{ExportOutcome, ExportTransport};
use super::protobuf::ReverseBuffer;
use super::queue::{ExportQueue, QueuedCollection};
use crate::log;

/// Maximum number of doublings of the retry delay.
const DOUBLINGS_MAX: u32 = 5;
/// Maximum delay that is accepted from a collector.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// State of the export thread.
pub(super) struct Exporter {
    buffer: Arc<ExportQueue>,
    transport: Box<dyn ExportTransport>,
    resource: ExportResource,
    interval: Duration,
    stats: ExporterStats,
    failures: u32,
    /// Buffer in which requests are encoded, one after the other.
    memory: ReverseBuffer,
}

impl Exporter {
    pub(super) fn new(
        buffer: Arc<ExportQueue>,
        transport: Box<dyn ExportTransport>,
        resource: ExportResource,
        interval: Duration,
    ) -> Exporter {
        Exporter {
            buffer,
            transport,
            resource,
            interval,
            stats: ExporterStats::new(Timestamp::now()),
            failures: 0,
            memory: ReverseBuffer::default(),
        }
    }

    /// Exports until the queue is stopped.
    pub(super) fn run(mut self) {
        let mut next = Instant::now() + self.interval;
        loop {
            let stop = self.buffer.wait_until(next);
            let retry_after = self.flush();
            if stop {
                return;
            }
            next = Instant::now() + self.backoff(retry_after);
        }
    }

    fn backoff(&self, retry_after: Option<Duration>) -> Duration {
        let doubled = self.interval * 2_u32.pow(self.failures.min(DOUBLINGS_MAX));
        retry_after.map_or(doubled, |retry_after| retry_after.min(RETRY_AFTER_MAX))
    }

    /// Sends queued collections until the queue is empty or one fails. Returns the retry delay that
    /// the collector asks for.
    fn flush(&mut self) -> Option<Duration> {
        while let Some(waiting) = self.buffer.first() {
            match self.export(&waiting) {
                ExportOutcome::Accepted { rejected, message } => {
                    self.record_success(&waiting, rejected, &message);
                }
                ExportOutcome::Retry { why, after } => {
                    self.failures = self.failures.saturating_add(1);
                    self.stats.failure += 1;
                    let count = self.buffer.len();
                    log::warn(&format!("export failed, {count} collections queued: {why}"));
                    return after;
                }
                ExportOutcome::Rejected { why } => {
                    self.stats.failure += 1;
                    log::error(&format!("dropped a collection that the collector rejected: {why}"));
                    self.buffer.done(waiting.number, true);
                }
            }
        }
        None
    }

    fn record_success(&mut self, waiting: &QueuedCollection, rejected: u64, message: &str) {
        self.buffer.done(waiting.number, false);
        self.stats.success += 1;
        self.stats.last_success = Some(Timestamp::now());
        if std::mem::take(&mut self.failures) > 0 {
            log::info("the collector accepts exports again");
        }
        if rejected > 0 || !message.is_empty() {
            log::warn(&format!(
                "partial success: the collector rejected {rejected} points: {message}"
            ));
        }
        log::debug(&format!(
            "exported {} sandboxes of {}",
            waiting.collection.samples.len(),
            waiting.collection.at
        ));
    }

    /// Exports a collection. The first request that is not accepted decides the outcome. Requests
    /// before it are sent again with the next attempt, which is harmless: a point carries the time
    /// of its collection.
    fn export(&mut self, waiting: &QueuedCollection) -> ExportOutcome {
        // Read now, so that the last export reports all dropped collections, including those
        // dropped ahead of this one.
        self.stats.dropped = self.buffer.dropped();
        let (mut refused, mut last_message) = (0, String::new());
        let memory = &mut self.memory;
        let mut requests = ExportRequests::of(&self.resource, &self.stats, waiting, memory);
        while let Some(request) = requests.next(memory) {
            match self.transport.send(request) {
                ExportOutcome::Accepted { rejected, message } => {
                    refused += rejected;
                    last_message = message;
                }
                other => return other,
            }
        }
        ExportOutcome::Accepted { rejected: refused, message: last_message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Collection;
    use std::sync::Mutex;

    /// A collector that returns the given outcomes and then accepts everything.
    struct ScriptedCollector {
        outcomes: Vec<ExportOutcome>,
        sent: Arc<Mutex<usize>>,
    }

    impl ExportTransport for ScriptedCollector {
        fn send(&mut self, _request: &[u8]) -> ExportOutcome {
            *self.sent.lock().unwrap() += 1;
            self.outcomes
                .pop()
                .unwrap_or(ExportOutcome::Accepted { rejected: 0, message: String::new() })
        }
    }

    fn retry(after: Option<u64>) -> ExportOutcome {
        ExportOutcome::Retry { why: "busy".into(), after: after.map(Duration::from_secs) }
    }

    fn exporter(
        outcomes: Vec<ExportOutcome>,
        waiting: usize,
    ) -> (Exporter, Arc<ExportQueue>, Arc<Mutex<usize>>) {
        let buffer = Arc::new(ExportQueue::new(100));
        for second in 0..waiting {
            buffer.push(Collection {
                at: Timestamp::from_second(second as i64).unwrap(),
                samples: Vec::new(),
                exits: Vec::new(),
            });
        }
        let sent = Arc::new(Mutex::new(0));
        let scripted = ScriptedCollector { outcomes, sent: Arc::clone(&sent) };
        let second = Duration::from_secs(1);
        let exporter = Exporter::new(
            Arc::clone(&buffer),
            Box::new(scripted),
            ExportResource::default(),
            second,
        );
        (exporter, buffer, sent)
    }

    #[test]
    fn queued_collections_are_sent_one_by_one_after_an_outage() {
        let (mut exporter, buffer, sent) = exporter(vec![retry(None), retry(None)], 10);
        exporter.flush();
        exporter.flush();
        assert_eq!((buffer.len(), exporter.stats.failure), (10, 2));
        exporter.flush();
        assert_eq!((buffer.len(), exporter.stats.success), (0, 10));
        assert_eq!(*sent.lock().unwrap(), 12);
    }

    #[test]
    fn retries_use_bounded_exponential_backoff_or_the_requested_delay() {
        let (mut exporter, _, _) = exporter(Vec::new(), 0);
        let pauses: Vec<u64> = (0..8)
            .map(|failures| {
                exporter.failures = failures;
                exporter.backoff(None).as_secs()
            })
            .collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 32, 32]);
        let retry_after = Duration::from_secs(7);
        assert_eq!(exporter.backoff(Some(retry_after)), retry_after);
        assert_eq!(exporter.backoff(Some(Duration::MAX)), RETRY_AFTER_MAX);
    }

    #[test]
    fn the_requested_retry_delay_is_returned() {
        let (mut exporter, _, _) = exporter(vec![retry(Some(9))], 1);
        assert_eq!(exporter.flush(), Some(Duration::from_secs(9)));
        assert_eq!(exporter.flush(), None);
    }

    #[test]
    fn a_rejected_collection_is_dropped_and_counted() {
        let rejected = ExportOutcome::Rejected { why: "no".into() };
        let (mut exporter, buffer, _) = exporter(vec![rejected], 3);
        exporter.flush();
        assert_eq!((exporter.stats.success, buffer.len()), (2, 0));
        // The later collections reported the count.
        assert_eq!((exporter.stats.dropped, buffer.dropped()), (1, 1));
    }

    #[test]
    fn every_collection_is_exported_or_counted_as_dropped() {
        let (mut exporter, buffer, _) = exporter(vec![retry(None), retry(None)], 250);
        assert_eq!((buffer.len(), buffer.dropped()), (100, 150));
        exporter.flush();
        for _ in 0..4 {
            buffer.push(buffer.first().unwrap().collection.clone());
        }
        exporter.flush();
        // Two failed attempts lost nothing.
        assert_eq!((buffer.len(), buffer.dropped()), (100, 154));
        exporter.flush();
        assert_eq!(buffer.len(), 0);
        assert_eq!((exporter.stats.success, exporter.stats.dropped), (100, 154));
    }
}
