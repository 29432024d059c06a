//! The policy gate: each connection and each flow is judged here before any resource of the host is
//! used for it.
//!
//! The gateway's address stands for the host: connections to it go to the host's loopback address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use libmsb::net::name::HostName;
use libmsb::net::rule::{Direction, Protocol};

use crate::dns::{DnsOutput, DnsServer, DnsSettings, DnsTransport};
use crate::event_log::EventLog;
use crate::flow::{Flow, FlowEndpoint};
use crate::policy::{ConnectionFacts, PolicyEngine, TlsPeek, Verdict};
use libmsb::net::network::Network;

/// Port of DNS servers.
pub(crate) const DNS_PORT: u16 = 53;

/// The policy engine and the DNS resolver that feeds it with names.
pub(crate) struct PolicyGate {
    engine: PolicyEngine,
    /// Host addresses from the settings.
    host_addresses: Vec<IpAddr>,
    dns: DnsServer,
}

/// Destination of a connection or datagram that the guest opens (egress).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Egress {
    /// A socket of the host. `facts`: the facts behind the verdict.
    Host { target: SocketAddr, peek: Peek, facts: ConnectionFacts },
    /// The built-in DNS resolver.
    Resolver,
}

/// Check of the guest's first bytes before any are sent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peek {
    /// No check.
    No,
    /// The server name must match a rule. Bytes of the server are not delayed.
    Name,
    /// The connection may be intercepted. Bytes of the server are left in its socket.
    Interception,
}

/// Course of a connection whose first bytes are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Course {
    /// Bytes are relayed.
    Relay(ConnectionFacts),
    /// `msb-intercept` gets the connection to this server name. `pinned`: the name was resolved to
    /// the address.
    Intercept { facts: ConnectionFacts, sni: HostName, pinned: bool },
    /// The connection is denied.
    Denied,
}

impl PolicyGate {
    pub(crate) fn new(engine: PolicyEngine, dns: DnsServer) -> PolicyGate {
        let host_addresses = engine.host().host_addresses.clone();
        PolicyGate { engine, host_addresses, dns }
    }

    /// Replaces the policy and the upstream name servers. Pinned names are kept.
    pub(crate) fn apply_settings(&mut self, engine: PolicyEngine, dns_settings: DnsSettings) {
        self.host_addresses = engine.host().host_addresses.clone();
        self.engine = engine;
        self.dns.apply_settings(dns_settings);
    }

    /// Sets further addresses of the host.
    pub(crate) fn set_host_addresses(&mut self, addresses: impl Iterator<Item = IpAddr>) {
        let mut host_addresses = self.host_addresses.clone();
        host_addresses.extend(addresses);
        self.engine.set_host_addresses(host_addresses);
    }

    /// Handles a DNS query of the guest.
    pub(crate) fn dns_query(
        &mut self,
        now: Instant,
        client: u64,
        transport: DnsTransport,
        message: &[u8],
    ) -> Vec<DnsOutput> {
        self.dns.handle_query(&self.engine, now, client, transport, message)
    }

    /// Handles a message from an upstream name server.
    pub(crate) fn dns_answer(
        &mut self,
        now: Instant,
        exchange: u64,
        message: &[u8],
    ) -> Vec<DnsOutput> {
        self.dns.handle_answer(&self.engine, now, exchange, message)
    }

    /// Handles the failure of an exchange with an upstream name server.
    pub(crate) fn dns_failed(&mut self, now: Instant, exchange: u64) -> Vec<DnsOutput> {
        self.dns.handle_failure(now, exchange)
    }

    /// Returns the time at which [`PolicyGate::dns_tick`] must be called.
    pub(crate) fn dns_deadline(&self) -> Option<Instant> {
        self.dns.deadline()
    }

    /// Handles exchanges with upstream name servers that have timed out.
    pub(crate) fn dns_tick(&mut self, now: Instant) -> Vec<DnsOutput> {
        self.dns.tick(now)
    }

    fn facts(
        &self,
        now: Instant,
        direction: Direction,
        protocol: Protocol,
        endpoint: FlowEndpoint,
    ) -> ConnectionFacts {
        ConnectionFacts {
            direction,
            protocol,
            address: endpoint.address,
            port: (!protocol.is_icmp()).then_some(endpoint.port),
            names: self.dns.pinned_names(now, endpoint.address),
            tls: TlsPeek::Unseen,
        }
    }

    /// Returns the verdict on a flow and reports it to the event log.
    fn judge_and_log(&self, flow: &Flow, facts: ConnectionFacts, log: &mut EventLog) -> Verdict {
        let verdict = self.engine.verdict(&facts);
        if verdict.allows() {
            log.log_allowed(*flow, facts, verdict);
        } else {
            log.log_deny(flow, &facts, verdict);
        }
        verdict
    }

    /// Returns the destination of a connection or datagram from the guest; `None` if it is denied.
    pub(crate) fn egress(
        &mut self,
        network: &Network,
        flow: &Flow,
        protocol: Protocol,
        (now, log): (Instant, &mut EventLog),
    ) -> Option<Egress> {
        if flow.remote.port == DNS_PORT {
            return Some(Egress::Resolver);
        }
        let facts = self.facts(now, Direction::Egress, protocol, flow.remote);
        let verdict = self.judge_and_log(flow, facts.clone(), log);
        let target = SocketAddr::new(host_address(network, flow.remote.address), flow.remote.port);
        let peek = match verdict.needs_peek {
            true if self.engine.is_port_intercepted(&facts) => Peek::Interception,
            true => Peek::Name,
            false => Peek::No,
        };
        verdict.allows().then_some(Egress::Host { target, peek, facts })
    }

    /// Judges a datagram to an address that cannot be reached, for the event log only.
    pub(crate) fn log_undeliverable(&self, flow: &Flow, (now, log): (Instant, &mut EventLog)) {
        let facts = self.facts(now, Direction::Egress, Protocol::Udp, flow.remote);
        self.judge_and_log(flow, facts, log);
    }

    /// Judges a connection again once its first bytes are known.
    pub(crate) fn check_client_hello(
        &mut self,
        flow: &Flow,
        tls: TlsPeek,
        (now, log): (Instant, &mut EventLog),
    ) -> Course {
        let facts = self.facts(now, Direction::Egress, Protocol::Tcp, flow.remote);
        let facts = ConnectionFacts { tls, ..facts };
        let verdict = self.engine.verdict(&facts);
        if !verdict.allows() {
            log.log_deny(flow, &facts, verdict);
            return Course::Denied;
        }
        match &facts.tls {
            TlsPeek::Hello { sni: Some(sni), .. } if verdict.intercepted => {
                let (sni, pinned) = (sni.clone(), facts.names.contains(sni));
                Course::Intercept { facts, sni, pinned }
            }
            _ => Course::Relay(facts),
        }
    }

    /// Returns whether an open connection is allowed under the current policy. The names count that
    /// its address had when it was opened. A connection that now needs a check of the ClientHello,
    /// and had none, is denied.
    pub(crate) fn is_still_allowed(
        &self,
        flow: &Flow,
        facts: &ConnectionFacts,
        log: &mut EventLog,
    ) -> bool {
        let verdict = self.engine.verdict(facts);
        let allowed = verdict.allows() && !(verdict.needs_peek && facts.tls == TlsPeek::Unseen);
        if !allowed {
            log.log_deny(flow, facts, verdict);
        }
        allowed
    }

    /// Returns whether the guest may send an echo request to an address.
    pub(crate) fn allows_echo(
        &mut self,
        guest: IpAddr,
        remote: IpAddr,
        (now, log): (Instant, &mut EventLog),
    ) -> bool {
        let protocol = if remote.is_ipv4() { Protocol::Icmpv4 } else { Protocol::Icmpv6 };
        let endpoint = |address| FlowEndpoint { address, port: 0 };
        let flow = Flow { guest: endpoint(guest), remote: endpoint(remote) };
        let facts = self.facts(now, Direction::Egress, protocol, flow.remote);
        self.judge_and_log(&flow, facts, log).allows()
    }

    /// Judges a connection or datagram from a peer to a published port. Returns the facts to keep,
    /// or `None` if it is denied.
    pub(crate) fn ingress(
        &mut self,
        flow: &Flow,
        peer: SocketAddr,
        protocol: Protocol,
        (now, log): (Instant, &mut EventLog),
    ) -> Option<ConnectionFacts> {
        let peer_endpoint =
            FlowEndpoint { address: peer.ip().to_canonical(), port: flow.guest.port };
        let facts = self.facts(now, Direction::Ingress, protocol, peer_endpoint);
        let verdict = self.judge_and_log(flow, facts.clone(), log);
        verdict.allows().then_some(facts)
    }
}

/// Translates an address that the guest uses to an address for the host's sockets.
fn host_address(network: &Network, address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) if network.is_gateway(address) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) if network.is_gateway(address) => Ipv6Addr::LOCALHOST.into(),
        _ => address,
    }
}
