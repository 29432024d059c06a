//! Names to log in with: users of the guest.

use libmsb::cli::error::Failure;
use libmsb::cli::escape::escape;
use msb_wire::text::Text;

/// Who commands run as when neither the image nor anybody else says.
const ROOT: &str = "root";

/// Letters of a name besides letters and digits. None that means something in a file of ssh_config(5), where names are
/// written that an image may have chosen.
const MARKS: &[u8] = b"._-@+$";

/// The name for the sandbox's own user, given `user` of its spec (`USER|UID[:GROUP|GID]`).
pub(crate) fn own(user: Option<&Text>) -> String {
    let text = user.map(Text::to_lossy).unwrap_or_default();
    match text.split(':').next() {
        Some(name) if !name.is_empty() => name.to_owned(),
        _ => ROOT.to_owned(),
    }
}

/// What to ask the guest for when somebody logs in with this name: nothing for the sandbox's own user, who then has the
/// group of the spec as well.
pub(crate) fn in_guest(name: &str, user: Option<&Text>) -> Option<Text> {
    let is_own = user.is_some() && own(user) == name;
    (!is_own).then(|| Text::from(name))
}

/// A name that ssh(1) can be given.
pub(crate) fn checked(name: String) -> Result<String, Failure> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || MARKS.contains(&byte);
    if !name.is_empty() && !name.starts_with('-') && name.bytes().all(plain) {
        return Ok(name);
    }
    let message = format!("nobody can log in with the name '{}'", escape(&name));
    Err(Failure::failed(message).hint("name another user of the guest: --login root"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sandboxs_own_user_keeps_its_group_and_others_are_named() {
        let own_of = |user: &str| own(Some(&Text::from(user)));
        assert_eq!((own(None), own_of("")), ("root".into(), "root".into()));
        assert_eq!(
            (own_of("alice:wheel"), own_of(":wheel")),
            ("alice".into(), "root".into())
        );
        let alice = Text::from("alice:wheel");
        assert_eq!(in_guest("alice", Some(&alice)), None);
        assert_eq!(in_guest("root", Some(&alice)), Some("root".into()));
        assert_eq!(in_guest("root", None), Some("root".into()));
    }

    #[test]
    fn a_name_is_no_line_of_a_configuration() {
        assert_eq!(checked("www-data".into()).unwrap(), "www-data");
        for name in ["", "-oX", "a b", "a\nProxyCommand evil", "a%h", "a\"b", "ä"] {
            assert!(checked(name.into()).is_err(), "{name:?}");
        }
    }
}
