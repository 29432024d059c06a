//! Commands in a sandbox.

use std::ffi::OsString;

use msb_wire::client::{Call, Connection, Incoming};
use msb_wire::exec::{ExecControl, ExecEvent, ExecRequest, FailureKind};
use msb_wire::frame::{STDERR, STDIN};
use msb_wire::sandbox::Request;
use msb_wire::text::Text;

use super::error::Error;
use crate::capture::{CAPTURE_BYTES, CaptureBuffer};
use crate::cli::error::Code;

/// As whom, where and with what a command runs.
#[derive(Clone, Debug, Default)]
pub struct ExecOptions {
    /// Variables, above those of the sandbox.
    pub env: Vec<(OsString, OsString)>,
    /// Directory, in place of the sandbox's.
    pub cwd: Option<OsString>,
    /// `USER[:GROUP]`, in place of the sandbox's.
    pub user: Option<OsString>,
    /// What the command reads. With [`Exec`], more may follow.
    pub stdin: Vec<u8>,
    /// Bytes of each stream that [`Output`] keeps; by default 8 MiB. What is streamed has no limit.
    pub capture_max: Option<u64>,
}

/// A command that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Exit code, 128 + signal when a signal killed it.
    pub code: i32,
    /// What it wrote to its standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to its standard error.
    pub stderr: Vec<u8>,
    /// Whether a stream was longer than what is kept of it.
    pub truncated: bool,
}

/// A piece of what a running command has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Streamed {
    /// Bytes of its standard output.
    Stdout(Vec<u8>),
    /// Bytes of its standard error.
    Stderr(Vec<u8>),
    /// It has ended, with this exit code. The last piece.
    Exited(i32),
}

/// A command that runs. Dropping this kills it.
#[derive(Debug)]
pub struct Exec {
    call: Call,
    ended: bool,
}

impl Exec {
    pub(super) fn start(
        connection: Connection,
        argv: Vec<Text>,
        options: ExecOptions,
    ) -> Result<Exec, Error> {
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
            ..ExecRequest::default()
        };
        let exec = Exec {
            call: connection.open(&Request::Exec(request))?,
            ended: false,
        };
        if !options.stdin.is_empty() {
            exec.write(&options.stdin)?;
        }
        Ok(exec)
    }

    /// Gives the command something to read; waits while it does not read. For another thread: [`Exec::writer`].
    pub fn write(&self, bytes: &[u8]) -> Result<(), Error> {
        Ok(self.call.sender.data(STDIN, bytes)?)
    }

    /// Tells the command that its input has ended.
    pub fn close_stdin(&self) -> Result<(), Error> {
        Ok(self.call.sender.end(STDIN)?)
    }

    /// The writing half, for another thread.
    pub fn writer(&self) -> msb_wire::client::Sender {
        self.call.sender.clone()
    }

    /// Sends a signal, by its number on Linux, to the command's process group.
    pub fn signal(&self, signal: i32) -> Result<(), Error> {
        Ok(self.call.sender.control(&ExecControl::Signal { signal })?)
    }

    /// What comes next; `None` behind the end.
    pub fn receive(&mut self) -> Result<Option<Streamed>, Error> {
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
                        Streamed::Stderr(bytes)
                    } else {
                        Streamed::Stdout(bytes)
                    }));
                }
                Some(Incoming::Event { message, last }) => {
                    self.ended = last;
                    if last {
                        return end(&message).map(|code| Some(Streamed::Exited(code)));
                    }
                }
            }
        }
        Ok(None)
    }
}

/// The exit code, unless the command was never started.
fn end(message: &[u8]) -> Result<i32, Error> {
    let event: ExecEvent = serde_json::from_slice(message)
        .map_err(|error| Error::new(Code::Failed, format!("an event of the guest: {error}")))?;
    if let ExecEvent::Failed { kind, message } = event {
        let code = match kind {
            FailureKind::UnsupportedOperation => Code::UnsupportedOperation,
            FailureKind::NotFound => Code::NotFound,
            FailureKind::Paused => Code::WrongState,
            _ => Code::Failed,
        };
        return Err(Error::new(code, message));
    }
    Ok(event.exit_code().unwrap_or_default())
}

/// Runs a command to its end. Its input was given; the rest is collected.
pub(super) fn run(mut exec: Exec, capture_max: Option<u64>) -> Result<Output, Error> {
    // A command that has closed its input, or is gone, needs no end of it.
    let _ = exec.close_stdin();
    let buffer = || CaptureBuffer::new(capture_max.unwrap_or(CAPTURE_BYTES));
    let (mut stdout, mut stderr, mut exit_code) = (buffer(), buffer(), 0);
    while let Some(piece) = exec.receive()? {
        match piece {
            Streamed::Stdout(bytes) => stdout.append(&bytes),
            Streamed::Stderr(bytes) => stderr.append(&bytes),
            Streamed::Exited(code) => exit_code = code,
        }
    }
    Ok(Output {
        code: exit_code,
        truncated: stdout.is_truncated() || stderr.is_truncated(),
        stdout: stdout.into_bytes(),
        stderr: stderr.into_bytes(),
    })
}
