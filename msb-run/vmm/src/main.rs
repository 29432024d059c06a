//! Becomes the virtual machine: a plan in, an engine out.
//!
//! The supervisor starts this program with the plan on a descriptor. It ties its life to the supervisor's, and
//! becomes the engine's process: QEMU by exec, or libkrun, which is part of this program.

mod isolate;
mod krun;
mod lifeline;
mod messages;
mod qemu;
mod share;

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use libmsb::cli::error::{self, Failure};
use libmsb::cli::output;
use libmsb::machine::{Engine, PLAN_BYTES_MAX, PLAN_VERSION, Plan};
use serde::de::DeserializeOwned;

const TOOL: &str = "msb-vmm";

const HELP: &str = "\
Becomes a virtual machine. It is started by msb-supervisor, not by people.

Usage: msb-vmm [--share] PLAN

  PLAN  a file with the plan of the machine in JSON, such as /proc/self/fd/3

Options:
      --share    Serve folders of the host to a machine; PLAN says which
  -h, --help     Print help
  -V, --version  Print version

Example:
  msb-vmm /proc/self/fd/3 3<plan.json";

fn main() -> ExitCode {
    error::catch_bugs(TOOL);
    messages::pass_on_errors();
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    error::exit_code(TOOL, run(&args))
}

fn run(args: &[OsString]) -> anyhow::Result<()> {
    match args {
        [flag] if flag == "-h" || flag == "--help" => Ok(output::print(HELP)?),
        [flag] if flag == "-V" || flag == "--version" => Ok(output::print(&format!(
            "{TOOL} {}",
            env!("CARGO_PKG_VERSION")
        ))?),
        [flag, plan] if flag == "--share" => share::serve(&read_plan(Path::new(plan))?),
        [plan] => {
            let plan: Plan = read_plan(Path::new(plan))?;
            ensure_version(plan.version)?;
            become_machine(&plan)
        }
        _ => Err(
            Failure::usage("it takes one argument, the file with the plan")
                .hint("see 'msb-vmm --help'")
                .into(),
        ),
    }
}

fn read_plan<P: DeserializeOwned>(path: &Path) -> anyhow::Result<P> {
    let file =
        File::open(path).with_context(|| format!("cannot open the plan '{}'", path.display()))?;
    let mut text = Vec::new();
    file.take(PLAN_BYTES_MAX + 1)
        .read_to_end(&mut text)
        .context("cannot read the plan")?;
    ensure!(
        text.len() as u64 <= PLAN_BYTES_MAX,
        "the plan is longer than {PLAN_BYTES_MAX} bytes"
    );
    serde_json::from_slice(&text).context("cannot understand the plan")
}

fn ensure_version(version: u32) -> anyhow::Result<()> {
    ensure!(
        version == PLAN_VERSION,
        "the plan has version {version}, and this is {PLAN_VERSION}"
    );
    Ok(())
}

fn become_machine(plan: &Plan) -> anyhow::Result<()> {
    match &plan.engine {
        Engine::Qemu(engine) => {
            give_up(plan)?;
            let error = qemu::exec(plan, engine)?;
            Err(error).with_context(|| format!("cannot start '{}'", engine.program.display()))
        }
        Engine::Krun(engine) => {
            // While the host's files can still be seen.
            let kernel = krun::load(&engine.kernel)?;
            if isolate::serves(plan) {
                share::enter(&plan.shares, &isolate::kept(plan))?;
            }
            give_up(plan)?;
            krun::enter(plan, &kernel)
        }
    }
}

fn give_up(plan: &Plan) -> anyhow::Result<()> {
    // First, since a change of rights may cut the tie.
    let steps = isolate::before_guest(plan)?;
    lifeline::tie(plan.life_fd)?;
    isolate::report(plan.report_fd, &steps);
    Ok(())
}
