//! The krun engine: libkrun, where the processor's virtualization works.

use std::path::{Path, PathBuf};

use libmsb::machine::{self, KrunKernel, PLAN_VERSION, Plan};

use super::initramfs::{self, Modules};
use super::kernel::{self, Kernel};
use super::{Console, Engine, Wanted, agent, host, krunfw, vmlinux};

/// For a kernel of the user's; libkrunfw's gets libkrun's own. Quiet; a panic restarts, by the keyboard's controller,
/// which is what libkrun watches; and a console that is no serial line.
const CMDLINE: &str =
    "console=hvc0 panic=-1 reboot=k quiet no-kvmapf random.trust_cpu=on cryptomgr.notests audit=0";

/// How often a boot is tried.
const ATTEMPTS: u32 = 2;

/// libkrun on this host.
#[derive(Debug)]
pub(crate) struct Krun {
    kernel: KrunKernel,
}

impl Krun {
    /// Checks that virtualization works, and finds a kernel and the agent.
    pub(crate) fn find(home: &Path, boot_dir: &Path) -> anyhow::Result<Krun> {
        if let Some(failure) = host::probe_kvm().failure() {
            return Err(failure.into());
        }
        let agent = agent()?;
        let kernel = match kernel::chosen() {
            Some(path) => image(path, &agent, boot_dir)?,
            None => KrunKernel::Library {
                path: krunfw::find(home)?,
                agent,
            },
        };
        Ok(Krun { kernel })
    }
}

/// A kernel of the user's, which has all that it needs built in. Looking through it takes a while, so that is done only
/// when its RAM disk is made.
fn image(path: PathBuf, agent: &Path, boot_dir: &Path) -> anyhow::Result<KrunKernel> {
    let kernel = Kernel {
        image: path,
        modules: None,
    };
    let initrd =
        initramfs::find_or_make(boot_dir, &kernel, agent, Modules::default(), vmlinux::check)?;
    Ok(KrunKernel::Image {
        path: kernel.image,
        initrd,
        cmdline: CMDLINE.to_owned(),
    })
}

impl Engine for Krun {
    fn name(&self) -> &'static str {
        "krun"
    }

    fn console(&self) -> Console {
        Console::Pipe
    }

    fn serves(&self) -> bool {
        true
    }

    fn plan(&self, wanted: &Wanted, attempt: u32) -> anyhow::Result<Option<Plan>> {
        // There is no other way, but the same may do when the host is less busy.
        if attempt >= ATTEMPTS {
            return Ok(None);
        }
        Ok(Some(Plan {
            version: PLAN_VERSION,
            engine: machine::Engine::Krun(machine::Krun {
                kernel: self.kernel.clone(),
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
