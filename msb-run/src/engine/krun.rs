//! The krun engine: libkrun, which needs KVM.

use std::path::{Path, PathBuf};

use libmsb::cli::error::Failure;
use libmsb::machine::{self, KrunKernel, PLAN_VERSION, VmPlan};

use super::initramfs::{self, InitramfsModules};
use super::kernel::{self, GuestKernel};
use super::{ConsoleKind, Engine, VmSpec, agent, host, krunfw, vmlinux};

/// Command line for a kernel of the user; libkrunfw's kernel gets libkrun's own. Quiet; a panic
/// restarts through the keyboard controller, which libkrun watches; the console is not a serial
/// line.
const CMDLINE: &str =
    "console=hvc0 panic=-1 reboot=k quiet no-kvmapf random.trust_cpu=on cryptomgr.notests audit=0";

/// Maximum number of disks, shares and networks of a VM together. Its devices share eleven
/// interrupts, and every VM uses five (memory balloon, entropy, two consoles, the first root).
const DEVICES_MAX: usize = 6;

/// Number of boot attempts.
const ATTEMPTS: u32 = 2;

/// libkrun on this host.
#[derive(Debug)]
pub(crate) struct KrunEngine {
    kernel: KrunKernel,
}

impl KrunEngine {
    /// Checks that KVM works, and finds a kernel and the agent.
    pub(crate) fn find(home: &Path, boot_dir: &Path) -> anyhow::Result<KrunEngine> {
        if let Some(failure) = host::probe_kvm().failure() {
            return Err(failure.into());
        }
        let agent = agent()?;
        let kernel = match kernel::from_environment() {
            Some(path) => image(path, &agent, boot_dir)?,
            None => KrunKernel::Library { path: krunfw::find(home)?, agent },
        };
        Ok(KrunEngine { kernel })
    }
}

/// Returns a kernel of the user, which has all options built in. Checking it takes a while and is
/// done only when its initramfs is made.
fn image(path: PathBuf, agent: &Path, boot_dir: &Path) -> anyhow::Result<KrunKernel> {
    kernel::kernel_metadata(&path)?;
    let kernel = GuestKernel { image: path, modules: None };
    let initrd = initramfs::find_or_make(
        boot_dir,
        &kernel,
        agent,
        InitramfsModules::default(),
        vmlinux::check,
    )?;
    Ok(KrunKernel::Image { path: kernel.image, initrd, cmdline: CMDLINE.to_owned() })
}

impl Engine for KrunEngine {
    fn name(&self) -> &'static str {
        "krun"
    }

    fn console(&self) -> ConsoleKind {
        ConsoleKind::Pipe
    }

    fn serves(&self) -> bool {
        true
    }

    fn check(&self, vm: &VmSpec, net: bool) -> anyhow::Result<()> {
        let devices = vm.disks.len() + vm.shares.len() + usize::from(net);
        if devices > DEVICES_MAX {
            return Err(Failure::failed(format!(
                "the engine krun supports at most {DEVICES_MAX} disks, shares and networks \
                 together: {devices} requested"
            ))
            .hint(
                "all shared directories and files count as one share; \
                 or use the engine qemu: --engine qemu",
            )
            .into());
        }
        // libkrun accepts only paths in UTF-8.
        match vm.disks.iter().find(|disk| disk.path.to_str().is_none()) {
            None => Ok(()),
            Some(disk) => Err(Failure::failed(format!(
                "the engine krun does not support a path that is not UTF-8: '{}'",
                disk.path.display()
            ))
            .hint("use another path, or the engine qemu: --engine qemu")
            .into()),
        }
    }

    fn plan(&self, vm: &VmSpec, attempt: u32) -> anyhow::Result<Option<VmPlan>> {
        // There is no other way, but the same may succeed when the host is less busy.
        if attempt >= ATTEMPTS {
            return Ok(None);
        }
        Ok(Some(VmPlan {
            version: PLAN_VERSION,
            engine: machine::Engine::Krun(machine::KrunPlan { kernel: self.kernel.clone() }),
            cpus: vm.cpus,
            memory_mib: vm.memory_mib,
            disks: vm.disks.clone(),
            agent_fd: vm.descriptors.agent,
            console_fd: vm.descriptors.console,
            life_fd: vm.descriptors.life,
            report_fd: vm.descriptors.report,
            net: vm.net.clone(),
            shares: vm.shares.clone(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::VmDescriptors;
    use libmsb::machine::{DiskDevice, DiskImageFormat};

    fn refusal(paths: &[&std::ffi::OsStr], net: bool) -> Option<String> {
        let engine = KrunEngine {
            kernel: KrunKernel::Library { path: "/nowhere".into(), agent: "/nowhere".into() },
        };
        let disk = |path: &&std::ffi::OsStr| DiskDevice {
            serial: "disk".to_owned(),
            path: path.into(),
            format: DiskImageFormat::Raw,
            read_only: true,
            volatile: false,
        };
        let vm = VmSpec {
            cpus: 1,
            memory_mib: 64,
            disks: paths.iter().map(disk).collect(),
            shares: Vec::new(),
            net: None,
            tsc: None,
            incoming: false,
            resumed: false,
            recorded: false,
            descriptors: VmDescriptors::NONE,
        };
        let refused = engine.check(&vm, net).err();
        refused.map(|error| error.to_string())
    }

    #[test]
    fn a_vm_with_more_devices_than_interrupts_is_refused() {
        let disks = ["/disk".as_ref(); DEVICES_MAX];
        assert_eq!(refusal(&disks, false), None);
        let error = refusal(&disks, true).unwrap();
        assert!(error.ends_with("together: 7 requested"), "{error}");
    }

    #[test]
    fn a_path_that_is_not_utf8_is_refused() {
        use std::os::unix::ffi::OsStrExt;
        let path = std::ffi::OsStr::from_bytes(b"/\xff");
        let error = refusal(&[path], false).unwrap();
        assert!(error.contains("not UTF-8"), "{error}");
    }
}
