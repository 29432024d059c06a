//! Mount options of `run`, `create` and `modify`.

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

use super::{pairs, syntax};

/// Maximum number of mounts of a sandbox.
const MOUNTS_MAX: usize = 64;

/// Mounts of the guest besides its root.
#[derive(Debug, Default, Args)]
pub(crate) struct MountArgs {
    /// Mount a path of the host or a named volume
    ///
    /// TARGET is an absolute path in the guest; missing directories are created. A SOURCE that is
    /// `.` or `..`, or starts with `/`, `./` or `../`, is a directory or file of the host, and must
    /// exist. Any other SOURCE is the name of a volume, see msb-volume(1). A volume that does not
    /// exist is created as a directory, which several sandboxes can use at the same time. Shorter
    /// targets are mounted before longer ones.
    ///
    /// OPTIONS are separated by commas: `ro` or `rw` (the default), `noexec`, `nosuid` and `nodev`.
    /// A read-only mount is enforced on the host, so that no user of the guest can undo it. The
    /// other options are enforced by the guest, where root can undo them.
    #[arg(short, long, value_name = "SOURCE:TARGET[:OPTIONS]", help_heading = "Storage")]
    volume: Vec<OsString>,
    /// Mount in docker's form, such as type=bind,source=/src,target=/dst,readonly
    ///
    /// Pairs of name and value are separated by commas. `type` is `bind`, `volume` (the default) or
    /// `tmpfs`; `source` or `src` is a path of the host or a volume, which is created if it is
    /// missing; `target`, `dst` or `destination` is a path in the guest. The others are `readonly`
    /// or `ro`, `noexec`, `nosuid`, `nodev`, and `tmpfs-size` in bytes or such as `64M`.
    #[arg(long, value_name = "KEY=VALUE,...", help_heading = "Storage")]
    mount: Vec<OsString>,
    /// Mount a directory of the host
    ///
    /// Unlike with `--volume`, DIR needs no leading `/` or `./`.
    #[arg(long, value_name = "DIR:TARGET[:OPTIONS]", help_heading = "Storage")]
    mount_dir: Vec<OsString>,
    /// Mount a file of the host
    #[arg(long, value_name = "FILE:TARGET[:OPTIONS]", help_heading = "Storage")]
    mount_file: Vec<OsString>,
    /// Mount a volume that exists
    #[arg(long, value_name = "NAME:TARGET[:OPTIONS]", help_heading = "Storage")]
    mount_named: Vec<OsString>,
    /// Mount the file system of a raw or qcow2 disk image
    ///
    /// OPTIONS are also `format=raw` or `format=qcow2`, needed unless the name of the image ends in
    /// `.raw`, `.img` or `.qcow2`; and `fstype=NAME`, by default ext4 or erofs. The format is never
    /// detected from the contents, which a guest may have written. A qcow2 image that refers to
    /// other files (a backing file or external data) is refused.
    #[arg(long, value_name = "IMAGE:TARGET[:OPTIONS]", help_heading = "Storage")]
    mount_disk: Vec<OsString>,
    /// Mount a temporary file system in the memory of the guest
    ///
    /// SIZE is its limit, such as `64M` or `size=64M`; the default is half of the memory. All users
    /// of the guest can write to it.
    #[arg(long, value_name = "TARGET[:SIZE][:OPTIONS]", help_heading = "Storage")]
    tmpfs: Vec<OsString>,
}

impl MountArgs {
    /// Returns the mounts. Their host paths and named volumes exist; symbolic links of the paths
    /// are resolved.
    pub(crate) fn mounts(&self, home: &Home) -> anyhow::Result<Vec<Mount>> {
        let mut mounts = Vec::new();
        let mut add = |typed: &[OsString], parse: fn(&OsStr) -> Result<Mount, Failure>| {
            typed.iter().try_for_each(|typed| {
                mounts.push(parse(typed)?);
                Ok::<(), Failure>(())
            })
        };
        add(&self.volume, syntax::volume)?;
        add(&self.mount, pairs::mount)?;
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

/// Checks that the source is a directory or a file, as requested.
fn check_kind(typed: &OsStr, directory: bool) -> anyhow::Result<()> {
    let Source::Bind { source } = syntax::path(typed)?.source else {
        return Ok(());
    };
    let path = Path::new(source.as_os_str());
    if path.is_dir() == directory {
        return Ok(());
    }
    let what = if directory { "not a directory" } else { "a directory" };
    Err(Failure::usage(format!("'{}' is {what}", path.display())).into())
}

impl MountArgs {
    fn check_kinds(&self) -> anyhow::Result<()> {
        self.mount_dir.iter().try_for_each(|typed| check_kind(typed, true))?;
        self.mount_file.iter().try_for_each(|typed| check_kind(typed, false))
    }
}

/// Returns the mounts of a sandbox after a change. A new mount replaces an existing one with the
/// same target.
pub(crate) fn apply_changes(
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

/// Checks all mounts of a sandbox together.
fn check(mounts: &[Mount]) -> Result<(), Failure> {
    if mounts.len() > MOUNTS_MAX {
        return Err(Failure::usage(format!(
            "too many mounts: {} (at most {MOUNTS_MAX})",
            mounts.len()
        )));
    }
    check_duplicates(mounts)
}

fn check_duplicates(mounts: &[Mount]) -> Result<(), Failure> {
    let mut targets = HashSet::new();
    let mut disks = HashSet::new();
    for mount in mounts {
        if !targets.insert(&mount.target) {
            return Err(Failure::usage(format!(
                "duplicate mount target '{}'",
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

/// Resolves the symbolic links of a path. A link that changes later cannot redirect the mount.
pub(crate) fn resolved(source: &Text) -> anyhow::Result<Text> {
    let path = Path::new(source.as_os_str());
    let real =
        std::fs::canonicalize(path).with_context(|| format!("cannot find '{}'", path.display()))?;
    Ok(Text(real.into_os_string().as_bytes().to_vec()))
}
