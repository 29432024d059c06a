//! Sandboxes and handles to them.

use std::ffi::OsString;
use std::io::{PipeWriter, Write};
use std::path::Path;
use std::time::Duration;

use msb_wire::client::ClientConnection;
use msb_wire::text::Text;
use serde::{Deserialize, Serialize};

use super::PROGRAM;
use super::builder::SandboxBuilder;
use super::error::Error;
use super::exec::{ExecOptions, ExecOutput, ExecSession, run};
use super::tool;
use crate::cli::args::SandboxName;
use crate::cli::error::Code;
use crate::logs::{LogEntry, LogReader, LogSource};
use crate::selector::Selector;
use crate::state::Home;
use crate::state::sandboxes::SandboxSnapshot;
use crate::state::spec::Spec;
use crate::state::status::State;

/// A handle to a sandbox, by name. Dropping it does nothing to the sandbox.
#[derive(Clone, Debug)]
pub struct SandboxHandle {
    home: Home,
    name: SandboxName,
}

/// The end of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxEnd {
    /// State: stopped or crashed.
    pub status: State,
    /// Exit code of the main command, if it ended.
    #[serde(default)]
    pub exit_code: Option<i32>,
    /// Reason of the end, as in msb-state(5).
    #[serde(default)]
    pub reason: Option<String>,
    /// True if the guest's file systems were flushed and clean.
    #[serde(default)]
    pub clean: Option<bool>,
}

/// A sample of the resource usage of a sandbox. Values that are not known are `None`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Processor time since the sample before, in percent of one processor.
    pub cpu_percent: Option<f64>,
    /// Memory that the machine uses.
    pub memory_bytes: Option<u64>,
    /// Memory of the guest.
    pub memory_limit_bytes: Option<u64>,
    /// Bytes read from disks.
    pub disk_read_bytes: Option<u64>,
    /// Bytes written to disks.
    pub disk_write_bytes: Option<u64>,
    /// Bytes received.
    pub net_rx_bytes: Option<u64>,
    /// Bytes sent.
    pub net_tx_bytes: Option<u64>,
    /// Time since the start, in seconds.
    pub uptime_secs: Option<f64>,
    /// Time of the sample, RFC 3339.
    pub timestamp: String,
}

/// A sandbox that this program has created. Unless it is detached, it is stopped when this is
/// dropped.
#[derive(Debug)]
pub struct Sandbox {
    handle: SandboxHandle,
    /// The keepalive pipe: when it is closed, by any end of this program, the sandbox is stopped.
    keepalive: Option<PipeWriter>,
}

impl Sandbox {
    /// Returns a builder of a sandbox with that name.
    pub fn builder(name: impl Into<String>) -> SandboxBuilder {
        SandboxBuilder::new(name)
    }

    /// Returns the sandbox of a name, in the state directory of the environment.
    pub fn get(name: &str) -> Result<SandboxHandle, Error> {
        SandboxHandle::find(Home::from_env()?, name)
    }

    /// Returns all readable sandboxes, sorted by name.
    pub fn list() -> Result<Vec<SandboxHandle>, Error> {
        Sandbox::list_with(&[])
    }

    /// Returns all readable sandboxes with these labels, given as `key=value` or `key`.
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
            return Ok(Sandbox { handle, keepalive: None });
        }
        let (reader, writer) = std::io::pipe()?;
        let mut command = tool::command(&handle.home, "msb-create", ["--bond-fd=0"])?;
        let output = command.args(args).stdin(reader).output()?;
        if !output.status.success() {
            return Err(tool::failure("msb-create", &output.stderr));
        }
        Ok(Sandbox { handle, keepalive: Some(writer) })
    }

    /// Detaches the sandbox, so it outlives this program.
    pub fn detach(mut self) -> Result<SandboxHandle, Error> {
        if let Some(mut keepalive) = self.keepalive.take() {
            keepalive.write_all(b"d")?;
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
    /// Returns the sandbox of a name, which must exist.
    pub fn find(home: Home, name: &str) -> Result<SandboxHandle, Error> {
        let name: SandboxName = name.parse()?;
        home.sandboxes().find(&name)?;
        Ok(SandboxHandle { home, name })
    }

    /// Returns all readable sandboxes of a state directory with these labels.
    pub fn list(home: Home, labels: &[&str]) -> Result<Vec<SandboxHandle>, Error> {
        let selectors: Vec<Selector> =
            labels.iter().map(|label| label.parse()).collect::<Result<_, _>>()?;
        let entries = home.sandboxes().list()?;
        let chosen = entries.iter().filter(|entry| {
            let seen = entry.seen.as_ref();
            seen.is_ok_and(|seen| Selector::all_match(&selectors, &seen.spec.labels))
        });
        chosen
            .map(|entry| Ok(SandboxHandle { home: home.clone(), name: entry.name.parse()? }))
            .collect()
    }

    /// Returns the name.
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    /// Returns the current state.
    pub fn state(&self) -> Result<State, Error> {
        Ok(self.snapshot()?.state)
    }

    /// Returns the specification.
    pub fn spec(&self) -> Result<Spec, Error> {
        Ok(self.snapshot()?.spec)
    }

    /// Returns specification, status and state, read at one moment.
    pub fn snapshot(&self) -> Result<SandboxSnapshot, Error> {
        Ok(self.home.sandboxes().find(&self.name)?.snapshot()?)
    }

    /// Starts the sandbox, if it does not run, and waits until its guest accepts commands.
    pub fn start(&self) -> Result<(), Error> {
        self.verb("msb-start", &["--quiet"])
    }

    /// Pauses the processors of the guest.
    pub fn pause(&self) -> Result<(), Error> {
        self.verb("msb-pause", &[])
    }

    /// Resumes the guest after a pause.
    pub fn resume(&self) -> Result<(), Error> {
        self.verb("msb-resume", &[])
    }

    /// Stops the sandbox in order, and kills it after ten seconds.
    pub fn stop(&self) -> Result<(), Error> {
        self.stop_with_timeout(Duration::from_secs(10))
    }

    /// Stops the sandbox in order, and kills it after this time.
    pub fn stop_with_timeout(&self, time: Duration) -> Result<(), Error> {
        let time = format!("--timeout={}ms", time.as_millis());
        self.verb("msb-stop", &["--quiet", &time])
    }

    /// Kills the sandbox.
    pub fn kill(&self) -> Result<(), Error> {
        self.verb("msb-stop", &["--quiet", "--force"])
    }

    /// Removes the sandbox, with its disk. It must not run.
    pub fn remove(&self) -> Result<(), Error> {
        self.verb("msb-rm", &[])
    }

    fn verb(&self, tool: &str, options: &[&str]) -> Result<(), Error> {
        let mut args = tool::words(options);
        args.push(self.name.as_str().into());
        tool::run(&self.home, tool, args).map(drop)
    }

    /// Runs a command to its end, with empty input.
    pub fn exec<W: Into<OsString>>(
        &self,
        command: impl IntoIterator<Item = W>,
    ) -> Result<ExecOutput, Error> {
        self.exec_with(command, ExecOptions::default())
    }

    /// Runs a command to its end.
    pub fn exec_with<W: Into<OsString>>(
        &self,
        command: impl IntoIterator<Item = W>,
        options: ExecOptions,
    ) -> Result<ExecOutput, Error> {
        let capture_max = options.capture_max;
        run(self.exec_stream(command, options)?, capture_max)
    }

    /// Runs a script by the shell of the sandbox, to its end.
    ///
    /// ```no_run
    /// # use libmsb::sdk::Sandbox;
    /// # fn main() -> Result<(), libmsb::sdk::Error> {
    /// let output = Sandbox::get("worker")?.shell("cat /etc/os-release | head -n 1")?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn shell(&self, script: &str) -> Result<ExecOutput, Error> {
        let shell = self.spec()?.guest.shell;
        let shell = shell.map_or_else(|| "/bin/sh".into(), |shell| shell.as_os_str().to_owned());
        self.exec([shell, "-c".into(), script.into()])
    }

    /// Copies a file or directory of the host into the guest.
    pub fn copy_from_host(&self, host: &Path, guest: &str) -> Result<(), Error> {
        self.copy(host.into(), format!("{}:{guest}", self.name).into())
    }

    /// Copies a file or directory of the guest to the host.
    pub fn copy_to_host(&self, guest: &str, host: &Path) -> Result<(), Error> {
        self.copy(format!("{}:{guest}", self.name).into(), host.into())
    }

    fn copy(&self, source: OsString, target: OsString) -> Result<(), Error> {
        // A path of the host that has a colon is no sandbox's.
        let args = ["--quiet".into(), "--".into(), source, target];
        tool::run(&self.home, "msb-cp", args).map(drop)
    }

    /// Waits for the end of the sandbox.
    pub fn wait(&self) -> Result<SandboxEnd, Error> {
        let args = ["--format=json", "--", self.name.as_str()];
        tool::parse("msb-wait", &tool::run(&self.home, "msb-wait", args)?)
    }

    /// Returns the log: output of the main command, of jobs and of logged commands.
    pub fn logs(&self) -> Result<Vec<LogEntry>, Error> {
        let sandbox = self.home.sandboxes().find(&self.name)?;
        let mut reader = LogReader::open(&sandbox, &LogSource::ALL, None)
            .map_err(|error| Error::new(Code::Failed, error.to_string()))?;
        let mut entries = Vec::new();
        while let Some(entry) = reader.next_entry()? {
            entries.push(entry);
        }
        Ok(entries)
    }

    /// Returns the last sample of the resource usage.
    pub fn metrics(&self) -> Result<Metrics, Error> {
        let args = ["show", "--format=json", "--", self.name.as_str()];
        tool::parse("msb-metrics", &tool::run(&self.home, "msb-metrics", args)?)
    }

    /// Starts a command and streams its output.
    pub fn exec_stream<W: Into<OsString>>(
        &self,
        command: impl IntoIterator<Item = W>,
        options: ExecOptions,
    ) -> Result<ExecSession, Error> {
        let argv: Vec<Text> = command.into_iter().map(|word| Text::from(word.into())).collect();
        if argv.is_empty() {
            return Err(Error::new(Code::InvalidConfig, "a command needs a program"));
        }
        let sandbox = self.home.sandboxes().find(&self.name)?;
        if !sandbox.is_alive()? {
            let message = format!("the sandbox '{}' is not running", self.name);
            return Err(Error::new(Code::SandboxNotRunning, message));
        }
        let socket = self.home.agent_socket(&self.name);
        ExecSession::start(ClientConnection::connect(&socket, PROGRAM)?, argv, options)
    }
}
