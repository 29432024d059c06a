//! `msb exec`: runs a command in a running sandbox.

use std::ffi::OsString;
use std::io::{BufWriter, Write};
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD as BASE64;
use clap::{Parser, ValueEnum};
use libmsb::capture::{CAPTURE_BYTES, CaptureBuffer};
use libmsb::cli::args::{SandboxName, parse_memory};
use libmsb::cli::error::print_failure;
use libmsb::cli::output;
use libmsb::jsonl;
use libmsb::state::Home;
use msb_wire::client::ClientConnection;
use msb_wire::exec::{ExecEvent, ExecRequest, FailureKind};
use msb_wire::job::JobEvent;
use msb_wire::sandbox::Request;
use msb_wire::text::Text;
use serde::{Serialize, Serializer};

use super::{CommandArgs, answer, connect, paused, refusal, report_outcome};
use crate::session::{self, CapturedOutput, SessionOutcome, SessionStreams};
use crate::spec_builder;

const TOOL: &str = "msb-exec";

/// Run a command in a running sandbox
#[derive(Debug, Parser)]
#[command(
    name = TOOL,
    version,
    override_usage = "msb exec [OPTIONS] NAME [COMMAND...]",
    after_help = "Examples:\n  msb exec worker python3 -c 'print(1)'\n  msb exec worker            # a shell\n  job=$(msb exec -d worker -- make)"
)]
pub(crate) struct ExecArgs {
    /// Name of the sandbox
    name: SandboxName,
    /// Command and arguments [default: the shell of the sandbox]
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
    #[command(flatten)]
    connected: CommandArgs,
    /// Start the command as a job, print its ID and return
    ///
    /// The job runs without the caller; see msb-jobs(1). Its output goes to the log of the sandbox.
    /// Its standard input is empty, unless `--interactive` or `--tty` is given: then clients can
    /// attach and send input, see msb-attach(1).
    #[arg(short, long, conflicts_with = "format")]
    detach: bool,
    /// Also write the output of the command to the log of the sandbox
    ///
    /// The output gets an ID of its own, see msb-logs(1).
    #[arg(long, help_heading = "Output")]
    log: bool,
    /// Print the result as a JSON object instead of the output
    ///
    /// The object has `exit_code` (see **EXIT STATUS**), `signal` if a signal killed the command,
    /// `error` if it was not started, `duration_ms`, `timed_out`, `truncated`, `stdout` and
    /// `stderr`. A stream that is not UTF-8 is in `stdout_b64` or `stderr_b64`, as base64.
    ///
    /// The output is kept in memory until the command ends, up to a limit for each stream. Output
    /// beyond it is dropped, and `truncated` is true; the command continues to its end.
    #[arg(long, value_enum, conflicts_with = "tty", help_heading = "Output")]
    format: Option<ExecFormat>,
    /// Limit each stream in the JSON object to SIZE [default: 8M]
    ///
    /// A number without a unit is in MiB.
    #[arg(
        long,
        value_name = "SIZE",
        requires = "format",
        value_parser = parse_memory,
        help_heading = "Output"
    )]
    capture_max: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ExecFormat {
    Json,
}

/// The result of a command. Output that is not UTF-8 is in the fields that end in `_b64`.
#[derive(Serialize)]
struct ExecRecord<'a> {
    r#type: &'static str,
    sandbox: &'a SandboxName,
    /// Exit code of this program: 128 + n for signal n, 124 to 127 after a timeout or a failed
    /// start.
    exit_code: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    signal: Option<i32>,
    /// Reason for a failed start or an unknown outcome.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    duration_ms: u128,
    timed_out: bool,
    /// Set when the record has only a part of a stream.
    truncated: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    stdout: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stdout_b64: Option<Base64Bytes<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stderr: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stderr_b64: Option<Base64Bytes<'a>>,
}

/// Bytes in base64, encoded while they are written.
struct Base64Bytes<'a>(&'a [u8]);

impl Serialize for Base64Bytes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&Base64Display::new(self.0, &BASE64))
    }
}

pub(crate) fn run(args: ExecArgs) -> anyhow::Result<u8> {
    args.connected.quiet.apply();
    let home = Home::from_env()?;
    let mut argv: Vec<Text> = args.command.iter().cloned().map(Text::from).collect();
    if argv.is_empty() {
        let shell = home.sandboxes().find(&args.name)?.spec()?.guest.shell;
        argv.push(shell.unwrap_or_else(|| Text::from("/bin/sh")));
    }
    let tty = if args.detach {
        args.connected.wants_tty()
    } else {
        args.format.is_none() && args.connected.is_tty()
    };
    let mut request = ExecRequest { log: args.log, ..args.connected.request(argv, tty) };
    request.env.extend(
        args.connected.context.env()?.iter().map(|variable| Text::from(variable.to_assignment())),
    );
    let connection = connect(&home, &args.name)?;
    if args.detach {
        let request = ExecRequest {
            stdin: args.connected.wants_stdin(),
            job: true,
            timeout_ms: args.connected.timeout().map(spec_builder::milliseconds),
            ..request
        };
        return start_job(&args.name, connection, request);
    }
    let streams = SessionStreams::acquire(tty)?
        .with_timeout(args.connected.timeout())
        .with_detach_keys(&args.connected.detach_keys);
    if args.format.is_some() {
        let bytes_max = match args.capture_max {
            Some(mib) => u64::from(mib) << 20,
            None => CAPTURE_BYTES,
        };
        let captured = Arc::new(CapturedOutput::new(bytes_max));
        return run_for_record(&args.name, connection, request, streams, &captured);
    }
    let (outcome, _) = session::run(connection, request, streams)?;
    require_started(&args.name, &outcome)?;
    report_outcome(TOOL, &args.name, &outcome)
}

/// Starts the command as a job, and prints the job's ID.
fn start_job(
    name: &SandboxName,
    connection: ClientConnection,
    request: ExecRequest,
) -> anyhow::Result<u8> {
    let message = answer(connection, &Request::Exec(request))?;
    if let Ok(JobEvent::Started { job }) = serde_json::from_slice(&message) {
        output::print(&job)?;
        return Ok(0);
    }
    let event = serde_json::from_slice::<ExecEvent>(&message).ok();
    if let Some(code) = event.as_ref().and_then(ExecEvent::exit_code) {
        print_failure(TOOL, &refusal(name, &message).into());
        return Ok(code as u8);
    }
    Err(refusal(name, &message).into())
}

/// Returns an error if the command was not started because the sandbox is paused.
fn require_started(name: &SandboxName, outcome: &SessionOutcome) -> anyhow::Result<()> {
    match outcome.event {
        Some(ExecEvent::Failed { kind: FailureKind::Paused, .. }) => Err(paused(name).into()),
        _ => Ok(()),
    }
}

fn run_for_record(
    sandbox: &SandboxName,
    connection: ClientConnection,
    request: ExecRequest,
    streams: SessionStreams,
    captured: &Arc<CapturedOutput>,
) -> anyhow::Result<u8> {
    let start = Instant::now();
    let (outcome, _) =
        session::run(connection, request, streams.with_capture(Arc::clone(captured)))?;
    let duration_ms = start.elapsed().as_millis();
    require_started(sandbox, &outcome)?;
    let exit_code = report_outcome(TOOL, sandbox, &outcome)?;
    let (signal, error) = match outcome.event {
        Some(ExecEvent::Exited { signal, .. }) => (signal, None),
        Some(ExecEvent::Failed { message, .. }) => (None, Some(message)),
        _ => (None, Some("the outcome of the command is unknown".to_owned())),
    };
    let stdout = captured.stdout.lock().unwrap_or_else(PoisonError::into_inner);
    let stderr = captured.stderr.lock().unwrap_or_else(PoisonError::into_inner);
    let truncated = stdout.is_truncated() || stderr.is_truncated();
    let ((stdout, stdout_b64), (stderr, stderr_b64)) = (text(&stdout), text(&stderr));
    // Stream the record: it may have many MiB.
    let mut out = BufWriter::new(output::stdout());
    jsonl::stream(
        &mut out,
        &ExecRecord {
            r#type: "exec",
            sandbox,
            exit_code,
            signal,
            error,
            duration_ms,
            timed_out: outcome.timed_out,
            truncated,
            stdout,
            stdout_b64,
            stderr,
            stderr_b64,
        },
    )?;
    writeln!(out)?;
    out.flush()?;
    Ok(exit_code)
}

/// Returns the output as text, or in base64 if it is not UTF-8.
fn text(buffer: &CaptureBuffer) -> (Option<&str>, Option<Base64Bytes<'_>>) {
    match buffer.text() {
        Some(text) => (Some(text), None),
        None => (None, Some(Base64Bytes(buffer.bytes()))),
    }
}
