//! Commands in the guest.
//!
//! The stream of a command: the client opens it with an [`ExecRequest`]; the agent answers [`ExecEvent::Started`] or
//! [`ExecEvent::Failed`] (last); bytes go on the channels of [`crate::frame`], each ended by a data frame with `END`;
//! [`ExecControl`] may come at any time; [`ExecEvent::Exited`] is last, after every byte of output.
//! When the client closes the stream, the command's process group is killed.

use serde::{Deserialize, Serialize};

use crate::text::Text;

/// Runs a command.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// The program, looked up in the `PATH` of its environment, and its arguments. Not empty, but for a login.
    pub argv: Vec<Text>,
    /// Variables (`NAME=value`) that override those of the sandbox.
    #[serde(default)]
    pub env: Vec<Text>,
    /// Directory to start in, in place of the sandbox's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<Text>,
    /// `USER|UID[:GROUP|GID]`, in place of the sandbox's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Text>,
    /// With a size: on a terminal of that size, and all output on the channel of standard output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tty: Option<WindowSize>,
    /// Modes of that terminal, by the numbers of RFC 4254, 8; what is not named is as it is on a new terminal. An agent from
    /// before them passes them over, and the command runs all the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tty_modes: Vec<(u8, u32)>,
    /// Whether standard input is a pipe from the client (or the terminal); else it is `/dev/null`.
    #[serde(default)]
    pub stdin: bool,
    /// Limits of the command's resources, in place of those that it would inherit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rlimits: Vec<Rlimit>,
    /// As a login does: the program is the user's shell (in `/etc/passwd`, else `/bin/sh`) in the user's home, with `USER`,
    /// `LOGNAME`, `HOME` and `SHELL` set. `argv` is empty for a login shell, or one line for `SHELL -c`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub login: bool,
    /// For the supervisor: what it prints goes to the sandbox's log too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub log: bool,
    /// For the supervisor: this is the sandbox's main command. When it ends, so does the sandbox.
    #[serde(default)]
    pub main: bool,
    /// For the supervisor: it goes on without the client, as a job; see [`crate::job`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub job: bool,
    /// For the supervisor, of a job: it is killed when it has run for so many milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// A limit as setrlimit(2) takes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// What is limited: the constant's name without `RLIMIT_`, in lower case.
    pub resource: String,
    /// The limit that counts; `None` for no limit.
    pub soft: Option<u64>,
    /// How far the command may raise it itself.
    pub hard: Option<u64>,
}

/// Names of resources that a limit may have.
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
    /// Height.
    pub rows: u16,
    /// Width.
    pub cols: u16,
}

/// What a client may ask of a running command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ExecControl {
    /// The client's terminal has a new size.
    Resize(WindowSize),
    /// Send a signal to the command's process group.
    Signal {
        /// Number of the signal on Linux.
        signal: i32,
    },
}

/// What the agent says of a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ExecEvent {
    /// The program runs.
    Started {
        /// Its process number in the guest.
        pid: u32,
    },
    /// Last: it ended by itself. Either `code` or `signal` is there.
    Exited {
        /// Exit status, 0 to 255.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        code: Option<i32>,
        /// The signal that killed it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signal: Option<i32>,
        /// The guest had run out of memory, and its kernel killed the command, or one that it waited for and whose end it
        /// passed on as 128 + 9.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        oom_killed: bool,
    },
    /// Last: it was never started.
    Failed {
        /// The sort of failure, which decides the exit code.
        kind: FailureKind,
        /// Why, for people.
        message: String,
    },
    /// The command has closed its standard input; what comes later is thrown away.
    StdinClosed,
}

impl ExecEvent {
    /// The exit code that shells and docker give to this end: the command's own, 128 + signal, or 125 to 127 when it
    /// was never started. `None` for events that are no end.
    pub fn exit_code(&self) -> Option<i32> {
        match self {
            ExecEvent::Exited {
                code: Some(code), ..
            } => Some(*code & 255),
            ExecEvent::Exited {
                signal: Some(signal),
                ..
            } => Some(128 + (*signal & 127)),
            ExecEvent::Exited { .. } => Some(125),
            ExecEvent::Failed { kind, .. } => Some(kind.exit_code()),
            ExecEvent::Started { .. } | ExecEvent::StdinClosed => None,
        }
    }
}

/// Why a command was not started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// There is no such program.
    NotFound,
    /// The program may not be executed.
    PermissionDenied,
    /// The file is no program (ENOEXEC, a directory, being written).
    NotExecutable,
    /// The working directory cannot be entered.
    BadCwd,
    /// Arguments that execve(2) does not take.
    BadArgs,
    /// No such user or group.
    UserNotFound,
    /// The guest is out of processes, files or memory.
    ResourceLimit,
    /// The agent does not serve this operation.
    UnsupportedOperation,
    /// The sandbox is paused (from the supervisor).
    Paused,
    /// Anything else, and kinds of later versions.
    #[serde(other)]
    Other,
}

impl FailureKind {
    /// 127 not found, 126 found but not executable, 125 we failed: the rule of docker, env(1) and timeout(1).
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
            ExecEvent::Exited {
                code,
                signal,
                oom_killed,
            }
            .exit_code()
        };
        assert_eq!(exited(Some(3), None), Some(3));
        assert_eq!(exited(None, Some(9)), Some(137));
        let failed = |kind| {
            ExecEvent::Failed {
                kind,
                message: String::new(),
            }
            .exit_code()
        };
        assert_eq!(failed(FailureKind::NotFound), Some(127));
        assert_eq!(failed(FailureKind::NotExecutable), Some(126));
        assert_eq!(failed(FailureKind::UserNotFound), Some(125));
        assert_eq!(ExecEvent::StdinClosed.exit_code(), None);
    }

    #[test]
    fn the_end_of_an_older_agents_command_is_not_one_for_lack_of_memory() {
        let end = ExecEvent::Exited {
            code: None,
            signal: Some(9),
            oom_killed: false,
        };
        let json = r#"{"type":"exited","signal":9}"#;
        assert_eq!(serde_json::from_str::<ExecEvent>(json).unwrap(), end);
        assert_eq!(serde_json::to_string(&end).unwrap(), json);
    }

    #[test]
    fn a_kind_of_failure_from_a_later_version_is_read_as_other() {
        let event: ExecEvent =
            serde_json::from_str(r#"{"type":"failed","kind":"solar_flare","message":"x"}"#)
                .unwrap();
        assert_eq!(
            event,
            ExecEvent::Failed {
                kind: FailureKind::Other,
                message: "x".into()
            }
        );
    }
}
