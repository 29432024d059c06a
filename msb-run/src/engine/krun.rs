//! The krun engine: libkrun, where the processor's virtualization works.

use std::path::{Path, PathBuf};

use libmsb::cli::error::Failure;
use libmsb::machine::{self, KrunKernel, PLAN_VERSION, Plan};

use super::initramfs::{self, Modules};
use super::kernel::{self, Kernel};
use super::{Console, Engine, Wanted, agent, host, krunfw, vmlinux};

/// For a kernel of the user's; libkrunfw's gets libkrun's own. Quiet; a panic restarts, by the keyboard's controller,
/// which is what libkrun watches; and a console that is no serial line.
const CMDLINE: &str =
    "console=hvc0 panic=-1 reboot=k quiet no-kvmapf random.trust_cpu=on cryptomgr.notests audit=0";

/// Disks, shares and networks of a machine, together: its devices have eleven interrupts among them, and five are taken by
/// what every machine has (memory balloon, entropy, two consoles, the first root).
const DEVICES_MAX: usize = 6;

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
    kernel::named(&path)?;
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

    fn check(&self, wanted: &Wanted, net: bool) -> anyhow::Result<()> {
        let devices = wanted.disks.len() + wanted.shares.len() + usize::from(net);
        if devices > DEVICES_MAX {
            return Err(Failure::failed(format!(
                "the engine krun has room for {DEVICES_MAX} disks, shares and networks together, and {devices} are asked for"
            ))
            .hint("folders and files are one share, however many they are; or use the engine qemu: --engine qemu")
            .into());
        }
        // libkrun takes paths in UTF-8 only.
        match wanted
            .disks
            .iter()
            .find(|disk| disk.path.to_str().is_none())
        {
            None => Ok(()),
            Some(disk) => Err(Failure::failed(format!(
                "the engine krun takes no path that is not UTF-8: '{}'",
                disk.path.display()
            ))
            .hint("use another path, or the engine qemu: --engine qemu")
            .into()),
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Descriptors;
    use libmsb::machine::{Disk, Format};

    fn refusal(paths: &[&std::ffi::OsStr], net: bool) -> Option<String> {
        let engine = Krun {
            kernel: KrunKernel::Library {
                path: "/nowhere".into(),
                agent: "/nowhere".into(),
            },
        };
        let disk = |path: &&std::ffi::OsStr| Disk {
            serial: "disk".to_owned(),
            path: path.into(),
            format: Format::Raw,
            read_only: true,
            volatile: false,
        };
        let wanted = Wanted {
            cpus: 1,
            memory_mib: 64,
            disks: paths.iter().map(disk).collect(),
            shares: Vec::new(),
            net: None,
            tsc: None,
            incoming: false,
            descriptors: Descriptors::NONE,
        };
        let refused = engine.check(&wanted, net).err();
        refused.map(|error| error.to_string())
    }

    #[test]
    fn a_machine_with_more_devices_than_there_are_interrupts_is_refused() {
        let disks = ["/disk".as_ref(); DEVICES_MAX];
        assert_eq!(refusal(&disks, false), None);
        let error = refusal(&disks, true).unwrap();
        assert!(error.ends_with("and 7 are asked for"), "{error}");
    }

    #[test]
    fn a_path_that_libkrun_cannot_be_told_is_refused() {
        use std::os::unix::ffi::OsStrExt;
        let path = std::ffi::OsStr::from_bytes(b"/\xff");
        let error = refusal(&[path], false).unwrap();
        assert!(error.contains("not UTF-8"), "{error}");
    }
}
