//! User names for login: users of the guest.

use libmsb::cli::error::Failure;
use libmsb::cli::escape::escape;
use msb_wire::text::Text;

/// User of commands when neither the image nor the configuration names one.
const ROOT: &str = "root";

/// Characters of a name besides letters and digits. None of them has a meaning in ssh_config(5),
/// into which names are written that may come from an image.
const MARKS: &[u8] = b"._-@+$";

/// Returns the login name of the sandbox's default user, given `user` of its spec
/// (`USER|UID[:GROUP|GID]`).
pub(crate) fn default_user(user: Option<&Text>) -> String {
    let text = user.map(Text::to_lossy).unwrap_or_default();
    match text.split(':').next() {
        Some(name) if !name.is_empty() => name.to_owned(),
        _ => ROOT.to_owned(),
    }
}

/// Returns the user to request from the guest for a login name. Returns `None` for the sandbox's
/// default user, so that the group of the spec applies too.
pub(crate) fn guest_user(name: &str, user: Option<&Text>) -> Option<Text> {
    let is_own = user.is_some() && default_user(user) == name;
    (!is_own).then(|| Text::from(name))
}

/// Checks that ssh(1) accepts a name as an argument.
pub(crate) fn checked_name(name: String) -> Result<String, Failure> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || MARKS.contains(&byte);
    if !name.is_empty() && !name.starts_with('-') && name.bytes().all(plain) {
        return Ok(name);
    }
    let message = format!("invalid user name '{}'", escape(&name));
    Err(Failure::failed(message).hint("log in as another user of the guest: --login root"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_user_keeps_its_group_and_others_are_named() {
        let own_of = |user: &str| default_user(Some(&Text::from(user)));
        assert_eq!((default_user(None), own_of("")), ("root".into(), "root".into()));
        assert_eq!((own_of("alice:wheel"), own_of(":wheel")), ("alice".into(), "root".into()));
        let alice = Text::from("alice:wheel");
        assert_eq!(guest_user("alice", Some(&alice)), None);
        assert_eq!(guest_user("root", Some(&alice)), Some("root".into()));
        assert_eq!(guest_user("root", None), Some("root".into()));
    }

    #[test]
    fn names_with_special_characters_are_rejected() {
        assert_eq!(checked_name("www-data".into()).unwrap(), "www-data");
        for name in ["", "-oX", "a b", "a\nProxyCommand evil", "a%h", "a\"b", "ä"] {
            assert!(checked_name(name.into()).is_err(), "{name:?}");
        }
    }
}
