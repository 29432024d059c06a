//! `msb-metrics prom`: for Prometheus, at an address or in a file.

/// A server for one page.
mod server;
/// The text that Prometheus reads.
mod text;

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Context;
use libmsb::state::write::NewFile;

use crate::args::PromArgs;
use crate::collect::Collector;
use crate::exits::Counters;
use crate::log;
use crate::sample::Collection;
use crate::ticks::Ticks;

/// The page, made anew from the files.
struct Page {
    collector: Collector,
    exits: Counters,
}

impl Page {
    fn new(args: &PromArgs) -> anyhow::Result<Page> {
        Ok(Page {
            collector: Collector::new(&args.collect)?,
            exits: Counters::default(),
        })
    }

    fn text(&mut self) -> String {
        let collection: Collection = self.collector.collect();
        self.exits.add(&collection.exits);
        text::render(&collection, &self.exits)
    }
}

/// Serves or writes until a signal comes.
pub(crate) fn run(args: PromArgs) -> anyhow::Result<()> {
    let mut ticks = Ticks::every(args.collect.collect_interval)?;
    let mut page = Page::new(&args)?;
    if let Some(address) = args.listen {
        return server::serve(address, &ticks, move || page.text());
    }
    let Some(path) = &args.textfile else {
        return Ok(());
    };
    while ticks.wait()? {
        if let Err(error) = replace(path, &page.text()) {
            log::warn(&libmsb::cli::error::message(&error));
        }
    }
    // What nobody keeps up to date would look alive.
    match std::fs::remove_file(path) {
        // It could never be written.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed.with_context(|| format!("cannot remove '{}'", path.display())),
    }
}

/// Whoever collects it is another user.
fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    let mut new = NewFile::create(path)?;
    let written = new
        .file
        .write_all(text.as_bytes())
        .and_then(|()| readable(&new.file));
    written.with_context(|| format!("cannot write '{}'", path.display()))?;
    new.commit()
}

fn readable(file: &File) -> std::io::Result<()> {
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}
