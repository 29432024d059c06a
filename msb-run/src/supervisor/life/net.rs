//! The network's process and its log.

use std::io::{self, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::{Duration, Instant};

use libmsb::state::status::Reason;

use super::Life;
use crate::net::NetProcess;
use crate::supervisor::last_words;
use crate::supervisor::rotate::{Bounds, RotatedFile};

/// What is kept of what the network did.
const BOUNDS: Bounds = Bounds {
    file_bytes: 4 * 1024 * 1024,
    kept: 2,
};
/// Longest line: the events of `msb-net` are far below.
const LINE_BYTES_MAX: usize = 64 * 1024;
/// When the machine ends, so does its network; which of them was first is seen a moment later.
const MACHINE_PATIENCE: Duration = Duration::from_millis(200);

/// The log, and the begin of a line whose end has not come.
pub(super) struct NetLog {
    file: Option<RotatedFile>,
    begun: Vec<u8>,
}

impl NetLog {
    /// Opens the log, if there is a network.
    pub(super) fn open(path: &Path, is_wanted: bool) -> io::Result<NetLog> {
        Ok(NetLog {
            file: is_wanted
                .then(|| RotatedFile::open(path, BOUNDS))
                .transpose()?,
            begun: Vec::new(),
        })
    }

    /// Takes bytes; whole lines are written. A full disk must not stop the sandbox.
    fn take(&mut self, bytes: &[u8]) {
        self.begun.extend_from_slice(bytes);
        let Some(end) = self.begun.iter().rposition(|byte| *byte == b'\n') else {
            if self.begun.len() > LINE_BYTES_MAX {
                self.begun.clear();
            }
            return;
        };
        let rest = self.begun.split_off(end + 1);
        let lines = std::mem::replace(&mut self.begun, rest);
        let _ = self.file.as_mut().map(|file| file.append(&lines));
    }
}

impl Life {
    /// Moves what the network did to its log.
    pub(super) fn copy_net_events(&mut self) {
        let Some(net) = &mut self.machine.net else {
            return;
        };
        let mut bytes = [0; 16 * 1024];
        // The end of the pipe comes with that of the process, which is seen on its own.
        if let Ok(count) = net.events.read(&mut bytes) {
            self.net_log.take(&bytes[..count]);
        }
    }

    /// Whoever came through a published port has used the sandbox. The network counts for itself and wakes nobody, so it is
    /// looked at when it matters.
    pub(super) fn note_published_use(&mut self) {
        let net = self.machine.net.as_ref();
        if let Some(used_at) = net.and_then(NetProcess::published_use) {
            self.used_at = self.used_at.max(used_at);
        }
    }

    /// The network's process is gone. In order it goes only when the machine has closed its side.
    pub(super) fn net_ended(&mut self) {
        let Some(exit) = self
            .machine
            .net
            .as_mut()
            .and_then(|net| net.process.poll_exit())
        else {
            return;
        };
        self.copy_net_events();
        let deadline = Instant::now() + MACHINE_PATIENCE;
        while exit.success() && self.machine.poll_exit().is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        if self.machine.poll_exit().is_some() {
            self.machine.net = None;
            return;
        }
        let words = last_words(&self.setup.sandbox);
        let words = words.map(|words| format!(": {words}")).unwrap_or_default();
        let message = match (exit.signal(), exit.code()) {
            (Some(signal), _) => format!("the process of the network died of signal {signal}"),
            (None, Some(0)) => "the machine closed its network".to_owned(),
            (None, code) => format!(
                "the process of the network failed with status {}{words}",
                code.unwrap_or_default()
            ),
        };
        self.machine.net = None;
        self.finish(Reason::NetFailed, Some(message));
    }
}
