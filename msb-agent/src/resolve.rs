//! DNS resolver: host names to addresses. It does not use the C library's resolver, which needs
//! modules that a static program cannot load in a foreign root file system.
//!
//! Entries of `/etc/hosts` come first. Then the resolvers of `/etc/resolv.conf` are queried one
//! after the other, with the timeout and the two attempts of resolv.conf(5). A repeated query has
//! the same identifier, so that a late response to the first one counts. IPv4 addresses are
//! preferred: IPv6 addresses are queried if there are none, or if the response takes long, and they
//! are used if no response for IPv4 arrives. Search lists are not used. The caller polls the socket
//! of a [`Lookup`] in its event loop.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// Maximum number of addresses of one name.
const ADDRESSES_MAX: usize = 8;

/// Maximum number of resolvers, same as resolv.conf(5).
const SERVERS_MAX: usize = 3;

/// Number of rounds through the resolvers.
const ROUNDS: usize = 2;

/// Timeout of one query and its maximum, in seconds; same as resolv.conf(5), and the maximum as in
/// msb-run(1).
const TIMEOUT_SECONDS: u64 = 5;
const TIMEOUT_SECONDS_MAX: u64 = 60;

/// Time after which IPv6 addresses are queried too.
const IPV6_DELAY: Duration = Duration::from_secs(1);

/// Time in which a response for IPv4 is still preferred, once IPv6 addresses are known.
const IPV4_PREFERENCE: Duration = Duration::from_secs(2);

/// Maximum size of `/etc/hosts` and `/etc/resolv.conf` in bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Maximum size of a response in bytes, without EDNS.
const ANSWER_BYTES: usize = 512;

/// Port of resolvers.
const PORT: u16 = 53;

const HEADER_BYTES: usize = 12;
const CLASS_INTERNET: u16 = 1;
/// Header flags, RFC 1035 section 4.1.1.
const FLAG_QR: u16 = 0x8000;
const FLAG_RD: u16 = 0x0100;
const RCODE_MASK: u16 = 0x000f;
const RCODE_NXDOMAIN: u16 = 3;

/// Record type of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
enum RecordType {
    A = 1,
    Aaaa = 28,
}

/// Immediate result of a lookup.
pub(crate) enum LookupResult {
    /// Addresses of the name.
    Addresses(Vec<IpAddr>),
    /// A query is under way.
    Pending(Lookup),
}

/// A lookup that is under way.
pub(crate) struct Lookup {
    name: String,
    servers: Vec<SocketAddr>,
    socket: UdpSocket,
    timeout: Duration,
    attempt: usize,
    /// The query for IPv4 addresses.
    v4: RecordQuery,
    /// The query for IPv6 addresses, if it was sent.
    v6: Option<RecordQuery>,
    /// Time at which IPv6 addresses are queried.
    v6_at: Instant,
    deadline: Instant,
}

/// A query for one type of record.
struct RecordQuery {
    wanted: RecordType,
    id: u16,
    /// The response; without addresses if there are none.
    response: Option<Vec<IpAddr>>,
}

impl RecordQuery {
    /// Returns a query with a random identifier.
    fn new(wanted: RecordType) -> io::Result<RecordQuery> {
        let mut id = [0; 2];
        rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())?;
        Ok(RecordQuery { wanted, id: u16::from_be_bytes(id), response: None })
    }
}

/// Looks a name up locally, or starts a query.
pub(crate) fn find(host: &str) -> io::Result<LookupResult> {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    if let Ok(address) = bare.unwrap_or(host).parse() {
        return Ok(LookupResult::Addresses(vec![address]));
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    let hosts = hosts_addresses(name, &read("/etc/hosts"));
    if !hosts.is_empty() {
        return Ok(LookupResult::Addresses(hosts));
    }
    if name.eq_ignore_ascii_case("localhost") {
        let both = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        return Ok(LookupResult::Addresses(both.to_vec()));
    }
    if encode_name(name).is_none() {
        return Err(ErrorKind::NotFound.into());
    }
    let file = read("/etc/resolv.conf");
    Lookup::start(name, servers(&file), timeout(&file)).map(LookupResult::Pending)
}

/// Reads a file of the guest; one that is missing, too large or not a regular file is empty.
fn read(path: &str) -> String {
    let small = fs::metadata(path).is_ok_and(|file| file.is_file() && file.len() <= FILE_BYTES_MAX);
    let content = if small { fs::read(path).ok() } else { None };
    String::from_utf8_lossy(&content.unwrap_or_default()).into_owned()
}

/// Splits a file into lines of fields, without comments.
fn lines(file: &str) -> impl Iterator<Item = std::str::SplitAsciiWhitespace<'_>> {
    file.lines().map(|line| {
        let line = line.split(['#', ';']).next().unwrap_or_default();
        line.split_ascii_whitespace()
    })
}

fn hosts_addresses(name: &str, file: &str) -> Vec<IpAddr> {
    let found = lines(file).filter_map(|mut fields| {
        let address = fields.next()?.parse().ok()?;
        fields.any(|field| field.eq_ignore_ascii_case(name)).then_some(address)
    });
    found.take(ADDRESSES_MAX).collect()
}

fn servers(file: &str) -> Vec<SocketAddr> {
    let named = lines(file).filter_map(|mut fields| {
        let address: IpAddr =
            (fields.next()? == "nameserver").then(|| fields.next())??.parse().ok()?;
        Some(SocketAddr::new(address, PORT))
    });
    named.take(SERVERS_MAX).collect()
}

/// Returns the timeout of a query: `options timeout:SECONDS`. The last one counts.
fn timeout(file: &str) -> Duration {
    let options =
        lines(file).filter_map(|mut fields| (fields.next()? == "options").then_some(fields));
    let seconds =
        options.flatten().filter_map(|option| option.strip_prefix("timeout:")?.parse().ok());
    let seconds: u64 = seconds.last().unwrap_or(TIMEOUT_SECONDS);
    Duration::from_secs(seconds.clamp(1, TIMEOUT_SECONDS_MAX))
}

impl Lookup {
    fn start(name: &str, servers: Vec<SocketAddr>, timeout: Duration) -> io::Result<Lookup> {
        let first = *servers.first().ok_or(ErrorKind::NotFound)?;
        let now = Instant::now();
        let lookup = Lookup {
            name: name.to_owned(),
            socket: socket_to(first)?,
            servers,
            timeout,
            attempt: 0,
            v4: RecordQuery::new(RecordType::A)?,
            v6: None,
            v6_at: now + IPV6_DELAY,
            deadline: now + timeout,
        };
        lookup.send_queries()?;
        Ok(lookup)
    }

    /// Returns the descriptor for poll(2).
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Returns the time at which [`Lookup::advance`] must be called.
    pub(crate) fn deadline(&self) -> Instant {
        if self.v6.is_none() { self.deadline.min(self.v6_at) } else { self.deadline }
    }

    /// Takes responses, or queries the next resolver after a timeout. Returns `None` while the
    /// lookup continues.
    pub(crate) fn advance(&mut self) -> Option<io::Result<Vec<IpAddr>>> {
        let mut message = [0; ANSWER_BYTES];
        loop {
            match self.socket.recv(&mut message) {
                Ok(count) => {
                    if let Some(result) = self.handle_message(&message[..count]) {
                        return Some(result);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // The resolver is not reachable: query the next one.
                Err(_) => {
                    self.deadline = Instant::now();
                    break;
                }
            }
        }
        let now = Instant::now();
        if now >= self.deadline {
            return self.next_server();
        }
        if self.v6.is_none() && now >= self.v6_at {
            return self.query_v6().err().map(Err);
        }
        None
    }

    fn handle_message(&mut self, message: &[u8]) -> Option<io::Result<Vec<IpAddr>>> {
        let queries = std::iter::once(&self.v4).chain(&self.v6);
        let mut open = queries.filter(|query| query.response.is_none());
        let (wanted, response) = open.find_map(|query| {
            let parsed = parse(message, query.id, &self.name, query.wanted)?;
            Some((query.wanted, parsed))
        })?;
        match (wanted, response) {
            (RecordType::A, DnsResponse::Addresses(addresses)) => self.take_v4(addresses),
            (RecordType::A, DnsResponse::NameError) => Some(Err(ErrorKind::NotFound.into())),
            (RecordType::A, DnsResponse::Failed) => self.next_server(),
            (RecordType::Aaaa, DnsResponse::Addresses(addresses)) => self.take_v6(addresses),
            (RecordType::Aaaa, DnsResponse::NameError) => self.take_v6(Vec::new()),
            (RecordType::Aaaa, DnsResponse::Failed) if self.v4.response.is_some() => {
                self.next_server()
            }
            (RecordType::Aaaa, DnsResponse::Failed) => None,
        }
    }

    fn take_v4(&mut self, addresses: Vec<IpAddr>) -> Option<io::Result<Vec<IpAddr>>> {
        if !addresses.is_empty() {
            return Some(Ok(addresses));
        }
        self.v4.response = Some(addresses);
        if let Some(addresses) = self.v6.as_ref().and_then(|query| query.response.clone()) {
            return Some(found(addresses));
        }
        self.attempt = 0;
        self.deadline = Instant::now() + self.timeout;
        if self.v6.is_some() {
            return None;
        }
        self.query_v6().err().map(Err)
    }

    fn take_v6(&mut self, addresses: Vec<IpAddr>) -> Option<io::Result<Vec<IpAddr>>> {
        if self.v4.response.is_some() {
            return Some(found(addresses));
        }
        if !addresses.is_empty() {
            self.deadline = self.deadline.min(Instant::now() + IPV4_PREFERENCE);
            // No other resolver is queried then.
            self.attempt = ROUNDS * self.servers.len();
        }
        if let Some(query) = &mut self.v6 {
            query.response = Some(addresses);
        }
        None
    }

    fn query_v6(&mut self) -> io::Result<()> {
        let query = RecordQuery::new(RecordType::Aaaa)?;
        let sent = self.send(&query);
        self.v6 = Some(query);
        sent
    }

    fn next_server(&mut self) -> Option<io::Result<Vec<IpAddr>>> {
        while self.attempt + 1 < ROUNDS * self.servers.len() {
            self.attempt += 1;
            let server = self.servers[self.attempt % self.servers.len()];
            let is_same = self.socket.peer_addr().is_ok_and(|peer| peer == server);
            let asked = if is_same { Ok(()) } else { self.change_server(server) };
            self.deadline = Instant::now() + self.timeout;
            if asked.and_then(|()| self.send_queries()).is_ok() {
                return None;
            }
        }
        let known = self.v6.as_mut().and_then(|query| query.response.take());
        let known = known.filter(|addresses| !addresses.is_empty());
        Some(known.ok_or_else(|| ErrorKind::TimedOut.into()))
    }

    fn change_server(&mut self, server: SocketAddr) -> io::Result<()> {
        self.socket = socket_to(server)?;
        self.v4.id = RecordQuery::new(RecordType::A)?.id;
        if let Some(query) = &mut self.v6 {
            query.id = RecordQuery::new(RecordType::Aaaa)?.id;
        }
        Ok(())
    }

    /// Sends the queries that have no response.
    fn send_queries(&self) -> io::Result<()> {
        let queries = std::iter::once(&self.v4).chain(&self.v6);
        let mut open = queries.filter(|query| query.response.is_none());
        open.try_for_each(|query| self.send(query))
    }

    fn send(&self, sent: &RecordQuery) -> io::Result<()> {
        let query = query(sent.id, &self.name, sent.wanted).ok_or(ErrorKind::NotFound)?;
        self.socket.send(&query).map(drop)
    }
}

fn found(addresses: Vec<IpAddr>) -> io::Result<Vec<IpAddr>> {
    if addresses.is_empty() { Err(ErrorKind::NotFound.into()) } else { Ok(addresses) }
}

/// Opens a socket that receives from this resolver only.
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

/// Encodes a name as labels (RFC 1035 section 3.1). Returns `None` if it is not a valid name.
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

fn query(id: u16, name: &str, wanted: RecordType) -> Option<Vec<u8>> {
    let mut query = Vec::new();
    for word in [id, FLAG_RD, 1, 0, 0, 0] {
        query.extend_from_slice(&word.to_be_bytes());
    }
    query.extend(encode_name(name)?);
    query.extend_from_slice(&(wanted as u16).to_be_bytes());
    query.extend_from_slice(&CLASS_INTERNET.to_be_bytes());
    Some(query)
}

/// Response of a resolver.
#[derive(Debug, PartialEq, Eq)]
enum DnsResponse {
    Addresses(Vec<IpAddr>),
    NameError,
    Failed,
}

/// Parses the response to a query. Returns `None` for any other message, which is ignored.
fn parse(message: &[u8], id: u16, name: &str, wanted: RecordType) -> Option<DnsResponse> {
    let word = |at: usize| {
        let bytes = message.get(at..at + 2)?;
        Some(u16::from_be_bytes(bytes.try_into().ok()?))
    };
    let flags = word(2)?;
    if word(0)? != id || flags & FLAG_QR == 0 || word(4)? != 1 {
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
        RCODE_NXDOMAIN => return Some(DnsResponse::NameError),
        _ => return Some(DnsResponse::Failed),
    }
    let mut addresses = Vec::new();
    // The resolver has followed CNAME records, so the name of a record does not matter.
    for _ in 0..word(6)? {
        let Some((record, data, next)) = record(message, at) else {
            break;
        };
        at = next;
        if record == wanted as u16 && addresses.len() < ADDRESSES_MAX {
            addresses.extend(address(data));
        }
    }
    Some(DnsResponse::Addresses(addresses))
}

/// Parses a record. Returns its type, its data, and the offset after it.
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

/// Returns the offset after a name, which ends with an empty label or a compression pointer.
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
    <[u8; 16]>::try_from(data).ok().map(|bytes| Ipv6Addr::from(bytes).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn malformed_lines_of_hosts_and_resolv_conf_are_skipped() {
        let hosts =
            "127.0.0.1 localhost\n# 1.1.1.1 web\n10.0.0.2\tdb WEB # main\nnonsense web\n::1 web\n";
        assert_eq!(hosts_addresses("web", hosts), [ip("10.0.0.2"), ip("::1")]);
        assert!(hosts_addresses("main", hosts).is_empty());
        let file = "search x\nnameserver 10.0.2.3\n;nameserver 1.1.1.1\nnameserver x\nnameserver fe80::1 \nnameserver";
        let ports: Vec<_> = servers(file).iter().map(ToString::to_string).collect();
        assert_eq!(ports, ["10.0.2.3:53", "[fe80::1]:53"]);
    }

    #[test]
    fn literals_and_localhost_need_no_resolver() {
        for (host, first) in [("192.0.2.7", "192.0.2.7"), ("[::1]", "::1")] {
            let Ok(LookupResult::Addresses(addresses)) = find(host) else { panic!("{host}") };
            assert_eq!(addresses, [ip(first)]);
        }
        assert!(matches!(find("LOCALHOST."), Ok(LookupResult::Addresses(_))));
        for host in ["", "a..b", "a b", &"x".repeat(64), &"x.".repeat(200)] {
            let error = find(host).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::NotFound, "{host}");
        }
    }

    /// Returns a response to a query for `a.b` with these records.
    fn answer(flags: u16, records: &[(u16, &[u8])]) -> Vec<u8> {
        let mut message = query(7, "a.b", RecordType::A).unwrap();
        message[2..4].copy_from_slice(&(FLAG_QR | flags).to_be_bytes());
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
    fn a_response_gives_the_addresses_behind_its_aliases() {
        let message = answer(0, &[(5, &[1, b'c', 0]), (1, &[192, 0, 2, 1]), (28, &[0; 16])]);
        let expected = DnsResponse::Addresses(vec![ip("192.0.2.1")]);
        assert_eq!(parse(&message, 7, "A.b", RecordType::A), Some(expected));
        let missing = answer(RCODE_NXDOMAIN, &[]);
        assert_eq!(parse(&missing, 7, "a.b", RecordType::A), Some(DnsResponse::NameError));
        assert_eq!(parse(&answer(2, &[]), 7, "a.b", RecordType::A), Some(DnsResponse::Failed));
    }

    #[test]
    fn responses_to_other_queries_are_ignored() {
        let message = answer(0, &[(1, &[192, 0, 2, 1])]);
        assert_eq!(parse(&message, 8, "a.b", RecordType::A), None);
        assert_eq!(parse(&message, 7, "a.c", RecordType::A), None);
        assert_eq!(parse(&message, 7, "a.b", RecordType::Aaaa), None);
        assert_eq!(parse(&query(7, "a.b", RecordType::A).unwrap(), 7, "a.b", RecordType::A), None);
    }

    #[test]
    fn truncated_responses_cause_no_panic() {
        let message = answer(0, &[(1, &[192, 0, 2, 1]), (1, &[192, 0, 2, 2])]);
        for end in 0..message.len() {
            let _ = parse(&message[..end], 7, "a.b", RecordType::A);
        }
    }

    const SECONDS: Duration = Duration::from_secs(9);

    /// Sends a response to a query with this message.
    fn respond(server: &UdpSocket, to: SocketAddr, query: &[u8], mut message: Vec<u8>) {
        message[..2].copy_from_slice(&query[..2]);
        // The type is the last word but one of the question.
        let at = HEADER_BYTES + 5;
        message[at..at + 2].copy_from_slice(&query[at..at + 2]);
        server.send_to(&message, to).unwrap();
    }

    fn finish(lookup: &mut Lookup) -> io::Result<Vec<IpAddr>> {
        loop {
            if let Some(found) = lookup.advance() {
                break found;
            }
        }
    }

    #[test]
    fn the_timeout_is_that_of_resolv_conf() {
        let seconds = |file: &str| timeout(file).as_secs();
        assert_eq!(seconds("nameserver 10.0.0.1\n"), 5);
        assert_eq!(seconds("options ndots:2 timeout:7\n;options timeout:9"), 7);
        assert_eq!(seconds("options timeout:x timeout:0\n"), 1);
        assert_eq!(seconds("options timeout:8\noptions timeout:99999\n"), 60);
    }

    #[test]
    fn a_late_response_to_the_first_query_counts() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut lookup = Lookup::start("a.b", vec![server.local_addr().unwrap()], SECONDS).unwrap();
        let mut first = [0; 64];
        let (_, from) = server.recv_from(&mut first).unwrap();
        lookup.deadline = Instant::now();
        assert!(lookup.advance().is_none());
        respond(&server, from, &first, answer(0, &[(1, &[192, 0, 2, 9])]));
        assert_eq!(finish(&mut lookup).unwrap(), [ip("192.0.2.9")]);
    }

    #[test]
    fn ipv6_addresses_are_used_if_ipv4_has_no_response() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        for has_response in [true, false] {
            let mut lookup =
                Lookup::start("a.b", vec![server.local_addr().unwrap()], SECONDS).unwrap();
            let mut query = [0; 64];
            let (_, from) = server.recv_from(&mut query).unwrap();
            if has_response {
                respond(&server, from, &query, answer(0, &[]));
            } else {
                lookup.v6_at = Instant::now();
            }
            while lookup.v6.is_none() {
                assert!(lookup.advance().is_none());
            }
            server.recv_from(&mut query).unwrap();
            respond(&server, from, &query, answer(0, &[(28, &[1; 16])]));
            if !has_response {
                while lookup.v6.as_ref().is_some_and(|query| query.response.is_none()) {
                    assert!(lookup.advance().is_none());
                }
                assert!(lookup.deadline <= Instant::now() + IPV4_PREFERENCE);
                lookup.deadline = Instant::now();
            }
            assert_eq!(finish(&mut lookup).unwrap(), [IpAddr::from([1; 16])]);
        }
    }

    #[test]
    fn the_next_resolver_is_queried_after_a_timeout() {
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let both = [&silent, &server].map(|socket| socket.local_addr().unwrap());
        let mut lookup = Lookup::start("a.b", both.to_vec(), SECONDS).unwrap();
        assert!(lookup.advance().is_none());
        lookup.deadline = Instant::now();
        assert!(lookup.advance().is_none());
        let mut buffer = [0; 64];
        let (_, from) = server.recv_from(&mut buffer).unwrap();
        respond(&server, from, &buffer, answer(0, &[(1, &[192, 0, 2, 9])]));
        let found = finish(&mut lookup).unwrap();
        assert_eq!(found, [ip("192.0.2.9")]);
    }
}
