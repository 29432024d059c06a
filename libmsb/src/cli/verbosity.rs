//! Verbosity of messages on standard error.
//!
//! Every tool accepts `--error`, `--warn`, `--info`, `--debug` and `--trace`, one of them at most.
//! The default is that of the program that started it ([`VARIABLE`]), else that of the user's
//! configuration, else `info`. Errors and their hints are always printed.

use std::ffi::OsString;
use std::process::Command;
use std::sync::OnceLock;

use clap::{Arg, ArgAction, ArgMatches};

use super::error::{Failure, print_line};

/// Environment variable that passes the verbosity to child processes: one of the words of
/// [`Verbosity::WORDS`].
pub const VARIABLE: &str = "MSB_VERBOSITY";

/// Verbosity level. Each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// Errors and hints.
    Error,
    /// Warnings.
    Warn,
    /// Notes.
    Info,
    /// Steps of the work.
    Debug,
    /// Details: locks and replaced files.
    Trace,
}

impl std::str::FromStr for Verbosity {
    type Err = Failure;

    fn from_str(word: &str) -> Result<Verbosity, Failure> {
        let invalid = || Failure::usage("not one of error, warn, info, debug, trace");
        Verbosity::of(word).ok_or_else(invalid)
    }
}

impl Verbosity {
    /// Option name of each level, without the two dashes.
    pub const WORDS: [(&str, Verbosity); 5] = [
        ("error", Verbosity::Error),
        ("warn", Verbosity::Warn),
        ("info", Verbosity::Info),
        ("debug", Verbosity::Debug),
        ("trace", Verbosity::Trace),
    ];

    fn of(word: &str) -> Option<Verbosity> {
        let found = Self::WORDS.iter().find(|(known, _)| *known == word);
        found.map(|(_, verbosity)| *verbosity)
    }

    fn name(self) -> &'static str {
        let found = Self::WORDS.iter().find(|(_, known)| *known == self);
        found.map_or("", |(word, _)| word)
    }
}

/// Level of the user's configuration.
static CONFIGURED: OnceLock<Verbosity> = OnceLock::new();

/// Name of the tool and its level.
static CHOSEN: OnceLock<(String, Option<Verbosity>)> = OnceLock::new();

/// Returns whether messages of a level are printed.
pub fn is_enabled(verbosity: Verbosity) -> bool {
    verbosity <= chosen().unwrap_or(Verbosity::Info)
}

/// Level of an option of one command, such as `msb run --quiet`.
static COMMAND_LEVEL: OnceLock<Verbosity> = OnceLock::new();

/// Sets the level for the rest of the process and for its child processes.
pub fn set(verbosity: Verbosity) {
    let _ = COMMAND_LEVEL.set(verbosity);
}

fn chosen() -> Option<Verbosity> {
    if let Some(level) = COMMAND_LEVEL.get() {
        return Some(*level);
    }
    let typed = CHOSEN.get().and_then(|(_, typed)| *typed);
    let passed = || Verbosity::of(std::env::var_os(VARIABLE)?.to_str()?);
    typed.or_else(passed).or_else(|| CONFIGURED.get().copied())
}

/// Sets the level for a process that got none from its command line or environment.
pub fn set_default(verbosity: Verbosity) {
    let _ = CONFIGURED.set(verbosity);
}

/// Returns whether a word is one of these options, which every tool has.
pub fn is_option(word: &OsString) -> bool {
    let word = word.to_str().and_then(|word| word.strip_prefix("--"));
    word.and_then(Verbosity::of).is_some()
}

/// Prints a message of level [`Verbosity::Debug`] or [`Verbosity::Trace`]. The message is only
/// formatted if it is printed.
pub fn log(verbosity: Verbosity, message: impl FnOnce() -> String) {
    if verbosity > Verbosity::Info && is_enabled(verbosity) {
        let tool = CHOSEN.get().map_or("msb", |(tool, _)| tool);
        print_line(tool, verbosity.name(), &message());
    }
}

/// Passes the level to a child process, if the user gave one.
pub fn pass_to_child(command: &mut Command) {
    let typed = CHOSEN.get().and_then(|(_, typed)| *typed);
    if let Some(level) = COMMAND_LEVEL.get().copied().or(typed) {
        command.env(VARIABLE, level.name());
    }
}

/// Adds these options to a tool's arguments. Its help leaves them to msb(1).
pub fn with_options(command: clap::Command) -> clap::Command {
    let option = |word: &'static str| {
        let option = Arg::new(word).long(word).global(true).hide(true);
        option.action(ArgAction::SetTrue)
    };
    command.args(Verbosity::WORDS.map(|(word, _)| option(word)))
}

/// Stores the level for the life of the process.
pub(super) fn choose(tool: &str, matches: &ArgMatches) -> Result<(), Failure> {
    let typed = Verbosity::WORDS.iter();
    let typed: Vec<_> = typed.filter(|(word, _)| matches.get_flag(word)).collect();
    if let [(first, _), (second, _), ..] = typed[..] {
        return Err(Failure::usage(format!(
            "'--{first}' and '--{second}' cannot be used together"
        )));
    }
    let typed = typed.first().map(|(_, verbosity)| *verbosity);
    let _ = CHOSEN.set((tool.to_owned(), typed));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(words: &[&str]) -> ArgMatches {
        let command = clap::Command::new("t").subcommand(clap::Command::new("sub"));
        with_options(command).try_get_matches_from(words).unwrap()
    }

    #[test]
    fn the_options_stand_before_and_after_a_command_and_one_of_them_at_most() {
        for words in [["t", "--debug", "sub"], ["t", "sub", "--debug"]] {
            assert!(matches(&words).get_flag("debug"), "{words:?}");
        }
        let error = choose("t", &matches(&["t", "--warn", "sub", "--trace"])).unwrap_err();
        assert_eq!(error.to_string(), "'--warn' and '--trace' cannot be used together");
    }

    #[test]
    fn each_has_what_is_before_it_and_a_word_of_its_own() {
        for (word, verbosity) in Verbosity::WORDS {
            assert_eq!(Verbosity::of(word), Some(verbosity));
            assert!(is_option(&format!("--{word}").into()));
        }
        assert!(Verbosity::WORDS.is_sorted_by_key(|(_, verbosity)| *verbosity));
        assert!(!is_option(&"debug".into()) && !is_option(&"--verbose".into()));
    }
}
