//! The event loop: waits for descriptors and deadlines, and knows nothing of sandboxes.

use std::os::fd::BorrowedFd;
use std::time::Instant;

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// A descriptor that is ready, by its key, and its poll flags.
pub(crate) type ReadySource<K> = (K, PollFlags);

/// Descriptors to wait for, each with a key.
pub(crate) struct PollSet<'a, K> {
    keys: Vec<K>,
    fds: Vec<PollFd<'a>>,
}

impl<'a, K: Copy> PollSet<'a, K> {
    /// Creates an empty set.
    pub(crate) fn new() -> PollSet<'a, K> {
        PollSet { keys: Vec::new(), fds: Vec::new() }
    }

    /// Adds a descriptor to wait for. A hang-up is reported whatever the flags are.
    pub(crate) fn add(&mut self, key: K, fd: BorrowedFd<'a>, flags: PollFlags) {
        self.keys.push(key);
        self.fds.push(PollFd::from_borrowed_fd(fd, flags));
    }

    /// Adds a descriptor to read from.
    pub(crate) fn add_input(&mut self, key: K, fd: BorrowedFd<'a>) {
        self.add(key, fd, PollFlags::IN);
    }

    /// Waits until a descriptor is ready or the deadline has passed. Returns the ready descriptors
    /// in the order of their addition; none after the deadline or a signal.
    pub(crate) fn wait(mut self, deadline: Option<Instant>) -> anyhow::Result<Vec<ReadySource<K>>> {
        let timeout = deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) }
        });
        match poll(&mut self.fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for events"),
        }
        let ready = self.keys.into_iter().zip(&self.fds).map(|(key, fd)| (key, fd.revents()));
        Ok(ready.filter(|(_, flags)| !flags.is_empty()).collect())
    }
}

/// A program that the event loop drives.
pub(crate) trait EventHandler {
    /// Key of a descriptor.
    type Source: Copy;

    /// Returns whether the loop ends.
    fn is_done(&self) -> bool;

    /// Adds the descriptors to wait for.
    fn sources<'a>(&'a self, set: &mut PollSet<'a, Self::Source>);

    /// Returns the time at which the loop wakes although no descriptor is ready.
    fn deadline(&self) -> Option<Instant>;

    /// Handles the ready descriptors and the deadlines that have passed.
    fn handle(&mut self, ready: Vec<ReadySource<Self::Source>>) -> anyhow::Result<()>;

    /// Handles an error of the loop or of a handler.
    fn fail(&mut self, error: &anyhow::Error);
}

/// Runs the event loop until its handler is done.
pub(crate) fn run(handler: &mut impl EventHandler) {
    while !handler.is_done() {
        let mut set = PollSet::new();
        handler.sources(&mut set);
        let handled = set.wait(handler.deadline()).and_then(|ready| handler.handle(ready));
        if let Err(error) = handled {
            handler.fail(&error);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;

    #[test]
    fn ready_descriptors_are_returned_in_their_order_with_their_flags() {
        let (mut a, a_peer) = UnixStream::pair().unwrap();
        let (silent, _silent_peer) = UnixStream::pair().unwrap();
        let (gone, gone_peer) = UnixStream::pair().unwrap();
        a.write_all(b"x").unwrap();
        drop(gone_peer);
        let mut set = PollSet::new();
        set.add("writable", a.as_fd(), PollFlags::OUT);
        set.add_input("silent", silent.as_fd());
        set.add_input("readable", a_peer.as_fd());
        set.add("gone", gone.as_fd(), PollFlags::empty());
        let ready = set.wait(None).unwrap();
        let keys: Vec<&str> = ready.iter().map(|(key, _)| *key).collect();
        assert_eq!(keys, ["writable", "readable", "gone"]);
        assert_eq!(ready[0].1, PollFlags::OUT);
        assert_eq!(ready[1].1, PollFlags::IN);
        assert!(ready[2].1.contains(PollFlags::HUP));
    }

    #[test]
    fn a_deadline_that_has_passed_does_not_block() {
        let (silent, _peer) = UnixStream::pair().unwrap();
        let past = Instant::now().checked_sub(Duration::from_secs(1)).unwrap();
        let mut set = PollSet::new();
        set.add_input((), silent.as_fd());
        assert!(set.wait(Some(past)).unwrap().is_empty());
    }

    /// A handler that fails once, then counts to three by deadlines.
    #[derive(Default)]
    struct Counter {
        turns: u32,
        failures: u32,
    }

    impl EventHandler for Counter {
        type Source = ();

        fn is_done(&self) -> bool {
            self.turns == 3
        }

        fn sources<'a>(&'a self, _: &mut PollSet<'a, ()>) {}

        fn deadline(&self) -> Option<Instant> {
            Some(Instant::now())
        }

        fn handle(&mut self, ready: Vec<ReadySource<()>>) -> anyhow::Result<()> {
            assert!(ready.is_empty());
            self.turns += 1;
            anyhow::ensure!(self.turns > 1, "the first turn");
            Ok(())
        }

        fn fail(&mut self, error: &anyhow::Error) {
            assert_eq!(error.to_string(), "the first turn");
            self.failures += 1;
        }
    }

    #[test]
    fn the_loop_goes_on_after_an_error_until_its_handler_is_done() {
        let mut counter = Counter::default();
        run(&mut counter);
        assert_eq!((counter.turns, counter.failures), (3, 1));
    }
}
