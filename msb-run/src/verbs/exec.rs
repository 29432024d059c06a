//! `msb exec`: a command in a running sandbox.

use std::ffi::OsString;
use std::io::{BufWriter, Write};
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD as BASE64;
use clap::{Parser, ValueEnum};
use libmsb::capture::{CAPTURE_BYTES, CaptureBuffer};
use libmsb::cli::args::{SandboxName, parse_memory};
use libmsb::cli::error::{print_error, print_hint};
use libmsb::cli::output;
use libmsb::jsonl;
use libmsb::state::Home;
use msb_wire::client::Connection;
use msb_wire::exec::{ExecEvent, ExecRequest, FailureKind};
use msb_wire::job::JobEvent;
use msb_wire::sandbox::Request;
use msb_wire::text::Text;
use serde::{Serialize, Serializer};

use super::{CommandArgs, answer, connect, paused, refusal, tell_end};
use crate::plan;
use crate::session::{self, Captured, Outcome, Streams};

const TOOL: &str = "msb-exec";

/// Run a command in a running sandbox
#[derive(Debug, Parser)]
#[command(
    name = TOOL,
    version,
    override_usage = "msb exec [OPTIONS] NAME [-- COMMAND...]",
    after_help = "Examples:\n  msb exec worker -- python3 -c 'print(1)'\n  msb exec worker            # a shell\n  job=$(msb exec -d worker -- make)"
)]
pub(crate) struct ExecArgs {
    /// The sandbox
    name: SandboxName,
    /// The command and its arguments (default: the sandbox's shell)
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
    #[command(flatten)]
    connected: CommandArgs,
    /// Do not wait for the command: print the id of its job, and let it go on without us
    #[arg(short, long, conflicts_with = "format")]
    detach: bool,
    /// Put what the command prints into the sandbox's log too
    #[arg(long)]
    log: bool,
    /// Print one record of the result in place of what the command prints
    #[arg(long, value_enum, conflicts_with = "tty")]
    format: Option<Format>,
    /// Keep at most SIZE of each stream in the record, in MiB or with a unit (default: 8 MiB)
    #[arg(long, value_name = "SIZE", requires = "format", value_parser = parse_memory)]
    capture_max: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// One JSON object
    Json,
}

/// The result of a command. What is not UTF-8 is in the fields that end in `_b64`.
#[derive(Serialize)]
struct Record<'a> {
    r#type: &'static str,
    sandbox: &'a SandboxName,
    /// As that of this program: 128 + n for signal n, 124 to 127 when it was killed for its time or never started.
    exit_code: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    signal: Option<i32>,
    /// Why it was never started, or its end is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    duration_ms: u128,
    timed_out: bool,
    /// Whether a stream was longer than what is kept of it.
    truncated: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    stdout: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stdout_b64: Option<Encoded<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stderr: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stderr_b64: Option<Encoded<'a>>,
}

/// Bytes as base64, encoded while they are written.
struct Encoded<'a>(&'a [u8]);

impl Serialize for Encoded<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&Base64Display::new(self.0, &BASE64))
    }
}

pub(crate) fn run(args: ExecArgs) -> anyhow::Result<u8> {
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
    let mut request = ExecRequest {
        log: args.log,
        ..args.connected.request(argv, tty)
    };
    request.env.extend(
        args.connected
            .setting
            .env()?
            .iter()
            .map(|variable| Text::from(variable.to_assignment())),
    );
    let connection = connect(&home, &args.name)?;
    if args.detach {
        let request = ExecRequest {
            stdin: args.connected.wants_stdin(),
            job: true,
            timeout_ms: args.connected.timeout().map(plan::milliseconds),
            ..request
        };
        return start_job(&args.name, connection, request);
    }
    let streams = Streams::take(tty)?.with_timeout(args.connected.timeout());
    if args.format.is_some() {
        let bytes_max = match args.capture_max {
            Some(mib) => u64::from(mib) << 20,
            None => CAPTURE_BYTES,
        };
        let captured = Arc::new(Captured::new(bytes_max));
        return run_for_record(&args.name, connection, request, streams, &captured);
    }
    let (outcome, _) = session::run(connection, request, streams)?;
    require_started(&args.name, &outcome)?;
    tell_end(TOOL, &outcome)
}

/// Has the command started as a job, and prints the job's id.
fn start_job(
    name: &SandboxName,
    connection: Connection,
    request: ExecRequest,
) -> anyhow::Result<u8> {
    let message = answer(connection, &Request::Exec(request))?;
    if let Ok(JobEvent::Started { job }) = serde_json::from_slice(&message) {
        output::print(&job)?;
        return Ok(0);
    }
    let event = serde_json::from_slice::<ExecEvent>(&message).ok();
    if let Some(code) = event.as_ref().and_then(ExecEvent::exit_code) {
        let refusal = refusal(name, &message);
        print_error(TOOL, &refusal.to_string());
        if let Some(hint) = refusal.hint_text() {
            print_hint(TOOL, hint);
        }
        return Ok(code as u8);
    }
    Err(refusal(name, &message).into())
}

/// Refuses the result of a command that was not started since the sandbox is paused.
fn require_started(name: &SandboxName, outcome: &Outcome) -> anyhow::Result<()> {
    match outcome.event {
        Some(ExecEvent::Failed {
            kind: FailureKind::Paused,
            ..
        }) => Err(paused(name).into()),
        _ => Ok(()),
    }
}

fn run_for_record(
    sandbox: &SandboxName,
    connection: Connection,
    request: ExecRequest,
    streams: Streams,
    captured: &Arc<Captured>,
) -> anyhow::Result<u8> {
    let begin = Instant::now();
    let (outcome, _) = session::run(connection, request, streams.captured(Arc::clone(captured)))?;
    let duration_ms = begin.elapsed().as_millis();
    require_started(sandbox, &outcome)?;
    let exit_code = tell_end(TOOL, &outcome)?;
    let (signal, error) = match outcome.event {
        Some(ExecEvent::Exited { signal, .. }) => (signal, None),
        Some(ExecEvent::Failed { message, .. }) => (None, Some(message)),
        _ => (None, Some("the end of the command is not known".to_owned())),
    };
    let stdout = captured
        .stdout
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let stderr = captured
        .stderr
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let truncated = stdout.is_truncated() || stderr.is_truncated();
    let ((stdout, stdout_b64), (stderr, stderr_b64)) = (text(&stdout), text(&stderr));
    // A line of many MiB is not made in memory once more.
    let mut out = BufWriter::new(output::stdout());
    jsonl::stream(
        &mut out,
        &Record {
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

/// As text, or in base64.
fn text(kept: &CaptureBuffer) -> (Option<&str>, Option<Encoded<'_>>) {
    match kept.text() {
        Some(text) => (Some(text), None),
        None => (None, Some(Encoded(kept.bytes()))),
    }
}
