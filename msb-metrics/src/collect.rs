//! Collector: reads the sample files of all sandboxes.

use std::collections::{BTreeMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use libmsb::cli::args::SandboxName;
use libmsb::cli::error::message;
use libmsb::samples::{SampleReader, Snapshot};
use libmsb::selector::Selector;
use libmsb::state::{Home, layout};

use crate::args::CollectArgs;
use crate::exits::EventFollower;
use crate::log;
use crate::names::SandboxNames;
use crate::sample::{
    ClockReading, Collection, Labels, Sample, SandboxIdentity, identity, sample_values, sandbox_ids,
};
use crate::subscriptions::{self, SampleSubscriber, SampleSubscription};

/// Maximum number of remembered problems; each is reported once.
const PROBLEMS_MAX: usize = 1000;

/// Filter for sandboxes and their labels.
#[derive(Clone, Debug, Default)]
pub(crate) struct SampleFilter {
    /// Required labels.
    pub(crate) selectors: Vec<Selector>,
    /// Omits all labels.
    pub(crate) no_labels: bool,
    /// Label keys to omit.
    pub(crate) excluded: HashSet<String>,
}

impl SampleFilter {
    /// Returns the filter for the command line.
    pub(crate) fn of(args: &CollectArgs) -> SampleFilter {
        SampleFilter {
            selectors: args.label.clone(),
            no_labels: args.no_labels,
            excluded: args.exclude_label_key.iter().cloned().collect(),
        }
    }

    /// Removes the labels that are omitted.
    fn labels(&self, mut labels: Labels) -> Labels {
        labels.retain(|key, _| !self.no_labels && !self.excluded.contains(key));
        labels
    }

    /// Applies the filter to a collection from another process.
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

/// A collector that reads the sample files repeatedly.
///
/// With a thousand sandboxes each system call is made a thousand times, so state is kept: the names
/// while the runtime directory is unchanged, the open files, and the labels while a run lasts and
/// its spec file is unchanged.
pub(crate) struct Collector {
    home: Home,
    filter: SampleFilter,
    names: SandboxNames,
    /// State of each sandbox in the runtime directory, by name.
    sandboxes: BTreeMap<SandboxName, SandboxState>,
    /// Limit of open sample files.
    budget: usize,
    follower: EventFollower,
    subscriber: Option<SampleSubscriber>,
    reported: HashSet<String>,
}

/// State of one sandbox.
#[derive(Default)]
struct SandboxState {
    /// Open sample file: opening costs more than reading.
    reader: Option<SampleReader>,
    run: Option<SandboxRun>,
    subscription: Option<SampleSubscription>,
}

/// One run of a sandbox, and the result of the filter.
struct SandboxRun {
    identity: Arc<SandboxIdentity>,
    chosen: bool,
    /// Version of the spec from which the labels were read. Labels may change during a run.
    version: Option<SpecVersion>,
}

/// Version of a file that is replaced on change: inode and modification time.
type SpecVersion = (u64, i64, i64);

impl Collector {
    /// Returns a collector for the command line.
    pub(crate) fn new(args: &CollectArgs) -> anyhow::Result<Collector> {
        let home = match &args.msb_home {
            Some(directory) => Home::at(&std::path::absolute(directory)?),
            None => Home::from_env()?,
        };
        let watch = SampleSubscriber::at(args.collect_interval);
        Ok(Collector::of(home, SampleFilter::of(args), watch))
    }

    /// Returns a collector for a state directory. Creates no files, even if the directory does not
    /// exist.
    pub(crate) fn of(
        home: Home,
        filter: SampleFilter,
        watch: Option<SampleSubscriber>,
    ) -> Collector {
        Collector {
            follower: EventFollower::at_end(home.events()),
            names: SandboxNames::of(home.runtime().to_owned()),
            home,
            filter,
            sandboxes: BTreeMap::new(),
            budget: subscriptions::raise_descriptor_limit() / 2,
            subscriber: watch,
            reported: HashSet::new(),
        }
    }

    /// Collects the samples of all running sandboxes, ordered by name.
    pub(crate) fn collect(&mut self) -> Collection {
        let now = ClockReading::get();
        if let Some(names) = self.names.changed() {
            self.sandboxes.retain(|name, _| names.contains(name));
            for name in names {
                self.sandboxes.entry(name).or_default();
            }
        }
        let mut sandboxes = std::mem::take(&mut self.sandboxes);
        let mut budget = DescriptorBudget {
            files: self.budget.saturating_sub(count(&sandboxes, |state| state.reader.is_some())),
            subscriptions: self
                .budget
                .saturating_sub(count(&sandboxes, |state| state.subscription.is_some())),
        };
        let mut samples = Vec::with_capacity(sandboxes.len());
        let all = sandboxes.iter_mut();
        samples.extend(all.filter_map(|(name, state)| self.sample(name, state, now, &mut budget)));
        self.sandboxes = sandboxes;
        Collection { at: now.time, samples, exits: self.follower.next() }
    }

    /// Returns the sample of a sandbox that is running and passes the filter.
    fn sample(
        &mut self,
        name: &SandboxName,
        state: &mut SandboxState,
        now: ClockReading,
        budget: &mut DescriptorBudget,
    ) -> Option<Sample> {
        let Some(snapshot) = self.read(name, &mut state.reader, &mut budget.files) else {
            *state = SandboxState::default();
            return None;
        };
        state.run = self.find_run(name, &snapshot, state.run.take());
        let Some(run) = state.run.as_ref().filter(|run| run.chosen) else {
            state.subscription = None;
            return None;
        };
        if let Some(subscriber) = &self.subscriber {
            let run = (name, run.identity.run_id);
            subscriber.renew(
                &mut state.subscription,
                &self.home,
                run,
                now.boot_ns,
                &mut budget.subscriptions,
            );
        }
        Some(Sample {
            timestamp: now.time,
            values: sample_values(&snapshot, now),
            identity: Arc::clone(&run.identity),
        })
    }

    /// Reads a sample file. A file that cannot be read is reported once and does not affect others.
    fn read(
        &mut self,
        name: &SandboxName,
        open: &mut Option<SampleReader>,
        budget: &mut usize,
    ) -> Option<Snapshot> {
        match self.try_read(name, open, budget) {
            Ok(snapshot) => snapshot,
            Err(error) => {
                let problem = message(&error);
                if self.reported.len() < PROBLEMS_MAX && !self.reported.contains(&problem) {
                    log::warn(&problem);
                    self.reported.insert(problem);
                }
                None
            }
        }
    }

    /// Reads the open file first. If it is no longer updated or is corrupt, there may be a new one.
    fn try_read(
        &self,
        name: &SandboxName,
        open: &mut Option<SampleReader>,
        budget: &mut usize,
    ) -> anyhow::Result<Option<Snapshot>> {
        if let Some(reader) = open
            && let Ok(Some(snapshot)) = reader.read()
        {
            return Ok(Some(snapshot));
        }
        *open = None;
        let Some(reader) = SampleReader::open(&self.home.samples(name))? else {
            return Ok(None);
        };
        let snapshot = reader.read()?;
        if snapshot.is_some() && *budget > 0 {
            *budget -= 1;
            *open = Some(reader);
        }
        Ok(snapshot)
    }

    /// Returns the run that a snapshot belongs to: the known one, or a new one, whose labels are
    /// read.
    fn find_run(
        &self,
        name: &SandboxName,
        snapshot: &Snapshot,
        known: Option<SandboxRun>,
    ) -> Option<SandboxRun> {
        let (id, run_id) = sandbox_ids(snapshot)?;
        let sandbox = self.home.sandboxes().named(name);
        let version = version(&sandbox.path(layout::SPEC));
        if let Some(run) = known
            && (run.identity.id, run.identity.run_id) == (id, run_id)
            && run.version == version
        {
            return Some(run);
        }
        let mut identity = identity(name.as_str(), snapshot)?;
        // Labels of the sandbox include those of its image. If the spec cannot be read there are
        // none.
        let labels = sandbox.spec().map(|spec| spec.labels).unwrap_or_default();
        let chosen = Selector::all_match(&self.filter.selectors, &labels);
        identity.labels = self.filter.labels(labels);
        Some(SandboxRun { identity: Arc::new(identity), chosen, version })
    }
}

/// Number of descriptors that may still be opened.
struct DescriptorBudget {
    files: usize,
    subscriptions: usize,
}

fn count(
    sandboxes: &BTreeMap<SandboxName, SandboxState>,
    has: impl Fn(&SandboxState) -> bool,
) -> usize {
    sandboxes.values().filter(|state| has(state)).count()
}

fn version(path: &Path) -> Option<SpecVersion> {
    let file = std::fs::metadata(path).ok()?;
    Some((file.ino(), file.mtime(), file.mtime_nsec()))
}
