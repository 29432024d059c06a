//! Selection of sandboxes by name, by label, or from standard input.

use std::io::BufRead;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use clap::Args;
use libmsb::cli::args::SandboxName;
use libmsb::cli::error::{Failure, ReportedExit, print_failure, print_warning};
use libmsb::cli::{exit, output};
use libmsb::selector::Selector;
use libmsb::state::Home;

use super::filter::Filter;

/// Maximum number of lines read from standard input.
const LINES_MAX: usize = 100_000;

/// Arguments that select sandboxes.
#[derive(Debug, Args)]
pub(crate) struct SelectionArgs {
    /// Names of sandboxes; '-' reads names from stdin, one per line
    ///
    /// Each sandbox is processed once.
    #[arg(required_unless_present = "label", value_name = "NAME")]
    names: Vec<NameArg>,
    /// Select all sandboxes with this label as well
    ///
    /// Without a value, the label can have any value. With several labels, a sandbox must have all
    /// of them. It is a warning if there is none.
    #[arg(long, value_name = "KEY[=VALUE]")]
    label: Vec<Selector>,
}

/// Option against the names of processed sandboxes.
#[derive(Debug, Args)]
pub(crate) struct NamesArgs {
    /// Print no names, and do not warn of a sandbox that is in the requested state
    ///
    /// Otherwise the name of each sandbox is printed when the command has done its work.
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

impl NamesArgs {
    /// Returns the line for a sandbox.
    pub(crate) fn line(&self, name: &SandboxName) -> Option<String> {
        (!self.quiet).then(|| name.to_string())
    }

    /// Returns the report for a sandbox that was in the requested state before.
    pub(crate) fn unchanged(&self, name: &SandboxName, state: &str) -> ActionReport {
        let warning = (!self.quiet).then(|| format!("the sandbox '{name}' is {state}"));
        ActionReport { line: self.line(name), warning }
    }
}

/// Options of a list of sandboxes, common to `ls` and `ps`.
#[derive(Debug, Args)]
pub(crate) struct ListingArgs {
    /// List sandboxes with this label only
    ///
    /// Without a value, the label can have any value. With several labels, a sandbox must have all
    /// of them.
    #[arg(long, value_name = "KEY[=VALUE]")]
    pub(crate) label: Vec<Selector>,
    /// List sandboxes with ancestor=IMAGE, label=KEY[=VALUE], name=TEXT or status=STATE only
    ///
    /// IMAGE is a name, digest or ID of the image that a sandbox was created from. A name matches
    /// if it contains TEXT. STATE is `created`, `starting`, `running`, `paused`, `stopping`,
    /// `stopped`, `crashed`, or `exited` for the last two. A sandbox must have all labels, one of
    /// the images, one of the names and one of the states.
    #[arg(short, long, value_name = "FILTER")]
    pub(super) filter: Vec<Filter>,
    /// Print local times instead of ages
    #[arg(long)]
    pub(crate) absolute: bool,
    /// Print names only, one per line
    #[arg(short, long, conflicts_with = "format")]
    pub(crate) quiet: bool,
}

#[derive(Clone, Debug)]
enum NameArg {
    Name(SandboxName),
    Stdin,
}

impl FromStr for NameArg {
    type Err = Failure;

    fn from_str(text: &str) -> Result<NameArg, Failure> {
        if text == "-" {
            return Ok(NameArg::Stdin);
        }
        text.parse().map(NameArg::Name)
    }
}

impl SelectionArgs {
    /// Returns the names, each once, in the given order. Warns if no sandbox has the labels.
    pub(crate) fn names(&self, tool: &str, home: &Home) -> anyhow::Result<Vec<SandboxName>> {
        let mut names = Vec::new();
        for word in &self.names {
            match word {
                NameArg::Name(name) => names.push(name.clone()),
                NameArg::Stdin => read_names(&mut names)?,
            }
        }
        if !self.label.is_empty() {
            let labelled = self.labelled(home)?;
            if labelled.is_empty() {
                print_warning(tool, "no sandbox has these labels");
            }
            names.extend(labelled);
        }
        let mut seen = std::collections::HashSet::new();
        names.retain(|name| seen.insert(name.clone()));
        Ok(names)
    }

    fn labelled(&self, home: &Home) -> anyhow::Result<Vec<SandboxName>> {
        let entries = home.sandboxes().list()?;
        let labelled = entries.into_iter().filter(|entry| {
            let seen = entry.seen.as_ref();
            seen.is_ok_and(|seen| Selector::all_match(&self.label, &seen.spec.labels))
        });
        labelled.map(|entry| Ok(entry.name.parse()?)).collect()
    }
}

fn read_names(names: &mut Vec<SandboxName>) -> anyhow::Result<()> {
    for line in std::io::stdin().lock().lines().take(LINES_MAX) {
        let line = line?;
        let name = line.trim();
        if !name.is_empty() {
            names.push(name.parse()?);
        }
    }
    Ok(())
}

/// Output of an action on one object.
pub(crate) struct ActionReport {
    /// Line for standard output, in most cases the name of the object.
    pub(crate) line: Option<String>,
    /// Warning for standard error.
    pub(crate) warning: Option<String>,
}

impl From<Option<String>> for ActionReport {
    fn from(line: Option<String>) -> ActionReport {
        ActionReport { line, warning: None }
    }
}

impl ActionReport {
    fn print(self, tool: &str) -> std::io::Result<()> {
        if let Some(warning) = &self.warning {
            print_warning(tool, warning);
        }
        self.line.map_or(Ok(()), |line| output::print(&line))
    }
}

/// Applies an action to several objects, some concurrently. Reports and errors are printed in the
/// order of the names. If any action failed, the exit code is 1; a single name keeps the code of its
/// error.
pub(crate) fn for_each<N: Sync, R: Into<ActionReport>>(
    tool: &'static str,
    names: &[N],
    act: impl Fn(&N) -> anyhow::Result<R> + Sync,
) -> anyhow::Result<()> {
    /// More threads would only compete for the processors.
    const CONCURRENCY_MAX: usize = 8;
    if let [name] = names {
        return Ok(act(name)?.into().print(tool)?);
    }
    let next = std::sync::atomic::AtomicUsize::new(0);
    let reports = Mutex::new(OrderedReports::new(tool, names.len()));
    std::thread::scope(|scope| {
        for _ in 0..names.len().min(CONCURRENCY_MAX) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let Some(name) = names.get(index) else { return };
                    let result = act(name).map(Into::into);
                    reports.lock().unwrap_or_else(PoisonError::into_inner).add(index, result);
                }
            });
        }
    });
    reports.into_inner().unwrap_or_else(PoisonError::into_inner).finish()
}

/// Results of concurrent actions. Each is printed when those before it are.
struct OrderedReports {
    tool: &'static str,
    pending: Vec<Option<anyhow::Result<ActionReport>>>,
    printed: usize,
    any_failed: bool,
    /// Standard output failed. The actions go on all the same.
    output: std::io::Result<()>,
}

impl OrderedReports {
    fn new(tool: &'static str, count: usize) -> OrderedReports {
        let pending = std::iter::repeat_with(|| None).take(count).collect();
        OrderedReports { tool, pending, printed: 0, any_failed: false, output: Ok(()) }
    }

    fn add(&mut self, index: usize, result: anyhow::Result<ActionReport>) {
        self.pending[index] = Some(result);
        while let Some(result) = self.pending.get_mut(self.printed).and_then(Option::take) {
            self.printed += 1;
            match result {
                Ok(report) => {
                    let printed = report.print(self.tool);
                    self.output = std::mem::replace(&mut self.output, Ok(())).and(printed);
                }
                Err(error) => {
                    print_failure(self.tool, &error);
                    self.any_failed = true;
                }
            }
        }
    }

    fn finish(self) -> anyhow::Result<()> {
        if self.any_failed {
            return Err(ReportedExit(exit::FAILED).into());
        }
        Ok(self.output?)
    }
}
