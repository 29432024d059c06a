//! The built programs, driven as a user drives them.
//!
//! Each test has a state directory of its own and compares what it sees with what it expects, to the byte where
//! that can be. The suite knows the programs by what they do: it shares no code with them. See tests/run.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by a panic"
)]

/// What may depend on what.
mod arrows;
/// Requests that cannot be done.
mod bad_input;
/// Environment, user, directory, labels: what a command finds itself in.
mod config;
/// Man pages, help texts and the state directory's names say the same.
mod docs;
/// What `run` and `exec` end with.
mod exit_codes;
/// Archives that mean harm.
mod hostile;
/// From an archive to the tree that a guest sees.
mod image_to_run;
/// Programs that are killed at any moment.
mod kill;
/// Sandboxes that last: started, used, listed, stopped, removed.
mod lifecycle;
/// Standard input, output and error.
mod streams;
/// What the tests stand on.
mod support;
/// Archives that other readers of tar are tested with.
mod tar_readers;
/// A person before a terminal.
mod terminal;
