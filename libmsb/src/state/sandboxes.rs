//! Sandboxes on disk: create, find, list, remove.
//!
//! A sandbox's folder is made under a `.new-` name with its lock held, and appears by a rename that replaces nothing.
//! It goes by a rename to a `.gone-` name, and is deleted after that. So a name is there whole or not at all; and what
//! a kill leaves is a folder whose lock is free, which [`Sandboxes::sweep`] deletes.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use msb_wire::client::Connection;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::lock::{self, Lock};
use super::spec::{SPEC_BYTES_MAX, Spec};
use super::status::{Reason, STATUS_BYTES_MAX, State, Status};
use super::{layout, write};
use crate::cli::args::SandboxName;
use crate::cli::error::{Code, Failure};
use crate::events::{Event, What};

/// Sandboxes that one thread looks at before another one is worth its start. Looking at one takes about 30 microseconds.
const LOOKS_OF_A_THREAD: usize = 64;

/// Time for a lock that is held to become free, or to be seen to be that of one who lives.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause between two looks at such a lock.
const SETTLE_PAUSE: Duration = Duration::from_millis(5);

/// The folder of sandboxes.
#[derive(Clone, Debug)]
pub struct Sandboxes {
    root: PathBuf,
    events: PathBuf,
    runtime: PathBuf,
}

/// The folder of one sandbox, which may be gone by now.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// Its name.
    pub name: SandboxName,
    /// Its folder.
    pub dir: PathBuf,
    /// Where it is written down what happens to it.
    events: PathBuf,
    /// The folder of its sockets.
    runtime: PathBuf,
}

/// One sandbox as a list shows it.
#[derive(Debug)]
pub struct Entry {
    /// The name of its folder.
    pub name: String,
    /// What it should be and what it is; or why that cannot be said.
    pub seen: anyhow::Result<Seen>,
}

/// What can be said of a sandbox at one moment.
#[derive(Clone, Debug)]
pub struct Seen {
    /// What it should be.
    pub spec: Spec,
    /// What its supervisor last wrote.
    pub status: Status,
    /// What it is, its lock considered.
    pub state: State,
}

impl Sandboxes {
    /// The sandboxes below a folder, the file of what happens to them, and the folder of their sockets. Creates nothing.
    pub fn at(root: PathBuf, events: PathBuf, runtime: PathBuf) -> Sandboxes {
        Sandboxes {
            root,
            events,
            runtime,
        }
    }

    /// The sandbox of a name, whether it is there or not.
    pub fn named(&self, name: &SandboxName) -> Sandbox {
        Sandbox {
            name: name.clone(),
            dir: self.root.join(name.as_str()),
            events: self.events.clone(),
            runtime: self.runtime.join(name.as_str()),
        }
    }

    /// The sandbox of a name, which must be there.
    pub fn find(&self, name: &SandboxName) -> anyhow::Result<Sandbox> {
        let sandbox = self.named(name);
        if sandbox.dir.is_dir() {
            return Ok(sandbox);
        }
        Err(no_such_sandbox(name).into())
    }

    /// Makes a sandbox, and gives it with its lock held. `fill` puts further files into the folder before the sandbox
    /// appears.
    pub fn create(
        &self,
        name: &SandboxName,
        spec: &Spec,
        fill: impl FnOnce(&Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<(Sandbox, Lock)> {
        write::create_dir(&self.root)?;
        self.sweep();
        let sandbox = self.named(name);
        let (new, lock) = NewFolder::create(&self.root)?;
        write::replace_json(&new.path.join(layout::SPEC), spec)?;
        write::replace_json(&new.path.join(layout::STATUS), &Status::new(State::Created))?;
        fill(&new.path)?;
        new.publish(&sandbox)?;
        sandbox.record(&Event {
            image: Some(spec.root.name().into_owned()),
            ..Event::now(What::Created, name.as_str())
        });
        Ok((sandbox, lock))
    }

    /// Every sandbox, sorted by name. One that cannot be read is an entry that says so. Sandboxes that were to go
    /// with their command, and whose supervisor is gone, are not listed: there is nothing left of them but files.
    pub fn list(&self) -> anyhow::Result<Vec<Entry>> {
        let mut names = self.folder_names()?;
        names.retain(|name| !name.starts_with('.'));
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let part = names.len().div_ceil(threads).max(LOOKS_OF_A_THREAD);
        let mut entries: Vec<Entry> = std::thread::scope(|scope| {
            let look = |names: &[String]| -> Vec<Entry> {
                names.iter().filter_map(|name| self.entry(name)).collect()
            };
            let (first, others) = names.split_at(part.min(names.len()));
            let others: Vec<_> = others
                .chunks(part)
                .map(|names| scope.spawn(move || look(names)))
                .collect();
            let mut entries = look(first);
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

    /// A folder as a list shows it; `None` when there is nothing to show.
    fn entry(&self, name: &str) -> Option<Entry> {
        let seen = match name.parse::<SandboxName>() {
            Ok(valid) => self.named(&valid).look(),
            Err(error) => Err(error.into()),
        };
        match seen {
            Ok(seen) if seen.spec.ephemeral && !seen.state.is_active() => None,
            Err(_) if !self.root.join(name).exists() => None,
            seen => Some(Entry {
                name: name.to_owned(),
                seen,
            }),
        }
    }

    /// Deletes what killed programs have left: folders that were being made or removed, and sandboxes that were to go
    /// with their command. A folder whose lock is held is in use. Failures leave things as they are.
    pub fn sweep(&self) {
        for name in self.folder_names().unwrap_or_default() {
            let path = self.root.join(&name);
            let left_over =
                name.starts_with(layout::NEW_PREFIX) || name.starts_with(layout::GONE_PREFIX);
            if left_over || (SandboxName::is_generated(&name) && is_dead_ephemeral(&path)) {
                let _ = sweep_folder(&self.root, &path);
            }
        }
    }

    fn folder_names(&self) -> anyhow::Result<Vec<String>> {
        folder_names(&self.root)
    }
}

impl Sandbox {
    /// Path of a file in the sandbox's folder; names are in [`layout`].
    pub fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    /// What the sandbox should be.
    pub fn spec(&self) -> anyhow::Result<Spec> {
        let path = self.path(layout::SPEC);
        write::read_json(&path, SPEC_BYTES_MAX)?
            .with_context(|| format!("'{}' is missing", path.display()))
    }

    /// What its supervisor last wrote.
    pub fn status(&self) -> anyhow::Result<Status> {
        let path = self.path(layout::STATUS);
        write::read_json(&path, STATUS_BYTES_MAX)?
            .with_context(|| format!("'{}' is missing", path.display()))
    }

    /// Replaces the status. For the holder of the lock.
    pub fn set_status(&self, status: &Status) -> anyhow::Result<()> {
        write::replace_json(&self.path(layout::STATUS), status)
    }

    /// Whether the sandbox's lock is held.
    pub fn is_alive(&self) -> anyhow::Result<bool> {
        lock::is_held(&self.path(layout::LOCK))
    }

    /// What can be said of the sandbox now.
    pub fn look(&self) -> anyhow::Result<Seen> {
        self.or_gone(self.look_now())
    }

    fn look_now(&self) -> anyhow::Result<Seen> {
        let spec = self.spec()?;
        let mut status = self.status()?;
        // Only one that says it lives may be wrong, and then the lock knows; and one that goes with its command lives from its
        // making on, before it says so. The lock is the last thing to go: the status that is read when it is free is the
        // final one.
        if status.state.is_active() || spec.ephemeral {
            let alive = self.is_alive()?;
            if !alive {
                status = self.status()?;
            }
            let state = status.state.seen(alive);
            return Ok(Seen {
                spec,
                status,
                state,
            });
        }
        Ok(Seen {
            spec,
            state: status.state,
            status,
        })
    }

    /// Takes the lock, if nobody lives in the sandbox.
    pub fn lock(&self) -> anyhow::Result<Lock> {
        self.try_lock()?.with_context(|| {
            Failure::wrong_state(format!("the sandbox '{}' is running", self.name))
                .code(Code::SandboxStillRunning)
                .hint(format!("stop it first: msb stop {}", self.name))
        })
    }

    /// Takes the lock; `None` when somebody lives in the sandbox.
    pub fn try_lock(&self) -> anyhow::Result<Option<Lock>> {
        let deadline = Instant::now() + SETTLE_TIMEOUT;
        loop {
            if !self.dir.is_dir() {
                return Err(no_such_sandbox(&self.name).into());
            }
            let lock = self.or_gone(Lock::try_exclusive(&self.path(layout::LOCK)))?;
            if lock.is_some() {
                self.write_down_the_end();
                return Ok(lock);
            }
            // One who makes the sandbox or removes it holds the lock, too, and for a moment one who is about to live; and the
            // status may be that of one who was killed.
            let lives = self.status().is_ok_and(|status| status.state.is_active())
                && Connection::is_served(&self.runtime.join(layout::AGENT_SOCKET));
            if lives || deadline <= Instant::now() {
                return Ok(None);
            }
            std::thread::sleep(SETTLE_PAUSE);
        }
    }

    /// What fails since the sandbox has gone in the meantime fails for that.
    fn or_gone<T>(&self, result: anyhow::Result<T>) -> anyhow::Result<T> {
        result.map_err(|error| {
            if self.dir.is_dir() {
                error
            } else {
                no_such_sandbox(&self.name).into()
            }
        })
    }

    /// A supervisor that was killed could not say that its sandbox had ended: the next holder of the lock does.
    fn write_down_the_end(&self) {
        let Ok(status) = self.status() else { return };
        if status.state == status.state.seen(false) {
            return;
        }
        let reason = Some(Reason::SupervisorGone);
        let ended = Status {
            state: State::Crashed,
            since: jiff::Timestamp::now(),
            reason,
            ..status
        };
        // Where it cannot be written, the lock still says it.
        if self.set_status(&ended).is_ok() {
            self.record(&Event {
                reason,
                ..Event::now(What::Crashed, self.name.as_str())
            });
        }
    }

    /// Writes down what happened to the sandbox.
    pub fn record(&self, event: &Event) {
        event.record(&self.events);
    }

    /// Changes what the sandbox should be, for its next start. `change` gets what is there now.
    pub fn modify(
        &self,
        change: impl FnOnce(&mut Spec) -> anyhow::Result<()>,
    ) -> anyhow::Result<Spec> {
        let lock = self.or_gone(Lock::exclusive(&self.path(layout::SPEC_LOCK)))?;
        let mut spec = self.or_gone(self.spec())?;
        let before = spec.clone();
        change(&mut spec)?;
        if spec != before {
            self.or_gone(write::replace_json(&self.path(layout::SPEC), &spec))?;
            self.record(&Event::now(What::Modified, self.name.as_str()));
        }
        drop(lock);
        Ok(spec)
    }

    /// Removes the sandbox. For the holder of the lock; the name is free at once.
    pub fn remove_held(&self) -> anyhow::Result<()> {
        let root = self.dir.parent().unwrap_or(Path::new("."));
        let gone = root.join(format!(
            "{}{}-{}",
            layout::GONE_PREFIX,
            self.name,
            write::random_hex()?
        ));
        std::fs::rename(&self.dir, &gone)
            .with_context(|| format!("cannot remove the sandbox '{}'", self.name))?;
        write::sync_dir(root)?;
        self.record(&Event::now(What::Removed, self.name.as_str()));
        delete_folder(&gone)
    }
}

/// The names in a folder, which need not be there.
pub(super) fn folder_names(root: &Path) -> anyhow::Result<Vec<String>> {
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

/// Deletes a left-over folder, unless its lock is held.
pub(super) fn sweep_folder(root: &Path, path: &Path) -> anyhow::Result<()> {
    let Some(lock) = Lock::try_exclusive(&path.join(layout::LOCK))? else {
        return Ok(());
    };
    let gone = root.join(format!("{}{}", layout::GONE_PREFIX, write::random_hex()?));
    std::fs::rename(path, &gone)?;
    delete_folder(&gone)?;
    drop(lock);
    Ok(())
}

/// How often something is tried that another program may undo in between.
const ATTEMPTS: u32 = 10;

/// Deletes a folder, which others may be deleting too: files vanish, and a sweep may put a lock file into it.
pub(super) fn delete_folder(path: &Path) -> anyhow::Result<()> {
    let mut result = Ok(());
    for _ in 0..ATTEMPTS {
        result = match std::fs::remove_dir_all(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            result => result,
        };
        if result.is_ok() {
            break;
        }
    }
    result.with_context(|| format!("cannot delete '{}'", path.display()))
}

/// A folder that does not count yet. It is deleted unless it is published.
pub(super) struct NewFolder {
    /// Where it is for now.
    pub(super) path: PathBuf,
    published: bool,
}

impl NewFolder {
    /// Makes the folder and takes its lock. Between the two it looks like a left-over: a sweep may take it away, and
    /// then another one is made.
    pub(super) fn create(root: &Path) -> anyhow::Result<(NewFolder, Lock)> {
        let mut attempts = 0;
        loop {
            let path = root.join(format!("{}{}", layout::NEW_PREFIX, write::random_hex()?));
            write::create_dir(&path)?;
            attempts += 1;
            let folder = NewFolder {
                path,
                published: false,
            };
            match Lock::try_exclusive(&folder.path.join(layout::LOCK)) {
                Ok(Some(lock)) => return Ok((folder, lock)),
                Err(error) if attempts >= ATTEMPTS => return Err(error),
                _ => {}
            }
        }
    }

    /// It counts now, under another name.
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
                .hint(format!(
                    "choose another name, or remove it: msb rm {}",
                    sandbox.name
                ))
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

impl Drop for NewFolder {
    fn drop(&mut self) {
        if !self.published {
            // A failure leaves an inert folder for the next sweep.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}
