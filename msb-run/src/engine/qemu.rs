//! The qemu engine: runs everywhere, with the processor's virtualization where that works, else in software.

use std::path::PathBuf;

use anyhow::bail;
use libmsb::cli::error::Failure;
use libmsb::machine::{self, Accelerator, Board, PLAN_VERSION, Plan};
use libmsb::tools;

use super::distribution::{self, Part};
use super::host::{self, Kvm};
use super::initramfs::{self, Modules};
use super::kernel::{self, Kernel};
use super::kind::{Kind, Traits, TscRate};
use super::{Console, Engine, Wanted, agent};

const PROGRAM: &str = "qemu-system-x86_64";
/// What makes QEMU's command line.
const VMM: &str = "msb-vmm";

/// Quiet; a panic restarts, which ends QEMU, and by a triple fault, since the other ways do not always end a microvm;
/// and none of the kernel's work that a short-lived guest has no use for. The big security modules, which no image
/// configures, cost a tenth of the boot in software; landlock and yama, which programs use by themselves, cost nothing.
/// tsc_early_khz is given apart.
const CMDLINE: &str = "console=ttyS0 panic=-1 reboot=t quiet no_timer_check tsc=reliable random.trust_cpu=on 8250.nr_uarts=1 \
                       cryptomgr.notests audit=0 lsm=landlock,yama";

/// The module of the way to the host; that of the board comes first.
const MODULE_CONSOLE: &str = "virtio_console";
/// Modules of disks and their file systems.
const MODULES: &[&str] = &["virtio_blk", "erofs", "ext4", "overlay"];

/// The network's, for a guest that has one.
const MODULE_NET: &str = "virtio_net";
/// What a guest with shared folders needs besides.
const MODULE_SHARES: &str = "virtiofs";

/// The guest gives memory that it has freed back through this.
const MODULES_LATER: &[&str] = &["virtio_balloon"];

/// QEMU on this host.
#[derive(Debug)]
pub(crate) struct Qemu {
    program: PathBuf,
    kernel: Kernel,
    agent: PathBuf,
    accelerator: Accelerator,
    boot_dir: PathBuf,
}

impl Qemu {
    /// Finds QEMU, a kernel and the agent.
    pub(crate) fn find(boot_dir: PathBuf) -> anyhow::Result<Qemu> {
        Ok(Qemu {
            program: program()?,
            kernel: kernel::find()?,
            agent: agent()?,
            accelerator: accelerator(),
            boot_dir,
        })
    }

    fn board(shares: bool, attempt: u32) -> Option<Board> {
        // Emulated, a microvm can hang early when the host is very busy; a whole PC has the timers that it lacks. Nothing can
        // be plugged into a microvm.
        let boards = if shares {
            [Board::Q35, Board::Q35]
        } else {
            [Board::Microvm, Board::Q35]
        };
        boards.get(attempt as usize).copied()
    }

    fn initrd(&self, board: Board, net: bool, shares: bool) -> anyhow::Result<PathBuf> {
        let held = held_modules(net, shares);
        let modules = Modules {
            needed: &[bus_module(board), MODULE_CONSOLE],
            held: Some(&held),
            later: MODULES_LATER,
        };
        initramfs::find_or_make(&self.boot_dir, &self.kernel, &self.agent, modules, |_| {
            Ok(())
        })
    }
}

impl Engine for Qemu {
    fn name(&self) -> &'static str {
        "qemu"
    }

    fn console(&self) -> Console {
        Console::Socket
    }

    fn serves(&self) -> bool {
        false
    }

    fn check(&self, _: &Wanted, _: bool) -> anyhow::Result<()> {
        Ok(())
    }

    fn starts_from_memory(&self) -> bool {
        true
    }

    fn kind(&self, wanted: &Wanted, net: bool) -> anyhow::Result<Option<Kind>> {
        let shares = !wanted.shares.is_empty();
        let Some(board) = Qemu::board(shares, 0) else {
            return Ok(None);
        };
        let vmm = tools::find(VMM).ok();
        let initrd = self.initrd(board, net, shares)?;
        let traits = Traits {
            program: &self.program,
            vmm: vmm.as_deref(),
            kernel: &self.kernel.image,
            initrd: &initrd,
            cmdline: CMDLINE,
            board,
            accelerator: self.accelerator,
            cpus: wanted.cpus,
            memory_mib: wanted.memory_mib,
            disks: wanted.disks.len(),
            net,
            shares,
        };
        Ok(traits.kind())
    }

    fn plan(&self, wanted: &Wanted, attempt: u32) -> anyhow::Result<Option<Plan>> {
        let shares = !wanted.shares.is_empty();
        let Some(board) = Qemu::board(shares, attempt) else {
            return Ok(None);
        };
        let descriptors = wanted.descriptors;
        let (Some(monitor_fd), Some(memory_fd)) = (descriptors.monitor, descriptors.memory) else {
            bail!("the machine was given no monitor and no memory");
        };
        let tsc = wanted.tsc.unwrap_or_else(TscRate::measure);
        Ok(Some(Plan {
            version: PLAN_VERSION,
            engine: machine::Engine::Qemu(machine::Qemu {
                program: self.program.clone(),
                board,
                accelerator: self.accelerator,
                kernel: self.kernel.image.clone(),
                initrd: self.initrd(board, wanted.net.is_some(), shares)?,
                cmdline: cmdline(self.accelerator, tsc),
                monitor_fd,
                memory_fd,
                incoming: wanted.incoming,
            }),
            cpus: wanted.cpus,
            memory_mib: wanted.memory_mib,
            disks: wanted.disks.clone(),
            agent_fd: descriptors.agent,
            console_fd: descriptors.console,
            life_fd: descriptors.life,
            report_fd: descriptors.report,
            net: wanted.net.clone(),
            shares: wanted.shares.clone(),
        }))
    }
}

/// The program.
pub(crate) fn program() -> anyhow::Result<PathBuf> {
    tools::find(PROGRAM).map_err(|_| {
        let how = distribution::how_to_install(Part::Qemu);
        Failure::failed(format!("cannot find '{PROGRAM}' in PATH"))
            .hint(format!("install QEMU: {how}"))
            .into()
    })
}

/// Whether the modules that a guest needs can be had of this kernel.
pub(crate) fn check_modules(kernel: &Kernel) -> anyhow::Result<()> {
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

/// In software the guest sees the host's time stamp counter; without being told its rate, the kernel measures it
/// against an emulated timer, gives up when the host is busy, and hangs.
fn cmdline(accelerator: Accelerator, tsc: TscRate) -> String {
    match accelerator {
        Accelerator::Tcg => format!("{CMDLINE} tsc_early_khz={}", tsc.0),
        Accelerator::Kvm => CMDLINE.to_owned(),
    }
}

/// The processor's virtualization, if a virtual machine could use it just now.
fn accelerator() -> Accelerator {
    match host::probe_kvm() {
        Kvm::Works => Accelerator::Kvm,
        _ => Accelerator::Tcg,
    }
}
