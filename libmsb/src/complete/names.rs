//! Names in the state directory. What cannot be read has none.

use super::candidates::Candidates;
use crate::cli::args::SandboxName;
use crate::reference::Reference;
use crate::state::Home;
use crate::state::jobs::Jobs;

fn home() -> Option<Home> {
    Home::from_env().ok()
}

/// Returns the sandboxes, described by their state and image.
pub(super) fn sandboxes() -> Candidates {
    let entries = home().and_then(|home| home.sandboxes().list().ok()).unwrap_or_default();
    let described = entries.into_iter().map(|entry| {
        let about = entry
            .seen
            .map(|seen| format!("{} {}", seen.state.name(), familiar(&seen.spec.root.name())));
        (entry.name, about.unwrap_or_default())
    });
    described.collect()
}

/// Returns the volumes, described by their kind.
pub(super) fn volumes() -> Candidates {
    let entries = home().and_then(|home| home.volumes().list().ok()).unwrap_or_default();
    let described = entries.into_iter().map(|entry| {
        let kind = entry.record.map(|record| record.kind.name().to_owned());
        (entry.name, kind.unwrap_or_default())
    });
    described.collect()
}

/// Returns the aliases, described by their image.
pub(super) fn aliases() -> Candidates {
    let aliases = home().and_then(|home| home.aliases().list().ok()).unwrap_or_default();
    aliases.into_iter().map(|alias| (alias.name.to_string(), familiar(&alias.image))).collect()
}

/// Returns the snapshots, described by their image.
pub(super) fn snapshots() -> Candidates {
    let entries = home().and_then(|home| home.snapshots().list().ok()).unwrap_or_default();
    let described = entries.into_iter().map(|entry| {
        let image = entry.snapshot.map(|found| familiar(&found.manifest.image.reference));
        (entry.name, image.unwrap_or_default())
    });
    described.collect()
}

/// Returns the references of the stored images, in their short form.
pub(super) fn images() -> Vec<String> {
    let records = home().and_then(|home| home.images().records().ok()).unwrap_or_default();
    records.into_iter().map(|record| familiar(&record.reference)).collect()
}

/// Returns the IDs of a sandbox's jobs, described by their commands.
pub(super) fn jobs(sandbox: &str) -> Candidates {
    let find = || -> Option<Jobs> {
        let name: SandboxName = sandbox.parse().ok()?;
        Jobs::of(&home()?.sandboxes().find(&name).ok()?).ok()
    };
    let jobs = find().map(|jobs| jobs.jobs).unwrap_or_default();
    let command = |argv: &[msb_wire::text::Text]| {
        argv.iter().map(msb_wire::text::Text::to_lossy).collect::<Vec<_>>().join(" ")
    };
    jobs.into_iter().map(|job| (job.id, command(&job.command))).collect()
}

/// Returns a reference as people type it: `alpine` for `docker.io/library/alpine:latest`.
fn familiar(reference: &str) -> String {
    let parsed: Result<Reference, _> = reference.parse();
    parsed.map_or_else(|_| reference.to_owned(), |reference| reference.familiar().to_string())
}
