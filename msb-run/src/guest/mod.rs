//! Options for the setup of the guest: its security profile, its root disk, and changes of its
//! files before it runs.

/// Limits of all changes together, and changes of an imported configuration.
pub(crate) mod change_list;
/// Changes of the guest's files before anything of the image runs.
pub(crate) mod changes;
/// Paths in the guest.
pub(crate) mod guest_path;
/// The disk that takes the guest's writes to its root.
pub(crate) mod root_disk;
/// Scripts.
mod script;

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use clap::{Args, ValueEnum};
use libmsb::cli::args::parse_env;
use libmsb::cli::error::Failure;
use libmsb::cli::escape::escape;
use libmsb::signal_number::SignalNumber;
use libmsb::state::config::SandboxDefaults;
use libmsb::state::guest::{GuestSpec, RootDisk};
use msb_wire::guest::{InitRequest, Security};
use msb_wire::text::Text;

use changes::ChangeArgs;
use root_disk::{RootDiskOption, parse_root_disk, parse_size};
use script::ScriptArgs;

/// Options for the setup of the guest, common to `run` and `create`.
#[derive(Debug, Args)]
pub(crate) struct GuestArgs {
    /// Set the security profile of commands [default: default]
    ///
    /// See **Rights in the guest** in msb-run(1).
    #[arg(long, value_enum, value_name = "PROFILE", help_heading = "Guest setup")]
    security: Option<SecurityProfile>,
    /// Set the writable disk: SIZE, tmpfs[:SIZE], PATH:raw or PATH:qcow2 [default: 4G]
    ///
    /// A size is that of the disk of the sandbox. The disk is sparse; the minimum is 24M and the
    /// maximum 1024G.
    ///
    /// `tmpfs` and `tmpfs:SIZE` store writes in the memory of the guest (256M by default); they are
    /// lost when the guest ends.
    ///
    /// `PATH:raw` and `PATH:qcow2` are a disk image with an ext4 file system, which is kept when
    /// the sandbox is removed. The format is never detected from the contents. A qcow2 image that
    /// refers to another file is refused. Two sandboxes cannot use one disk at the same time. The
    /// path is resolved when the sandbox is created: a symbolic link that appears in the path
    /// later, or a missing disk, is an error at the next start.
    #[arg(long, value_name = "DISK", value_parser = parse_root_disk, help_heading = "Storage")]
    root_disk: Option<RootDiskOption>,
    /// Set the size of the writable disk; same as --root-disk SIZE
    #[arg(
        long,
        value_name = "SIZE",
        value_parser = parse_size,
        conflicts_with = "root_disk",
        help_heading = "Storage"
    )]
    oci_upper_size: Option<u64>,
    /// Run a program of the image as the first process; auto selects one
    ///
    /// See **Init of the image** in msb-run(1).
    #[arg(long, value_name = "PATH|auto", help_heading = "Guest setup")]
    init: Option<OsString>,
    /// Add an argument of the init program
    #[arg(
        long,
        value_name = "ARG",
        requires = "init",
        allow_hyphen_values = true,
        help_heading = "Guest setup"
    )]
    init_arg: Vec<OsString>,
    /// Set an environment variable of the init program
    #[arg(long, value_name = "NAME=VALUE", requires = "init", help_heading = "Guest setup")]
    init_env: Vec<OsString>,
    /// Set the shell for terminals and scripts [default: /bin/sh]
    ///
    /// The shell runs on a terminal when no command is given, and it runs the scripts of the
    /// sandbox.
    #[arg(long, value_name = "PROGRAM", help_heading = "Guest setup")]
    shell: Option<OsString>,
    /// Set the signal that asks the main command to end
    ///
    /// SIGNAL is a name or a number. Without this option it is the stop signal of the image. See
    /// **Stop signal** in msb-run(1).
    #[arg(long, value_name = "SIGNAL", help_heading = "Lifetime")]
    stop_signal: Option<SignalNumber>,
    #[command(flatten)]
    scripts: ScriptArgs,
    #[command(flatten)]
    changes: ChangeArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SecurityProfile {
    /// Root has all capabilities
    Default,
    /// No new privileges and no CAP_SYS_ADMIN
    Restricted,
}

/// The checked options.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct GuestOptions {
    /// Part of the specification.
    pub(crate) spec: GuestSpec,
    /// Size of the managed disk in MiB, if given.
    pub(crate) upper_mib: Option<u64>,
}

impl GuestArgs {
    /// Returns whether an option was given that a sandbox with this shell does not have, as far as
    /// that is known.
    pub(crate) fn differs(&self, sandbox_shell: Option<&Text>) -> bool {
        let has_shell =
            |typed: &OsString| shell(typed).is_ok_and(|typed| Some(&typed) == sandbox_shell);
        self.security.is_some()
            || self.root_disk.is_some()
            || self.oci_upper_size.is_some()
            || self.init.is_some()
            || self.shell.as_ref().is_some_and(|typed| !has_shell(typed))
            || self.stop_signal.is_some()
            || self.scripts.is_given()
            || self.changes.is_given()
    }

    /// Returns whether the sandbox is to be removed at its end.
    pub(crate) fn removes_sandbox(&self) -> bool {
        self.changes.removes_sandbox()
    }

    /// Checks the options. Reads the files of the host that they name. What they do not set is that
    /// of `base`, then that of `defaults`.
    pub(crate) fn options(
        &self,
        defaults: &SandboxDefaults,
        base: &GuestSpec,
    ) -> anyhow::Result<GuestOptions> {
        let base_shell = base.shell.as_ref().map(|shell| shell.as_os_str().to_owned());
        let default_shell = base_shell.or(defaults.shell.as_ref().map(OsString::from));
        let shell = self.shell.as_ref().or(default_shell.as_ref()).map(shell).transpose()?;
        let mut changes = self.scripts.changes(shell.as_ref())?;
        changes.extend(self.changes.changes()?);
        let (root_disk, upper_mib) = match &self.root_disk {
            Some(choice) => choice.resolve()?,
            None if self.oci_upper_size.is_some() => (RootDisk::Managed, self.oci_upper_size),
            None => (base.root_disk.clone(), None),
        };
        let security = match self.security {
            Some(SecurityProfile::Restricted) => Security::Restricted,
            Some(SecurityProfile::Default) => Security::Default,
            None if base.security.is_restricted() => Security::Restricted,
            None => defaults.security.unwrap_or_default(),
        };
        let init = self.init.as_ref().map(|init| self.init(init)).transpose()?;
        let init = init.or_else(|| base.init.clone());
        if init.is_some() && security.is_restricted() {
            return Err(Failure::usage(
                "an init program needs privileges that --security restricted drops",
            )
            .hint("use either --init or --security restricted")
            .into());
        }
        Ok(GuestOptions {
            spec: GuestSpec {
                security,
                root_disk,
                init,
                shell,
                rlimits: Vec::new(),
                stop_signal: self.stop_signal.or(base.stop_signal),
                directories: base.directories.clone(),
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
                return Err(Failure::usage(format!(
                    "the path of the init '{shown}' is not absolute"
                ))
                .hint("use an absolute path or auto: --init /sbin/init")
                .into());
            }
        };
        Ok(InitRequest { path, args: self.init_arg.iter().cloned().map(Text::from).collect(), env })
    }
}

/// Checks the shell: a single word, as it is also written after `#!`.
fn shell(typed: &OsString) -> Result<Text, Failure> {
    let bytes = typed.as_bytes();
    let is_word = !bytes.is_empty() && bytes != b"/" && !bytes.iter().any(u8::is_ascii_whitespace);
    if is_word {
        return Ok(Text::from(typed.clone()));
    }
    Err(Failure::usage(format!("invalid shell '{}'", escape(bytes)))
        .hint("use a name or a path without spaces: --shell /bin/bash"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct TestArgs {
        #[command(flatten)]
        guest: GuestArgs,
    }

    pub(super) fn options(args: &[&str]) -> anyhow::Result<GuestOptions> {
        let args = ["test"].iter().chain(args);
        TestArgs::try_parse_from(args)?
            .guest
            .options(&SandboxDefaults::default(), &GuestSpec::default())
    }

    #[test]
    fn no_options_give_the_default() {
        assert_eq!(options(&[]).unwrap(), GuestOptions::default());
    }

    #[test]
    fn both_size_options_set_the_managed_disk() {
        for args in [["--root-disk", "8G"], ["--oci-upper-size", "8192"]] {
            let options = options(&args).unwrap();
            assert_eq!(options.upper_mib, Some(8192), "{args:?}");
            assert!(options.spec.root_disk.is_managed());
        }
    }

    #[test]
    fn an_init_takes_arguments_that_look_like_options() {
        let options = options(&["--init", "auto", "--init-arg", "--log-level=err"]).unwrap();
        let init = options.spec.init.unwrap();
        assert_eq!((init.path, init.args), (None, vec!["--log-level=err".into()]));
    }

    #[test]
    fn invalid_options_are_refused() {
        for args in [
            &["--init", "init"][..],
            &["--init-arg", "x"],
            &["--init", "auto", "--security", "restricted"],
            &["--shell", "a b"],
            &["--shell", ""],
            &["--oci-upper-size", "0"],
            &["--oci-upper-size", "1G", "--root-disk", "2G"],
        ] {
            assert!(options(args).is_err(), "{args:?}");
        }
    }
}
