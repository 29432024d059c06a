//! What a supervisor tells whoever started it: lines of JSON on a descriptor that the starter chose. The first comes when
//! it has what a machine needs, or cannot have it; the next when the guest is up or cannot come up; another one when the
//! sandbox ends badly after that.

use std::io::{self, BufRead};

use libmsb::cli::error::{hint, message};
use libmsb::jsonl;
use serde::{Deserialize, Serialize};

/// How the start went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Startup {
    /// The machine is about to be started, or is started in another way.
    Prepared {
        /// What people should know about that.
        note: Option<String>,
    },
    /// The guest takes commands.
    Ready(Stamps),
    /// It does not, and never will.
    Failed {
        /// Why.
        message: String,
        /// What can be done about it.
        hint: Option<String>,
    },
}

/// When a start reached its steps. On the host by CLOCK_MONOTONIC, in the guest since its kernel's start; nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamps {
    /// Host: the machine's process was started.
    pub(crate) machine_ns: u64,
    /// Host: the guest said that it takes commands.
    pub(crate) ready_ns: u64,
    /// Guest: the kernel started the agent.
    pub(crate) guest_agent_ns: u64,
    /// Guest: the agent was ready.
    pub(crate) guest_ready_ns: u64,
    /// Whether the guest started from memory: then its times count from its hello.
    #[serde(default)]
    pub(crate) from_memory: bool,
}

impl Startup {
    /// The report of an error.
    pub(crate) fn failed(error: &anyhow::Error) -> Startup {
        Startup::Failed {
            message: message(error),
            hint: hint(error).map(str::to_owned),
        }
    }

    /// Reads the next report; `None` when the supervisor is gone and there will be none.
    pub(crate) fn read(source: &mut impl BufRead) -> io::Result<Option<Startup>> {
        jsonl::read(source, 1)
    }
}

/// CLOCK_MONOTONIC, in nanoseconds.
pub(crate) fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
