//! Which engine a sandbox would get, and what the engines lack.

use std::path::Path;

use libmsb::cli::error::{Failure, message};
use libmsb::machine::EngineChoice;

use super::{Check, Status};
use crate::engine::checkup::{Checkup, FoundKernel, Selected};
use crate::engine::distribution;
use crate::engine::host::Kvm;

const AREA: &str = "engines";

/// A look at each part.
pub(super) fn checks(checkup: &Checkup) -> Vec<Check> {
    let works = checkup.selected().is_some();
    let lacks = |needed: bool| match (works, needed) {
        (true, true) => Status::Warning,
        (true, false) => Status::Note,
        // Each engine alone would do, so each part that is missing is one that can be mended.
        (false, _) => Status::Problem,
    };
    let asked = checkup.choice.as_ref().copied().unwrap_or_default();
    let wants_krun = asked != EngineChoice::Qemu;
    let has_kvm = checkup.kvm == Kvm::Works;
    let mut checks = vec![system(), kvm(checkup, works)];
    checks.push(match &checkup.krun_kernel {
        Ok(kernel) => Check::new(AREA, "libkrunfw", Status::Ok, found(kernel)),
        Err(error) => {
            let status = if has_kvm || asked == EngineChoice::Krun {
                lacks(wants_krun)
            } else {
                Status::Note
            };
            Check::failed(AREA, "libkrunfw", status, error)
        }
    });
    let qemu = |name, part: Result<String, &anyhow::Error>| match part {
        Ok(found) => Check::new(AREA, name, Status::Ok, found),
        Err(error) => Check::failed(AREA, name, lacks(asked == EngineChoice::Qemu), error),
    };
    let program = checkup.qemu.as_ref();
    checks.push(qemu(
        "qemu",
        program.map(|qemu| with_version(&qemu.path, Some(&qemu.version))),
    ));
    checks.push(qemu("kernel", checkup.qemu_kernel.as_ref().map(found)));
    checks.extend(isolation(checkup));
    if let Err(error) = &checkup.choice {
        checks.push(Check::failed(AREA, "choice", Status::Problem, error));
    }
    checks
}

/// In a sentence.
pub(super) fn why(checkup: &Checkup) -> String {
    let asked = match &checkup.choice {
        Ok(choice) => *choice,
        Err(error) => return message(error),
    };
    match checkup.selected() {
        Some(Selected::Krun) => "hardware virtualization works, and libkrunfw is there".to_owned(),
        Some(_) if asked == EngineChoice::Qemu => {
            "it is the one that MSB_ENGINE or config.json names".to_owned()
        }
        Some(Selected::QemuKvm) => {
            "hardware virtualization works, but the engine krun lacks libkrunfw".to_owned()
        }
        Some(Selected::QemuTcg) => virtualization(&checkup.kvm),
        None if asked == EngineChoice::Krun => {
            "MSB_ENGINE or config.json names the engine krun, which cannot be used".to_owned()
        }
        None => "neither the engine krun nor the engine qemu has all that it needs".to_owned(),
    }
}

fn virtualization(kvm: &Kvm) -> String {
    kvm.failure().map_or_else(
        || "hardware virtualization works".to_owned(),
        |failure| failure.to_string(),
    )
}

/// What software emulation means for guests that are not trusted.
fn isolation(checkup: &Checkup) -> Option<Check> {
    let failure = Failure::failed(
        "guests run in software emulation, which QEMU's project does not treat as a security boundary",
    )
    .hint("for guests that are not trusted, use a host with hardware virtualization: msb(7), Security");
    let emulates = checkup.selected() == Some(Selected::QemuTcg);
    emulates.then(|| Check::failure(AREA, "isolation", Status::Warning, failure))
}

fn system() -> Check {
    let uname = rustix::system::uname();
    let name = distribution::name().unwrap_or_else(|| "an unknown distribution".to_owned());
    let found = format!(
        "{name}, {} {}, {}",
        uname.sysname().to_string_lossy(),
        uname.release().to_string_lossy(),
        uname.machine().to_string_lossy()
    );
    Check::new(AREA, "system", Status::Ok, found)
}

fn kvm(checkup: &Checkup, works: bool) -> Check {
    let name = "virtualization";
    let Some(failure) = checkup.kvm.failure() else {
        let found = "KVM works: a virtual machine executed an instruction";
        return Check::new(AREA, name, Status::Ok, found);
    };
    let asked_for = matches!(checkup.choice, Ok(EngineChoice::Krun));
    let status = if !works && asked_for {
        Status::Problem
    } else {
        Status::Warning
    };
    Check::failure(AREA, name, status, failure)
}

fn found(kernel: &FoundKernel) -> String {
    with_version(&kernel.path, kernel.version.as_deref())
}

fn with_version(path: &Path, version: Option<&str>) -> String {
    match version {
        Some(version) => format!("{}, version {version}", path.display()),
        None => path.display().to_string(),
    }
}
