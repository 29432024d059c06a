//! From the name of a host to its addresses, without the C library's resolver: a static program in a root file system
//! that is not its own cannot load the modules which that one needs.
//!
//! What stands in `/etc/hosts` comes first; then the resolvers of `/etc/resolv.conf` are asked one after the other, for
//! IPv4 addresses and, if there are none, for IPv6 ones. Names are looked up as they are: search lists are for people at
//! a shell. The caller waits for the socket of a [`Lookup`] together with everything else that it waits for.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 8;

/// Resolvers that are asked: as many as resolv.conf(5) takes.
const SERVERS_MAX: usize = 3;

/// Rounds through the resolvers.
const ROUNDS: usize = 2;

/// Time for one resolver to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Bytes of `/etc/hosts` and `/etc/resolv.conf` that are read.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Bytes of an answer: without EDNS no resolver sends more.
const ANSWER_BYTES: usize = 512;

/// Port of resolvers.
const PORT: u16 = 53;

const HEADER_BYTES: usize = 12;
const CLASS_INTERNET: u16 = 1;
/// The answer's bit, recursion asked for, recursion there, …: see RFC 1035, 4.1.1.
const FLAG_RESPONSE: u16 = 0x8000;
const FLAG_RECURSE: u16 = 0x0100;
const RCODE_MASK: u16 = 0x000f;
const RCODE_NO_SUCH_NAME: u16 = 3;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
enum Type {
    A = 1,
    Aaaa = 28,
}

/// What a name means at first sight.
pub(crate) enum Found {
    /// Its addresses.
    Addresses(Vec<IpAddr>),
    /// The resolvers must be asked.
    Asking(Lookup),
}

/// A name under inquiry.
pub(crate) struct Lookup {
    name: String,
    servers: Vec<SocketAddr>,
    socket: UdpSocket,
    wanted: Type,
    attempt: usize,
    id: u16,
    deadline: Instant,
}

/// Looks where no time is lost, or begins to ask.
pub(crate) fn find(host: &str) -> io::Result<Found> {
    let bare = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    if let Ok(address) = bare.unwrap_or(host).parse() {
        return Ok(Found::Addresses(vec![address]));
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    let hosts = in_hosts(name, &read("/etc/hosts"));
    if !hosts.is_empty() {
        return Ok(Found::Addresses(hosts));
    }
    if name.eq_ignore_ascii_case("localhost") {
        let both = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        return Ok(Found::Addresses(both.to_vec()));
    }
    if encode_name(name).is_none() {
        return Err(ErrorKind::NotFound.into());
    }
    let servers = servers(&read("/etc/resolv.conf"));
    Lookup::begin(name, servers).map(Found::Asking)
}

/// A file of the guest, as far as it makes sense.
fn read(path: &str) -> String {
    let small = fs::metadata(path).is_ok_and(|file| file.is_file() && file.len() <= FILE_BYTES_MAX);
    let content = if small { fs::read(path).ok() } else { None };
    String::from_utf8_lossy(&content.unwrap_or_default()).into_owned()
}

/// The fields of each line, without comments.
fn lines(file: &str) -> impl Iterator<Item = std::str::SplitAsciiWhitespace<'_>> {
    file.lines().map(|line| {
        let line = line.split(['#', ';']).next().unwrap_or_default();
        line.split_ascii_whitespace()
    })
}

fn in_hosts(name: &str, file: &str) -> Vec<IpAddr> {
    let found = lines(file).filter_map(|mut fields| {
        let address = fields.next()?.parse().ok()?;
        fields
            .any(|field| field.eq_ignore_ascii_case(name))
            .then_some(address)
    });
    found.take(ADDRESSES_MAX).collect()
}

fn servers(file: &str) -> Vec<SocketAddr> {
    let named = lines(file).filter_map(|mut fields| {
        let address: IpAddr = (fields.next()? == "nameserver")
            .then(|| fields.next())??
            .parse()
            .ok()?;
        Some(SocketAddr::new(address, PORT))
    });
    named.take(SERVERS_MAX).collect()
}

impl Lookup {
    fn begin(name: &str, servers: Vec<SocketAddr>) -> io::Result<Lookup> {
        let first = *servers.first().ok_or(ErrorKind::NotFound)?;
        let mut lookup = Lookup {
            name: name.to_owned(),
            socket: socket_to(first)?,
            servers,
            wanted: Type::A,
            attempt: 0,
            id: 0,
            deadline: Instant::now(),
        };
        lookup.ask()?;
        Ok(lookup)
    }

    /// For poll(2).
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// When nothing more is to be waited for.
    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Takes an answer, if there is one, or goes on to the next resolver, if it is time. `None`: it goes on.
    pub(crate) fn advance(&mut self) -> Option<io::Result<Vec<IpAddr>>> {
        let mut answer = [0; ANSWER_BYTES];
        loop {
            match self.socket.recv(&mut answer) {
                Ok(count) => {
                    let parsed = parse(&answer[..count], self.id, &self.name, self.wanted);
                    if let Some(result) = parsed.and_then(|reply| self.judge(reply)) {
                        return Some(result);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Nobody is there: the next one.
                Err(_) => {
                    self.deadline = Instant::now();
                    break;
                }
            }
        }
        if Instant::now() < self.deadline {
            return None;
        }
        self.next_server()
    }

    fn judge(&mut self, reply: Reply) -> Option<io::Result<Vec<IpAddr>>> {
        match reply {
            Reply::Addresses(addresses) if !addresses.is_empty() => Some(Ok(addresses)),
            Reply::Addresses(_) if self.wanted == Type::A => {
                self.wanted = Type::Aaaa;
                self.attempt = 0;
                self.ask().err().map(Err)
            }
            Reply::Addresses(_) | Reply::NoSuchName => Some(Err(ErrorKind::NotFound.into())),
            Reply::Failed => self.next_server(),
        }
    }

    fn next_server(&mut self) -> Option<io::Result<Vec<IpAddr>>> {
        while self.attempt + 1 < ROUNDS * self.servers.len() {
            self.attempt += 1;
            let server = self.servers[self.attempt % self.servers.len()];
            let asked = socket_to(server).and_then(|socket| {
                self.socket = socket;
                self.ask()
            });
            if asked.is_ok() {
                return None;
            }
        }
        Some(Err(ErrorKind::TimedOut.into()))
    }

    /// Sends the question, under a number that nobody can guess.
    fn ask(&mut self) -> io::Result<()> {
        let mut id = [0; 2];
        rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())?;
        self.id = u16::from_be_bytes(id);
        let query = query(self.id, &self.name, self.wanted).ok_or(ErrorKind::NotFound)?;
        self.deadline = Instant::now() + PATIENCE;
        self.socket.send(&query).map(drop)
    }
}

/// A socket that hears this resolver only.
fn socket_to(server: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_nonblocking(true)?;
    socket.connect(server)?;
    Ok(socket)
}

/// Labels with their lengths (RFC 1035, 3.1); `None` for what cannot be a name.
fn encode_name(name: &str) -> Option<Vec<u8>> {
    let mut encoded = Vec::new();
    for label in name.split('.') {
        let fits = (1..=63).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_graphic());
        encoded.push(u8::try_from(label.len()).ok().filter(|_| fits)?);
        encoded.extend_from_slice(label.as_bytes());
    }
    encoded.push(0);
    (encoded.len() <= 255).then_some(encoded)
}

fn query(id: u16, name: &str, wanted: Type) -> Option<Vec<u8>> {
    let mut query = Vec::new();
    for word in [id, FLAG_RECURSE, 1, 0, 0, 0] {
        query.extend_from_slice(&word.to_be_bytes());
    }
    query.extend(encode_name(name)?);
    query.extend_from_slice(&(wanted as u16).to_be_bytes());
    query.extend_from_slice(&CLASS_INTERNET.to_be_bytes());
    Some(query)
}

/// What a resolver said.
#[derive(Debug, PartialEq, Eq)]
enum Reply {
    Addresses(Vec<IpAddr>),
    NoSuchName,
    Failed,
}

/// An answer to our question; `None` for anything else, which is ignored.
fn parse(message: &[u8], id: u16, name: &str, wanted: Type) -> Option<Reply> {
    let word = |at: usize| {
        let bytes = message.get(at..at + 2)?;
        Some(u16::from_be_bytes(bytes.try_into().ok()?))
    };
    let flags = word(2)?;
    if word(0)? != id || flags & FLAG_RESPONSE == 0 || word(4)? != 1 {
        return None;
    }
    let asked = encode_name(name)?;
    let question = message.get(HEADER_BYTES..HEADER_BYTES + asked.len())?;
    let mut at = HEADER_BYTES + asked.len() + 4;
    if !question.eq_ignore_ascii_case(&asked) || word(at - 4)? != wanted as u16 {
        return None;
    }
    match flags & RCODE_MASK {
        0 => {}
        RCODE_NO_SUCH_NAME => return Some(Reply::NoSuchName),
        _ => return Some(Reply::Failed),
    }
    let mut addresses = Vec::new();
    // The resolver has followed the aliases: whatever the name of a record is, its address is what was asked for.
    for _ in 0..word(6)? {
        let Some((record, data, next)) = record(message, at) else {
            break;
        };
        at = next;
        if record == wanted as u16 && addresses.len() < ADDRESSES_MAX {
            addresses.extend(address(data));
        }
    }
    Some(Reply::Addresses(addresses))
}

/// The record at this place: its type, its data, and the place after it.
fn record(message: &[u8], at: usize) -> Option<(u16, &[u8], usize)> {
    let after = skip_name(message, at)?;
    let fixed = message.get(after..after + 10)?;
    let kind = u16::from_be_bytes([fixed[0], fixed[1]]);
    let class = u16::from_be_bytes([fixed[2], fixed[3]]);
    let length = usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
    let end = after + 10 + length;
    let data = message.get(after + 10..end)?;
    let kind = if class == CLASS_INTERNET { kind } else { 0 };
    Some((kind, data, end))
}

/// The place after a name, which ends with an empty label or goes on elsewhere.
fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length if length < 64 => at += 1 + usize::from(length),
            length if length >= 192 => return Some(at + 2),
            _ => return None,
        }
    }
}

fn address(data: &[u8]) -> Option<IpAddr> {
    if let Ok(bytes) = <[u8; 4]>::try_from(data) {
        return Some(Ipv4Addr::from(bytes).into());
    }
    <[u8; 16]>::try_from(data)
        .ok()
        .map(|bytes| Ipv6Addr::from(bytes).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn hosts_and_resolvers_are_read_as_far_as_they_make_sense() {
        let hosts =
            "127.0.0.1 localhost\n# 1.1.1.1 web\n10.0.0.2\tdb WEB # main\nnonsense web\n::1 web\n";
        assert_eq!(in_hosts("web", hosts), [ip("10.0.0.2"), ip("::1")]);
        assert!(in_hosts("main", hosts).is_empty());
        let file = "search x\nnameserver 10.0.2.3\n;nameserver 1.1.1.1\nnameserver x\nnameserver fe80::1 \nnameserver";
        let ports: Vec<_> = servers(file).iter().map(ToString::to_string).collect();
        assert_eq!(ports, ["10.0.2.3:53", "[fe80::1]:53"]);
    }

    #[test]
    fn literals_and_localhost_need_no_resolver() {
        for (host, first) in [("192.0.2.7", "192.0.2.7"), ("[::1]", "::1")] {
            let Ok(Found::Addresses(addresses)) = find(host) else {
                panic!("{host}")
            };
            assert_eq!(addresses, [ip(first)]);
        }
        assert!(matches!(find("LOCALHOST."), Ok(Found::Addresses(_))));
        for host in ["", "a..b", "a b", &"x".repeat(64), &"x.".repeat(200)] {
            let error = find(host).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::NotFound, "{host}");
        }
    }

    /// An answer to a question for `a.b` with these records.
    fn answer(flags: u16, records: &[(u16, &[u8])]) -> Vec<u8> {
        let mut message = query(7, "a.b", Type::A).unwrap();
        message[2..4].copy_from_slice(&(FLAG_RESPONSE | flags).to_be_bytes());
        message[6..8].copy_from_slice(&(records.len() as u16).to_be_bytes());
        for (kind, data) in records {
            message.extend_from_slice(&[0xc0, 12]);
            message.extend_from_slice(&kind.to_be_bytes());
            message.extend_from_slice(&[0, 1, 0, 0, 0, 9]);
            message.extend_from_slice(&(data.len() as u16).to_be_bytes());
            message.extend_from_slice(data);
        }
        message
    }

    #[test]
    fn an_answer_gives_the_addresses_behind_its_aliases() {
        let message = answer(
            0,
            &[(5, &[1, b'c', 0]), (1, &[192, 0, 2, 1]), (28, &[0; 16])],
        );
        let expected = Reply::Addresses(vec![ip("192.0.2.1")]);
        assert_eq!(parse(&message, 7, "A.b", Type::A), Some(expected));
        let missing = answer(RCODE_NO_SUCH_NAME, &[]);
        assert_eq!(parse(&missing, 7, "a.b", Type::A), Some(Reply::NoSuchName));
        assert_eq!(
            parse(&answer(2, &[]), 7, "a.b", Type::A),
            Some(Reply::Failed)
        );
    }

    #[test]
    fn what_answers_another_question_is_no_answer() {
        let message = answer(0, &[(1, &[192, 0, 2, 1])]);
        assert_eq!(parse(&message, 8, "a.b", Type::A), None);
        assert_eq!(parse(&message, 7, "a.c", Type::A), None);
        assert_eq!(parse(&message, 7, "a.b", Type::Aaaa), None);
        assert_eq!(
            parse(&query(7, "a.b", Type::A).unwrap(), 7, "a.b", Type::A),
            None
        );
    }

    #[test]
    fn an_answer_that_is_cut_off_anywhere_harms_nobody() {
        let message = answer(0, &[(1, &[192, 0, 2, 1]), (1, &[192, 0, 2, 2])]);
        for end in 0..message.len() {
            let _ = parse(&message[..end], 7, "a.b", Type::A);
        }
    }

    #[test]
    fn a_resolver_that_is_silent_is_followed_by_the_next_one() {
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let both = [&silent, &server].map(|socket| socket.local_addr().unwrap());
        let mut lookup = Lookup::begin("a.b", both.to_vec()).unwrap();
        assert!(lookup.advance().is_none());
        lookup.deadline = Instant::now();
        assert!(lookup.advance().is_none());
        let mut buffer = [0; 64];
        let (_, from) = server.recv_from(&mut buffer).unwrap();
        let mut message = answer(0, &[(1, &[192, 0, 2, 9])]);
        message[..2].copy_from_slice(&buffer[..2]);
        server.send_to(&message, from).unwrap();
        let found = loop {
            if let Some(found) = lookup.advance() {
                break found.unwrap();
            }
        };
        assert_eq!(found, [ip("192.0.2.9")]);
    }
}
