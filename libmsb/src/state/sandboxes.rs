//! Sandboxes on disk: create, find, list, remove.
//!
//! A sandbox's directory is created under a `.new-` name with its lock held, and appears by a
//! rename that replaces nothing. It is removed by a rename to a `.gone-` name, and deleted after
//! that. So a name exists completely or not at all. A killed program leaves a directory whose lock
//! is free, which [`Sandboxes::sweep`] deletes.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use msb_wire::client::ClientConnection;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::lock::{self, Lock};
use super::spec::{SPEC_BYTES_MAX, Spec};
use super::status::{Reason, STATUS_BYTES_MAX, State, Status};
use super::{layout, write};
use crate::cli::args::SandboxName;
use crate::cli::error::{Code, Failure};
use crate::events::{Event, EventKind};

/// Number of sandboxes for which another thread is worth its start. Reading one takes about 30
/// microseconds.
const SANDBOXES_PER_THREAD: usize = 64;

/// Timeout of waiting until a held lock is released, or turns out to be that of a live sandbox.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause between two checks of such a lock.
const SETTLE_PAUSE: Duration = Duration::from_millis(5);

/// The directory of sandboxes.
#[derive(Clone, Debug)]
pub struct Sandboxes {
    root: PathBuf,
    events: PathBuf,
    runtime: PathBuf,
}

/// The directory of one sandbox, which may have been removed.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// Name of the sandbox.
    pub name: SandboxName,
    /// Path of its directory.
    pub dir: PathBuf,
    /// Path of the event log.
    events: PathBuf,
    /// Runtime directory, with its sockets.
    runtime: PathBuf,
}

/// An entry of a list of sandboxes.
#[derive(Debug)]
pub struct SandboxEntry {
    /// Name of its directory.
    pub name: String,
    /// Its snapshot, or the error of reading it.
    pub seen: anyhow::Result<SandboxSnapshot>,
}

/// Specification, status and state of a sandbox at one moment.
#[derive(Clone, Debug)]
pub struct SandboxSnapshot {
    /// Specification.
    pub spec: Spec,
    /// Status that the supervisor wrote last.
    pub status: Status,
    /// State, with the lock taken into account.
    pub state: State,
}

impl Sandboxes {
    /// Returns the sandboxes below a directory, with the event log and the runtime directory.
    /// Creates nothing.
    pub fn at(root: PathBuf, events: PathBuf, runtime: PathBuf) -> Sandboxes {
        Sandboxes { root, events, runtime }
    }

    /// Returns the sandbox of a name, which may be missing.
    pub fn named(&self, name: &SandboxName) -> Sandbox {
        Sandbox {
            name: name.clone(),
            dir: self.root.join(name.as_str()),
            events: self.events.clone(),
            runtime: self.runtime.join(name.as_str()),
        }
    }

    /// Returns the sandbox of a name, which must exist.
    pub fn find(&self, name: &SandboxName) -> anyhow::Result<Sandbox> {
        let sandbox = self.named(name);
        if sandbox.dir.is_dir() {
            return Ok(sandbox);
        }
        Err(no_such_sandbox(name).into())
    }

    /// Creates a sandbox, and returns it with its lock held. `fill` creates further files in the
    /// directory before the sandbox appears.
    pub fn create(
        &self,
        name: &SandboxName,
        spec: &Spec,
        fill: impl FnOnce(&Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<(Sandbox, Lock)> {
        write::create_dir(&self.root)?;
        self.sweep();
        self.sweep_ephemeral(name);
        let sandbox = self.named(name);
        let (new, lock) = NewDirectory::create(&self.root)?;
        write::replace_json(&new.path.join(layout::SPEC), spec)?;
        write::replace_json(&new.path.join(layout::STATUS), &Status::new(State::Created))?;
        fill(&new.path)?;
        new.publish(&sandbox)?;
        sandbox.record(&Event {
            image: Some(spec.root.name().into_owned()),
            ..Event::now(EventKind::Created, name.as_str())
        });
        Ok((sandbox, lock))
    }

    /// Returns all sandboxes, sorted by name. An unreadable one has an entry with the error.
    /// Ephemeral sandboxes without a supervisor are not listed: only their files are left.
    pub fn list(&self) -> anyhow::Result<Vec<SandboxEntry>> {
        let mut names = self.directory_names()?;
        names.retain(|name| !name.starts_with('.'));
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let part = names.len().div_ceil(threads).max(SANDBOXES_PER_THREAD);
        let mut entries: Vec<SandboxEntry> = std::thread::scope(|scope| {
            let read = |names: &[String]| -> Vec<SandboxEntry> {
                names.iter().filter_map(|name| self.entry(name)).collect()
            };
            let (first, others) = names.split_at(part.min(names.len()));
            let others: Vec<_> =
                others.chunks(part).map(|names| scope.spawn(move || read(names))).collect();
            let mut entries = read(first);
            for thread in others {
                match thread.join() {
                    Ok(more) => entries.extend(more),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            entries
        });
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// Returns the entry of a directory; `None` if it is not listed.
    fn entry(&self, name: &str) -> Option<SandboxEntry> {
        let seen = match name.parse::<SandboxName>() {
            Ok(valid) => self.named(&valid).snapshot(),
            Err(error) => Err(error.into()),
        };
        match seen {
            Ok(seen) if seen.spec.ephemeral && !seen.state.is_active() => None,
            Err(_) if !self.root.join(name).exists() => None,
            seen => Some(SandboxEntry { name: name.to_owned(), seen }),
        }
    }

    /// Deletes what killed programs have left: directories that were being created or removed, and
    /// ephemeral sandboxes. A directory whose lock is held is in use. Errors are ignored.
    pub fn sweep(&self) {
        for name in self.directory_names().unwrap_or_default() {
            let path = self.root.join(&name);
            let left_over =
                name.starts_with(layout::NEW_PREFIX) || name.starts_with(layout::GONE_PREFIX);
            if left_over || (SandboxName::is_generated(&name) && is_dead_ephemeral(&path)) {
                let _ = sweep_directory(&self.root, &path);
            }
        }
    }

    /// Deletes what a killed supervisor has left of an ephemeral sandbox with a chosen name. Errors
    /// are ignored.
    pub fn sweep_ephemeral(&self, name: &SandboxName) {
        let path = self.root.join(name);
        if is_dead_ephemeral(&path) {
            let _ = sweep_directory(&self.root, &path);
        }
    }

    fn directory_names(&self) -> anyhow::Result<Vec<String>> {
        directory_names(&self.root)
    }
}

impl Sandbox {
    /// Returns the path of a file in the sandbox's directory; names are in [`layout`].
    pub fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    /// Reads the specification.
    pub fn spec(&self) -> anyhow::Result<Spec> {
        let path = self.path(layout::SPEC);
        write::read_json(&path, SPEC_BYTES_MAX)?
            .with_context(|| format!("'{}' is missing", path.display()))
    }

    /// Reads the status that the supervisor wrote last.
    pub fn status(&self) -> anyhow::Result<Status> {
        let path = self.path(layout::STATUS);
        write::read_json(&path, STATUS_BYTES_MAX)?
            .with_context(|| format!("'{}' is missing", path.display()))
    }

    /// Replaces the status. The caller must hold the lock.
    pub fn set_status(&self, status: &Status) -> anyhow::Result<()> {
        write::replace_json(&self.path(layout::STATUS), status)
    }

    /// Returns whether the sandbox's lock is held.
    pub fn is_alive(&self) -> anyhow::Result<bool> {
        lock::is_held(&self.path(layout::LOCK))
    }

    /// Reads specification, status and state.
    pub fn snapshot(&self) -> anyhow::Result<SandboxSnapshot> {
        self.or_not_found(self.read_snapshot())
    }

    fn read_snapshot(&self) -> anyhow::Result<SandboxSnapshot> {
        let spec = self.spec()?;
        let mut status = self.status()?;
        // Only an active status can be outdated, and then the lock decides. An ephemeral sandbox is
        // live from its creation on, before its status is active. The lock is released last: the
        // status that is read while it is free is the final one.
        if status.state.is_active() || spec.ephemeral {
            let alive = self.is_alive()?;
            if !alive {
                status = self.status()?;
            }
            let state = status.state.seen(alive);
            return Ok(SandboxSnapshot { spec, status, state });
        }
        Ok(SandboxSnapshot { spec, state: status.state, status })
    }

    /// Takes the lock, if the sandbox is not live.
    pub fn lock(&self) -> anyhow::Result<Lock> {
        self.try_lock()?.with_context(|| {
            Failure::wrong_state(format!("the sandbox '{}' is running", self.name))
                .code(Code::SandboxStillRunning)
                .hint(format!("stop it first: msb stop {}", self.name))
        })
    }

    /// Takes the lock; `None` if the sandbox is live.
    pub fn try_lock(&self) -> anyhow::Result<Option<Lock>> {
        let deadline = Instant::now() + SETTLE_TIMEOUT;
        loop {
            if !self.dir.is_dir() {
                return Err(no_such_sandbox(&self.name).into());
            }
            let lock = self.or_not_found(Lock::try_exclusive(&self.path(layout::LOCK)))?;
            if lock.is_some() {
                self.record_crash();
                self.remove_unfinished();
                return Ok(lock);
            }
            // A program that creates or removes the sandbox holds the lock, too, and briefly so
            // does a supervisor that starts; and the status may be that of a killed supervisor.
            let is_live = self.status().is_ok_and(|status| status.state.is_active())
                && ClientConnection::is_served(&self.runtime.join(layout::AGENT_SOCKET));
            if is_live || deadline <= Instant::now() {
                return Ok(None);
            }
            std::thread::sleep(SETTLE_PAUSE);
        }
    }

    /// Removes disks and memory that killed programs have left unfinished. Only the holder of the
    /// lock writes them.
    fn remove_unfinished(&self) {
        let prefixes =
            [layout::UPPER, layout::MEMORY].map(|name| format!("{}{name}-", layout::NEW_PREFIX));
        for entry in std::fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if prefixes.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
                // If it fails, the next holder tries again.
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    /// Replaces an error by "not found" if the sandbox was removed meanwhile.
    fn or_not_found<T>(&self, result: anyhow::Result<T>) -> anyhow::Result<T> {
        result.map_err(
            |error| {
                if self.dir.is_dir() { error } else { no_such_sandbox(&self.name).into() }
            },
        )
    }

    /// Writes the end of a sandbox whose supervisor was killed and could not do so. Called by the
    /// next holder of the lock.
    fn record_crash(&self) {
        let Ok(status) = self.status() else { return };
        if status.state == status.state.seen(false) {
            return;
        }
        let reason = Some(Reason::SupervisorGone);
        let ended =
            Status { state: State::Crashed, since: jiff::Timestamp::now(), reason, ..status };
        // If it cannot be written, the free lock still shows it.
        if self.set_status(&ended).is_ok() {
            self.record(&Event { reason, ..Event::now(EventKind::Crashed, self.name.as_str()) });
        }
    }

    /// Appends an event of the sandbox to the event log.
    pub fn record(&self, event: &Event) {
        event.record(&self.events);
    }

    /// Changes the specification, for the next start. `change` gets the current one.
    pub fn modify(
        &self,
        change: impl FnOnce(&mut Spec) -> anyhow::Result<()>,
    ) -> anyhow::Result<Spec> {
        let lock = self.or_not_found(Lock::exclusive(&self.path(layout::SPEC_LOCK)))?;
        let mut spec = self.or_not_found(self.spec())?;
        let before = spec.clone();
        change(&mut spec)?;
        if spec != before {
            self.or_not_found(write::replace_json(&self.path(layout::SPEC), &spec))?;
            self.record(&Event::now(EventKind::Modified, self.name.as_str()));
        }
        drop(lock);
        Ok(spec)
    }

    /// Removes the sandbox. The caller must hold the lock. The name is free at once.
    pub fn remove_locked(&self) -> anyhow::Result<()> {
        let root = self.dir.parent().unwrap_or(Path::new("."));
        let gone =
            root.join(format!("{}{}-{}", layout::GONE_PREFIX, self.name, write::random_hex()?));
        std::fs::rename(&self.dir, &gone)
            .with_context(|| format!("cannot remove the sandbox '{}'", self.name))?;
        write::sync_dir(root)?;
        self.record(&Event::now(EventKind::Removed, self.name.as_str()));
        delete_directory(&gone)
    }
}

/// Returns the names in a directory, which may be missing.
pub(super) fn directory_names(root: &Path) -> anyhow::Result<Vec<String>> {
    let entries = match std::fs::read_dir(root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot list '{}'", root.display()));
        }
    };
    let names: std::io::Result<Vec<_>> = entries
        .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .collect();
    names.with_context(|| format!("cannot list '{}'", root.display()))
}

fn no_such_sandbox(name: &SandboxName) -> Failure {
    Failure::not_found(format!("there is no sandbox '{name}'"))
        .code(Code::SandboxNotFound)
        .hint("`msb ls` lists them")
}

fn is_dead_ephemeral(path: &Path) -> bool {
    let spec = write::read_json::<Spec>(&path.join(layout::SPEC), SPEC_BYTES_MAX);
    let ephemeral = matches!(spec, Ok(Some(spec)) if spec.ephemeral);
    ephemeral && matches!(lock::is_held(&path.join(layout::LOCK)), Ok(false))
}

/// Deletes a left-over directory, unless its lock is held.
pub(super) fn sweep_directory(root: &Path, path: &Path) -> anyhow::Result<()> {
    let Some(lock) = Lock::try_exclusive(&path.join(layout::LOCK))? else {
        return Ok(());
    };
    let gone = root.join(format!("{}{}", layout::GONE_PREFIX, write::random_hex()?));
    std::fs::rename(path, &gone)?;
    delete_directory(&gone)?;
    drop(lock);
    Ok(())
}

/// Limit of attempts at an operation that another program may undo meanwhile.
const ATTEMPTS: u32 = 10;

/// Deletes a directory, which other programs may be deleting too: files vanish, and a sweep may
/// create a lock file in it.
pub(super) fn delete_directory(path: &Path) -> anyhow::Result<()> {
    let mut result = Ok(());
    for _ in 0..ATTEMPTS {
        result = match delete_lock_last(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            result => result,
        };
        if result.is_ok() {
            break;
        }
    }
    result.with_context(|| format!("cannot delete '{}'", path.display()))
}

/// Deletes a directory and its lock file after all other files. A sweep recognizes what is left
/// after a kill: a directory with a lock file, or an empty one.
fn delete_lock_last(path: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_name() == layout::LOCK {
            continue;
        }
        let removed = if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())
        } else {
            std::fs::remove_file(entry.path())
        };
        match removed {
            // Another program deletes the directory, too.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            removed => removed?,
        }
    }
    std::fs::remove_dir_all(path)
}

/// A directory that is not valid yet. It is deleted unless it is published.
pub(super) struct NewDirectory {
    /// Temporary path.
    pub(super) path: PathBuf,
    published: bool,
}

impl NewDirectory {
    /// Creates the directory and takes its lock. Between the two steps a sweep may delete it as a
    /// left-over; then another one is created.
    pub(super) fn create(root: &Path) -> anyhow::Result<(NewDirectory, Lock)> {
        let mut attempts = 0;
        loop {
            let path = root.join(format!("{}{}", layout::NEW_PREFIX, write::random_hex()?));
            write::create_dir(&path)?;
            attempts += 1;
            let directory = NewDirectory { path, published: false };
            match Lock::try_exclusive(&directory.path.join(layout::LOCK)) {
                Ok(Some(lock)) => return Ok((directory, lock)),
                Err(error) if attempts >= ATTEMPTS => return Err(error),
                _ => {}
            }
        }
    }

    /// Keeps the directory, which has been published under its final name.
    pub(super) fn keep(mut self) {
        self.published = true;
    }

    fn publish(mut self, sandbox: &Sandbox) -> anyhow::Result<()> {
        write::sync_dir(&self.path)?;
        match renameat_with(CWD, &self.path, CWD, &sandbox.dir, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                return Err(Failure::wrong_state(format!(
                    "there is a sandbox '{}' already",
                    sandbox.name
                ))
                .code(Code::SandboxAlreadyExists)
                .hint(format!("choose another name, or remove it: msb rm {}", sandbox.name))
                .into());
            }
            Err(error) => {
                let error = std::io::Error::from(error);
                return Err(error)
                    .with_context(|| format!("cannot create the sandbox '{}'", sandbox.name));
            }
        }
        self.published = true;
        write::sync_dir(sandbox.dir.parent().unwrap_or(Path::new(".")))
    }
}

impl Drop for NewDirectory {
    fn drop(&mut self) {
        if !self.published {
            // If it fails, the next sweep deletes the directory.
            let _ = delete_lock_last(&self.path);
        }
    }
}
