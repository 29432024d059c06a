//! `msb report`: one archive with what a bug report needs, without secrets.

use std::io::Write;
use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::Context;
use clap::{Parser, ValueHint};
use libmsb::cli::args::SandboxName;
use libmsb::cli::error::Failure;
use libmsb::cli::output;
use libmsb::jsonl;
use libmsb::state::sandboxes::Sandbox;
use libmsb::state::{Home, layout};
use serde_json::{Value, json};

use crate::doctor;

/// Longest part of a log in the archive, its end.
const LOG_BYTES_MAX: u64 = 256 * 1024;

/// The text in place of a value that may be secret.
const REDACTED: &str = "[redacted]";

/// Fields of the specification whose values may be secret, in any object. Of a list the number of
/// items is kept.
const SECRET_FIELDS: [&str; 6] = ["env", "command", "args", "body", "labels", "hostname"];

/// Write an archive for a bug report
#[derive(Debug, Parser)]
#[command(
    name = "msb-report",
    version,
    after_help = "Examples:\n  msb report web > report.tar\n  msb report web -o report.tar && tar -tvf report.tar"
)]
pub(crate) struct ReportArgs {
    /// Name of the sandbox
    #[arg(value_name = "NAME")]
    name: SandboxName,
    /// Write the archive to FILE instead of standard output
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    output: Option<PathBuf>,
    /// Leave the logs out
    ///
    /// The console of the guest can contain what its programs print.
    #[arg(long)]
    no_logs: bool,
}

pub(crate) fn run(args: ReportArgs) -> anyhow::Result<()> {
    let home = Home::from_env()?;
    let sandbox = home.sandboxes().find(&args.name)?;
    let archive = archive(&home, &sandbox, !args.no_logs)?;
    match &args.output {
        Some(path) => std::fs::write(path, archive)
            .with_context(|| format!("cannot write '{}'", path.display())),
        None if output::is_terminal() => {
            Err(Failure::usage("the archive would go to the terminal")
                .hint(format!("redirect it: msb report {} > report.tar", args.name))
                .into())
        }
        None => {
            let mut stdout = output::stdout();
            stdout.write_all(&archive)?;
            Ok(stdout.flush()?)
        }
    }
}

fn archive(home: &Home, sandbox: &Sandbox, with_logs: bool) -> anyhow::Result<Vec<u8>> {
    let scrubber = PathScrubber::of_user();
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |name: &str, contents: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(contents.len() as u64);
        header.set_mode(0o644);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        header.set_mtime(now.map_or(0, |now| now.as_secs()));
        archive.append_data(&mut header, format!("msb-report/{name}"), contents)
    };
    let seen = sandbox.snapshot()?;
    let mut spec = serde_json::to_value(&seen.spec)?;
    redact(&mut spec);
    let documents = [
        ("version.json", version()),
        ("doctor.json", serde_json::to_value(doctor::examine(home))?),
        ("spec.json", spec),
        ("status.json", serde_json::to_value(&seen.status)?),
        ("state.json", json!({ "state": seen.state.name() })),
    ];
    for (name, document) in documents {
        let text = jsonl::to_string_pretty(&document)?;
        add(name, scrubber.scrub(text.as_bytes()).as_slice())?;
    }
    let logs = [layout::SUPERVISOR_LOG, layout::CONSOLE_LOG, layout::NET_LOG];
    for log in logs.into_iter().filter(|_| with_logs) {
        if let Some(end) = end_of(&sandbox.path(log))? {
            add(log, scrubber.scrub(&end).as_slice())?;
        }
    }
    Ok(archive.into_inner()?)
}

/// Returns the versions of msb and of the host's kernel and distribution. Not the host's name.
fn version() -> Value {
    let system = rustix::system::uname();
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    json!({
        "msb": env!("CARGO_PKG_VERSION"),
        "kernel": system.release().to_string_lossy(),
        "machine": system.machine().to_string_lossy(),
        "distribution": name.unwrap_or_default().trim_matches('"'),
    })
}

/// Replaces the values of secret fields. Keys stay, since a missing variable is a frequent fault.
fn redact(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (key, field) in fields {
                if SECRET_FIELDS.contains(&key.as_str()) {
                    redact_all(field);
                } else {
                    redact(field);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(redact),
        _ => {}
    }
}

fn redact_all(value: &mut Value) {
    match value {
        Value::Object(fields) => fields.values_mut().for_each(redact_all),
        Value::Array(items) => items.iter_mut().for_each(redact_all),
        Value::String(text) => {
            let name = text.split_once('=').map(|(name, _)| name.to_owned());
            *text = name.map_or(REDACTED.to_owned(), |name| format!("{name}={REDACTED}"));
        }
        _ => *value = Value::String(REDACTED.to_owned()),
    }
}

/// Returns the end of a log, from the start of a line.
fn end_of(path: &std::path::Path) -> anyhow::Result<Option<Vec<u8>>> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot open '{}'", path.display()));
        }
    };
    let skipped = file.metadata()?.len().saturating_sub(LOG_BYTES_MAX);
    file.seek(SeekFrom::Start(skipped))?;
    let mut bytes = Vec::new();
    file.take(LOG_BYTES_MAX).read_to_end(&mut bytes)?;
    if skipped > 0 {
        let line = bytes.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        bytes.drain(..line);
    }
    Ok(Some(bytes))
}

/// The user's home directory and name, which a report does not need.
struct PathScrubber {
    words: Vec<(Vec<u8>, &'static [u8])>,
}

impl PathScrubber {
    fn of_user() -> PathScrubber {
        let word = |name: &str| {
            let value = std::env::var(name).ok()?;
            // A short word would be found in other ones.
            (value.len() > 3).then(|| value.into_bytes())
        };
        let home = word("HOME").map(|home| (home, &b"~"[..]));
        let host = rustix::system::uname().nodename().to_bytes().to_vec();
        let host = (host.len() > 3).then_some((host, &b"[host]"[..]));
        let user = word("USER").filter(|user| user != b"root").map(|user| (user, &b"[user]"[..]));
        PathScrubber { words: home.into_iter().chain(host).chain(user).collect() }
    }

    fn scrub(&self, bytes: &[u8]) -> Vec<u8> {
        self.words.iter().fold(bytes.to_vec(), |bytes, (word, by)| replaced(&bytes, word, by))
    }
}

fn replaced(bytes: &[u8], word: &[u8], by: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(at) = memchr::memmem::find(rest, word) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(by);
        rest = &rest[at + word.len()..];
    }
    out.extend_from_slice(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_may_be_secret_are_replaced() {
        let mut spec = json!({
            "name": "web", "env": ["TOKEN=hunter2", "X"], "command": ["psql", "--password=hunter2"],
            "cpus": 2, "labels": {"key": "hunter2"},
            "guest": {"init": {"args": ["hunter2"]}, "changes": [
                {"kind": "write", "path": "/x", "body": "hunter2"},
                {"kind": "write", "path": "/y", "body": {"hex": "00"}}
            ]}
        });
        redact(&mut spec);
        let text = spec.to_string();
        assert!(!text.contains("hunter2") && !text.contains("\"00\""), "{text}");
        assert_eq!(spec["env"], json!(["TOKEN=[redacted]", "[redacted]"]));
        assert_eq!((&spec["cpus"], &spec["name"]), (&json!(2), &json!("web")));
    }

    #[test]
    fn the_home_directory_and_the_user_are_replaced() {
        let words = vec![(b"/home/ann".to_vec(), &b"~"[..]), (b"ann".to_vec(), &b"[user]"[..])];
        let scrubber = PathScrubber { words };
        assert_eq!(scrubber.scrub(b"/home/ann/x and ann"), b"~/x and [user]");
    }
}
