//! Changes to a guest's files before any program of the image runs.
//!
//! They take as long as there are files to copy, so a thread makes them, as a client of the
//! sandbox's own socket: the relay serves a connection from the supervisor's own process before the
//! guest is open to others. Files are read on the host and written in the guest, and never become
//! another file of the host.

use std::path::PathBuf;

use anyhow::Context;
use libmsb::cli::error::{Failure, clean, warn};
use libmsb::state::guest::GuestChange;
use msb_wire::client::ClientConnection;
use msb_wire::file::Direction;
use msb_wire::file::record::Severity;
use msb_wire::text::Text;

use super::background_task::BackgroundTask;
use crate::copy::{self, PutOptions};

/// Program name of the thread in its hello to the relay.
const PROGRAM: &str = concat!("msb-supervisor ", env!("CARGO_PKG_VERSION"));

/// Starts the changes through the sandbox's `socket`.
pub(crate) fn start(
    socket: PathBuf,
    changes: Vec<GuestChange>,
) -> anyhow::Result<BackgroundTask<()>> {
    BackgroundTask::spawn("changes", move || {
        changes.iter().try_for_each(|change| apply(&socket, change))
    })
}

fn apply(socket: &std::path::Path, change: &GuestChange) -> anyhow::Result<()> {
    let guest = || Ok(ClientConnection::connect(socket, PROGRAM)?);
    match change {
        GuestChange::Script { name, body } => copy::put_script(guest()?, name, body.as_bytes())
            .with_context(|| format!("cannot write the script '{name}'")),
        GuestChange::Copy { from, to, mode, exclusive } => {
            copy_in(&guest, (from, to), PutOptions { mode: *mode, exclusive: *exclusive })
                .with_context(|| {
                    let (from, to) = (from.to_lossy(), to.to_lossy());
                    format!("cannot copy '{from}' to '{to}' in the guest")
                })
        }
        GuestChange::Write { path, body, mode, exclusive } => {
            make_parent(&guest, path)?;
            let options = PutOptions { mode: *mode, exclusive: *exclusive };
            copy::put_file(guest()?, path, &body.0, options)
                .with_context(|| format!("cannot write '{}' in the guest", path.to_lossy()))
        }
        GuestChange::Append { path, body } => copy::append(guest()?, path, &body.0)
            .with_context(|| format!("cannot append to '{}' in the guest", path.to_lossy())),
        GuestChange::Link { path, target, exclusive } => {
            make_parent(&guest, path)?;
            if !exclusive {
                change_path(&guest, Direction::Remove, path, None)?;
            }
            let options = PutOptions { mode: None, exclusive: *exclusive };
            copy::put_link(guest()?, path, target.as_bytes(), options)
                .with_context(|| format!("cannot create the link '{}'", path.to_lossy()))
        }
        GuestChange::MakeDirectory { path, mode } => {
            change_path(&guest, Direction::MakeDirectory, path, *mode)
        }
        GuestChange::Remove { path } => change_path(&guest, Direction::Remove, path, None),
    }
}

/// Changes the path without data.
fn change_path(
    guest: &dyn Fn() -> anyhow::Result<ClientConnection>,
    direction: Direction,
    path: &Text,
    mode: Option<u32>,
) -> anyhow::Result<()> {
    copy::make_or_remove(guest()?, direction, path.clone(), mode)
}

/// Creates the directory that holds the path.
fn make_parent(
    guest: &dyn Fn() -> anyhow::Result<ClientConnection>,
    path: &Text,
) -> anyhow::Result<()> {
    let path = path.as_bytes();
    let end = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
    if path[..end].iter().all(|byte| *byte == b'/') {
        return Ok(());
    }
    change_path(guest, Direction::MakeDirectory, &Text(path[..end].to_vec()), None)
}

/// Copies a source to the path; a path that ends in a slash is the directory that receives the
/// source under its own name.
fn copy_in(
    guest: &dyn Fn() -> anyhow::Result<ClientConnection>,
    (from, to): (&Text, &Text),
    options: PutOptions,
) -> anyhow::Result<()> {
    let below = to.as_bytes().ends_with(b"/");
    make_parent(guest, to)?;
    let mut problem = None;
    let complete = copy::put_tree(
        from.as_os_str().as_ref(),
        guest()?,
        (to.clone(), below),
        options,
        &mut |severity, text| match severity {
            Severity::Error => {
                problem.get_or_insert_with(|| text.to_owned());
            }
            Severity::Skipped => warn(&format!("skipped: {}", clean(text))),
        },
    )?;
    if complete {
        return Ok(());
    }
    let problem = problem.unwrap_or_else(|| "not everything was copied".to_owned());
    Err(Failure::failed(clean(&problem).into_owned()).into())
}
