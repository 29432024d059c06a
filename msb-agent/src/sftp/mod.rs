//! Files for SSH clients: a server of the file transfer protocol.
//!
//! It is a process of its own, this program once more, that has become the user who logged in. So the guest's kernel
//! says what may be done, and nothing of the host can be reached: the host's side carries bytes and knows nothing of
//! files. Requests are served one after the other, as they come; clients keep many under way.

use std::ffi::{CStr, c_int};
use std::io;
use std::os::fd::AsFd;

use msb_wire::sftp::SftpRequest;
use rustix::fs::Mode;
use rustix::process::{Pid, umask};

use crate::boot::Guest;
use crate::exec::Refusal;
use crate::session::Session;
use crate::spawn::Spawner;
use crate::{console, ourselves, sys};

/// What a list of names shows.
mod listing;
/// The form of requests and answers.
mod packet;
/// What is done for a request.
mod server;

use packet::PACKET_BYTES_MAX;
use server::Server;

/// First argument of the process that serves files. The second one is the request in JSON.
pub(crate) const ARGUMENT: &str = "sftp-server";

/// The same for execve(2).
const ROLE: &CStr = c"sftp-server";

/// Bytes of answers that are sent together.
const BATCH_BYTES: usize = 128 * 1024;

/// Starts a server.
pub(crate) fn start(
    guest: &Guest,
    stream: u32,
    request: &SftpRequest,
    spawner: &mut Spawner,
) -> Result<(Session, Pid), Refusal> {
    let (user, json) = (request.user.as_ref(), serde_json::to_vec(request));
    ourselves::start(guest, stream, ROLE, user, json, spawner)
}

/// The life of the process that serves files.
pub(crate) fn serve(request: Option<&str>) -> c_int {
    sys::ignore_broken_pipes();
    umask(Mode::from_raw_mode(0o022));
    let request = request.and_then(|json| serde_json::from_str::<SftpRequest>(json).ok());
    let Some(request) = request else { return 2 };
    let mut server = Server::new(request.read_only);
    match converse(&mut server) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("sftp: {}", console::reason(error));
            1
        }
    }
}

/// Takes packets until the client has no more of them, and answers each.
fn converse(server: &mut Server) -> io::Result<()> {
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
        let begin = pending.len();
        pending.resize(begin + PACKET_BYTES_MAX, 0);
        let count = loop {
            match rustix::io::read(stdin, &mut pending[begin..]) {
                Err(rustix::io::Errno::INTR) => {}
                result => break result?,
            }
        };
        pending.truncate(begin + count);
        if count == 0 {
            return Ok(());
        }
    }
}

/// The first packet without its length, if it is all there.
fn next_packet(bytes: &[u8]) -> io::Result<Option<&[u8]>> {
    let Some((length, rest)) = bytes.split_first_chunk::<4>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(*length) as usize;
    if length > PACKET_BYTES_MAX || length == 0 {
        return Err(io::Error::other("a packet of a length that none may have"));
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

/// What a client sends, to the fuzzer: packets are cut, read, and each is answered by packets of a right form. Served is
/// what touches no file; the others would change this machine.
#[cfg(any(test, fuzzing))]
pub(crate) fn door(bytes: &[u8]) {
    let mut server = Server::new(true);
    let (mut rest, mut out) = (bytes, Vec::new());
    while let Ok(Some(packet)) = next_packet(rest) {
        rest = &rest[4 + packet.len()..];
        let begin = out.len();
        if server::touches_nothing(packet) {
            server.answer(packet, &mut out);
            let length = out.len() - begin;
            let answer = next_packet(&out[begin..]);
            assert!(matches!(answer, Ok(Some(answer)) if 4 + answer.len() == length));
        }
        out.clear();
    }
}
