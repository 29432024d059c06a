//! What a guest may do, and what is its first process.

use serde::{Deserialize, Serialize};

use crate::text::Text;

/// Folder of the sandbox's scripts in the guest. When there are some, it is the first that programs are looked for in.
pub const SCRIPTS: &str = "/.msb/scripts";

/// What commands may do in their guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Security {
    /// Root is root: it mounts, loads modules, and `sudo` works.
    #[default]
    Default,
    /// No command gains privileges by executing a program (`no_new_privs`), none has `CAP_SYS_ADMIN`, and what is mounted
    /// for the user is mounted `nosuid,nodev`.
    Restricted,
}

impl Security {
    /// Whether something is taken away.
    pub fn is_restricted(self) -> bool {
        self == Security::Restricted
    }

    /// For serde: whether it need not be said.
    pub fn is_default(&self) -> bool {
        *self == Security::Default
    }
}

/// Settings of a guest that older agents do not know; what must not be passed over has an operation of its own, which
/// the supervisor asks for ([`crate::handshake::operation::SECURITY`]).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// What commands may do.
    #[serde(default)]
    pub security: Security,
    /// Whether [`SCRIPTS`] comes first in the `PATH` of commands.
    #[serde(default)]
    pub scripts: bool,
}

/// The image's own init: it becomes the first process of the guest as commands see it. Answered by [`InitEvent`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitRequest {
    /// The program, absolute; without it, the first of [`INIT_PATHS`] that is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<Text>,
    /// Its arguments, without its name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<Text>,
    /// Variables (`NAME=value`) beside those of every command.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<Text>,
}

/// Where an init is looked for.
pub const INIT_PATHS: [&str; 3] = [
    "/sbin/init",
    "/lib/systemd/systemd",
    "/usr/lib/systemd/systemd",
];

/// How the hand-over to an init went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum InitEvent {
    /// It runs.
    Started {
        /// The program.
        path: Text,
    },
    /// There is none, or it was not executed.
    Failed {
        /// Why.
        message: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_an_older_supervisor_are_the_default() {
        let settings: Settings = serde_json::from_str("{}").unwrap();
        assert_eq!(settings, Settings::default());
        assert!(!settings.security.is_restricted());
    }

    #[test]
    fn a_security_of_a_later_version_is_not_taken_for_another() {
        assert!(serde_json::from_str::<Settings>(r#"{"security":"paranoid"}"#).is_err());
    }
}
