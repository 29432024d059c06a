//! The samples of all sandboxes, from their files.

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use libmsb::cli::args::SandboxName;
use libmsb::cli::error::message;
use libmsb::samples::{self, Snapshot};
use libmsb::selector::Selector;
use libmsb::state::{Home, layout};

use crate::args::CollectArgs;
use crate::exits::Follower;
use crate::log;
use crate::sample::{Collection, Identity, Labels, Now, Sample, figures, identity};
use crate::watch::Watch;

/// Problems that are remembered, so that each is told once.
const PROBLEMS_MAX: usize = 1000;

/// Which sandboxes, and which of their labels.
#[derive(Clone, Debug, Default)]
pub(crate) struct Choice {
    /// Only those with these labels.
    pub(crate) selectors: Vec<Selector>,
    /// No labels.
    pub(crate) no_labels: bool,
    /// Not these.
    pub(crate) excluded: HashSet<String>,
}

impl Choice {
    /// As the command line has it.
    pub(crate) fn of(args: &CollectArgs) -> Choice {
        Choice {
            selectors: args.label.clone(),
            no_labels: args.no_labels,
            excluded: args.exclude_label_key.iter().cloned().collect(),
        }
    }

    /// Those labels that are passed on.
    fn labels(&self, mut labels: Labels) -> Labels {
        labels.retain(|key, _| !self.no_labels && !self.excluded.contains(key));
        labels
    }

    /// What is chosen of a collection that somebody else made.
    pub(crate) fn of_collection(&self, mut collection: Collection) -> Collection {
        let chosen =
            |sample: &Sample| Selector::all_match(&self.selectors, &sample.identity.labels);
        collection.samples.retain(chosen);
        for sample in &mut collection.samples {
            let identity = Arc::make_mut(&mut sample.identity);
            identity.labels = self.labels(std::mem::take(&mut identity.labels));
        }
        collection
    }
}

/// Reads the sample files, again and again.
pub(crate) struct Collector {
    home: Home,
    choice: Choice,
    known: HashMap<SandboxName, Known>,
    follower: Follower,
    watch: Option<Watch>,
    told: HashSet<String>,
}

/// One life of a sandbox, and whether it was chosen.
struct Known {
    identity: Arc<Identity>,
    chosen: bool,
    /// Which specification the labels are from: they may be changed while it runs.
    version: Option<Version>,
}

/// A file that is replaced when it changes: its number, and when it was made.
type Version = (u64, i64, i64);

impl Collector {
    /// As the command line has it.
    pub(crate) fn new(args: &CollectArgs) -> anyhow::Result<Collector> {
        let home = match &args.msb_home {
            Some(folder) => Home::at(&std::path::absolute(folder)?),
            None => Home::from_env()?,
        };
        let watch = Watch::at(args.collect_interval);
        Ok(Collector::of(home, Choice::of(args), watch))
    }

    /// Of a state directory. Creates nothing, also where there is none yet.
    pub(crate) fn of(home: Home, choice: Choice, watch: Option<Watch>) -> Collector {
        Collector {
            follower: Follower::at_end(home.events()),
            home,
            choice,
            known: HashMap::new(),
            watch,
            told: HashSet::new(),
        }
    }

    /// All sandboxes that live, by name.
    pub(crate) fn collect(&mut self) -> Collection {
        let now = Now::get();
        let mut samples = Vec::new();
        let mut running = Vec::new();
        let mut known = HashMap::with_capacity(self.known.len());
        for name in self.names() {
            let Some(snapshot) = self.read(&name) else {
                continue;
            };
            let Some(life) = self.recognize(&name, &snapshot) else {
                continue;
            };
            if life.chosen {
                running.push((name.clone(), life.identity.run_id));
                samples.push(Sample {
                    timestamp: now.time,
                    figures: figures(&snapshot, now),
                    identity: Arc::clone(&life.identity),
                });
            }
            known.insert(name, life);
        }
        // Those that are gone are forgotten, and recognized anew if they come back.
        self.known = known;
        if let Some(watch) = &mut self.watch {
            watch.keep(&self.home, &running);
        }
        Collection {
            at: now.time,
            samples,
            exits: self.follower.next(),
        }
    }

    fn names(&self) -> Vec<SandboxName> {
        let entries = std::fs::read_dir(self.home.runtime());
        let entries = entries.into_iter().flatten().flatten();
        let mut names: Vec<SandboxName> = entries
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect();
        names.sort();
        names
    }

    /// What a file says. One that cannot be read is told once, and harms no other.
    fn read(&mut self, name: &SandboxName) -> Option<Snapshot> {
        match samples::read(&self.home.samples(name)) {
            Ok(snapshot) => snapshot,
            Err(error) => {
                let problem = message(&error);
                if self.told.len() < PROBLEMS_MAX && !self.told.contains(&problem) {
                    log::warn(&problem);
                    self.told.insert(problem);
                }
                None
            }
        }
    }

    /// The life that a snapshot is of: one that is known, or a new one, whose labels are read.
    fn recognize(&mut self, name: &SandboxName, snapshot: &Snapshot) -> Option<Known> {
        let mut identity = identity(name.as_str(), snapshot)?;
        let sandbox = self.home.sandboxes().named(name);
        let version = version(&sandbox.path(layout::SPEC));
        if let Some(known) = self.known.remove(name)
            && (known.identity.id, known.identity.run_id) == (identity.id, identity.run_id)
            && known.version == version
        {
            return Some(known);
        }
        // Its own labels, and those of its image. A sandbox whose specification cannot be read has none.
        let labels = sandbox.spec().map(|spec| spec.labels).unwrap_or_default();
        let chosen = Selector::all_match(&self.choice.selectors, &labels);
        identity.labels = self.choice.labels(labels);
        Some(Known {
            identity: Arc::new(identity),
            chosen,
            version,
        })
    }
}

fn version(path: &Path) -> Option<Version> {
    let file = std::fs::metadata(path).ok()?;
    Some((file.ino(), file.mtime(), file.mtime_nsec()))
}
