//! The krun engine: translates the plan into libkrun's description of a VM, which then runs in this
//! process.
//!
//! The guest's first root is a file system in the memory of this process. It contains the mount
//! points that the agent needs, and the agent itself. The maker of the plan checks the number of
//! devices.
//!
//! libkrun's C interface (`krun_start_enter`) does the same as [`VmBuilder::run`] but does not
//! support devices of the caller. Here the guest's shares are such a device, in [`share`].
//!
//! libkrun never returns once the guest runs. This process ends with the guest, without
//! destructors, and with status 0 even when the guest's kernel has panicked. Only the agent reports
//! how a sandbox ended.

mod library;
mod memory_range;
#[cfg(feature = "huge-pages")]
mod placement;
mod share;

use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use krun_devices::virtio::CacheType;
use krun_devices::virtio::block::{ImageType, SyncMode};
use krun_devices::virtio::net::device::VirtioNetBackend;
use krun_devices::virtio::passthrough::PermissionSemantics;
use krun_devices::virtio::virtual_entry::{VirtualDirEntry, VirtualEntry, VirtualEntryContent};
use krun_polly::event_manager::EventManager;
use krun_vmm::builder::build_microvm;
use krun_vmm::resources::{PortConfig, VirtioConsoleConfigMode, VmResources};
use krun_vmm::vmm_config::block::BlockDeviceConfig;
use krun_vmm::vmm_config::external_kernel::{ExternalKernel, KernelFormat};
use krun_vmm::vmm_config::fs::FsDeviceConfig;
use krun_vmm::vmm_config::kernel_cmdline::{DEFAULT_KERNEL_CMDLINE, KernelCmdlineConfig};
use krun_vmm::vmm_config::machine_config::VmConfig;
use krun_vmm::vmm_config::net::NetworkInterfaceConfig;
use libmsb::machine::{DiskDevice, DiskImageFormat, KrunKernel, NetDevice, PORT_AGENT, VmPlan};

use library::LoadedKernel;

/// Tag of the first root: libkrun's kernel command line names it.
const ROOT: &str = "/dev/root";
/// The first process, in the first root.
const INIT: &str = "init.krun";
/// Mount points of the agent. The first root is read-only.
const DIRECTORIES: [&str; 4] = ["dev", "proc", "sys", "msb"];

const MODE_DIRECTORY: u32 = libc::S_IFDIR | 0o755;
const MODE_PROGRAM: u32 = libc::S_IFREG | 0o755;

/// Features that the guest negotiates for the network (virtio 1.2, 5.1.3): partial checksums, and
/// large TCP segments over IPv4 and IPv6. Without them the guest's buffers are too small for large
/// frames, and libkrun then hangs in a loop.
const NET_FEATURES: u32 =
    VIRTIO_NET_F_GUEST_CSUM | VIRTIO_NET_F_GUEST_TSO4 | VIRTIO_NET_F_GUEST_TSO6;
const VIRTIO_NET_F_GUEST_CSUM: u32 = 1 << 1;
const VIRTIO_NET_F_GUEST_TSO4: u32 = 1 << 7;
const VIRTIO_NET_F_GUEST_TSO6: u32 = 1 << 8;

/// The kernel that the guest boots.
pub(crate) enum GuestKernel<'a> {
    /// libkrunfw's kernel, loaded into this process, and the agent's program.
    Loaded {
        /// The agent. libkrun keeps a pointer to it for the life of the guest, which is that of
        /// this process.
        agent: &'static [u8],
        /// The kernel.
        kernel: LoadedKernel,
    },
    /// Files that libkrun reads.
    Image { kernel: &'a Path, initrd: &'a Path, cmdline: &'a str },
}

/// Loads the kernel and the agent while the host's files are still visible.
pub(crate) fn load(kernel: &KrunKernel) -> anyhow::Result<GuestKernel<'_>> {
    match kernel {
        KrunKernel::Library { path, agent } => {
            let kernel = library::load(path)?;
            let agent = fs::read(agent)
                .with_context(|| format!("cannot read the agent '{}'", agent.display()))?
                .leak();
            Ok(GuestKernel::Loaded { agent, kernel })
        }
        KrunKernel::Image { path, initrd, cmdline } => {
            Ok(GuestKernel::Image { kernel: path, initrd, cmdline })
        }
    }
}

/// Runs the VM in this process. Returns only on failure, with the reason.
pub(crate) fn enter(plan: &VmPlan, kernel: &GuestKernel<'_>) -> anyhow::Result<()> {
    let mut builder = VmBuilder::default();
    builder.set_size(plan)?;
    match kernel {
        GuestKernel::Loaded { agent, kernel } => builder.add_loaded(agent, kernel)?,
        GuestKernel::Image { kernel, initrd, cmdline } => {
            builder.set_kernel(kernel, initrd, cmdline)?
        }
    }
    builder.add_consoles(plan);
    plan.disks.iter().try_for_each(|disk| builder.add_disk(disk))?;
    plan.shares.iter().for_each(|share| builder.add_share(&share.tag, share.host_locks));
    plan.net.iter().enumerate().try_for_each(|(index, net)| builder.add_net(index, net))?;
    #[cfg(feature = "huge-pages")]
    place_memory(plan, kernel);
    builder.run()
}

/// Chooses the address of the guest's memory. Without it the guest is the same, but slower.
#[cfg(feature = "huge-pages")]
fn place_memory(plan: &VmPlan, kernel: &GuestKernel<'_>) {
    let place = match kernel {
        GuestKernel::Loaded { kernel, .. } => Some(kernel.guest),
        GuestKernel::Image { .. } => None,
    };
    let bytes = plan.memory_mib as usize * 1024 * 1024;
    let _ = placement::reserve(&placement::memory_ranges(bytes, place));
}

/// A description of a VM for libkrun.
#[derive(Default)]
struct VmBuilder {
    resources: VmResources,
    /// File systems that this program serves.
    shares: Vec<share::PlannedShare>,
}

impl VmBuilder {
    fn set_size(&mut self, plan: &VmPlan) -> anyhow::Result<()> {
        let size = VmConfig {
            vcpu_count: Some(u8::try_from(plan.cpus).context("too many processors")?),
            mem_size_mib: Some(plan.memory_mib as usize),
            ht_enabled: Some(false),
            cpu_template: None,
        };
        self.resources
            .set_vm_config(&size)
            .map_err(|error| anyhow!("libkrun refuses the size of the VM: {error}"))
    }

    /// Sets the kernel and adds the first root: in memory, with the agent as the first process.
    fn add_loaded(&mut self, agent: &'static [u8], kernel: &LoadedKernel) -> anyhow::Result<()> {
        self.resources
            .set_kernel_bundle(kernel.bundle())
            .map_err(|error| anyhow!("libkrun refuses the kernel: {error}"))?;
        self.resources.kernel_cmdline = KernelCmdlineConfig {
            prolog: Some(format!("{DEFAULT_KERNEL_CMDLINE} init=/{INIT}")),
            ..KernelCmdlineConfig::default()
        };
        let mut entries = Vec::new();
        for directory in DIRECTORIES {
            let children = Vec::new();
            entries.push(entry(directory, MODE_DIRECTORY, VirtualEntryContent::Dir { children })?);
        }
        entries.push(entry(INIT, MODE_PROGRAM, VirtualEntryContent::File { data: agent })?);
        self.add_file_system(ROOT, entries);
        Ok(())
    }

    fn set_kernel(&mut self, kernel: &Path, initrd: &Path, cmdline: &str) -> anyhow::Result<()> {
        let initrd_bytes = fs::metadata(initrd)
            .with_context(|| format!("cannot stat '{}'", initrd.display()))?
            .len();
        self.resources.set_external_kernel(ExternalKernel {
            path: kernel.to_owned(),
            format: KernelFormat::Elf,
            initramfs_path: Some(initrd.to_owned()),
            initramfs_size: initrd_bytes,
            cmdline: Some(cmdline.to_owned()),
        });
        Ok(())
    }

    /// Adds a console for the kernel's output and one with the agent's port.
    fn add_consoles(&mut self, plan: &VmPlan) {
        // libkrun requires a path. A path works for the end of a pipe but would not for a socket.
        let log = PathBuf::from(format!("/proc/self/fd/{}", plan.console_fd));
        self.resources.set_console_output(log);
        // libkrun duplicates the descriptor later, which fails if it is not open.
        let port = PortConfig::InOut {
            name: PORT_AGENT.to_owned(),
            input_fd: plan.agent_fd,
            output_fd: plan.agent_fd,
        };
        let console = VirtioConsoleConfigMode::Explicit(vec![port]);
        self.resources.virtio_consoles.push(console);
    }

    fn add_disk(&mut self, disk: &DiskDevice) -> anyhow::Result<()> {
        let path = utf8_path(&disk.path)?;
        let config = BlockDeviceConfig {
            block_id: disk.serial.clone(),
            cache_type: CacheType::auto(path),
            disk_image_path: path.to_owned(),
            disk_image_format: match disk.format {
                DiskImageFormat::Raw => ImageType::Raw,
                DiskImageFormat::Vmdk => ImageType::Vmdk,
                DiskImageFormat::Qcow2 => ImageType::Qcow2,
            },
            is_disk_read_only: disk.read_only,
            direct_io: false,
            // The mode decides whether a guest's flush reaches the host's disk.
            sync_mode: if disk.volatile { SyncMode::None } else { SyncMode::Full },
        };
        self.resources
            .add_block_device(config)
            .map_err(|error| anyhow!("{error}"))
            .with_context(|| format!("cannot add the disk '{path}'"))
    }

    /// Adds the share, a directory in the mount namespace of this process. The mounts there decide
    /// which entries are writable.
    fn add_share(&mut self, tag: &str, host_locks: bool) {
        // An empty file system is the placeholder until the VM is built.
        let number = self.add_file_system(tag, Vec::new());
        self.shares.push(share::PlannedShare { number, tag: tag.to_owned(), host_locks });
    }

    /// Adds a file system in memory. Returns its number.
    fn add_file_system(&mut self, tag: &str, entries: Vec<VirtualDirEntry>) -> usize {
        self.resources.add_fs_device(FsDeviceConfig {
            fs_id: tag.to_owned(),
            shared_dir: None,
            semantics: PermissionSemantics::LinuxComplete,
            // No DAX window: a guest would map host files into its memory without any limit.
            shm_size: None,
            read_only: false,
            virtual_entries: entries,
        });
        self.resources.fs.len() - 1
    }

    fn add_net(&mut self, index: usize, net: &NetDevice) -> anyhow::Result<()> {
        let config = NetworkInterfaceConfig {
            iface_id: format!("eth{index}"),
            backend: VirtioNetBackend::UnixstreamFd(net.fd),
            mac: net.mac,
            features: NET_FEATURES,
        };
        self.resources
            .add_network_interface(config)
            .map_err(|error| anyhow!("cannot add the network: {error}"))
    }

    /// Runs the guest. This process ends with it.
    fn run(self) -> anyhow::Result<()> {
        let mut events =
            EventManager::new().map_err(|error| anyhow!("cannot wait for events: {error:?}"))?;
        // For requests of devices on a macOS host; nothing sends here.
        let (sender, _receiver) = crossbeam_channel::unbounded();
        let shares = share::prepare(&self.shares)?;
        let vm = build_microvm(&self.resources, &mut events, None, sender)
            .map_err(|error| anyhow!("libkrun cannot build the VM: {error:?}"))?;
        {
            let vm = vm.lock().map_err(|_| anyhow!("a thread of libkrun panicked"))?;
            shares.into_iter().try_for_each(|share| share.replace_device(&vm))?;
        }
        loop {
            events.run().map_err(|error| anyhow!("libkrun cannot wait for events: {error:?}"))?;
        }
    }
}

fn entry(name: &str, mode: u32, content: VirtualEntryContent) -> anyhow::Result<VirtualDirEntry> {
    Ok(VirtualDirEntry {
        name: CString::new(name)?,
        entry: VirtualEntry { mode, one_shot: false, content },
    })
}

/// Returns a path as text. libkrun accepts only UTF-8.
fn utf8_path(path: &Path) -> anyhow::Result<&str> {
    path.to_str().with_context(|| {
        let shown = path.display();
        format!("the engine krun does not support a path that is not UTF-8: '{shown}'")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_is_not_utf8_is_refused() {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;
        assert!(utf8_path(Path::new(OsStr::from_bytes(b"/\xff"))).is_err());
    }

    #[test]
    fn a_share_is_an_empty_file_system_until_the_machine_is_built() {
        let mut builder = VmBuilder::default();
        builder.add_file_system(ROOT, Vec::new());
        builder.add_share("msb", true);
        let planned = share::PlannedShare { number: 1, tag: "msb".to_owned(), host_locks: true };
        assert_eq!(builder.shares, [planned]);
        assert!(builder.resources.fs.iter().all(|fs| fs.shared_dir.is_none()));
    }
}
