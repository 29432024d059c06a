//! Sandboxes that run for the length of a test.

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
        home.run([&["run", "-d", "--name", "x"], words].concat())
            .done();
        Guests(home)
    }
}

impl std::ops::Deref for Guests {
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
