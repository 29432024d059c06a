//! Startup reports: the lines of JSON that a supervisor writes to the descriptor its starter chose.
//!
//! The first report comes when the supervisor has what the VM needs, or cannot get it. The next
//! comes when the guest is up or cannot come up. Another one comes if the sandbox later ends with
//! an error.

use std::fs::File;
use std::io::{self, BufRead};
use std::os::unix::net::UnixStream;

use libmsb::cli::error::{hint, message};
use libmsb::jsonl;
use serde::{Deserialize, Serialize};

/// Hint for a failure whose cause only the sandbox's logs can show.
pub(crate) const LOGS_HINT: &str = "see console.log and supervisor.log in the sandbox's directory";

/// A startup report: one step or the failure of a start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum StartupReport {
    /// The VM is about to be started, or is started in another way.
    Prepared {
        /// Note for the user about that.
        note: Option<String>,
    },
    /// The guest accepts commands.
    Ready(BootTimes),
    /// The guest does not accept commands, and never will.
    Failed {
        /// Reason of the failure.
        message: String,
        /// One action that may fix it.
        hint: Option<String>,
    },
}

/// Handles of the process that started the supervisor.
#[derive(Debug, Default)]
pub(crate) struct StartupHandles {
    /// The attached client. The sandbox ends with it.
    pub(crate) client: Option<UnixStream>,
    /// The keepalive pipe: the sandbox ends when its other end is closed.
    pub(crate) keepalive_pipe: Option<File>,
    /// Receives a [`StartupReport`] line when the guest is up or cannot come up, and another one
    /// after a bad end later.
    pub(crate) ready: Option<File>,
}

impl StartupHandles {
    /// Reports the progress of the start. There may be no reader.
    pub(crate) fn report(&mut self, startup: &StartupReport) {
        if let Some(ready) = &mut self.ready {
            let _ = jsonl::write(ready, startup);
        }
    }
}

/// Times at which a start reached its steps, in nanoseconds: on the host of CLOCK_MONOTONIC, in the
/// guest since the start of its kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BootTimes {
    /// Host: start of the VMM process.
    pub(crate) machine_ns: u64,
    /// Host: the agent reported that it accepts commands.
    pub(crate) ready_ns: u64,
    /// Guest: start of the agent by the kernel.
    pub(crate) guest_agent_ns: u64,
    /// Guest: the agent was ready.
    pub(crate) guest_ready_ns: u64,
    /// Set when the guest started from memory; its times then count from its hello message.
    #[serde(default)]
    pub(crate) from_memory: bool,
}

impl StartupReport {
    /// Builds the report of an error.
    pub(crate) fn failed(error: &anyhow::Error) -> StartupReport {
        StartupReport::Failed { message: message(error), hint: hint(error).map(str::to_owned) }
    }

    /// Reads the next report. Returns `None` when the supervisor has ended and no report will
    /// follow.
    pub(crate) fn read(source: &mut impl BufRead) -> io::Result<Option<StartupReport>> {
        jsonl::read(source, 1)
    }
}

/// Returns the time of CLOCK_MONOTONIC, in nanoseconds.
pub(crate) fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
