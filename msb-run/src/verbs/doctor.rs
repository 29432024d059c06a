//! `msb doctor`: can a sandbox start here, by which engine, and if not, what is to be done.

use std::fmt::Write as _;
use std::io::Write as _;

use clap::{Parser, ValueEnum};
use libmsb::cli::error::Failure;
use libmsb::cli::escape::escape;
use libmsb::cli::{output, style};
use libmsb::state::Home;

use crate::doctor::{self, Check, Report, Status};

/// Say what this host can do for msb, and how to mend what it cannot
#[derive(Debug, Parser)]
#[command(
    name = "msb-doctor",
    version,
    after_help = "Examples:\n  msb doctor\n  msb doctor --format json | jq -r '.checks[] | select(.status == \"problem\").mend'"
)]
pub(crate) struct DoctorArgs {
    /// How to print it
    #[arg(long, value_enum)]
    format: Option<Format>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// One JSON object
    Json,
}

pub(crate) fn run(args: DoctorArgs) -> anyhow::Result<()> {
    let report = doctor::examine(&Home::from_env()?);
    match args.format {
        Some(Format::Json) => output::print_json(&report)?,
        None => {
            let mut stdout = output::stdout();
            stdout.write_all(render(&report, style::is_colored()).as_bytes())?;
            stdout.flush()?;
        }
    }
    if report.ready {
        return Ok(());
    }
    Err(Failure::failed("no sandbox can start here before the problems are mended").into())
}

fn render(report: &Report, colored: bool) -> String {
    let wide = |width: fn(&Check) -> usize| report.checks.iter().map(width).max().unwrap_or(0);
    let (names, words) = (
        wide(|check| check.name.len()),
        wide(|check| word(check.status).len()),
    );
    let mut text = String::new();
    let mut area = "";
    for check in &report.checks {
        if check.area != area {
            area = check.area;
            let gap = if text.is_empty() { "" } else { "\n" };
            let _ = writeln!(text, "{gap}{}", painted(area, "1", colored));
        }
        let status = format!("{:words$}", word(check.status));
        let status = painted(&status, color(check.status), colored);
        let _ = writeln!(
            text,
            "  {status}  {:names$}  {}",
            check.name,
            escape(&check.found)
        );
        if let (Some(how), true) = (&check.mend, check.status != Status::Ok) {
            let _ = writeln!(
                text,
                "  {:words$}  {:names$}  mend: {}",
                "",
                "",
                escape(how)
            );
        }
    }
    let _ = writeln!(text, "\n{}", verdict(report));
    text
}

fn verdict(report: &Report) -> String {
    let why = escape(&report.why);
    match (report.engine, report.accelerator) {
        (Some(engine), Some("kvm")) => format!("Sandboxes run by the engine {engine}: {why}."),
        (Some(engine), _) => format!("Sandboxes run by the engine {engine}, in software: {why}."),
        (None, _) => format!("No sandbox can run: {why}."),
    }
}

fn word(status: Status) -> &'static str {
    match status {
        Status::Ok => "ok",
        Status::Note => "note",
        Status::Warning => "warning",
        Status::Problem => "problem",
    }
}

/// Codes of SGR: green, none, yellow, red.
fn color(status: Status) -> &'static str {
    match status {
        Status::Ok => "32",
        Status::Note => "0",
        Status::Warning => "33",
        Status::Problem => "31",
    }
}

fn painted(text: &str, code: &str, colored: bool) -> String {
    if colored {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let check = |name, status, found: &str, mend: Option<&str>| Check {
            area: "engines",
            name,
            status,
            found: found.to_owned(),
            mend: mend.map(str::to_owned),
        };
        Report {
            version: "1",
            ready: true,
            engine: Some("qemu"),
            accelerator: Some("tcg"),
            why: "there is no '/dev/kvm'".to_owned(),
            checks: vec![
                check("qemu", Status::Ok, "/usr/bin/qemu", None),
                check(
                    "virtualization",
                    Status::Warning,
                    "no\x1b[2J",
                    Some("buy one"),
                ),
            ],
        }
    }

    #[test]
    fn a_report_is_a_table_with_the_next_step_below_what_is_wrong() {
        let expected = "\
engines
  ok       qemu            /usr/bin/qemu
  warning  virtualization  no\\x1b[2J
                           mend: buy one

Sandboxes run by the engine qemu, in software: there is no '/dev/kvm'.
";
        assert_eq!(render(&report(), false), expected);
        let colored = render(&report(), true);
        assert!(colored.contains("\x1b[33mwarning\x1b[0m"), "{colored}");
    }
}
