//! The front command, similar to git's: `msb X …` replaces itself with the program `msb-X …` by
//! exec, so signals, terminal and exit status need no forwarding. Programs are searched beside this
//! one, then in `PATH`, so users can add commands.

mod docker;
mod help;
mod installed;
mod nearest;
mod table;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use libmsb::cli::error::{Code, Failure, check_format, print_failure};
use libmsb::cli::{exit, verbosity};
use libmsb::{complete, tools};

use table::Command;

fn main() -> ExitCode {
    ExitCode::from(match check_format() {
        Ok(()) => run(std::env::args_os().skip(1).collect()),
        Err(failure) => {
            print_failure("msb", &failure.into());
            exit::USAGE
        }
    })
}

/// Runs a command line, without the program's name. Returns the exit code.
fn run(mut args: Vec<OsString>) -> u8 {
    // Verbosity options may precede the command and are passed to its program.
    let options = args.iter().take_while(|word| verbosity::is_option(word));
    let mut rest = args.split_off(options.count());
    if rest.is_empty() {
        return print(&help::text(false));
    }
    let word = rest.remove(0).to_string_lossy().into_owned();
    match word.as_str() {
        "-h" | "--help" | table::HELP => show_help(&rest),
        "-V" | "-v" | "--version" | "version" => show_version(&rest),
        "completion" | "completions" => print_script(&rest),
        "--tree" => print(&help::tree()),
        "--list-commands" => print(&help::list(rest == ["--long"])),
        complete::FLAG => complete_line(&rest),
        _ if word.starts_with('-') => fail(
            exit::USAGE,
            &format!("unknown option '{word}'"),
            "put the options of a command after its name",
        ),
        _ => start(&word, [args, rest].concat()),
    }
}

/// Prints the version; with `--format json` as an object.
fn show_version(rest: &[OsString]) -> u8 {
    let words: Vec<_> = rest.iter().map(|word| word.to_string_lossy()).collect();
    let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
    match words.as_slice() {
        ["--format", "json"] | ["--format=json"] => {
            let version = serde_json::json!({
                "version": env!("CARGO_PKG_VERSION"),
                "os": std::env::consts::OS,
                "arch": std::env::consts::ARCH,
                "directory": std::env::current_exe().ok().and_then(|path| Some(path.parent()?.to_path_buf())),
            });
            match libmsb::jsonl::to_string_pretty(&version) {
                Ok(text) => print(&format!("{text}\n")),
                Err(error) => fail(exit::FAILED, &error.to_string(), ""),
            }
        }
        [] => print(concat!("msb ", env!("CARGO_PKG_VERSION"), "\n")),
        [word, ..] => {
            let word = libmsb::cli::error::clean(word).into_owned();
            fail(exit::USAGE, &format!("unexpected argument '{word}'"), "msb version --format json")
        }
    }
}

/// Replaces this process with the program of a command.
fn start(word: &str, rest: Vec<OsString>) -> u8 {
    if let Some(command) = table::find(word) {
        return become_command(word, command, rest);
    }
    if tools::find(&format!("msb-{word}")).is_ok() {
        return become_program(&format!("msb-{word}"), None, rest);
    }
    match docker::translate(word, &rest) {
        Some(Ok((name, args))) => match table::find(name) {
            Some(command) => become_command(word, command, args),
            None => unknown(word, &rest),
        },
        Some(Err(message)) => fail(exit::USAGE, &message, ""),
        None => unknown(word, &rest),
    }
}

/// Replaces this process with the program of a command that was typed as `word`.
fn become_command(word: &str, command: &Command, args: Vec<OsString>) -> u8 {
    let typed = format!("msb {word}");
    // Messages of programs that users do not type name the program's file.
    let typed = (command.group != table::Group::Plumbing).then_some(typed.as_str());
    let args = command.args.iter().map(OsString::from).chain(args);
    become_program(command.program, typed, args)
}

fn become_program(
    program: &str,
    typed: Option<&str>,
    args: impl IntoIterator<Item = OsString>,
) -> u8 {
    let error = tools::exec(program, typed, args);
    // Callers of `msb run` and `msb exec` tell failures of msb from those of the guest's command by
    // this code.
    let code = if ["msb-run", "msb-exec"].contains(&program) {
        exit::COMMAND_NOT_STARTED
    } else {
        exit::FAILED
    };
    match error.kind() {
        io::ErrorKind::NotFound => fail(
            code,
            &format!("cannot find the program '{program}'"),
            "reinstall msb: libmsb/install puts it beside 'msb'",
        ),
        _ => fail(
            code,
            &format!("cannot start '{program}': {}", libmsb::cli::error::clean(&error.to_string())),
            "",
        ),
    }
}

fn unknown(word: &str, rest: &[OsString]) -> u8 {
    if let Some(answer) = docker::missing(word, rest) {
        return fail(exit::USAGE, &format!("there is no command '{word}': {answer}"), "");
    }
    if installed::NAMES.contains(&word) {
        let message = format!("there is no command '{word}': {}", installed::answer());
        return fail(exit::USAGE, &message, "");
    }
    let others = help::others();
    let shown = table::COMMANDS.iter().filter(|command| command.group != table::Group::Plumbing);
    let mut names: Vec<&str> = shown.flat_map(Command::names).collect();
    names.extend(others.iter().map(String::as_str));
    let near = nearest::nearest(word, names);
    let hint = match near.as_slice() {
        [] => "'msb help' lists the commands".to_owned(),
        near => format!(
            "did you mean {}?",
            near.iter().map(|n| format!("'msb {n}'")).collect::<Vec<_>>().join(" or ")
        ),
    };
    fail(exit::USAGE, &format!("there is no command '{word}'"), &hint)
}

/// Handles `help`, `help --all`, `help TOPIC`.
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
            &format!("unknown option '{topic}' of 'msb help'"),
            "'msb help --all' shows everything",
        ),
        topic => show_topic(topic),
    }
}

/// Shows the manual page, or without man(1) or the page the program's own help.
fn show_topic(topic: &str) -> u8 {
    let is_name = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if !topic.chars().all(is_name) || topic.is_empty() {
        return unknown(topic, &[]);
    }
    let translated = docker::translate(topic, &[]).and_then(Result::ok);
    let topic = translated.as_ref().map_or(topic, |(command, _)| *command);
    if let Some(error) = help::become_manual(topic) {
        let reason = libmsb::cli::error::clean(&error.to_string()).into_owned();
        return fail(exit::FAILED, &format!("cannot start 'man': {reason}"), "");
    }
    match table::find(topic) {
        Some(Command { name: table::HELP, .. }) => print(&help::text(false)),
        Some(_) => start(topic, vec!["--help".into()]),
        None if tools::find(&format!("msb-{topic}")).is_ok() => start(topic, vec!["--help".into()]),
        None => unknown(topic, &[]),
    }
}

/// Prints the completion script of a shell.
fn print_script(rest: &[OsString]) -> u8 {
    match rest {
        [shell] if docker::script(shell).is_some() => {
            print(docker::script(shell).unwrap_or_default())
        }
        _ => fail(
            exit::USAGE,
            "'msb completion' needs the name of a shell: bash, fish or zsh",
            "use it now: source <(msb completion bash)",
        ),
    }
}

/// For completion scripts: prints the candidates for the last word. Those of a command come from its
/// program.
fn complete_line(words: &[OsString]) -> u8 {
    match words {
        [] => {}
        [current] => complete::print(&candidates(current, true)),
        [word, current] if word == table::HELP => complete::print(&candidates(current, false)),
        [word, shell] if word == "completion" => {
            complete::print(&starting(docker::shells(), shell))
        }
        [word, rest @ ..] => {
            let Some(word) = word.to_str() else { return exit::DONE };
            // Only the name matters: arguments that a synonym adds are options.
            let translated = docker::translate(word, &[]).and_then(Result::ok);
            let (word, added) = translated.unwrap_or((word, Vec::new()));
            let Some(command) = table::find(word) else { return exit::DONE };
            if command.name == table::HELP {
                return exit::DONE;
            }
            let fixed = [complete::FLAG].into_iter().chain(command.args.iter().copied());
            let fixed: Vec<OsString> = fixed.map(OsString::from).chain(added).collect();
            // A program that cannot be started has no candidates.
            let _ =
                tools::exec(command.program, None, fixed.into_iter().chain(rest.iter().cloned()));
        }
    }
    exit::DONE
}

/// Returns the commands that start with a word, or after a dash the options of `msb`.
fn candidates(current: &OsString, with_options: bool) -> complete::Candidates {
    let current_text = current.to_string_lossy();
    if with_options && current_text.starts_with('-') {
        return starting(["--help", "--tree", "--version"], current);
    }
    let (names, described) = (help::list(false), help::list(true));
    let mut found = starting(names.lines(), current);
    for (name, about) in described.lines().filter_map(|line| line.split_once('\t')) {
        if let Some(found) = found.get_mut(name) {
            about.clone_into(found);
        }
    }
    found
}

fn starting<'a>(
    words: impl IntoIterator<Item = &'a str>,
    current: &OsString,
) -> complete::Candidates {
    let current = current.to_string_lossy();
    let matching = words.into_iter().filter(|word| word.starts_with(current.as_ref()));
    matching.map(|word| (word.to_owned(), String::new())).collect()
}

/// Prints to standard output. A closed pipe is no failure.
fn print(text: &str) -> u8 {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let reason = libmsb::cli::error::clean(&error.to_string()).into_owned();
            fail(exit::FAILED, &format!("cannot write to standard output: {reason}"), "")
        }
        _ => exit::DONE,
    }
}

/// Prints an error in the form of all tools, and returns the exit code.
fn fail(code: u8, message: &str, hint: &str) -> u8 {
    let failure = Failure::failed(message).code(match code {
        exit::USAGE => Code::Usage,
        exit::NOT_FOUND => Code::NotFound,
        _ => Code::Failed,
    });
    let failure = if hint.is_empty() { failure } else { failure.hint(hint) };
    print_failure("msb", &failure.into());
    code
}
