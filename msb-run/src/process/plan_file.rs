//! The unnamed file that passes a plan to a child process.

use std::fs::File;
use std::io::Write;

use anyhow::Context;
use rustix::fs::{MemfdFlags, memfd_create};
use serde::Serialize;

/// Writes a plan to an unnamed file that the child process inherits.
pub(crate) fn plan_file<P: Serialize>(plan: &P) -> anyhow::Result<File> {
    let descriptor =
        memfd_create("msb-plan", MemfdFlags::CLOEXEC).context("cannot create the plan's file")?;
    let mut file = File::from(descriptor);
    file.write_all(&serde_json::to_vec(plan)?).context("cannot write the plan")?;
    Ok(file)
}
