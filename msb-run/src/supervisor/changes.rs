//! The changes of a guest's files before anything of the image runs.
//!
//! They take as long as there are files to copy, so a thread makes them, as a client over the sandbox's own socket: the
//! relay serves a connection of this very process before the guest is open to others. What is copied is read here and
//! written in the guest; it never becomes another file of the host.

use std::path::PathBuf;

use anyhow::Context;
use libmsb::cli::error::{Failure, clean, print_warning};
use libmsb::state::guest::Change;
use msb_wire::client::Connection;
use msb_wire::file::Direction;
use msb_wire::file::record::Severity;
use msb_wire::text::Text;

use super::TOOL;
use super::task::Task;
use crate::copy;

/// What the thread calls itself to the relay.
const PROGRAM: &str = concat!("msb-supervisor ", env!("CARGO_PKG_VERSION"));

/// Begins with the changes. `socket` is the sandbox's.
pub(crate) fn begin(socket: PathBuf, changes: Vec<Change>) -> anyhow::Result<Task<()>> {
    Task::begin("changes", move || {
        changes.iter().try_for_each(|change| make(&socket, change))
    })
}

fn make(socket: &std::path::Path, change: &Change) -> anyhow::Result<()> {
    let guest = || Ok(Connection::connect(socket, PROGRAM)?);
    match change {
        Change::Script { name, body } => copy::put_script(guest()?, name, body.as_bytes())
            .with_context(|| format!("cannot write the script '{name}'")),
        Change::Copy { from, to } => copy_in(&guest, from, to).with_context(|| {
            let (from, to) = (from.to_lossy(), to.to_lossy());
            format!("cannot copy '{from}' to '{to}' in the guest")
        }),
        Change::MakeFolder { path } => copy::change(guest()?, Direction::MakeFolder, path.clone()),
        Change::Remove { path } => copy::change(guest()?, Direction::Remove, path.clone()),
    }
}

/// The source becomes what the path says; below it, under its own name, when the path ends in a slash.
fn copy_in(
    guest: &dyn Fn() -> anyhow::Result<Connection>,
    from: &Text,
    to: &Text,
) -> anyhow::Result<()> {
    let path = to.as_bytes();
    let below = path.ends_with(b"/");
    let end = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
    let parent = if below { path } else { &path[..end] };
    if parent.iter().any(|byte| *byte != b'/') {
        copy::change(guest()?, Direction::MakeFolder, Text(parent.to_vec()))?;
    }
    let mut problem = None;
    let complete = copy::put(
        from.as_os_str().as_ref(),
        guest()?,
        to.clone(),
        below,
        &mut |severity, text| match severity {
            Severity::Error => {
                problem.get_or_insert_with(|| text.to_owned());
            }
            Severity::Skipped => print_warning(TOOL, &format!("left out: {}", clean(text))),
        },
    )?;
    if complete {
        return Ok(());
    }
    let problem = problem.unwrap_or_else(|| "not everything was copied".to_owned());
    Err(Failure::failed(clean(&problem).into_owned()).into())
}
