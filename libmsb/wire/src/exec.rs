//! Commands in the guest.
//!
//! The client opens a stream with an [`ExecRequest`]. The agent answers [`ExecEvent::Started`] or
//! [`ExecEvent::Failed`] (last). Bytes go on the channels of [`crate::frame`]; a data frame with
//! `END` ends each. [`ExecControl`] may be sent at any time. [`ExecEvent::Exited`] is last, after
//! every byte of output. If the client closes the stream, the agent kills the command's process
//! group.

use serde::{Deserialize, Serialize};

use crate::text::Text;

/// A request to run a command.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// The program, looked up in the `PATH` of the command's environment, and its arguments. Empty
    /// only for a login shell.
    pub argv: Vec<Text>,
    /// Environment variables (`NAME=value`) that override those of the sandbox.
    #[serde(default)]
    pub env: Vec<Text>,
    /// Working directory, instead of the sandbox's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<Text>,
    /// User `USER|UID[:GROUP|GID]`, instead of the sandbox's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Text>,
    /// Size of a pseudo-terminal to run on. All output then uses the channel of standard output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tty: Option<WindowSize>,
    /// Terminal modes, by the numbers of RFC 4254, section 8. Other modes keep the defaults of a
    /// new terminal. An older agent ignores them and runs the command.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tty_modes: Vec<(u8, u32)>,
    /// True if standard input is a pipe from the client (or the terminal); else it is `/dev/null`.
    #[serde(default)]
    pub stdin: bool,
    /// Resource limits of the command, instead of those that it would inherit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rlimits: Vec<Rlimit>,
    /// True for a login: the program is the user's shell (from `/etc/passwd`, else `/bin/sh`) in
    /// the user's home, with `USER`, `LOGNAME`, `HOME` and `SHELL` set. `argv` is empty for a login
    /// shell, or one line for `SHELL -c`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub login: bool,
    /// For the supervisor: true if the output is written to the sandbox's log too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub log: bool,
    /// For the supervisor: true for the sandbox's main command. When it ends, the sandbox ends.
    #[serde(default)]
    pub main: bool,
    /// For the supervisor: true if the sandbox does not end with its main command before this
    /// command has ended. The supervisor closes the connection after the command's end, or with the
    /// sandbox if that ends too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hold: bool,
    /// For the supervisor: true if the command continues without the client, as a job; see
    /// [`crate::job`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub job: bool,
    /// For the supervisor, of a job: time after which it is killed, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// A resource limit, as for setrlimit(2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// The resource: the constant's name without `RLIMIT_`, in lower case.
    pub resource: String,
    /// Soft limit, which is enforced; `None` for no limit.
    pub soft: Option<u64>,
    /// Hard limit: the value to which the command may raise the soft limit.
    pub hard: Option<u64>,
}

/// Names of resources that can be limited.
pub const RESOURCES: [&str; 16] = [
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// Size of a terminal, in character cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Number of rows.
    pub rows: u16,
    /// Number of columns.
    pub cols: u16,
}

/// A control message of a client to a running command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ExecControl {
    /// New size of the client's terminal.
    Resize(WindowSize),
    /// Sends a signal to the command's process group.
    Signal {
        /// Signal number on Linux.
        signal: i32,
    },
}

/// An event of a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ExecEvent {
    /// The program was started.
    Started {
        /// Process ID in the guest.
        pid: u32,
    },
    /// Last: the command ended. Either `code` or `signal` is present.
    Exited {
        /// Exit status, 0 to 255.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        code: Option<i32>,
        /// The signal that killed it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signal: Option<i32>,
        /// True if the guest ran out of memory and its kernel killed the command, or killed a child
        /// whose end the command reported as 128 + 9.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        oom_killed: bool,
    },
    /// Last: the command was never started.
    Failed {
        /// The kind of failure, which decides the exit code.
        kind: FailureKind,
        /// The reason, for people.
        message: String,
    },
    /// The command has closed its standard input; later input is discarded.
    StdinClosed,
}

impl ExecEvent {
    /// Returns the exit code as shells and docker define it: the command's own, 128 + signal, or
    /// 125 to 127 if it was never started. `None` for events that are not the last.
    pub fn exit_code(&self) -> Option<i32> {
        match self {
            ExecEvent::Exited { code: Some(code), .. } => Some(*code & 255),
            ExecEvent::Exited { signal: Some(signal), .. } => Some(128 + (*signal & 127)),
            ExecEvent::Exited { .. } => Some(125),
            ExecEvent::Failed { kind, .. } => Some(kind.exit_code()),
            ExecEvent::Started { .. } | ExecEvent::StdinClosed => None,
        }
    }
}

/// The reason why a command was not started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// There is no such program.
    NotFound,
    /// The program may not be executed.
    PermissionDenied,
    /// The file is not executable (ENOEXEC, a directory, open for writing).
    NotExecutable,
    /// The working directory cannot be entered.
    BadCwd,
    /// execve(2) does not accept the arguments.
    BadArgs,
    /// There is no such user or group.
    UserNotFound,
    /// The guest is out of processes, files or memory.
    ResourceLimit,
    /// The agent does not serve the operation.
    UnsupportedOperation,
    /// The sandbox is paused (from the supervisor).
    Paused,
    /// Any other reason, and reasons of later versions.
    #[serde(other)]
    Other,
}

impl FailureKind {
    /// Returns the exit code: 127 not found, 126 found but not executable, 125 any other failure.
    /// The rule of docker, env(1) and timeout(1).
    pub fn exit_code(self) -> i32 {
        match self {
            FailureKind::NotFound => 127,
            FailureKind::PermissionDenied | FailureKind::NotExecutable => 126,
            _ => 125,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_map_to_the_exit_codes_of_a_shell() {
        let exited = |code, signal| {
            let oom_killed = false;
            ExecEvent::Exited { code, signal, oom_killed }.exit_code()
        };
        assert_eq!(exited(Some(3), None), Some(3));
        assert_eq!(exited(None, Some(9)), Some(137));
        let failed = |kind| ExecEvent::Failed { kind, message: String::new() }.exit_code();
        assert_eq!(failed(FailureKind::NotFound), Some(127));
        assert_eq!(failed(FailureKind::NotExecutable), Some(126));
        assert_eq!(failed(FailureKind::UserNotFound), Some(125));
        assert_eq!(ExecEvent::StdinClosed.exit_code(), None);
    }

    #[test]
    fn the_end_of_an_older_agents_command_is_not_one_for_lack_of_memory() {
        let end = ExecEvent::Exited { code: None, signal: Some(9), oom_killed: false };
        let json = r#"{"type":"exited","signal":9}"#;
        assert_eq!(serde_json::from_str::<ExecEvent>(json).unwrap(), end);
        assert_eq!(serde_json::to_string(&end).unwrap(), json);
    }

    #[test]
    fn a_kind_of_failure_from_a_later_version_is_read_as_other() {
        let event: ExecEvent =
            serde_json::from_str(r#"{"type":"failed","kind":"solar_flare","message":"x"}"#)
                .unwrap();
        assert_eq!(event, ExecEvent::Failed { kind: FailureKind::Other, message: "x".into() });
    }
}
