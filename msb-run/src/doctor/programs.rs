//! Checks of msb's own programs: all are installed, in the same version.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::Context;
use libmsb::cli::escape::escape;
use libmsb::tools;

use super::{CheckStatus, DoctorCheck};

const AREA: &str = "programs";

/// Programs without which no sandbox starts.
const NEEDED: [&str; 3] = ["msb-supervisor", "msb-vmm", "msb-agent"];
/// Programs without which other functions are missing.
const OTHERS: [&str; 2] = ["msb", "msb-image"];

const REINSTALL: &str = "install all programs of msb again: libmsb/install";

/// Returns one check if all programs are right, or one for each program that is not.
pub(super) fn checks() -> Vec<DoctorCheck> {
    let needed = NEEDED.map(|name| (name, CheckStatus::Problem));
    let others = OTHERS.map(|name| (name, CheckStatus::Warning));
    let programs: Vec<_> = needed.into_iter().chain(others).collect();
    let count = programs.len() + 1;
    let failed: Vec<DoctorCheck> =
        programs.into_iter().filter_map(|(name, status)| check_program(name, status)).collect();
    if !failed.is_empty() {
        return failed;
    }
    let version = env!("CARGO_PKG_VERSION");
    let directory = tools::home_directories()
        .first()
        .map_or_else(String::new, |directory| format!(" in {}", directory.display()));
    let found = format!("{count} programs of version {version}{directory}");
    vec![DoctorCheck::new(AREA, "programs", CheckStatus::Ok, found)]
}

/// Returns a check if a program is missing or has another version.
fn check_program(name: &'static str, missing: CheckStatus) -> Option<DoctorCheck> {
    let path = match tools::find(name) {
        Ok(path) => path,
        Err(error) => {
            return Some(
                DoctorCheck::failed(AREA, name, missing, &error.into()).with_fix(REINSTALL),
            );
        }
    };
    let reported = match version(&path) {
        Ok(reported) => reported,
        Err(error) => {
            return Some(DoctorCheck::failed(AREA, name, missing, &error).with_fix(REINSTALL));
        }
    };
    if reported == format!("{name} {}", env!("CARGO_PKG_VERSION")) {
        return None;
    }
    let found = format!(
        "'{}' is '{}', but this program has version {}",
        path.display(),
        escape(&reported),
        env!("CARGO_PKG_VERSION")
    );
    Some(DoctorCheck::new(AREA, name, CheckStatus::Warning, found).with_fix(REINSTALL))
}

fn version(path: &PathBuf) -> anyhow::Result<String> {
    let cannot = || format!("cannot execute '{}'", path.display());
    let output =
        Command::new(path).arg("--version").stdin(Stdio::null()).output().with_context(cannot)?;
    anyhow::ensure!(output.status.success(), "{}: it exited with an error", cannot());
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
