//! The network policy: rules, of which the first match decides, and default actions.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::rule::{Action, Group, Rule, Target};
use crate::cli::error::Failure;
use crate::cli::escape::escape;

/// Limit of rules in a policy.
pub const RULES_MAX: usize = 1024;

/// Rules, and default actions for connections that no rule matches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Rules in order; numbered from 1.
    pub rules: Vec<Rule>,
    /// Default action for the guest's own connections.
    pub egress: Action,
    /// Default action for connections to published ports.
    pub ingress: Action,
}

impl Policy {
    /// Returns the default policy: allows the Internet, and connections to published ports.
    pub fn public() -> Policy {
        Policy::of(&[Profile::Public])
    }

    /// Returns a policy that denies all of the guest's connections and allows those to published
    /// ports.
    pub fn nothing() -> Policy {
        Policy { rules: Vec::new(), egress: Action::Deny, ingress: Action::Allow }
    }

    /// Returns a policy that allows the destinations of all profiles.
    pub fn of(profiles: &[Profile]) -> Policy {
        let mut policy = Policy::nothing();
        for profile in profiles {
            let group = match profile {
                Profile::Public => Group::Public,
                Profile::Private => Group::Private,
                Profile::Host => Group::Host,
                Profile::All => {
                    return Policy { egress: Action::Allow, ..Policy::nothing() };
                }
                Profile::None => return Policy::nothing(),
            };
            let rule = Rule::egress(Action::Allow, Target::Group(group));
            if !policy.rules.contains(&rule) {
                policy.rules.push(rule);
            }
        }
        policy
    }
}

/// Named sets of addresses, for `--net`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// The Internet.
    Public,
    /// The local network.
    Private,
    /// The host.
    Host,
    /// All addresses.
    All,
    /// No network interface.
    None,
}

impl FromStr for Profile {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Profile, Failure> {
        Ok(match text {
            "public" => Profile::Public,
            "private" => Profile::Private,
            "host" => Profile::Host,
            "all" => Profile::All,
            "none" => Profile::None,
            _ => {
                return Err(Failure::usage(format!("'{}' is not a network", escape(text)))
                    .hint("networks are public, private, host, all and none"));
            }
        })
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Profile::Public => "public",
            Profile::Private => "private",
            Profile::Host => "host",
            Profile::All => "all",
            Profile::None => "none",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_add_up() {
        let rules = |profiles: &[Profile]| {
            let policy = Policy::of(profiles);
            let rules: Vec<String> = policy.rules.iter().map(ToString::to_string).collect();
            (rules.join(","), policy.egress)
        };
        assert_eq!(rules(&[Profile::Public]), ("allow@public".into(), Action::Deny));
        assert_eq!(
            rules(&[Profile::Public, Profile::Host, Profile::Public]),
            ("allow@public,allow@host".into(), Action::Deny)
        );
        assert_eq!(rules(&[Profile::All]), (String::new(), Action::Allow));
        assert_eq!(rules(&[]), (String::new(), Action::Deny));
    }
}
