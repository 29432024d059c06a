//! Commands in a sandbox.

use std::ffi::OsString;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use msb_wire::client::{CallSender, ClientCall, ClientConnection, Incoming};
use msb_wire::exec::{ExecControl, ExecEvent, ExecRequest, Rlimit, WindowSize};
use msb_wire::frame::{STDERR, STDIN};
use msb_wire::sandbox::Request;
use msb_wire::text::Text;

use super::error::Error;
use crate::capture::{CAPTURE_BYTES, CaptureBuffer};
use crate::cli::error::Code;

/// Options of a command.
#[derive(Clone, Debug, Default)]
pub struct ExecOptions {
    /// Environment variables, which override those of the sandbox.
    pub env: Vec<(OsString, OsString)>,
    /// Working directory, instead of the sandbox's.
    pub cwd: Option<OsString>,
    /// User, `USER[:GROUP]`, instead of the sandbox's.
    pub user: Option<OsString>,
    /// Standard input. With [`ExecSession`], more may follow.
    pub stdin: Vec<u8>,
    /// Time after which the command is killed; the error is [`Code::ExecTimeout`].
    pub timeout: Option<Duration>,
    /// Size of a terminal that the command runs on. All output then is standard output.
    pub tty: Option<WindowSize>,
    /// Resource limits, instead of those that it would inherit.
    pub rlimits: Vec<Rlimit>,
    /// True if the output is written to the sandbox's log too.
    pub log: bool,
    /// Limit of captured bytes of each stream in [`ExecOutput`]; 8 MiB by default. Streamed output
    /// has no limit.
    pub capture_max: Option<u64>,
}

/// The result of a command that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecOutput {
    /// Exit code; 128 + signal if a signal killed it.
    pub code: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// True if a stream was longer than the limit.
    pub truncated: bool,
}

/// An event of a running command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamEvent {
    /// Bytes of its standard output.
    Stdout(Vec<u8>),
    /// Bytes of its standard error.
    Stderr(Vec<u8>),
    /// Last: the command has ended, with this exit code.
    Exited(i32),
}

/// A running command. It is killed when this is dropped.
#[derive(Debug)]
pub struct ExecSession {
    call: ClientCall,
    ended: bool,
    pid: Option<u32>,
    oom_killed: bool,
    timer: Option<KillTimer>,
}

/// A timer that kills a command, unless it is dropped before.
#[derive(Debug)]
struct KillTimer {
    time: Duration,
    expired: Arc<AtomicBool>,
    _cancel: Sender<()>,
}

/// Time for a killed command to end, before its connection is given up.
const KILL_TIME: Duration = Duration::from_secs(2);

impl KillTimer {
    fn start(time: Duration, sender: CallSender) -> KillTimer {
        let (cancel, cancelled) = channel();
        let expired = Arc::new(AtomicBool::new(false));
        let mark = Arc::clone(&expired);
        std::thread::spawn(move || {
            if cancelled.recv_timeout(time) != Err(RecvTimeoutError::Timeout) {
                return;
            }
            mark.store(true, Ordering::SeqCst);
            let _ = sender.control(&ExecControl::Signal { signal: libc::SIGKILL });
            if cancelled.recv_timeout(KILL_TIME) == Err(RecvTimeoutError::Timeout) {
                sender.hang_up();
            }
        });
        KillTimer { time, expired, _cancel: cancel }
    }

    fn error(&self) -> Option<Error> {
        let message = format!("the command was killed after {:?}", self.time);
        let expired = self.expired.load(Ordering::SeqCst);
        expired.then(|| Error::new(Code::ExecTimeout, message))
    }
}

impl ExecSession {
    pub(super) fn start(
        connection: ClientConnection,
        argv: Vec<Text>,
        options: ExecOptions,
    ) -> Result<ExecSession, Error> {
        let assignment = |(name, value): (OsString, OsString)| {
            let mut text = name;
            text.push("=");
            text.push(value);
            Text::from(text)
        };
        let request = ExecRequest {
            argv,
            env: options.env.into_iter().map(assignment).collect(),
            cwd: options.cwd.map(Text::from),
            user: options.user.map(Text::from),
            stdin: true,
            tty: options.tty,
            rlimits: options.rlimits,
            log: options.log,
            ..ExecRequest::default()
        };
        let call = connection.open(&Request::Exec(request))?;
        let timer = options.timeout.map(|time| KillTimer::start(time, call.sender.clone()));
        let exec = ExecSession { call, ended: false, pid: None, oom_killed: false, timer };
        if !options.stdin.is_empty() {
            exec.write(&options.stdin)?;
        }
        Ok(exec)
    }

    /// Writes to the command's standard input. Blocks while the command does not read. For another
    /// thread: [`ExecSession::writer`].
    pub fn write(&self, bytes: &[u8]) -> Result<(), Error> {
        Ok(self.call.sender.data(STDIN, bytes)?)
    }

    /// Closes the command's standard input.
    pub fn close_stdin(&self) -> Result<(), Error> {
        Ok(self.call.sender.end(STDIN)?)
    }

    /// Returns the writing half, for another thread.
    pub fn writer(&self) -> msb_wire::client::CallSender {
        self.call.sender.clone()
    }

    /// Sends a signal, by its number on Linux, to the command's process group.
    pub fn signal(&self, signal: i32) -> Result<(), Error> {
        Ok(self.call.sender.control(&ExecControl::Signal { signal })?)
    }

    /// Kills the command's process group.
    pub fn kill(&self) -> Result<(), Error> {
        self.signal(libc::SIGKILL)
    }

    /// Sets the size of the command's terminal.
    pub fn resize(&self, size: WindowSize) -> Result<(), Error> {
        Ok(self.call.sender.control(&ExecControl::Resize(size))?)
    }

    /// Returns the process ID in the guest. It is known after the first event.
    pub fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Returns whether the guest's kernel has killed the command for lack of memory. It is known
    /// after the last event.
    pub fn oom_killed(&self) -> bool {
        self.oom_killed
    }

    /// Waits for the end and returns the exit code. Output is dropped.
    pub fn wait(&mut self) -> Result<i32, Error> {
        loop {
            match self.receive()? {
                Some(StreamEvent::Exited(code)) => return Ok(code),
                Some(_) => {}
                None => return Err(Error::new(Code::Failed, "the command has ended before")),
            }
        }
    }

    /// Returns the next event; `None` after the end.
    pub fn receive(&mut self) -> Result<Option<StreamEvent>, Error> {
        let received = self.receive_any();
        let is_end = matches!(received, Err(_) | Ok(Some(StreamEvent::Exited(_))));
        match self.timer.as_ref().and_then(KillTimer::error) {
            Some(error) if is_end => Err(error),
            _ => received,
        }
    }

    fn receive_any(&mut self) -> Result<Option<StreamEvent>, Error> {
        while !self.ended {
            match self.call.reader.receive()? {
                None => {
                    let message = "the sandbox ended before the command did";
                    return Err(Error::new(Code::SandboxNotRunning, message));
                }
                Some(Incoming::Data { channel, bytes, .. }) => {
                    self.call.sender.used(channel, bytes.len())?;
                    if bytes.is_empty() {
                        continue;
                    }
                    return Ok(Some(if channel == STDERR {
                        StreamEvent::Stderr(bytes)
                    } else {
                        StreamEvent::Stdout(bytes)
                    }));
                }
                Some(Incoming::Event { message, last }) => {
                    self.ended = last;
                    match serde_json::from_slice(&message) {
                        Ok(ExecEvent::Started { pid }) => self.pid = Some(pid),
                        Ok(ExecEvent::Exited { oom_killed, .. }) => self.oom_killed = oom_killed,
                        _ => {}
                    }
                    if last {
                        return end(&message).map(|code| Some(StreamEvent::Exited(code)));
                    }
                }
            }
        }
        Ok(None)
    }
}

/// Returns the exit code, unless the command was never started.
fn end(message: &[u8]) -> Result<i32, Error> {
    let event: ExecEvent = serde_json::from_slice(message).map_err(|error| {
        Error::new(Code::Failed, format!("invalid event from the guest: {error}"))
    })?;
    if let ExecEvent::Failed { kind, message } = event {
        return Err(Error::of_exec(kind, message));
    }
    Ok(event.exit_code().unwrap_or_default())
}

/// Runs a command to its end, with its input already given, and captures its output.
pub(super) fn run(mut exec: ExecSession, capture_max: Option<u64>) -> Result<ExecOutput, Error> {
    // A command that has closed its input, or has ended, needs no end of input.
    let _ = exec.close_stdin();
    let buffer = || CaptureBuffer::new(capture_max.unwrap_or(CAPTURE_BYTES));
    let (mut stdout, mut stderr, mut exit_code) = (buffer(), buffer(), 0);
    while let Some(piece) = exec.receive()? {
        match piece {
            StreamEvent::Stdout(bytes) => stdout.append(&bytes),
            StreamEvent::Stderr(bytes) => stderr.append(&bytes),
            StreamEvent::Exited(code) => exit_code = code,
        }
    }
    Ok(ExecOutput {
        code: exit_code,
        truncated: stdout.is_truncated() || stderr.is_truncated(),
        stdout: stdout.into_bytes(),
        stderr: stderr.into_bytes(),
    })
}
