//! Commands in a sandbox.

use std::ffi::OsString;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use msb_wire::client::{CallSender, ClientCall, ClientConnection, Incoming};
use msb_wire::exec::{self, ExecRequest, Rlimit, WindowSize};
use msb_wire::frame::{STDERR, STDIN};
use msb_wire::limits::WINDOW_BYTES;
use msb_wire::sandbox::Request;
use msb_wire::text::Text;

use super::address::Address;
use super::error::Error;
use super::output::ExecOutput;
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
    /// Standard input. With [`ExecHandle`], more may follow.
    pub stdin: Vec<u8>,
    /// Time after which the command is killed; the error is [`Code::ExecTimeout`].
    pub timeout: Option<Duration>,
    /// Size of a terminal that the command runs on. All output then is standard output.
    pub tty: Option<WindowSize>,
    /// Resource limits, instead of those that it would inherit.
    pub rlimits: Vec<Rlimit>,
    /// True if the output is written to the sandbox's log too.
    pub log: bool,
    /// True for a login: the command is one line for the user's shell, in the user's home.
    pub login: bool,
    /// Limit of captured bytes of each stream in [`ExecOutput`]; 8 MiB by default. Streamed output
    /// has no limit.
    pub capture_max: Option<u64>,
}

impl ExecOptions {
    /// Returns the request of a command, without input.
    pub(super) fn request(&self, argv: Vec<Text>) -> ExecRequest {
        let assignment = |(name, value): &(OsString, OsString)| {
            let mut text = name.clone();
            text.push("=");
            text.push(value);
            Text::from(text)
        };
        ExecRequest {
            argv,
            env: self.env.iter().map(assignment).collect(),
            cwd: self.cwd.clone().map(Text::from),
            user: self.user.clone().map(Text::from),
            tty: self.tty,
            rlimits: self.rlimits.clone(),
            log: self.log,
            login: self.login,
            ..ExecRequest::default()
        }
    }
}

/// An event of a running command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecEvent {
    /// First: the command runs, with this process ID in the guest.
    Started(u32),
    /// Bytes of its standard output.
    Stdout(Vec<u8>),
    /// Bytes of its standard error.
    Stderr(Vec<u8>),
    /// Last: the command has ended, with this exit code.
    Exited(i32),
}

/// A running command. It is killed when this is dropped.
#[derive(Debug)]
pub struct ExecHandle {
    call: ClientCall,
    input: Input,
    stdin_taken: bool,
    capture_max: Option<u64>,
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

/// Exit code of a command that SIGKILL has ended.
const KILLED: i32 = 128 + libc::SIGKILL;

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
            let _ = sender.control(&exec::ExecControl::Signal { signal: libc::SIGKILL });
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

impl ExecHandle {
    fn start(
        connection: ClientConnection,
        argv: Vec<Text>,
        options: ExecOptions,
    ) -> Result<ExecHandle, Error> {
        let request = ExecRequest { stdin: true, ..options.request(argv) };
        let call = connection.open(&Request::Exec(request))?;
        let timer = options.timeout.map(|time| KillTimer::start(time, call.sender.clone()));
        // Nothing grants credit before the first `recv`, so a longer input needs a thread.
        let input = match options.stdin.len() > WINDOW_BYTES as usize {
            true => Input::queue(call.sender.clone())?,
            false => Input::Direct(call.sender.clone()),
        };
        let exec = ExecHandle {
            call,
            input,
            stdin_taken: false,
            capture_max: options.capture_max,
            ended: false,
            pid: None,
            oom_killed: false,
            timer,
        };
        if !options.stdin.is_empty() {
            exec.write(&options.stdin)?;
        }
        Ok(exec)
    }

    /// Writes to the command's standard input. Blocks while the command does not read; more than
    /// 256 KiB need another thread that calls [`ExecHandle::recv`], or [`ExecHandle::take_stdin`].
    pub fn write(&self, bytes: &[u8]) -> Result<(), Error> {
        Ok(self.input.write(bytes)?)
    }

    /// Closes the command's standard input.
    pub fn close_stdin(&self) -> Result<(), Error> {
        Ok(self.input.end()?)
    }

    /// Returns the command's standard input, for any thread; `None` after the first call. It is
    /// closed when the returned value is dropped.
    pub fn take_stdin(&mut self) -> Option<ExecStdin> {
        let first = !std::mem::replace(&mut self.stdin_taken, true);
        first.then(|| ExecStdin { input: self.input.clone() })
    }

    /// Returns a handle that controls the command from another thread.
    pub fn control(&self) -> ExecControl {
        ExecControl { sender: self.call.sender.clone() }
    }

    /// Sends a signal, by its number on Linux, to the command's process group.
    pub fn signal(&self, signal: i32) -> Result<(), Error> {
        self.control().signal(signal)
    }

    /// Kills the command's process group.
    pub fn kill(&self) -> Result<(), Error> {
        self.control().kill()
    }

    /// Sets the size of the command's terminal.
    pub fn resize(&self, size: WindowSize) -> Result<(), Error> {
        self.control().resize(size)
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
            match self.recv()? {
                Some(ExecEvent::Exited(code)) => return Ok(code),
                Some(_) => {}
                None => return Err(Error::new(Code::Failed, "the command has ended before")),
            }
        }
    }

    /// Closes the standard input, waits for the end and captures the output.
    pub fn collect(mut self) -> Result<ExecOutput, Error> {
        // A command that has closed its input, or has ended, needs no end of input.
        let _ = self.close_stdin();
        let buffer = || CaptureBuffer::new(self.capture_max.unwrap_or(CAPTURE_BYTES));
        let (mut stdout, mut stderr) = (buffer(), buffer());
        let ended = loop {
            match self.recv() {
                Ok(Some(ExecEvent::Started(_))) => {}
                Ok(Some(ExecEvent::Stdout(bytes))) => stdout.append(&bytes),
                Ok(Some(ExecEvent::Stderr(bytes))) => stderr.append(&bytes),
                Ok(Some(ExecEvent::Exited(code))) => break Ok(code),
                Ok(None) => break Ok(0),
                Err(error) => break Err(error),
            }
        };
        let output = |code| ExecOutput {
            code,
            truncated: stdout.is_truncated() || stderr.is_truncated(),
            stdout: stdout.into_bytes(),
            stderr: stderr.into_bytes(),
        };
        match ended {
            Ok(code) => Ok(output(code)),
            Err(error) if error.code == Code::ExecTimeout => {
                Err(Error { output: Some(Box::new(output(KILLED))), ..error })
            }
            Err(error) => Err(error),
        }
    }

    /// Returns the next event; `None` after the end.
    pub fn recv(&mut self) -> Result<Option<ExecEvent>, Error> {
        let received = self.recv_any();
        let is_end = matches!(received, Err(_) | Ok(Some(ExecEvent::Exited(_))));
        match self.timer.as_ref().and_then(KillTimer::error) {
            Some(error) if is_end => Err(error),
            _ => received,
        }
    }

    fn recv_any(&mut self) -> Result<Option<ExecEvent>, Error> {
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
                        ExecEvent::Stderr(bytes)
                    } else {
                        ExecEvent::Stdout(bytes)
                    }));
                }
                Some(Incoming::Event { message, last }) => {
                    self.ended = last;
                    match serde_json::from_slice(&message) {
                        Ok(exec::ExecEvent::Started { pid }) => {
                            self.pid = Some(pid);
                            return Ok(Some(ExecEvent::Started(pid)));
                        }
                        Ok(exec::ExecEvent::Exited { oom_killed, .. }) => {
                            self.oom_killed = oom_killed;
                        }
                        _ => {}
                    }
                    if last {
                        return end(&message).map(|code| Some(ExecEvent::Exited(code)));
                    }
                }
            }
        }
        Ok(None)
    }
}

/// Returns the exit code, unless the command was never started.
fn end(message: &[u8]) -> Result<i32, Error> {
    let event: exec::ExecEvent = serde_json::from_slice(message).map_err(|error| {
        Error::new(Code::Failed, format!("invalid event from the guest: {error}"))
    })?;
    if let exec::ExecEvent::Failed { kind, message } = event {
        return Err(Error::of_exec(kind, message));
    }
    Ok(event.exit_code().unwrap_or_default())
}

/// Starts a command.
pub(super) fn start<W: Into<OsString>>(
    sandbox: &Address,
    command: impl IntoIterator<Item = W>,
    options: ExecOptions,
) -> Result<ExecHandle, Error> {
    let argv = argv(command)?;
    ExecHandle::start(sandbox.connection()?, argv, options)
}

/// Returns the words of a command, which must have a program.
pub(super) fn argv<W: Into<OsString>>(
    command: impl IntoIterator<Item = W>,
) -> Result<Vec<Text>, Error> {
    let argv: Vec<Text> = command.into_iter().map(|word| Text::from(word.into())).collect();
    if argv.is_empty() {
        return Err(Error::new(Code::InvalidConfig, "a command needs a program"));
    }
    Ok(argv)
}

/// Sends a request that is answered by one event, and returns the event.
pub(super) fn answer(connection: ClientConnection, request: &Request) -> Result<Vec<u8>, Error> {
    let mut call = connection.open(request)?;
    while let Some(incoming) = call.reader.receive()? {
        let Incoming::Event { message, last: true } = incoming else { continue };
        if let Ok(exec::ExecEvent::Failed { kind, message }) = serde_json::from_slice(&message) {
            return Err(Error::of_exec(kind, message));
        }
        return Ok(message);
    }
    Err(Error::new(Code::SandboxNotRunning, "the sandbox ended before its answer"))
}

/// The way to a command's standard input.
#[derive(Clone, Debug)]
enum Input {
    /// Under flow control of the caller.
    Direct(CallSender),
    /// By a thread, in order.
    Queue(Sender<InputPiece>),
}

#[derive(Debug)]
enum InputPiece {
    Bytes(Vec<u8>),
    End,
}

impl Input {
    /// Starts a thread that writes what is queued, until the input or the command ends.
    fn queue(sender: CallSender) -> io::Result<Input> {
        let (queue, pieces) = channel();
        std::thread::Builder::new().name("msb-stdin".to_owned()).spawn(move || {
            for piece in pieces {
                let written = match piece {
                    InputPiece::Bytes(bytes) => sender.data(STDIN, &bytes),
                    InputPiece::End => sender.end(STDIN),
                };
                if written.is_err() {
                    return;
                }
            }
        })?;
        Ok(Input::Queue(queue))
    }

    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Input::Direct(sender) => sender.data(STDIN, bytes),
            Input::Queue(queue) => queue
                .send(InputPiece::Bytes(bytes.to_vec()))
                .map_err(|_| io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn end(&self) -> io::Result<()> {
        match self {
            Input::Direct(sender) => sender.end(STDIN),
            Input::Queue(queue) => {
                queue.send(InputPiece::End).map_err(|_| io::ErrorKind::BrokenPipe.into())
            }
        }
    }
}

/// The standard input of a running command. Dropping it closes the input.
#[derive(Debug)]
pub struct ExecStdin {
    input: Input,
}

impl Write for ExecStdin {
    /// Writes bytes. Blocks while the command does not read.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.input.write(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for ExecStdin {
    fn drop(&mut self) {
        // A command that has ended needs no end of input.
        let _ = self.input.end();
    }
}

/// Control of a running command, for any thread.
#[derive(Clone, Debug)]
pub struct ExecControl {
    sender: CallSender,
}

impl ExecControl {
    /// Sends a signal, by its number on Linux, to the command's process group.
    pub fn signal(&self, signal: i32) -> Result<(), Error> {
        Ok(self.sender.control(&exec::ExecControl::Signal { signal })?)
    }

    /// Kills the command's process group.
    pub fn kill(&self) -> Result<(), Error> {
        self.signal(libc::SIGKILL)
    }

    /// Sets the size of the command's terminal.
    pub fn resize(&self, size: WindowSize) -> Result<(), Error> {
        Ok(self.sender.control(&exec::ExecControl::Resize(size))?)
    }
}
