//! Checks of what the engines need on this host, part by part, for `msb doctor`. They change
//! nothing and start only QEMU, for its version, and a virtual machine that halts.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;
use libmsb::cli::error::Failure;
use libmsb::machine::EngineChoice;
use libmsb::state::Home;
use libmsb::state::config::UserConfig;

use super::host::{self, KvmSupport};
use super::{kernel, krunfw, qemu, vmlinux};

/// A guest kernel on the host.
#[derive(Debug)]
pub(crate) struct KernelFile {
    /// The file.
    pub(crate) path: PathBuf,
    /// Version, if the file shows it.
    pub(crate) version: Option<String>,
}

/// An installed QEMU.
#[derive(Debug)]
pub(crate) struct QemuProgram {
    /// The program.
    pub(crate) path: PathBuf,
    /// Version that the program prints.
    pub(crate) version: String,
}

/// The result of the checks.
#[derive(Debug)]
pub(crate) struct EngineCheckup {
    /// KVM.
    pub(crate) kvm: KvmSupport,
    /// The kernel for libkrun.
    pub(crate) krun_kernel: anyhow::Result<KernelFile>,
    /// The program of QEMU.
    pub(crate) qemu: anyhow::Result<QemuProgram>,
    /// The kernel for QEMU.
    pub(crate) qemu_kernel: anyhow::Result<KernelFile>,
    /// The engine that applies when the command line names none.
    pub(crate) choice: anyhow::Result<EngineChoice>,
}

/// The engine that a sandbox gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SelectedEngine {
    /// libkrun.
    Krun,
    /// QEMU with KVM.
    QemuKvm,
    /// QEMU in software emulation (TCG).
    QemuTcg,
}

/// Reads the configuration file.
fn configured(home: &Home) -> anyhow::Result<UserConfig> {
    UserConfig::read(home).map_err(|error| {
        let path = home.config();
        let hint = format!("repair '{}', or set MSB_HOME to another directory", path.display());
        error.context(Failure::failed("cannot read the engine of choice").hint(hint))
    })
}

impl EngineCheckup {
    /// Runs all checks.
    pub(crate) fn of(home: &Home) -> EngineCheckup {
        EngineCheckup {
            kvm: host::probe_kvm(),
            krun_kernel: krun_kernel(home.root()),
            qemu: qemu(),
            qemu_kernel: qemu_kernel(),
            choice: configured(home).and_then(|config| super::choice(&config, None)),
        }
    }

    /// Returns whether libkrun can run a sandbox.
    pub(crate) fn krun_works(&self) -> bool {
        self.kvm == KvmSupport::Works && self.krun_kernel.is_ok()
    }

    /// Returns whether QEMU can run a sandbox.
    pub(crate) fn qemu_works(&self) -> bool {
        self.qemu.is_ok() && self.qemu_kernel.is_ok()
    }

    /// Returns the engine that a sandbox gets; `None` when the configured engine, or any engine,
    /// does not work.
    pub(crate) fn selected(&self) -> Option<SelectedEngine> {
        let qemu = match self.kvm {
            KvmSupport::Works => SelectedEngine::QemuKvm,
            _ => SelectedEngine::QemuTcg,
        };
        match self.choice.as_ref().ok()? {
            EngineChoice::Auto | EngineChoice::Krun if self.krun_works() => {
                Some(SelectedEngine::Krun)
            }
            EngineChoice::Auto | EngineChoice::Qemu if self.qemu_works() => Some(qemu),
            _ => None,
        }
    }
}

fn krun_kernel(home: &Path) -> anyhow::Result<KernelFile> {
    if let Some(path) = kernel::from_environment() {
        vmlinux::check(&path)?;
        return Ok(KernelFile { path, version: None });
    }
    let path = krunfw::find(home)?;
    let version = std::fs::canonicalize(&path)
        .ok()
        .and_then(|file| library_version(file.file_name()?.to_str()?));
    Ok(KernelFile { path, version })
}

/// Returns the version in a file name: `libkrunfw.so.5.2.1` is version 5.2.1.
fn library_version(name: &str) -> Option<String> {
    name.split_once(".so.").map(|(_, version)| version.to_owned())
}

fn qemu() -> anyhow::Result<QemuProgram> {
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
    Ok(QemuProgram {
        version: program_version(&text).unwrap_or_else(|| "unknown".to_owned()),
        path,
    })
}

/// Returns the version in QEMU's output: `QEMU emulator version 7.2.22 (Debian …)` is version
/// 7.2.22.
fn program_version(text: &str) -> Option<String> {
    let (_, rest) = text.lines().next()?.split_once(" version ")?;
    rest.split(' ').next().map(str::to_owned)
}

fn qemu_kernel() -> anyhow::Result<KernelFile> {
    let kernel = kernel::find()?;
    qemu::check_modules(&kernel)?;
    let version = kernel
        .modules
        .as_deref()
        .and_then(Path::file_name)
        .map(|name| name.to_string_lossy().into_owned());
    Ok(KernelFile { path: kernel.image, version })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkup(kvm: KvmSupport, krun: bool, qemu: bool, choice: EngineChoice) -> EngineCheckup {
        let kernel = |there: bool| {
            anyhow::ensure!(there, "missing");
            Ok(KernelFile { path: PathBuf::from("/k"), version: None })
        };
        let program = QemuProgram { path: PathBuf::from("/q"), version: "8".to_owned() };
        EngineCheckup {
            kvm,
            krun_kernel: kernel(krun),
            qemu: if qemu { Ok(program) } else { Err(anyhow::anyhow!("missing")) },
            qemu_kernel: kernel(true),
            choice: Ok(choice),
        }
    }

    #[test]
    fn libkrun_comes_first_where_it_works_and_qemu_uses_what_there_is() {
        use EngineChoice::{Auto, Krun, Qemu};
        let cases = [
            (KvmSupport::Works, true, true, Auto, Some(SelectedEngine::Krun)),
            (KvmSupport::Works, true, true, Qemu, Some(SelectedEngine::QemuKvm)),
            (KvmSupport::Works, false, true, Auto, Some(SelectedEngine::QemuKvm)),
            (KvmSupport::Works, false, true, Krun, None),
            (KvmSupport::Works, false, false, Auto, None),
            (KvmSupport::NoHardware, true, true, Auto, Some(SelectedEngine::QemuTcg)),
            (KvmSupport::Missing, true, true, Krun, None),
            (KvmSupport::Missing, true, false, Auto, None),
        ];
        for (kvm, krun, qemu, choice, expected) in cases {
            let what = format!("{kvm:?} {krun} {qemu} {choice:?}");
            assert_eq!(checkup(kvm, krun, qemu, choice).selected(), expected, "{what}");
        }
    }

    #[test]
    fn an_engine_that_is_none_selects_nothing() {
        let mut checkup = checkup(KvmSupport::Works, true, true, EngineChoice::Auto);
        checkup.choice = Err(anyhow::anyhow!("invalid value of MSB_ENGINE"));
        assert_eq!(checkup.selected(), None);
    }

    #[test]
    fn versions_are_read_from_what_there_is() {
        assert_eq!(library_version("libkrunfw.so.5.2.1").as_deref(), Some("5.2.1"));
        assert_eq!(library_version("kernel"), None);
        let text = "QEMU emulator version 7.2.22 (Debian 1:7.2)\nCopyright\n";
        assert_eq!(program_version(text).as_deref(), Some("7.2.22"));
        assert_eq!(program_version("nonsense"), None);
    }
}
