//! The rows of `tests/support/conformance.tsv`.

use std::fs;

use crate::support::stage;

/// A line that both programs are given.
pub(super) struct Case {
    pub(super) line: String,
    /// Heading of msb(7) that explains another exit status.
    pub(super) exit: Option<String>,
    /// Heading of msb(7) that explains another output.
    pub(super) output: Option<String>,
}

/// One row.
pub(super) enum Row {
    /// The beginning of lines that share a state.
    Scenario(String),
    /// A line that makes a state, of both programs or of the one that is named.
    Prepare {
        of: Option<String>,
        line: String,
    },
    Case(Case),
    /// A command or option that msb lacks.
    Option {
        name: String,
        heading: String,
    },
    /// A difference that lines do not show, and a test that shows what msb does.
    Tested {
        heading: String,
        test: String,
    },
}

impl Row {
    pub(super) fn option(&self) -> Option<(&str, &str)> {
        match self {
            Row::Option { name, heading } => Some((name, heading)),
            _ => None,
        }
    }

    pub(super) fn headings(&self) -> Vec<&str> {
        match self {
            Row::Case(case) => {
                [&case.exit, &case.output].into_iter().flatten().map(String::as_str).collect()
            }
            Row::Option { heading, .. } | Row::Tested { heading, .. } => vec![heading],
            Row::Scenario(_) | Row::Prepare { .. } => Vec::new(),
        }
    }
}

/// Reads all rows, in order.
pub(super) fn read() -> Vec<Row> {
    let table = fs::read_to_string(stage("source/tests/support/conformance.tsv")).unwrap();
    let is_row = |line: &&str| !line.is_empty() && !line.starts_with('#');
    table.lines().filter(is_row).map(parse).collect()
}

fn parse(line: &str) -> Row {
    let columns: Vec<&str> = line.split('\t').collect();
    let owned = |text: &&str| (*text).to_owned();
    let heading = |text: &&str| (*text != "-").then(|| owned(text));
    match columns.as_slice() {
        ["scenario", name] => Row::Scenario(owned(name)),
        ["both", line] => Row::Prepare { of: None, line: owned(line) },
        [of @ ("0.5.5" | "msb"), line] => Row::Prepare { of: Some(owned(of)), line: owned(line) },
        ["missing", name, heading] => Row::Option { name: owned(name), heading: owned(heading) },
        ["tested", heading, test] => Row::Tested { heading: owned(heading), test: owned(test) },
        ["case", line] => Row::Case(Case { line: owned(line), exit: None, output: None }),
        ["case", line, exit, output] => {
            Row::Case(Case { line: owned(line), exit: heading(exit), output: heading(output) })
        }
        _ => panic!("no row of a known kind: {line:?}"),
    }
}
