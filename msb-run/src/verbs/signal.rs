//! `msb signal`: a signal to a job.

use clap::Parser;
use libmsb::cli::args::SandboxName;
use libmsb::cli::error::{Code, Failure};
use libmsb::state::Home;
use libmsb::state::jobs::Jobs;
use msb_wire::exec::{ExecEvent, FailureKind};
use msb_wire::job::{JobEvent, SignalRequest};
use msb_wire::sandbox::Request;

use super::jobs::no_such_job;
use super::{answer, connect, refusal};

/// Send a signal to the processes of a job
#[derive(Debug, Parser)]
#[command(
    name = "msb-signal",
    version,
    after_help = "Examples:\n  msb signal worker 5f0c11d2\n  msb signal -s HUP worker $(msb jobs -q --running worker)"
)]
pub(crate) struct SignalArgs {
    /// The sandbox
    name: SandboxName,
    /// The jobs, by their ids
    #[arg(value_name = "JOB", required = true)]
    jobs: Vec<String>,
    /// Which: a name, as TERM or SIGTERM, or a number of Linux
    #[arg(short, long, default_value = "TERM", value_parser = parse_signal)]
    signal: i32,
}

/// Names of signals and their numbers on Linux, as signal(7) has them for x86 and ARM.
const SIGNALS: [(&str, i32); 31] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
];

/// The highest number of a signal on Linux.
const SIGNAL_MAX: i32 = 64;

fn parse_signal(text: &str) -> Result<i32, String> {
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let named = SIGNALS.iter().find(|(known, _)| *known == name);
    let number = named
        .map(|(_, number)| *number)
        .or_else(|| text.parse().ok());
    number
        .filter(|number| (1..=SIGNAL_MAX).contains(number))
        .ok_or_else(|| "not a signal, such as TERM, SIGKILL or 10".to_owned())
}

pub(crate) fn run(args: SignalArgs) -> anyhow::Result<()> {
    let home = Home::from_env()?;
    for job in &args.jobs {
        signal(&home, &args.name, job, args.signal)?;
    }
    Ok(())
}

fn signal(home: &Home, name: &SandboxName, job: &str, signal: i32) -> anyhow::Result<()> {
    let request = Request::Signal(SignalRequest {
        job: job.to_owned(),
        signal,
    });
    let message = answer(connect(home, name)?, &request)?;
    if let Ok(JobEvent::Signalled) = serde_json::from_slice(&message) {
        return Ok(());
    }
    match serde_json::from_slice(&message) {
        Ok(ExecEvent::Failed {
            kind: FailureKind::NotFound,
            ..
        }) => Err(not_running(home, name, job)?.into()),
        _ => Err(refusal(name, &message).into()),
    }
}

/// A job that has ended is another thing than one that was never there.
fn not_running(home: &Home, name: &SandboxName, job: &str) -> anyhow::Result<Failure> {
    let known = Jobs::of(&home.sandboxes().find(name)?)?;
    Ok(match known.find(job) {
        Some(_) => Failure::wrong_state(format!("the job '{job}' has ended"))
            .code(Code::WrongState)
            .hint(format!("`msb jobs {name} {job}` tells how")),
        None => no_such_job(name, job),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for text in ["TERM", "SIGTERM", "sigterm", "15"] {
            assert_eq!(parse_signal(text), Ok(15));
        }
        for text in ["0", "65", "-1", "TERMS", "", "SIG"] {
            assert!(parse_signal(text).is_err(), "{text}");
        }
        // The standard numbers are those of the table, in order.
        assert!(SIGNALS.iter().map(|(_, number)| *number).eq(1..=31));
    }
}
