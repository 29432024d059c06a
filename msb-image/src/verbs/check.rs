//! `msb image check`: checks every byte of the store.
//!
//! Documents and blobs must match their digests. The tar of each layer is rebuilt and hashed, and
//! the gaps between the files in its data must be zeros. The disk of each image is rebuilt from its
//! layers and compared. Leftovers of killed processes (names that start with `.new-`, and files
//! that nothing refers to) are garbage and not a problem.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use libmsb::cli::error::{self as cli_error, Failure};
use libmsb::cli::progress::ProgressMeter;
use libmsb::cli::{escape::escape, output, style};
use libmsb::digest::Digest;
use libmsb::reference::Reference;
use libmsb::state::images::Store;
use libmsb::state::lock::Lock;
use libmsb::state::{Home, layout};
use serde::Serialize;

use crate::args::{Check, OutputFormat};
use crate::disk::{self, merge};
use crate::document::{ImageConfig, ManifestDocument};
use crate::layer::index::LayerSummary;
use crate::layer::rebuild::{GapCheck, rebuild};
use crate::report::print_note;
use crate::store::find::read_document;
use crate::store::garbage::{digest_of_name, names};
use crate::store::live::ImageContents;
use crate::stream::{HashingReader, fill};

/// Results of a check, as JSON.
#[derive(Debug, Default, Serialize)]
struct CheckReport {
    references: usize,
    images: usize,
    layers: usize,
    /// Bytes of the layers' tars.
    bytes: u64,
    problems: Vec<StoreProblem>,
}

/// A damaged or missing file.
#[derive(Debug, Serialize)]
struct StoreProblem {
    path: PathBuf,
    problem: String,
}

impl StoreProblem {
    /// Formats the problem with its path once.
    fn line(&self) -> String {
        let path = self.path.display().to_string();
        if self.problem.contains(&path) {
            self.problem.clone()
        } else {
            format!("'{path}': {}", self.problem)
        }
    }
}

pub(crate) fn run(home: &Home, args: Check) -> Result<()> {
    let store = home.images();
    // A reader creates nothing: without a store there is nothing to lock.
    let _lock = store.root().is_dir().then(|| Lock::shared(&store.lock())).transpose()?;
    let mut checker = StoreChecker::new(&store, !args.quiet)?;
    checker.run()?;
    let findings = checker.findings;
    if args.format == Some(OutputFormat::Json) {
        output::print_json(&findings)?;
    } else {
        for problem in &findings.problems {
            output::print(&*escape(&problem.line()))?;
        }
    }
    let count = findings.problems.len();
    if count > 0 {
        let text =
            format!("the image store has {count} problem{}", if count == 1 { "" } else { "s" });
        return Err(Failure::failed(text)
            .hint("remove the images that need these files, then load or pull them again")
            .into());
    }
    if !args.quiet && args.format.is_none() {
        print_note(&format!(
            "No problems: {} names, {} images, {} layers, {}",
            findings.references,
            findings.images,
            findings.layers,
            style::bytes(findings.bytes)
        ));
    }
    Ok(())
}

/// A check of one store.
struct StoreChecker<'a> {
    store: &'a Store,
    findings: CheckReport,
    /// Layers that were checked, and whether they are intact.
    layers: HashMap<Digest, bool>,
    meter: Option<ProgressMeter>,
}

impl StoreChecker<'_> {
    fn new(store: &Store, progress: bool) -> Result<StoreChecker<'_>> {
        let layers = digests(&store.layers(), layout::LAYER_INDEX)?;
        let total =
            layers.iter().filter_map(|id| summary(store, id)).map(|summary| summary.tar_bytes);
        Ok(StoreChecker {
            store,
            findings: CheckReport::default(),
            layers: HashMap::new(),
            meter: ProgressMeter::start(Some(total.sum()), progress),
        })
    }

    fn run(&mut self) -> Result<()> {
        // References are read before the files that they need: a load that runs in the meantime
        // writes the files first.
        let named = self.references()?;
        self.documents()?;
        self.blobs()?;
        for diff_id in digests(&self.store.layers(), layout::LAYER_INDEX)? {
            self.layer(&diff_id);
        }
        self.meter = None;
        for manifest in digests(&self.store.manifests(), "")? {
            self.image(&manifest, named.contains(&manifest));
        }
        Ok(())
    }

    fn add_problem(&mut self, path: &Path, problem: String) {
        self.findings.problems.push(StoreProblem { path: path.to_owned(), problem });
    }

    fn record(&mut self, path: &Path, result: Result<()>) -> bool {
        match result {
            Ok(()) => true,
            Err(error) => {
                self.add_problem(path, cli_error::message(&error));
                false
            }
        }
    }

    /// Checks the references and returns the manifests that they name.
    fn references(&mut self) -> Result<BTreeSet<Digest>> {
        let mut named = BTreeSet::new();
        for name in names(&self.store.refs())? {
            if name.starts_with('.') {
                continue;
            }
            let path = self.store.refs().join(&name);
            self.findings.references += 1;
            match self.reference(&path, &name) {
                Ok(Some(manifest)) => drop(named.insert(manifest)),
                // It was removed since the directory was listed.
                Ok(None) => {}
                Err(error) => self.add_problem(&path, cli_error::message(&error)),
            }
        }
        Ok(named)
    }

    fn reference(&self, path: &Path, name: &str) -> Result<Option<Digest>> {
        let Some(record) = self.store.record_at(path)? else {
            return Ok(None);
        };
        let reference: Reference = record.reference.parse()?;
        ensure!(
            reference.file_name() == name && reference.to_string() == record.reference,
            "it contains the reference '{reference}', which does not match its file name"
        );
        let manifest = self.store.manifest_path(&record.manifest_digest);
        ensure!(manifest.exists(), "the manifest '{}' is missing", manifest.display());
        Ok(Some(record.manifest_digest))
    }

    fn documents(&mut self) -> Result<()> {
        for digest in digests(&self.store.manifests(), "")? {
            let path = self.store.manifest_path(&digest);
            let checked =
                read_document(&path, &digest).and_then(|bytes| ManifestDocument::parse(&bytes));
            self.record(&path, checked.map(drop));
        }
        for digest in digests(&self.store.configs(), "")? {
            let path = self.store.config_path(&digest);
            let checked =
                read_document(&path, &digest).and_then(|bytes| ImageConfig::parse(&bytes));
            self.record(&path, checked.map(drop));
        }
        Ok(())
    }

    fn blobs(&mut self) -> Result<()> {
        for digest in digests(&self.store.blobs(), "")? {
            let path = self.store.blob_path(&digest);
            let result = blob(&path, &digest);
            self.record(&path, result);
        }
        Ok(())
    }

    fn layer(&mut self, diff_id: &Digest) {
        let (store, meter) = (self.store, &mut self.meter);
        let rebuilt = rebuild(store, diff_id, GapCheck::Check, |bytes| {
            if let Some(meter) = meter {
                meter.advance(bytes.len() as u64);
            }
            Ok(())
        });
        self.findings.layers += 1;
        self.layers.insert(*diff_id, rebuilt.is_ok());
        match rebuilt {
            Ok(summary) => self.findings.bytes += summary.tar_bytes,
            Err(error) => {
                let message = cli_error::message(&error);
                let (index, data) =
                    (store.layer_index_path(diff_id), store.layer_data_path(diff_id));
                let is_data = message.contains(&data.display().to_string());
                self.add_problem(if is_data { &data } else { &index }, message);
            }
        }
    }

    /// Checks the layers and the disk of a manifest. One without a reference may lack its disk: it
    /// is being added or removed.
    fn image(&mut self, manifest: &Digest, is_named: bool) {
        let path = self.store.manifest_path(manifest);
        // A document that cannot be read is reported already; a missing one is not.
        let needs = match ImageContents::of(self.store, manifest) {
            Ok(needs) => needs,
            Err(error) => {
                if !self.is_reported(&path) {
                    self.add_problem(&path, cli_error::message(&error));
                }
                return;
            }
        };
        self.findings.images += 1;
        let mut whole = true;
        for diff_id in &needs.diff_ids {
            match self.layers.get(diff_id) {
                Some(good) => whole &= good,
                None => {
                    whole = false;
                    let problem = format!("it is missing, but manifest {manifest} needs it");
                    self.add_problem(&self.store.layer_index_path(diff_id), problem);
                }
            }
        }
        let there = disk::exists(self.store, manifest);
        if whole && (there || is_named) {
            let result = self.disk(manifest, &needs.diff_ids);
            self.record(&self.store.disk_vmdk_path(manifest), result);
        }
    }

    fn disk(&self, manifest: &Digest, diff_ids: &[Digest]) -> Result<()> {
        let merged = merge::merge(diff_ids, |diff_id| self.store.layer_index_path(diff_id))?;
        disk::compare(self.store, manifest, &merged)
    }

    fn is_reported(&self, path: &Path) -> bool {
        self.findings.problems.iter().any(|problem| problem.path == path)
    }
}

fn blob(path: &Path, digest: &Digest) -> Result<()> {
    let file = File::open(path).context("cannot open it")?;
    let mut hashing = HashingReader::new(file);
    let mut buffer = vec![0; 1 << 20];
    while fill(&mut hashing, &mut buffer).context("cannot read it")? > 0 {}
    let found = hashing.facts().digest;
    ensure!(found == *digest, "it is damaged: its digest is {found}");
    Ok(())
}

fn summary(store: &Store, diff_id: &Digest) -> Option<LayerSummary> {
    let mut file = File::open(store.layer_index_path(diff_id)).ok()?;
    LayerSummary::read(&mut file).ok().map(|(summary, _)| summary)
}

/// Returns the digests that are names of files in a directory.
fn digests(directory: &Path, suffix: &str) -> Result<Vec<Digest>> {
    let names = names(directory)?;
    Ok(names.iter().filter_map(|name| digest_of_name(name, suffix)).collect())
}
