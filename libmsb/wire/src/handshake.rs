//! Hello: the first frame of each side.
//!
//! It carries a range of versions, of which the highest common one is spoken, and the list of operations that the
//! sender serves. Operations decide call by call: a peer that lacks one refuses that call alone.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The oldest version of the protocol that this code speaks.
pub const VERSION_MIN: u32 = 1;
/// The newest version of the protocol that this code speaks.
pub const VERSION_MAX: u32 = 1;

/// Names of operations, as they stand in requests and in [`Hello::operations`].
pub mod operation {
    /// Set the guest up; see [`crate::boot`].
    pub const BOOT: &str = "boot";
    /// Guest: its memory can be kept now and started again with other disks, shares and another network: none of them has a
    /// driver until the boot request.
    pub const BOOT_MEMORY: &str = "boot.memory";
    /// Guest: have a root that is no image: [`crate::boot::Root::Share`], [`crate::boot::Root::Disk`].
    pub const BOOT_ROOT: &str = "boot.root";
    /// Guest: set the clock; see [`crate::sandbox`].
    pub const CLOCK: &str = "clock";
    /// Guest: connect to a TCP port; see [`crate::connect`].
    pub const CONNECT: &str = "connect";
    /// Run a command; see [`crate::exec`].
    pub const EXEC: &str = "exec";
    /// Supervisor: log what a command prints; see [`crate::exec::ExecRequest::log`].
    pub const EXEC_LOG: &str = "exec.log";
    /// Run a command as a login does; see [`crate::exec::ExecRequest::login`].
    pub const EXEC_LOGIN: &str = "exec.login";
    /// Limit a command's resources; see [`crate::exec::ExecRequest::rlimits`].
    pub const EXEC_RLIMIT: &str = "exec.rlimit";
    /// Supervisor: commands that go on without a client, signals to them, and being attached; see [`crate::job`].
    pub const JOBS: &str = "jobs";
    /// Copy files; see [`crate::file`].
    pub const FILES: &str = "files";
    /// Supervisor: change the network of a sandbox that runs; see [`crate::network`].
    pub const NETWORK: &str = "network";
    /// Guest: have a network; see [`crate::boot::BootNet`].
    pub const NET: &str = "net";
    /// Make folders and remove what is there; see [`crate::file::Direction`].
    pub const FILES_CHANGE: &str = "files.change";
    /// Guest: hand over to the image's init; see [`crate::guest`].
    pub const INIT: &str = "init";
    /// Guest: have a socket for the SSH agent of a client; see [`crate::key_agent`].
    pub const KEY_AGENT: &str = "key_agent";
    /// Guest: mount what the boot request asks for; see [`crate::mount`].
    pub const MOUNTS: &str = "mounts";
    /// Supervisor: stop the guest's processors; see [`crate::sandbox`].
    pub const PAUSE: &str = "pause";
    /// Supervisor: let the processors of a paused guest run again; see [`crate::sandbox`].
    pub const RESUME: &str = "resume";
    /// Guest: answer, to show that it is alive; see [`crate::sandbox`].
    pub const PING: &str = "ping";
    /// Say again and again what the guest costs; see [`crate::samples`].
    pub const SAMPLES: &str = "samples";
    /// Guest: take rights away from commands; see [`crate::guest::Security`].
    pub const SECURITY: &str = "security";
    /// Supervisor: say how the sandbox ended, when it has; see [`crate::sandbox`].
    pub const WAIT: &str = "wait";
    /// Guest: serve files by the SSH file transfer protocol; see [`crate::sftp`].
    pub const SFTP: &str = "sftp";
    /// Guest: end all processes, flush, power off.
    pub const SHUTDOWN: &str = "shutdown";
    /// Supervisor: stop the sandbox; see [`crate::sandbox`].
    pub const STOP: &str = "stop";
}

/// The first frame of each side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Oldest version that the sender speaks.
    pub version_min: u32,
    /// Newest version that the sender speaks.
    pub version_max: u32,
    /// Program and release of the sender, for messages: `msb-agent 0.1.0`.
    pub program: String,
    /// Operations that the sender serves; empty from a client.
    #[serde(default)]
    pub operations: Vec<String>,
    /// From the agent: nanoseconds from the kernel's start to that of the agent (CLOCK_BOOTTIME).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_start_ns: Option<u64>,
    /// From an agent that serves [`operation::BOOT_MEMORY`]: nanoseconds from the kernel's start to this hello
    /// (CLOCK_BOOTTIME).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hello_ns: Option<u64>,
}

impl Hello {
    /// What this build says of itself.
    pub fn of(program: &str, operations: &[&str]) -> Hello {
        Hello {
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            program: program.to_owned(),
            operations: operations.iter().map(|name| (*name).to_owned()).collect(),
            agent_start_ns: None,
            hello_ns: None,
        }
    }

    /// The version to speak with this peer, or why there is none.
    pub fn agree(&self) -> Result<u32, VersionMismatch> {
        let version = self.version_max.min(VERSION_MAX);
        if version < self.version_min.max(VERSION_MIN) {
            return Err(VersionMismatch { peer: self.clone() });
        }
        Ok(version)
    }

    /// Whether the peer serves an operation; if not, the error for that call.
    pub fn require(&self, operation: &str) -> Result<(), UnsupportedOperation> {
        if self.operations.iter().any(|name| name == operation) {
            return Ok(());
        }
        Err(UnsupportedOperation {
            operation: operation.to_owned(),
            peer: self.program.clone(),
        })
    }
}

/// No version is spoken by both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionMismatch {
    /// What the other side said.
    pub peer: Hello,
}

impl fmt::Display for VersionMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Hello {
            program,
            version_min,
            version_max,
            ..
        } = &self.peer;
        write!(
            f,
            "{program:?} speaks versions {version_min} to {version_max} of the protocol, this program {VERSION_MIN} to {VERSION_MAX}"
        )
    }
}

impl std::error::Error for VersionMismatch {}

/// The peer does not serve an operation. The call fails alone; the connection goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnsupportedOperation {
    /// The operation that was asked for.
    pub operation: String,
    /// The program that lacks it.
    pub peer: String,
}

impl fmt::Display for UnsupportedOperation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} does not know the operation '{}'",
            self.peer, self.operation
        )
    }
}

impl std::error::Error for UnsupportedOperation {}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(version_min: u32, version_max: u32) -> Hello {
        Hello {
            version_min,
            version_max,
            ..Hello::of("peer 9", &[operation::EXEC])
        }
    }

    #[test]
    fn the_highest_common_version_is_spoken() {
        assert_eq!(peer(VERSION_MIN, VERSION_MAX + 5).agree(), Ok(VERSION_MAX));
        assert!(peer(VERSION_MAX + 1, VERSION_MAX + 2).agree().is_err());
        assert!(peer(0, VERSION_MIN - 1).agree().is_err());
    }

    #[test]
    fn a_missing_operation_fails_by_name() {
        assert_eq!(peer(1, 1).require(operation::EXEC), Ok(()));
        let error = peer(1, 1).require("copy").unwrap_err();
        assert_eq!(
            error.to_string(),
            "\"peer 9\" does not know the operation 'copy'"
        );
    }
}
