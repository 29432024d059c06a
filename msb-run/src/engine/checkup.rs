//! What the engines need and find on this host, part by part, for `msb doctor`. It starts nothing and writes nothing, but for
//! asking QEMU its version and letting a virtual machine halt.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;
use libmsb::machine::EngineChoice;
use libmsb::state::Home;

use super::host::{self, Kvm};
use super::{kernel, krunfw, qemu, vmlinux};

/// A guest's kernel, and where it comes from.
#[derive(Debug)]
pub(crate) struct FoundKernel {
    /// The file.
    pub(crate) path: PathBuf,
    /// Its version, where the file tells.
    pub(crate) version: Option<String>,
}

/// QEMU.
#[derive(Debug)]
pub(crate) struct FoundQemu {
    /// The program.
    pub(crate) path: PathBuf,
    /// What it says of its version.
    pub(crate) version: String,
}

/// What there is, and what is wrong with it.
#[derive(Debug)]
pub(crate) struct Checkup {
    /// The processor's virtualization.
    pub(crate) kvm: Kvm,
    /// The kernel for libkrun.
    pub(crate) krun_kernel: anyhow::Result<FoundKernel>,
    /// The program of QEMU.
    pub(crate) qemu: anyhow::Result<FoundQemu>,
    /// The kernel for QEMU.
    pub(crate) qemu_kernel: anyhow::Result<FoundKernel>,
    /// The engine that is asked for when nobody says one on the command line.
    pub(crate) choice: anyhow::Result<EngineChoice>,
}

/// The engine that a sandbox would get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Selected {
    /// libkrun.
    Krun,
    /// QEMU, with the processor's virtualization.
    QemuKvm,
    /// QEMU, in software.
    QemuTcg,
}

impl Checkup {
    /// Looks at all parts.
    pub(crate) fn of(home: &Home) -> Checkup {
        Checkup {
            kvm: host::probe_kvm(),
            krun_kernel: krun_kernel(home.root()),
            qemu: qemu(),
            qemu_kernel: qemu_kernel(),
            choice: super::choice(home, None),
        }
    }

    /// Whether libkrun can run a sandbox.
    pub(crate) fn krun_works(&self) -> bool {
        self.kvm == Kvm::Works && self.krun_kernel.is_ok()
    }

    /// Whether QEMU can.
    pub(crate) fn qemu_works(&self) -> bool {
        self.qemu.is_ok() && self.qemu_kernel.is_ok()
    }

    /// The engine that a sandbox would get; `None` when the one that is asked for, or any, does not work.
    pub(crate) fn selected(&self) -> Option<Selected> {
        let qemu = match self.kvm {
            Kvm::Works => Selected::QemuKvm,
            _ => Selected::QemuTcg,
        };
        match self.choice.as_ref().ok()? {
            EngineChoice::Auto | EngineChoice::Krun if self.krun_works() => Some(Selected::Krun),
            EngineChoice::Auto | EngineChoice::Qemu if self.qemu_works() => Some(qemu),
            _ => None,
        }
    }
}

fn krun_kernel(home: &Path) -> anyhow::Result<FoundKernel> {
    if let Some(path) = kernel::chosen() {
        vmlinux::check(&path)?;
        return Ok(FoundKernel {
            path,
            version: None,
        });
    }
    let path = krunfw::find(home)?;
    let version = std::fs::canonicalize(&path)
        .ok()
        .and_then(|file| library_version(file.file_name()?.to_str()?));
    Ok(FoundKernel { path, version })
}

/// `libkrunfw.so.5.2.1` is version 5.2.1.
fn library_version(name: &str) -> Option<String> {
    name.split_once(".so.")
        .map(|(_, version)| version.to_owned())
}

fn qemu() -> anyhow::Result<FoundQemu> {
    let path = qemu::program()?;
    let output = Command::new(&path)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot execute '{}'", path.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    anyhow::ensure!(
        output.status.success(),
        "'{}' does not work: {}",
        path.display(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(FoundQemu {
        version: program_version(&text).unwrap_or_else(|| "unknown".to_owned()),
        path,
    })
}

/// `QEMU emulator version 7.2.22 (Debian …)` is version 7.2.22.
fn program_version(text: &str) -> Option<String> {
    let (_, rest) = text.lines().next()?.split_once(" version ")?;
    rest.split(' ').next().map(str::to_owned)
}

fn qemu_kernel() -> anyhow::Result<FoundKernel> {
    let kernel = kernel::find()?;
    qemu::check_modules(&kernel)?;
    let version = kernel
        .modules
        .as_deref()
        .and_then(Path::file_name)
        .map(|name| name.to_string_lossy().into_owned());
    Ok(FoundKernel {
        path: kernel.image,
        version,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkup(kvm: Kvm, krun: bool, qemu: bool, choice: EngineChoice) -> Checkup {
        let kernel = |there: bool| {
            anyhow::ensure!(there, "missing");
            Ok(FoundKernel {
                path: PathBuf::from("/k"),
                version: None,
            })
        };
        let program = FoundQemu {
            path: PathBuf::from("/q"),
            version: "8".to_owned(),
        };
        Checkup {
            kvm,
            krun_kernel: kernel(krun),
            qemu: if qemu {
                Ok(program)
            } else {
                Err(anyhow::anyhow!("missing"))
            },
            qemu_kernel: kernel(true),
            choice: Ok(choice),
        }
    }

    #[test]
    fn libkrun_comes_first_where_it_works_and_qemu_uses_what_there_is() {
        use EngineChoice::{Auto, Krun, Qemu};
        let cases = [
            (Kvm::Works, true, true, Auto, Some(Selected::Krun)),
            (Kvm::Works, true, true, Qemu, Some(Selected::QemuKvm)),
            (Kvm::Works, false, true, Auto, Some(Selected::QemuKvm)),
            (Kvm::Works, false, true, Krun, None),
            (Kvm::Works, false, false, Auto, None),
            (Kvm::NoHardware, true, true, Auto, Some(Selected::QemuTcg)),
            (Kvm::Missing, true, true, Krun, None),
            (Kvm::Missing, true, false, Auto, None),
        ];
        for (kvm, krun, qemu, choice, expected) in cases {
            let what = format!("{kvm:?} {krun} {qemu} {choice:?}");
            assert_eq!(
                checkup(kvm, krun, qemu, choice).selected(),
                expected,
                "{what}"
            );
        }
    }

    #[test]
    fn an_engine_that_is_none_selects_nothing() {
        let mut checkup = checkup(Kvm::Works, true, true, EngineChoice::Auto);
        checkup.choice = Err(anyhow::anyhow!("MSB_ENGINE names no engine"));
        assert_eq!(checkup.selected(), None);
    }

    #[test]
    fn versions_are_read_from_what_there_is() {
        assert_eq!(
            library_version("libkrunfw.so.5.2.1").as_deref(),
            Some("5.2.1")
        );
        assert_eq!(library_version("kernel"), None);
        let text = "QEMU emulator version 7.2.22 (Debian 1:7.2)\nCopyright\n";
        assert_eq!(program_version(text).as_deref(), Some("7.2.22"));
        assert_eq!(program_version("nonsense"), None);
    }
}
