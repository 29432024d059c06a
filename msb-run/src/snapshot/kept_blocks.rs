//! Keeping the blocks that a running guest overwrites during a copy of its disk; see
//! [`msb_wire::backup`].

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, bail, ensure};
use libmsb::cli::error::{Code, ErrorKind, Failure};
use libmsb::cli::escape::escape;
use libmsb::state::sandboxes::Sandbox;
use libmsb::state::{Home, layout};
use msb_wire::backup::BackupEvent;
use msb_wire::client::{ClientCall, Incoming};
use msb_wire::sandbox::{PauseFailure, Request};

use crate::verbs::{answer, connect, refusal};

/// The blocks of a disk that were overwritten since the start. The end of the connection ends it.
pub(super) struct KeptBlocks {
    _call: ClientCall,
    file: File,
}

impl KeptBlocks {
    /// Keeps the blocks that are overwritten from now on.
    pub(super) fn start(home: &Home, sandbox: &Sandbox) -> anyhow::Result<KeptBlocks> {
        let mut call = connect(home, &sandbox.name)?.open(&Request::StartBackup)?;
        loop {
            let Some(incoming) = call.reader.receive()? else {
                bail!("the sandbox ended before its disk could be copied");
            };
            let Incoming::Event { message, last: true } = incoming else { continue };
            let BackupEvent::Started { file } = parse(sandbox, &message)? else {
                bail!("the supervisor did not start to keep blocks");
            };
            ensure!(
                file.starts_with(layout::NEW_PREFIX) && !file.contains('/'),
                "unexpected file name from the supervisor"
            );
            let path = sandbox.path(&file);
            let opened = File::options().read(true).custom_flags(libc::O_NOFOLLOW).open(&path);
            let file = opened.with_context(|| format!("cannot open '{}'", path.display()))?;
            return Ok(KeptBlocks { _call: call, file });
        }
    }

    /// Keeps no further blocks. Returns the file: its data is that of the overwritten blocks.
    pub(super) fn end(self, home: &Home, sandbox: &Sandbox) -> anyhow::Result<File> {
        let message = answer(connect(home, &sandbox.name)?, &Request::EndBackup)?;
        match parse(sandbox, &message)? {
            BackupEvent::Ended => Ok(self.file),
            _ => bail!("the supervisor did not stop to keep blocks"),
        }
    }
}

/// Parses an answer. Returns a failure as an error.
fn parse(sandbox: &Sandbox, message: &[u8]) -> anyhow::Result<BackupEvent> {
    match serde_json::from_slice(message) {
        Ok(BackupEvent::Failed { kind, message, hint }) => {
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
