//! The network of a running sandbox: its log, and changes that its process has not answered yet.
//!
//! For a change, the supervisor binds new ports and sends the whole change to `msb-net`, which
//! accepts or rejects it as a whole. After it has accepted, the supervisor adopts the change and
//! answers the client, which writes the configuration.

use std::io::{self, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;

use libmsb::cli::error::{Failure, hint, message};
use libmsb::net::NetSpec;
use msb_wire::network::{NetworkEvent, NetworkRequest};

use super::relay::ClientStream;
use crate::intercept::InterceptProcess;
use crate::net::{NetProcess, SandboxNetwork};
use crate::process::log_rotation::{RotatedLog, RotationLimits};

/// Rotation of the network's log.
const ROTATION: RotationLimits = RotationLimits { file_bytes: 4 * 1024 * 1024, kept: 2 };
/// Maximum length of a line. The events of `msb-net` are far shorter.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// The log of the network and the change that is in progress.
pub(crate) struct NetworkControl {
    /// None without a network.
    log: Option<RotatedLog>,
    /// A line of the log that is not complete yet.
    partial_line: Vec<u8>,
    /// The same of the process that intercepts TLS.
    partial_intercept_line: Vec<u8>,
    update: Option<NetworkUpdate>,
}

/// A change that `msb-net` has not answered yet.
struct NetworkUpdate {
    requester: ClientStream,
    net: SandboxNetwork,
}

/// The answer to a change.
pub(crate) struct NetworkAnswer {
    pub(crate) requester: ClientStream,
    /// The network to adopt, if the change was accepted.
    pub(crate) adopted: Option<SandboxNetwork>,
    pub(crate) event: NetworkEvent,
}

impl NetworkControl {
    /// Opens the log, if there is a network.
    pub(crate) fn open(path: &Path, has_network: bool) -> io::Result<NetworkControl> {
        Ok(NetworkControl {
            log: has_network.then(|| RotatedLog::open(path, ROTATION)).transpose()?,
            partial_line: Vec::new(),
            partial_intercept_line: Vec::new(),
            update: None,
        })
    }

    /// Copies the events of the network to its log.
    pub(crate) fn copy_events(&mut self, process: &mut NetProcess) {
        let mut bytes = [0; 16 * 1024];
        // End of file comes with the end of the process, which is an event of its own.
        if let Ok(count) = process.events.read(&mut bytes) {
            let lines = complete_lines(&mut self.partial_line, &bytes[..count]);
            self.append(&lines);
        }
    }

    /// Copies the events of the process that intercepts TLS to the same log.
    pub(crate) fn copy_intercept_events(&mut self, process: &mut InterceptProcess) {
        let mut bytes = [0; 16 * 1024];
        if let Ok(count) = process.events.read(&mut bytes) {
            let lines = complete_lines(&mut self.partial_intercept_line, &bytes[..count]);
            self.append(&lines);
        }
    }

    /// Writes lines to the log. A full disk must not stop the sandbox.
    fn append(&mut self, lines: &[u8]) {
        let _ = self.log.as_mut().filter(|_| !lines.is_empty()).map(|log| log.append(lines));
    }

    /// Changes the network for a client. Returns the answer, unless `msb-net` gives it later.
    /// Before
    /// `msb-net` runs, the change takes effect at once.
    pub(crate) fn change(
        &mut self,
        requester: ClientStream,
        request: NetworkRequest,
        current: Option<&SandboxNetwork>,
        process: Option<&NetProcess>,
    ) -> Option<NetworkAnswer> {
        match self.send_change(request, current, process) {
            Ok((net, true)) => {
                self.update = Some(NetworkUpdate { requester, net });
                None
            }
            Ok((net, false)) => {
                let event = NetworkEvent::Changed;
                Some(NetworkAnswer { requester, adopted: Some(net), event })
            }
            Err(error) => {
                let hint = hint(&error).map(str::to_owned);
                let event = NetworkEvent::Failed { message: message(&error), hint };
                Some(NetworkAnswer { requester, adopted: None, event })
            }
        }
    }

    /// Returns the network that a change leads to, and whether `msb-net` was asked.
    fn send_change(
        &self,
        request: NetworkRequest,
        current: Option<&SandboxNetwork>,
        process: Option<&NetProcess>,
    ) -> anyhow::Result<(SandboxNetwork, bool)> {
        let Some(current) = current else {
            return Err(Failure::wrong_state("the sandbox has no network").into());
        };
        if self.update.is_some() {
            return Err(Failure::wrong_state("its network is already being changed").into());
        }
        let spec: NetSpec = serde_json::from_value(request.net)?;
        let (net, new_ports) = current.with_changes(spec, request.nameservers, request.own)?;
        let Some(process) = process else {
            return Ok((net, false));
        };
        net.send_settings(process, &new_ports)?;
        Ok((net, true))
    }

    /// Reads an answer of `msb-net`.
    pub(crate) fn read_answer(&mut self, process: &NetProcess) -> Option<NetworkAnswer> {
        let answer = process.answer()?;
        let NetworkUpdate { requester, net } = self.update.take()?;
        let (adopted, event) = match answer.error {
            None => (Some(net), NetworkEvent::Changed),
            Some(error) => (None, NetworkEvent::Failed { message: error, hint: None }),
        };
        Some(NetworkAnswer { requester, adopted, event })
    }
}

/// Adds bytes to an incomplete line. Returns the lines that are complete.
fn complete_lines(partial: &mut Vec<u8>, bytes: &[u8]) -> Vec<u8> {
    partial.extend_from_slice(bytes);
    let Some(end) = partial.iter().rposition(|byte| *byte == b'\n') else {
        if partial.len() > LINE_BYTES_MAX {
            partial.clear();
        }
        return Vec::new();
    };
    let rest = partial.split_off(end + 1);
    std::mem::replace(partial, rest)
}

/// Describes the exit of the network's process. `words` is the last line of the logs.
pub(crate) fn describe_exit(exit: ExitStatus, words: Option<String>) -> String {
    match (exit.signal(), exit.code()) {
        (Some(signal), _) => format!("the network process was killed by signal {signal}"),
        (None, Some(0)) => "the virtual machine closed its network".to_owned(),
        (None, code) => format!(
            "the network process failed with status {}{}",
            code.unwrap_or_default(),
            words.map(|words| format!(": {words}")).unwrap_or_default()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_complete_lines_reach_the_log() {
        let mut partial = Vec::new();
        assert_eq!(complete_lines(&mut partial, b"one\ntw"), b"one\n");
        assert_eq!(complete_lines(&mut partial, b"o\n"), b"two\n");
        assert_eq!(complete_lines(&mut partial, &vec![b'x'; LINE_BYTES_MAX + 1]), b"");
        assert_eq!(complete_lines(&mut partial, b"three\n"), b"three\n");
    }

    #[test]
    fn an_exit_is_described_by_its_signal_or_status() {
        let words = || Some("words".to_owned());
        let describe = |raw| describe_exit(ExitStatus::from_raw(raw), words());
        assert_eq!(describe(9), "the network process was killed by signal 9");
        assert_eq!(describe(0), "the virtual machine closed its network");
        assert_eq!(describe(1 << 8), "the network process failed with status 1: words");
    }

    #[test]
    fn a_sandbox_without_a_network_refuses_a_change() {
        let directory = tempfile::tempdir().unwrap();
        let mut network = NetworkControl::open(&directory.path().join("net.log"), false).unwrap();
        let request =
            NetworkRequest { net: serde_json::json!({}), nameservers: Vec::new(), own: Vec::new() };
        let answer = network.change((1, 1), request, None, None).unwrap();
        assert!(answer.adopted.is_none());
        assert_eq!(
            answer.event,
            NetworkEvent::Failed { message: "the sandbox has no network".to_owned(), hint: None }
        );
    }
}
