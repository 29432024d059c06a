//! Examples of the manual pages, run from the pages.

use std::collections::BTreeSet;
use std::fs;

use crate::support::{Home, fixture, stage};

/// Programs of other projects, as far as an example needs them. Those that are not here are the
/// system's own.
const PEERS: &str = r#"
set -o pipefail
mmdebstrap() { cat "$DEBIAN"; }
docker() { cat "$BUSYBOX"; }
podman() { if [ "$1" = export ]; then cat "$DEBIAN"; else cat "$BUSYBOX"; fi; }
skopeo() { cat "$BUSYBOX"; }
ssh() { shift; MSB_HOME=$PWD/host sh -c "$*"; }
less() { cat; }
git() { tar -c src; }
parallel() { while [ "$1" != ::: ]; do shift; done; shift; for word; do msb exec worker -- echo "$word" || return; done; }
"#;

/// Returns the lines of the literal displays of a page that match `is_wanted`, which gets the title
/// of the section. A line that ends with a backslash goes on in the next one.
fn literal_lines(page: &str, is_wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let text = fs::read_to_string(stage("source/man").join(page)).unwrap();
    let (mut section, mut is_literal) = (String::new(), false);
    let mut lines: Vec<String> = Vec::new();
    let mut continues = false;
    for line in text.lines() {
        let single = line.strip_prefix(".Dl ");
        match line.split_once(' ') {
            Some((".Sh", title)) => section = title.to_owned(),
            Some((".Bd", _)) => is_literal = true,
            _ if line == ".Ed" => is_literal = false,
            _ if is_wanted(&section) && (is_literal || single.is_some()) => {
                let line = single.unwrap_or(line).replace("\\e", "\\").replace("\\&", "");
                match lines.last_mut().filter(|_| continues) {
                    Some(last) => *last = format!("{}{}", last.trim_end_matches('\\'), line.trim()),
                    None => lines.push(line.clone()),
                }
                continues = line.ends_with('\\');
            }
            _ => {}
        }
    }
    lines
}

/// Returns the commands of a session, lines with `$`, each with the output below it.
fn session(lines: &[String]) -> Vec<(String, String)> {
    let mut commands: Vec<(String, String)> = Vec::new();
    for line in lines {
        match line.strip_prefix("$ ") {
            Some(command) => commands.push((command.to_owned(), String::new())),
            None => {
                let (_, output) = commands.last_mut().expect("a command before its output");
                output.push_str(line);
                output.push('\n');
            }
        }
    }
    commands
}

fn shell(home: &Home, command: &str) -> crate::support::Outcome {
    let (debian, busybox) = (fixture("debian.tar"), fixture("busybox.docker.tar"));
    let files = format!("DEBIAN='{}' BUSYBOX='{}'", debian.display(), busybox.display());
    home.shell(&format!("{files}\n{PEERS}\n{command}"))
}

#[test]
fn the_tutorial_works_as_printed() {
    let home = Home::with(&[]);
    let commands = session(&literal_lines("msb-tutorial.7", |section| section == "DESCRIPTION"));
    assert!(commands.len() > 20, "{commands:#?}");
    for (command, expected) in commands {
        // It looks at the host, which the test does not choose.
        if command == "msb doctor" {
            continue;
        }
        let output = shell(&home, &command).done();
        // The command that makes the image prints its digest.
        if !command.starts_with("mmdebstrap") {
            assert_eq!(output, expected, "{command}");
        }
    }
    assert_eq!(home.sandboxes(), []);
}

/// An example that is not run: the page, and the start of the line.
struct Exception<'a> {
    page: &'a str,
    line: &'a str,
}

fn exceptions(table: &str) -> Vec<Exception<'_>> {
    let rows = table.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    rows.map(|row| {
        let mut parts = row.splitn(3, '\t');
        let (page, reason) = (parts.next().unwrap(), parts.next().expect("a reason"));
        assert!(reason.len() > 5, "{row}");
        Exception { page, line: parts.next().expect("a line") }
    })
    .collect()
}

#[test]
fn examples_of_the_pages_run() {
    let table = fs::read_to_string(stage("source/tests/support/examples.tsv")).unwrap();
    let exceptions = exceptions(&table);
    let home = Home::with_busybox();
    for name in ["alpine:3.20", "alpine", "debian", "nginx", "python", "python:dev"] {
        home.run(["image", "tag", "busybox:test", name]).done();
    }
    // One guest for all pages, under the name that most of them use.
    home.run([
        "run",
        "-d",
        "--name",
        "worker",
        "--label",
        "team=ml",
        "--script",
        "python3=cat >/dev/null",
        "debian",
    ])
    .done();
    let files = "mkdir -p /srv /var/log /src; touch /etc/os-release '/var/log/a file'; \
                 echo nobody:x:65534:65534::/:/bin/sh >> /etc/passwd";
    home.run(["exec", "worker", "--", "sh", "-c", files]).done();
    for directory in ["src", "out", ".ssh"] {
        fs::create_dir_all(home.directory.join(directory)).unwrap();
    }
    fs::copy(fixture("busybox.docker.tar"), home.directory.join("images.tar")).unwrap();
    for file in ["src/a", "data", "src/b"] {
        fs::write(home.directory.join(file), "text\n").unwrap();
    }
    let mut pages: Vec<String> = fs::read_dir(stage("source/man"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".1") || name == "msb.7")
        .collect();
    pages.sort();
    let (mut ran, mut used, mut failed) = (0, BTreeSet::new(), Vec::new());
    for page in &pages {
        let is_wanted = |section: &str| section == "EXAMPLES" || section == "PIPELINES";
        let lines = literal_lines(page, is_wanted);
        // In a session, a line without a prompt is output.
        let is_session = lines.iter().any(|line| line.starts_with("$ "));
        for line in lines {
            if is_session && !line.starts_with("$ ") {
                continue;
            }
            let excepted = exceptions.iter().position(|exception| {
                exception.page == page
                    && match exception.line.strip_suffix('|') {
                        Some(whole) => line == whole,
                        None => line.starts_with(exception.line),
                    }
            });
            if let Some(index) = excepted {
                used.insert(index);
                continue;
            }
            let command = line.strip_prefix("$ ").unwrap_or(&line);
            let outcome = shell(&home, command);
            ran += 1;
            if outcome.code != 0 {
                failed.push(format!("{page}: {line}: {outcome:?}"));
            }
        }
    }
    home.shell("msb ls -q --running | msb stop --force -").done();
    assert!(failed.is_empty(), "{failed:#?}");
    for (index, exception) in exceptions.iter().enumerate() {
        assert!(used.contains(&index), "no such example: {}: {}", exception.page, exception.line);
    }
    assert!(ran > 30, "{ran}");
}
