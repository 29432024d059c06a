//! `msb image prune`: images that no sandbox was made from go, and all waste with them; and boot states that no guest has
//! started from for a day.

use std::collections::HashSet;
use std::io::{self, BufRead, IsTerminal};
use std::path::PathBuf;

use anyhow::{Context, Result};
use libmsb::cli::error::Failure;
use libmsb::cli::{output, style};
use libmsb::reference::Reference;
use libmsb::state::Home;
use libmsb::state::images::{RefRecord, Store};
use libmsb::state::lock::Lock;
use serde::Serialize;

use crate::arguments::{Format, Prune};
use crate::filter::Filter;
use crate::garbage::{Garbage, Gone, Mode};
use crate::list::Documents;
use crate::load::note;
use crate::remove::lock_alone;
use crate::uses::{Live, Users};

/// What has gone, as programs are told. The first six fields are those of microsandbox.
#[derive(Debug, Serialize)]
struct Report {
    image_refs_removed: u64,
    manifests_removed: u64,
    layers_removed: u64,
    fsmeta_removed: u64,
    vmdk_removed: u64,
    bytes_reclaimed: u64,
    configs_removed: u64,
    blobs_removed: u64,
    downloads_removed: u64,
    boot_states_removed: u64,
    leftovers_removed: u64,
    references: Vec<String>,
}

/// What goes.
struct Plan {
    going: Vec<RefRecord>,
    live: Live,
    /// The directory of boot states, if old ones go.
    boot: Option<PathBuf>,
}

pub(crate) fn run(home: &Home, args: Prune) -> Result<()> {
    let filters: Vec<Filter> = args
        .filters
        .iter()
        .map(|text| text.parse())
        .collect::<Result<_, _>>()?;
    let store = home.images();
    if !store.root().is_dir() {
        return report(&args, &[], &Gone::default());
    }
    let chosen = if args.yes {
        None
    } else {
        let Some(chosen) = ask(home, &store, &args, &filters)? else {
            return Ok(());
        };
        Some(chosen)
    };
    let _lock = lock_alone(&store)?;
    let mut plan = plan(home, &store, &args, &filters)?;
    if let Some(chosen) = chosen {
        // What came while somebody thought about it was not agreed to.
        plan = plan.without_others(home, &store, &chosen)?;
    }
    let gone = carry_out(&store, &plan, Mode::Remove)?;
    let references: Vec<String> = plan
        .going
        .iter()
        .map(|record| record.reference.clone())
        .collect();
    report(&args, &references, &gone)
}

/// What would go now.
pub(crate) fn preview(home: &Home, store: &Store) -> Result<Gone> {
    carry_out(
        store,
        &plan(home, store, &Prune::default(), &[])?,
        Mode::Count,
    )
}

fn plan(home: &Home, store: &Store, args: &Prune, filters: &[Filter]) -> Result<Plan> {
    let users = Users::read(home, false)?;
    let mut going = Vec::new();
    let mut named = HashSet::new();
    for record in store.records()? {
        let in_use = !users.of(&record.manifest_digest).is_empty();
        if args.dangling || in_use || !matches(store, &record, filters)? {
            named.insert(record.manifest_digest);
        } else {
            going.push(record);
        }
    }
    let live = Live::of(store, &named, users.manifests())?;
    // They serve all images.
    let boot = (!args.dangling && filters.is_empty()).then(|| home.boot_dir());
    Ok(Plan { going, live, boot })
}

impl Plan {
    /// The same, but of references that go only those that were chosen, with the image that they had then.
    fn without_others(self, home: &Home, store: &Store, chosen: &[RefRecord]) -> Result<Plan> {
        let going: Vec<RefRecord> = self
            .going
            .into_iter()
            .filter(|record| chosen.contains(record))
            .collect();
        let stays = |record: &RefRecord| !going.contains(record);
        let records = store.records()?;
        let named = records.iter().filter(|record| stays(record));
        let named = named.map(|record| record.manifest_digest).collect();
        let live = Live::of(store, &named, Users::read(home, false)?.manifests())?;
        Ok(Plan {
            going,
            live,
            boot: self.boot,
        })
    }
}

fn matches(store: &Store, record: &RefRecord, filters: &[Filter]) -> Result<bool> {
    if filters.is_empty() {
        return Ok(true);
    }
    let documents = Documents::read(store, &record.manifest_digest)
        .with_context(|| format!("image '{}' is broken", record.reference))?;
    let process = documents.config.config.unwrap_or_default();
    let labels = process.labels.unwrap_or_default();
    Ok(filters
        .iter()
        .all(|filter| filter.matches(record.created_at, &labels)))
}

fn carry_out(store: &Store, plan: &Plan, mode: Mode) -> Result<Gone> {
    let mut garbage = Garbage::new(store, mode);
    let references: Vec<Reference> = plan
        .going
        .iter()
        .map(|record| record.reference.parse())
        .collect::<Result<_, _>>()?;
    garbage.references(references.iter().map(|reference| store.ref_path(reference)))?;
    garbage.orphans(&plan.live)?;
    garbage.downloads()?;
    if let Some(boot) = &plan.boot {
        garbage.boot_states(boot)?;
    }
    Ok(garbage.gone)
}

/// Shows what would go. Gives those references if the answer is yes.
fn ask(
    home: &Home,
    store: &Store,
    args: &Prune,
    filters: &[Filter],
) -> Result<Option<Vec<RefRecord>>> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(
            Failure::usage("nobody can be asked here what may be removed")
                .hint("to remove without a question, add --yes")
                .into(),
        );
    }
    let lock = Lock::shared(&store.lock())?;
    let plan = plan(home, store, args, filters)?;
    let gone = carry_out(store, &plan, Mode::Count)?;
    drop(lock);
    if gone.is_nothing() {
        note("Nothing to remove.");
        return Ok(None);
    }
    for record in &plan.going {
        note(&format!("  {}", record.reference));
    }
    note(&format!("This removes {}. Go on? [y/N]", summary(&gone)));
    let mut answer = String::new();
    io::stdin()
        .lock()
        .read_line(&mut answer)
        .context("cannot read the answer")?;
    let yes = ["y", "yes"].contains(&answer.trim().to_lowercase().as_str());
    if !yes {
        note("Nothing was removed.");
    }
    Ok(yes.then_some(plan.going))
}

fn report(args: &Prune, references: &[String], gone: &Gone) -> Result<()> {
    if args.format == Some(Format::Json) {
        return Ok(output::print_json(&Report {
            image_refs_removed: gone.references,
            manifests_removed: gone.manifests,
            layers_removed: gone.layers,
            fsmeta_removed: gone.erofs,
            vmdk_removed: gone.vmdk,
            bytes_reclaimed: gone.bytes,
            configs_removed: gone.configs,
            blobs_removed: gone.blobs,
            downloads_removed: gone.downloads,
            boot_states_removed: gone.boot_states,
            leftovers_removed: gone.leftovers,
            references: references.to_vec(),
        })?);
    }
    if args.quiet {
        return Ok(());
    }
    for reference in references {
        note(&format!("Removed {reference}"));
    }
    note(&match gone.is_nothing() {
        true => "Nothing to remove.".to_owned(),
        false => format!("Removed {}.", summary(gone)),
    });
    Ok(())
}

fn summary(gone: &Gone) -> String {
    let kinds = [
        (gone.references, "name"),
        (gone.manifests, "image"),
        (gone.layers, "layer"),
        (gone.downloads, "download"),
        (gone.boot_states, "boot state"),
        (gone.leftovers, "left-over"),
    ];
    let counted = kinds.iter().filter(|(count, _)| *count > 0);
    let mut parts: Vec<String> = counted
        .map(|(count, kind)| format!("{count} {kind}{}", if *count == 1 { "" } else { "s" }))
        .collect();
    parts.push(format!("{} on the disk", style::bytes(gone.bytes)));
    parts.join(", ")
}
