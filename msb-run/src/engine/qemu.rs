//! The qemu engine: runs on every host, with KVM if that works, else in software emulation.

use std::path::PathBuf;

use anyhow::bail;
use libmsb::cli::error::Failure;
use libmsb::machine::{self, Accelerator, Board, PLAN_VERSION, VmPlan};
use libmsb::tools;

use super::distribution::{self, HostPackage};
use super::host::{self, KvmSupport};
use super::initramfs::{self, InitramfsModules};
use super::kernel::{self, GuestKernel};
use super::kind::{KindTraits, TscRate, VmKind};
use super::{ConsoleKind, Engine, VmSpec, agent};

const PROGRAM: &str = "qemu-system-x86_64";
/// The program that builds QEMU's command line.
const VMM: &str = "msb-vmm";

/// Kernel command line. Quiet; a panic restarts, which ends QEMU, by a triple fault, since the
/// other ways do not always end a microvm; and no kernel work that is useless for a short-lived
/// guest. The large security modules, which no image configures, cost a tenth of the boot in
/// software emulation; landlock and yama, which programs use by themselves, cost nothing.
/// tsc_early_khz is added separately.
const CMDLINE: &str = "console=ttyS0 panic=-1 reboot=t quiet no_timer_check tsc=reliable \
                       random.trust_cpu=on 8250.nr_uarts=1 \
                       cryptomgr.notests audit=0 lsm=landlock,yama";

/// Module of the connection to the host; that of the board comes first.
const MODULE_CONSOLE: &str = "virtio_console";
/// Modules of disks and their file systems.
const MODULES: &[&str] = &["virtio_blk", "erofs", "ext4", "overlay"];

/// Module of the network, for a guest that has one.
const MODULE_NET: &str = "virtio_net";
/// Module for shared directories.
const MODULE_SHARES: &str = "virtiofs";

/// Modules that return freed guest memory to the host.
const MODULES_LATER: &[&str] = &["virtio_balloon"];

/// QEMU on this host.
#[derive(Debug)]
pub(crate) struct QemuEngine {
    program: PathBuf,
    kernel: GuestKernel,
    agent: PathBuf,
    accelerator: Accelerator,
    boot_dir: PathBuf,
}

impl QemuEngine {
    /// Finds QEMU, a kernel and the agent.
    pub(crate) fn find(boot_dir: PathBuf) -> anyhow::Result<QemuEngine> {
        Ok(QemuEngine {
            program: program()?,
            kernel: kernel::find()?,
            agent: agent()?,
            accelerator: accelerator(),
            boot_dir,
        })
    }

    fn board(shares: bool, attempt: u32) -> Option<Board> {
        // In software emulation a microvm can hang early when the host is very busy; a whole PC has
        // the timers that it lacks. A microvm has no hot-plug.
        let boards = if shares { [Board::Q35, Board::Q35] } else { [Board::Microvm, Board::Q35] };
        boards.get(attempt as usize).copied()
    }

    fn initrd(&self, board: Board, net: bool, shares: bool) -> anyhow::Result<PathBuf> {
        let held = held_modules(net, shares);
        let modules = InitramfsModules {
            needed: &[bus_module(board), MODULE_CONSOLE],
            held: Some(&held),
            later: MODULES_LATER,
        };
        initramfs::find_or_make(&self.boot_dir, &self.kernel, &self.agent, modules, |_| Ok(()))
    }
}

impl Engine for QemuEngine {
    fn name(&self) -> &'static str {
        "qemu"
    }

    fn console(&self) -> ConsoleKind {
        ConsoleKind::Socket
    }

    fn serves(&self) -> bool {
        false
    }

    fn check(&self, _: &VmSpec, _: bool) -> anyhow::Result<()> {
        Ok(())
    }

    fn starts_from_memory(&self) -> bool {
        true
    }

    fn kind(&self, vm: &VmSpec, net: bool) -> anyhow::Result<Option<VmKind>> {
        let shares = !vm.shares.is_empty();
        let Some(board) = QemuEngine::board(shares, 0) else {
            return Ok(None);
        };
        let vmm = tools::find(VMM).ok();
        let initrd = self.initrd(board, net, shares)?;
        let traits = KindTraits {
            program: &self.program,
            vmm: vmm.as_deref(),
            kernel: &self.kernel.image,
            initrd: &initrd,
            cmdline: CMDLINE,
            board,
            accelerator: self.accelerator,
            cpus: vm.cpus,
            memory_mib: vm.memory_mib,
            disks: vm.disks.len(),
            net,
            shares,
        };
        Ok(traits.kind())
    }

    fn plan(&self, vm: &VmSpec, attempt: u32) -> anyhow::Result<Option<VmPlan>> {
        let shares = !vm.shares.is_empty();
        let Some(board) = QemuEngine::board(shares, attempt) else {
            return Ok(None);
        };
        let descriptors = vm.descriptors;
        let (Some(monitor_fd), Some(memory_fd)) = (descriptors.monitor, descriptors.memory) else {
            bail!("the VM has no monitor and no memory");
        };
        let tsc = vm.tsc.unwrap_or_else(TscRate::measure);
        Ok(Some(VmPlan {
            version: PLAN_VERSION,
            engine: machine::Engine::Qemu(machine::QemuPlan {
                program: self.program.clone(),
                board,
                accelerator: self.accelerator,
                kernel: self.kernel.image.clone(),
                initrd: self.initrd(board, vm.net.is_some(), shares)?,
                cmdline: cmdline(self.accelerator, tsc, vm.recorded),
                monitor_fd,
                memory_fd,
                incoming: vm.incoming,
                resumed: vm.resumed,
            }),
            cpus: vm.cpus,
            memory_mib: vm.memory_mib,
            disks: vm.disks.clone(),
            agent_fd: descriptors.agent,
            console_fd: descriptors.console,
            life_fd: descriptors.life,
            report_fd: descriptors.report,
            net: vm.net.clone(),
            shares: vm.shares.clone(),
        }))
    }
}

/// Finds the program.
pub(crate) fn program() -> anyhow::Result<PathBuf> {
    tools::find(PROGRAM).map_err(|_| {
        let how = distribution::how_to_install(HostPackage::Qemu);
        Failure::failed(format!("cannot find '{PROGRAM}' in PATH"))
            .hint(format!("install QEMU: {how}"))
            .into()
    })
}

/// Checks that a kernel has the modules that a guest needs.
pub(crate) fn check_modules(kernel: &GuestKernel) -> anyhow::Result<()> {
    let mut modules = vec![bus_module(Board::Microvm), MODULE_CONSOLE];
    modules.extend(held_modules(true, false));
    initramfs::check(kernel, &modules)
}

fn bus_module(board: Board) -> &'static str {
    match board {
        Board::Microvm => "virtio_mmio",
        Board::Q35 => "virtio_pci",
    }
}

fn held_modules(net: bool, shares: bool) -> Vec<&'static str> {
    let net = net.then_some(MODULE_NET);
    let shares = shares.then_some(MODULE_SHARES);
    MODULES.iter().copied().chain(net).chain(shares).collect()
}

/// Returns the kernel command line. In software emulation the guest sees the host's TSC. Without
/// its rate the kernel measures it against an emulated timer, gives up when the host is busy, and
/// hangs.
fn cmdline(accelerator: Accelerator, tsc: TscRate, recorded: bool) -> String {
    // The kernel passes a parameter that it does not know to the agent, as an environment variable.
    let recorded = if recorded { " msb_record=1" } else { "" };
    match accelerator {
        Accelerator::Tcg => format!("{CMDLINE} tsc_early_khz={}{recorded}", tsc.0),
        Accelerator::Kvm => format!("{CMDLINE}{recorded}"),
    }
}

/// Returns KVM if it works at this moment.
fn accelerator() -> Accelerator {
    match host::probe_kvm() {
        KvmSupport::Works => Accelerator::Kvm,
        _ => Accelerator::Tcg,
    }
}
