//! Shell completions and the command tree, made from a tool's own arguments, so they cannot drift.
//!
//! Every tool answers `--tree` by the deepest command that was named before it, whatever else was typed or is missing; and
//! the hidden flag `--generate completions-bash|completions-zsh|completions-fish|tree`, as its only
//! arguments. The scripts of the front command ask it at run time.

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::Command;
use clap::builder::StyledStr;
use clap_complete::Shell;

use super::{error, output};

/// What can be generated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generate {
    /// A completion script.
    Completions(Shell),
    /// Commands, one a line, below each other, each with its line of help.
    Tree,
}

impl Generate {
    fn parse(word: &str) -> Option<Generate> {
        Some(match word {
            "completions-bash" => Generate::Completions(Shell::Bash),
            "completions-zsh" => Generate::Completions(Shell::Zsh),
            "completions-fish" => Generate::Completions(Shell::Fish),
            "tree" => Generate::Tree,
            _ => return None,
        })
    }
}

/// If `--tree` or `--generate …` was typed: answers it, and gives the exit code. Call it before parsing.
pub fn serve(tool: &str, command: impl FnOnce() -> Command) -> Option<ExitCode> {
    let result = match requested(std::env::args_os()) {
        Some(Generate::Completions(shell)) => print(shell, command()),
        Some(Generate::Tree) => print_tree(command()),
        None => print_branch(command(), &before_tree(std::env::args_os())?),
    };
    Some(error::exit_code(tool, result.map_err(Into::into)))
}

/// What the arguments (with the program's name) ask for, if they are exactly `--generate WHAT`.
pub fn requested(args: impl IntoIterator<Item = OsString>) -> Option<Generate> {
    let mut args = args.into_iter().skip(1);
    let (flag, what) = (args.next()?, args.next()?);
    if flag != "--generate" || args.next().is_some() {
        return None;
    }
    Generate::parse(what.to_str()?)
}

/// The words before `--tree`, if it was typed, without the program's name. What follows `--` is a command of a guest.
fn before_tree(args: impl IntoIterator<Item = OsString>) -> Option<Vec<OsString>> {
    let ours = args.into_iter().skip(1).take_while(|word| word != "--");
    let ours: Vec<OsString> = ours.collect();
    let end = ours.iter().position(|word| word == "--tree")?;
    Some(ours[..end].to_vec())
}

/// Prints the completion script of a tool.
pub fn print(shell: Shell, command: Command) -> io::Result<()> {
    let mut stdout = output::stdout();
    stdout.write_all(script(shell, command).as_bytes())?;
    stdout.flush()
}

fn script(shell: Shell, mut command: Command) -> String {
    let name = command.get_name().to_owned();
    // clap_complete 4.6 spells the names of subcommands in two ways in one bash script when the program's name has a
    // dash, so none would ever match. It gets a name without, and the line that registers the script the real one.
    let plain = if shell == Shell::Bash {
        name.replace('-', "_")
    } else {
        name.clone()
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, &plain, &mut script);
    let script = String::from_utf8_lossy(&script).into_owned();
    if plain == name {
        script
    } else {
        script.replace(&format!(" {plain}\n"), &format!(" {name}\n"))
    }
}

/// Prints the commands below a tool, indented by their depth. Hidden ones are left out.
pub fn print_tree(mut command: Command) -> io::Result<()> {
    command.build();
    let mut text = String::new();
    put_tree(&mut text, &command, 0);
    let mut stdout = output::stdout();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Prints the deepest command that the words name, its options, and the commands below it with theirs.
fn print_branch(mut command: Command, words: &[OsString]) -> io::Result<()> {
    command.build();
    let mut branch = &command;
    for word in words {
        branch = branch.find_subcommand(word).unwrap_or(branch);
    }
    let mut text = String::new();
    put_branch(&mut text, branch, 0);
    let mut stdout = output::stdout();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
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
    for child in command
        .get_subcommands()
        .filter(|child| !child.is_hide_set() && child.get_name() != "help")
    {
        let about = child
            .get_about()
            .map(ToString::to_string)
            .unwrap_or_default();
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
        assert_eq!(
            requested(args(&["t", "--generate", "tree"])),
            Some(Generate::Tree)
        );
        let zsh = requested(args(&["t", "--generate", "completions-zsh"]));
        assert_eq!(zsh, Some(Generate::Completions(Shell::Zsh)));
        assert_eq!(requested(args(&["t", "--generate", "soup"])), None);
        assert_eq!(requested(args(&["t", "x", "--generate", "tree"])), None);
        assert_eq!(requested(args(&["t", "--generate", "tree", "x"])), None);
    }

    #[test]
    fn a_bash_script_knows_the_subcommands_of_a_program_with_a_dash_in_its_name() {
        let load = Command::new("load").arg(clap::Arg::new("input").long("input"));
        let script = script(Shell::Bash, Command::new("msb-image").subcommand(load));
        let assigned = script
            .lines()
            .find_map(|line| line.trim().strip_prefix("cmd=\"")?.strip_suffix("__load\""));
        assert!(
            script.contains(&format!("        {}__load)\n", assigned.unwrap())),
            "{script}"
        );
        assert!(script.trim_end().ends_with(" msb-image\nfi"), "{script}");
    }

    #[test]
    fn the_tree_of_a_command_is_asked_for_anywhere_before_a_command_of_a_guest() {
        let words = before_tree(args(&["t", "load", "-q", "--tree", "--other"]));
        assert_eq!(words, Some(args(&["load", "-q"])));
        assert_eq!(before_tree(args(&["t", "x", "--", "ls", "--tree"])), None);
    }

    #[test]
    fn a_branch_has_the_options_of_its_commands() {
        let input = clap::Arg::new("input")
            .long("input")
            .short('i')
            .help("What to read");
        let mut command = Command::new("t").subcommand(
            Command::new("load")
                .about("Load it")
                .disable_help_flag(true)
                .arg(input),
        );
        command.build();
        let mut text = String::new();
        put_branch(&mut text, command.find_subcommand("load").unwrap(), 0);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(
            lines[0].starts_with("load ") && lines[0].ends_with(" Load it"),
            "{text}"
        );
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
        assert_eq!(
            text,
            "outer            Outer one\n  inner          Inner one\n"
        );
    }
}
