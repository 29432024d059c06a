//! The changes of a guest's files: their limits, and those of an imported configuration.

use std::collections::{BTreeMap, HashSet};

use libmsb::cli::error::Failure;
use libmsb::state::guest::GuestChange;
use msb_wire::text::Text;

use super::script::{check_body, check_name};

/// Maximum number of changes of one sandbox, without scripts.
const CHANGES_MAX: usize = 1024;
/// Longest total of a sandbox's scripts, and that of its patches, in bytes.
const BODIES_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Adds imported scripts and changes to the typed ones. Typed scripts override imported ones of the
/// same name; scripts come first, then the imported changes, then the typed ones.
pub(crate) fn with_imported(
    typed: Vec<GuestChange>,
    scripts: BTreeMap<String, String>,
    changes: Vec<GuestChange>,
) -> Result<Vec<GuestChange>, Failure> {
    let is_script = |change: &GuestChange| matches!(change, GuestChange::Script { .. });
    let (mut all, typed_changes): (Vec<_>, Vec<_>) = typed.into_iter().partition(is_script);
    let names: HashSet<String> = all.iter().filter_map(script_name).collect();
    for (name, body) in scripts.into_iter().filter(|(name, _)| !names.contains(name)) {
        check_name(&name)?;
        all.push(GuestChange::Script { name, body: Text(body.into_bytes()) });
    }
    all.extend(changes);
    all.extend(typed_changes);
    Ok(all)
}

fn script_name(change: &GuestChange) -> Option<String> {
    match change {
        GuestChange::Script { name, .. } => Some(name.clone()),
        _ => None,
    }
}

/// Checks the changes of a sandbox together. They are part of its specification.
pub(crate) fn check(changes: &[GuestChange]) -> Result<(), Failure> {
    let (mut count, mut script_bytes, mut patch_bytes) = (0, 0, 0);
    for change in changes {
        match change {
            GuestChange::Script { name, body } => {
                check_body(name, body.as_bytes())?;
                script_bytes += body.as_bytes().len();
                continue;
            }
            GuestChange::Write { body, .. } | GuestChange::Append { body, .. } => {
                patch_bytes += body.0.len();
            }
            _ => {}
        }
        count += 1;
    }
    if script_bytes > BODIES_BYTES_MAX {
        let message = format!("the scripts are longer than {BODIES_BYTES_MAX} bytes together");
        return Err(Failure::usage(message));
    }
    if patch_bytes > BODIES_BYTES_MAX {
        let message = format!("the patches have more than {BODIES_BYTES_MAX} bytes together");
        return Err(Failure::usage(message).hint("copy files of the host: --copy-file SRC:DST"));
    }
    if count > CHANGES_MAX {
        let message = format!("more than {CHANGES_MAX} changes");
        return Err(Failure::usage(message).hint("copy a whole directory instead"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use libmsb::state::guest::FileBody;

    fn script(name: &str, body: &str) -> GuestChange {
        GuestChange::Script { name: name.to_owned(), body: body.into() }
    }

    fn directory(path: &str) -> GuestChange {
        GuestChange::MakeDirectory { path: path.into(), mode: None }
    }

    #[test]
    fn typed_scripts_override_imported_ones_and_imported_changes_come_first() {
        let typed = vec![script("a", "typed"), directory("/typed")];
        let scripts = [("a", "imported"), ("b", "imported")];
        let scripts = scripts.map(|(name, body)| (name.to_owned(), body.to_owned())).into();
        assert_eq!(
            with_imported(typed, scripts, vec![directory("/imported")]).unwrap(),
            [
                script("a", "typed"),
                script("b", "imported"),
                directory("/imported"),
                directory("/typed")
            ]
        );
        let invalid = [("a/b".to_owned(), String::new())].into();
        assert!(with_imported(Vec::new(), invalid, Vec::new()).is_err());
    }

    #[test]
    fn changes_have_a_limit_together() {
        let patch =
            |bytes| GuestChange::Append { path: "/x".into(), body: FileBody(vec![0; bytes]) };
        check(&[patch(BODIES_BYTES_MAX / 2), patch(BODIES_BYTES_MAX / 2)]).unwrap();
        assert!(check(&[patch(BODIES_BYTES_MAX), patch(1)]).is_err());
        assert!(check(&vec![directory("/x"); CHANGES_MAX]).is_ok());
        assert!(check(&vec![directory("/x"); CHANGES_MAX + 1]).is_err());
        let long = "x".repeat(900_000);
        let scripts: Vec<GuestChange> = (0..5).map(|n| script(&n.to_string(), &long)).collect();
        check(&scripts[..4]).unwrap();
        assert!(check(&scripts).is_err());
        assert!(check(&[script("a", "\0")]).is_err());
    }
}
