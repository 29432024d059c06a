//! Commands in a sandbox.

use std::ffi::OsString;

use msb_wire::client::{ClientCall, ClientConnection, Incoming};
use msb_wire::exec::{ExecControl, ExecEvent, ExecRequest};
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
            ..ExecRequest::default()
        };
        let exec = ExecSession { call: connection.open(&Request::Exec(request))?, ended: false };
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

    /// Returns the next event; `None` after the end.
    pub fn receive(&mut self) -> Result<Option<StreamEvent>, Error> {
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
