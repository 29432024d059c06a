//! A server for one page, over HTTP/1.1 (RFC 9112) as far as Prometheus speaks it.
//!
//! One request a connection, within a time, each in a thread of its own; there are few at once, since a page is made in
//! milliseconds. A client that says nothing holds up nobody: neither another one, nor the end of the program, and when there
//! are too many the oldest goes. Nothing that a client sends is used but the first line of its request.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, poll};

use crate::log;
use crate::ticks::Ticks;

/// Longest request, in bytes.
const REQUEST_BYTES_MAX: usize = 16 << 10;
/// Clients that are served at once.
const CLIENTS_MAX: usize = 16;
/// Time for a request, and again for taking the answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Serves until a signal comes.
pub(super) fn serve(
    address: SocketAddr,
    ticks: &Ticks,
    page: impl FnMut() -> String + Send + 'static,
) -> anyhow::Result<()> {
    let page = Arc::new(Mutex::new(page));
    let mut clients = Clients::default();
    let cannot = || format!("cannot listen at {address}");
    let listener = TcpListener::bind(address).with_context(cannot)?;
    listener.set_nonblocking(true).with_context(cannot)?;
    let bound = listener.local_addr().with_context(cannot)?;
    log::info(&format!("listening at http://{bound}/metrics"));
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(ticks.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for connections"),
        }
        if !fds[0].revents().is_empty() {
            return Ok(());
        }
        // A client that went away again, or a lack of descriptors: the next one may have more luck.
        let Ok((stream, _)) = listener.accept() else {
            continue;
        };
        let client = clients.add(stream);
        let page = Arc::clone(&page);
        let answering = thread::Builder::new().spawn(move || {
            let page = || page.lock().unwrap_or_else(PoisonError::into_inner)();
            if let Err(error) = answer(&client, page) {
                log::debug(&format!("a client was not answered: {error}"));
            }
        });
        if let Err(error) = answering {
            log::debug(&format!("a client was not answered: {error}"));
        }
    }
}

/// Who is being served, in the order in which they came. A connection is its thread's own, and closed by it.
#[derive(Default)]
struct Clients(VecDeque<Weak<TcpStream>>);

impl Clients {
    /// One more. When there are too many the oldest is sent away.
    fn add(&mut self, stream: TcpStream) -> Arc<TcpStream> {
        self.0.retain(|client| client.strong_count() > 0);
        if self.0.len() >= CLIENTS_MAX
            && let Some(oldest) = self.0.pop_front().and_then(|client| client.upgrade())
        {
            // Its thread's next call fails. One that is gone by now is fine.
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
        Answer::Page => ("200 OK", page()),
        Answer::Hint => ("200 OK", "what sandboxes cost is at /metrics\n".to_owned()),
        Answer::NotFound => ("404 Not Found", "only /metrics is here\n".to_owned()),
        Answer::NoMethod => ("405 Method Not Allowed", "only GET and HEAD\n".to_owned()),
        Answer::Nonsense => ("400 Bad Request", "this is no request\n".to_owned()),
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

/// A client that takes a byte now and then has no more time than one that takes none.
fn write_within(mut stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    let end = Instant::now() + PATIENCE;
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

/// The first line of a request, when all of its header is there.
fn request_line(mut stream: &TcpStream) -> io::Result<String> {
    let end = Instant::now() + PATIENCE;
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
enum Answer {
    Page,
    Hint,
    NotFound,
    NoMethod,
    Nonsense,
}

fn respond(line: &str) -> Answer {
    let words: Vec<&str> = line.split(' ').collect();
    let [method, target, version] = words[..] else {
        return Answer::Nonsense;
    };
    let path = target.split('?').next().unwrap_or_default();
    match (method, path) {
        _ if !version.starts_with("HTTP/1.") => Answer::Nonsense,
        ("GET" | "HEAD", "/metrics") => Answer::Page,
        ("GET" | "HEAD", "/") => Answer::Hint,
        ("GET" | "HEAD", _) => Answer::NotFound,
        _ => Answer::NoMethod,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_its_first_line() {
        assert_eq!(respond("GET /metrics HTTP/1.1"), Answer::Page);
        assert_eq!(respond("HEAD /metrics?x=1 HTTP/1.0"), Answer::Page);
        assert_eq!(respond("GET / HTTP/1.1"), Answer::Hint);
        assert_eq!(respond("GET /etc/passwd HTTP/1.1"), Answer::NotFound);
        assert_eq!(respond("POST /metrics HTTP/1.1"), Answer::NoMethod);
        for wrong in ["", "GET /metrics", "GET /metrics SSH-2.0", "a b c d"] {
            assert_eq!(respond(wrong), Answer::Nonsense, "{wrong}");
        }
    }
}
