//! The memory of a running sandbox, saved by its supervisor; see [`msb_wire::memory`].

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use libmsb::cli::error::{Code, ErrorKind, Failure};
use libmsb::cli::escape::escape;
use libmsb::digest::Digest;
use libmsb::state::sandboxes::Sandbox;
use libmsb::state::snapshot_manifest::LABEL_MEMORY;
use libmsb::state::snapshots::Snapshot;
use libmsb::state::{Home, layout};
use msb_wire::client::{ClientCall, Incoming};
use msb_wire::memory::SaveEvent;
use msb_wire::sandbox::{PauseFailure, Request};

use super::disk_copy::copy_disk;
use crate::boot_state::BootState;
use crate::verbs::{answer, connect, refusal};

/// A sandbox whose guest stands while its memory is in a file. The end of the connection lets it go
/// on.
pub(super) struct SavedMemory {
    _call: ClientCall,
    path: PathBuf,
}

impl SavedMemory {
    /// Saves the memory of a running sandbox.
    pub(super) fn save(home: &Home, sandbox: &Sandbox) -> anyhow::Result<SavedMemory> {
        let mut call = connect(home, &sandbox.name)?.open(&Request::SaveMemory)?;
        loop {
            let Some(incoming) = call.reader.receive()? else {
                bail!("the sandbox ended before its memory was saved");
            };
            let Incoming::Event { message, last: true } = incoming else { continue };
            let SaveEvent::Saved { file } = parse(sandbox, &message)? else {
                bail!("the supervisor did not save the memory");
            };
            ensure!(
                file.starts_with(layout::NEW_PREFIX) && !file.contains('/'),
                "unexpected file name from the supervisor"
            );
            return Ok(SavedMemory { _call: call, path: sandbox.path(&file) });
        }
    }

    /// Puts the file at a path.
    pub(super) fn link(&self, to: &Path) -> anyhow::Result<()> {
        link_or_copy(&self.path, to)
    }

    /// Lets the guest go on. Fails if it has gone on before.
    pub(super) fn end(self, home: &Home, sandbox: &Sandbox) -> anyhow::Result<()> {
        let message = answer(connect(home, &sandbox.name)?, &Request::EndSave)?;
        match parse(sandbox, &message)? {
            SaveEvent::Ended => Ok(()),
            _ => bail!("the supervisor did not continue the guest"),
        }
    }
}

/// Puts a file that never changes at another path: by a hard link, or by a copy on another file
/// system.
pub(crate) fn link_or_copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    if std::fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    let cannot = || format!("cannot copy the memory to '{}'", to.display());
    let source = std::fs::File::open(from).with_context(cannot)?;
    let file = libmsb::state::write::create_file(to).with_context(cannot)?;
    copy_disk(&source, &file).with_context(cannot)
}

/// Opens the memory of a snapshot that has one, and compares it with the manifest.
pub(crate) fn open_memory(snapshot: &Snapshot) -> anyhow::Result<Option<BootState>> {
    let Some(path) = snapshot.memory() else {
        return Ok(None);
    };
    let damaged = || {
        let message = format!("the memory of the snapshot '{}' is damaged", escape(&snapshot.name));
        Failure::failed(message).code(Code::SnapshotIntegrity)
    };
    let Some(state) = BootState::open_saved(&path).with_context(damaged)? else {
        let message = format!("the memory of the snapshot '{}' is missing", escape(&snapshot.name));
        return Err(Failure::failed(message)
            .code(Code::SnapshotIntegrity)
            .hint("use its disk alone: --cold; or import it again with --trust-memory")
            .into());
    };
    let stated = snapshot.manifest.labels.get(LABEL_MEMORY).map(String::as_str);
    let is_stated = stated == Some(state.digest()?.to_string().as_str());
    if !is_stated {
        return Err(anyhow::anyhow!("its header does not match the manifest").context(damaged()));
    }
    Ok(Some(state))
}

/// Reads all of a snapshot's memory, and compares it with its checksums.
pub(crate) fn verify_memory(snapshot: &Snapshot, state: &BootState) -> anyhow::Result<()> {
    state.verify().with_context(|| {
        let message = format!("the memory of the snapshot '{}' is damaged", escape(&snapshot.name));
        Failure::failed(message).code(Code::SnapshotIntegrity).hint("use its disk alone: --cold")
    })
}

/// Returns the digest of a memory that was put at a path, for the manifest, and flushes it.
pub(super) fn seal(path: &Path) -> anyhow::Result<Digest> {
    let state = BootState::open_saved(path)?.context("the memory is missing")?;
    state.file.sync_all().context("cannot flush the copy of the memory")?;
    state.digest()
}

/// Parses an answer. Returns a failure as an error.
fn parse(sandbox: &Sandbox, message: &[u8]) -> anyhow::Result<SaveEvent> {
    match serde_json::from_slice(message) {
        Ok(SaveEvent::Failed { kind, message, hint }) => {
            let (kind, code) = match kind {
                PauseFailure::WrongState => (ErrorKind::WrongState, Code::WrongState),
                PauseFailure::UnsupportedOperation => {
                    (ErrorKind::Failed, Code::UnsupportedOperation)
                }
                PauseFailure::Other => (ErrorKind::Failed, Code::Failed),
            };
            let failure = Failure::new(kind, escape(&message).into_owned()).code(code);
            Err(match hint {
                Some(hint) => failure.hint(escape(&hint).into_owned()),
                None => failure,
            }
            .into())
        }
        Ok(event) => Ok(event),
        Err(_) => Err(refusal(&sandbox.name, message).into()),
    }
}
