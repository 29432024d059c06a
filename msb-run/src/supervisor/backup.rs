//! Keeping the blocks of the upper disk that the guest overwrites ([`msb_wire::backup`]): a backup
//! job of QEMU with `sync=none` copies each cluster to a file before the first write to it.
//!
//! The file is sparse. A cluster that was a hole becomes allocated in it without data, which
//! SEEK_DATA reports as a hole, so exactly the data of the old clusters is found again. Commands
//! block, so a thread makes them.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::Context;
use libmsb::cli::error::{self, message};
use libmsb::state::write::NewFile;
use msb_wire::backup::BackupEvent;
use serde_json::json;

use super::background_task::BackgroundTask;
use super::pause::failure_kind;
use super::relay::{ClientId, ClientStream};
use crate::boot_state::QmpMonitor;

/// Name of the job in QEMU.
const JOB: &str = "backup";
/// Name of the file's node in QEMU.
const NODE: &str = "kept";
/// Number of the set of descriptors in QEMU that has the file.
const FD_SET: u32 = 1;

/// The monitor, and the result of a command.
type CommandResult = (QmpMonitor, anyhow::Result<()>);

/// The backup of a sandbox, and its client.
#[derive(Debug, Default)]
pub(crate) struct BackupControl {
    /// The thread that uses the monitor.
    task: Option<BackgroundTask<CommandResult>>,
    state: BackupState,
}

/// The progress of a backup.
#[derive(Debug, Default)]
enum BackupState {
    #[default]
    None,
    /// The job is being started.
    Starting { requester: ClientStream, file: NewFile, is_abandoned: bool },
    /// The job runs for this client.
    Running { client: ClientId, file: NewFile },
    /// The job is being ended.
    Ending { requester: Option<ClientStream>, _file: NewFile },
}

/// The result of a command.
#[derive(Debug)]
pub(crate) struct BackupStep {
    /// The monitor, if it is usable.
    pub(crate) monitor: Option<QmpMonitor>,
    /// The client that is answered.
    pub(crate) answer: Option<(ClientStream, BackupEvent)>,
    /// The job that was started has no client any more.
    pub(crate) is_orphaned: bool,
}

impl BackupControl {
    /// Returns the descriptor that is ready when a command is done.
    pub(crate) fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        self.task.as_ref().map(AsFd::as_fd)
    }

    /// Returns whether blocks are kept, or a command about it runs.
    pub(crate) fn is_active(&self) -> bool {
        !matches!(self.state, BackupState::None)
    }

    /// Starts the job for a disk, by its number. `file` has the size of the disk.
    pub(crate) fn start(
        &mut self,
        requester: ClientStream,
        file: NewFile,
        disk: usize,
        mut monitor: QmpMonitor,
    ) -> anyhow::Result<()> {
        let kept = file.file.try_clone().context("cannot use a file")?;
        self.task = Some(BackgroundTask::spawn("backup", move || {
            let result = start_job(&mut monitor, &kept, disk);
            Ok((monitor, result))
        })?);
        self.state = BackupState::Starting { requester, file, is_abandoned: false };
        Ok(())
    }

    /// Takes the file of a running backup, whose job is to be ended.
    pub(crate) fn take_running(&mut self) -> Option<NewFile> {
        match std::mem::take(&mut self.state) {
            BackupState::Running { file, .. } => Some(file),
            other => {
                self.state = other;
                None
            }
        }
    }

    /// Ends the job.
    pub(crate) fn end(
        &mut self,
        requester: Option<ClientStream>,
        file: NewFile,
        mut monitor: QmpMonitor,
    ) -> anyhow::Result<()> {
        self.task = Some(BackgroundTask::spawn("backup", move || {
            let result = end_job(&mut monitor);
            Ok((monitor, result))
        })?);
        self.state = BackupState::Ending { requester, _file: file };
        Ok(())
    }

    /// Returns whether a client that has disconnected leaves a running job, which is to be ended. A
    /// job that is being started is ended afterwards.
    pub(crate) fn is_left_by(&mut self, gone: ClientId) -> bool {
        match &mut self.state {
            BackupState::Running { client, .. } => *client == gone,
            BackupState::Starting { requester: (client, _), is_abandoned, .. } => {
                *is_abandoned |= *client == gone;
                false
            }
            _ => false,
        }
    }

    /// Handles the end of a command.
    pub(crate) fn command_done(&mut self) -> Option<BackupStep> {
        let (monitor, result) = match self.task.take()?.finish() {
            Ok((monitor, result)) => (Some(monitor), result),
            Err(error) => (None, Err(error)),
        };
        let mut is_orphaned = false;
        let answer = match (std::mem::take(&mut self.state), result) {
            (BackupState::Starting { requester, file, is_abandoned }, Ok(())) => {
                let started = BackupEvent::Started { file: file.temporary_name() };
                self.state = BackupState::Running { client: requester.0, file };
                is_orphaned = is_abandoned;
                Some((requester, started))
            }
            (BackupState::Starting { requester, .. }, Err(error)) => {
                Some((requester, failed(&error)))
            }
            (BackupState::Ending { requester, .. }, result) => {
                let event = result.map_or_else(|error| failed(&error), |()| BackupEvent::Ended);
                requester.map(|requester| (requester, event))
            }
            (other, _) => {
                self.state = other;
                None
            }
        };
        Some(BackupStep { monitor, answer, is_orphaned })
    }
}

fn start_job(monitor: &mut QmpMonitor, file: &File, disk: usize) -> anyhow::Result<()> {
    monitor.add_fd(FD_SET, file.as_fd())?;
    let started = add_node(monitor).and_then(|()| {
        let job = json!({
            "job-id": JOB,
            "device": format!("disk{disk}"),
            "target": NODE,
            "sync": "none",
            "on-target-error": "report",
        });
        monitor.execute("blockdev-backup", job).map(drop)
    });
    if started.is_err() {
        remove_node(monitor);
    }
    started
}

fn add_node(monitor: &mut QmpMonitor) -> anyhow::Result<()> {
    let filename = format!("/dev/fdset/{FD_SET}");
    let node = json!({
        "driver": "raw",
        "node-name": NODE,
        "file": { "driver": "file", "filename": filename, "locking": "off" },
    });
    monitor.execute("blockdev-add", node).map(drop)
}

/// Ends the job: a backup with `sync=none` ends when it is cancelled, after writes in progress.
fn end_job(monitor: &mut QmpMonitor) -> anyhow::Result<()> {
    let ended = monitor
        .execute("block-job-cancel", json!({ "device": JOB }))
        .context("overwritten blocks could not be kept")
        .and_then(|_| monitor.wait_for_jobs());
    remove_node(monitor);
    ended
}

/// Closes the file. A failure only matters to the next backup, which fails by itself.
fn remove_node(monitor: &mut QmpMonitor) {
    let _ = monitor.execute("blockdev-del", json!({ "node-name": NODE }));
    let _ = monitor.execute("remove-fd", json!({ "fdset-id": FD_SET }));
}

/// Returns the answer to a request that failed.
pub(crate) fn failed(error: &anyhow::Error) -> BackupEvent {
    BackupEvent::Failed {
        kind: failure_kind(error),
        message: message(error),
        hint: error::hint(error).map(str::to_owned),
    }
}
