//! `msb metrics prom`: metrics for Prometheus, over HTTP or in a file.

/// Exposition format.
mod exposition;
/// HTTP server for /metrics.
mod server;

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Context;
use libmsb::state::write::NewFile;

use crate::args::PromArgs;
use crate::collect::Collector;
use crate::exits::ExitCounters;
use crate::interval::IntervalTimer;
use crate::log;
use crate::sample::Collection;

/// Source of the page, collected again for each request.
struct MetricsPage {
    collector: Collector,
    exits: ExitCounters,
}

impl MetricsPage {
    fn new(args: &PromArgs) -> anyhow::Result<MetricsPage> {
        Ok(MetricsPage {
            collector: Collector::new(&args.collect)?,
            exits: ExitCounters::default(),
        })
    }

    fn text(&mut self) -> String {
        let collection: Collection = self.collector.collect();
        self.exits.add(&collection.exits);
        exposition::render(&collection, &self.exits)
    }
}

/// Serves or writes the metrics until a signal arrives.
pub(crate) fn run(args: PromArgs) -> anyhow::Result<()> {
    let mut timer = IntervalTimer::new(args.collect.collect_interval)?;
    let mut page = MetricsPage::new(&args)?;
    if let Some(address) = args.listen {
        return server::serve(address, &timer, move || page.text());
    }
    let Some(path) = &args.textfile else {
        return Ok(());
    };
    while timer.wait()? {
        if let Err(error) = replace(path, &page.text()) {
            log::warn(&libmsb::cli::error::message(&error));
        }
    }
    // A file that is no longer updated would look current.
    match std::fs::remove_file(path) {
        // It was never written.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed.with_context(|| format!("cannot remove '{}'", path.display())),
    }
}

/// Replaces the file, readable for all: the textfile collector runs as another user.
fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    let mut new = NewFile::create(path)?;
    let written = new.file.write_all(text.as_bytes()).and_then(|()| readable(&new.file));
    written.with_context(|| format!("cannot write '{}'", path.display()))?;
    new.commit()
}

fn readable(file: &File) -> std::io::Result<()> {
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}
