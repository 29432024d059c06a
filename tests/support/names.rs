//! A name server of the test's, on the loopback interface.

use std::net::UdpSocket;
use std::sync::{Arc, Mutex};

/// It knows one name, with one address, and remembers all that it was asked.
pub(crate) struct Names {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
}

/// The name in a question, and where the question ends.
fn question(message: &[u8]) -> (String, usize) {
    let (mut labels, mut at) = (Vec::new(), 12);
    while message[at] != 0 {
        let end = at + 1 + usize::from(message[at]);
        labels.push(String::from_utf8_lossy(&message[at + 1..end]).to_lowercase());
        at = end;
    }
    (labels.join("."), at + 5)
}

/// The answer: an address to a question for it, nothing to another about the name, no such name to
/// all others.
fn answer(message: &[u8], name: &str, address: [u8; 4]) -> Vec<u8> {
    let (asked, end) = question(message);
    let is_known = asked == name;
    let records = u8::from(is_known && message[end - 4..end - 2] == [0, 1]);
    let mut answer = message[..end].to_vec();
    let code = if is_known { 0x80 } else { 0x83 };
    answer[2..12].copy_from_slice(&[0x81, code, 0, 1, 0, records, 0, 0, 0, 0]);
    if records == 1 {
        // The name is that of the question; then A, IN, a minute, four bytes.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(address);
    }
    answer
}

impl Names {
    pub(crate) fn start(name: &'static str, address: [u8; 4]) -> Names {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let names = Names { port: socket.local_addr().unwrap().port(), asked: Arc::default() };
        let asked = Arc::clone(&names.asked);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((count, peer)) = socket.recv_from(&mut buffer) {
                let message = &buffer[..count];
                asked.lock().unwrap().push(question(message).0);
                let _ = socket.send_to(&answer(message, name, address), peer);
            }
        });
        names
    }

    pub(crate) fn server(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}
