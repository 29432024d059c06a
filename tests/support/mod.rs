//! Code that the tests share: the programs, a state directory of one's own, and exact comparisons.

mod command;
/// Reading the disks of images.
pub(crate) mod erofs;
/// A machine that sends wicked requests to the server of a share.
pub(crate) mod fuse;
mod guests;
mod home;
/// System calls made by other processes.
pub(crate) mod inject;
/// A network of the test's own.
pub(crate) mod internet;
mod link;
/// A name server.
pub(crate) mod names;
/// Exports, and those who receive them.
pub(crate) mod otlp;
mod processes;
mod random;
mod registry;
mod server;
/// Writing archives.
pub(crate) mod tar;
mod terminal;

pub(crate) use command::{Outcome, Running};
pub(crate) use guests::Guests;
pub(crate) use home::Home;
pub(crate) use internet::Internet;
pub(crate) use link::Link;
pub(crate) use processes::{Process, open_files};
pub(crate) use random::Random;
pub(crate) use registry::Registry;
pub(crate) use server::{Relay, Request, Server, answer, tunnel};
pub(crate) use terminal::Terminal;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A file system of a few megabytes, for one test at a time.
pub(crate) fn full_disk() -> (MutexGuard<'static, ()>, PathBuf) {
    static ONE: Mutex<()> = Mutex::new(());
    // Another test that failed has left it as it was.
    let guard = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    (guard, ground("full"))
}

/// Longest time that anything may take. It is never waited for: only what hangs meets it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

/// A path below the directory that tests/stage has made, which nothing changes.
pub(crate) fn stage(path: &str) -> PathBuf {
    below("MSB_TEST_STAGE", path)
}

/// A path below the directory that tests/run has made for this run.
pub(crate) fn ground(path: &str) -> PathBuf {
    below("MSB_TEST_GROUND", path)
}

fn below(variable: &str, path: &str) -> PathBuf {
    let Some(directory) = std::env::var_os(variable) else {
        panic!("{variable} is not set: run the tests with tests/run");
    };
    Path::new(&directory).join(path)
}

/// An image, or the tree that must be seen in it; see tests/parts/fixtures/make.
pub(crate) fn fixture(name: &str) -> PathBuf {
    stage("fixtures").join(name)
}

/// The text of a fixture.
pub(crate) fn fixture_text(name: &str) -> String {
    std::fs::read_to_string(fixture(name)).unwrap()
}

/// Waits until something is so, looking often.
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Bytes as text, shortened in the middle when long.
pub(crate) fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    if text.len() <= 4000 {
        return text.into_owned();
    }
    let start: String = text.chars().take(2000).collect();
    let end: Vec<char> = text.chars().rev().take(1500).collect();
    format!(
        "{start}\n[… {} bytes in all …]\n{}",
        bytes.len(),
        end.into_iter().rev().collect::<String>()
    )
}
