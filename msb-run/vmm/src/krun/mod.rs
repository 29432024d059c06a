//! The krun engine: the plan as libkrun's description of a machine, which then runs in this process.
//!
//! The guest's first root is a file system that exists only in this process's memory: the mount points that the agent
//! needs, and the agent itself. How many devices there may be is checked by who makes the plan.
//!
//! libkrun's own C interface (`krun_start_enter`) does what [`Machine::run`] does, and has no device of a caller's own:
//! here the guest's shares are one, in [`share`].
//!
//! libkrun never returns once the guest runs: this process ends with it, without destructors, and with status 0 also when
//! the guest's kernel has panicked. How a sandbox ended is told by its agent alone.

mod library;
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
use libmsb::machine::{Disk, Format, KrunKernel, Net, PORT_AGENT, Plan};

use library::LoadedKernel;

/// The tag of the first root: libkrun's kernel command line names it.
const ROOT: &str = "/dev/root";
/// The first process, in the first root.
const INIT: &str = "init.krun";
/// Mount points of the agent. The first root cannot be written to.
const FOLDERS: [&str; 4] = ["dev", "proc", "sys", "msb"];

const MODE_FOLDER: u32 = 0o040755;
const MODE_PROGRAM: u32 = 0o100755;

/// What the guest accepts from the network (virtio 1.2, 5.1.3): unfinished checksums, and large segments of TCP over
/// IPv4 and IPv6. Without them the guest's buffers are too small for large frames, and libkrun then hangs in a loop.
const NET_FEATURES: u32 = 1 << 1 | 1 << 7 | 1 << 8;

/// What the guest begins with.
pub(crate) enum Kernel<'a> {
    /// libkrunfw's kernel, which this process has loaded, and the agent's program.
    Loaded {
        /// libkrun keeps a pointer to it as long as the guest lives, and that is as long as this process does.
        agent: &'static [u8],
        /// The kernel.
        kernel: LoadedKernel,
    },
    /// Files, which libkrun reads.
    Image {
        kernel: &'a Path,
        initrd: &'a Path,
        cmdline: &'a str,
    },
}

/// Loads what is needed while the host's files can still be seen.
pub(crate) fn load(kernel: &KrunKernel) -> anyhow::Result<Kernel<'_>> {
    match kernel {
        KrunKernel::Library { path, agent } => {
            let kernel = library::load(path)?;
            let agent = fs::read(agent)
                .with_context(|| format!("cannot read the agent '{}'", agent.display()))?
                .leak();
            Ok(Kernel::Loaded { agent, kernel })
        }
        KrunKernel::Image {
            path,
            initrd,
            cmdline,
        } => Ok(Kernel::Image {
            kernel: path,
            initrd,
            cmdline,
        }),
    }
}

/// Becomes the machine. Returns only when that fails, with the reason.
pub(crate) fn enter(plan: &Plan, kernel: &Kernel<'_>) -> anyhow::Result<()> {
    let mut machine = Machine::default();
    machine.set_size(plan)?;
    match kernel {
        Kernel::Loaded { agent, kernel } => machine.add_loaded(agent, kernel)?,
        Kernel::Image {
            kernel,
            initrd,
            cmdline,
        } => machine.set_kernel(kernel, initrd, cmdline)?,
    }
    machine.add_consoles(plan);
    plan.disks
        .iter()
        .try_for_each(|disk| machine.add_disk(disk))?;
    plan.shares
        .iter()
        .for_each(|share| machine.add_share(&share.tag));
    plan.net
        .iter()
        .enumerate()
        .try_for_each(|(index, net)| machine.add_net(index, net))?;
    place_memory(plan, kernel);
    machine.run()
}

/// The guest is the same without, and slower.
fn place_memory(plan: &Plan, kernel: &Kernel<'_>) {
    let place = match kernel {
        Kernel::Loaded { kernel, .. } => Some(kernel.guest),
        Kernel::Image { .. } => None,
    };
    let bytes = plan.memory_mib as usize * 1024 * 1024;
    let _ = placement::prepare(&placement::parts(bytes, place));
}

/// A machine that is being described.
#[derive(Default)]
struct Machine {
    resources: VmResources,
    /// The file systems that are served by this program, by their numbers.
    shares: Vec<(usize, String)>,
}

impl Machine {
    fn set_size(&mut self, plan: &Plan) -> anyhow::Result<()> {
        let size = VmConfig {
            vcpu_count: Some(u8::try_from(plan.cpus).context("too many processors")?),
            mem_size_mib: Some(plan.memory_mib as usize),
            ht_enabled: Some(false),
            cpu_template: None,
        };
        self.resources
            .set_vm_config(&size)
            .map_err(|error| anyhow!("libkrun refuses the machine's size: {error}"))
    }

    /// The kernel, and the first root: in memory, with the agent as the first process.
    fn add_loaded(&mut self, agent: &'static [u8], kernel: &LoadedKernel) -> anyhow::Result<()> {
        self.resources
            .set_kernel_bundle(kernel.bundle())
            .map_err(|error| anyhow!("libkrun refuses the kernel: {error}"))?;
        self.resources.kernel_cmdline = KernelCmdlineConfig {
            prolog: Some(format!("{DEFAULT_KERNEL_CMDLINE} init=/{INIT}")),
            ..KernelCmdlineConfig::default()
        };
        let mut entries = Vec::new();
        for folder in FOLDERS {
            let children = Vec::new();
            entries.push(entry(
                folder,
                MODE_FOLDER,
                VirtualEntryContent::Dir { children },
            )?);
        }
        entries.push(entry(
            INIT,
            MODE_PROGRAM,
            VirtualEntryContent::File { data: agent },
        )?);
        self.add_file_system(ROOT, entries);
        Ok(())
    }

    fn set_kernel(&mut self, kernel: &Path, initrd: &Path, cmdline: &str) -> anyhow::Result<()> {
        let initrd_bytes = fs::metadata(initrd)
            .with_context(|| format!("cannot look at '{}'", initrd.display()))?
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

    /// One console for what the kernel prints, one with the agent's port.
    fn add_consoles(&mut self, plan: &Plan) {
        // It wants a path. That of a pipe's end gives the same pipe, as that of a socket would not.
        let log = PathBuf::from(format!("/proc/self/fd/{}", plan.console_fd));
        self.resources.set_console_output(log);
        // The descriptor is duplicated later, which fails for one that is not open.
        let port = PortConfig::InOut {
            name: PORT_AGENT.to_owned(),
            input_fd: plan.agent_fd,
            output_fd: plan.agent_fd,
        };
        let console = VirtioConsoleConfigMode::Explicit(vec![port]);
        self.resources.virtio_consoles.push(console);
    }

    fn add_disk(&mut self, disk: &Disk) -> anyhow::Result<()> {
        let path = text(&disk.path)?;
        let config = BlockDeviceConfig {
            block_id: disk.serial.clone(),
            cache_type: CacheType::auto(path),
            disk_image_path: path.to_owned(),
            disk_image_format: match disk.format {
                Format::Raw => ImageType::Raw,
                Format::Vmdk => ImageType::Vmdk,
                Format::Qcow2 => ImageType::Qcow2,
            },
            is_disk_read_only: disk.read_only,
            direct_io: false,
            // Whether a guest's flush reaches the host's disk.
            sync_mode: if disk.volatile {
                SyncMode::None
            } else {
                SyncMode::Full
            },
        };
        self.resources
            .add_block_device(config)
            .map_err(|error| anyhow!("{error}"))
            .with_context(|| format!("cannot add the disk '{path}'"))
    }

    /// What is shared, which stands in a folder of this process's own root. Who may write what is told by its mounts.
    fn add_share(&mut self, tag: &str) {
        // An empty one in its place, until the machine is built.
        let number = self.add_file_system(tag, Vec::new());
        self.shares.push((number, tag.to_owned()));
    }

    /// Adds a file system that exists in memory. Returns its number.
    fn add_file_system(&mut self, tag: &str, entries: Vec<VirtualDirEntry>) -> usize {
        self.resources.add_fs_device(FsDeviceConfig {
            fs_id: tag.to_owned(),
            shared_dir: None,
            semantics: PermissionSemantics::LinuxComplete,
            // No window of memory: a guest would map files of the host into itself, past every bound.
            shm_size: None,
            read_only: false,
            virtual_entries: entries,
        });
        self.resources.fs.len() - 1
    }

    fn add_net(&mut self, index: usize, net: &Net) -> anyhow::Result<()> {
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
        // What a macOS host's devices would ask for; nothing here sends.
        let (sender, _receiver) = crossbeam_channel::unbounded();
        let shares = share::prepare(&self.shares)?;
        let machine = build_microvm(&self.resources, &mut events, None, sender)
            .map_err(|error| anyhow!("libkrun cannot build the machine: {error:?}"))?;
        {
            let machine = machine
                .lock()
                .map_err(|_| anyhow!("libkrun is at odds with itself"))?;
            shares
                .into_iter()
                .try_for_each(|share| share.put_into(&machine))?;
        }
        loop {
            events
                .run()
                .map_err(|error| anyhow!("libkrun cannot wait for events: {error:?}"))?;
        }
    }
}

fn entry(name: &str, mode: u32, content: VirtualEntryContent) -> anyhow::Result<VirtualDirEntry> {
    Ok(VirtualDirEntry {
        name: CString::new(name)?,
        entry: VirtualEntry {
            mode,
            one_shot: false,
            content,
        },
    })
}

/// libkrun takes paths in UTF-8 only.
fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().with_context(|| {
        let shown = path.display();
        format!("the engine krun takes no path that is not UTF-8: '{shown}'")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_libkrun_cannot_be_told_is_refused() {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;
        assert!(text(Path::new(OsStr::from_bytes(b"/\xff"))).is_err());
    }

    #[test]
    fn a_share_is_an_empty_file_system_until_the_machine_is_built() {
        let mut machine = Machine::default();
        machine.add_file_system(ROOT, Vec::new());
        machine.add_share("msb");
        assert_eq!(machine.shares, [(1, "msb".to_owned())]);
        assert!(
            machine
                .resources
                .fs
                .iter()
                .all(|fs| fs.shared_dir.is_none())
        );
    }
}
