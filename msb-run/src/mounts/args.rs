//! The options of `run`, `create` and `modify`.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::Context;
use clap::Args;
use libmsb::cli::error::Failure;
use libmsb::state::Home;
use libmsb::state::mounts::{Mount, Source};
use msb_wire::text::Text;

use super::syntax;
use crate::microsandbox::Stored;
use crate::verbs::volume;

/// Most mounts of a sandbox.
const MOUNTS_MAX: usize = 64;

/// What is mounted in the guest besides its root.
#[derive(Debug, Default, Args)]
pub(crate) struct MountArgs {
    /// Mount a folder or file of the host (a path), or a volume (a name, made when it is not there)
    #[arg(short, long, value_name = "SOURCE:TARGET[:OPTIONS]")]
    volume: Vec<OsString>,
    /// Mount a folder of the host, whatever its path looks like
    #[arg(long, value_name = "DIR:TARGET[:OPTIONS]")]
    mount_dir: Vec<OsString>,
    /// Mount a file of the host
    #[arg(long, value_name = "FILE:TARGET[:OPTIONS]")]
    mount_file: Vec<OsString>,
    /// Mount a volume that is there
    #[arg(long, value_name = "NAME:TARGET[:OPTIONS]")]
    mount_named: Vec<OsString>,
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
        let lists = [
            &self.volume,
            &self.mount_dir,
            &self.mount_file,
            &self.mount_named,
            &self.mount_disk,
            &self.tmpfs,
        ];
        lists.iter().any(|list| !list.is_empty())
    }

    /// Takes over the mounts of a stored configuration; what is typed comes later.
    pub(crate) fn fill_in(&mut self, stored: &Stored) {
        for (there, typed) in [
            (&stored.folders, &mut self.mount_dir),
            (&stored.volumes, &mut self.volume),
            (&stored.disks, &mut self.mount_disk),
            (&stored.tmpfs, &mut self.tmpfs),
        ] {
            typed.splice(..0, there.iter().map(OsString::from));
        }
    }

    /// The mounts, with paths and volumes that are there; paths lead through no symbolic link.
    pub(crate) fn mounts(&self, home: &Home) -> anyhow::Result<Vec<Mount>> {
        let mut mounts = Vec::new();
        let mut add = |typed: &[OsString], parse: fn(&OsStr) -> Result<Mount, Failure>| {
            typed.iter().try_for_each(|typed| {
                mounts.push(parse(typed)?);
                Ok::<(), Failure>(())
            })
        };
        add(&self.volume, syntax::volume)?;
        add(&self.mount_dir, syntax::path)?;
        add(&self.mount_file, syntax::path)?;
        add(&self.mount_named, syntax::named)?;
        add(&self.mount_disk, syntax::disk)?;
        add(&self.tmpfs, syntax::tmpfs)?;
        check(&mounts)?;
        for mount in &mut mounts {
            if let Source::Bind { source } | Source::Disk { source, .. } = &mut mount.source {
                *source = resolved(source)?;
            }
        }
        self.check_kinds()?;
        for typed in &self.mount_named {
            if let Source::Volume { name } = syntax::named(typed)?.source {
                home.volumes().find(&name)?;
            }
        }
        Ok(mounts)
    }
}

/// A folder is a folder, and a file a file.
fn check_kind(typed: &OsStr, folder: bool) -> anyhow::Result<()> {
    let Source::Bind { source } = syntax::path(typed)?.source else {
        return Ok(());
    };
    let path = Path::new(source.as_os_str());
    if path.is_dir() == folder {
        return Ok(());
    }
    let what = if folder { "no folder" } else { "a folder" };
    Err(Failure::usage(format!("'{}' is {what}", path.display())).into())
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

impl MountArgs {
    fn check_kinds(&self) -> anyhow::Result<()> {
        self.mount_dir
            .iter()
            .try_for_each(|typed| check_kind(typed, true))?;
        self.mount_file
            .iter()
            .try_for_each(|typed| check_kind(typed, false))
    }
}

/// Mounts of a sandbox, some of which are to go and others to come; one with a target that is there takes its place.
pub(crate) fn changed(
    had: &[Mount],
    gone: &[OsString],
    new: &[Mount],
) -> Result<Vec<Mount>, Failure> {
    let stays = |mount: &&Mount| {
        let target = &mount.target;
        gone.iter().all(|gone| gone.as_bytes() != target.as_bytes())
            && new.iter().all(|new| new.target != *target)
    };
    let mounts: Vec<Mount> = had.iter().filter(stays).chain(new).cloned().collect();
    check(&mounts)?;
    Ok(mounts)
}

/// What holds for all mounts of a sandbox together.
fn check(mounts: &[Mount]) -> Result<(), Failure> {
    if mounts.len() > MOUNTS_MAX {
        return Err(Failure::usage(format!(
            "{} mounts are more than {MOUNTS_MAX}",
            mounts.len()
        )));
    }
    refuse_doubles(mounts)
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
pub(crate) fn resolved(source: &Text) -> anyhow::Result<Text> {
    let path = Path::new(source.as_os_str());
    let real =
        std::fs::canonicalize(path).with_context(|| format!("cannot find '{}'", path.display()))?;
    Ok(Text(real.into_os_string().as_bytes().to_vec()))
}
