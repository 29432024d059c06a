//! `msb doctor`: checks this host and prints how to fix what is missing.

use std::fmt::Write as _;
use std::io::Write as _;

use clap::{Parser, ValueEnum};
use libmsb::cli::error::Failure;
use libmsb::cli::escape::escape;
use libmsb::cli::{output, style};
use libmsb::state::Home;

use crate::doctor::{self, CheckStatus, DoctorCheck, DoctorReport};

/// Check this host and print how to fix what is missing
#[derive(Debug, Parser)]
#[command(
    name = "msb-doctor",
    version,
    after_help = "Examples:\n  msb doctor\n  msb doctor --format json | jq -r '.checks[] | select(.status == \"problem\").mend'"
)]
pub(crate) struct DoctorArgs {
    /// Print a JSON object
    #[arg(long, value_enum)]
    format: Option<DoctorFormat>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DoctorFormat {
    Json,
}

pub(crate) fn run(args: DoctorArgs) -> anyhow::Result<()> {
    let report = doctor::examine(&Home::located()?);
    match args.format {
        Some(DoctorFormat::Json) => output::print_json(&report)?,
        None => {
            let mut stdout = output::stdout();
            stdout.write_all(render(&report, style::is_colored()).as_bytes())?;
            stdout.flush()?;
        }
    }
    if report.ready {
        return Ok(());
    }
    Err(Failure::failed("no sandbox can start until the problems above are fixed").into())
}

fn render(report: &DoctorReport, colored: bool) -> String {
    let max_width =
        |width: fn(&DoctorCheck) -> usize| report.checks.iter().map(width).max().unwrap_or(0);
    let (names, words) =
        (max_width(|check| check.name.len()), max_width(|check| status_name(check.status).len()));
    let mut text = String::new();
    let mut area = "";
    for check in &report.checks {
        if check.area != area {
            area = check.area;
            let gap = if text.is_empty() { "" } else { "\n" };
            let _ = writeln!(text, "{gap}{}", colorize(area, "1", colored));
        }
        let status = format!("{:words$}", status_name(check.status));
        let status = colorize(&status, color(check.status), colored);
        let _ = writeln!(text, "  {status}  {:names$}  {}", check.name, escape(&check.found));
        if let (Some(how), true) = (&check.fix, check.status != CheckStatus::Ok) {
            let _ = writeln!(text, "  {:words$}  {:names$}  fix: {}", "", "", escape(how));
        }
    }
    let _ = writeln!(text, "\n{}", verdict(report));
    text
}

fn verdict(report: &DoctorReport) -> String {
    let why = escape(&report.why);
    match (report.engine, report.accelerator) {
        (Some(engine), Some("kvm")) => format!("Sandboxes run with the engine {engine}: {why}."),
        (Some(engine), _) => {
            format!("Sandboxes run with the engine {engine}, in software emulation: {why}.")
        }
        (None, _) => format!("No sandbox can run: {why}."),
    }
}

fn status_name(status: CheckStatus) -> &'static str {
    match status {
        CheckStatus::Ok => "ok",
        CheckStatus::Note => "note",
        CheckStatus::Warning => "warning",
        CheckStatus::Problem => "problem",
    }
}

/// Returns the SGR code of a status: green, none, yellow, red.
fn color(status: CheckStatus) -> &'static str {
    match status {
        CheckStatus::Ok => "32",
        CheckStatus::Note => "0",
        CheckStatus::Warning => "33",
        CheckStatus::Problem => "31",
    }
}

fn colorize(text: &str, code: &str, colored: bool) -> String {
    if colored { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> DoctorReport {
        let check = |name, status, found: &str, fix: Option<&str>| DoctorCheck {
            area: "engines",
            name,
            status,
            found: found.to_owned(),
            fix: fix.map(str::to_owned),
        };
        DoctorReport {
            version: "1",
            ready: true,
            engine: Some("qemu"),
            accelerator: Some("tcg"),
            why: "there is no '/dev/kvm'".to_owned(),
            checks: vec![
                check("qemu", CheckStatus::Ok, "/usr/bin/qemu", None),
                check("virtualization", CheckStatus::Warning, "no\x1b[2J", Some("buy one")),
            ],
        }
    }

    #[test]
    fn a_report_is_a_table_with_a_fix_below_each_problem() {
        let expected = "\
engines
  ok       qemu            /usr/bin/qemu
  warning  virtualization  no\\x1b[2J
                           fix: buy one

Sandboxes run with the engine qemu, in software emulation: there is no '/dev/kvm'.
";
        assert_eq!(render(&report(), false), expected);
        let colored = render(&report(), true);
        assert!(colored.contains("\x1b[33mwarning\x1b[0m"), "{colored}");
    }
}
