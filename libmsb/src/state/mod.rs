//! The state directory: paths, owners of files, versions.
//!
//! The directory is the interface between the tools, specified in man page msb-state(5). Every name
//! is defined in [`layout`]. Every file is replaced, never changed in place ([`write`]). A sandbox
//! is live while its lock is held ([`lock`]). Readers create nothing.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::cli::args::SandboxName;
use crate::cli::error::{Failure, message, set_hint_finder};

/// Aliases: commands that run an image.
pub mod aliases;
/// The user's configuration.
pub mod config;
/// Settings of a guest.
pub mod guest;
/// JSON documents of images.
pub mod image_json;
/// Names of images as typed.
pub mod image_name;
/// References, manifests and disks of images.
pub mod images;
/// Jobs: commands that run, or ran, without a client.
pub mod jobs;
/// Names of all files and directories.
pub mod layout;
/// Locks.
pub mod lock;
/// Mounts of a sandbox.
pub mod mounts;
/// Ownership checks of directories.
pub mod owner;
/// Sandboxes on disk: create, find, list, remove.
pub mod sandboxes;
/// Manifests of snapshots.
pub mod snapshot_manifest;
/// Snapshots on disk: create, find, list, remove.
pub mod snapshots;
/// Specifications of sandboxes.
pub mod spec;
/// Status of sandboxes.
pub mod status;
/// Named volumes on disk: create, find, list, remove.
pub mod volumes;
/// Atomic replacement of files.
pub mod write;

/// Hint for a state directory that cannot be used.
const CHOOSE_ANOTHER: &str = "choose another state directory: export MSB_HOME=DIR";

/// Returns a hint for an error of the file system in the state directory.
fn find_hint(error: &anyhow::Error) -> Option<String> {
    let of_errno = |errno: &Errno| io::Error::from(*errno).kind();
    let kind = error.chain().find_map(|cause| {
        let kind = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        kind.or_else(|| cause.downcast_ref().map(of_errno))
    })?;
    let home = Home::located().ok()?;
    let root = home.root.display().to_string();
    if !message(error).contains(&root) {
        return None;
    }
    match kind {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            Some(format!("make '{root}' writable, or {CHOOSE_ANOTHER}"))
        }
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Some(format!(
            "free space in '{root}', for example with 'msb image prune', or {CHOOSE_ANOTHER}"
        )),
        ErrorKind::NotADirectory => Some(CHOOSE_ANOTHER.to_owned()),
        _ => None,
    }
}

/// The state directory of a user.
#[derive(Clone, Debug)]
pub struct Home {
    root: PathBuf,
    runtime: PathBuf,
}

impl Home {
    /// Returns the state directory: `$MSB_HOME`, else `~/.msb`. Sockets are in
    /// `$XDG_RUNTIME_DIR/msb` if `MSB_HOME` is not set, else in `run` below the state directory. A
    /// directory of another user, or one that others can write to, is refused; such an
    /// `XDG_RUNTIME_DIR` is ignored. Creates nothing.
    pub fn from_env() -> anyhow::Result<Home> {
        let home = Home::located()?;
        if home.root.metadata().is_ok_and(|file| !file.is_dir()) {
            let message =
                format!("the state directory '{}' is not a directory", home.root.display());
            return Err(Failure::failed(message).hint(CHOOSE_ANOTHER).into());
        }
        Ok(home)
    }

    /// [`Home::from_env`] for a program that examines the path: it may be no directory.
    pub fn located() -> anyhow::Result<Home> {
        set_hint_finder(find_hint);
        let variable = |name: &str| {
            std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
        };
        if let Some(root) = variable("MSB_HOME") {
            let root = std::path::absolute(&root)?;
            return Home { runtime: root.join(layout::RUN), root }.checked();
        }
        let Some(user) = variable("HOME") else {
            return Err(Failure::usage("neither MSB_HOME nor HOME is set")
                .hint("set MSB_HOME to a directory for images and sandboxes")
                .into());
        };
        let root = std::path::absolute(user.join(layout::HOME))?;
        let runtime = match variable("XDG_RUNTIME_DIR") {
            Some(directory) if directory.is_absolute() && owner::is_own_dir(&directory) => {
                directory.join(layout::RUNTIME)
            }
            _ => root.join(layout::RUN),
        };
        Home { root, runtime }.checked()
    }

    /// Checks that no other user could have put files into the directory.
    fn checked(self) -> anyhow::Result<Home> {
        owner::check_dir(&self.root)?;
        owner::check_dir(&self.runtime)?;
        Ok(self)
    }

    /// Returns a state directory at a path, with its sockets inside.
    pub fn at(root: &Path) -> Home {
        Home { root: root.to_owned(), runtime: root.join(layout::RUN) }
    }

    /// Returns the path of the state directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the directory of all sandboxes' sockets.
    pub fn runtime(&self) -> &Path {
        &self.runtime
    }

    /// Returns the path of the configuration file.
    pub fn config(&self) -> PathBuf {
        self.root.join(layout::CONFIG)
    }

    /// Returns the image store.
    pub fn images(&self) -> images::Store {
        images::Store::at(self.root.join(layout::IMAGES))
    }

    /// Returns the directory of sandboxes.
    pub fn sandboxes(&self) -> sandboxes::Sandboxes {
        sandboxes::Sandboxes::at(
            self.root.join(layout::SANDBOXES),
            self.events(),
            self.runtime.clone(),
        )
    }

    /// Returns the directory of named volumes.
    pub fn volumes(&self) -> volumes::Volumes {
        volumes::Volumes::at(self.root.join(layout::VOLUMES))
    }

    /// Returns the directory of snapshots.
    pub fn snapshots(&self) -> snapshots::Snapshots {
        snapshots::Snapshots::at(self.root.join(layout::SNAPSHOTS))
    }

    /// Returns the directory of aliases.
    pub fn aliases(&self) -> aliases::Aliases {
        aliases::Aliases::at(self.root.join(layout::ALIASES))
    }

    /// Returns the path of the event log.
    pub fn events(&self) -> PathBuf {
        self.root.join(layout::EVENTS)
    }

    /// Returns the directory of initial RAM disks, which are created once for each kernel and
    /// agent.
    pub fn boot_dir(&self) -> PathBuf {
        self.root.join(layout::BOOT)
    }

    /// Returns the runtime directory of a sandbox, with its sockets. A reboot may delete it.
    pub fn runtime_dir(&self, name: &SandboxName) -> PathBuf {
        self.runtime.join(name.as_str())
    }

    /// Returns the path of a sandbox's socket.
    pub fn agent_socket(&self, name: &SandboxName) -> PathBuf {
        self.runtime_dir(name).join(layout::AGENT_SOCKET)
    }

    /// Returns the path of a sandbox's sample file.
    pub fn samples(&self, name: &SandboxName) -> PathBuf {
        self.runtime_dir(name).join(layout::SAMPLES)
    }

    /// Creates the state directory and its version file, or checks that an existing one can be
    /// used.
    pub fn prepare(&self) -> anyhow::Result<()> {
        if self.check_version()? {
            return Ok(());
        }
        write::create_dir(&self.root)?;
        // Another process may have created it meanwhile.
        owner::check_dir(&self.root)?;
        let version = self.root.join(layout::VERSION);
        write::replace(&version, format!("{}\n", layout::VERSION_NUMBER).as_bytes())
    }

    /// Checks that this program supports the layout's version; `false` if the directory does not
    /// exist. Creates nothing.
    pub fn check_version(&self) -> anyhow::Result<bool> {
        let version = self.root.join(layout::VERSION);
        match std::fs::read_to_string(&version) {
            Ok(text) if text.trim() == layout::VERSION_NUMBER => Ok(true),
            Ok(text) => Err(Failure::failed(format!(
                "'{}' has version '{}', but this program supports version {}",
                version.display(),
                crate::cli::escape::escape(text.trim()),
                layout::VERSION_NUMBER
            ))
            .hint("use the release of msb that wrote it, or another MSB_HOME")
            .into()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => {
                Err(anyhow::Error::new(error)
                    .context(format!("cannot read '{}'", version.display())))
            }
        }
    }
}
