//! Messages of a program that runs for long: on standard error, with a level, as text or JSON.

use std::io::Write;
use std::sync::OnceLock;

use clap::ValueEnum;
use libmsb::cli::error::Failure;
use libmsb::cli::escape::escape;
use libmsb::jsonl;
use serde::Serialize;

use crate::TOOL;

/// The variable that has the last word on the level.
const VARIABLE: &str = "RUST_LOG";

/// How much is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// Nothing.
    Off,
    /// What went wrong for good.
    Error,
    /// What went wrong and is tried again, or does without.
    Warn,
    /// Beginning and end, and what is good again.
    Info,
    /// Each export.
    Debug,
    /// The same.
    Trace,
}

/// The form of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A line for people
    Text,
    /// A JSON object a line
    Json,
}

static SETTING: OnceLock<(Level, Format)> = OnceLock::new();

#[derive(Serialize)]
struct Line<'a> {
    timestamp: jiff::Timestamp,
    level: Level,
    tool: &'a str,
    message: &'a str,
}

/// Sets level and form, once.
pub(crate) fn begin(level: Level, format: Format) -> Result<(), Failure> {
    let level = match std::env::var(VARIABLE) {
        Ok(word) if !word.is_empty() => Level::from_str(&word, true).map_err(|_| {
            Failure::usage(format!("{VARIABLE} is no level: '{}'", escape(&word)))
                .hint("levels are off, error, warn, info, debug and trace")
        })?,
        _ => level,
    };
    let _ = SETTING.set((level, format));
    Ok(())
}

/// Something went wrong for good.
pub(crate) fn error(message: &str) {
    say(Level::Error, message);
}

/// Something went wrong, and is tried again or done without.
pub(crate) fn warn(message: &str) {
    say(Level::Warn, message);
}

/// Something good to know.
pub(crate) fn info(message: &str) {
    say(Level::Info, message);
}

/// Something for those who search.
pub(crate) fn debug(message: &str) {
    say(Level::Debug, message);
}

fn say(level: Level, message: &str) {
    let (wanted, format) = *SETTING.get_or_init(|| (Level::Info, Format::Text));
    if level > wanted {
        return;
    }
    let line = match format {
        Format::Text => format!("{TOOL}: {}: {}", word(level), escape(message)),
        Format::Json => jsonl::to_string(&Line {
            timestamp: jiff::Timestamp::now(),
            level,
            tool: TOOL,
            message,
        })
        .unwrap_or_default(),
    };
    // Where standard error is closed there is nobody to tell.
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

fn word(level: Level) -> &'static str {
    match level {
        Level::Off => "off",
        Level::Error => "error",
        Level::Warn => "warning",
        Level::Info => "note",
        Level::Debug | Level::Trace => "debug",
    }
}
