//! The inputs of a supervisor: found, opened and checked before its VM starts.

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;

use anyhow::Context;
use libmsb::machine::{DiskDevice, DiskImageFormat, SERIAL_ROOT, SERIAL_UPPER, ShareDevice};
use libmsb::reference::Reference;
use libmsb::state::guest::{DiskFormat, RootDisk};
use libmsb::state::lock::Lock;
use libmsb::state::sandboxes::Sandbox;
use libmsb::state::spec::{Spec, SpecImage};
use libmsb::state::{Home, layout, write};
use sha2::{Digest, Sha256};

use crate::engine::{self, VmDescriptors, VmSpec, upper};
use crate::guest::root_disk;
use crate::mounts::{self, PreparedMounts};
use crate::net::SandboxNetwork;
use crate::process::cgroup::{Cgroup, CgroupLimits};
use crate::process::error_log;

/// The inputs of a supervisor, found and opened before the VM starts.
pub(crate) struct SandboxSetup {
    pub(crate) home: Home,
    pub(crate) sandbox: Sandbox,
    pub(crate) spec: Spec,
    pub(crate) lock: Lock,
    pub(crate) engine: Box<dyn engine::Engine>,
    /// The disk with the image, if the image is the root.
    pub(crate) image: Option<std::path::PathBuf>,
    /// The writable disk; `None` when the upper is in the guest's memory.
    pub(crate) upper: Option<File>,
    pub(crate) net: Option<SandboxNetwork>,
    pub(crate) mounts: PreparedMounts,
    /// The sandbox's control group, or the reason why it has none.
    pub(crate) cgroup: Result<Cgroup, String>,
}

/// An error, and the lock to hold until the sandbox's directory shows it.
pub(crate) type StartFailure = (anyhow::Error, Lock);

/// Prepares a start. Returns also a note for the user about the engine.
pub(crate) fn prepare(
    home: Home,
    sandbox: &Sandbox,
    lock: Lock,
    secrets: Option<OwnedFd>,
) -> Result<(SandboxSetup, Option<String>), StartFailure> {
    let found = (|| {
        anyhow::ensure!(
            lock.is_of(&sandbox.path(layout::LOCK)),
            "the inherited lock is not that of sandbox '{}'",
            sandbox.name
        );
        let spec = sandbox.spec()?;
        let mounts = mounts::prepare(&home, &spec)?;
        let (engine, note) = engine::choose(&home, spec.engine)?;
        let image = spec.root.image().map(|image| open_image(&home, image));
        let image = image.transpose()?;
        let net = SandboxNetwork::prepare(sandbox, &spec, secrets)?;
        let upper = open_upper(sandbox, &spec)?;
        Ok((spec, engine, note, image, upper, mounts, net))
    })();
    match found {
        Ok((spec, engine, note, image, upper, mounts, net)) => {
            let limits =
                CgroupLimits { cpus: spec.cpus.into(), memory_mib: spec.memory_mib.into() };
            let cgroup = Cgroup::join(&cgroup_name(sandbox), limits);
            let setup = SandboxSetup {
                cgroup: cgroup.map_err(|error| error.to_string()),
                home,
                sandbox: sandbox.clone(),
                spec,
                lock,
                engine,
                image,
                upper,
                net,
                mounts,
            };
            match setup.engine.check(&vm_spec(&setup), setup.net.is_some()) {
                Ok(()) => Ok((setup, note)),
                Err(error) => Err((error, setup.lock)),
            }
        }
        Err(error) => Err((error, lock)),
    }
}

/// Returns the name of the sandbox's control group, which differs between state directories.
fn cgroup_name(sandbox: &Sandbox) -> String {
    let digest = Sha256::digest(sandbox.dir.as_os_str().as_encoded_bytes());
    let hash: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("msb-{}-{hash}", sandbox.name)
}

/// Opens the image and returns its disk.
fn open_image(home: &Home, image: &SpecImage) -> anyhow::Result<std::path::PathBuf> {
    let reference: Reference = image.reference.parse()?;
    let opened = home.images().open(&reference, &image.manifest_digest)?;
    Ok(opened.disk)
}

/// Opens the writable disk: that of the sandbox, or an unnamed file for an ephemeral one.
fn open_upper(sandbox: &Sandbox, spec: &Spec) -> anyhow::Result<Option<File>> {
    match spec.upper() {
        Some(RootDisk::Managed) if spec.ephemeral => make_upper(sandbox, spec).map(Some),
        Some(RootDisk::Managed) => open_managed(sandbox, spec).map(Some),
        Some(RootDisk::Disk { path, format }) => root_disk::open(path, *format).map(Some),
        Some(RootDisk::Tmpfs { .. }) | None => Ok(None),
    }
}

/// Opens the disk of a persistent sandbox. It grows if the configured size has; the guest grows its
/// file system.
fn open_managed(sandbox: &Sandbox, spec: &Spec) -> anyhow::Result<File> {
    let path = sandbox.path(layout::UPPER);
    let cannot = |what: &str| format!("cannot {what} the disk '{}'", path.display());
    let file = OpenOptions::new().read(true).write(true).open(&path);
    let file = file.with_context(|| cannot("open"))?;
    let wanted = spec.upper_mib.saturating_mul(1024 * 1024);
    if file.metadata().with_context(|| cannot("read"))?.len() < wanted {
        file.set_len(wanted).with_context(|| cannot("grow"))?;
    }
    Ok(file)
}

/// Creates the disk of an ephemeral sandbox, without a name.
fn make_upper(sandbox: &Sandbox, spec: &Spec) -> anyhow::Result<File> {
    let path = sandbox.path(layout::UPPER);
    let cannot = || format!("cannot create the disk '{}'", path.display());
    if spec.snapshot.is_some() {
        // The creator has copied the disk of the snapshot.
        let file = open_managed(sandbox, spec)?;
        std::fs::remove_file(&path).with_context(cannot)?;
        return Ok(file);
    }
    let file = write::create_file(&path).with_context(cannot)?;
    std::fs::remove_file(&path).with_context(cannot)?;
    upper::format(&file, spec.upper_mib).with_context(cannot)?;
    Ok(file)
}

/// Returns the description of the VM.
pub(crate) fn vm_spec(setup: &SandboxSetup) -> VmSpec {
    use std::os::fd::AsRawFd;
    let image = setup.image.as_ref().map(|path| DiskDevice {
        serial: SERIAL_ROOT.to_owned(),
        path: path.clone(),
        format: DiskImageFormat::Vmdk,
        read_only: true,
        volatile: false,
    });
    let root_disk = &setup.spec.guest.root_disk;
    let upper = setup.upper.as_ref().map(|file| DiskDevice {
        serial: SERIAL_UPPER.to_owned(),
        // By descriptor: the file that was locked is used, even if it was renamed.
        path: format!("/proc/self/fd/{}", file.as_raw_fd()).into(),
        format: match root_disk {
            RootDisk::Disk { format: DiskFormat::Qcow2, .. } => DiskImageFormat::Qcow2,
            _ => DiskImageFormat::Raw,
        },
        read_only: false,
        volatile: setup.spec.ephemeral && root_disk.is_managed(),
    });
    let mounts = &setup.mounts;
    let disks = image.into_iter().chain(upper).chain(mounts.disks.clone()).collect();
    let share = (!mounts.entries.is_empty()).then(|| ShareDevice {
        tag: PreparedMounts::tag().to_owned(),
        fd: None,
        entries: mounts.entries.clone(),
        host_locks: mounts.host_locks,
    });
    VmSpec {
        cpus: setup.spec.cpus,
        memory_mib: setup.spec.memory_mib,
        disks,
        shares: share.into_iter().collect(),
        net: None,
        tsc: None,
        incoming: false,
        resumed: false,
        recorded: false,
        descriptors: VmDescriptors::NONE,
    }
}

/// Returns the last line that the VMM process or the guest's kernel wrote. In most cases it is the
/// reason for the end.
pub(crate) fn last_log_line(sandbox: &Sandbox) -> Option<String> {
    error_log::copy();
    let last_line = |file: &str| error_log::last_line(&sandbox.path(file));
    last_line(layout::SUPERVISOR_LOG).or_else(|| last_line(layout::CONSOLE_LOG))
}
