//! A small HTTP server that answers as a test wants, rightly or wrongly; and a relay that a
//! connection goes through.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The request.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) target: String,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// Writes the answer to a request. The connection is closed behind it.
type Answer = dyn Fn(&Request, &mut TcpStream) + Send + Sync;

/// A server on the loopback interface, gone with this value.
pub(crate) struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    over: Arc<AtomicBool>,
}

impl Server {
    pub(crate) fn start(
        answer: impl Fn(&Request, &mut TcpStream) + Send + Sync + 'static,
    ) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Server {
            address: listener.local_addr().unwrap(),
            requests: Arc::default(),
            over: Arc::default(),
        };
        let (requests, over) = (Arc::clone(&server.requests), Arc::clone(&server.over));
        let answer: Arc<Answer> = Arc::new(answer);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let (requests, answer) = (Arc::clone(&requests), Arc::clone(&answer));
                let Ok(mut stream) = stream else { continue };
                std::thread::spawn(move || {
                    // Whoever begins with TLS is sent away.
                    let Some(request) = read_request(&mut stream) else {
                        return;
                    };
                    requests.lock().unwrap().push(request.clone());
                    answer(&request, &mut stream);
                    let _ = stream.shutdown(Shutdown::Write);
                    // A close with unread bytes would reset the connection before the answer is
                    // read.
                    let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
                    let _ = stream.read(&mut [0]);
                });
            }
        });
        server
    }

    /// `127.0.0.1:PORT`.
    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    /// Returns the requests so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}

/// The head of a request; `None` when it is none.
fn read_request(stream: &mut TcpStream) -> Option<Request> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 || head.len() > 64 << 10 {
            return None;
        }
        head.push(byte[0]);
        if head[0] == 0x16 {
            return None;
        }
    }
    let text = String::from_utf8(head).ok()?;
    let mut lines = text.split("\r\n");
    let mut words = lines.next()?.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let headers = lines.filter_map(|line| line.split_once(": "));
    let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()));
    Some(Request { method, target, headers: headers.collect() })
}

/// Writes a whole answer.
pub(crate) fn answer(stream: &mut TcpStream, status: &str, headers: &[(&str, &str)], body: &[u8]) {
    let mut text = format!("HTTP/1.1 {status}\r\nConnection: close\r\n");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-length")) {
        text.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    // A client that has seen enough may be gone.
    let _ = stream.write_all(text.as_bytes()).and_then(|()| stream.write_all(body));
}

/// Answers that there is a way, as a proxy does, and is it until either end has enough.
pub(crate) fn tunnel(near: &mut TcpStream, target: &str) {
    let far = TcpStream::connect(target).unwrap();
    near.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
    let (near_too, far_too) = (near.try_clone().unwrap(), far.try_clone().unwrap());
    let back = std::thread::spawn(move || pass(far, near_too, &AtomicU64::new(0), u64::MAX));
    pass(near.try_clone().unwrap(), far_too, &AtomicU64::new(0), u64::MAX);
    back.join().unwrap();
}

/// A way to another address that is as slow as a test wants, and counts.
pub(crate) struct Relay {
    address: SocketAddr,
    bytes: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
}

impl Relay {
    /// To an address, at most so many bytes a second on the way back for each connection.
    pub(crate) fn to(target: String, bytes_per_second: u64) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let relay = Relay {
            address: listener.local_addr().unwrap(),
            bytes: Arc::default(),
            over: Arc::default(),
        };
        let (bytes, over) = (Arc::clone(&relay.bytes), Arc::clone(&relay.over));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                // When nobody is there the connection ends, as it would at a registry that just
                // died.
                let (Ok(near), Ok(far)) = (stream, TcpStream::connect(&target)) else {
                    continue;
                };
                let (near_too, far_too) = (near.try_clone().unwrap(), far.try_clone().unwrap());
                let bytes = Arc::clone(&bytes);
                std::thread::spawn(move || pass(near_too, far_too, &AtomicU64::new(0), u64::MAX));
                std::thread::spawn(move || pass(far, near, &bytes, bytes_per_second));
            }
        });
        relay
    }

    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    /// Bytes that came back so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}

/// Passes bytes on, a portion each hundredth of a second, until either end has enough.
fn pass(mut from: TcpStream, mut to: TcpStream, bytes: &AtomicU64, bytes_per_second: u64) {
    const PORTION_BYTES_MAX: u64 = 64 << 10;
    let portion = (bytes_per_second / 100).clamp(1, PORTION_BYTES_MAX);
    let mut buffer = vec![0; portion as usize];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        bytes.fetch_add(count as u64, Ordering::Relaxed);
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
        if bytes_per_second < u64::MAX {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
