//! What a guest may reach, and who may reach it: rules, the first that speaks of a connection counts, and what holds
//! where none does.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::rule::{Action, Group, Rule, Target};
use crate::cli::error::Failure;
use crate::cli::escape::escape;

/// Most rules of one policy.
pub const RULES_MAX: usize = 1024;

/// Rules, and what holds where none speaks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// In order; numbered from 1.
    pub rules: Vec<Rule>,
    /// What becomes of the guest's own connections that no rule speaks of.
    pub egress: Action,
    /// What becomes of connections to published ports that no rule speaks of.
    pub ingress: Action,
}

impl Policy {
    /// The default: the Internet, and published ports.
    pub fn public() -> Policy {
        Policy::of(&[Profile::Public])
    }

    /// Nothing goes out, and published ports are open.
    pub fn nothing() -> Policy {
        Policy {
            rules: Vec::new(),
            egress: Action::Deny,
            ingress: Action::Allow,
        }
    }

    /// What profiles let the guest do, together.
    pub fn of(profiles: &[Profile]) -> Policy {
        let mut policy = Policy::nothing();
        for profile in profiles {
            let group = match profile {
                Profile::Public => Group::Public,
                Profile::Private => Group::Private,
                Profile::Host => Group::Host,
                Profile::All => {
                    return Policy {
                        egress: Action::Allow,
                        ..Policy::nothing()
                    };
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

/// Sets of addresses by name, for `--net`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// The Internet.
    Public,
    /// The local network.
    Private,
    /// The host.
    Host,
    /// Everything.
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
                return Err(
                    Failure::usage(format!("'{}' is not a network", escape(text)))
                        .hint("networks are public, private, host, all and none"),
                );
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
        assert_eq!(
            rules(&[Profile::Public]),
            ("allow@public".into(), Action::Deny)
        );
        assert_eq!(
            rules(&[Profile::Public, Profile::Host, Profile::Public]),
            ("allow@public,allow@host".into(), Action::Deny)
        );
        assert_eq!(rules(&[Profile::All]), (String::new(), Action::Allow));
        assert_eq!(rules(&[]), (String::new(), Action::Deny));
    }
}
