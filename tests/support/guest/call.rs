//! Attempts to reach somebody, one after the other, and what became of each.

use std::io::{self, BufRead, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

/// Longest time for an answer that does not come.
const PATIENCE: Duration = Duration::from_secs(30);
/// The same of a datagram's: what is refused silently is waited for in vain.
const DATAGRAM_PATIENCE: Duration = Duration::from_secs(2);
/// Longest answer.
const ANSWER_BYTES_MAX: usize = 65536;

/// Reads attempts from standard input, a line each: `tcp ADDRESS:PORT [BYTES]`, or `udp`, with
/// bytes in hexadecimal digits. Prints for each `answered BYTES`, or why not.
pub(crate) fn all() -> io::Result<()> {
    for line in io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        let [protocol, peer, rest @ ..] = words.as_slice() else {
            return Err(io::Error::other("an attempt has two words at least"));
        };
        let peer: SocketAddr = peer.parse().map_err(io::Error::other)?;
        let bytes = bytes(rest.first().copied().unwrap_or_default())?;
        let answer = match *protocol {
            "tcp" => stream(peer, &bytes),
            _ => datagram(peer, &bytes),
        };
        match answer {
            Ok(answer) => println!("answered {}", digits(&answer)),
            Err(error) => println!("{}", error.kind()),
        }
    }
    Ok(())
}

/// Connects, says something, and hears the answer to its end.
fn stream(peer: SocketAddr, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&peer, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(bytes)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// Sends a datagram, and takes one back.
fn datagram(peer: SocketAddr, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let any: SocketAddr =
        if peer.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(DATAGRAM_PATIENCE))?;
    socket.connect(peer)?;
    socket.send(bytes)?;
    let mut answer = vec![0; ANSWER_BYTES_MAX];
    let count = socket.recv(&mut answer)?;
    answer.truncate(count);
    Ok(answer)
}

fn bytes(digits: &str) -> io::Result<Vec<u8>> {
    let pairs = digits.as_bytes().chunks(2);
    let byte = |pair| {
        let pair = std::str::from_utf8(pair).map_err(io::Error::other)?;
        u8::from_str_radix(pair, 16).map_err(io::Error::other)
    };
    pairs.map(byte).collect()
}

fn digits(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
