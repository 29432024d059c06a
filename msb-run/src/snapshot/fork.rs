//! Copies of a sandbox: its specification and its disk under other names.

use std::fs::File;
use std::path::Path;

use anyhow::Context;
use libmsb::cli::args::SandboxName;
use libmsb::state::lock::Lock;
use libmsb::state::sandboxes::Sandbox;
use libmsb::state::spec::Spec;
use libmsb::state::status::{State, Status};
use libmsb::state::{Home, layout, write};

use super::disk_copy::copy_disk;
use super::saved_memory::link_or_copy;
use super::still_disk::{StillDisk, copy_still, copy_with_memory};
use crate::spec_builder;

/// Copies a sandbox once for each name. All copies are of one moment. If one cannot be
/// created, none is left.
pub(crate) fn fork(home: &Home, sandbox: &Sandbox, names: &[SandboxName]) -> anyhow::Result<()> {
    let disk = temporary_file(home)?;
    let StillDisk { spec, lock } = copy_still(home, sandbox, &disk)?;
    create_copies(home, sandbox, &spec, names, |_, file, _| copy_disk(&disk, file))?;
    drop(lock);
    Ok(())
}

/// Copies a running sandbox once for each name, with its memory. All copies are of one moment.
pub(crate) fn fork_with_memory(
    home: &Home,
    sandbox: &Sandbox,
    names: &[SandboxName],
) -> anyhow::Result<()> {
    let spec = sandbox.spec()?;
    create_copies(home, sandbox, &spec, names, |first, file, memory| match first {
        None => copy_with_memory(home, sandbox, file, memory).map(drop),
        Some(first) => {
            copy_disk(&File::open(first.path(layout::UPPER))?, file)?;
            link_or_copy(&first.path(layout::MEMORY), memory)
        }
    })
}

/// Creates copies. `fill` is given the first copy, once it exists, and writes the disk and, at its
/// path, the memory.
fn create_copies(
    home: &Home,
    sandbox: &Sandbox,
    spec: &Spec,
    names: &[SandboxName],
    fill: impl Fn(Option<&Sandbox>, &File, &Path) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let is_changed = sandbox.status()?.changed;
    let mut created: Vec<(Sandbox, Lock)> = Vec::new();
    for name in names {
        let first = created.first().map(|(first, _)| first);
        let copy = child_spec(spec, name).and_then(|copy| {
            home.sandboxes().create(name, &copy, |directory| {
                let file = write::create_file(&directory.join(layout::UPPER))?;
                fill(first, &file, &directory.join(layout::MEMORY))?;
                // The disk has the changes of the guest's files.
                let status = Status { changed: is_changed, ..Status::new(State::Created) };
                write::replace_json(&directory.join(layout::STATUS), &status)
            })
        });
        match copy {
            Ok(copy) => created.push(copy),
            Err(error) => {
                for (copy, lock) in created {
                    copy.remove_locked()?;
                    drop(lock);
                }
                return Err(error).with_context(|| format!("cannot create the copy '{name}'"));
            }
        }
    }
    Ok(())
}

/// Creates a file without a name in the directory of sandboxes.
fn temporary_file(home: &Home) -> anyhow::Result<File> {
    let root = home.root().join(layout::SANDBOXES);
    let path = root.join(format!("{}{}", layout::NEW_PREFIX, write::random_hex()?));
    let file = write::create_file(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// Returns the specification of a copy: with a name, a machine ID and a time of its own.
fn child_spec(spec: &Spec, name: &SandboxName) -> anyhow::Result<Spec> {
    let own_name: SandboxName = spec.name.parse()?;
    let is_default = spec.hostname == spec_builder::hostname(None, &own_name)?;
    let hostname = if is_default { None } else { Some(spec.hostname.clone()) };
    let mut child = spec.clone();
    child.name = name.to_string();
    child.hostname = spec_builder::hostname(hostname, name)?;
    child.created_at = jiff::Timestamp::now();
    child.machine_id = Some(write::random_machine_id()?);
    Ok(child)
}
