//! The server: questions of the guest on one side, those to others on the other, and a clock that is told to it.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use domain::base::Rtype;
use domain::base::iana::Rcode;
use libmsb::net::HOST_ALIAS;
use libmsb::net::name::HostName;
use serde::Serialize;

use super::answer::{self, Believed, Judged};
use super::pins::Pins;
use super::query::{NoQuery, Query};
use super::{Transport, reply};
use crate::policy::{Judge, Verdict};

/// Most questions that wait for an answer; further ones fail at once. Each holds a name and little else.
const WAITING_MAX: usize = 1024;
/// How long one server has before the next is asked.
const TRY: Duration = Duration::from_millis(1500);

/// What the server is told at the start.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Who is asked, in this order.
    pub(crate) upstreams: Vec<SocketAddr>,
    /// How long an answer may take, all servers together.
    pub(crate) timeout: Duration,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Output {
    /// Tell the guest.
    Reply {
        /// The number that the question came with.
        client: u64,
        /// The message, without its length.
        message: Vec<u8>,
    },
    /// Ask somebody, from a socket of its own.
    Ask {
        /// A number for what comes back.
        exchange: u64,
        /// Who.
        server: SocketAddr,
        /// How.
        transport: Transport,
        /// The message, without its length.
        message: Vec<u8>,
    },
    /// Close that socket: nothing more is wanted of it.
    Done {
        /// The number.
        exchange: u64,
    },
    /// Tell the log.
    Event(Event),
}

/// A question that has its answer, as a line of net.log.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Event {
    /// `dns`.
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    /// The name, if it is one that rules can have.
    pub(crate) name: Option<HostName>,
    /// What was asked of it: `A`, `AAAA`, ….
    pub(crate) record: String,
    /// The answer's code: `NOERROR`, `NXDOMAIN`, ….
    pub(crate) code: String,
    /// The addresses in the answer; of one that was refused, too.
    pub(crate) answers: Vec<IpAddr>,
    /// Why.
    #[serde(flatten)]
    pub(crate) verdict: Verdict,
}

/// A question that waits for an answer.
#[derive(Debug)]
struct Waiting {
    client: u64,
    transport: Transport,
    query: Query,
    asked: Verdict,
    /// Our number in the message.
    id: u16,
    /// The server, by its place.
    upstream: usize,
    /// How it is asked.
    over: Transport,
    /// How many were asked.
    tries: usize,
    /// When the next one is asked.
    next: Instant,
    /// When it is too late.
    end: Instant,
}

/// Random numbers for messages; `None` if there are none.
pub(crate) type Random = Box<dyn FnMut() -> Option<u16> + Send>;

/// The server.
pub(crate) struct Server {
    settings: Settings,
    random: Random,
    pins: Pins,
    waiting: HashMap<u64, Waiting>,
    /// When each of them is to be looked at.
    clock: BTreeSet<(Instant, u64)>,
    exchanges: u64,
    /// Who answered last.
    upstream: usize,
}

impl Server {
    pub(crate) fn new(settings: Settings, random: Random) -> Server {
        Server {
            settings,
            random,
            pins: Pins::default(),
            waiting: HashMap::new(),
            clock: BTreeSet::new(),
            exchanges: 0,
            upstream: 0,
        }
    }

    /// Asks others from now on. Questions that wait for an answer go on with those.
    pub(crate) fn renew(&mut self, settings: Settings) {
        self.settings = settings;
        self.upstream = 0;
    }

    /// The names that an address was found for, and that are alive.
    pub(crate) fn names(&self, now: Instant, address: IpAddr) -> Vec<HostName> {
        self.pins.names(now, address)
    }

    /// The guest asks.
    pub(crate) fn query(
        &mut self,
        judge: &Judge,
        now: Instant,
        client: u64,
        transport: Transport,
        bytes: &[u8],
    ) -> Vec<Output> {
        let query = match Query::parse(bytes) {
            Ok(query) => query,
            Err(NoQuery::Ignored) => return Vec::new(),
            Err(NoQuery::Refused(id, code)) => {
                return vec![Output::Reply {
                    client,
                    message: reply::refusal(id, code),
                }];
            }
        };
        if query
            .name
            .as_ref()
            .is_some_and(|name| name.as_str() == HOST_ALIAS)
        {
            return self.alias(judge, client, transport, &query);
        }
        let asked = judge.name(query.name.as_ref());
        if !asked.allows() {
            return told(client, transport, &query, Rcode::NXDOMAIN, asked);
        }
        let waiting = Waiting {
            client,
            transport,
            query,
            asked,
            id: 0,
            upstream: self.upstream,
            over: Transport::Udp,
            tries: 0,
            next: now,
            end: now + self.settings.timeout,
        };
        if self.waiting.len() >= WAITING_MAX {
            return failed(&waiting);
        }
        self.ask(now, waiting)
    }

    /// The host by its name: the gateways that the guest may reach.
    fn alias(
        &self,
        judge: &Judge,
        client: u64,
        transport: Transport,
        query: &Query,
    ) -> Vec<Output> {
        let gateways = &judge.host().gateways;
        let reached: Vec<IpAddr> = gateways
            .iter()
            .copied()
            .filter(|gateway| judge.reaches(*gateway).is_some())
            .collect();
        let verdict = judge.alias();
        if !verdict.allows() {
            return told(client, transport, query, Rcode::NXDOMAIN, verdict);
        }
        let message = reply::cut(query, transport, reply::addresses(query, &reached));
        let event = event(query, Rcode::NOERROR, reached, verdict);
        vec![Output::Reply { client, message }, Output::Event(event)]
    }

    /// Asks the server whose turn it is.
    fn ask(&mut self, now: Instant, mut waiting: Waiting) -> Vec<Output> {
        let server = self.settings.upstreams.get(waiting.upstream).copied();
        let (Some(server), Some(id)) = (server, (self.random)()) else {
            return failed(&waiting);
        };
        self.exchanges += 1;
        let exchange = self.exchanges;
        waiting.id = id;
        waiting.tries += 1;
        waiting.next = (now + TRY).min(waiting.end);
        let message = waiting.query.to_upstream(id);
        let ask = Output::Ask {
            exchange,
            server,
            transport: waiting.over,
            message,
        };
        self.clock.insert((waiting.next, exchange));
        self.waiting.insert(exchange, waiting);
        vec![ask]
    }

    /// Something came back. It may be from anybody.
    pub(crate) fn answer(
        &mut self,
        judge: &Judge,
        now: Instant,
        exchange: u64,
        bytes: &[u8],
    ) -> Vec<Output> {
        let Some(waiting) = self.waiting.get(&exchange) else {
            return Vec::new();
        };
        let judged = answer::judge(judge, &waiting.query, waiting.id, bytes);
        let cut_over_tcp = matches!(judged, Judged::Cut) && waiting.over == Transport::Tcp;
        match judged {
            Judged::Foreign => Vec::new(),
            Judged::Useless => self.failed(now, exchange),
            Judged::Cut if cut_over_tcp => self.failed(now, exchange),
            Judged::Cut => self.again_over_tcp(now, exchange),
            Judged::Believed(believed) => self.believed(now, exchange, believed),
            Judged::Refused(..) => self.refused(exchange, &judged),
        }
    }

    fn again_over_tcp(&mut self, now: Instant, exchange: u64) -> Vec<Output> {
        let Some(mut waiting) = self.take(exchange) else {
            return Vec::new();
        };
        waiting.over = Transport::Tcp;
        let mut outputs = vec![Output::Done { exchange }];
        outputs.extend(self.ask(now, waiting));
        outputs
    }

    fn believed(&mut self, now: Instant, exchange: u64, believed: Believed) -> Vec<Output> {
        let Some(waiting) = self.take(exchange) else {
            return Vec::new();
        };
        self.upstream = waiting.upstream;
        if let Some(name) = &waiting.query.name {
            for (address, life) in &believed.addresses {
                self.pins.pin(now, name, *address, *life);
            }
        }
        let addresses = believed
            .addresses
            .iter()
            .map(|(address, _)| *address)
            .collect();
        let event = event(&waiting.query, believed.code, addresses, waiting.asked);
        let message = reply::cut(&waiting.query, waiting.transport, believed.message);
        let reply = Output::Reply {
            client: waiting.client,
            message,
        };
        vec![Output::Done { exchange }, reply, Output::Event(event)]
    }

    fn refused(&mut self, exchange: u64, judged: &Judged) -> Vec<Output> {
        let (Some(waiting), Judged::Refused(_, addresses)) = (self.take(exchange), judged) else {
            return Vec::new();
        };
        let message = reply::empty(&waiting.query, Rcode::NXDOMAIN);
        let verdict = judged.verdict(waiting.asked);
        let event = event(&waiting.query, Rcode::NXDOMAIN, addresses.clone(), verdict);
        let reply = Output::Reply {
            client: waiting.client,
            message,
        };
        vec![Output::Done { exchange }, reply, Output::Event(event)]
    }

    /// Nothing will come: the connection was refused, or broke off.
    pub(crate) fn failed(&mut self, now: Instant, exchange: u64) -> Vec<Output> {
        let Some(mut waiting) = self.take(exchange) else {
            return Vec::new();
        };
        let mut outputs = vec![Output::Done { exchange }];
        let all_tried = waiting.tries >= 2 * self.settings.upstreams.len();
        if now >= waiting.end || all_tried {
            outputs.extend(failed(&waiting));
            return outputs;
        }
        waiting.upstream = (waiting.upstream + 1) % self.settings.upstreams.len().max(1);
        waiting.over = Transport::Udp;
        outputs.extend(self.ask(now, waiting));
        outputs
    }

    /// When [`Server::tick`] is to be called.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.clock.first().map(|(time, _)| *time)
    }

    /// Time has passed.
    pub(crate) fn tick(&mut self, now: Instant) -> Vec<Output> {
        let mut outputs = Vec::new();
        while let Some((time, exchange)) = self.clock.first().copied()
            && time <= now
        {
            outputs.extend(self.failed(now, exchange));
        }
        outputs
    }

    fn take(&mut self, exchange: u64) -> Option<Waiting> {
        let waiting = self.waiting.remove(&exchange)?;
        self.clock.remove(&(waiting.next, exchange));
        Some(waiting)
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("settings", &self.settings)
            .field("waiting", &self.waiting.len())
            .finish_non_exhaustive()
    }
}

/// Nobody could say.
fn failed(waiting: &Waiting) -> Vec<Output> {
    told(
        waiting.client,
        waiting.transport,
        &waiting.query,
        Rcode::SERVFAIL,
        waiting.asked,
    )
}

fn told(
    client: u64,
    transport: Transport,
    query: &Query,
    code: Rcode,
    verdict: Verdict,
) -> Vec<Output> {
    let message = reply::cut(query, transport, reply::empty(query, code));
    vec![
        Output::Reply { client, message },
        Output::Event(event(query, code, Vec::new(), verdict)),
    ]
}

fn event(query: &Query, code: Rcode, answers: Vec<IpAddr>, verdict: Verdict) -> Event {
    Event {
        kind: "dns",
        name: query.name.clone(),
        record: kind(query.kind),
        code: code.to_string(),
        answers,
        verdict,
    }
}

fn kind(kind: Rtype) -> String {
    kind.to_string()
}
