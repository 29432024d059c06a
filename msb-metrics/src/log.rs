//! Log messages of a long-running program: on standard error, with a level, as text or JSON.

use std::io::Write;
use std::sync::OnceLock;

use clap::ValueEnum;
use libmsb::cli::error::Failure;
use libmsb::cli::escape::escape;
use libmsb::cli::typed::command_name;
use libmsb::jsonl;
use serde::Serialize;

/// Program name in messages.
pub const TOOL: &str = "msb-metrics";

/// Environment variable that overrides the level.
const LEVEL_VARIABLE: &str = "RUST_LOG";

/// Log level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogLevel {
    /// No messages
    Off,
    /// Permanent failures
    Error,
    /// Failures that are retried or tolerated
    Warn,
    /// Start, end and recovery
    Info,
    /// Each export
    Debug,
    /// Same as debug
    Trace,
}

/// Log format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// One line of text per message
    Text,
    /// One JSON object per line
    Json,
}

static CONFIG: OnceLock<(LogLevel, LogFormat)> = OnceLock::new();

#[derive(Serialize)]
struct LogLine<'a> {
    #[serde(with = "libmsb::time")]
    timestamp: jiff::Timestamp,
    level: LogLevel,
    tool: &'a str,
    message: &'a str,
}

/// Sets level and format, once.
pub(crate) fn init(level: LogLevel, format: LogFormat) -> Result<(), Failure> {
    let level = match std::env::var(LEVEL_VARIABLE) {
        Ok(level_label) if !level_label.is_empty() => LogLevel::from_str(&level_label, true)
            .map_err(|_| {
                Failure::usage(format!(
                    "invalid log level in {LEVEL_VARIABLE}: '{}'",
                    escape(&level_label)
                ))
                .hint("use off, error, warn, info, debug or trace")
            })?,
        _ => level,
    };
    let _ = CONFIG.set((level, format));
    Ok(())
}

/// Logs a permanent failure.
pub(crate) fn error(message: &str) {
    write_message(LogLevel::Error, message);
}

/// Logs a failure that is retried or tolerated.
pub(crate) fn warn(message: &str) {
    write_message(LogLevel::Warn, message);
}

/// Logs a normal event.
pub(crate) fn info(message: &str) {
    write_message(LogLevel::Info, message);
}

/// Logs details for debugging.
pub(crate) fn debug(message: &str) {
    write_message(LogLevel::Debug, message);
}

fn write_message(level: LogLevel, message: &str) {
    let (wanted, format) = *CONFIG.get_or_init(|| (LogLevel::Info, LogFormat::Text));
    if level > wanted {
        return;
    }
    let line = match format {
        LogFormat::Text => {
            format!("{}: {}: {}", command_name(TOOL), level_label(level), escape(message))
        }
        LogFormat::Json => jsonl::to_string(&LogLine {
            timestamp: jiff::Timestamp::now(),
            level,
            tool: TOOL,
            message,
        })
        .unwrap_or_default(),
    };
    // There is no other place to report that standard error is closed.
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

fn level_label(level: LogLevel) -> &'static str {
    match level {
        LogLevel::Off => "off",
        LogLevel::Error => "error",
        LogLevel::Warn => "warning",
        LogLevel::Info => "note",
        LogLevel::Debug | LogLevel::Trace => "debug",
    }
}
