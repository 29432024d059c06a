//! The process that intercepts the TLS connections of a sandbox, `msb-intercept`: its settings, the
//! certificate authority, and its first message.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::Context;
use libmsb::cli::error::Failure;
use libmsb::net::intercept::{InterceptReady, InterceptSettings};
use libmsb::net::tls::TlsSpec;
use libmsb::state::sandboxes::Sandbox;
use libmsb::state::spec::Spec;
use libmsb::state::{layout, write};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, SeekFrom, memfd_create, seek};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::process::child_process::ChildProcess;

/// Longest file of a certificate authority, in bytes.
const AUTHORITY_BYTES_MAX: u64 = 64 * 1024;
/// Timeout of the first message. The process was started before the guest.
const READY_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest first message, in bytes.
const READY_BYTES_MAX: usize = 64 * 1024;
/// Exit status after a violation that ends the sandbox.
const EXIT_VIOLATION: i32 = 3;

/// TLS interception of a sandbox: what its process is started with.
#[derive(Debug)]
pub(crate) struct Interception {
    name: String,
    tls: TlsSpec,
    /// The certificate authority: certificate and private key, PEM.
    authority: Option<String>,
    /// File of the authority. `None`: it is not kept, because the sandbox is ephemeral.
    path: Option<PathBuf>,
    /// Values of the secrets, until the guest is up.
    secrets: Option<OwnedFd>,
}

impl Interception {
    /// Reads the authority of a sandbox. Returns `None` if TLS is not intercepted.
    pub(crate) fn prepare(
        sandbox: &Sandbox,
        spec: &Spec,
        secrets: Option<OwnedFd>,
    ) -> anyhow::Result<Option<Interception>> {
        if !spec.net.enabled || !spec.net.tls.is_active() {
            return Ok(None);
        }
        if secrets.is_none() && !spec.net.tls.secrets.is_empty() {
            return Err(Failure::failed("the values of the sandbox's secrets are missing").into());
        }
        let path = sandbox.path(layout::TLS_AUTHORITY);
        let text = write::read_bounded(&path, AUTHORITY_BYTES_MAX)?;
        let text = text.map(String::from_utf8).transpose();
        let authority = text.with_context(|| format!("'{}' is not text", path.display()))?;
        Ok(Some(Interception {
            name: spec.name.clone(),
            tls: spec.net.tls.clone(),
            authority,
            path: (!spec.ephemeral).then_some(path),
            secrets,
        }))
    }

    /// Forgets the values of the secrets: no process will be started any more.
    pub(crate) fn forget_values(&mut self) {
        self.secrets = None;
    }

    /// Starts the process.
    pub(crate) fn start(
        &self,
        life: BorrowedFd<'_>,
        report: BorrowedFd<'_>,
    ) -> anyhow::Result<InterceptProcess> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (connections, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
                .context("cannot create a socket for intercepted connections")?;
        let pipe = || pipe_with(PipeFlags::CLOEXEC).context("cannot create a pipe");
        let ((events, events_theirs), (ready, ready_theirs)) = (pipe()?, pipe()?);
        rustix::io::ioctl_fionbio(&events, true)?;
        rustix::io::ioctl_fionbio(&ready, true)?;
        let settings = self.settings_file()?;
        let mut args = Vec::new();
        let mut inherited = Vec::new();
        let secrets = self.secrets.as_ref().map(|secrets| ("--secrets-fd", secrets.as_fd()));
        let descriptors = [
            ("--settings-fd", settings.as_fd()),
            ("--connections-fd", theirs.as_fd()),
            ("--events-fd", events_theirs.as_fd()),
            ("--ready-fd", ready_theirs.as_fd()),
            ("--life-fd", life),
            ("--report-fd", report),
        ];
        for (option, descriptor) in descriptors.into_iter().chain(secrets) {
            args.extend([option.to_owned(), descriptor.as_raw_fd().to_string()]);
            inherited.push(descriptor);
        }
        Ok(InterceptProcess {
            process: ChildProcess::start("msb-intercept", &args, &inherited)?,
            events: events.into(),
            ready: Some((ready.into(), self.path.clone())),
            connections: Some(connections),
        })
    }

    fn settings_file(&self) -> anyhow::Result<File> {
        let settings = InterceptSettings {
            name: self.name.clone(),
            authority: self.authority.clone(),
            tls: self.tls.clone(),
        };
        let cannot = "cannot create the settings of the interception";
        let file = memfd_create("msb-intercept", MemfdFlags::CLOEXEC).context(cannot)?;
        let mut file = File::from(file);
        file.write_all(&serde_json::to_vec(&settings)?).context(cannot)?;
        seek(&file, SeekFrom::Start(0)).context(cannot)?;
        Ok(file)
    }
}

/// The process that intercepts TLS.
#[derive(Debug)]
pub(crate) struct InterceptProcess {
    pub(crate) process: ChildProcess,
    /// Pipe of events, one per line.
    pub(crate) events: File,
    /// Pipe of the first message, and the file for a new authority.
    ready: Option<(File, Option<PathBuf>)>,
    /// The socket for `msb-net`, until that is started.
    pub(crate) connections: Option<OwnedFd>,
}

impl InterceptProcess {
    /// Returns the certificate that the guest must trust, and writes a new authority to its file.
    /// Waits until the process is confined. Called once.
    pub(crate) fn wait_for_certificate(&mut self) -> anyhow::Result<String> {
        let (mut ready, path) = self.ready.take().context("the certificate was taken already")?;
        let line = read_line(&mut ready).map_err(|error| {
            Failure::failed(format!("the interception of TLS could not be started: {error}"))
                .hint("see supervisor.log in the sandbox's directory")
        })?;
        let ready: InterceptReady = serde_json::from_slice(&line)
            .map_err(|_| anyhow::anyhow!("invalid message of msb-intercept"))?;
        if let Some((path, created)) = path.zip(ready.created) {
            write::replace(&path, created.as_bytes())?;
        }
        Ok(ready.certificate)
    }
}

/// Reads a line from a non-blocking pipe.
fn read_line(pipe: &mut File) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + READY_TIMEOUT;
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || line.len() > READY_BYTES_MAX {
            return Err(io::Error::other("it did not answer"));
        }
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        poll(&mut [PollFd::new(pipe, PollFlags::IN)], Some(&left))?;
        let mut some = [0; 4096];
        match pipe.read(&mut some) {
            Ok(0) => return Err(io::Error::other("it ended")),
            Ok(count) => line.extend_from_slice(&some[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(line)
}

/// Describes the exit of the process. `words` is the last line of the logs.
pub(crate) fn describe_exit(exit: ExitStatus, words: Option<String>) -> String {
    match (exit.signal(), exit.code()) {
        (Some(signal), _) => format!("the interception process was killed by signal {signal}"),
        (None, Some(EXIT_VIOLATION)) => match words {
            Some(words) => words,
            None => "a placeholder was sent to a host that its secret is not bound to".to_owned(),
        },
        (None, code) => format!(
            "the interception process ended with status {}{}",
            code.unwrap_or_default(),
            words.map(|words| format!(": {words}")).unwrap_or_default()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_is_described_by_its_signal_or_status() {
        let describe = |raw, words: Option<&str>| {
            describe_exit(ExitStatus::from_raw(raw), words.map(str::to_owned))
        };
        assert_eq!(describe(9, None), "the interception process was killed by signal 9");
        assert_eq!(describe(3 << 8, Some("secret A")), "secret A");
        assert_eq!(describe(1 << 8, Some("x")), "the interception process ended with status 1: x");
    }

    #[test]
    fn a_first_message_is_a_line_or_the_process_has_ended() {
        let (read, written) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        let mut read = File::from(read);
        rustix::io::write(&written, b"abc\n").unwrap();
        assert_eq!(read_line(&mut read).unwrap(), b"abc\n");
        drop(written);
        assert!(read_line(&mut read).is_err());
    }
}
