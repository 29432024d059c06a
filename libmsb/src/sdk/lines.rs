//! Output of a tool that prints one JSON document per line for as long as it runs.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Stdio};
use std::thread::JoinHandle;

use serde::de::DeserializeOwned;

use super::error::Error;
use super::tool;
use crate::cli::error::Code;
use crate::state::Home;

/// Most bytes of a tool's standard error that are kept.
const ERRORS_BYTES_MAX: u64 = 64 << 10;

/// A running tool and its output. The tool is killed when this is dropped.
#[derive(Debug)]
pub(super) struct Lines {
    tool: &'static str,
    child: Child,
    stdout: BufReader<ChildStdout>,
    stderr: Option<JoinHandle<Vec<u8>>>,
}

impl Lines {
    pub(super) fn start(
        home: &Home,
        tool: &'static str,
        args: impl IntoIterator<Item = String>,
    ) -> Result<Lines, Error> {
        let mut command = tool::command(home, tool, args)?;
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(Error::new(Code::Internal, format!("{tool} has no pipes")));
        };
        // A thread, since a full pipe would stop the tool.
        let stderr = std::thread::spawn(move || {
            let (mut stderr, mut kept) = (stderr, Vec::new());
            let _ = stderr.by_ref().take(ERRORS_BYTES_MAX).read_to_end(&mut kept);
            let _ = std::io::copy(&mut stderr, &mut std::io::sink());
            kept
        });
        Ok(Lines { tool, child, stdout: BufReader::new(stdout), stderr: Some(stderr) })
    }

    /// Waits for the next line; `None` after the last.
    pub(super) fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Error> {
        let mut line = Vec::new();
        if self.stdout.read_until(b'\n', &mut line)? > 0 {
            return tool::parse(self.tool, &line).map(Some);
        }
        let status = self.child.wait()?;
        let Some(stderr) = self.stderr.take() else { return Ok(None) };
        let stderr = stderr.join().unwrap_or_default();
        if status.success() { Ok(None) } else { Err(tool::failure(self.tool, &stderr)) }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        // An error means that it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
