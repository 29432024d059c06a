//! Completion of a command line in a shell: subcommands, options, their values, and names from the
//! state directory.
//!
//! A shell's script runs `msb --complete WORD...` with the words before the cursor, the last one
//! unfinished or empty. The front command passes them to the program of the command, which answers
//! from the definitions of its own arguments, so that an option is described in one place. Each
//! line of the answer is a candidate for the last word, with a tab and a description if there is
//! one. The line [`FILES`] stands for names of files, which the shell completes itself.
//!
//! Whatever goes wrong, the answer is empty: an error message would end up in the user's line.

/// Candidates for a word.
mod candidates;
/// The position of the last word in a command line.
mod line;
/// Names in the state directory.
mod names;
/// Kinds of values.
mod values;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Command;

pub use self::candidates::{Candidates, FILES, print};
use self::line::Place;
use self::values::ValueKind;
use crate::cli::{command_tree, mdoc};

/// The first argument of a program that is asked to complete a line.
pub const FLAG: &str = "--complete";

/// Serves `--complete`, `--tree` or `--generate …`, if one of them was typed, and returns the exit
/// code. Call it before parsing.
pub fn serve(tool: &str, command: impl FnOnce() -> Command) -> Option<ExitCode> {
    serve_args(tool, &std::env::args_os().collect::<Vec<_>>(), command)
}

/// [`serve`] for other arguments than those of the process. The first one is the program's name.
pub fn serve_args(
    tool: &str,
    args: &[OsString],
    command: impl FnOnce() -> Command,
) -> Option<ExitCode> {
    let Some(words) = requested(args) else {
        return command_tree::serve(tool, args, command);
    };
    print(&candidates(mdoc::without_details(command()), &words));
    Some(ExitCode::SUCCESS)
}

/// Returns the words to complete, if the arguments ask for completion.
pub fn requested(args: &[OsString]) -> Option<Vec<String>> {
    let (flag, words) = args.get(1..)?.split_first()?;
    let text = |word: &OsString| word.to_string_lossy().into_owned();
    (flag == FLAG).then(|| words.iter().map(text).collect())
}

/// Returns the candidates for the last word.
fn candidates(mut command: Command, words: &[String]) -> Candidates {
    command.build();
    let Some((current, before)) = words.split_last() else {
        return Candidates::new();
    };
    let position = line::position(&command, before, current);
    let mut found = Candidates::new();
    for place in position.places {
        match place {
            Place::Subcommand => found.extend(subcommands(position.command)),
            Place::Option => found.extend(options(position.command)),
            Place::Value { arg, prefix } => {
                let kind = ValueKind::of(position.command, arg);
                for (value, about) in kind.candidates(&position.operands) {
                    let value = if value == FILES { value } else { format!("{prefix}{value}") };
                    found.insert(value, about);
                }
            }
        }
    }
    found.retain(|name, _| name.starts_with(current.as_str()) || name == FILES);
    found
}

fn subcommands(command: &Command) -> Candidates {
    let shown = command.get_subcommands().filter(|sub| !sub.is_hide_set());
    let shown = shown.filter(|sub| sub.get_name() != "help");
    shown
        .flat_map(|sub| {
            let about = sub.get_about().map(ToString::to_string).unwrap_or_default();
            let names = std::iter::once(sub.get_name()).chain(sub.get_visible_aliases());
            names.map(|name| (name.to_owned(), about.clone())).collect::<Vec<_>>()
        })
        .collect()
}

fn options(command: &Command) -> Candidates {
    let shown = command.get_arguments().filter(|arg| !arg.is_hide_set() && !arg.is_positional());
    shown
        .filter_map(|arg| {
            let name = match (arg.get_long(), arg.get_short()) {
                (Some(long), _) => format!("--{long}"),
                (None, Some(short)) => format!("-{short}"),
                (None, None) => return None,
            };
            Some((name, arg.get_help().map(ToString::to_string).unwrap_or_default()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use clap::{Arg, ArgAction};

    use super::*;
    use crate::cli::args::SandboxName;

    fn tool() -> Command {
        let run = Command::new("run")
            .visible_alias("start")
            .about("Run it")
            .arg(Arg::new("level").long("level").short('l').value_parser(["high", "low"]))
            .arg(Arg::new("quiet").long("quiet").short('q').action(ArgAction::SetTrue))
            .arg(Arg::new("input").long("input").value_name("FILE"))
            .arg(Arg::new("net").long("net").value_name("GROUP"))
            .arg(Arg::new("size").long("size").value_name("SIZE"))
            .arg(Arg::new("secret").long("secret").hide(true))
            .arg(Arg::new("first").value_parser(["alpha", "beta"]))
            .arg(Arg::new("command").last(true).num_args(0..));
        Command::new("tool").subcommand(run).subcommand(Command::new("list"))
    }

    fn complete(words: &[&str]) -> Vec<String> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        candidates(tool(), &words).into_keys().collect()
    }

    #[test]
    fn the_first_word_is_a_subcommand_and_a_dash_an_option() {
        assert_eq!(complete(&[""]), ["list", "run", "start"]);
        assert_eq!(complete(&["ru"]), ["run"]);
        assert_eq!(
            complete(&["run", "-"]),
            ["--help", "--input", "--level", "--net", "--quiet", "--size"]
        );
        assert_eq!(complete(&["run", "--s"]), ["--size"]);
        assert_eq!(complete(&["--"]), ["--help"]);
    }

    #[test]
    fn a_value_follows_its_option_or_an_equals_sign() {
        assert_eq!(complete(&["run", "--level", ""]), ["high", "low"]);
        assert_eq!(complete(&["run", "-l", "h"]), ["high"]);
        assert_eq!(complete(&["run", "-ql", ""]), ["high", "low"]);
        assert_eq!(complete(&["run", "--level=l"]), ["--level=low"]);
        assert_eq!(complete(&["run", "--input", "x"]), [FILES]);
        assert_eq!(complete(&["run", "--net", "pu"]), ["public"]);
        assert_eq!(complete(&["run", "--size", ""]), [""; 0]);
    }

    #[test]
    fn operands_are_counted_without_options_and_their_values() {
        for before in [&["run"][..], &["run", "-q"], &["start", "--size", "1"], &["run", "-lhigh"]]
        {
            assert_eq!(complete(&[before, &["a"]].concat()), ["alpha"], "{before:?}");
        }
        // The words of the guest's command are the guest's.
        for words in
            [&["run", "alpha", ""][..], &["run", "alpha", "--", "-"], &["run", "a", "b", "-"]]
        {
            assert_eq!(complete(words), [""; 0], "{words:?}");
        }
        assert_eq!(complete(&["run", "alpha", "--qu"]), ["--quiet"]);
        assert_eq!(complete(&["run", "--", "b"]), ["beta"]);
    }

    #[test]
    fn a_line_that_makes_no_sense_has_no_candidates() {
        for words in [&["nothing", ""][..], &["run", "--nothing", "-", "x", "--level=\u{1b}"], &[]]
        {
            assert_eq!(complete(words), [""; 0], "{words:?}");
        }
    }

    #[test]
    fn an_argument_of_the_type_of_a_name_has_names() {
        let command = Command::new("msb-x")
            .arg(Arg::new("id").value_parser(clap::value_parser!(SandboxName)));
        let arg = command.get_arguments().next().unwrap();
        assert_eq!(ValueKind::of(&command, arg), ValueKind::Sandbox);
    }
}
