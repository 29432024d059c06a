//! The disk of a sandbox that a snapshot is taken of.

use std::fs::File;

use anyhow::Context;
use libmsb::cli::error::Failure;
use libmsb::state::guest::RootDisk;
use libmsb::state::layout;
use libmsb::state::sandboxes::Sandbox;
use libmsb::state::spec::Spec;

/// Opens the disk of a sandbox for a copy.
pub(super) fn open_disk(sandbox: &Sandbox, spec: &Spec) -> anyhow::Result<File> {
    check_root(sandbox, spec)?;
    if !spec.guest.changes.is_empty() && !sandbox.status()?.changed {
        let message = format!("the files of the sandbox '{}' are not changed yet", sandbox.name);
        return Err(Failure::wrong_state(message)
            .hint(format!("start it once: msb start {}", sandbox.name))
            .into());
    }
    let path = sandbox.path(layout::UPPER);
    File::open(&path).with_context(|| format!("cannot open the disk '{}'", path.display()))
}

/// Refuses a sandbox whose root is not an image below a managed disk.
fn check_root(sandbox: &Sandbox, spec: &Spec) -> Result<(), Failure> {
    let why = match (spec.upper(), spec.ephemeral) {
        (Some(RootDisk::Managed), false) => return Ok(()),
        (Some(RootDisk::Managed), true) => "it is removed when it stops",
        (Some(RootDisk::Tmpfs { .. }), _) => "its root is in memory",
        (Some(RootDisk::Disk { .. }), _) => "its root is on a disk of the user",
        (None, _) => "its root is not an image",
    };
    let message = format!("cannot take a snapshot of the sandbox '{}': {why}", sandbox.name);
    Err(Failure::usage(message))
}
