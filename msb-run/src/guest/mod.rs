//! What is typed about the guest: what it may do, what its root is made of, what is changed before it runs.

/// Changes of the guest's files before anything of the image runs.
mod changes;
/// Where what a guest writes to its root goes.
pub(crate) mod root_disk;
/// Scripts.
mod script;

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use clap::{Args, ValueEnum};
use libmsb::cli::args::parse_env;
use libmsb::cli::error::Failure;
use libmsb::cli::escape::escape;
use libmsb::state::guest::{GuestSpec, RootDisk};
use msb_wire::guest::{InitRequest, Security};
use msb_wire::text::Text;

use crate::microsandbox::Stored;

use changes::ChangeArgs;
use root_disk::{Choice, parse_root_disk, parse_size};
use script::ScriptArgs;

/// What is said of the guest: the same for `run` and `create`.
#[derive(Debug, Args)]
pub(crate) struct GuestArgs {
    /// What commands may do: default (root is root) or restricted (no new privileges, no CAP_SYS_ADMIN)
    #[arg(long, value_enum, hide_possible_values = true, value_name = "PROFILE")]
    security: Option<Profile>,
    /// Where writes go: SIZE, tmpfs[:SIZE], or a disk with ext4 as PATH:raw or PATH:qcow2 (default: 4G)
    #[arg(long, value_name = "DISK", value_parser = parse_root_disk)]
    root_disk: Option<Choice>,
    /// Size of the writable disk: the same as --root-disk SIZE
    #[arg(long, value_name = "SIZE", value_parser = parse_size, conflicts_with = "root_disk")]
    oci_upper_size: Option<u64>,
    /// Program of the image that becomes the first process; auto looks for one
    #[arg(long, value_name = "PATH|auto")]
    init: Option<OsString>,
    /// Argument of the init
    #[arg(
        long,
        value_name = "ARG",
        requires = "init",
        allow_hyphen_values = true
    )]
    init_arg: Vec<OsString>,
    /// Variable of the init
    #[arg(long, value_name = "NAME=VALUE", requires = "init")]
    init_env: Vec<OsString>,
    /// Shell of the sandbox, when no command is named, and of its scripts (default: /bin/sh)
    #[arg(long, value_name = "PROGRAM")]
    shell: Option<OsString>,
    #[command(flatten)]
    scripts: ScriptArgs,
    #[command(flatten)]
    changes: ChangeArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Profile {
    Default,
    Restricted,
}

/// What was typed, checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct GuestChoices {
    /// What goes into the specification as it is.
    pub(crate) spec: GuestSpec,
    /// Size of the managed disk, in MiB, if it was said.
    pub(crate) upper_mib: Option<u64>,
}

impl GuestArgs {
    /// Whether something was said.
    pub(crate) fn is_given(&self) -> bool {
        self.security.is_some()
            || self.root_disk.is_some()
            || self.oci_upper_size.is_some()
            || self.init.is_some()
            || self.shell.is_some()
            || self.scripts.is_given()
            || self.changes.is_given()
    }

    /// Takes over what a stored configuration says where nothing was typed.
    pub(crate) fn fill_in(&mut self, stored: &Stored) {
        let security = stored.restricted.then_some(Profile::Restricted);
        self.security = self.security.or(security);
        self.shell = self
            .shell
            .take()
            .or_else(|| stored.shell.clone().map(Into::into));
        if self.init.is_none()
            && let Some(init) = &stored.init
        {
            self.init = Some(init.program.clone().into());
            self.init_arg = init.args.iter().map(OsString::from).collect();
            let env = init.env.0.iter();
            self.init_env = env
                .map(|(name, value)| format!("{name}={value}").into())
                .collect();
        }
        if self.root_disk.is_none() {
            self.oci_upper_size = self.oci_upper_size.or(stored.upper_mib);
        }
    }

    /// Checks what was typed. Files of the host are looked at.
    pub(crate) fn choices(&self) -> anyhow::Result<GuestChoices> {
        let shell = self.shell.as_ref().map(shell).transpose()?;
        let mut changes = self.scripts.changes(shell.as_ref())?;
        changes.extend(self.changes.changes()?);
        let (root_disk, upper_mib) = match &self.root_disk {
            Some(choice) => choice.find()?,
            None => (RootDisk::Managed, self.oci_upper_size),
        };
        let security = match self.security {
            Some(Profile::Restricted) => Security::Restricted,
            Some(Profile::Default) | None => Security::Default,
        };
        let init = self.init.as_ref().map(|init| self.init(init)).transpose()?;
        if init.is_some() && security.is_restricted() {
            return Err(Failure::usage(
                "an init needs the rights that --security restricted takes away",
            )
            .hint("choose one of --init and --security restricted")
            .into());
        }
        Ok(GuestChoices {
            spec: GuestSpec {
                security,
                root_disk,
                init,
                shell,
                changes,
            },
            upper_mib,
        })
    }

    fn init(&self, path: &OsString) -> anyhow::Result<InitRequest> {
        let mut env = Vec::new();
        for text in &self.init_env {
            env.push(Text::from(parse_env(text)?.to_assignment()));
        }
        let path = match path.as_bytes() {
            b"auto" => None,
            bytes if bytes.starts_with(b"/") => Some(Text::from(path.clone())),
            bytes => {
                let shown = escape(bytes);
                return Err(
                    Failure::usage(format!("the init '{shown}' is no absolute path"))
                        .hint("as in --init /sbin/init, or --init auto")
                        .into(),
                );
            }
        };
        Ok(InitRequest {
            path,
            args: self.init_arg.iter().cloned().map(Text::from).collect(),
            env,
        })
    }
}

/// One word, since it stands behind `#!` too.
fn shell(typed: &OsString) -> Result<Text, Failure> {
    let bytes = typed.as_bytes();
    let is_word = !bytes.is_empty() && bytes != b"/" && !bytes.iter().any(u8::is_ascii_whitespace);
    if is_word {
        return Ok(Text::from(typed.clone()));
    }
    Err(Failure::usage(format!(
        "'{}' is no program that could be a shell",
        escape(bytes)
    ))
    .hint("a name or a path without spaces, as in --shell /bin/bash"))
}

/// An absolute path in the guest that is not its root and does not lead upward.
fn guest_path(bytes: &[u8]) -> Result<Text, Failure> {
    let wrong = |why: &str| {
        Err(Failure::usage(format!(
            "'{}' cannot be a path in the guest: {why}",
            escape(bytes)
        )))
    };
    let parts = || {
        let parts = bytes.split(|byte| *byte == b'/');
        parts.filter(|part| !part.is_empty() && *part != b".")
    };
    if !bytes.starts_with(b"/") {
        return wrong("it is not absolute");
    }
    if parts().any(|part| part == b"..") {
        return wrong("it leads upward");
    }
    if parts().next().is_none() {
        return wrong("it is the root");
    }
    Ok(Text(bytes.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Typed {
        #[command(flatten)]
        guest: GuestArgs,
    }

    pub(super) fn choices(args: &[&str]) -> anyhow::Result<GuestChoices> {
        let args = ["test"].iter().chain(args);
        Typed::try_parse_from(args)?.guest.choices()
    }

    #[test]
    fn nothing_said_is_the_default() {
        assert_eq!(choices(&[]).unwrap(), GuestChoices::default());
    }

    #[test]
    fn a_size_is_that_of_the_managed_disk_whichever_way_it_is_said() {
        for args in [["--root-disk", "8G"], ["--oci-upper-size", "8192"]] {
            let choices = choices(&args).unwrap();
            assert_eq!(choices.upper_mib, Some(8192), "{args:?}");
            assert!(choices.spec.root_disk.is_managed());
        }
    }

    #[test]
    fn an_init_takes_arguments_that_look_like_options() {
        let choices = choices(&["--init", "auto", "--init-arg", "--log-level=err"]).unwrap();
        let init = choices.spec.init.unwrap();
        assert_eq!(
            (init.path, init.args),
            (None, vec!["--log-level=err".into()])
        );
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for args in [
            &["--init", "init"][..],
            &["--init-arg", "x"],
            &["--init", "auto", "--security", "restricted"],
            &["--shell", "a b"],
            &["--shell", ""],
            &["--oci-upper-size", "0"],
            &["--oci-upper-size", "1G", "--root-disk", "2G"],
        ] {
            assert!(choices(args).is_err(), "{args:?}");
        }
    }

    #[test]
    fn a_path_in_the_guest_is_absolute_and_below_its_root() {
        for path in ["/a", "/a/", "/a/./b", "/a..b"] {
            guest_path(path.as_bytes()).unwrap();
        }
        for path in ["", "a", "/", "//", "/.", "/..", "/a/../b"] {
            assert!(guest_path(path.as_bytes()).is_err(), "{path}");
        }
    }
}
