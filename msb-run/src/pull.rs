//! Automatic pull of images: runs `msb pull` as if the user had typed it.

use std::fmt;
use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::Stdio;

use anyhow::Context;
use clap::ValueEnum;
use libmsb::cli::error::ReportedExit;
use libmsb::cli::verbosity::{self, Verbosity};
use libmsb::cli::{exit, typed};
use libmsb::state::image_name::ImageName;
use libmsb::state::images::Store;
use libmsb::tools;
use rustix::process::{Signal, set_parent_process_death_signal};

/// Pull policy of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PullPolicy {
    /// Pull each time, since a newer image may exist
    Always,
    /// Pull an image that is missing
    IfMissing,
    /// Do not pull
    Never,
}

/// Credentials for one pull. They are not stored.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct RegistryLogin {
    /// User name.
    pub(crate) username: String,
    /// Password or token.
    pub(crate) password: String,
}

impl fmt::Debug for RegistryLogin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RegistryLogin")
    }
}

/// Pulls the image if the policy requires it. An ID is not pulled: a registry knows names.
/// `msb pull` prints the progress and the errors.
pub(crate) fn pull_if_needed(
    images: &Store,
    image: &ImageName,
    policy: PullPolicy,
    login: Option<&RegistryLogin>,
) -> anyhow::Result<()> {
    let wanted = match policy {
        _ if image.is_id() => false,
        PullPolicy::Always => true,
        PullPolicy::IfMissing => images.named(image)?.is_empty(),
        PullPolicy::Never => false,
    };
    if !wanted {
        return Ok(());
    }
    let mut command = tools::command("msb-image")?;
    // Hints name options of this command.
    typed::pass(&mut command, "msb-image", "msb pull");
    // Standard output and standard input belong to the command in the guest.
    command.arg("pull");
    if !verbosity::is_enabled(Verbosity::Info) {
        command.arg("--quiet");
    }
    command.arg(image.reference().to_string()).stdin(Stdio::null()).stdout(Stdio::null());
    if let Some(login) = login {
        command.arg(format!("--username={}", login.username)).arg("--password-stdin");
        command.stdin(Stdio::piped());
    }
    // SAFETY: between fork and exec only one system call is made, prctl(2), which is safe there.
    unsafe {
        command.pre_exec(|| {
            // The pull ends with this process, which is the only one that waits for it.
            set_parent_process_death_signal(Some(Signal::TERM))?;
            Ok(())
        });
    }
    let mut child = command.spawn().context("cannot start msb-image")?;
    if let (Some(login), Some(mut input)) = (login, child.stdin.take()) {
        // A pull that fails before it reads the password reports its own error.
        drop(input.write_all(login.password.as_bytes()));
    }
    let status = child.wait().context("cannot wait for msb-image")?;
    if status.success() {
        return Ok(());
    }
    let code = match (status.code(), status.signal()) {
        (Some(code), _) => code as u8,
        (None, Some(signal)) => exit::of_signal(signal),
        (None, None) => exit::FAILED,
    };
    Err(ReportedExit(code).into())
}
