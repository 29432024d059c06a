//! `exec.log`: the output of the main command and of logged sessions, with times, as JSON lines;
//! man page msb-events(5).

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use msb_wire::frame::{CHANNELS, STDERR};
use serde::Serialize;

use crate::process::log_rotation::{RotatedLog, RotationLimits};

/// Log rotation as in microsandbox: five files of 10 MiB.
const ROTATION: RotationLimits = RotationLimits { file_bytes: 10 * 1024 * 1024, kept: 4 };

/// The log of a sandbox's commands.
#[derive(Debug)]
pub(crate) struct ExecLog {
    file: RotatedLog,
    /// Incomplete UTF-8 characters at the end of a stream, with the source of the stream.
    partial: BTreeMap<OutputStream, (&'static str, Vec<u8>)>,
}

/// A session (none for the main command) and its channel.
type OutputStream = (Option<String>, u8);

#[derive(Serialize)]
struct LogLine<'a> {
    /// Time.
    t: String,
    /// Source.
    s: &'a str,
    /// Data.
    d: &'a str,
    /// ID of the session, if it is not the main command.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    /// Encoding of `d`, if it is not text.
    #[serde(skip_serializing_if = "Option::is_none")]
    e: Option<&'a str>,
}

impl ExecLog {
    /// Opens the log of a sandbox's commands.
    pub(crate) fn open(path: &Path) -> io::Result<ExecLog> {
        Ok(ExecLog { file: RotatedLog::open(path, ROTATION)?, partial: BTreeMap::new() })
    }

    /// Writes the output of a command. With a terminal all output is one stream.
    pub(crate) fn output(
        &mut self,
        session: Option<&str>,
        tty: bool,
        channel: u8,
        bytes: &[u8],
    ) -> io::Result<()> {
        let source = source(tty, channel);
        let stream = (session.map(str::to_owned), channel);
        let (_, mut whole) = self.partial.remove(&stream).unwrap_or_default();
        whole.extend_from_slice(bytes);
        let rest = whole.split_off(whole.len() - unfinished_character(&whole));
        if !rest.is_empty() {
            self.partial.insert(stream, (source, rest));
        }
        self.line(source, session, &whole)
    }

    /// Writes the remaining bytes of a command that has ended.
    pub(crate) fn end(&mut self, session: Option<&str>) -> io::Result<()> {
        for channel in 0..CHANNELS as u8 {
            let stream = (session.map(str::to_owned), channel);
            if let Some((source, rest)) = self.partial.remove(&stream) {
                self.line(source, session, &rest)?;
            }
        }
        Ok(())
    }

    /// Writes a remark of the supervisor.
    pub(crate) fn system(&mut self, remark: &str) -> io::Result<()> {
        self.line("system", None, format!("{remark}\n").as_bytes())
    }

    fn line(&mut self, source: &str, session: Option<&str>, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let time = libmsb::time::text(jiff::Timestamp::now());
        let encoded;
        let line = match std::str::from_utf8(bytes) {
            Ok(text) => LogLine { t: time, s: source, d: text, id: session, e: None },
            Err(_) => {
                encoded = BASE64.encode(bytes);
                LogLine { t: time, s: source, d: &encoded, id: session, e: Some("b64") }
            }
        };
        let mut text = serde_json::to_vec(&line)?;
        text.push(b'\n');
        self.file.append(&text)
    }
}

fn source(tty: bool, channel: u8) -> &'static str {
    match (tty, channel) {
        (true, _) => "output",
        (false, STDERR) => "stderr",
        (false, _) => "stdout",
    }
}

/// Returns the number of bytes at the end that form an incomplete UTF-8 character.
fn unfinished_character(bytes: &[u8]) -> usize {
    for back in 1..=bytes.len().min(3) {
        let length = match bytes[bytes.len() - back] {
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            0x80..=0xbf => continue,
            _ => 1,
        };
        return if length > back { back } else { 0 };
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use msb_wire::frame::STDOUT;

    #[test]
    fn text_stays_text_also_when_a_character_comes_in_two_parts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("exec.log");
        let mut log = ExecLog::open(&path).unwrap();
        let text = "gr\u{fc}n".as_bytes();
        log.output(None, false, STDOUT, &text[..3]).unwrap();
        // Another session in between has a stream of its own.
        log.output(Some("7"), true, STDOUT, b"other").unwrap();
        log.output(None, false, STDOUT, &text[3..]).unwrap();
        log.output(None, false, STDERR, &[0xff, 0xfe]).unwrap();
        log.end(None).unwrap();
        let lines: Vec<serde_json::Value> = std::fs::read_to_string(&path)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let main = lines.iter().filter(|line| line.get("id").is_none());
        let joined: String = main
            .filter(|line| line["s"] == "stdout")
            .map(|line| line["d"].as_str().unwrap())
            .collect();
        assert_eq!((&lines[1]["s"], &lines[1]["id"]), (&"output".into(), &"7".into()));
        assert_eq!(joined, "gr\u{fc}n");
        assert_eq!(
            (lines[3]["s"].as_str(), lines[3]["d"].as_str(), lines[3]["e"].as_str()),
            (Some("stderr"), Some("//4="), Some("b64"))
        );
    }
}
