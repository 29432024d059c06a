//! Sending what waits: at an interval, each collection for itself, the oldest first.
//!
//! What fails stays first in line, and the next try comes later and later: the interval times 2, 4, … up to 32, or when the
//! collector wishes. A stop goes around that, and gets one try.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::buffer::{Buffer, Waiting};
use super::message::{Own, Requests, Resource};
use super::protobuf::Backwards;
use super::{Outcome, Transport};
use crate::log;

/// How often the time between two tries is doubled.
const DOUBLINGS_MAX: u32 = 5;
/// Longest time for which a collector's wish is granted.
const WISH_MAX: Duration = Duration::from_secs(3600);

/// The thread that sends.
pub(super) struct Exporter {
    buffer: Arc<Buffer>,
    transport: Box<dyn Transport>,
    resource: Resource,
    interval: Duration,
    own: Own,
    failures: u32,
    /// Where requests are written, one after the other.
    memory: Backwards,
}

impl Exporter {
    pub(super) fn new(
        buffer: Arc<Buffer>,
        transport: Box<dyn Transport>,
        resource: Resource,
        interval: Duration,
    ) -> Exporter {
        Exporter {
            buffer,
            transport,
            resource,
            interval,
            own: Own::since(Timestamp::now()),
            failures: 0,
            memory: Backwards::default(),
        }
    }

    /// Exports until it is stopped.
    pub(super) fn run(mut self) {
        let mut next = Instant::now() + self.interval;
        loop {
            let stop = self.buffer.wait_until(next);
            let wish = self.flush();
            if stop {
                return;
            }
            next = Instant::now() + self.pause(wish);
        }
    }

    fn pause(&self, wish: Option<Duration>) -> Duration {
        let doubled = self.interval * 2_u32.pow(self.failures.min(DOUBLINGS_MAX));
        wish.map_or(doubled, |wish| wish.min(WISH_MAX))
    }

    /// Sends all that waits, until something fails. Gives the collector's wish for the next try.
    fn flush(&mut self) -> Option<Duration> {
        while let Some(waiting) = self.buffer.first() {
            match self.export(&waiting) {
                Outcome::Taken { rejected, message } => {
                    self.taken(&waiting, rejected, &message);
                }
                Outcome::Later { why, after } => {
                    self.failures = self.failures.saturating_add(1);
                    self.own.failure += 1;
                    let count = self.buffer.len();
                    log::warn(&format!("cannot export, {count} collections wait: {why}"));
                    return after;
                }
                Outcome::Never { why } => {
                    self.own.failure += 1;
                    log::error(&format!(
                        "a collection is lost, the collector refuses it: {why}"
                    ));
                    self.buffer.done(waiting.number, true);
                }
            }
        }
        None
    }

    fn taken(&mut self, waiting: &Waiting, rejected: u64, message: &str) {
        self.buffer.done(waiting.number, false);
        self.own.success += 1;
        self.own.last_success = Some(Timestamp::now());
        if std::mem::take(&mut self.failures) > 0 {
            log::info("the collector takes exports again");
        }
        if rejected > 0 || !message.is_empty() {
            log::warn(&format!(
                "the collector refused {rejected} points: {message}"
            ));
        }
        log::debug(&format!(
            "exported {} sandboxes of {}",
            waiting.collection.samples.len(),
            waiting.collection.at
        ));
    }

    /// The first of its requests that is not taken is what counts. Those before it are sent again next time, which changes
    /// nothing: a point has the time of its collection.
    fn export(&mut self, waiting: &Waiting) -> Outcome {
        // As it is now: the last export tells of all that were lost, also of those behind which this one stood.
        self.own.dropped = self.buffer.dropped();
        let (mut refused, mut words) = (0, String::new());
        let memory = &mut self.memory;
        let mut requests = Requests::of(&self.resource, &self.own, waiting, memory);
        while let Some(request) = requests.next(memory) {
            match self.transport.send(request) {
                Outcome::Taken { rejected, message } => {
                    refused += rejected;
                    words = message;
                }
                other => return other,
            }
        }
        Outcome::Taken {
            rejected: refused,
            message: words,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Collection;
    use std::sync::Mutex;

    /// A collector that says what it was told to, then takes everything.
    struct Scripted {
        says: Vec<Outcome>,
        sent: Arc<Mutex<usize>>,
    }

    impl Transport for Scripted {
        fn send(&mut self, _request: &[u8]) -> Outcome {
            *self.sent.lock().unwrap() += 1;
            self.says.pop().unwrap_or(Outcome::Taken {
                rejected: 0,
                message: String::new(),
            })
        }
    }

    fn later(after: Option<u64>) -> Outcome {
        Outcome::Later {
            why: "busy".into(),
            after: after.map(Duration::from_secs),
        }
    }

    fn exporter(says: Vec<Outcome>, waiting: usize) -> (Exporter, Arc<Buffer>, Arc<Mutex<usize>>) {
        let buffer = Arc::new(Buffer::new(100));
        for second in 0..waiting {
            buffer.push(Collection {
                at: Timestamp::from_second(second as i64).unwrap(),
                samples: Vec::new(),
                exits: Vec::new(),
            });
        }
        let sent = Arc::new(Mutex::new(0));
        let scripted = Scripted {
            says,
            sent: Arc::clone(&sent),
        };
        let second = Duration::from_secs(1);
        let exporter = Exporter::new(
            Arc::clone(&buffer),
            Box::new(scripted),
            Resource::default(),
            second,
        );
        (exporter, buffer, sent)
    }

    #[test]
    fn what_waited_through_an_outage_is_sent_one_by_one() {
        let (mut exporter, buffer, sent) = exporter(vec![later(None), later(None)], 10);
        exporter.flush();
        exporter.flush();
        assert_eq!((buffer.len(), exporter.own.failure), (10, 2));
        exporter.flush();
        assert_eq!((buffer.len(), exporter.own.success), (0, 10));
        assert_eq!(*sent.lock().unwrap(), 12);
    }

    #[test]
    fn tries_come_later_and_later_up_to_a_bound_and_as_the_collector_wishes() {
        let (mut exporter, _, _) = exporter(Vec::new(), 0);
        let pauses: Vec<u64> = (0..8)
            .map(|failures| {
                exporter.failures = failures;
                exporter.pause(None).as_secs()
            })
            .collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 32, 32]);
        let wish = Duration::from_secs(7);
        assert_eq!(exporter.pause(Some(wish)), wish);
        assert_eq!(exporter.pause(Some(Duration::MAX)), WISH_MAX);
    }

    #[test]
    fn the_collectors_wish_is_handed_on() {
        let (mut exporter, _, _) = exporter(vec![later(Some(9))], 1);
        assert_eq!(exporter.flush(), Some(Duration::from_secs(9)));
        assert_eq!(exporter.flush(), None);
    }

    #[test]
    fn what_is_never_taken_does_not_hold_up_what_comes_behind_it_and_is_counted() {
        let never = Outcome::Never { why: "no".into() };
        let (mut exporter, buffer, _) = exporter(vec![never], 3);
        exporter.flush();
        assert_eq!((exporter.own.success, buffer.len()), (2, 0));
        // Those behind it were exported with the number.
        assert_eq!((exporter.own.dropped, buffer.dropped()), (1, 1));
    }

    #[test]
    fn what_was_collected_was_exported_or_is_counted_as_dropped() {
        let (mut exporter, buffer, _) = exporter(vec![later(None), later(None)], 250);
        assert_eq!((buffer.len(), buffer.dropped()), (100, 150));
        exporter.flush();
        for _ in 0..4 {
            buffer.push(buffer.first().unwrap().collection.clone());
        }
        exporter.flush();
        // Two tries that failed lost nothing.
        assert_eq!((buffer.len(), buffer.dropped()), (100, 154));
        exporter.flush();
        assert_eq!(buffer.len(), 0);
        assert_eq!((exporter.own.success, exporter.own.dropped), (100, 154));
    }
}
