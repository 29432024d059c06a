//! Shell completions and the command tree, made from a tool's own arguments, so they cannot drift.
//!
//! Every tool answers the hidden flag `--generate completions-bash|completions-zsh|completions-fish|tree`, as its only
//! arguments. The scripts of the front command ask it at run time.

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::Command;
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

/// If `--generate …` was typed: answers it, and gives the exit code. Call it before parsing.
pub fn serve(tool: &str, command: impl FnOnce() -> Command) -> Option<ExitCode> {
    let what = requested(std::env::args_os())?;
    let result = match what {
        Generate::Completions(shell) => print(shell, command()),
        Generate::Tree => print_tree(command()),
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
