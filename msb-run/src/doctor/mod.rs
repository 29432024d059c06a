//! What is looked at before one wonders: can a sandbox start here, by which engine, and if not, what is to be done.
//!
//! It reads only. Each look is a [`Check`]; one that is a [`Status::Problem`] means that no sandbox can start, and the whole
//! has failed.

/// Which engine, and why.
mod engines;
/// Our own programs.
mod programs;
/// Memory and limits of the host.
mod resources;
/// The state directory.
mod state;

use libmsb::cli::error::{Failure, hint, message};
use libmsb::state::Home;
use serde::Serialize;

use crate::engine::checkup::{Checkup, Selected};

/// How a look turned out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    /// As it should be.
    Ok,
    /// Not there, and not needed here.
    Note,
    /// Sandboxes can start, but something is slower or smaller than it could be, or left in disorder.
    Warning,
    /// No sandbox can start before this is mended.
    Problem,
}

/// One look.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    /// The room it belongs to.
    pub(crate) area: &'static str,
    /// What was looked at.
    pub(crate) name: &'static str,
    /// How it turned out.
    pub(crate) status: Status,
    /// What was found.
    pub(crate) found: String,
    /// How to mend it, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mend: Option<String>,
}

impl Check {
    fn new(
        area: &'static str,
        name: &'static str,
        status: Status,
        found: impl Into<String>,
    ) -> Check {
        Check {
            area,
            name,
            status,
            found: found.into(),
            mend: None,
        }
    }

    /// What was looked at is not as it should be, and this says why.
    fn failed(
        area: &'static str,
        name: &'static str,
        status: Status,
        error: &anyhow::Error,
    ) -> Check {
        Check {
            mend: hint(error).map(str::to_owned),
            ..Check::new(area, name, status, message(error))
        }
    }

    fn failure(area: &'static str, name: &'static str, status: Status, failure: Failure) -> Check {
        Check::failed(area, name, status, &failure.into())
    }

    #[must_use]
    fn mend(mut self, how: impl Into<String>) -> Check {
        self.mend = Some(how.into());
        self
    }
}

/// All of it.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Our version.
    pub(crate) version: &'static str,
    /// Whether a sandbox can start.
    pub(crate) ready: bool,
    /// By which engine.
    pub(crate) engine: Option<&'static str>,
    /// Whether it uses the processor's virtualization (`kvm`) or emulates (`tcg`).
    pub(crate) accelerator: Option<&'static str>,
    /// Why this one; or why none.
    pub(crate) why: String,
    /// Every look.
    pub(crate) checks: Vec<Check>,
}

/// Looks at everything.
pub(crate) fn examine(home: &Home) -> Report {
    let checkup = Checkup::of(home);
    let selected = checkup.selected();
    let mut checks = engines::checks(&checkup);
    checks.extend(programs::checks());
    checks.extend(state::checks(home));
    checks.extend(resources::checks());
    Report {
        version: env!("CARGO_PKG_VERSION"),
        ready: checks.iter().all(|check| check.status != Status::Problem),
        engine: selected.map(|selected| match selected {
            Selected::Krun => "krun",
            Selected::QemuKvm | Selected::QemuTcg => "qemu",
        }),
        accelerator: selected.map(|selected| match selected {
            Selected::Krun | Selected::QemuKvm => "kvm",
            Selected::QemuTcg => "tcg",
        }),
        why: engines::why(&checkup),
        checks,
    }
}
