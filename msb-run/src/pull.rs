//! Images that are not there yet: `msb-image pull` brings them, as if the user had typed it.

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::Stdio;

use anyhow::Context;
use clap::ValueEnum;
use libmsb::cli::error::Told;
use libmsb::cli::exit;
use libmsb::reference::Reference;
use libmsb::state::images::Store;
use libmsb::tools;
use rustix::process::{Signal, set_parent_process_death_signal};

/// When an image is pulled from its registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PullPolicy {
    /// Each time: there may be a newer one
    Always,
    /// When it is not there
    IfMissing,
    /// Not at all
    Never,
}

/// Pulls the image if it has to be. Progress and errors are those of the tool that does it.
pub(crate) fn bring(images: &Store, image: &Reference, policy: PullPolicy) -> anyhow::Result<()> {
    let wanted = match policy {
        PullPolicy::Always => true,
        PullPolicy::IfMissing => images.record(image)?.is_none(),
        PullPolicy::Never => false,
    };
    if !wanted {
        return Ok(());
    }
    let mut command = tools::command("msb-image")?;
    // Our standard output belongs to the command in the guest, and our standard input too.
    let to_stderr = std::io::stderr();
    let to_stderr = std::os::fd::AsFd::as_fd(&to_stderr)
        .try_clone_to_owned()
        .context("cannot pass on standard error")?;
    command
        .arg("pull")
        .arg(image.to_string())
        .stdin(Stdio::null())
        .stdout(to_stderr);
    // SAFETY: between fork and exec only one system call is made, prctl(2), which is safe there.
    unsafe {
        command.pre_exec(|| {
            // Nobody waits for it when we are gone.
            set_parent_process_death_signal(Some(Signal::TERM))?;
            Ok(())
        });
    }
    let status = command.status().context("cannot start msb-image")?;
    if status.success() {
        return Ok(());
    }
    let code = match (status.code(), status.signal()) {
        (Some(code), _) => code as u8,
        (None, Some(signal)) => exit::of_signal(signal),
        (None, None) => exit::FAILED,
    };
    Err(Told(code).into())
}
