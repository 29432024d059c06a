//! README and its neighbours: the session works as printed, and links lead to files.

use std::fs;

use crate::support::{Home, fixture, stage};

/// Documents in Markdown, relative to the top directory.
const DOCUMENTS: [&str; 6] = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "tests/README.md",
    "libmsb/SDKS.md",
];

fn document(path: &str) -> String {
    let text = fs::read_to_string(stage("source").join(path));
    text.unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Returns the commands of README's session, each with the output printed below it, or nothing.
fn session(readme: &str) -> Vec<(String, String)> {
    let (_, section) = readme.split_once("\n## A session\n").unwrap();
    let block = section.split("```").nth(1).unwrap();
    let mut commands: Vec<(String, String)> = Vec::new();
    for line in block.trim_start().lines() {
        match line.strip_prefix("$ ") {
            Some(command) => commands.push((command.to_owned(), String::new())),
            None => {
                let (_, output) = commands.last_mut().unwrap();
                output.push_str(line);
                output.push('\n');
            }
        }
    }
    commands
}

#[test]
fn the_session_of_the_readme_works_as_printed() {
    let commands = session(&document("README.md"));
    assert_eq!(commands.len(), 9, "{commands:#?}");
    let home = Home::with(&[]);
    // The fixture was written by mmdebstrap: the test needs no mirror of Debian.
    let mmdebstrap = format!("mmdebstrap() {{ cat '{}'; }}", fixture("debian.tar").display());
    for (command, expected) in commands {
        let output = home.shell(&format!("set -o pipefail; {mmdebstrap}\n{command}")).done();
        if !expected.is_empty() {
            assert_eq!(output, expected, "{command}");
        }
    }
    assert_eq!(home.sandboxes(), []);
}

/// Returns the targets of the links of a document, without those to the web.
fn links(text: &str) -> Vec<&str> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.filter(|target| !target.contains("://")).collect()
}

#[test]
fn every_link_of_a_document_leads_to_a_file() {
    let mut count = 0;
    for path in DOCUMENTS {
        let text = document(path);
        let source = stage("source").join(path);
        for target in links(&text) {
            let file = source.parent().unwrap().join(target);
            assert!(file.exists(), "{path} has a link to '{target}', which is missing");
            count += 1;
        }
    }
    assert!(count > 5, "{count} links");
}
