//! Changes of the guest's files before anything of the image runs.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::Context;
use clap::{Args, ValueHint};
use libmsb::cli::error::Failure;
use libmsb::cli::escape::escape;
use libmsb::state::guest::Change;
use msb_wire::text::Text;

use super::guest_path;

/// Changes of one sandbox.
const CHANGES_MAX: usize = 1024;

/// The changes that are typed. Those of one kind are made in the order in which they stand, the kinds in the order in
/// which they are here.
#[derive(Debug, Args)]
pub(super) struct ChangeArgs {
    /// Before it first runs: copy a file or folder of the host to this path of the guest
    #[arg(long, value_name = "SRC:DST", value_hint = ValueHint::AnyPath)]
    copy: Vec<OsString>,
    /// The same for what must be a file
    #[arg(long, value_name = "SRC:DST", value_hint = ValueHint::FilePath)]
    copy_file: Vec<OsString>,
    /// The same for what must be a folder
    #[arg(long, value_name = "SRC:DST", value_hint = ValueHint::DirPath)]
    copy_dir: Vec<OsString>,
    /// Then: make a folder, and those above it
    #[arg(long, value_name = "PATH")]
    mkdir: Vec<OsString>,
    /// Then: remove a file or folder, if it is there
    #[arg(long, value_name = "PATH")]
    rm: Vec<OsString>,
}

/// What a source must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Either,
    File,
    Folder,
}

impl ChangeArgs {
    /// Whether there are any.
    pub(super) fn is_given(&self) -> bool {
        let kinds = [
            &self.copy,
            &self.copy_file,
            &self.copy_dir,
            &self.mkdir,
            &self.rm,
        ];
        kinds.iter().any(|kind| !kind.is_empty())
    }

    /// The changes in their order. Sources are looked at, so that a mistake is told before anything is made.
    pub(super) fn changes(&self) -> anyhow::Result<Vec<Change>> {
        let mut changes = Vec::new();
        for (typed, wanted) in [
            (&self.copy, Wanted::Either),
            (&self.copy_file, Wanted::File),
            (&self.copy_dir, Wanted::Folder),
        ] {
            for pair in typed {
                changes.push(copy(pair, wanted)?);
            }
        }
        for path in &self.mkdir {
            let path = guest_path(path.as_bytes())?;
            changes.push(Change::MakeFolder { path });
        }
        for path in &self.rm {
            let path = guest_path(path.as_bytes())?;
            changes.push(Change::Remove { path });
        }
        if changes.len() > CHANGES_MAX {
            let message = format!("more than {CHANGES_MAX} changes");
            return Err(Failure::usage(message).hint("copy a folder").into());
        }
        Ok(changes)
    }
}

fn copy(pair: &OsStr, wanted: Wanted) -> anyhow::Result<Change> {
    let bytes = pair.as_bytes();
    // The last one: a path of the host may hold a colon as well.
    let colon = bytes.windows(2).rposition(|two| two == b":/");
    let colon = colon.filter(|colon| *colon > 0).ok_or_else(|| {
        Failure::usage(format!("'{}' is not of the form SRC:DST", escape(bytes)))
            .hint("DST is an absolute path in the guest")
    })?;
    let to = guest_path(&bytes[colon + 1..])?;
    let from = OsStr::from_bytes(&bytes[..colon]);
    let shown = Path::new(from).display();
    let cannot = || format!("cannot copy '{shown}'");
    let metadata = std::fs::metadata(from).with_context(cannot)?;
    let fits = match wanted {
        Wanted::Either => metadata.is_file() || metadata.is_dir(),
        Wanted::File => metadata.is_file(),
        Wanted::Folder => metadata.is_dir(),
    };
    if !fits {
        let what = match wanted {
            Wanted::Either => "file or folder",
            Wanted::File => "file",
            Wanted::Folder => "folder",
        };
        return Err(Failure::usage(format!("cannot copy '{shown}': it is no {what}")).into());
    }
    // Whoever makes the copy stands elsewhere.
    let from = std::path::absolute(from).with_context(cannot)?;
    Ok(Change::Copy {
        from: Text::from(from.into_os_string()),
        to,
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::choices;
    use super::*;

    #[test]
    fn changes_are_made_in_the_order_of_their_kinds() {
        let args = [
            "--rm",
            "/r",
            "--mkdir",
            "/m",
            "--copy-dir",
            "/usr:/d",
            "--copy-file",
            "/etc/passwd:/f",
            "--copy",
            "/etc:/c",
        ];
        let copy = |from: &str, to: &str| Change::Copy {
            from: from.into(),
            to: to.into(),
        };
        let expected = [
            copy("/etc", "/c"),
            copy("/etc/passwd", "/f"),
            copy("/usr", "/d"),
            Change::MakeFolder { path: "/m".into() },
            Change::Remove { path: "/r".into() },
        ];
        assert_eq!(choices(&args).unwrap().spec.changes, expected);
    }

    #[test]
    fn a_source_is_what_it_was_said_to_be() {
        for args in [
            ["--copy-file", "/usr:/x"],
            ["--copy-dir", "/etc/passwd:/x"],
            ["--copy", "/dev/null:/x"],
            ["--copy", "/nowhere:/x"],
            ["--copy", "/etc"],
            ["--copy", "/etc:x"],
            ["--copy", ":/x"],
            ["--copy", "/etc:/"],
            ["--copy", "/etc:/../x"],
            ["--mkdir", "x"],
            ["--rm", "/"],
        ] {
            assert!(choices(&args).is_err(), "{args:?}");
        }
    }

    #[test]
    fn a_source_may_hold_colons_and_stand_in_the_current_folder() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("a:b");
        std::fs::write(&source, "").unwrap();
        let typed = format!("{}:/x", source.display());
        let changes = choices(&["--copy", &typed]).unwrap().spec.changes;
        let expected = Change::Copy {
            from: source.into_os_string().into(),
            to: "/x".into(),
        };
        assert_eq!(changes, [expected]);
        let changes = choices(&["--copy", ".:/x"]).unwrap().spec.changes;
        assert!(
            matches!(&changes[..], [Change::Copy { from, .. }] if from.as_bytes().starts_with(b"/"))
        );
    }
}
