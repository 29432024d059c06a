//! QEMU's monitor: a client of the QEMU Machine Protocol, QMP (QEMU: docs/interop/qmp-spec.rst).
//!
//! Calls block for a limited time. Threads of the supervisor make them, not its event loop.

use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::Deserialize;
use serde_json::{Value, json};

/// Timeout of an answer. It is long enough for QEMU on a very busy host.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Maximum size of a message, in bytes.
const MESSAGE_BYTES_MAX: usize = 256 * 1024;
/// Pause between two queries of a state.
const PAUSE: Duration = Duration::from_millis(1);

/// A connection to the monitor of a VM.
#[derive(Debug)]
pub(crate) struct QmpMonitor {
    socket: UnixStream,
    received: Vec<u8>,
    is_open: bool,
}

/// A message from QEMU: a greeting, an answer, or an event.
#[derive(Debug, Deserialize)]
struct QmpMessage {
    #[serde(rename = "return")]
    answer: Option<Value>,
    error: Option<QmpError>,
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct QmpError {
    desc: String,
}

impl QmpMonitor {
    /// Takes the supervisor's end of a monitor connection.
    pub(crate) fn new(socket: UnixStream) -> std::io::Result<QmpMonitor> {
        socket.set_read_timeout(Some(TIMEOUT))?;
        socket.set_write_timeout(Some(TIMEOUT))?;
        Ok(QmpMonitor { socket, received: Vec::new(), is_open: false })
    }

    /// Runs a command and returns its answer.
    pub(crate) fn execute(&mut self, command: &str, arguments: Value) -> anyhow::Result<Value> {
        self.open()?;
        self.call(command, arguments, None)
    }

    /// Passes a descriptor to QEMU, which knows it by `name` afterwards.
    pub(crate) fn send_fd(&mut self, name: &str, fd: BorrowedFd<'_>) -> anyhow::Result<()> {
        self.open()?;
        self.call("getfd", json!({ "fdname": name }), Some(fd)).map(drop)
    }

    /// Passes a descriptor to QEMU, whose block devices know it as a set of descriptors afterwards.
    pub(crate) fn add_fd(&mut self, set: u32, fd: BorrowedFd<'_>) -> anyhow::Result<()> {
        self.open()?;
        self.call("add-fd", json!({ "fdset-id": set }), Some(fd)).map(drop)
    }

    /// Waits until no block job runs.
    pub(crate) fn wait_for_jobs(&mut self) -> anyhow::Result<()> {
        let end = Instant::now() + TIMEOUT;
        while self.execute("query-jobs", json!({}))?.as_array().is_none_or(|jobs| !jobs.is_empty())
        {
            ensure!(Instant::now() < end, "QEMU did not end its block job in time");
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Excludes memory that is shared with another process from the saved state. All memory of the
    /// guest is shared.
    pub(crate) fn exclude_shared_memory(&mut self) -> anyhow::Result<()> {
        let capability = json!([{ "capability": "x-ignore-shared", "state": true }]);
        self.execute("migrate-set-capabilities", json!({ "capabilities": capability })).map(drop)
    }

    /// Waits until the guest's vCPUs run.
    pub(crate) fn wait_until_running(&mut self) -> anyhow::Result<()> {
        self.wait_for("query-status", |status| match status {
            "running" => Some(Ok(())),
            "inmigrate" | "prelaunch" | "restore-vm" => None,
            other => Some(Err(format!("the VM is in state '{other}'"))),
        })
    }

    /// Waits until a VM has taken the state of one whose vCPUs stood.
    pub(crate) fn wait_until_restored(&mut self) -> anyhow::Result<()> {
        self.wait_for("query-status", |status| match status {
            "paused" => Some(Ok(())),
            "inmigrate" | "prelaunch" | "restore-vm" => None,
            other => Some(Err(format!("the VM is in state '{other}'"))),
        })
    }

    /// Repeats a query until `judge` decides on the field `status` of the answer.
    pub(crate) fn wait_for(
        &mut self,
        command: &str,
        judge: impl Fn(&str) -> Option<Result<(), String>>,
    ) -> anyhow::Result<()> {
        let end = Instant::now() + TIMEOUT;
        loop {
            let answer = self.execute(command, json!({}))?;
            match judge(answer["status"].as_str().unwrap_or_default()) {
                Some(Ok(())) => return Ok(()),
                Some(Err(why)) => bail!("{why}"),
                None => ensure!(Instant::now() < end, "QEMU did not finish '{command}' in time"),
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Returns whether the connection was used. Until then QEMU sends nothing but its greeting.
    pub(crate) fn is_open(&self) -> bool {
        self.is_open
    }

    /// Reads and discards QEMU's events, so that QEMU never waits for the supervisor. Does not
    /// block. Returns `false` when QEMU has closed the connection.
    pub(crate) fn drain(&mut self) -> bool {
        let mut some = [0; 4096];
        self.received.clear();
        loop {
            match rustix::net::recv(&self.socket, &mut some[..], RecvFlags::DONTWAIT) {
                Ok((0, _)) => return false,
                Ok(_) => {}
                Err(Errno::AGAIN | Errno::INTR) => return true,
                Err(_) => return false,
            }
        }
    }

    /// Reads the greeting and negotiates capabilities before the first command.
    fn open(&mut self) -> anyhow::Result<()> {
        if self.is_open {
            return Ok(());
        }
        while self.receive()?.greeting.is_none() {}
        self.is_open = true;
        self.call("qmp_capabilities", json!({}), None).map(drop)
    }

    fn call(
        &mut self,
        command: &str,
        arguments: Value,
        fd: Option<BorrowedFd<'_>>,
    ) -> anyhow::Result<Value> {
        let cannot = || format!("QEMU's monitor: '{command}'");
        let request = json!({ "execute": command, "arguments": arguments });
        self.send(format!("{request}\n").as_bytes(), fd).with_context(cannot)?;
        loop {
            let message = self.receive().with_context(cannot)?;
            if let Some(refusal) = message.error {
                bail!("QEMU refuses '{command}': {}", refusal.desc);
            }
            if let Some(answer) = message.answer {
                return Ok(answer);
            }
        }
    }

    fn send(&mut self, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> anyhow::Result<()> {
        let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&fds));
        }
        let count =
            sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
        ensure!(count == bytes.len(), "short write to the monitor");
        Ok(())
    }

    fn receive(&mut self) -> anyhow::Result<QmpMessage> {
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                return serde_json::from_slice(&line).context("invalid message from the monitor");
            }
            ensure!(
                self.received.len() <= MESSAGE_BYTES_MAX,
                "a message of the monitor is longer than {MESSAGE_BYTES_MAX} bytes"
            );
            let mut some = [0; 4096];
            let count = self.socket.read(&mut some)?;
            ensure!(count > 0, "the monitor closed the connection");
            self.received.extend_from_slice(&some[..count]);
        }
    }
}

impl std::os::fd::AsFd for QmpMonitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};

    #[test]
    fn an_answer_is_found_among_events_and_an_error_is_returned() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let qemu = std::thread::spawn(move || {
            let mut out = theirs.try_clone().unwrap();
            let mut lines = BufReader::new(theirs).lines();
            out.write_all(b"{\"QMP\": {}}\r\n").unwrap();
            let mut heard = Vec::new();
            for answer in [
                "{\"return\": {}}\n",
                "{\"event\": \"STOP\", \"data\": {}}\n{\"return\": {\"status\": \"running\"}}\n",
                "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\n",
            ] {
                heard.push(lines.next().unwrap().unwrap());
                out.write_all(answer.as_bytes()).unwrap();
            }
            heard
        });
        let mut monitor = QmpMonitor::new(ours).unwrap();
        monitor.wait_until_running().unwrap();
        let error = monitor.execute("cont", json!({})).unwrap_err();
        assert_eq!(error.to_string(), "QEMU refuses 'cont': no");
        let heard = qemu.join().unwrap();
        assert!(heard[0].contains("qmp_capabilities") && heard[1].contains("query-status"));
        assert!(monitor.execute("cont", json!({})).is_err());
    }
}
