//! What a sandbox is to be.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use super::error::Error;
use super::sandbox::Sandbox;
use crate::cli::args::SandboxName;
use crate::cli::error::Code;
use crate::state::Home;

/// When an image comes from its registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pull {
    /// Each time.
    Always,
    /// When it is not there.
    IfMissing,
    /// Never: an image that is not there is an error.
    Never,
}

/// Puts a sandbox together. What was given is checked when it is created, before anything is touched.
#[derive(Clone, Debug)]
pub struct SandboxBuilder {
    name: String,
    image: Option<String>,
    cpus: Option<u8>,
    memory_mib: Option<u32>,
    options: Vec<OsString>,
    command: Vec<OsString>,
    detached: bool,
    home: Option<Home>,
}

impl SandboxBuilder {
    pub(super) fn new(name: impl Into<String>) -> SandboxBuilder {
        SandboxBuilder {
            name: name.into(),
            image: None,
            cpus: None,
            memory_mib: None,
            options: Vec::new(),
            command: Vec::new(),
            detached: false,
            home: None,
        }
    }

    fn option(mut self, name: &str, value: impl Into<OsString>) -> Self {
        let mut option = OsString::from(format!("--{name}="));
        option.push(value.into());
        self.options.push(option);
        self
    }

    /// The image; or, by a path that begins with `/`, `./` or `../`, a folder or disk image of the host as the whole root
    /// (man page msb-run(1)). There is no sandbox without.
    #[must_use]
    pub fn image(mut self, reference: impl Into<String>) -> Self {
        self.image = Some(reference.into());
        self
    }

    /// When the image comes from its registry; if it is missing, when nothing is said.
    #[must_use]
    pub fn pull(self, when: Pull) -> Self {
        let word = match when {
            Pull::Always => "always",
            Pull::IfMissing => "if-missing",
            Pull::Never => "never",
        };
        self.option("pull", word)
    }

    /// Virtual processors; 1 when nothing is said, and never 0.
    #[must_use]
    pub fn cpus(mut self, cpus: u8) -> Self {
        self.cpus = Some(cpus);
        self
    }

    /// Memory in MiB; 512 when nothing is said, and never 0.
    #[must_use]
    pub fn memory_mib(mut self, mib: u32) -> Self {
        self.memory_mib = Some(mib);
        self
    }

    /// A label.
    #[must_use]
    pub fn label(self, key: &str, value: &str) -> Self {
        self.option("label", format!("{key}={value}"))
    }

    /// A variable of every command.
    #[must_use]
    pub fn env(self, name: &str, value: impl Into<OsString>) -> Self {
        let mut assignment = OsString::from(format!("{name}="));
        assignment.push(value.into());
        self.option("env", assignment)
    }

    /// Directory of commands that name none.
    #[must_use]
    pub fn workdir(self, directory: impl Into<OsString>) -> Self {
        self.option("workdir", directory)
    }

    /// `USER[:GROUP]` of commands that name none.
    #[must_use]
    pub fn user(self, user: impl Into<OsString>) -> Self {
        self.option("user", user)
    }

    /// Host name of the guest.
    #[must_use]
    pub fn hostname(self, name: &str) -> Self {
        self.option("hostname", name)
    }

    /// The program that takes the place of the image's entrypoint.
    #[must_use]
    pub fn entrypoint(self, program: impl Into<OsString>) -> Self {
        self.option("entrypoint", program)
    }

    /// The main command, in place of the image's: when it ends, so does the sandbox.
    #[must_use]
    pub fn command<W: Into<OsString>>(mut self, words: impl IntoIterator<Item = W>) -> Self {
        self.command = words.into_iter().map(Into::into).collect();
        self
    }

    /// It is stopped when nobody has used it for so long.
    #[must_use]
    pub fn idle_timeout(self, time: Duration) -> Self {
        self.option("idle-timeout", format!("{}ms", time.as_millis()))
    }

    /// It is stopped when it has run for so long.
    #[must_use]
    pub fn max_duration(self, time: Duration) -> Self {
        self.option("max-duration", format!("{}ms", time.as_millis()))
    }

    /// A sandbox of that name goes first, with its disk; it has this time to stop, and is killed at once when it is zero.
    #[must_use]
    pub fn replace(self, time: Duration) -> Self {
        self.option("replace-with-timeout", format!("{}ms", time.as_millis()))
    }

    /// Whether it outlives this program. One that does not is stopped when its [`Sandbox`] is dropped, and when this
    /// program ends, however it ends.
    #[must_use]
    pub fn detached(mut self, detached: bool) -> Self {
        self.detached = detached;
        self
    }

    /// The state directory, in place of that of the environment.
    #[must_use]
    pub fn home(mut self, root: &Path) -> Self {
        self.home = Some(Home::at(root));
        self
    }

    /// Makes the sandbox, starts it, and waits until its guest takes commands.
    pub fn create(self) -> Result<Sandbox, Error> {
        let invalid = |message: &str| Err(Error::new(Code::InvalidConfig, message));
        let name: SandboxName = self.name.parse()?;
        let Some(image) = &self.image else {
            return invalid("a sandbox needs an image");
        };
        if self.cpus == Some(0) {
            return invalid("cpus cannot be 0");
        }
        if self.memory_mib == Some(0) {
            return invalid("memory cannot be 0");
        }
        let mut args = self.options.clone();
        args.push(format!("--name={name}").into());
        args.extend(self.cpus.map(|cpus| format!("--cpus={cpus}").into()));
        args.extend(self.memory_mib.map(|mib| format!("--memory={mib}").into()));
        args.push(image.into());
        args.push("--".into());
        args.extend(self.command);
        let home = self.home.map_or_else(Home::from_env, Ok)?;
        Sandbox::make(home, name, args, self.detached)
    }
}
