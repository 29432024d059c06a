//! The command tree and man page sections, made from a tool's own arguments.
//!
//! Every tool answers `--tree` with the deepest command that was named before it, whatever else was
//! typed or is missing; and the hidden flag `--generate man|tree`, as its only arguments. The front
//! command calls it at run time; `man/update` calls it when an option has changed.

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::Command;
use clap::builder::StyledStr;

use super::{error, mdoc, output};

/// A text that can be generated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generate {
    /// The sections COMMANDS and OPTIONS of the man page.
    Man,
    /// The commands, one per line, each with its line of help.
    Tree,
}

impl Generate {
    fn parse(word: &str) -> Option<Generate> {
        Some(match word {
            "man" => Generate::Man,
            "tree" => Generate::Tree,
            _ => return None,
        })
    }
}

/// Serves `--tree` or `--generate …`, if one of them is among the arguments (with the program's
/// name), and returns the exit code.
pub fn serve(tool: &str, args: &[OsString], command: impl FnOnce() -> Command) -> Option<ExitCode> {
    let result = match requested(args.iter().cloned()) {
        Some(Generate::Man) => print_text(&mdoc::sections(command())),
        Some(Generate::Tree) => print_tree(mdoc::without_details(command())),
        None => {
            let words = before_tree(args.iter().cloned())?;
            print_branch(mdoc::without_details(command()), &words)
        }
    };
    Some(error::exit_code(tool, result.map_err(Into::into)))
}

/// Parses the arguments (with the program's name), if they are exactly `--generate TEXT`.
pub fn requested(args: impl IntoIterator<Item = OsString>) -> Option<Generate> {
    let mut args = args.into_iter().skip(1);
    let (flag, what) = (args.next()?, args.next()?);
    if flag != "--generate" || args.next().is_some() {
        return None;
    }
    Generate::parse(what.to_str()?)
}

/// Returns the words before `--tree`, if it was typed, without the program's name. Words after `--`
/// are a command for the guest.
fn before_tree(args: impl IntoIterator<Item = OsString>) -> Option<Vec<OsString>> {
    let ours = args.into_iter().skip(1).take_while(|word| word != "--");
    let ours: Vec<OsString> = ours.collect();
    let end = ours.iter().position(|word| word == "--tree")?;
    Some(ours[..end].to_vec())
}

fn print_text(text: &str) -> io::Result<()> {
    let mut stdout = output::stdout();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Prints the commands below a tool, indented by their depth. Hidden ones are left out.
pub fn print_tree(mut command: Command) -> io::Result<()> {
    command.build();
    let mut text = String::new();
    put_tree(&mut text, &command, 0);
    print_text(&text)
}

/// Prints the deepest command that the words name, its options, and the commands below it with
/// their options.
fn print_branch(mut command: Command, words: &[OsString]) -> io::Result<()> {
    command.build();
    let mut branch = &command;
    for word in words {
        branch = branch.find_subcommand(word).unwrap_or(branch);
    }
    let mut text = String::new();
    put_branch(&mut text, branch, 0);
    print_text(&text)
}

fn put_branch(text: &mut String, command: &Command, depth: usize) {
    put_line(text, depth, command.get_name(), command.get_about());
    for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
        let short = arg.get_short();
        let short = short.map_or(String::new(), |short| format!("-{short}, "));
        put_line(text, depth + 1, &format!("{short}{arg}"), arg.get_help());
    }
    let children = command.get_subcommands();
    for child in children.filter(|child| !child.is_hide_set() && child.get_name() != "help") {
        put_branch(text, child, depth + 1);
    }
}

fn put_line(text: &mut String, depth: usize, name: &str, about: Option<&StyledStr>) {
    let name = format!("{}{name}", "  ".repeat(depth));
    let about = about.map(ToString::to_string).unwrap_or_default();
    text.push_str(format!("{name:<30} {about}").trim_end());
    text.push('\n');
}

fn put_tree(text: &mut String, command: &Command, depth: usize) {
    for child in
        command.get_subcommands().filter(|child| !child.is_hide_set() && child.get_name() != "help")
    {
        let about = child.get_about().map(ToString::to_string).unwrap_or_default();
        let name = format!("{}{}", "  ".repeat(depth), child.get_name());
        text.push_str(format!("{name:<16} {about}").trim_end());
        text.push('\n');
        put_tree(text, child, depth + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    #[test]
    fn the_flag_counts_only_when_it_is_all_that_was_typed() {
        assert_eq!(requested(args(&["t", "--generate", "tree"])), Some(Generate::Tree));
        assert_eq!(requested(args(&["t", "--generate", "man"])), Some(Generate::Man));
        assert_eq!(requested(args(&["t", "--generate", "soup"])), None);
        assert_eq!(requested(args(&["t", "x", "--generate", "tree"])), None);
        assert_eq!(requested(args(&["t", "--generate", "tree", "x"])), None);
    }

    #[test]
    fn the_tree_of_a_command_is_asked_for_anywhere_before_a_command_of_a_guest() {
        let words = before_tree(args(&["t", "load", "-q", "--tree", "--other"]));
        assert_eq!(words, Some(args(&["load", "-q"])));
        assert_eq!(before_tree(args(&["t", "x", "--", "ls", "--tree"])), None);
    }

    #[test]
    fn a_branch_has_the_options_of_its_commands() {
        let input = clap::Arg::new("input").long("input").short('i').help("What to read");
        let mut command = Command::new("t")
            .subcommand(Command::new("load").about("Load it").disable_help_flag(true).arg(input));
        command.build();
        let mut text = String::new();
        put_branch(&mut text, command.find_subcommand("load").unwrap(), 0);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(lines[0].starts_with("load ") && lines[0].ends_with(" Load it"), "{text}");
        assert!(
            lines[1].starts_with("  -i, --input <input> ") && lines[1].ends_with(" What to read"),
            "{text}"
        );
    }

    #[test]
    fn the_tree_shows_commands_below_each_other() {
        let mut command = Command::new("t")
            .subcommand(
                Command::new("outer")
                    .about("Outer one")
                    .subcommand(Command::new("inner").about("Inner one")),
            )
            .subcommand(Command::new("secret").hide(true));
        command.build();
        let mut text = String::new();
        put_tree(&mut text, &command, 0);
        assert_eq!(text, "outer            Outer one\n  inner          Inner one\n");
    }
}
