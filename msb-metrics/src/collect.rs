//! The samples of all sandboxes, from their files.

use std::collections::{BTreeMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use libmsb::cli::args::SandboxName;
use libmsb::cli::error::message;
use libmsb::samples::{Reader, Snapshot};
use libmsb::selector::Selector;
use libmsb::state::{Home, layout};

use crate::args::CollectArgs;
use crate::exits::Follower;
use crate::log;
use crate::names::Names;
use crate::sample::{Collection, Identity, Labels, Now, Sample, figures, identity, numbers};
use crate::watch::{self, Subscription, Watch};

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
///
/// Of a thousand sandboxes each system call is made a thousand times, so what is known is kept: the names as long as their
/// folder does not change, the files open, and the labels as long as a sandbox lives and its specification is the same one.
pub(crate) struct Collector {
    home: Home,
    choice: Choice,
    names: Names,
    /// What is kept of those that have a folder, by name.
    places: BTreeMap<SandboxName, Place>,
    /// How many sample files may be open.
    room: usize,
    follower: Follower,
    watch: Option<Watch>,
    told: HashSet<String>,
}

/// What is kept of one name.
#[derive(Default)]
struct Place {
    /// The open file: opening costs more than reading.
    reader: Option<Reader>,
    life: Option<Life>,
    subscription: Option<Subscription>,
}

/// One life of a sandbox, and whether it was chosen.
struct Life {
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
            names: Names::of(home.runtime().to_owned()),
            home,
            choice,
            places: BTreeMap::new(),
            room: watch::descriptors() / 2,
            watch,
            told: HashSet::new(),
        }
    }

    /// All sandboxes that live, by name.
    pub(crate) fn collect(&mut self) -> Collection {
        let now = Now::get();
        if let Some(names) = self.names.changed() {
            self.places.retain(|name, _| names.contains(name));
            for name in names {
                self.places.entry(name).or_default();
            }
        }
        let mut places = std::mem::take(&mut self.places);
        let mut room = Room {
            files: self
                .room
                .saturating_sub(count(&places, |place| place.reader.is_some())),
            subscriptions: self
                .room
                .saturating_sub(count(&places, |place| place.subscription.is_some())),
        };
        let mut samples = Vec::with_capacity(places.len());
        let all = places.iter_mut();
        samples.extend(all.filter_map(|(name, place)| self.sample(name, place, now, &mut room)));
        self.places = places;
        Collection {
            at: now.time,
            samples,
            exits: self.follower.next(),
        }
    }

    /// The sample of one that lives, and was chosen.
    fn sample(
        &mut self,
        name: &SandboxName,
        place: &mut Place,
        now: Now,
        room: &mut Room,
    ) -> Option<Sample> {
        let Some(snapshot) = self.read(name, &mut place.reader, &mut room.files) else {
            *place = Place::default();
            return None;
        };
        place.life = self.recognize(name, &snapshot, place.life.take());
        let Some(life) = place.life.as_ref().filter(|life| life.chosen) else {
            place.subscription = None;
            return None;
        };
        if let Some(watch) = &self.watch {
            let life = (name, life.identity.run_id);
            watch.keep(
                &mut place.subscription,
                &self.home,
                life,
                now.boot_ns,
                &mut room.subscriptions,
            );
        }
        Some(Sample {
            timestamp: now.time,
            figures: figures(&snapshot, now),
            identity: Arc::clone(&life.identity),
        })
    }

    /// What a file says. One that cannot be read is told once, and harms no other.
    fn read(
        &mut self,
        name: &SandboxName,
        open: &mut Option<Reader>,
        room: &mut usize,
    ) -> Option<Snapshot> {
        match self.try_read(name, open, room) {
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

    /// The open file first. When nobody keeps that one any more, or it is spoiled, there may be another by now.
    fn try_read(
        &self,
        name: &SandboxName,
        open: &mut Option<Reader>,
        room: &mut usize,
    ) -> anyhow::Result<Option<Snapshot>> {
        if let Some(reader) = open
            && let Ok(Some(snapshot)) = reader.read()
        {
            return Ok(Some(snapshot));
        }
        *open = None;
        let Some(reader) = Reader::open(&self.home.samples(name))? else {
            return Ok(None);
        };
        let snapshot = reader.read()?;
        if snapshot.is_some() && *room > 0 {
            *room -= 1;
            *open = Some(reader);
        }
        Ok(snapshot)
    }

    /// The life that a snapshot is of: the one that is known, or a new one, whose labels are read.
    fn recognize(
        &self,
        name: &SandboxName,
        snapshot: &Snapshot,
        known: Option<Life>,
    ) -> Option<Life> {
        let (id, run_id) = numbers(snapshot)?;
        let sandbox = self.home.sandboxes().named(name);
        let version = version(&sandbox.path(layout::SPEC));
        if let Some(life) = known
            && (life.identity.id, life.identity.run_id) == (id, run_id)
            && life.version == version
        {
            return Some(life);
        }
        let mut identity = identity(name.as_str(), snapshot)?;
        // Its own labels, and those of its image. A sandbox whose specification cannot be read has none.
        let labels = sandbox.spec().map(|spec| spec.labels).unwrap_or_default();
        let chosen = Selector::all_match(&self.choice.selectors, &labels);
        identity.labels = self.choice.labels(labels);
        Some(Life {
            identity: Arc::new(identity),
            chosen,
            version,
        })
    }
}

/// How much more may be open.
struct Room {
    files: usize,
    subscriptions: usize,
}

fn count(places: &BTreeMap<SandboxName, Place>, has: impl Fn(&Place) -> bool) -> usize {
    places.values().filter(|place| has(place)).count()
}

fn version(path: &Path) -> Option<Version> {
    let file = std::fs::metadata(path).ok()?;
    Some((file.ino(), file.mtime(), file.mtime_nsec()))
}
