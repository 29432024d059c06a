//! Our own programs: all there, and of one version.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::Context;
use libmsb::cli::escape::escape;
use libmsb::tools;

use super::{Check, Status};

const AREA: &str = "programs";

/// Without these no sandbox starts.
const NEEDED: [&str; 3] = ["msb-supervisor", "msb-vmm", "msb-agent"];
/// Without these something else is missing.
const OTHERS: [&str; 2] = ["msb", "msb-image"];

const REINSTALL: &str = "install msb as a whole: libmsb/install";

/// One look, or one for each program that is not as it should be.
pub(super) fn checks() -> Vec<Check> {
    let needed = NEEDED.map(|name| (name, Status::Problem));
    let others = OTHERS.map(|name| (name, Status::Warning));
    let looks: Vec<_> = needed.into_iter().chain(others).collect();
    let count = looks.len() + 1;
    let bad: Vec<Check> = looks
        .into_iter()
        .filter_map(|(name, status)| look(name, status))
        .collect();
    if !bad.is_empty() {
        return bad;
    }
    let version = env!("CARGO_PKG_VERSION");
    let folder = tools::home_folders()
        .first()
        .map_or_else(String::new, |folder| format!(" in {}", folder.display()));
    let found = format!("{count} programs of version {version}{folder}");
    vec![Check::new(AREA, "programs", Status::Ok, found)]
}

/// What is wrong with a program, if anything.
fn look(name: &'static str, missing: Status) -> Option<Check> {
    let path = match tools::find(name) {
        Ok(path) => path,
        Err(error) => {
            return Some(Check::failed(AREA, name, missing, &error.into()).mend(REINSTALL));
        }
    };
    let said = match version(&path) {
        Ok(said) => said,
        Err(error) => return Some(Check::failed(AREA, name, missing, &error).mend(REINSTALL)),
    };
    if said == format!("{name} {}", env!("CARGO_PKG_VERSION")) {
        return None;
    }
    let found = format!(
        "'{}' says that it is '{}', and this is version {}",
        path.display(),
        escape(&said),
        env!("CARGO_PKG_VERSION")
    );
    Some(Check::new(AREA, name, Status::Warning, found).mend(REINSTALL))
}

fn version(path: &PathBuf) -> anyhow::Result<String> {
    let cannot = || format!("cannot execute '{}'", path.display());
    let output = Command::new(path)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .with_context(cannot)?;
    anyhow::ensure!(output.status.success(), "{}: it failed", cannot());
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
