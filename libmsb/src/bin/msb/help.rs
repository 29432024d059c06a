//! The grouped help, made from the table, and manual pages.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use libmsb::tools;

use crate::table::{self, Group};

/// Sections of the manual with pages of msb, in the order of search.
const SECTIONS: [&str; 4] = ["1", "8", "5", "7"];

/// Returns the grouped help.
pub(crate) fn text(all: bool) -> String {
    let mut text = String::from(
        "Usage: msb COMMAND [ARGUMENTS]\n\nEach sandbox is a microVM with a kernel of its own. There is no daemon.\n",
    );
    Group::SHOWN.iter().for_each(|group| put_group(&mut text, *group));
    if all {
        put_group(&mut text, Group::Plumbing);
        put_others(&mut text);
    }
    text.push_str(
        "\nOptions:\n  -h, --help       Print help; with --all, for all commands\n  -V, --version    Print version\n      \
         --tree       Print all commands; after a command, its options\n      \
         --error, --warn, --info, --debug, --trace  Set the verbosity\n\n\
         'msb help COMMAND' opens its manual page, 'msb COMMAND --help' lists its options.\n\
         'msb help msb' opens the tutorial.\n",
    );
    text
}

fn put_group(text: &mut String, group: Group) {
    text.push_str(&format!("\n{}:\n", group.title()));
    for command in table::of_group(group) {
        let names = command.names().collect::<Vec<_>>().join(", ");
        text.push_str(&format!("  {names:<14} {}\n", command.about));
    }
}

/// Adds `msb-*` programs that are not part of msb; `msb NAME` starts them too.
fn put_others(text: &mut String) {
    let others = others();
    if !others.is_empty() {
        text.push_str("\nOther programs named msb-*:\n");
        others.iter().for_each(|name| text.push_str(&format!("  {name}\n")));
    }
}

/// Returns the names of `msb-*` programs that are not in the table.
pub(crate) fn others() -> Vec<String> {
    let programs = tools::names_with_prefix("msb-");
    let ours = |program: &str| table::COMMANDS.iter().any(|command| command.program == program);
    let names = programs
        .iter()
        .filter(|program| !ours(program))
        .filter_map(|program| program.strip_prefix("msb-"));
    // A multi-call link such as msb-rm is in the table by its alias. Names with control characters
    // are left out.
    let plain = |name: &&str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic());
    names.filter(plain).filter(|name| table::find(name).is_none()).map(str::to_owned).collect()
}

/// Returns all commands and aliases, one per line. The long form has no aliases, and the summary
/// after a tab.
pub(crate) fn list(long: bool) -> String {
    let mut text = String::new();
    for command in table::COMMANDS.iter().filter(|command| command.group != Group::Plumbing) {
        match long {
            true => text.push_str(&format!("{}\t{}\n", command.name, command.about)),
            false => command.names().for_each(|name| text.push_str(&format!("{name}\n"))),
        }
    }
    for name in others() {
        text.push_str(&name);
        text.push_str(if long { "\ta program in PATH\n" } else { "\n" });
    }
    text
}

/// Returns all commands with their subcommands, which the programs print.
pub(crate) fn tree() -> String {
    let mut text = String::from("msb\n");
    for command in table::COMMANDS.iter().filter(|command| command.group != Group::Plumbing) {
        text.push_str(&format!("  {:<16} {}\n", command.name, command.about));
        if command.args.is_empty() && command.name != table::HELP {
            subtree(command.program)
                .lines()
                .for_each(|line| text.push_str(&format!("    {line}\n")));
        }
    }
    text
}

fn subtree(program: &str) -> String {
    let Ok(mut command) = tools::command(program) else {
        return String::new();
    };
    let output =
        command.args(["--generate", "tree"]).stdin(Stdio::null()).stderr(Stdio::null()).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}

/// Runs man(1) with the page of a topic by exec. Returns only if there is no page or exec fails.
pub(crate) fn become_manual(topic: &str) -> Option<io::Error> {
    let page = page_of(topic);
    // Without man(1) the caller prints the help of the program.
    let man = tools::find("man").ok()?;
    let found =
        own_page(&page).or_else(|| is_known_to(&man, &page).then(|| OsString::from(&page)))?;
    Some(Command::new(man).arg(found).exec())
}

/// Returns the page of a topic: for a command that of its program; `state` is msb-state(5);
/// `msb` is the overview.
fn page_of(topic: &str) -> String {
    match table::find(topic) {
        Some(command) => command.program.to_owned(),
        None if topic == "msb" || topic.starts_with("msb-") => topic.to_owned(),
        None => format!("msb-{topic}"),
    }
}

/// Returns the page of this installation, even if man(1) does not search its directory.
fn own_page(page: &str) -> Option<OsString> {
    // For msb itself, the overview: the page of the command is little more than the help.
    let sections: &[&str] = if page == "msb" { &["7", "1"] } else { &SECTIONS };
    let directories = tools::home_directories();
    let pages = directories.iter().flat_map(|directory| {
        sections.iter().map(move |section| {
            directory.join(format!("../share/man/man{section}/{page}.{section}"))
        })
    });
    pages.into_iter().find(|path: &PathBuf| path.is_file()).map(PathBuf::into_os_string)
}

fn is_known_to(man: &Path, page: &str) -> bool {
    let mut man = Command::new(man);
    man.args(["-w", page]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    man.status().is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_shows_each_command_once_and_plumbing_only_when_asked() {
        let (short, long) = (text(false), text(true));
        for command in table::COMMANDS {
            let shown = short.matches(command.about).count();
            assert_eq!(shown, usize::from(command.group != Group::Plumbing), "{}", command.name);
            assert_eq!(long.matches(command.about).count(), 1, "{}", command.name);
        }
    }

    #[test]
    fn no_line_of_the_help_is_wider_than_a_terminal() {
        assert!(
            text(true)
                .lines()
                .take_while(|line| !line.starts_with("Other programs"))
                .all(|line| line.len() <= 80)
        );
    }

    #[test]
    fn a_topic_leads_to_its_page() {
        assert_eq!(page_of("ls"), "msb-ls");
        assert_eq!(page_of("load"), "msb-image");
        assert_eq!(page_of("state"), "msb-state");
        assert_eq!(page_of("msb-wire"), "msb-wire");
        assert_eq!(page_of("msb"), "msb");
    }
}
