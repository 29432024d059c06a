//! The qemu engine: runs everywhere, with the processor's virtualization where that works, else in software.

use std::path::PathBuf;

use libmsb::cli::error::Failure;
use libmsb::machine::{self, Accelerator, Board, PLAN_VERSION, Plan};
use libmsb::tools;

use super::distribution::{self, Part};
use super::host::{self, Kvm};
use super::initramfs::{self, Modules};
use super::kernel::{self, Kernel};
use super::{Console, Engine, Wanted, agent};

const PROGRAM: &str = "qemu-system-x86_64";

/// Quiet; a panic restarts, which ends QEMU, and by a triple fault, since the other ways do not always end a microvm;
/// and none of the kernel's work that a short-lived guest has no use for. The big security modules, which no image
/// configures, cost a tenth of the boot in software; landlock and yama, which programs use by themselves, cost nothing.
/// tsc_early_khz is given apart.
const CMDLINE: &str = "console=ttyS0 panic=-1 reboot=t quiet no_timer_check tsc=reliable random.trust_cpu=on 8250.nr_uarts=1 \
                       cryptomgr.notests audit=0 lsm=landlock,yama";

/// Modules on the way to disks and host; those of the board come first.
const MODULES: &[&str] = &["virtio_blk", "virtio_console", "erofs", "ext4", "overlay"];

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

    fn board(&self, attempt: u32) -> Option<Board> {
        // Emulated, a microvm can hang early when the host is very busy; a whole PC has the timers that it lacks.
        [Board::Microvm, Board::Q35].get(attempt as usize).copied()
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

    fn plan(&self, wanted: &Wanted, attempt: u32) -> anyhow::Result<Option<Plan>> {
        let Some(board) = self.board(attempt) else {
            return Ok(None);
        };
        let mut modules = needed_modules(board, wanted.net.is_some());
        if !wanted.shares.is_empty() {
            modules.push(MODULE_SHARES);
        }
        let modules = Modules {
            needed: &modules,
            later: MODULES_LATER,
        };
        let initrd =
            initramfs::find_or_make(&self.boot_dir, &self.kernel, &self.agent, modules, |_| {
                Ok(())
            })?;
        Ok(Some(Plan {
            version: PLAN_VERSION,
            engine: machine::Engine::Qemu(machine::Qemu {
                program: self.program.clone(),
                board,
                accelerator: self.accelerator,
                kernel: self.kernel.image.clone(),
                initrd,
                cmdline: cmdline(self.accelerator),
            }),
            cpus: wanted.cpus,
            memory_mib: wanted.memory_mib,
            disks: wanted.disks.clone(),
            agent_fd: wanted.descriptors.agent,
            console_fd: wanted.descriptors.console,
            life_fd: wanted.descriptors.life,
            report_fd: wanted.descriptors.report,
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
    initramfs::check(kernel, &needed_modules(Board::Microvm, true))
}

fn needed_modules(board: Board, net: bool) -> Vec<&'static str> {
    let bus = match board {
        Board::Microvm => "virtio_mmio",
        Board::Q35 => "virtio_pci",
    };
    let net = net.then_some(MODULE_NET);
    [bus]
        .into_iter()
        .chain(MODULES.iter().copied())
        .chain(net)
        .collect()
}

/// In software the guest sees the host's time stamp counter; without being told its rate, the kernel measures it
/// against an emulated timer, gives up when the host is busy, and hangs.
fn cmdline(accelerator: Accelerator) -> String {
    match accelerator {
        Accelerator::Tcg => format!("{CMDLINE} tsc_early_khz={}", tsc::khz()),
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

/// The rate of the host's time stamp counter.
mod tsc {
    use std::time::{Duration, Instant};

    /// Long enough for an error below a thousandth, short enough not to be felt.
    const SPAN: Duration = Duration::from_millis(2);

    /// Measures the rate against the monotonic clock, in kHz.
    pub(super) fn khz() -> u64 {
        let (start, count) = (Instant::now(), counter());
        while start.elapsed() < SPAN {
            std::hint::spin_loop();
        }
        let (count, elapsed) = (counter() - count, start.elapsed());
        (u128::from(count) * 1_000_000 / elapsed.as_nanos().max(1)) as u64
    }

    fn counter() -> u64 {
        // SAFETY: every x86-64 processor has this instruction, and it reads nothing but a counter.
        unsafe { core::arch::x86_64::_rdtsc() }
    }
}
