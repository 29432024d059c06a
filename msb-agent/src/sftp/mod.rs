//! SFTP server for SSH clients.
//!
//! A helper process runs it: this program again, as the user who logged in. So the guest's kernel
//! decides what is permitted, and no file of the host can be reached: the host only relays bytes.
//! Requests are served in order; clients pipeline many of them.

use std::ffi::{CStr, c_int};
use std::io;
use std::os::fd::AsFd;

use msb_wire::sftp::SftpRequest;
use rustix::fs::Mode;
use rustix::process::{Pid, umask};

use crate::boot::GuestState;
use crate::exec::StartRefusal;
use crate::session::CommandSession;
use crate::spawn::Spawner;
use crate::{console, helper, sys};

/// Attributes and lines of directory listings.
mod listing;
/// Packets: parser and writer.
mod packet;
/// Implementation of the requests.
mod server;

use packet::PACKET_BYTES_MAX;
pub use server::{SftpServer, needs_no_file};

/// First argument of the server process. The second is the request in JSON.
pub(crate) const ARGUMENT: &str = "sftp-server";

/// Same argument for execve(2).
const ROLE: &CStr = c"sftp-server";

/// Bytes of answers that are written together.
const BATCH_BYTES: usize = 128 * 1024;

/// Starts a server.
pub(crate) fn start(
    guest: &GuestState,
    stream: u32,
    request: &SftpRequest,
    spawner: &mut Spawner,
) -> Result<(CommandSession, Pid), StartRefusal> {
    let (user, json) = (request.user.as_ref(), serde_json::to_vec(request));
    helper::start(guest, stream, ROLE, user, json, spawner)
}

/// Runs the server process.
pub(crate) fn serve(request: Option<&str>) -> c_int {
    sys::ignore_broken_pipes();
    umask(Mode::from_raw_mode(0o022));
    let request = request.and_then(|json| serde_json::from_str::<SftpRequest>(json).ok());
    let Some(request) = request else { return 2 };
    let mut server = SftpServer::new(request.read_only);
    match serve_packets(&mut server) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("sftp: {}", console::reason(error));
            1
        }
    }
}

/// Serves packets until the end of input.
fn serve_packets(server: &mut SftpServer) -> io::Result<()> {
    let (stdin, stdout) = (rustix::stdio::stdin(), rustix::stdio::stdout());
    let mut pending = Vec::with_capacity(2 * PACKET_BYTES_MAX);
    let mut out = Vec::with_capacity(2 * PACKET_BYTES_MAX);
    loop {
        let mut at = 0;
        while let Some(packet) = next_packet(&pending[at..])? {
            at += 4 + packet.len();
            server.answer(packet, &mut out);
            if out.len() >= BATCH_BYTES {
                write_all(stdout, &mut out)?;
            }
        }
        pending.drain(..at);
        write_all(stdout, &mut out)?;
        let start = pending.len();
        pending.resize(start + PACKET_BYTES_MAX, 0);
        let count = loop {
            match rustix::io::read(stdin, &mut pending[start..]) {
                Err(rustix::io::Errno::INTR) => {}
                result => break result?,
            }
        };
        pending.truncate(start + count);
        if count == 0 {
            return Ok(());
        }
    }
}

/// Returns the first packet without its length field, if it is complete.
pub fn next_packet(bytes: &[u8]) -> io::Result<Option<&[u8]>> {
    let Some((length, rest)) = bytes.split_first_chunk::<4>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(*length) as usize;
    if length > PACKET_BYTES_MAX || length == 0 {
        return Err(io::Error::other("invalid packet length"));
    }
    Ok(rest.get(..length))
}

fn write_all(stdout: impl AsFd, out: &mut Vec<u8>) -> io::Result<()> {
    let mut written = 0;
    while written < out.len() {
        match rustix::io::write(&stdout, &out[written..]) {
            Ok(count) => written += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    out.clear();
    Ok(())
}
