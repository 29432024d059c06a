//! The options of `run` and `create`.

use std::collections::HashSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::Context;
use clap::Args;
use libmsb::cli::error::Failure;
use libmsb::state::Home;
use libmsb::state::mounts::{Mount, Source};
use msb_wire::text::Text;

use super::syntax;
use crate::verbs::volume;

/// Most mounts of a sandbox.
const MOUNTS_MAX: usize = 64;

/// What is mounted in the guest besides its root.
#[derive(Debug, Default, Args)]
pub(crate) struct MountArgs {
    /// Mount a folder or file of the host (a path), or a volume (a name, made when it is not there)
    #[arg(short, long, value_name = "SOURCE:TARGET[:OPTIONS]")]
    volume: Vec<OsString>,
    /// Mount a disk image: raw or qcow2, with a file system in it
    #[arg(long, value_name = "IMAGE:TARGET[:OPTIONS]")]
    mount_disk: Vec<OsString>,
    /// Mount memory of the guest
    #[arg(long, value_name = "TARGET[:SIZE][:OPTIONS]")]
    tmpfs: Vec<OsString>,
}

impl MountArgs {
    /// Whether any is asked for.
    pub(crate) fn is_given(&self) -> bool {
        !(self.volume.is_empty() && self.mount_disk.is_empty() && self.tmpfs.is_empty())
    }

    /// The mounts, with paths that are there and lead through no symbolic link.
    pub(crate) fn mounts(&self) -> anyhow::Result<Vec<Mount>> {
        let binds = self.volume.iter().map(|typed| syntax::volume(typed));
        let disks = self.mount_disk.iter().map(|typed| syntax::disk(typed));
        let memory = self.tmpfs.iter().map(|typed| syntax::tmpfs(typed));
        let mut mounts = binds
            .chain(disks)
            .chain(memory)
            .collect::<Result<Vec<Mount>, Failure>>()?;
        if mounts.len() > MOUNTS_MAX {
            return Err(Failure::usage(format!(
                "{} mounts are more than {MOUNTS_MAX}",
                mounts.len()
            ))
            .into());
        }
        refuse_doubles(&mounts)?;
        for mount in &mut mounts {
            if let Source::Bind { source } | Source::Disk { source, .. } = &mut mount.source {
                *source = resolved(source)?;
            }
        }
        Ok(mounts)
    }
}

/// Makes the volumes that are not there yet.
pub(crate) fn make_volumes(home: &Home, mounts: &[Mount]) -> anyhow::Result<()> {
    for mount in mounts {
        if let Source::Volume { name } = &mount.source {
            volume::ensure(home, name)?;
        }
    }
    Ok(())
}

fn refuse_doubles(mounts: &[Mount]) -> Result<(), Failure> {
    let mut targets = HashSet::new();
    let mut disks = HashSet::new();
    for mount in mounts {
        if !targets.insert(&mount.target) {
            return Err(Failure::usage(format!(
                "two mounts have the target '{}'",
                libmsb::cli::escape::escape(mount.target.as_bytes())
            )));
        }
        let disk = match &mount.source {
            Source::Volume { name } => name.as_str().as_bytes(),
            Source::Disk { source, .. } => source.as_bytes(),
            Source::Bind { .. } | Source::Tmpfs { .. } => continue,
        };
        if !disks.insert(disk) {
            return Err(Failure::usage(format!(
                "'{}' is mounted twice",
                libmsb::cli::escape::escape(disk)
            )));
        }
    }
    Ok(())
}

/// What the path means now is what is mounted for good: a symbolic link on the way that changes later leads nowhere else.
fn resolved(source: &Text) -> anyhow::Result<Text> {
    let path = Path::new(source.as_os_str());
    let real = std::fs::canonicalize(path)
        .with_context(|| format!("cannot mount '{}'", path.display()))?;
    Ok(Text(real.into_os_string().as_bytes().to_vec()))
}
