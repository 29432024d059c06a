//! How much a tool says on standard error, beside what it was asked for.
//!
//! Every tool takes `--error`, `--warn`, `--info`, `--debug` and `--trace`, of which one counts. Without any of them it is
//! what the program that started it had ([`VARIABLE`]), and `info` at first. Errors, and what can be done about them, are
//! always said.

use std::ffi::OsString;
use std::process::Command;
use std::sync::OnceLock;

use clap::{Arg, ArgAction, ArgMatches};

use super::error::{Failure, print_line};

/// Carries the choice to the programs that a tool starts: one of the words of [`Verbosity::WORDS`].
pub const VARIABLE: &str = "MSB_VERBOSITY";

/// How much is said. Each has what is before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// Errors and hints.
    Error,
    /// Warnings.
    Warn,
    /// Notes.
    Info,
    /// What is done, step by step.
    Debug,
    /// Locks that are taken and files that are replaced.
    Trace,
}

impl Verbosity {
    /// What is typed, after two dashes, for each.
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

    fn word(self) -> &'static str {
        let found = Self::WORDS.iter().find(|(_, known)| *known == self);
        found.map_or("", |(word, _)| word)
    }
}

/// What was chosen, and the name under which it is spoken.
static CHOSEN: OnceLock<(String, Option<Verbosity>)> = OnceLock::new();

/// Whether that much is to be said.
pub fn says(verbosity: Verbosity) -> bool {
    verbosity <= chosen().unwrap_or(Verbosity::Info)
}

fn chosen() -> Option<Verbosity> {
    let typed = CHOSEN.get().and_then(|(_, typed)| *typed);
    typed.or_else(|| Verbosity::of(std::env::var_os(VARIABLE)?.to_str()?))
}

/// Whether a word is one of the options, of any tool.
pub fn is_option(word: &OsString) -> bool {
    let word = word.to_str().and_then(|word| word.strip_prefix("--"));
    word.and_then(Verbosity::of).is_some()
}

/// Says what is done: a step, or with [`Verbosity::Trace`] less than that. It is only put into words when it is said.
pub fn say(verbosity: Verbosity, message: impl FnOnce() -> String) {
    if verbosity > Verbosity::Info && says(verbosity) {
        let tool = CHOSEN.get().map_or("msb", |(tool, _)| tool);
        print_line(tool, verbosity.word(), &message());
    }
}

/// Gives a program that is to be started the choice that was typed.
pub fn hand_on(command: &mut Command) {
    if let Some((_, Some(typed))) = CHOSEN.get() {
        command.env(VARIABLE, typed.word());
    }
}

/// The tool's arguments with these options, which its help leaves to msb(1).
pub(super) fn with_options(command: clap::Command) -> clap::Command {
    let option = |word: &'static str| {
        let option = Arg::new(word).long(word).global(true).hide(true);
        option.action(ArgAction::SetTrue)
    };
    command.args(Verbosity::WORDS.map(|(word, _)| option(word)))
}

/// Keeps the choice for the life of the program.
pub(super) fn choose(tool: &str, matches: &ArgMatches) -> Result<(), Failure> {
    let typed = Verbosity::WORDS.iter();
    let typed: Vec<_> = typed.filter(|(word, _)| matches.get_flag(word)).collect();
    if let [(first, _), (second, _), ..] = typed[..] {
        return Err(Failure::usage(format!(
            "'--{first}' and '--{second}' cannot be had together"
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
        assert_eq!(
            error.to_string(),
            "'--warn' and '--trace' cannot be had together"
        );
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
