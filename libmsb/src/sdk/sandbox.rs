//! Sandboxes and handles to them.

use std::ffi::OsString;
use std::io::{PipeWriter, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use msb_wire::exec::ExecRequest;
use msb_wire::job::JobEvent;
use msb_wire::sandbox::Request;
use serde::{Deserialize, Serialize};

use super::address::Address;
use super::builder::SandboxBuilder;
use super::connect::GuestTcpStream;
use super::error::Error;
use super::exec::{self, ExecHandle, ExecOptions};
use super::files::SandboxFs;
use super::jobs::{self, Job, JobInfo};
use super::logs::{LogOptions, LogStream};
use super::metrics::{self, Metrics, MetricsStream};
use super::output::ExecOutput;
use super::snapshot::{Snapshot, SnapshotOptions};
use super::ssh::SandboxSsh;
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
    address: Address,
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

    /// Starts a sandbox that exists. It is stopped when the returned value is dropped, and when this
    /// program ends in any way.
    pub fn start(name: &str) -> Result<Sandbox, Error> {
        Sandbox::get(name)?.start_attached()
    }

    /// Starts a sandbox that exists, which outlives this program.
    pub fn start_detached(name: &str) -> Result<SandboxHandle, Error> {
        let handle = Sandbox::get(name)?;
        handle.start()?;
        Ok(handle)
    }

    /// Removes a sandbox, with its disk. It must not run.
    pub fn remove(name: &str) -> Result<(), Error> {
        Sandbox::get(name)?.remove()
    }

    pub(super) fn make(
        home: Home,
        name: SandboxName,
        args: Vec<OsString>,
        detached: bool,
    ) -> Result<Sandbox, Error> {
        let handle = SandboxHandle { address: Address { home, name } };
        if detached {
            tool::run(&handle.address.home, "msb-create", args)?;
            return Ok(Sandbox { handle, keepalive: None });
        }
        Sandbox::attached(handle, "msb-create", args)
    }

    /// Runs a tool that starts the sandbox, with the keepalive pipe.
    fn attached(handle: SandboxHandle, tool: &str, args: Vec<OsString>) -> Result<Sandbox, Error> {
        let (reader, writer) = std::io::pipe()?;
        let mut command = tool::command(&handle.address.home, tool, ["--bond-fd=0"])?;
        let output = command.args(args).stdin(reader).output()?;
        if !output.status.success() {
            return Err(tool::failure(tool, &output.stderr));
        }
        Ok(Sandbox { handle, keepalive: Some(writer) })
    }

    /// Returns whether the sandbox ends with this program.
    pub fn owns_lifecycle(&self) -> bool {
        self.keepalive.is_some()
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
        Ok(SandboxHandle { address: Address { home, name } })
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
            .map(|entry| {
                let address = Address { home: home.clone(), name: entry.name.parse()? };
                Ok(SandboxHandle { address })
            })
            .collect()
    }

    /// Returns the name.
    pub fn name(&self) -> &str {
        self.address.name()
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
        Ok(self.address.home.sandboxes().find(&self.address.name)?.snapshot()?)
    }

    /// Starts the sandbox, if it does not run, and waits until its guest accepts commands.
    pub fn start(&self) -> Result<(), Error> {
        self.verb("msb-start", &["--quiet"])
    }

    /// Starts the sandbox, and stops it when the returned value is dropped, or when this program
    /// ends in any way. A sandbox that runs is an error.
    pub fn start_attached(&self) -> Result<Sandbox, Error> {
        let name = self.name().into();
        Sandbox::attached(self.clone(), "msb-start", vec!["--".into(), name])
    }

    /// Refuses new commands, and stops the sandbox when those that run have ended. Waits for the
    /// end.
    pub fn drain(&self) -> Result<(), Error> {
        exec::answer(self.address.connection()?, &Request::Drain).map(drop)
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
        args.push(self.address.name().into());
        tool::run(&self.address.home, tool, args).map(drop)
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
        self.exec_stream(command, options)?.collect()
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
        self.shell_with(script, ExecOptions::default())
    }

    /// Runs a script by the shell of the sandbox, to its end.
    pub fn shell_with(&self, script: &str, options: ExecOptions) -> Result<ExecOutput, Error> {
        self.shell_stream(script, options)?.collect()
    }

    /// Starts a script by the shell of the sandbox and streams its output.
    pub fn shell_stream(&self, script: &str, options: ExecOptions) -> Result<ExecHandle, Error> {
        self.exec_stream([self.shell_program()?, "-c".into(), script.into()], options)
    }

    fn shell_program(&self) -> Result<OsString, Error> {
        let shell = self.spec()?.guest.shell;
        Ok(shell.map_or_else(|| "/bin/sh".into(), |shell| shell.as_os_str().to_owned()))
    }

    /// Connects the terminal of this process to a command. Returns its exit code. Without a
    /// terminal, the command has the standard streams of this process.
    pub fn attach<W: Into<OsString>>(
        &self,
        command: impl IntoIterator<Item = W>,
    ) -> Result<i32, Error> {
        let mut args = vec![self.name().into(), "--".into()];
        args.extend(command.into_iter().map(Into::into));
        tool::inherit(&self.address.home, "msb-exec", args)
    }

    /// Connects the terminal of this process to the shell of the sandbox. Returns its exit code.
    pub fn attach_shell(&self) -> Result<i32, Error> {
        self.attach([self.shell_program()?])
    }

    /// Returns the files in the running sandbox, read and changed as the sandbox's user.
    pub fn fs(&self) -> SandboxFs {
        SandboxFs::new(self.address.clone(), None)
    }

    /// Returns the SSH access.
    pub fn ssh(&self) -> SandboxSsh {
        SandboxSsh::new(self.address.clone())
    }

    /// Starts a command that continues without this program. Its output is in the log. Input and
    /// the limit of captured bytes are ignored.
    pub fn start_job<W: Into<OsString>>(
        &self,
        command: impl IntoIterator<Item = W>,
        options: &ExecOptions,
    ) -> Result<Job, Error> {
        let timeout_ms = options
            .timeout
            .map(|time| u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX));
        let request =
            ExecRequest { job: true, timeout_ms, ..options.request(exec::argv(command)?) };
        let event = exec::answer(self.address.connection()?, &Request::Exec(request))?;
        match serde_json::from_slice(&event) {
            Ok(JobEvent::Started { job }) => Ok(Job::new(self.address.clone(), job)),
            _ => Err(Error::new(Code::Failed, "invalid answer of the sandbox's supervisor")),
        }
    }

    /// Returns a job by its ID.
    pub fn job(&self, id: &str) -> Result<Job, Error> {
        let job = Job::new(self.address.clone(), id.to_owned());
        job.info()?;
        Ok(job)
    }

    /// Returns the running jobs, and the last ones that have ended.
    pub fn jobs(&self) -> Result<Vec<JobInfo>, Error> {
        jobs::list(&self.address, None)
    }

    /// Connects to a TCP port from inside the guest.
    pub fn connect_tcp(
        &self,
        host: &str,
        port: u16,
        timeout: Duration,
    ) -> Result<GuestTcpStream, Error> {
        GuestTcpStream::open(self.address.connection()?, host, port, timeout)
    }

    /// Checks that the guest responds, and returns the time that this took.
    pub fn ping(&self) -> Result<Duration, Error> {
        let started = Instant::now();
        let connection = self.address.connection()?;
        // An agent that does not know the operation refuses it, which is a sign of life too.
        match exec::answer(connection, &Request::Ping) {
            Err(error) if error.code != Code::UnsupportedOperation => Err(error),
            _ => Ok(started.elapsed()),
        }
    }

    /// Creates a snapshot of the sandbox, under a name or at a path.
    pub fn snapshot_to(
        &self,
        destination: &str,
        options: &SnapshotOptions,
    ) -> Result<Snapshot, Error> {
        Snapshot::create(self.name(), destination, options)
    }

    /// Copies a file or directory of the host into the guest.
    pub fn copy_from_host(&self, host: &Path, guest: &str) -> Result<(), Error> {
        self.fs().copy_from_host(host, guest)
    }

    /// Copies a file or directory of the guest to the host.
    pub fn copy_to_host(&self, guest: &str, host: &Path) -> Result<(), Error> {
        self.fs().copy_to_host(guest, host)
    }

    /// Waits for the end of the sandbox.
    pub fn wait(&self) -> Result<SandboxEnd, Error> {
        let args = ["--format=json", "--", self.address.name()];
        tool::parse("msb-wait", &tool::run(&self.address.home, "msb-wait", args)?)
    }

    /// Returns the log: output of the main command, of jobs and of logged commands.
    pub fn logs(&self) -> Result<Vec<LogEntry>, Error> {
        let sandbox = self.address.home.sandboxes().find(&self.address.name)?;
        let mut reader = LogReader::open(&sandbox, &LogSource::ALL, None)
            .map_err(|error| Error::new(Code::Failed, error.to_string()))?;
        let mut entries = Vec::new();
        while let Some(entry) = reader.next_entry()? {
            entries.push(entry);
        }
        Ok(entries)
    }

    /// Returns a stream of log entries, which can wait for new ones.
    pub fn log_stream(&self, options: &LogOptions) -> Result<LogStream, Error> {
        LogStream::open(&self.address, None, options)
    }

    /// Returns the last sample of the resource usage.
    pub fn metrics(&self) -> Result<Metrics, Error> {
        metrics::read(&self.address)
    }

    /// Returns samples of the resource usage at an interval.
    pub fn metrics_stream(&self, interval: Duration) -> Result<MetricsStream, Error> {
        MetricsStream::open(&self.address, interval)
    }

    /// Starts a command and streams its output.
    pub fn exec_stream<W: Into<OsString>>(
        &self,
        command: impl IntoIterator<Item = W>,
        options: ExecOptions,
    ) -> Result<ExecHandle, Error> {
        exec::start(&self.address, command, options)
    }
}
