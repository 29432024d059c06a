//! Sandboxes that run for the length of a test, or of many.

use std::ops::Deref;
use std::sync::{Arc, Mutex, Once, PoisonError};

use super::Home;

/// A state directory whose sandboxes are stopped in the end.
pub(crate) struct Guests(Home);

impl Guests {
    /// With a running sandbox `x`, of busybox.
    pub(crate) fn one() -> Guests {
        Guests::with(&[])
    }

    /// The same, with more options.
    pub(crate) fn with(options: &[&str]) -> Guests {
        Guests::of(Home::with_busybox(), &[options, &["busybox:test"]].concat())
    }

    /// With a running sandbox `x`, by the last words of `msb run`.
    pub(crate) fn of(home: Home, words: &[&str]) -> Guests {
        home.run([&["run", "-d", "--name", "x"], words].concat()).done();
        Guests(home)
    }

    /// With sandboxes that run already.
    pub(crate) fn running(home: Home) -> Guests {
        Guests(home)
    }

    /// The running sandbox `x`, of busybox, of all tests that only run commands in it: whose
    /// subject is neither its start, its end, its logs nor what else is in it.
    pub(crate) fn shared() -> SharedGuests {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        let guests = shared.get_or_insert_with(|| {
            stop_at_exit();
            Arc::new(Guests::one())
        });
        SharedGuests(Arc::clone(guests))
    }
}

impl Deref for Guests {
    type Target = Home;

    fn deref(&self) -> &Home {
        &self.0
    }
}

impl Drop for Guests {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            for (name, _) in self.sandboxes() {
                self.run(["stop", "--force", "--quiet", &name]).done();
            }
        }
    }
}

/// The sandbox that `Guests::shared` returns, until a test that uses it fails.
static SHARED: Mutex<Option<Arc<Guests>>> = Mutex::new(None);

/// A test's hold on the shared sandbox.
pub(crate) struct SharedGuests(Arc<Guests>);

impl Deref for SharedGuests {
    type Target = Guests;

    fn deref(&self) -> &Guests {
        &self.0
    }
}

impl Drop for SharedGuests {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        // It may be damaged: the next test gets another one.
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if shared.as_ref().is_some_and(|shared| Arc::ptr_eq(shared, &self.0)) {
            *shared = None;
        }
    }
}

/// Has the shared sandbox stopped when the program of the tests ends: nothing drops a static.
fn stop_at_exit() {
    extern "C" fn stop() {
        drop(SHARED.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: atexit only stores the address of a function that has no arguments and lives as long as the program.
        let stored = unsafe { libc::atexit(stop) };
        assert_eq!(stored, 0);
    });
}
