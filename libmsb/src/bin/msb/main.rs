//! The front command, as git's: `msb X …` becomes the program `msb-X …`, by exec, so that signals, terminal and exit
//! status need no forwarding. Programs are looked for beside this one, then in `PATH`, so anybody can add a command.

mod help;
mod nearest;
mod table;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use libmsb::cli::escape::escape;
use libmsb::cli::{exit, verbosity};
use libmsb::tools;

use table::Command;

fn main() -> ExitCode {
    ExitCode::from(run(std::env::args_os().skip(1).collect()))
}

/// What was typed, without the program's name. Gives the exit code.
fn run(mut args: Vec<OsString>) -> u8 {
    // How much is to be said may stand before the command: its program takes that.
    let options = args.iter().take_while(|word| verbosity::is_option(word));
    let mut rest = args.split_off(options.count());
    if rest.is_empty() {
        return print(&help::text(false));
    }
    let word = rest.remove(0).to_string_lossy().into_owned();
    match word.as_str() {
        "-h" | "--help" | table::HELP => show_help(&rest),
        "-V" | "--version" => print(concat!("msb ", env!("CARGO_PKG_VERSION"), "\n")),
        "--tree" => print(&help::tree()),
        "--list-commands" => print(&help::list(rest == ["--long"])),
        "--resolve" => resolve(&rest),
        _ if word.starts_with('-') => fail(
            exit::USAGE,
            &format!("there is no option '{word}' here"),
            "options of a command follow its name",
        ),
        _ => start(&word, [args, rest].concat()),
    }
}

/// Becomes the program of a command.
fn start(word: &str, rest: Vec<OsString>) -> u8 {
    let Some(command) = table::find(word) else {
        return match tools::find(&format!("msb-{word}")) {
            Ok(_) => become_program(&format!("msb-{word}"), rest),
            Err(_) => unknown(word),
        };
    };
    // Completions are those of the whole program, whatever command of it was named.
    let fixed = if rest.first().is_some_and(|word| word == "--generate") {
        &[]
    } else {
        command.args
    };
    become_program(
        command.program,
        fixed.iter().map(OsString::from).chain(rest),
    )
}

fn become_program(program: &str, args: impl IntoIterator<Item = OsString>) -> u8 {
    let error = tools::exec(program, args);
    // Who runs a guest's command tells our failures from its own by this code.
    let code = if ["msb-run", "msb-exec"].contains(&program) {
        exit::COMMAND_NOT_STARTED
    } else {
        exit::FAILED
    };
    match error.kind() {
        io::ErrorKind::NotFound => fail(
            code,
            &format!("cannot find the program '{program}'"),
            "it is installed beside 'msb', by libmsb/install",
        ),
        _ => fail(
            code,
            &format!(
                "cannot start '{program}': {}",
                libmsb::cli::error::clean(&error.to_string())
            ),
            "",
        ),
    }
}

fn unknown(word: &str) -> u8 {
    let others = help::others();
    let shown = table::COMMANDS
        .iter()
        .filter(|command| command.group != table::Group::Plumbing);
    let mut names: Vec<&str> = shown.flat_map(Command::names).collect();
    names.extend(others.iter().map(String::as_str));
    let near = nearest::nearest(word, names);
    let hint = match near.as_slice() {
        [] => "'msb help' lists the commands".to_owned(),
        near => format!(
            "did you mean {}?",
            near.iter()
                .map(|n| format!("'msb {n}'"))
                .collect::<Vec<_>>()
                .join(" or ")
        ),
    };
    fail(exit::USAGE, &format!("there is no command '{word}'"), &hint)
}

/// `help`, `help --all`, `help TOPIC`.
fn show_help(rest: &[OsString]) -> u8 {
    let Some(topic) = rest.first() else {
        return print(&help::text(false));
    };
    let topic = topic.to_string_lossy();
    match topic.as_ref() {
        "-a" | "--all" => print(&help::text(true)),
        "-h" | "--help" => print(&help::text(false)),
        topic if topic.starts_with('-') => fail(
            exit::USAGE,
            &format!("there is no option '{topic}' of help"),
            "'msb help --all' shows everything",
        ),
        topic => show_topic(topic),
    }
}

/// The manual page; without man(1) or the page, the program's own help.
fn show_topic(topic: &str) -> u8 {
    let is_name = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if !topic.chars().all(is_name) || topic.is_empty() {
        return unknown(topic);
    }
    if let Some(error) = help::become_manual(topic) {
        let reason = libmsb::cli::error::clean(&error.to_string()).into_owned();
        return fail(exit::FAILED, &format!("cannot start 'man': {reason}"), "");
    }
    match table::find(topic) {
        Some(Command {
            name: table::HELP, ..
        }) => print(&help::text(false)),
        Some(_) => start(topic, vec!["--help".into()]),
        None if tools::find(&format!("msb-{topic}")).is_ok() => start(topic, vec!["--help".into()]),
        None => unknown(topic),
    }
}

/// For completion scripts: the program of a command and its leading arguments, in one line.
fn resolve(rest: &[OsString]) -> u8 {
    let Some(word) = rest.first().and_then(|word| word.to_str()) else {
        return exit::USAGE;
    };
    match table::find(word) {
        Some(Command {
            name: table::HELP, ..
        }) => exit::NOT_FOUND,
        Some(command) => print(&format!(
            "{}\n",
            [&[command.program], command.args].concat().join(" ")
        )),
        None => exit::NOT_FOUND,
    }
}

/// Prints to standard output. That nobody reads it is no failure.
fn print(text: &str) -> u8 {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let reason = libmsb::cli::error::clean(&error.to_string()).into_owned();
            fail(
                exit::FAILED,
                &format!("cannot write to standard output: {reason}"),
                "",
            )
        }
        _ => exit::DONE,
    }
}

/// Tells an error in the form of all tools, and gives the code back.
fn fail(code: u8, message: &str, hint: &str) -> u8 {
    let mut text = format!("msb: error: {}\n", escape(message));
    if !hint.is_empty() {
        text.push_str(&format!("msb: hint: {}\n", escape(hint)));
    }
    // Where standard error is closed there is nobody to tell.
    let _ = io::stderr().write_all(text.as_bytes());
    code
}
