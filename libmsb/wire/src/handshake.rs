//! The handshake: hello, the first frame of each side.
//!
//! It carries a range of versions, of which the highest common one is used, and the list of
//! operations that the sender serves. Operations are checked for each call: a peer that lacks one
//! refuses only that call.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Oldest supported version of the protocol.
pub const VERSION_MIN: u32 = 1;
/// Newest supported version of the protocol.
pub const VERSION_MAX: u32 = 1;

/// Names of operations, as in requests and in [`Hello::operations`].
pub mod operation {
    /// Supervisor: keep overwritten blocks of the upper disk; see [`crate::backup`].
    pub const BACKUP: &str = "backup";
    /// Set the guest up; see [`crate::boot`].
    pub const BOOT: &str = "boot";
    /// Guest: its memory can be saved now and restored with other disks, shares and another
    /// network. None of them has a driver before the boot request.
    pub const BOOT_MEMORY: &str = "boot.memory";
    /// Guest: use a root that is not an image: [`crate::boot::Root::Share`],
    /// [`crate::boot::Root::Disk`].
    pub const BOOT_ROOT: &str = "boot.root";
    /// Guest: limit the resources of all commands; see [`crate::guest::GuestSettings::rlimits`].
    pub const BOOT_RLIMIT: &str = "boot.rlimit";
    /// Guest: set the clock; see [`crate::sandbox`].
    pub const CLOCK: &str = "clock";
    /// Guest: connect to a TCP port; see [`crate::connect`].
    pub const CONNECT: &str = "connect";
    /// Run a command; see [`crate::exec`].
    pub const EXEC: &str = "exec";
    /// Supervisor: log the output of a command; see [`crate::exec::ExecRequest::log`].
    pub const EXEC_LOG: &str = "exec.log";
    /// Supervisor: keep the sandbox until a command ends; see [`crate::exec::ExecRequest::hold`].
    pub const EXEC_HOLD: &str = "exec.hold";
    /// Run a command as a login shell; see [`crate::exec::ExecRequest::login`].
    pub const EXEC_LOGIN: &str = "exec.login";
    /// Limit a command's resources; see [`crate::exec::ExecRequest::rlimits`].
    pub const EXEC_RLIMIT: &str = "exec.rlimit";
    /// Supervisor: stop the sandbox when its commands have ended; see [`crate::sandbox`].
    pub const DRAIN: &str = "drain";
    /// Supervisor: run commands without a client, signal them and attach to them; see
    /// [`crate::job`].
    pub const JOBS: &str = "jobs";
    /// Supervisor: make a command of a client a job; see [`crate::job::DetachControl`].
    pub const JOBS_DETACH: &str = "jobs.detach";
    /// Copy files; see [`crate::file`].
    pub const FILES: &str = "files";
    /// Supervisor: change the network of a running sandbox; see [`crate::network`].
    pub const NETWORK: &str = "network";
    /// Guest: set up a network; see [`crate::boot::BootNet`].
    pub const NET: &str = "net";
    /// Create directories and remove files; see [`crate::file::Direction`].
    pub const FILES_CHANGE: &str = "files.change";
    /// Append to files, and the fields `exclusive` and `mode`; see [`crate::file::FilesRequest`].
    pub const FILES_PATCH: &str = "files.patch";
    /// Guest: freeze the upper file system; see [`crate::freeze`].
    pub const FREEZE: &str = "freeze";
    /// Guest: hand over to the image's init; see [`crate::guest`].
    pub const INIT: &str = "init";
    /// Guest: forward the SSH agent of a client to a socket; see [`crate::key_agent`].
    pub const KEY_AGENT: &str = "key_agent";
    /// Supervisor: save the memory of the guest; see [`crate::memory`].
    pub const MEMORY: &str = "memory";
    /// Guest: mount the mounts of the boot request; see [`crate::mount`].
    pub const MOUNTS: &str = "mounts";
    /// Supervisor: pause the guest's processors; see [`crate::sandbox`].
    pub const PAUSE: &str = "pause";
    /// Guest: wait for the host, so that the memory can be saved; see [`crate::memory`].
    pub const QUIESCE: &str = "quiesce";
    /// Supervisor: resume the processors of a paused guest; see [`crate::sandbox`].
    pub const RESUME: &str = "resume";
    /// Guest: answer at once, as a sign of life; see [`crate::sandbox`].
    pub const PING: &str = "ping";
    /// Send samples of the guest's resource use at an interval; see [`crate::samples`].
    pub const SAMPLES: &str = "samples";
    /// Guest: restrict the privileges of commands; see [`crate::guest::Security`].
    pub const SECURITY: &str = "security";
    /// Supervisor: report the end of the sandbox; see [`crate::sandbox`].
    pub const WAIT: &str = "wait";
    /// Guest: serve files by SFTP; see [`crate::sftp`].
    pub const SFTP: &str = "sftp";
    /// Guest: end all processes, flush, power off.
    pub const SHUTDOWN: &str = "shutdown";
    /// Guest: trust certificate authorities; see [`crate::boot::BootTrust`].
    pub const TRUST: &str = "trust";
    /// Supervisor: stop the sandbox; see [`crate::sandbox`].
    pub const STOP: &str = "stop";
}

/// Hello: the first frame of each side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Oldest version that the sender supports.
    pub version_min: u32,
    /// Newest version that the sender supports.
    pub version_max: u32,
    /// Program and release of the sender, for messages: `msb-agent 0.1.0`.
    pub program: String,
    /// Operations that the sender serves; empty from a client.
    #[serde(default)]
    pub operations: Vec<String>,
    /// From the agent: time from the kernel's start to that of the agent, in nanoseconds
    /// (CLOCK_BOOTTIME).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_start_ns: Option<u64>,
    /// From an agent that serves [`operation::BOOT_MEMORY`]: time from the kernel's start to this
    /// hello, in nanoseconds (CLOCK_BOOTTIME).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hello_ns: Option<u64>,
}

impl Hello {
    /// Returns the hello of this build.
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

    /// Returns the version to use with this peer.
    pub fn negotiate(&self) -> Result<u32, VersionMismatch> {
        let version = self.version_max.min(VERSION_MAX);
        if version < self.version_min.max(VERSION_MIN) {
            return Err(VersionMismatch { peer: self.clone() });
        }
        Ok(version)
    }

    /// Checks that the peer serves an operation.
    pub fn require(&self, operation: &str) -> Result<(), UnsupportedOperation> {
        if self.operations.iter().any(|name| name == operation) {
            return Ok(());
        }
        Err(UnsupportedOperation { operation: operation.to_owned(), peer: self.program.clone() })
    }
}

/// An error: the two sides have no common version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionMismatch {
    /// The peer's hello.
    pub peer: Hello,
}

impl fmt::Display for VersionMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Hello { program, version_min, version_max, .. } = &self.peer;
        write!(
            f,
            "{program:?} supports versions {version_min} to {version_max} of the protocol, \
             this program {VERSION_MIN} to {VERSION_MAX}"
        )
    }
}

impl std::error::Error for VersionMismatch {}

/// An error: the peer does not serve an operation. Only the call fails; the connection continues.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnsupportedOperation {
    /// The operation.
    pub operation: String,
    /// The program that lacks it.
    pub peer: String,
}

impl fmt::Display for UnsupportedOperation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} does not know the operation '{}'", self.peer, self.operation)
    }
}

impl std::error::Error for UnsupportedOperation {}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(version_min: u32, version_max: u32) -> Hello {
        Hello { version_min, version_max, ..Hello::of("peer 9", &[operation::EXEC]) }
    }

    #[test]
    fn the_highest_common_version_is_spoken() {
        assert_eq!(peer(VERSION_MIN, VERSION_MAX + 5).negotiate(), Ok(VERSION_MAX));
        assert!(peer(VERSION_MAX + 1, VERSION_MAX + 2).negotiate().is_err());
        assert!(peer(0, VERSION_MIN - 1).negotiate().is_err());
    }

    #[test]
    fn a_missing_operation_fails_by_name() {
        assert_eq!(peer(1, 1).require(operation::EXEC), Ok(()));
        let error = peer(1, 1).require("copy").unwrap_err();
        assert_eq!(error.to_string(), "\"peer 9\" does not know the operation 'copy'");
    }
}
