//! Changes of the guest's files before anything of the image runs.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::Context;
use clap::{Args, ValueHint};
use libmsb::cli::error::Failure;
use libmsb::cli::escape::escape;
use libmsb::state::guest::GuestChange;
use msb_wire::text::Text;

use super::guest_path::guest_path;

/// Options that change files. Changes of one kind are made in the order of the arguments, the kinds
/// in the order of these fields.
#[derive(Debug, Args)]
pub(super) struct ChangeArgs {
    /// Copy a file or directory of the host into the guest before its first boot
    ///
    /// See **Changes before the first boot** in msb-run(1).
    #[arg(
        long,
        value_name = "SRC:DST",
        value_hint = ValueHint::AnyPath,
        help_heading = "Guest setup"
    )]
    copy: Vec<OsString>,
    /// Like --copy, for a regular file only
    #[arg(
        long,
        value_name = "SRC:DST",
        value_hint = ValueHint::FilePath,
        help_heading = "Guest setup"
    )]
    copy_file: Vec<OsString>,
    /// Like --copy, for a directory only
    #[arg(
        long,
        value_name = "SRC:DST",
        value_hint = ValueHint::DirPath,
        help_heading = "Guest setup"
    )]
    copy_dir: Vec<OsString>,
    /// Create a directory and its parents before the first boot
    #[arg(long, value_name = "PATH", help_heading = "Guest setup")]
    mkdir: Vec<OsString>,
    /// Remove PATH before the first boot; without PATH, remove the sandbox at its end
    ///
    /// A value that starts with `/` is a path in the guest, which is removed if it exists.
    /// Otherwise the option has no value and is that of docker: the sandbox is removed with its
    /// disk when it ends, even if it has a name.
    #[arg(
        long,
        value_name = "PATH",
        num_args = 0..=1,
        default_missing_value = "",
        help_heading = "Guest setup"
    )]
    rm: Vec<OsString>,
}

/// Required type of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SourceType {
    Any,
    File,
    Directory,
}

impl ChangeArgs {
    /// Returns whether any change option was given.
    pub(super) fn is_given(&self) -> bool {
        let kinds = [&self.copy, &self.copy_file, &self.copy_dir, &self.mkdir, &self.rm];
        kinds.iter().any(|kind| !kind.is_empty())
    }

    /// Returns whether the sandbox is to be removed at its end: `--rm` without a path.
    pub(super) fn removes_sandbox(&self) -> bool {
        self.rm.iter().any(|path| path.is_empty())
    }

    /// Returns the changes in their order. Checks the sources, so that an error is reported before
    /// anything is created.
    pub(super) fn changes(&self) -> anyhow::Result<Vec<GuestChange>> {
        let mut changes = Vec::new();
        for (typed, source_type) in [
            (&self.copy, SourceType::Any),
            (&self.copy_file, SourceType::File),
            (&self.copy_dir, SourceType::Directory),
        ] {
            for pair in typed {
                changes.push(copy(pair, source_type)?);
            }
        }
        for path in &self.mkdir {
            let path = guest_path(path.as_bytes())?;
            changes.push(GuestChange::MakeDirectory { path, mode: None });
        }
        for path in self.rm.iter().filter(|path| !path.is_empty()) {
            let path = guest_path(path.as_bytes())?;
            changes.push(GuestChange::Remove { path });
        }
        Ok(changes)
    }
}

fn copy(pair: &OsStr, source_type: SourceType) -> anyhow::Result<GuestChange> {
    let bytes = pair.as_bytes();
    // Use the last one: a path of the host may contain a colon, too.
    let colon = bytes.windows(2).rposition(|two| two == b":/");
    let colon = colon.filter(|colon| *colon > 0).ok_or_else(|| {
        Failure::usage(format!("'{}' is not of the form SRC:DST", escape(bytes)))
            .hint("DST is an absolute path in the guest")
    })?;
    let to = guest_path(&bytes[colon + 1..])?;
    let from = source(OsStr::from_bytes(&bytes[..colon]), source_type)?;
    Ok(GuestChange::Copy { from, to, mode: None, exclusive: false })
}

/// Checks the type of a source, and returns its absolute path.
pub(crate) fn source(from: &OsStr, source_type: SourceType) -> anyhow::Result<Text> {
    let shown = Path::new(from).display();
    let cannot = || format!("cannot copy '{shown}'");
    let metadata = std::fs::metadata(from).with_context(cannot)?;
    let has_type = match source_type {
        SourceType::Any => metadata.is_file() || metadata.is_dir(),
        SourceType::File => metadata.is_file(),
        SourceType::Directory => metadata.is_dir(),
    };
    if !has_type {
        let what = match source_type {
            SourceType::Any => "regular file or directory",
            SourceType::File => "regular file",
            SourceType::Directory => "directory",
        };
        return Err(Failure::usage(format!("cannot copy '{shown}': not a {what}")).into());
    }
    // The supervisor copies, and has another working directory.
    let from = std::path::absolute(from).with_context(cannot)?;
    Ok(Text::from(from.into_os_string()))
}

#[cfg(test)]
mod tests {
    use super::super::tests::options;
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
        let copy = |from: &str, to: &str| GuestChange::Copy {
            from: from.into(),
            to: to.into(),
            mode: None,
            exclusive: false,
        };
        let expected = [
            copy("/etc", "/c"),
            copy("/etc/passwd", "/f"),
            copy("/usr", "/d"),
            GuestChange::MakeDirectory { path: "/m".into(), mode: None },
            GuestChange::Remove { path: "/r".into() },
        ];
        assert_eq!(options(&args).unwrap().spec.changes, expected);
    }

    #[test]
    fn a_source_has_the_required_type() {
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
            assert!(options(&args).is_err(), "{args:?}");
        }
    }

    #[test]
    fn a_source_may_hold_colons_and_stand_in_the_current_directory() {
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join("a:b");
        std::fs::write(&source, "").unwrap();
        let typed = format!("{}:/x", source.display());
        let changes = options(&["--copy", &typed]).unwrap().spec.changes;
        let expected = GuestChange::Copy {
            from: source.into_os_string().into(),
            to: "/x".into(),
            mode: None,
            exclusive: false,
        };
        assert_eq!(changes, [expected]);
        let changes = options(&["--copy", ".:/x"]).unwrap().spec.changes;
        assert!(
            matches!(&changes[..], [GuestChange::Copy { from, .. }] if from.as_bytes().starts_with(b"/"))
        );
    }
}
