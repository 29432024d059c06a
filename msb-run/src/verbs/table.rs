//! The verbs, by the names of their programs. `libmsb/install` reads the names from here.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use libmsb::cli::{args, error, exit};
use libmsb::complete;
use libmsb::state::config::apply_log_level;

use super::{
    attach, config, cp, create, doctor, events, exec, fork, inspect, install, jobs, logs, ls,
    modify, pause, ping, ps, report, restart, restore, rm, run, signal, snapshot, start, stop,
    uninstall, volume, wait,
};
use crate::{command_words, launch, supervisor};

/// A verb: a link to this program.
struct Verb {
    /// Name of the link.
    program: &'static str,
    /// Runs it on a command line.
    run: fn(&'static str, Vec<OsString>) -> ExitCode,
}

/// All verbs. `host` uses the exit codes common to all tools; `guest` passes on the exit code of a
/// command in the guest.
const VERBS: &[Verb] = &[
    Verb { program: "msb-attach", run: |name, words| guest(name, words, attach::run) },
    Verb { program: "msb-config", run: |name, words| host(name, words, config::run) },
    Verb { program: "msb-cp", run: |name, words| host(name, words, cp::run) },
    Verb { program: "msb-create", run: |name, words| host(name, words, create::run) },
    Verb { program: "msb-doctor", run: |name, words| host(name, words, doctor::run) },
    Verb { program: "msb-events", run: |name, words| host(name, words, events::run) },
    Verb { program: "msb-exec", run: |name, words| guest(name, words, exec::run) },
    Verb { program: "msb-fork", run: |name, words| host(name, words, fork::run) },
    Verb { program: "msb-inspect", run: |name, words| host(name, words, inspect::run) },
    Verb { program: "msb-install", run: |name, words| host(name, words, install::run) },
    Verb { program: "msb-jobs", run: |name, words| host(name, words, jobs::run) },
    Verb { program: "msb-logs", run: |name, words| host(name, words, logs::run) },
    Verb { program: "msb-ls", run: |name, words| host(name, words, ls::run) },
    Verb { program: "msb-modify", run: |name, words| host(name, words, modify::run) },
    Verb { program: "msb-pause", run: |name, words| host(name, words, pause::pause) },
    Verb { program: "msb-ping", run: |name, words| host(name, words, ping::run) },
    Verb { program: "msb-ps", run: |name, words| host(name, words, ps::run) },
    Verb { program: "msb-report", run: |name, words| host(name, words, report::run) },
    Verb { program: "msb-restart", run: |name, words| host(name, words, restart::run) },
    Verb { program: "msb-restore", run: |name, words| host(name, words, restore::run) },
    Verb { program: "msb-resume", run: |name, words| host(name, words, pause::resume) },
    Verb { program: "msb-rm", run: |name, words| host(name, words, rm::run) },
    RUN,
    Verb { program: "msb-signal", run: |name, words| host(name, words, signal::run) },
    Verb { program: "msb-snapshot", run: |name, words| host(name, words, snapshot::run) },
    Verb { program: "msb-start", run: |name, words| host(name, words, start::run) },
    Verb { program: "msb-stop", run: |name, words| host(name, words, stop::run) },
    Verb { program: "msb-uninstall", run: |name, words| host(name, words, uninstall::run) },
    Verb { program: "msb-volume", run: |name, words| host(name, words, volume::run) },
    Verb { program: "msb-wait", run: |name, words| host(name, words, wait::run) },
];

/// The verb of the program itself, and of an unknown name.
const RUN: Verb = Verb { program: "msb-run", run: |name, words| guest(name, words, run::run) };

/// The process that owns a sandbox. Verbs start it.
const SUPERVISOR: Verb =
    Verb { program: launch::SUPERVISOR, run: |name, words| host(name, words, supervisor::run) };

/// Runs the verb of a program on its command line.
pub(crate) fn run_program(program: Option<&str>, words: Vec<OsString>) -> ExitCode {
    let mut verbs = VERBS.iter().chain([&SUPERVISOR]);
    let verb = verbs.find(|verb| Some(verb.program) == program).unwrap_or(&RUN);
    (verb.run)(verb.program, words)
}

/// Runs a command that uses the exit codes common to all tools.
fn host<P: Parser + CommandFactory>(
    name: &'static str,
    arguments: Vec<OsString>,
    run: impl FnOnce(P) -> anyhow::Result<()>,
) -> ExitCode {
    match parse(name, arguments) {
        Ok(parsed) => error::exit_code(name, run(parsed)),
        Err(code) => code,
    }
}

/// Runs a command that passes on the exit code of a command in the guest. Exit code 125 stands for
/// every failure on the host.
fn guest<P: Parser + CommandFactory>(
    name: &'static str,
    arguments: Vec<OsString>,
    run: impl FnOnce(P) -> anyhow::Result<u8>,
) -> ExitCode {
    let parsed = match parse(name, arguments) {
        Ok(parsed) => parsed,
        Err(code) if code == ExitCode::SUCCESS => return code,
        Err(_) => return ExitCode::from(exit::COMMAND_NOT_STARTED),
    };
    match run(parsed) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            error::report(name, &error);
            ExitCode::from(exit::COMMAND_NOT_STARTED)
        }
    }
}

fn parse<P: Parser + CommandFactory>(
    name: &'static str,
    arguments: Vec<OsString>,
) -> Result<P, ExitCode> {
    error::catch_bugs(name);
    let completes = complete::requested(&arguments).is_some();
    let arguments = match name {
        _ if completes => arguments,
        "msb-run" | "msb-create" | "msb-exec" | "msb-install" => {
            command_words::separate(&P::command(), arguments)
        }
        _ => arguments,
    };
    if let Some(code) = complete::serve_args(name, &arguments, P::command) {
        return Err(code);
    }
    let parsed = args::parse(name, arguments);
    apply_log_level();
    parsed
}
