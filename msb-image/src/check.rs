//! `msb image check`: whether the store is what its names say, down to the last byte.
//!
//! Documents and blobs must have their digests. The tar of each layer is made again and hashed, and between the files in
//! its data there must be zeros. The disk of each image is made again from its layers and compared. What kills leave
//! behind (files that begin with `.new-`, and whatever leads nowhere) is waste, and no problem.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use libmsb::cli::error::{self as cli_error, Failure};
use libmsb::cli::{escape::escape, output, style};
use libmsb::digest::Digest;
use libmsb::reference::Reference;
use libmsb::state::images::Store;
use libmsb::state::lock::Lock;
use libmsb::state::{Home, layout};
use serde::Serialize;

use crate::arguments::{Check, Format};
use crate::disk::{self, merge};
use crate::document::{Config, Document};
use crate::garbage::{digest_of_name, names};
use crate::input::Meter;
use crate::layer::index::Summary;
use crate::layer::rebuild::{Gaps, rebuild};
use crate::load::note;
use crate::store::read_document;
use crate::stream::{HashingReader, fill};
use crate::uses::Needs;

/// What was found, as programs are told.
#[derive(Debug, Default, Serialize)]
struct Findings {
    references: usize,
    images: usize,
    layers: usize,
    /// Bytes of the layers' tars.
    bytes: u64,
    problems: Vec<Problem>,
}

/// A file that is not as it should be.
#[derive(Debug, Serialize)]
struct Problem {
    path: PathBuf,
    problem: String,
}

impl Problem {
    /// The path stands in it once.
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
    // A reader makes nothing: without a store there is nothing to guard.
    let _lock = store
        .root()
        .is_dir()
        .then(|| Lock::shared(&store.lock()))
        .transpose()?;
    let mut checker = Checker::new(&store, !args.quiet)?;
    checker.run()?;
    let findings = checker.findings;
    if args.format == Some(Format::Json) {
        output::print_json(&findings)?;
    } else {
        for problem in &findings.problems {
            output::print(&*escape(&problem.line()))?;
        }
    }
    let count = findings.problems.len();
    if count > 0 {
        let text = format!(
            "the image store has {count} problem{}",
            if count == 1 { "" } else { "s" }
        );
        return Err(Failure::failed(text)
            .hint("remove the images that these files belong to, and load or pull them once more")
            .into());
    }
    if !args.quiet && args.format.is_none() {
        note(&format!(
            "All is well: {} names, {} images, {} layers, {}",
            findings.references,
            findings.images,
            findings.layers,
            style::bytes(findings.bytes)
        ));
    }
    Ok(())
}

/// Looks at one thing after the other.
struct Checker<'a> {
    store: &'a Store,
    findings: Findings,
    /// Layers that were looked at, and whether they are good.
    layers: HashMap<Digest, bool>,
    meter: Option<Meter>,
}

impl Checker<'_> {
    fn new(store: &Store, progress: bool) -> Result<Checker<'_>> {
        let layers = digests(&store.layers(), layout::LAYER_INDEX)?;
        let total = layers
            .iter()
            .filter_map(|id| summary(store, id))
            .map(|summary| summary.tar_bytes);
        Ok(Checker {
            store,
            findings: Findings::default(),
            layers: HashMap::new(),
            meter: Meter::start(total.sum(), progress),
        })
    }

    fn run(&mut self) -> Result<()> {
        // Names before what they lead to: what a load brings in the meantime is there before its name is.
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

    fn found(&mut self, path: &Path, problem: String) {
        self.findings.problems.push(Problem {
            path: path.to_owned(),
            problem,
        });
    }

    fn note(&mut self, path: &Path, result: Result<()>) -> bool {
        match result {
            Ok(()) => true,
            Err(error) => {
                self.found(path, cli_error::message(&error));
                false
            }
        }
    }

    /// Gives the manifests that are named.
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
                // It was removed since the folder was listed.
                Ok(None) => {}
                Err(error) => self.found(&path, cli_error::message(&error)),
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
            "it names '{reference}', and its own name is another"
        );
        let manifest = self.store.manifest_path(&record.manifest_digest);
        ensure!(
            manifest.exists(),
            "the manifest '{}' is missing",
            manifest.display()
        );
        Ok(Some(record.manifest_digest))
    }

    fn documents(&mut self) -> Result<()> {
        for digest in digests(&self.store.manifests(), "")? {
            let path = self.store.manifest_path(&digest);
            let checked = read_document(&path, &digest).and_then(|bytes| Document::parse(&bytes));
            self.note(&path, checked.map(drop));
        }
        for digest in digests(&self.store.configs(), "")? {
            let path = self.store.config_path(&digest);
            let checked = read_document(&path, &digest).and_then(|bytes| Config::parse(&bytes));
            self.note(&path, checked.map(drop));
        }
        Ok(())
    }

    fn blobs(&mut self) -> Result<()> {
        for digest in digests(&self.store.blobs(), "")? {
            let path = self.store.blob_path(&digest);
            let result = blob(&path, &digest);
            self.note(&path, result);
        }
        Ok(())
    }

    fn layer(&mut self, diff_id: &Digest) {
        let (store, meter) = (self.store, &mut self.meter);
        let rebuilt = rebuild(store, diff_id, Gaps::Check, |bytes| {
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
                let (index, data) = (
                    store.layer_index_path(diff_id),
                    store.layer_data_path(diff_id),
                );
                let is_data = message.contains(&data.display().to_string());
                self.found(if is_data { &data } else { &index }, message);
            }
        }
    }

    /// What a manifest leads to. One without a name need not have a disk: it is on its way in or out.
    fn image(&mut self, manifest: &Digest, is_named: bool) {
        let path = self.store.manifest_path(manifest);
        // A manifest or configuration that cannot be read was told before; one that is missing was not.
        let needs = match Needs::of(self.store, manifest) {
            Ok(needs) => needs,
            Err(error) => {
                if !self.is_told(&path) {
                    self.found(&path, cli_error::message(&error));
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
                    let problem = format!("it is missing, and the manifest {manifest} needs it");
                    self.found(&self.store.layer_index_path(diff_id), problem);
                }
            }
        }
        let there = disk::is_there(self.store, manifest);
        if whole && (there || is_named) {
            let result = self.disk(manifest, &needs.diff_ids);
            self.note(&self.store.disk_vmdk_path(manifest), result);
        }
    }

    fn disk(&self, manifest: &Digest, diff_ids: &[Digest]) -> Result<()> {
        let merged = merge::merge(diff_ids, |diff_id| self.store.layer_index_path(diff_id))?;
        disk::compare(self.store, manifest, &merged)
    }

    fn is_told(&self, path: &Path) -> bool {
        self.findings
            .problems
            .iter()
            .any(|problem| problem.path == path)
    }
}

fn blob(path: &Path, digest: &Digest) -> Result<()> {
    let file = File::open(path).context("cannot open it")?;
    let mut hashing = HashingReader::new(file);
    let mut buffer = vec![0; 1 << 20];
    while fill(&mut hashing, &mut buffer).context("cannot read it")? > 0 {}
    let found = hashing.facts().digest;
    ensure!(found == *digest, "it is damaged: it has the digest {found}");
    Ok(())
}

fn summary(store: &Store, diff_id: &Digest) -> Option<Summary> {
    let mut file = File::open(store.layer_index_path(diff_id)).ok()?;
    Summary::read(&mut file).ok().map(|(summary, _)| summary)
}

/// The digests that name files of a folder.
fn digests(folder: &Path, suffix: &str) -> Result<Vec<Digest>> {
    let names = names(folder)?;
    Ok(names
        .iter()
        .filter_map(|name| digest_of_name(name, suffix))
        .collect())
}
