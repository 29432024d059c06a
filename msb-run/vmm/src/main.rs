//! The VMM process: reads a plan and becomes the virtual machine.
//!
//! The supervisor starts this program with the plan on a descriptor. The program arranges to end
//! with the supervisor, and becomes the engine's process: QEMU by exec, or libkrun, which is part
//! of this program.

mod isolate;
mod krun;
mod parent_death;
mod qemu;
mod share;
mod stderr_log;

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use libmsb::cli::error::{self, Failure};
use libmsb::cli::output;
use libmsb::machine::{Engine, PLAN_BYTES_MAX, PLAN_VERSION, VmPlan};
use serde::de::DeserializeOwned;

const TOOL: &str = "msb-vmm";

const HELP: &str = "\
Run the virtual machine of one sandbox. msb-supervisor starts this program, not users.

Usage: msb-vmm [--share] PLAN

  PLAN  JSON file with the plan of the virtual machine, such as /proc/self/fd/3

Options:
      --share    Serve the directories of the host in PLAN to a virtual machine
  -h, --help     Print help
  -V, --version  Print version

Example:
  msb-vmm /proc/self/fd/3 3<plan.json";

fn main() -> ExitCode {
    error::catch_bugs(TOOL);
    stderr_log::init();
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    error::exit_code(TOOL, run(&args))
}

fn run(args: &[OsString]) -> anyhow::Result<()> {
    match args {
        [flag] if flag == "-h" || flag == "--help" => Ok(output::print(HELP)?),
        [flag] if flag == "-V" || flag == "--version" => {
            Ok(output::print(&format!("{TOOL} {}", env!("CARGO_PKG_VERSION")))?)
        }
        [flag, plan] if flag == "--share" => share::serve(&read_plan(Path::new(plan))?),
        [plan] => {
            let plan: VmPlan = read_plan(Path::new(plan))?;
            ensure_version(plan.version)?;
            become_vm(&plan)
        }
        _ => Err(Failure::usage("expected one argument: the file with the plan")
            .hint("see 'msb-vmm --help'")
            .into()),
    }
}

fn read_plan<P: DeserializeOwned>(path: &Path) -> anyhow::Result<P> {
    let file =
        File::open(path).with_context(|| format!("cannot open the plan '{}'", path.display()))?;
    let mut text = Vec::new();
    file.take(PLAN_BYTES_MAX + 1).read_to_end(&mut text).context("cannot read the plan")?;
    ensure!(text.len() as u64 <= PLAN_BYTES_MAX, "the plan is longer than {PLAN_BYTES_MAX} bytes");
    serde_json::from_slice(&text).context("cannot parse the plan")
}

fn ensure_version(version: u32) -> anyhow::Result<()> {
    ensure!(
        version == PLAN_VERSION,
        "unsupported version {version} of the plan: expected {PLAN_VERSION}"
    );
    Ok(())
}

fn become_vm(plan: &VmPlan) -> anyhow::Result<()> {
    match &plan.engine {
        Engine::Qemu(engine) => {
            drop_privileges(plan)?;
            let error = qemu::exec(plan, engine)?;
            Err(error).with_context(|| format!("cannot start '{}'", engine.program.display()))
        }
        Engine::Krun(engine) => {
            // While the host's files are still visible.
            let kernel = krun::load(&engine.kernel)?;
            if isolate::serves(plan) {
                share::enter(&plan.shares, &isolate::disk_files(plan))?;
            }
            drop_privileges(plan)?;
            krun::enter(plan, &kernel)
        }
    }
}

fn drop_privileges(plan: &VmPlan) -> anyhow::Result<()> {
    // First, since a change of credentials may clear the parent death signal.
    let steps = isolate::before_guest(plan)?;
    parent_death::exit_with_parent(plan.life_fd)?;
    isolate::report(plan.report_fd, &steps);
    Ok(())
}
