//! Keeping overwritten blocks of the upper disk while a client copies it.

use anyhow::Context;
use libmsb::cli::error::{Code, Failure};
use libmsb::machine::{DiskDevice, DiskImageFormat, SERIAL_UPPER};
use libmsb::state::layout;
use libmsb::state::write::NewFile;

use super::SandboxSupervisor;
use crate::supervisor::backup::failed;
use crate::supervisor::relay::{ClientId, ClientStream};
use crate::supervisor::setup::vm_spec;

impl SandboxSupervisor {
    /// Keeps overwritten blocks for a client.
    pub(super) fn start_backup(&mut self, requester: ClientStream) -> anyhow::Result<()> {
        // As for a pause.
        if self.lifecycle.is_running() && self.start.ready_fd().is_some() {
            self.vm_prepared()?;
        }
        if let Err(error) = self.try_start_backup(requester) {
            self.clients.answer(requester, &failed(&error));
        }
        Ok(())
    }

    fn try_start_backup(&mut self, requester: ClientStream) -> anyhow::Result<()> {
        let name = &self.setup.sandbox.name;
        if !self.setup.engine.starts_from_memory() {
            let engine = self.setup.engine.name();
            let message = format!("the engine '{engine}' cannot keep overwritten blocks");
            return Err(Failure::failed(message).code(Code::UnsupportedOperation).into());
        }
        if !self.lifecycle.is_running() || self.lifecycle.is_pausing() {
            let message = format!("the sandbox '{name}' is not running");
            return Err(Failure::wrong_state(message).into());
        }
        if self.backup.is_active() || self.save.is_active() {
            let message = format!("the disk of the sandbox '{name}' is being copied already");
            return Err(Failure::wrong_state(message).hint("try again later").into());
        }
        let disks = vm_spec(&self.setup).disks;
        let is_upper =
            |disk: &DiskDevice| disk.serial == SERIAL_UPPER && disk.format == DiskImageFormat::Raw;
        let disk = disks.iter().position(is_upper).context("the sandbox has no upper disk")?;
        let upper = self.setup.upper.as_ref().context("the sandbox has no upper disk")?;
        let file = NewFile::create(&self.setup.sandbox.path(layout::UPPER))?;
        file.file.set_len(upper.metadata()?.len()).context("cannot create a file")?;
        let monitor = self.vm.monitor.take().context("the monitor of the VM does not answer")?;
        self.backup.start(requester, file, disk, monitor)
    }

    /// Ends the backup, for a client or because its client has gone.
    pub(super) fn end_backup(&mut self, requester: Option<ClientStream>) -> anyhow::Result<()> {
        let ended = match self.backup.take_running() {
            Some(file) => match self.vm.monitor.take() {
                Some(monitor) => self.backup.end(requester, file, monitor),
                None => Err(anyhow::anyhow!("the monitor of the VM does not answer")),
            },
            None => Err(Failure::wrong_state("the disk is not being copied").into()),
        };
        if let (Err(error), Some(requester)) = (ended, requester) {
            self.clients.answer(requester, &failed(&error));
        }
        Ok(())
    }

    /// Ends the backup of a client that has disconnected.
    pub(super) fn abandon_backup(&mut self, client: ClientId) -> anyhow::Result<()> {
        if self.backup.is_left_by(client) { self.end_backup(None) } else { Ok(()) }
    }

    /// Handles the end of a command about the backup.
    pub(super) fn backup_command_done(&mut self) -> anyhow::Result<()> {
        let Some(step) = self.backup.command_done() else {
            return Ok(());
        };
        self.vm.monitor = step.monitor;
        if let Some((requester, event)) = step.answer {
            self.clients.answer(requester, &event);
        }
        if step.is_orphaned { self.end_backup(None) } else { Ok(()) }
    }
}
