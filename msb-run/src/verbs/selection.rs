//! The sandboxes that are meant: by name, by label, or named on standard input.

use std::io::BufRead;
use std::str::FromStr;

use clap::Args;
use libmsb::cli::args::SandboxName;
use libmsb::cli::error::{Failure, print_error, print_hint, print_warning};
use libmsb::selector::Selector;
use libmsb::state::Home;

/// Longest standard input that names sandboxes, in lines.
const LINES_MAX: usize = 100_000;

/// Which sandboxes are meant.
#[derive(Debug, Args)]
pub(crate) struct Selection {
    /// The sandboxes; '-' reads names from standard input, one a line
    #[arg(required_unless_present = "label", value_name = "NAME")]
    names: Vec<Word>,
    /// All with this label too; several must all be there
    #[arg(long, value_name = "KEY[=VALUE]")]
    label: Vec<Selector>,
}

/// What a list shows, and of which sandboxes: the same for `ls` and `ps`.
#[derive(Debug, Args)]
pub(crate) struct Listing {
    /// Only those with this label; several must all be there
    #[arg(long, value_name = "KEY[=VALUE]")]
    pub(crate) label: Vec<Selector>,
    /// Names only, one a line
    #[arg(short, long, conflicts_with = "format")]
    pub(crate) quiet: bool,
}

#[derive(Clone, Debug)]
enum Word {
    Name(SandboxName),
    Stdin,
}

impl FromStr for Word {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Word, Failure> {
        if text == "-" {
            return Ok(Word::Stdin);
        }
        text.parse().map(Word::Name)
    }
}

impl Selection {
    /// The names, each once, in the order in which they were given. Warns when labels match nothing.
    pub(crate) fn names(&self, tool: &str, home: &Home) -> anyhow::Result<Vec<SandboxName>> {
        let mut names = Vec::new();
        for word in &self.names {
            match word {
                Word::Name(name) => names.push(name.clone()),
                Word::Stdin => read_names(&mut names)?,
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

/// Does the same with several sandboxes, some at a time. Each failure is told, and that there were some is the result. The
/// failure of a single sandbox is the caller's to tell.
pub(crate) fn for_each<N: Sync>(
    tool: &'static str,
    names: &[N],
    act: impl Fn(&N) -> anyhow::Result<()> + Sync,
) -> anyhow::Result<()> {
    /// More at a time would only fight for the processors.
    const AT_A_TIME: usize = 8;
    if let [name] = names {
        return act(name);
    }
    let next = std::sync::atomic::AtomicUsize::new(0);
    let failed = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..names.len().min(AT_A_TIME) {
            scope.spawn(|| {
                use std::sync::atomic::Ordering::Relaxed;
                while let Some(name) = names.get(next.fetch_add(1, Relaxed)) {
                    if let Err(error) = act(name) {
                        print_error(tool, &libmsb::cli::error::message(&error));
                        if let Some(hint) = libmsb::cli::error::hint(&error) {
                            print_hint(tool, hint);
                        }
                        failed.fetch_add(1, Relaxed);
                    }
                }
            });
        }
    });
    match failed.into_inner() {
        0 => Ok(()),
        failed if failed == names.len() => Err(Failure::failed("none could be done").into()),
        failed => {
            print_hint(tool, "the others were done");
            Err(Failure::failed(format!("{failed} of {} failed", names.len())).into())
        }
    }
}
