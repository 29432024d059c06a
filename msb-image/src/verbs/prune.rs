//! `msb image prune`: removes images that no sandbox was created from, garbage, and boot states
//! that no guest has started from for a day.

use std::io::{self, BufRead, IsTerminal};

use anyhow::{Context, Result};
use libmsb::cli::error::Failure;
use libmsb::cli::{output, style};
use libmsb::state::Home;
use libmsb::state::images::{RefRecord, Store};
use libmsb::state::lock::Lock;
use serde::Serialize;

use crate::args::{OutputFormat, Prune};
use crate::filter::ImageFilter;
use crate::report::print_note;
use crate::store::garbage::{CollectMode, GarbageCounts};
use crate::store::open::lock_exclusively;
use crate::store::prune::PrunePlan;

/// Counts of removed files, as JSON. The first six fields are those of microsandbox.
#[derive(Debug, Serialize)]
struct PruneReport {
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

pub(crate) fn run(home: &Home, args: Prune) -> Result<()> {
    let filters: Vec<ImageFilter> =
        args.filters.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
    let store = home.images();
    if !store.root().is_dir() {
        return report(&args, &[], &GarbageCounts::default());
    }
    let confirmed = if args.yes {
        None
    } else {
        let Some(confirmed) = confirm(home, &store, &args, &filters)? else {
            return Ok(());
        };
        Some(confirmed)
    };
    let _lock = lock_exclusively(&store)?;
    let mut plan = PrunePlan::new(home, &store, args.dangling, &filters)?;
    if let Some(confirmed) = confirmed {
        // The user did not confirm references that were added in the meantime.
        plan = plan.limited_to(home, &store, &confirmed)?;
    }
    let counts = plan.execute(&store, CollectMode::Remove)?;
    let references: Vec<String> =
        plan.removed.iter().map(|record| record.reference.clone()).collect();
    report(&args, &references, &counts)
}

/// Shows what would be removed and asks for confirmation. Returns those references if the user
/// agrees.
fn confirm(
    home: &Home,
    store: &Store,
    args: &Prune,
    filters: &[ImageFilter],
) -> Result<Option<Vec<RefRecord>>> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(Failure::usage("cannot ask for confirmation without a terminal")
            .hint("to remove without confirmation, add --yes")
            .into());
    }
    let lock = Lock::shared(&store.lock())?;
    let plan = PrunePlan::new(home, store, args.dangling, filters)?;
    let counts = plan.execute(store, CollectMode::Count)?;
    drop(lock);
    if counts.is_zero() {
        print_note("Nothing to remove.");
        return Ok(None);
    }
    for record in &plan.removed {
        print_note(&format!("  {}", record.reference));
    }
    print_note(&format!("This will remove {}. Continue? [y/N]", summary(&counts)));
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).context("cannot read the answer")?;
    let yes = ["y", "yes"].contains(&answer.trim().to_lowercase().as_str());
    if !yes {
        print_note("Nothing was removed.");
    }
    Ok(yes.then_some(plan.removed))
}

fn report(args: &Prune, references: &[String], counts: &GarbageCounts) -> Result<()> {
    if args.format == Some(OutputFormat::Json) {
        return Ok(output::print_json(&PruneReport {
            image_refs_removed: counts.references,
            manifests_removed: counts.manifests,
            layers_removed: counts.layers,
            fsmeta_removed: counts.erofs,
            vmdk_removed: counts.vmdk,
            bytes_reclaimed: counts.bytes,
            configs_removed: counts.configs,
            blobs_removed: counts.blobs,
            downloads_removed: counts.downloads,
            boot_states_removed: counts.boot_states,
            leftovers_removed: counts.leftovers,
            references: references.to_vec(),
        })?);
    }
    if args.quiet {
        return Ok(());
    }
    for reference in references {
        output::print(reference)?;
    }
    print_note(&match counts.is_zero() {
        true => "Nothing to remove.".to_owned(),
        false => format!("Removed {}.", summary(counts)),
    });
    Ok(())
}

fn summary(counts: &GarbageCounts) -> String {
    let kinds = [
        (counts.references, "name"),
        (counts.manifests, "image"),
        (counts.layers, "layer"),
        (counts.downloads, "download"),
        (counts.boot_states, "boot state"),
        (counts.leftovers, "leftover"),
    ];
    let counted = kinds.iter().filter(|(count, _)| *count > 0);
    let mut parts: Vec<String> = counted
        .map(|(count, kind)| format!("{count} {kind}{}", if *count == 1 { "" } else { "s" }))
        .collect();
    parts.push(format!("{} on the disk", style::bytes(counts.bytes)));
    parts.join(", ")
}
