//! Checks of the engines: the one a new sandbox would use, and the missing parts of each.

use std::path::Path;

use libmsb::cli::error::{Failure, message};
use libmsb::machine::EngineChoice;

use super::{CheckStatus, DoctorCheck};
use crate::engine::checkup::{EngineCheckup, KernelFile, SelectedEngine};
use crate::engine::distribution;
use crate::engine::host::KvmSupport;

const AREA: &str = "engines";

/// Returns the checks of the engines' parts.
pub(super) fn checks(checkup: &EngineCheckup) -> Vec<DoctorCheck> {
    let works = checkup.selected().is_some();
    let missing_status = |needed: bool| match (works, needed) {
        (true, true) => CheckStatus::Warning,
        (true, false) => CheckStatus::Note,
        // Either engine suffices, so each missing part is a problem that can be fixed by itself.
        (false, _) => CheckStatus::Problem,
    };
    let choice = checkup.choice.as_ref().copied().unwrap_or_default();
    let needs_krun = choice != EngineChoice::Qemu;
    let has_kvm = checkup.kvm == KvmSupport::Works;
    let mut checks = vec![system(), kvm(checkup, works)];
    checks.push(match &checkup.krun_kernel {
        Ok(kernel) => DoctorCheck::new(AREA, "libkrunfw", CheckStatus::Ok, found(kernel)),
        Err(error) => {
            let status = if has_kvm || choice == EngineChoice::Krun {
                missing_status(needs_krun)
            } else {
                CheckStatus::Note
            };
            DoctorCheck::failed(AREA, "libkrunfw", status, error)
        }
    });
    let qemu = |name, part: Result<String, &anyhow::Error>| match part {
        Ok(found) => DoctorCheck::new(AREA, name, CheckStatus::Ok, found),
        Err(error) => {
            DoctorCheck::failed(AREA, name, missing_status(choice == EngineChoice::Qemu), error)
        }
    };
    let program = checkup.qemu.as_ref();
    checks.push(qemu("qemu", program.map(|qemu| with_version(&qemu.path, Some(&qemu.version)))));
    checks.push(qemu("kernel", checkup.qemu_kernel.as_ref().map(found)));
    checks.extend(isolation(checkup));
    if let Err(error) = &checkup.choice {
        checks.push(DoctorCheck::failed(AREA, "choice", CheckStatus::Problem, error));
    }
    checks
}

/// Returns the reason for the selected engine, or for having none, as one sentence.
pub(super) fn why(checkup: &EngineCheckup) -> String {
    let choice = match &checkup.choice {
        Ok(choice) => *choice,
        Err(error) => return message(error),
    };
    match checkup.selected() {
        Some(SelectedEngine::Krun) => {
            "hardware virtualization works and libkrunfw is installed".to_owned()
        }
        Some(_) if choice == EngineChoice::Qemu => {
            "selected by MSB_ENGINE or config.json".to_owned()
        }
        Some(SelectedEngine::QemuKvm) => {
            "hardware virtualization works, but libkrunfw for the engine krun is missing".to_owned()
        }
        Some(SelectedEngine::QemuTcg) => virtualization(&checkup.kvm),
        None if choice == EngineChoice::Krun => {
            "MSB_ENGINE or config.json selects the engine krun, which is unavailable".to_owned()
        }
        None => "parts of both engines, krun and qemu, are missing".to_owned(),
    }
}

fn virtualization(kvm: &KvmSupport) -> String {
    kvm.failure()
        .map_or_else(|| "hardware virtualization works".to_owned(), |failure| failure.to_string())
}

/// Returns a warning about untrusted guests in software emulation.
fn isolation(checkup: &EngineCheckup) -> Option<DoctorCheck> {
    let failure = Failure::failed(
        "guests run in software emulation, \
         which the QEMU project does not treat as a security boundary",
    )
    .hint("for untrusted guests use a host with hardware virtualization: msb(7), Security");
    let emulates = checkup.selected() == Some(SelectedEngine::QemuTcg);
    emulates.then(|| DoctorCheck::failure(AREA, "isolation", CheckStatus::Warning, failure))
}

fn system() -> DoctorCheck {
    let uname = rustix::system::uname();
    let name = distribution::name().unwrap_or_else(|| "an unknown distribution".to_owned());
    let found = format!(
        "{name}, {} {}, {}",
        uname.sysname().to_string_lossy(),
        uname.release().to_string_lossy(),
        uname.machine().to_string_lossy()
    );
    DoctorCheck::new(AREA, "system", CheckStatus::Ok, found)
}

fn kvm(checkup: &EngineCheckup, works: bool) -> DoctorCheck {
    let name = "virtualization";
    let Some(failure) = checkup.kvm.failure() else {
        let found = "KVM works: a virtual machine executed an instruction";
        return DoctorCheck::new(AREA, name, CheckStatus::Ok, found);
    };
    let asked_for = matches!(checkup.choice, Ok(EngineChoice::Krun));
    let status = if !works && asked_for { CheckStatus::Problem } else { CheckStatus::Warning };
    DoctorCheck::failure(AREA, name, status, failure)
}

fn found(kernel: &KernelFile) -> String {
    with_version(&kernel.path, kernel.version.as_deref())
}

fn with_version(path: &Path, version: Option<&str>) -> String {
    match version {
        Some(version) => format!("{}, version {version}", path.display()),
        None => path.display().to_string(),
    }
}
