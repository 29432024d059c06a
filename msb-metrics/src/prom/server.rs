//! HTTP/1.1 server for /metrics (RFC 9112), as far as Prometheus needs it.
//!
//! Each connection carries one request, has a timeout, and is served by its own thread. Few run at
//! the same time, because a page takes milliseconds. A client that sends nothing blocks neither
//! other clients nor the end of the program; when there are too many, the oldest connection is
//! closed. Only the request line is used.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, poll};

use crate::interval::IntervalTimer;
use crate::log;

/// Maximum size of a request in bytes.
const REQUEST_BYTES_MAX: usize = 16 << 10;
/// Maximum number of clients at a time.
const CLIENTS_MAX: usize = 16;
/// Timeout of a request, and of writing the response.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves until a signal arrives.
pub(super) fn serve(
    address: SocketAddr,
    timer: &IntervalTimer,
    page: impl FnMut() -> String + Send + 'static,
) -> anyhow::Result<()> {
    let page = Arc::new(Mutex::new(page));
    let mut clients = ClientQueue::default();
    let cannot = || format!("cannot listen at {address}");
    let listener = TcpListener::bind(address).with_context(cannot)?;
    listener.set_nonblocking(true).with_context(cannot)?;
    let bound = listener.local_addr().with_context(cannot)?;
    log::info(&format!("listening at http://{bound}/metrics"));
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(timer.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for connections"),
        }
        if !fds[0].revents().is_empty() {
            return Ok(());
        }
        // The client has disconnected, or there are no free descriptors. Either way, go on with the
        // next one.
        let Ok((stream, _)) = listener.accept() else {
            continue;
        };
        let client = clients.add(stream);
        let page = Arc::clone(&page);
        let answering = thread::Builder::new().spawn(move || {
            let page = || page.lock().unwrap_or_else(PoisonError::into_inner)();
            if let Err(error) = answer(&client, page) {
                log::debug(&format!("cannot answer a client: {error}"));
            }
        });
        if let Err(error) = answering {
            log::debug(&format!("cannot answer a client: {error}"));
        }
    }
}

/// Clients that are being served, oldest first. Each connection belongs to its thread, which closes
/// it.
#[derive(Default)]
struct ClientQueue(VecDeque<Weak<TcpStream>>);

impl ClientQueue {
    /// Adds a client. Closes the oldest connection if there are too many.
    fn add(&mut self, stream: TcpStream) -> Arc<TcpStream> {
        self.0.retain(|client| client.strong_count() > 0);
        if self.0.len() >= CLIENTS_MAX
            && let Some(oldest) = self.0.pop_front().and_then(|client| client.upgrade())
        {
            // The next call of its thread fails. The connection may be closed already.
            let _ = oldest.shutdown(Shutdown::Both);
        }
        let client = Arc::new(stream);
        self.0.push_back(Arc::downgrade(&client));
        client
    }
}

fn answer(stream: &TcpStream, page: impl FnOnce() -> String) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    let line = request_line(stream)?;
    let (status, body) = match respond(&line) {
        ResponseKind::MetricsPage => ("200 OK", page()),
        ResponseKind::Hint => ("200 OK", "metrics are at /metrics\n".to_owned()),
        ResponseKind::NotFound => {
            ("404 Not Found", "not found: metrics are at /metrics\n".to_owned())
        }
        ResponseKind::MethodNotAllowed => {
            ("405 Method Not Allowed", "supported methods: GET, HEAD\n".to_owned())
        }
        ResponseKind::BadRequest => ("400 Bad Request", "malformed request\n".to_owned()),
    };
    let mut out = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    if !line.starts_with("HEAD ") {
        out.push_str(&body);
    }
    write_within(stream, out.as_bytes())
}

/// Writes a response within the timeout, even if the client reads only a few bytes at a time.
fn write_within(mut stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    let end = Instant::now() + REQUEST_TIMEOUT;
    while !bytes.is_empty() {
        stream.set_write_timeout(Some(left(end)?))?;
        match stream.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads a request and returns its first line.
fn request_line(mut stream: &TcpStream) -> io::Result<String> {
    let end = Instant::now() + REQUEST_TIMEOUT;
    let mut header = Vec::new();
    let mut bytes = [0; 4096];
    while !header.windows(4).any(|four| four == b"\r\n\r\n") {
        stream.set_read_timeout(Some(left(end)?))?;
        let count = stream.read(&mut bytes)?;
        header.extend_from_slice(&bytes[..count]);
        if count == 0 || header.len() > REQUEST_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    let line = header.split(|byte| *byte == b'\r').next();
    Ok(String::from_utf8_lossy(line.unwrap_or_default()).into_owned())
}

fn left(end: Instant) -> io::Result<Duration> {
    let left = end.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    Ok(left)
}

#[derive(Debug, PartialEq, Eq)]
enum ResponseKind {
    MetricsPage,
    Hint,
    NotFound,
    MethodNotAllowed,
    BadRequest,
}

fn respond(line: &str) -> ResponseKind {
    let words: Vec<&str> = line.split(' ').collect();
    let [method, target, version] = words[..] else {
        return ResponseKind::BadRequest;
    };
    let path = target.split('?').next().unwrap_or_default();
    match (method, path) {
        _ if !version.starts_with("HTTP/1.") => ResponseKind::BadRequest,
        ("GET" | "HEAD", "/metrics") => ResponseKind::MetricsPage,
        ("GET" | "HEAD", "/") => ResponseKind::Hint,
        ("GET" | "HEAD", _) => ResponseKind::NotFound,
        _ => ResponseKind::MethodNotAllowed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_judged_by_its_first_line() {
        assert_eq!(respond("GET /metrics HTTP/1.1"), ResponseKind::MetricsPage);
        assert_eq!(respond("HEAD /metrics?x=1 HTTP/1.0"), ResponseKind::MetricsPage);
        assert_eq!(respond("GET / HTTP/1.1"), ResponseKind::Hint);
        assert_eq!(respond("GET /etc/passwd HTTP/1.1"), ResponseKind::NotFound);
        assert_eq!(respond("POST /metrics HTTP/1.1"), ResponseKind::MethodNotAllowed);
        for wrong in ["", "GET /metrics", "GET /metrics SSH-2.0", "a b c d"] {
            assert_eq!(respond(wrong), ResponseKind::BadRequest, "{wrong}");
        }
    }
}
