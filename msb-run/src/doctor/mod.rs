//! Checks of this host: can it start sandboxes, by which engine, and how to fix what is missing.
//!
//! The checks only read. A [`DoctorCheck`] with [`CheckStatus::Problem`] means that no sandbox can
//! start; then the whole report is not ready.

/// Checks of the engines.
mod engines;
/// Checks of msb's own programs.
mod programs;
/// Checks of memory and limits of the host.
mod resources;
/// Checks of the state directory.
mod state;

use libmsb::cli::error::{Failure, hint, message};
use libmsb::state::Home;
use serde::Serialize;

use crate::engine::checkup::{EngineCheckup, SelectedEngine};

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum CheckStatus {
    /// As required.
    Ok,
    /// Missing, but not needed here.
    Note,
    /// Sandboxes can start, but something is slower or smaller than possible, or inconsistent.
    Warning,
    /// No sandbox can start until this is fixed.
    Problem,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct DoctorCheck {
    /// Group of the check.
    pub(crate) area: &'static str,
    /// Name of the checked part.
    pub(crate) name: &'static str,
    /// Result.
    pub(crate) status: CheckStatus,
    /// Description of what was found.
    pub(crate) found: String,
    /// Suggested fix, if known.
    #[serde(rename = "mend", skip_serializing_if = "Option::is_none")]
    pub(crate) fix: Option<String>,
}

impl DoctorCheck {
    fn new(
        area: &'static str,
        name: &'static str,
        status: CheckStatus,
        found: impl Into<String>,
    ) -> DoctorCheck {
        DoctorCheck { area, name, status, found: found.into(), fix: None }
    }

    /// Returns a check that failed with an error.
    fn failed(
        area: &'static str,
        name: &'static str,
        status: CheckStatus,
        error: &anyhow::Error,
    ) -> DoctorCheck {
        DoctorCheck {
            fix: hint(error).map(str::to_owned),
            ..DoctorCheck::new(area, name, status, message(error))
        }
    }

    fn failure(
        area: &'static str,
        name: &'static str,
        status: CheckStatus,
        failure: Failure,
    ) -> DoctorCheck {
        DoctorCheck::failed(area, name, status, &failure.into())
    }

    #[must_use]
    fn with_fix(mut self, how: impl Into<String>) -> DoctorCheck {
        self.fix = Some(how.into());
        self
    }
}

/// The report of all checks.
#[derive(Debug, Serialize)]
pub(crate) struct DoctorReport {
    /// Version of msb.
    pub(crate) version: &'static str,
    /// `true` if a sandbox can start.
    pub(crate) ready: bool,
    /// Engine of a new sandbox.
    pub(crate) engine: Option<&'static str>,
    /// `kvm` for hardware virtualization, `tcg` for emulation.
    pub(crate) accelerator: Option<&'static str>,
    /// Reason for the selected engine, or for having none.
    pub(crate) why: String,
    /// All checks.
    pub(crate) checks: Vec<DoctorCheck>,
}

/// Runs all checks.
pub(crate) fn examine(home: &Home) -> DoctorReport {
    let checkup = EngineCheckup::of(home);
    let selected = checkup.selected();
    let mut checks = engines::checks(&checkup);
    checks.extend(programs::checks());
    checks.extend(state::checks(home));
    checks.extend(resources::checks());
    DoctorReport {
        version: env!("CARGO_PKG_VERSION"),
        ready: checks.iter().all(|check| check.status != CheckStatus::Problem),
        engine: selected.map(|selected| match selected {
            SelectedEngine::Krun => "krun",
            SelectedEngine::QemuKvm | SelectedEngine::QemuTcg => "qemu",
        }),
        accelerator: selected.map(|selected| match selected {
            SelectedEngine::Krun | SelectedEngine::QemuKvm => "kvm",
            SelectedEngine::QemuTcg => "tcg",
        }),
        why: engines::why(&checkup),
        checks,
    }
}
