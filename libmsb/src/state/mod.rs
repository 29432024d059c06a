//! The state directory: what is where, who writes which file, and the rule of versions.
//!
//! The directory is the interface between the tools; its contract is man page msb-state(5). Every name is spelled in
//! [`layout`]. Every file is replaced, never changed in place ([`write`]). A sandbox lives as long as its lock is held
//! ([`lock`]). Readers create nothing.

use std::path::{Path, PathBuf};

use crate::cli::args::SandboxName;
use crate::cli::error::Failure;

/// What a guest is made of and may do.
pub mod guest;
/// References, manifests and disks of images.
pub mod images;
/// Commands that run, or ran, without a client.
pub mod jobs;
/// The name of every file and folder.
pub mod layout;
/// Locks: who is alive, who may write.
pub mod lock;
/// What a sandbox mounts.
pub mod mounts;
/// Whose a directory is.
pub mod owner;
/// Sandboxes on disk: create, find, list, remove.
pub mod sandboxes;
/// What a sandbox should be.
pub mod spec;
/// What a sandbox is.
pub mod status;
/// Named volumes on disk: create, find, list, remove.
pub mod volumes;
/// Files that are there whole or not at all.
pub mod write;

/// The state directory of a user.
#[derive(Clone, Debug)]
pub struct Home {
    root: PathBuf,
    runtime: PathBuf,
}

impl Home {
    /// `$MSB_HOME`, else `~/.msb`; sockets in `$XDG_RUNTIME_DIR/msb` when `MSB_HOME` is not set, else in `run` below the
    /// state directory. A directory of another user, or one that others can write to, is refused; as `XDG_RUNTIME_DIR` it
    /// counts as not set. Creates nothing.
    pub fn from_env() -> anyhow::Result<Home> {
        let variable = |name: &str| {
            std::env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        if let Some(root) = variable("MSB_HOME") {
            let root = std::path::absolute(&root)?;
            return Home {
                runtime: root.join(layout::RUN),
                root,
            }
            .checked();
        }
        let Some(user) = variable("HOME") else {
            return Err(Failure::usage("neither MSB_HOME nor HOME is set")
                .hint("set MSB_HOME to the folder that shall hold images and sandboxes")
                .into());
        };
        let root = std::path::absolute(user.join(layout::HOME))?;
        let runtime = match variable("XDG_RUNTIME_DIR") {
            Some(folder) if folder.is_absolute() && owner::is_own_dir(&folder) => {
                folder.join(layout::RUNTIME)
            }
            _ => root.join(layout::RUN),
        };
        Home { root, runtime }.checked()
    }

    /// Itself, unless it could hold what others have put there.
    fn checked(self) -> anyhow::Result<Home> {
        owner::check_dir(&self.root)?;
        owner::check_dir(&self.runtime)?;
        Ok(self)
    }

    /// A state directory at a chosen place, its sockets inside.
    pub fn at(root: &Path) -> Home {
        Home {
            root: root.to_owned(),
            runtime: root.join(layout::RUN),
        }
    }

    /// The state directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of all sandboxes' sockets.
    pub fn runtime(&self) -> &Path {
        &self.runtime
    }

    /// What users set.
    pub fn config(&self) -> PathBuf {
        self.root.join(layout::CONFIG)
    }

    /// The store of images.
    pub fn images(&self) -> images::Store {
        images::Store::at(self.root.join(layout::IMAGES))
    }

    /// The folder of sandboxes.
    pub fn sandboxes(&self) -> sandboxes::Sandboxes {
        sandboxes::Sandboxes::at(
            self.root.join(layout::SANDBOXES),
            self.events(),
            self.runtime.clone(),
        )
    }

    /// The folder of named volumes.
    pub fn volumes(&self) -> volumes::Volumes {
        volumes::Volumes::at(self.root.join(layout::VOLUMES))
    }

    /// The file that says what happened to sandboxes.
    pub fn events(&self) -> PathBuf {
        self.root.join(layout::EVENTS)
    }

    /// The folder of initial RAM disks, which are made once for each kernel and agent.
    pub fn boot_dir(&self) -> PathBuf {
        self.root.join(layout::BOOT)
    }

    /// The folder of a sandbox's sockets: what a reboot may lose.
    pub fn runtime_dir(&self, name: &SandboxName) -> PathBuf {
        self.runtime.join(name.as_str())
    }

    /// The socket through which a sandbox is reached.
    pub fn agent_socket(&self, name: &SandboxName) -> PathBuf {
        self.runtime_dir(name).join(layout::AGENT_SOCKET)
    }

    /// The file that says what a sandbox costs.
    pub fn samples(&self, name: &SandboxName) -> PathBuf {
        self.runtime_dir(name).join(layout::SAMPLES)
    }

    /// Makes the state directory and its version file, or checks that an existing one can be used.
    pub fn prepare(&self) -> anyhow::Result<()> {
        if self.check_version()? {
            return Ok(());
        }
        write::create_dir(&self.root)?;
        // Somebody else may have been faster.
        owner::check_dir(&self.root)?;
        let version = self.root.join(layout::VERSION);
        write::replace(&version, format!("{}\n", layout::VERSION_NUMBER).as_bytes())
    }

    /// Checks that the state directory is one that this program knows; `false` when it is not there yet. Creates nothing.
    pub fn check_version(&self) -> anyhow::Result<bool> {
        let version = self.root.join(layout::VERSION);
        match std::fs::read_to_string(&version) {
            Ok(text) if text.trim() == layout::VERSION_NUMBER => Ok(true),
            Ok(text) => Err(Failure::failed(format!(
                "'{}' says version '{}', and this program knows version {}",
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
