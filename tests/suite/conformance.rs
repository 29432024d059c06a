//! msb beside the program that its command line follows: microsandbox 0.5.5, the real one.
//!
//! `tests/support/conformance.tsv` holds what both are given, and the heading of msb(7) under which
//! each difference stands. A difference without a heading fails, and so do a heading without a
//! difference and one that does not stand in the page.

mod documents;
mod options;
mod rows;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use crate::support::{Home, Outcome, Running, fixture, stage};
use rows::{Case, Row};

/// The program `msb` of one of the two, with directories of its own.
struct Peer {
    name: &'static str,
    /// Owns the directories; its own `MSB_HOME` is used by msb only.
    home: Home,
    is_reference: bool,
}

impl Peer {
    fn msb() -> Peer {
        Peer { name: "msb", home: Home::new(), is_reference: false }
    }

    /// microsandbox with a kernel that no host can start, so that it does the same with and without
    /// KVM: it stores sandboxes and cannot start them.
    fn microsandbox() -> Peer {
        let home = Home::new();
        let library = home.directory.join(".microsandbox/lib");
        fs::create_dir_all(&library).unwrap();
        fs::write(library.join("libkrunfw.so.5.2.1"), "no library").unwrap();
        symlink("libkrunfw.so.5.2.1", library.join("libkrunfw.so.5")).unwrap();
        fs::create_dir(home.directory.join("bin")).unwrap();
        symlink(reference(), home.directory.join("bin/msb")).unwrap();
        Peer { name: "0.5.5", home, is_reference: true }
    }

    /// A shell that finds this program as `msb`.
    fn shell(&self, line: &str) -> Outcome {
        let mut command = self.home.program("/bin/bash");
        let directory = self.home.directory.join("files");
        fs::create_dir_all(&directory).unwrap();
        command.current_dir(&directory).arg("-c").arg(line);
        command.env("FIXTURES", fixture(""));
        if self.is_reference {
            command.env_remove("MSB_HOME").env("MSB_PATH", reference());
            command.env("PATH", self.path());
        }
        Running::start(command).finish()
    }

    fn path(&self) -> String {
        format!("{}:/usr/bin:/bin", self.home.directory.join("bin").display())
    }
}

/// The program of tests/parts/microsandbox.
fn reference() -> PathBuf {
    stage("microsandbox/msb")
}

/// A table for the readers of the test results: it is printed although tests that pass print
/// nothing.
#[derive(Default)]
struct Table {
    lines: Vec<[String; 4]>,
    wrong: Vec<String>,
}

impl Table {
    fn add(&mut self, cells: [&str; 4]) {
        self.lines.push(cells.map(str::to_owned));
    }

    #[track_caller]
    fn finish(self, title: &str) {
        let mut text = String::new();
        writeln!(text, "\n{title}, beside microsandbox 0.5.5").unwrap();
        let widths: Vec<usize> = (0..3)
            .map(|column| self.lines.iter().map(|line| line[column].chars().count()).max())
            .map(|width| width.unwrap_or_default().min(64))
            .collect();
        for [what, theirs, ours, heading] in &self.lines {
            let (a, b, c) = (widths[0], widths[1], widths[2]);
            writeln!(text, "  {what:a$}  {theirs:b$}  {ours:c$}  {heading}").unwrap();
        }
        std::io::stdout().lock().write_all(text.as_bytes()).unwrap();
        assert!(self.wrong.is_empty(), "{title}:\n{}", self.wrong.join("\n"));
    }
}

/// The headings of the differences in msb(7).
fn headings() -> BTreeSet<String> {
    let page = fs::read_to_string(stage("source/man/msb.7")).unwrap();
    page.lines()
        .skip_while(|line| *line != ".Sh DIFFERENCES FROM MICROSANDBOX")
        .skip(1)
        .take_while(|line| !line.starts_with(".Sh "))
        .filter_map(|line| line.strip_prefix(".It "))
        .map(str::to_owned)
        .collect()
}

/// Returns an explanation unless a difference stands under `heading` exactly if there is one.
fn verdict(differs: bool, heading: Option<&str>) -> Option<String> {
    match heading {
        None if differs => Some("differs, and msb(7) does not say so".to_owned()),
        Some(heading) if !differs => Some(format!("does not differ, despite '{heading}'")),
        Some(heading) if !headings().contains(heading) => {
            Some(format!("msb(7) has no difference '{heading}'"))
        }
        _ => None,
    }
}

/// Returns whether a row names this command or option: one that ends in `*` names all that start so.
fn is_meant(row: &str, name: &str) -> bool {
    row == name || row.strip_suffix('*').is_some_and(|start| name.starts_with(start))
}

#[test]
fn every_command_and_option_of_microsandbox_is_there_or_msb_7_says_why_not() {
    let (theirs, ours) = (Peer::microsandbox(), Peer::msb());
    let tree = theirs.shell("msb --tree").done();
    let commands = options::parse(&tree);
    assert!(commands.len() >= 50, "{} commands:\n{tree}", commands.len());
    let rows = rows::read();
    let listed: Vec<(&str, &str)> = rows.iter().filter_map(Row::option).collect();
    let mut table = Table::default();
    let mut used = BTreeSet::new();
    for command in &commands {
        for (item, found) in command.items().zip(options::accepted(&ours, command)) {
            let name = format!("{} {item}", command.name);
            let name = name.trim_end();
            let heading = listed.iter().find(|(listed, _)| is_meant(listed, name));
            used.extend(heading.map(|(listed, _)| *listed));
            let heading = heading.map(|(_, heading)| *heading);
            if let Some(wrong) = verdict(!found, heading) {
                table.wrong.push(format!("{name}: {wrong}"));
            }
            if !found {
                table.add([name, "yes", "no", heading.unwrap_or_default()]);
            }
        }
    }
    for (name, _) in listed.iter().filter(|(name, _)| !used.contains(name)) {
        table.wrong.push(format!("{name}: microsandbox has no such command or option"));
    }
    let count: usize = commands.iter().map(|command| command.items().count()).sum();
    let missing = table.lines.len();
    table.add([
        &format!("{count} commands, aliases and options"),
        "",
        &format!("{missing} missing"),
        "",
    ]);
    table.finish("Commands and options");
}

#[test]
fn the_same_lines_do_the_same_as_with_microsandbox_or_msb_7_says_why_not() {
    let mut table = Table::default();
    let mut peers = None;
    for row in rows::read() {
        match row {
            Row::Scenario(name) => {
                peers = Some((Peer::microsandbox(), Peer::msb()));
                table.add([&format!("[{name}]"), "", "", ""]);
            }
            Row::Prepare { of, line } => {
                let (theirs, ours) = peers.as_ref().unwrap();
                for peer in [theirs, ours] {
                    if of.as_deref().is_none_or(|of| of == peer.name) {
                        peer.shell(&line).done();
                    }
                }
            }
            Row::Case(case) => {
                let (theirs, ours) = peers.as_ref().unwrap();
                compare(&case, &theirs.shell(&case.line), &ours.shell(&case.line), &mut table);
            }
            Row::Option { .. } | Row::Tested { .. } => {}
        }
    }
    table.finish("Lines");
}

/// Compares exit status and output of one line.
fn compare(case: &Case, theirs: &Outcome, ours: &Outcome, table: &mut Table) {
    let differences = documents::differences(&case.line, &theirs.stdout, &ours.stdout);
    let cell = |outcome: &Outcome| format!("{} {}", outcome.code, documents::kind(&outcome.stdout));
    let headings = [case.exit.as_deref(), case.output.as_deref()];
    let listed: Vec<&str> = headings.iter().copied().flatten().collect();
    table.add([&case.line, &cell(theirs), &cell(ours), &listed.join("; ")]);
    for difference in &differences {
        table.add([&format!("    {difference}"), "", "", ""]);
    }
    if let Some(wrong) = verdict(theirs.code != ours.code, case.exit.as_deref()) {
        let detail = format!("{} instead of {}", ours.code, theirs.code);
        table.wrong.push(format!("{}: exit status: {wrong}: {detail}", case.line));
    }
    if let Some(wrong) = verdict(!differences.is_empty(), case.output.as_deref()) {
        table.wrong.push(format!("{}: output: {wrong}: {differences:?}", case.line));
    }
}

#[test]
fn every_difference_of_msb_7_is_seen_here_or_in_another_test() {
    let rows = rows::read();
    let seen: BTreeSet<&str> = rows.iter().flat_map(Row::headings).collect();
    for heading in headings() {
        assert!(seen.contains(heading.as_str()), "nothing shows the difference '{heading}'");
    }
    for row in &rows {
        if let Row::Tested { heading, test } = row {
            assert!(headings().contains(heading), "msb(7) has no difference '{heading}'");
            let (module, name) = test.split_once("::").unwrap();
            let source = stage("source/tests/suite").join(module).with_extension("rs");
            let text =
                fs::read_to_string(&source).unwrap_or_else(|error| panic!("{test}: {error}"));
            assert!(text.contains(&format!("fn {name}(")), "there is no test '{test}'");
        }
    }
}
