//! `exec.log`: what the main command printed, and when, as JSON lines. man page msb-events(5).

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
    tty: bool,
    /// The begin of a character whose end has not come yet, by channel.
    partial: [Vec<u8>; CHANNELS],
}

#[derive(Serialize)]
struct Line<'a> {
    /// When.
    t: String,
    /// From where.
    s: &'a str,
    /// What.
    d: &'a str,
    /// How `d` is encoded, when it is not text.
    #[serde(skip_serializing_if = "Option::is_none")]
    e: Option<&'a str>,
}

impl ExecLog {
    /// Opens the log of a command; with a terminal, all its output is one stream.
    pub(crate) fn open(path: &Path, tty: bool) -> io::Result<ExecLog> {
        Ok(ExecLog {
            file: RotatedFile::open(path, BOUNDS)?,
            tty,
            partial: Default::default(),
        })
    }

    /// Writes what the command printed.
    pub(crate) fn output(&mut self, channel: u8, bytes: &[u8]) -> io::Result<()> {
        let source = self.source(channel);
        let Some(partial) = self.partial.get_mut(usize::from(channel)) else {
            return Ok(());
        };
        let mut whole = std::mem::take(partial);
        whole.extend_from_slice(bytes);
        *partial = whole.split_off(whole.len() - unfinished_character(&whole));
        self.line(source, &whole)
    }

    /// Writes what is left when the command has ended.
    pub(crate) fn end(&mut self) -> io::Result<()> {
        for channel in 0..CHANNELS as u8 {
            let rest = std::mem::take(&mut self.partial[usize::from(channel)]);
            self.line(self.source(channel), &rest)?;
        }
        Ok(())
    }

    /// Writes a remark of our own.
    pub(crate) fn system(&mut self, remark: &str) -> io::Result<()> {
        self.line("system", format!("{remark}\n").as_bytes())
    }

    fn source(&self, channel: u8) -> &'static str {
        match (self.tty, channel) {
            (true, _) => "output",
            (false, STDERR) => "stderr",
            (false, _) => "stdout",
        }
    }

    fn line(&mut self, source: &str, bytes: &[u8]) -> io::Result<()> {
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
                e: None,
            },
            Err(_) => {
                encoded = BASE64.encode(bytes);
                Line {
                    t: time,
                    s: source,
                    d: &encoded,
                    e: Some("b64"),
                }
            }
        };
        let mut text = serde_json::to_vec(&line)?;
        text.push(b'\n');
        self.file.append(&text)
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
        let mut log = ExecLog::open(&path, false).unwrap();
        let text = "gr\u{fc}n".as_bytes();
        log.output(STDOUT, &text[..3]).unwrap();
        log.output(STDOUT, &text[3..]).unwrap();
        log.output(STDERR, &[0xff, 0xfe]).unwrap();
        log.end().unwrap();
        let lines: Vec<serde_json::Value> = std::fs::read_to_string(&path)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let joined: String = lines[..2]
            .iter()
            .map(|line| line["d"].as_str().unwrap())
            .collect();
        assert_eq!(joined, "gr\u{fc}n");
        assert_eq!(
            (
                lines[2]["s"].as_str(),
                lines[2]["d"].as_str(),
                lines[2]["e"].as_str()
            ),
            (Some("stderr"), Some("//4="), Some("b64"))
        );
    }
}
