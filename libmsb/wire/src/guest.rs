//! Security settings of a guest, and its init.

use serde::{Deserialize, Serialize};

use crate::exec::Rlimit;
use crate::text::Text;

/// Directory of the sandbox's scripts in the guest. If there are any, it is the first directory of
/// `PATH`.
pub const SCRIPTS: &str = "/.msb/scripts";

/// Privileges of commands in the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Security {
    /// Root has all privileges: it mounts, loads modules, and `sudo` works.
    #[default]
    Default,
    /// No command gains privileges by executing a program (`no_new_privs`), none has
    /// `CAP_SYS_ADMIN`, and the user's mounts are `nosuid,nodev`.
    Restricted,
}

impl Security {
    /// Returns whether privileges are restricted.
    pub fn is_restricted(self) -> bool {
        self == Security::Restricted
    }

    /// Returns whether it is the default, which serde skips.
    pub fn is_default(&self) -> bool {
        *self == Security::Default
    }
}

/// Settings that older agents ignore. A setting that must not be ignored has an operation of its
/// own, which the supervisor requires ([`crate::handshake::operation::SECURITY`]).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestSettings {
    /// Privileges of commands.
    #[serde(default)]
    pub security: Security,
    /// True if [`SCRIPTS`] comes first in the `PATH` of commands.
    #[serde(default)]
    pub scripts: bool,
    /// Resource limits of commands and of the init. Those of a request take precedence.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rlimits: Vec<Rlimit>,
    /// Directories that exist before the first command. Missing ones are created.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub directories: Vec<Text>,
}

/// A request to run the image's init as the first process of the guest that commands see. Answered
/// by [`InitEvent`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitRequest {
    /// The program, an absolute path. Without it, the first of [`INIT_PATHS`] that exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<Text>,
    /// Its arguments, without its name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<Text>,
    /// Environment variables (`NAME=value`) in addition to those of every command.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<Text>,
}

/// Paths where an init is searched.
pub const INIT_PATHS: [&str; 3] =
    ["/sbin/init", "/lib/systemd/systemd", "/usr/lib/systemd/systemd"];

/// The result of the hand-over to an init.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum InitEvent {
    /// The init runs.
    Started {
        /// The program.
        path: Text,
    },
    /// There is none, or it could not be executed.
    Failed {
        /// The reason.
        message: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_an_older_supervisor_are_the_default() {
        let settings: GuestSettings = serde_json::from_str("{}").unwrap();
        assert_eq!(settings, GuestSettings::default());
        assert!(!settings.security.is_restricted());
    }

    #[test]
    fn a_security_of_a_later_version_is_not_taken_for_another() {
        assert!(serde_json::from_str::<GuestSettings>(r#"{"security":"paranoid"}"#).is_err());
    }
}
