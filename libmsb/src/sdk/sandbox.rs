//! Sandboxes, made, found and used.

use std::ffi::OsString;
use std::io::{PipeWriter, Write};
use std::time::Duration;

use msb_wire::client::Connection;
use msb_wire::text::Text;

use super::PROGRAM;
use super::builder::SandboxBuilder;
use super::error::Error;
use super::exec::{Exec, ExecOptions, Output, run};
use super::tool;
use crate::cli::args::SandboxName;
use crate::cli::error::Code;
use crate::selector::Selector;
use crate::state::Home;
use crate::state::sandboxes::Seen;
use crate::state::spec::Spec;
use crate::state::status::State;

/// A sandbox by name, whoever made it; dropping this does nothing to it.
#[derive(Clone, Debug)]
pub struct SandboxHandle {
    home: Home,
    name: SandboxName,
}

/// A sandbox that this program has made. Unless it is detached, it is stopped when this is dropped.
#[derive(Debug)]
pub struct Sandbox {
    handle: SandboxHandle,
    /// When this is closed, by whatever end of this program, the sandbox is stopped.
    bond: Option<PipeWriter>,
}

impl Sandbox {
    /// Begins a sandbox of that name.
    pub fn builder(name: impl Into<String>) -> SandboxBuilder {
        SandboxBuilder::new(name)
    }

    /// The sandbox of a name, in the state directory of the environment.
    pub fn get(name: &str) -> Result<SandboxHandle, Error> {
        SandboxHandle::find(Home::from_env()?, name)
    }

    /// Every sandbox that can be read, sorted by name.
    pub fn list() -> Result<Vec<SandboxHandle>, Error> {
        Sandbox::list_with(&[])
    }

    /// Every sandbox that can be read and has these labels, as `key=value` or `key`.
    pub fn list_with(labels: &[&str]) -> Result<Vec<SandboxHandle>, Error> {
        SandboxHandle::list(Home::from_env()?, labels)
    }

    pub(super) fn make(
        home: Home,
        name: SandboxName,
        args: Vec<OsString>,
        detached: bool,
    ) -> Result<Sandbox, Error> {
        let handle = SandboxHandle { home, name };
        if detached {
            tool::run(&handle.home, "msb-create", args)?;
            return Ok(Sandbox { handle, bond: None });
        }
        let (reader, writer) = std::io::pipe()?;
        let mut command = tool::command(&handle.home, "msb-create", ["--bond-fd=0"])?;
        let output = command.args(args).stdin(reader).output()?;
        if !output.status.success() {
            return Err(tool::failure("msb-create", &output.stderr));
        }
        Ok(Sandbox {
            handle,
            bond: Some(writer),
        })
    }

    /// Lets it outlive this program.
    pub fn detach(mut self) -> Result<SandboxHandle, Error> {
        if let Some(mut bond) = self.bond.take() {
            bond.write_all(b"d")?;
        }
        Ok(self.handle)
    }
}

impl std::ops::Deref for Sandbox {
    type Target = SandboxHandle;

    fn deref(&self) -> &SandboxHandle {
        &self.handle
    }
}

impl SandboxHandle {
    /// The sandbox of a name, which must be there.
    pub fn find(home: Home, name: &str) -> Result<SandboxHandle, Error> {
        let name: SandboxName = name.parse()?;
        home.sandboxes().find(&name)?;
        Ok(SandboxHandle { home, name })
    }

    /// Every sandbox of a state directory that can be read and has these labels.
    pub fn list(home: Home, labels: &[&str]) -> Result<Vec<SandboxHandle>, Error> {
        let selectors: Vec<Selector> = labels
            .iter()
            .map(|label| label.parse())
            .collect::<Result<_, _>>()?;
        let entries = home.sandboxes().list()?;
        let chosen = entries.iter().filter(|entry| {
            let seen = entry.seen.as_ref();
            seen.is_ok_and(|seen| Selector::all_match(&selectors, &seen.spec.labels))
        });
        chosen
            .map(|entry| {
                Ok(SandboxHandle {
                    home: home.clone(),
                    name: entry.name.parse()?,
                })
            })
            .collect()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    /// What it is now.
    pub fn state(&self) -> Result<State, Error> {
        Ok(self.look()?.state)
    }

    /// What it should be.
    pub fn spec(&self) -> Result<Spec, Error> {
        Ok(self.look()?.spec)
    }

    /// All that can be said of it at one moment.
    pub fn look(&self) -> Result<Seen, Error> {
        Ok(self.home.sandboxes().find(&self.name)?.look()?)
    }

    /// Starts it, if it does not run, and waits until its guest takes commands.
    pub fn start(&self) -> Result<(), Error> {
        self.verb("msb-start", &["--quiet"])
    }

    /// Pauses it: stops the processors of its guest.
    pub fn pause(&self) -> Result<(), Error> {
        self.verb("msb-pause", &[])
    }

    /// Resumes it after a pause.
    pub fn resume(&self) -> Result<(), Error> {
        self.verb("msb-resume", &[])
    }

    /// Stops it in order, and kills it when that takes more than ten seconds.
    pub fn stop(&self) -> Result<(), Error> {
        self.stop_with_timeout(Duration::from_secs(10))
    }

    /// Stops it in order, and kills it when that takes more than this time.
    pub fn stop_with_timeout(&self, time: Duration) -> Result<(), Error> {
        let time = format!("--timeout={}ms", time.as_millis());
        self.verb("msb-stop", &["--quiet", &time])
    }

    /// Kills it.
    pub fn kill(&self) -> Result<(), Error> {
        self.verb("msb-stop", &["--quiet", "--force"])
    }

    /// Removes it, with its disk. It must not run.
    pub fn remove(&self) -> Result<(), Error> {
        self.verb("msb-rm", &[])
    }

    fn verb(&self, tool: &str, options: &[&str]) -> Result<(), Error> {
        let mut args = tool::words(options);
        args.push(self.name.as_str().into());
        tool::run(&self.home, tool, args).map(drop)
    }

    /// Runs a command to its end, its input empty.
    pub fn exec<W: Into<OsString>>(
        &self,
        command: impl IntoIterator<Item = W>,
    ) -> Result<Output, Error> {
        self.exec_with(command, ExecOptions::default())
    }

    /// Runs a command to its end.
    pub fn exec_with<W: Into<OsString>>(
        &self,
        command: impl IntoIterator<Item = W>,
        options: ExecOptions,
    ) -> Result<Output, Error> {
        let capture_max = options.capture_max;
        run(self.exec_stream(command, options)?, capture_max)
    }

    /// Starts a command whose output is read as it comes.
    pub fn exec_stream<W: Into<OsString>>(
        &self,
        command: impl IntoIterator<Item = W>,
        options: ExecOptions,
    ) -> Result<Exec, Error> {
        let argv: Vec<Text> = command
            .into_iter()
            .map(|word| Text::from(word.into()))
            .collect();
        if argv.is_empty() {
            return Err(Error::new(Code::InvalidConfig, "a command needs a program"));
        }
        let sandbox = self.home.sandboxes().find(&self.name)?;
        if !sandbox.is_alive()? {
            let message = format!("the sandbox '{}' is not running", self.name);
            return Err(Error::new(Code::SandboxNotRunning, message));
        }
        let socket = self.home.agent_socket(&self.name);
        Exec::start(Connection::connect(&socket, PROGRAM)?, argv, options)
    }
}
