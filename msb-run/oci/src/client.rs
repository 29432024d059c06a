//! Requests to the monitor of a container.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::Context;
use libmsb::cli::error::Failure;

use crate::state::ContainerDir;

/// Limit of one request: a monitor answers at once, and an engine must not hang.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Limit of an answer, in bytes.
const ANSWER_BYTES_MAX: u64 = 256;

/// Sends a request and returns the answer.
pub(crate) fn request(dir: &ContainerDir, request: &str) -> anyhow::Result<String> {
    let open = dir.open()?;
    // The path of a socket is limited to 108 bytes, and an engine chooses that of the directory.
    let path = format!("/proc/self/fd/{}/monitor.sock", open.as_raw_fd());
    let mut stream = UnixStream::connect(path).context("the monitor has ended")?;
    stream.set_read_timeout(Some(TIMEOUT)).context("cannot set a timeout")?;
    stream.write_all(format!("{request}\n").as_bytes()).context("cannot send to the monitor")?;
    let mut answer = String::new();
    stream
        .take(ANSWER_BYTES_MAX)
        .read_to_string(&mut answer)
        .context("cannot read from the monitor")?;
    match answer.trim_end().split_once(' ') {
        Some(("ok", rest)) => Ok(rest.to_owned()),
        Some(("error", rest)) => Err(Failure::wrong_state(rest).into()),
        _ => anyhow::bail!("the monitor ended before it answered"),
    }
}
