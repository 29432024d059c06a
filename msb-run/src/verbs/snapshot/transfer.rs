//! `msb snapshot export` and `import`.

use std::fs::{File, Metadata};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};
use libmsb::cli::error::Failure;
use libmsb::cli::output;
use libmsb::cli::progress::{Counting, ProgressMeter};
use libmsb::state::Home;
use libmsb::state::snapshots::Snapshot;
use libmsb::state::write::NewFile;

use super::format::TOOL;
use crate::snapshot::archive::export::{ExportRequest, export as write_archive};
use crate::snapshot::archive::import::import as read_archive;
use crate::snapshot::digest_of;
use crate::snapshot::reference::{SnapshotArg, parse_snapshot};

/// Maximum number of ancestors.
const PARENTS_MAX: usize = 1024;
/// File name that stands for a standard stream.
const STREAM: &str = "-";

#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    /// Snapshot: a name, a path that contains `/`, or a digest
    #[arg(value_parser = OsStringValueParser::new().try_map(parse_snapshot))]
    snapshot: SnapshotArg,
    /// File of the archive [default: standard output]
    ///
    /// The file appears, or is replaced, when the archive is complete, and its name is printed.
    #[arg(value_name = "OUT")]
    out: Option<PathBuf>,
    /// Add all ancestors of the snapshot
    #[arg(long)]
    with_parents: bool,
    /// Write only the blocks that differ from another snapshot, which the receiver has
    ///
    /// microsandbox does not read such an archive.
    #[arg(
        long,
        value_name = "SNAPSHOT",
        value_parser = OsStringValueParser::new().try_map(parse_snapshot),
        conflicts_with = "with_parents"
    )]
    since: Option<SnapshotArg>,
    /// Add the image of the snapshot
    ///
    /// It is in the format of `msb image save`, which microsandbox ignores. Without it, the receiver
    /// needs the image, or pulls it by its digest.
    #[arg(long)]
    with_image: bool,
    /// Add the memory of the snapshot
    ///
    /// It can be used on a host with the same processor and the same versions of msb, of QEMU and of
    /// the guest's kernel. microsandbox ignores it.
    #[arg(long)]
    with_memory: bool,
    /// Do not compress the archive with zstd
    #[arg(long)]
    plain_tar: bool,
    /// Print no progress
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, Args)]
pub(super) struct ImportArgs {
    /// File of the archive [default: standard input]
    ///
    /// The format is detected. Archives of microsandbox 0.5 are read, too.
    #[arg(value_name = "ARCHIVE")]
    archive: Option<PathBuf>,
    /// Directory of the new snapshots [default: the directory of snapshots]
    #[arg(value_name = "DEST")]
    destination: Option<PathBuf>,
    /// Import the memory of snapshots, too
    ///
    /// Memory is the state of a machine: give this option only if you trust the source of the
    /// archive. Without it, a snapshot is imported without its memory.
    #[arg(long)]
    trust_memory: bool,
    /// Print no progress
    #[arg(short, long)]
    quiet: bool,
}

pub(super) fn export(home: &Home, args: &ExportArgs) -> anyhow::Result<()> {
    let snapshot = args.snapshot.open(home)?;
    let base = args.since.as_ref().map(|since| since.open(home)).transpose()?;
    let snapshots = if args.with_parents { with_parents(home, snapshot)? } else { vec![snapshot] };
    let (with_image, compressed) = (args.with_image, !args.plain_tar);
    let with_memory = args.with_memory;
    let request = ExportRequest { snapshots, base, with_image, with_memory, compressed };
    let Some(path) = args.out.as_deref().filter(|path| *path != Path::new(STREAM)) else {
        if std::io::stdout().is_terminal() {
            return Err(Failure::usage("cannot write an archive to a terminal")
                .hint(
                    "name a file, or pipe: msb snapshot export NAME | ssh HOST msb snapshot import",
                )
                .into());
        }
        let meter = ProgressMeter::start(None, !args.quiet);
        return write_archive(home, &request, Counting::new(output::stdout(), meter));
    };
    let new = NewFile::create(&std::path::absolute(path)?)?;
    let file = Counting::new(&new.file, ProgressMeter::start(None, !args.quiet));
    let mut out = std::io::BufWriter::with_capacity(1 << 20, file);
    write_archive(home, &request, &mut out)?;
    out.flush().with_context(|| format!("cannot write '{}'", path.display()))?;
    drop(out);
    new.commit()?;
    Ok(output::print(&path.display())?)
}

/// Returns a snapshot and its ancestors, the oldest first.
fn with_parents(home: &Home, snapshot: Snapshot) -> anyhow::Result<Vec<Snapshot>> {
    let mut chain = vec![snapshot];
    while let Some(parent) = chain.last().and_then(|last| last.manifest.parent) {
        ensure!(chain.len() <= PARENTS_MAX, "more than {PARENTS_MAX} ancestors");
        let name = chain.last().map(|last| last.name.clone()).unwrap_or_default();
        let found = SnapshotArg::Digest(parent.hex()).open(home);
        let found = found.with_context(|| format!("an ancestor of '{name}' is missing"))?;
        chain.push(found);
    }
    chain.reverse();
    Ok(chain)
}

pub(super) fn import(home: &Home, args: &ImportArgs) -> anyhow::Result<()> {
    home.prepare()?;
    let destination = match &args.destination {
        Some(path) => std::path::absolute(path)?,
        None => home.snapshots().root().to_owned(),
    };
    let archive = args.archive.as_deref().filter(|path| *path != Path::new(STREAM));
    let snapshots = match archive {
        Some(path) => {
            let file = File::open(path);
            let file = file.map_err(|error| {
                Failure::not_found(format!("cannot open '{}': {error}", path.display()))
            })?;
            let length = file.metadata().ok().filter(Metadata::is_file).map(|file| file.len());
            let file = Counting::new(file, ProgressMeter::start(length, !args.quiet));
            read_archive(home, file, &destination, TOOL, args.trust_memory)?
        }
        None => {
            let meter = ProgressMeter::start(None, !args.quiet);
            let input = Counting::new(std::io::stdin().lock(), meter);
            read_archive(home, input, &destination, TOOL, args.trust_memory)?
        }
    };
    for snapshot in snapshots {
        output::print(&digest_of(&snapshot.manifest)?)?;
        output::print(&snapshot.dir.display())?;
    }
    Ok(())
}
