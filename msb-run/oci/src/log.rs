//! The log that an engine reads after a failed operation.

use std::fs::OpenOptions;
use std::io::Write;

use libmsb::cli::error;
use serde_json::json;

use crate::args::{Args, LogFormat};

/// Appends an error to the log, if there is one. The same error goes to standard error in any case,
/// so a log that cannot be written is no error of its own.
pub(crate) fn write_error(args: &Args, error: &anyhow::Error) {
    let Some(path) = &args.log else { return };
    let message = error::message(error);
    let line = match args.log_format {
        LogFormat::Text => format!("level=error msg={}\n", json!(message)),
        LogFormat::Json => format!("{}\n", json!({ "level": "error", "msg": message })),
    };
    if let Ok(mut file) = OpenOptions::new().append(true).create(true).open(path) {
        let _ = file.write_all(line.as_bytes());
    }
}
