//! `exec.log`: what the main command printed, and sessions that are to be logged, and when, as JSON lines. man page msb-events(5).

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use msb_wire::frame::{CHANNELS, STDERR};
use serde::Serialize;

use super::rotate::{Bounds, RotatedFile};

/// As the reference: five files of 10 MiB.
const BOUNDS: Bounds = Bounds {
    file_bytes: 10 * 1024 * 1024,
    kept: 4,
};

/// The log.
#[derive(Debug)]
pub(crate) struct ExecLog {
    file: RotatedFile,
    /// The begin of a character whose end has not come yet, and the source that it is of.
    partial: BTreeMap<Stream, (&'static str, Vec<u8>)>,
}

/// A session (none for the main command), and its channel.
type Stream = (Option<String>, u8);

#[derive(Serialize)]
struct Line<'a> {
    /// When.
    t: String,
    /// From where.
    s: &'a str,
    /// What.
    d: &'a str,
    /// Which session, when it is not the main command.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    /// How `d` is encoded, when it is not text.
    #[serde(skip_serializing_if = "Option::is_none")]
    e: Option<&'a str>,
}

impl ExecLog {
    /// Opens the log of a sandbox's commands.
    pub(crate) fn open(path: &Path) -> io::Result<ExecLog> {
        Ok(ExecLog {
            file: RotatedFile::open(path, BOUNDS)?,
            partial: BTreeMap::new(),
        })
    }

    /// Writes what a command printed; with a terminal, all its output is one stream.
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

    /// Writes what is left when a command has ended.
    pub(crate) fn end(&mut self, session: Option<&str>) -> io::Result<()> {
        for channel in 0..CHANNELS as u8 {
            let stream = (session.map(str::to_owned), channel);
            if let Some((source, rest)) = self.partial.remove(&stream) {
                self.line(source, session, &rest)?;
            }
        }
        Ok(())
    }

    /// Writes a remark of our own.
    pub(crate) fn system(&mut self, remark: &str) -> io::Result<()> {
        self.line("system", None, format!("{remark}\n").as_bytes())
    }

    fn line(&mut self, source: &str, session: Option<&str>, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let time = format!("{:.3}", jiff::Timestamp::now());
        let encoded;
        let line = match std::str::from_utf8(bytes) {
            Ok(text) => Line {
                t: time,
                s: source,
                d: text,
                id: session,
                e: None,
            },
            Err(_) => {
                encoded = BASE64.encode(bytes);
                Line {
                    t: time,
                    s: source,
                    d: &encoded,
                    id: session,
                    e: Some("b64"),
                }
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

/// Number of bytes at the end that begin a character of UTF-8 and do not end it.
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
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("exec.log");
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
        assert_eq!(
            (&lines[1]["s"], &lines[1]["id"]),
            (&"output".into(), &"7".into())
        );
        assert_eq!(joined, "gr\u{fc}n");
        assert_eq!(
            (
                lines[3]["s"].as_str(),
                lines[3]["d"].as_str(),
                lines[3]["e"].as_str()
            ),
            (Some("stderr"), Some("//4="), Some("b64"))
        );
    }
}
