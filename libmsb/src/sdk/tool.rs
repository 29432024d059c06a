//! Execution of tools.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::{Command, Stdio};

use super::error::Error;
use crate::cli::error::{Code, ErrorLine, FORMAT_VARIABLE};
use crate::state::Home;
use crate::tools;

/// Returns a tool's command with arguments, for a state directory.
pub(super) fn command<A: AsRef<OsStr>>(
    home: &Home,
    tool: &str,
    args: impl IntoIterator<Item = A>,
) -> Result<Command, Error> {
    let mut command =
        tools::command(tool).map_err(|error| Error::new(Code::Failed, error.to_string()))?;
    command.args(args).env(FORMAT_VARIABLE, "json").stdin(Stdio::null());
    set_home(&mut command, home.root());
    Ok(command)
}

/// Sets the state directory. If it is that of the environment, the sockets stay where the
/// environment has them.
fn set_home(command: &mut Command, root: &Path) {
    let same = Home::from_env().is_ok_and(|home| home.root() == root);
    if !same {
        command.env("MSB_HOME", root);
    }
}

/// Runs a tool to its end and returns its output.
pub(super) fn run<A: AsRef<OsStr>>(
    home: &Home,
    tool: &str,
    args: impl IntoIterator<Item = A>,
) -> Result<Vec<u8>, Error> {
    let output = command(home, tool, args)?.output()?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(failure(tool, &output.stderr))
}

/// Returns the error that a tool reported: its last error line.
pub(super) fn failure(tool: &str, stderr: &[u8]) -> Error {
    let reported = stderr
        .split(|byte| *byte == b'\n')
        .rev()
        .find_map(|line| serde_json::from_slice::<ErrorLine>(line).ok());
    reported.map_or_else(
        || {
            let text = String::from_utf8_lossy(stderr);
            Error::new(Code::Failed, format!("{tool} failed: {}", text.trim()))
        },
        Error::from,
    )
}

/// Parses the JSON document that a tool has printed.
pub(super) fn parse<T: serde::de::DeserializeOwned>(tool: &str, answer: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(answer).map_err(|error| invalid(tool, &error))
}

/// Returns a part of a JSON document that a tool has printed.
pub(super) fn value<T: serde::de::DeserializeOwned>(
    tool: &str,
    value: serde_json::Value,
) -> Result<T, Error> {
    serde_json::from_value(value).map_err(|error| invalid(tool, &error))
}

fn invalid(tool: &str, error: &serde_json::Error) -> Error {
    Error::new(Code::Failed, format!("invalid output of {tool}: {error}"))
}

/// Runs a tool on the descriptors of this process, and returns its exit code.
pub(super) fn inherit(
    home: &Home,
    tool: &str,
    args: impl IntoIterator<Item = OsString>,
) -> Result<i32, Error> {
    let mut command = command(home, tool, args)?;
    command.stdin(Stdio::inherit()).env_remove(FORMAT_VARIABLE);
    let status = command.status()?;
    match status.code() {
        // The exit code of an error of the tool itself, as in msb-exec(1).
        Some(125) => Err(Error::new(Code::Failed, format!("{tool} failed"))),
        Some(code) => Ok(code),
        None => Err(Error::new(Code::Failed, format!("{tool} was killed ({status})"))),
    }
}

/// Returns words as arguments.
pub(super) fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_of_a_tool_is_read_from_among_its_remarks() {
        let stderr = b"{\"tool\":\"msb-rm\",\"warning\":\"x\"}\n{\"tool\":\"msb-rm\",\"code\":\"SandboxNotFound\",\"error\":\"no\",\"hint\":\"h\"}\n";
        let error = failure("msb-rm", stderr);
        assert_eq!(error.code, Code::SandboxNotFound);
        assert_eq!(error.hint.as_deref(), Some("h"));
        assert_eq!(failure("msb-rm", b"killed").message, "msb-rm failed: killed");
    }

    #[test]
    fn a_code_of_a_later_release_is_an_error_all_the_same() {
        let stderr = b"{\"tool\":\"t\",\"code\":\"TooHot\",\"error\":\"no\"}\n";
        assert_eq!(failure("t", stderr).code, Code::Failed);
    }
}
