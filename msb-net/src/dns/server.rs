//! The DNS server: queries of the guest, exchanges with upstream servers, and timeouts. It has no
//! sockets and no clock.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use domain::base::Rtype;
use domain::base::iana::Rcode;
use libmsb::net::HOST_ALIAS;
use libmsb::net::name::HostName;
use serde::Serialize;

use super::answer::{self, AcceptedAnswer, AnswerCheck};
use super::pins::PinTable;
use super::query::{Query, QueryError};
use super::{DnsTransport, reply};
use crate::policy::{PolicyEngine, Verdict};

/// Limit of pending queries; further ones fail at once. Each holds a name and little else.
const PENDING_MAX: usize = 1024;
/// Number of exchanges, each with a socket, above which a query keeps only its last one.
const EXCHANGES_MAX: usize = 1024;
/// Longest time after which the next server is asked. The server before may still answer.
const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(1500);
/// Number of times that each server is asked; `attempts` of resolv.conf(5).
const ROUNDS: usize = 2;

/// Settings of the server.
#[derive(Clone, Debug)]
pub struct DnsSettings {
    /// Upstream servers in the order in which they are asked.
    pub upstreams: Vec<SocketAddr>,
    /// Time limit of an answer, all servers together.
    pub timeout: Duration,
}

/// An action for the caller.
#[derive(Clone, Debug, PartialEq)]
pub enum DnsOutput {
    /// Send a reply to the guest.
    Reply {
        /// Number of the client that sent the query.
        client: u64,
        /// Message without its length.
        message: Vec<u8>,
    },
    /// Send a query to an upstream server, from a new socket.
    Ask {
        /// Number of the exchange.
        exchange: u64,
        /// Address of the server.
        server: SocketAddr,
        /// Transport to use.
        transport: DnsTransport,
        /// Message without its length.
        message: Vec<u8>,
    },
    /// Close the socket of an exchange.
    Done {
        /// Number of the exchange.
        exchange: u64,
    },
    /// Write an event to the log.
    Event(DnsEvent),
}

/// An answered query, as a line of net.log.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DnsEvent {
    /// Always `dns`.
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    /// Host name, if the name is one that rules can match.
    pub(crate) name: Option<HostName>,
    /// Query type: `A`, `AAAA`, ….
    pub(crate) record: String,
    /// Response code: `NOERROR`, `NXDOMAIN`, ….
    pub(crate) code: String,
    /// Addresses in the answer, a rejected one included.
    pub(crate) answers: Vec<IpAddr>,
    /// Verdict with its reason.
    #[serde(flatten)]
    pub(crate) verdict: Verdict,
}

/// A query that waits for an upstream answer. Any server that was asked may answer until the
/// deadline: a server that needs longer than the others is as good as they are.
#[derive(Debug)]
struct PendingQuery {
    client: u64,
    client_transport: DnsTransport,
    query: Query,
    query_verdict: Verdict,
    /// Index of the server that is asked next.
    upstream: usize,
    /// Number of servers asked so far.
    attempts: usize,
    /// Exchanges that may bring the answer, oldest first.
    exchanges: Vec<u64>,
    /// Time at which the next server is asked, or the query fails.
    wake: Instant,
    /// Time at which the query fails.
    deadline: Instant,
}

/// An exchange with an upstream server.
#[derive(Clone, Copy, Debug)]
struct Exchange {
    /// Number of the query.
    query: u64,
    /// Our message identifier.
    id: u16,
    /// Index of the server.
    upstream: usize,
    transport: DnsTransport,
}

/// A source of random message identifiers; `None` if it fails.
pub(crate) type IdSource = Box<dyn FnMut() -> Option<u16> + Send>;

/// Lifetime of a pin of a name that a secret is bound to: as long as any sandbox runs.
const BOUND_NAME_TTL: Duration = Duration::from_secs(365 * 24 * 3600);

/// The DNS server.
pub struct DnsServer {
    settings: DnsSettings,
    next_id: IdSource,
    pins: PinTable,
    pending: HashMap<u64, PendingQuery>,
    exchanges: HashMap<u64, Exchange>,
    /// Times at which queries wake.
    deadlines: BTreeSet<(Instant, u64)>,
    query_count: u64,
    exchange_count: u64,
    /// Index of the server that answered last.
    upstream: usize,
}

impl DnsServer {
    /// Creates a server. `next_id` returns unpredictable message identifiers.
    pub fn new(settings: DnsSettings, next_id: IdSource) -> DnsServer {
        DnsServer {
            settings,
            next_id,
            pins: PinTable::default(),
            pending: HashMap::new(),
            exchanges: HashMap::new(),
            deadlines: BTreeSet::new(),
            query_count: 0,
            exchange_count: 0,
            upstream: 0,
        }
    }

    /// Replaces the settings. Pending queries continue with them.
    pub(crate) fn apply_settings(&mut self, settings: DnsSettings) {
        self.settings = settings;
        self.upstream = 0;
    }

    /// Returns the names pinned to an address that have not expired.
    pub(crate) fn pinned_names(&self, now: Instant, address: IpAddr) -> Vec<HostName> {
        self.pins.names(now, address)
    }

    /// Handles a query of the guest.
    pub fn handle_query(
        &mut self,
        engine: &PolicyEngine,
        now: Instant,
        client: u64,
        transport: DnsTransport,
        bytes: &[u8],
    ) -> Vec<DnsOutput> {
        let query = match Query::parse(bytes) {
            Ok(query) => query,
            Err(QueryError::Ignored) => return Vec::new(),
            Err(QueryError::Refused(id, code)) => {
                return vec![DnsOutput::Reply { client, message: reply::error_reply(id, code) }];
            }
        };
        if query.name.as_ref().is_some_and(|name| name.as_str() == HOST_ALIAS) {
            return self.answer_host_alias(engine, client, transport, &query);
        }
        let query_verdict = engine.query_verdict(query.name.as_ref());
        if !query_verdict.allows() {
            return empty_reply(client, transport, &query, Rcode::NXDOMAIN, query_verdict);
        }
        let pending = PendingQuery {
            client,
            client_transport: transport,
            query,
            query_verdict,
            upstream: self.upstream,
            attempts: 0,
            exchanges: Vec::new(),
            wake: now,
            deadline: now + self.settings.timeout,
        };
        if self.pending.len() >= PENDING_MAX {
            return servfail(&pending);
        }
        self.query_count += 1;
        let number = self.query_count;
        self.pending.insert(number, pending);
        self.ask_next(now, number)
    }

    /// Answers a query for the host alias with the gateways that the guest may reach.
    fn answer_host_alias(
        &self,
        engine: &PolicyEngine,
        client: u64,
        transport: DnsTransport,
        query: &Query,
    ) -> Vec<DnsOutput> {
        let gateways = &engine.host().gateways;
        let reached: Vec<IpAddr> = gateways
            .iter()
            .copied()
            .filter(|gateway| engine.reachable_by(*gateway).is_some())
            .collect();
        let verdict = engine.host_alias_verdict();
        if !verdict.allows() {
            return empty_reply(client, transport, query, Rcode::NXDOMAIN, verdict);
        }
        let message = reply::truncate(query, transport, reply::address_reply(query, &reached));
        let event = log_event(query, Rcode::NOERROR, reached, verdict);
        vec![DnsOutput::Reply { client, message }, DnsOutput::Event(event)]
    }

    /// Asks the next server, unless each was asked twice. A query that waits for no server fails.
    fn ask_next(&mut self, now: Instant, number: u64) -> Vec<DnsOutput> {
        let servers = self.settings.upstreams.len();
        let Some(pending) = self.pending.get_mut(&number) else {
            return Vec::new();
        };
        let mut outputs = Vec::new();
        if pending.attempts < ROUNDS * servers && now < pending.deadline {
            let upstream = pending.upstream % servers;
            pending.attempts += 1;
            pending.upstream = (upstream + 1) % servers;
            outputs.extend(self.ask(number, upstream, DnsTransport::Udp));
        }
        if self.pending.get(&number).is_some_and(|pending| pending.exchanges.is_empty()) {
            outputs.extend(self.fail(number));
        }
        self.schedule(now, number);
        outputs
    }

    /// Sends a query to a server.
    fn ask(&mut self, number: u64, upstream: usize, transport: DnsTransport) -> Vec<DnsOutput> {
        let id = (self.next_id)();
        let server = self.settings.upstreams.get(upstream).copied();
        let (Some(pending), Some(server), Some(id)) = (self.pending.get_mut(&number), server, id)
        else {
            return Vec::new();
        };
        let mut outputs = Vec::new();
        if self.exchanges.len() >= EXCHANGES_MAX && !pending.exchanges.is_empty() {
            let exchange = pending.exchanges.remove(0);
            self.exchanges.remove(&exchange);
            outputs.push(DnsOutput::Done { exchange });
        }
        self.exchange_count += 1;
        let exchange = self.exchange_count;
        pending.exchanges.push(exchange);
        self.exchanges.insert(exchange, Exchange { query: number, id, upstream, transport });
        let message = pending.query.to_upstream(id);
        outputs.push(DnsOutput::Ask { exchange, server, transport, message });
        outputs
    }

    /// Sets the time at which the next server is asked, or the query fails. The time of a query is
    /// divided so that each server is asked in it.
    fn schedule(&mut self, now: Instant, number: u64) {
        let servers = self.settings.upstreams.len();
        let Some(pending) = self.pending.get_mut(&number) else {
            return;
        };
        let parts = u32::try_from(servers).unwrap_or(u32::MAX).saturating_add(1);
        let patience = ATTEMPT_TIMEOUT.min(self.settings.timeout / parts);
        self.deadlines.remove(&(pending.wake, number));
        pending.wake = if pending.attempts < ROUNDS * servers {
            (now + patience).min(pending.deadline)
        } else {
            pending.deadline
        };
        self.deadlines.insert((pending.wake, number));
    }

    /// Handles a message from an upstream server, which may be forged.
    pub fn handle_answer(
        &mut self,
        engine: &PolicyEngine,
        now: Instant,
        exchange: u64,
        bytes: &[u8],
    ) -> Vec<DnsOutput> {
        let asked = self.exchanges.get(&exchange);
        let Some((asked, pending)) =
            asked.and_then(|asked| Some((*asked, self.pending.get(&asked.query)?)))
        else {
            return Vec::new();
        };
        let check = answer::check(engine, &pending.query, asked.id, bytes);
        let truncated_over_tcp =
            matches!(check, AnswerCheck::Truncated) && asked.transport == DnsTransport::Tcp;
        match check {
            AnswerCheck::Unrelated => Vec::new(),
            AnswerCheck::Failed => self.handle_failure(now, exchange),
            AnswerCheck::Truncated if truncated_over_tcp => self.handle_failure(now, exchange),
            AnswerCheck::Truncated => self.retry_over_tcp(now, exchange),
            AnswerCheck::Accepted(accepted) => self.accept_answer(engine, now, exchange, accepted),
            AnswerCheck::Denied(..) => self.reject_answer(exchange, &check),
        }
    }

    fn retry_over_tcp(&mut self, now: Instant, exchange: u64) -> Vec<DnsOutput> {
        let Some(asked) = self.take_exchange(exchange) else {
            return Vec::new();
        };
        let mut outputs = vec![DnsOutput::Done { exchange }];
        outputs.extend(self.ask(asked.query, asked.upstream, DnsTransport::Tcp));
        self.schedule(now, asked.query);
        outputs
    }

    fn accept_answer(
        &mut self,
        engine: &PolicyEngine,
        now: Instant,
        exchange: u64,
        accepted: AcceptedAnswer,
    ) -> Vec<DnsOutput> {
        let Some((asked, pending, others)) = self.take_pending(exchange) else {
            return Vec::new();
        };
        self.upstream = asked.upstream;
        if let Some(name) = &pending.query.name {
            // Programs keep addresses for longer than their answers are valid. For a secret the
            // server's certificate is verified as well.
            let lifetime = engine.is_bound(name).then_some(BOUND_NAME_TTL);
            for (address, ttl) in &accepted.addresses {
                self.pins.pin(now, name, *address, lifetime.unwrap_or(*ttl));
            }
        }
        let addresses = accepted.addresses.iter().map(|(address, _)| *address).collect();
        let event = log_event(&pending.query, accepted.code, addresses, pending.query_verdict);
        let message = reply::truncate(&pending.query, pending.client_transport, accepted.message);
        let reply = DnsOutput::Reply { client: pending.client, message };
        let answered = vec![DnsOutput::Done { exchange }, reply, DnsOutput::Event(event)];
        answered.into_iter().chain(others).collect()
    }

    fn reject_answer(&mut self, exchange: u64, check: &AnswerCheck) -> Vec<DnsOutput> {
        let (Some((_, pending, others)), AnswerCheck::Denied(_, addresses)) =
            (self.take_pending(exchange), check)
        else {
            return Vec::new();
        };
        let message = reply::empty_reply(&pending.query, Rcode::NXDOMAIN);
        let verdict = check.verdict(pending.query_verdict);
        let event = log_event(&pending.query, Rcode::NXDOMAIN, addresses.clone(), verdict);
        let reply = DnsOutput::Reply { client: pending.client, message };
        let answered = vec![DnsOutput::Done { exchange }, reply, DnsOutput::Event(event)];
        answered.into_iter().chain(others).collect()
    }

    /// Handles a failed exchange: the connection was refused or closed, or the answer is useless.
    /// The next server is asked at once, unless another one may still answer.
    pub(crate) fn handle_failure(&mut self, now: Instant, exchange: u64) -> Vec<DnsOutput> {
        let Some(asked) = self.take_exchange(exchange) else {
            return Vec::new();
        };
        let mut outputs = vec![DnsOutput::Done { exchange }];
        let waits =
            self.pending.get(&asked.query).is_some_and(|pending| !pending.exchanges.is_empty());
        if !waits {
            outputs.extend(self.ask_next(now, asked.query));
        }
        outputs
    }

    /// Returns the time at which [`DnsServer::tick`] must be called.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(time, _)| *time)
    }

    /// Asks the next servers, and ends the queries that have timed out.
    pub(crate) fn tick(&mut self, now: Instant) -> Vec<DnsOutput> {
        let mut outputs = Vec::new();
        while let Some((time, number)) = self.deadlines.first().copied()
            && time <= now
        {
            let is_over = self.pending.get(&number).is_none_or(|query| query.deadline <= now);
            outputs.extend(if is_over { self.fail(number) } else { self.ask_next(now, number) });
        }
        outputs
    }

    /// Ends a query without an answer.
    fn fail(&mut self, number: u64) -> Vec<DnsOutput> {
        let Some((pending, mut outputs)) = self.end_query(number) else {
            self.deadlines.retain(|(_, other)| *other != number);
            return Vec::new();
        };
        outputs.extend(servfail(&pending));
        outputs
    }

    /// Removes an exchange that brings no answer.
    fn take_exchange(&mut self, exchange: u64) -> Option<Exchange> {
        let asked = self.exchanges.remove(&exchange)?;
        if let Some(pending) = self.pending.get_mut(&asked.query) {
            pending.exchanges.retain(|other| *other != exchange);
        }
        Some(asked)
    }

    /// Removes the query of an exchange, and returns what closes its other exchanges.
    fn take_pending(&mut self, exchange: u64) -> Option<(Exchange, PendingQuery, Vec<DnsOutput>)> {
        let asked = self.take_exchange(exchange)?;
        let (pending, others) = self.end_query(asked.query)?;
        Some((asked, pending, others))
    }

    /// Removes a query, and returns what closes its exchanges.
    fn end_query(&mut self, number: u64) -> Option<(PendingQuery, Vec<DnsOutput>)> {
        let pending = self.pending.remove(&number)?;
        self.deadlines.remove(&(pending.wake, number));
        let mut outputs = Vec::new();
        for exchange in &pending.exchanges {
            self.exchanges.remove(exchange);
            outputs.push(DnsOutput::Done { exchange: *exchange });
        }
        Some((pending, outputs))
    }
}

impl fmt::Debug for DnsServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DnsServer")
            .field("settings", &self.settings)
            .field("pending", &self.pending.len())
            .finish_non_exhaustive()
    }
}

/// Returns a SERVFAIL reply.
fn servfail(pending: &PendingQuery) -> Vec<DnsOutput> {
    empty_reply(
        pending.client,
        pending.client_transport,
        &pending.query,
        Rcode::SERVFAIL,
        pending.query_verdict,
    )
}

/// Returns a reply without records, and its event.
fn empty_reply(
    client: u64,
    client_transport: DnsTransport,
    query: &Query,
    code: Rcode,
    verdict: Verdict,
) -> Vec<DnsOutput> {
    let message = reply::truncate(query, client_transport, reply::empty_reply(query, code));
    vec![
        DnsOutput::Reply { client, message },
        DnsOutput::Event(log_event(query, code, Vec::new(), verdict)),
    ]
}

fn log_event(query: &Query, code: Rcode, answers: Vec<IpAddr>, verdict: Verdict) -> DnsEvent {
    DnsEvent {
        kind: "dns",
        name: query.name.clone(),
        record: type_name(query.qtype),
        code: code.to_string(),
        answers,
        verdict,
    }
}

fn type_name(kind: Rtype) -> String {
    kind.to_string()
}
