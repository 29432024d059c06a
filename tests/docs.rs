//! Man pages, help texts and the names of the state directory say the same.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::{Home, stage};

/// Programs with a page of another section than 1: for nobody to start by hand.
const PLUMBING: [&str; 3] = ["msb-agent", "msb-supervisor", "msb-vmm"];

fn names(folder: &Path) -> BTreeSet<String> {
    let entries =
        fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// Every page in the source, as a file name.
fn pages() -> BTreeSet<String> {
    names(&stage("source/man"))
}

fn page(name: &str) -> String {
    fs::read_to_string(stage("source/man").join(name)).unwrap()
}

/// A page as it is read: without markup, every run of spaces one space.
fn read_page(name: &str) -> String {
    let output = Command::new("mandoc")
        .args(["-T", "utf8", "-O", "width=1000"])
        .arg(stage("source/man").join(name))
        .output();
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    // Bold and underlined letters are letters struck twice.
    let mut letters: Vec<char> = Vec::new();
    for letter in text.chars() {
        match letter {
            '\u{8}' => drop(letters.pop()),
            _ => letters.push(letter),
        }
    }
    letters
        .iter()
        .collect::<String>()
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

fn programs() -> BTreeSet<String> {
    names(&stage("prefix/bin"))
}

#[test]
fn every_program_has_a_page_and_every_page_a_program() {
    let expected: BTreeSet<String> = programs()
        .iter()
        .map(|program| format!("{program}.1"))
        .collect();
    let pages: BTreeSet<String> = pages()
        .into_iter()
        .filter(|page| page.ends_with(".1"))
        .collect();
    assert_eq!(expected, pages);
    for program in PLUMBING {
        assert!(
            stage("prefix/lib/msb").join(program).exists(),
            "{program} is not installed"
        );
    }
    let pages = self::pages();
    let plumbing = names(&stage("prefix/lib/msb"));
    // The guest's kernel, where the installation has brought one.
    for program in plumbing.iter().filter(|name| *name != "libkrunfw.so.5") {
        assert!(
            pages.contains(&format!("{program}.8")),
            "{program} has no page of section 8"
        );
    }
}

#[test]
fn every_page_is_installed() {
    for page in pages() {
        let section = page.rsplit('.').next().unwrap();
        let installed = stage("prefix/share/man")
            .join(format!("man{section}"))
            .join(&page);
        let installed =
            fs::read(&installed).unwrap_or_else(|error| panic!("{}: {error}", installed.display()));
        assert_eq!(
            installed,
            fs::read(stage("source/man").join(&page)).unwrap(),
            "{page}"
        );
    }
}

#[test]
fn no_page_has_anything_for_mandoc_to_remark() {
    for page in pages() {
        let output = Command::new("mandoc")
            .args(["-T", "lint", "-W", "warning"])
            .arg(stage("source/man").join(&page))
            .output();
        let output = output.unwrap();
        assert!(
            output.status.success(),
            "{page}: {}",
            String::from_utf8_lossy(&output.stdout)
        );
    }
}

#[test]
fn every_command_of_the_front_program_is_a_program_and_the_other_way_round() {
    let home = Home::new();
    let listed: BTreeSet<String> = home
        .run(["--list-commands"])
        .done()
        .lines()
        .map(str::to_owned)
        .collect();
    let aliases = [
        "copy", "load", "pull", "save", "images", "rmi", "registry", "help", "list", "remove",
        "status", "vol",
    ];
    for program in programs() {
        let Some(command) = program.strip_prefix("msb-") else {
            continue;
        };
        assert!(
            listed.contains(command),
            "{program} is no command of msb: {listed:?}"
        );
    }
    for command in listed
        .iter()
        .filter(|command| !aliases.contains(&command.as_str()))
    {
        assert!(
            programs().contains(&format!("msb-{command}")),
            "msb {command} is no program"
        );
    }
}

#[test]
fn every_help_text_has_an_example_and_comes_from_every_way_of_asking() {
    let home = Home::new();
    for program in programs() {
        let Some(command) = program.strip_prefix("msb-") else {
            continue;
        };
        let help = home.run([command, "--help"]).done();
        assert!(
            help.contains("Example"),
            "msb {command} --help has no example:\n{help}"
        );
        assert!(
            help.contains(&format!("msb {command}")),
            "the example of msb {command} is of something else:\n{help}"
        );
    }
    let help = home.run(["--help"]).done();
    assert_eq!(help, home.run(Vec::<&str>::new()).done());
    for group in ["Sandboxes", "Images"] {
        assert!(help.contains(group), "{help}");
    }
}

/// Options of a help text: words that begin with two dashes.
fn options(text: &str) -> BTreeSet<String> {
    let words = text.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '-'));
    words
        .filter(|word| word.len() > 3 && word.starts_with("--"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_option_of_a_help_text_is_in_the_page() {
    let home = Home::new();
    for program in programs() {
        let Some(command) = program.strip_prefix("msb-") else {
            continue;
        };
        let text = read_page(&format!("{program}.1")).replace(['\u{2010}', '\u{2212}'], "-");
        for option in options(&home.run([command, "--help"]).done()) {
            assert!(
                text.contains(&option),
                "{option} of msb {command} is not in {program}(1)"
            );
        }
    }
}

#[test]
fn every_name_of_the_state_directory_is_in_its_page() {
    let text = page("msb-state.5");
    let layout = fs::read_to_string(stage("source/layout.rs")).unwrap();
    let names: Vec<&str> = layout
        .lines()
        .filter(|line| line.starts_with("pub const ") && line.contains(": &str = "))
        .filter_map(|line| line.split('"').nth(1))
        .collect();
    assert!(names.len() > 15, "{names:?}");
    for name in names {
        assert!(text.contains(name), "'{name}' is not in msb-state(5)");
    }
}

#[test]
fn unknown_commands_are_answered_with_the_nearest_one() {
    let home = Home::new();
    let outcome = home.run(["rnu"]);
    assert_eq!(outcome.code, 2, "{outcome:?}");
    assert!(
        String::from_utf8_lossy(&outcome.stderr).contains("run"),
        "{outcome:?}"
    );
}
