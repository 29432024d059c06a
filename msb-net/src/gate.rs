//! The gate: each connection and each flow is judged here before anything of the host is touched for it.
//!
//! The gateway's address stands for the host: what is allowed to go there goes to the host's loopback.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use libmsb::net::rule::{Direction, Protocol};

use crate::dns::{Output, Server, Settings, Transport};
use crate::flow::{End, Flow};
use crate::log::Log;
use crate::policy::{Facts, Judge, Tls, Verdict};
use libmsb::net::network::Network;

/// The port of name servers.
pub(crate) const DNS_PORT: u16 = 53;

/// What judges, and knows the names.
pub(crate) struct Gate {
    judge: Judge,
    /// Addresses of the host, as they were told with the policy.
    own: Vec<IpAddr>,
    names: Server,
}

/// Where a connection of the guest goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// To somebody. `look`: what the guest says first must be looked at before anybody else hears of it. `facts`: what it
    /// was judged by.
    To {
        target: SocketAddr,
        look: bool,
        facts: Facts,
    },
    /// To our own name server.
    Names,
}

impl Gate {
    pub(crate) fn new(judge: Judge, names: Server) -> Gate {
        let own = judge.host().own.clone();
        Gate { judge, own, names }
    }

    /// Judges by another policy from now on, and asks others for names. What names were found to have stays known.
    pub(crate) fn renew(&mut self, judge: Judge, names: Settings) {
        self.own = judge.host().own.clone();
        self.judge = judge;
        self.names.renew(names);
    }

    /// The host has these addresses, too.
    pub(crate) fn set_own(&mut self, addresses: impl Iterator<Item = IpAddr>) {
        let mut own = self.own.clone();
        own.extend(addresses);
        self.judge.set_own(own);
    }

    /// The guest asks for a name.
    pub(crate) fn query(
        &mut self,
        now: Instant,
        client: u64,
        transport: Transport,
        message: &[u8],
    ) -> Vec<Output> {
        self.names
            .query(&self.judge, now, client, transport, message)
    }

    /// Somebody who was asked for a name has said something.
    pub(crate) fn answer(&mut self, now: Instant, exchange: u64, message: &[u8]) -> Vec<Output> {
        self.names.answer(&self.judge, now, exchange, message)
    }

    /// Somebody who was asked for a name will say nothing.
    pub(crate) fn names_failed(&mut self, now: Instant, exchange: u64) -> Vec<Output> {
        self.names.failed(now, exchange)
    }

    /// When [`Gate::names_tick`] is to be called.
    pub(crate) fn names_deadline(&self) -> Option<Instant> {
        self.names.deadline()
    }

    /// Somebody who was asked for a name has said nothing for too long.
    pub(crate) fn names_tick(&mut self, now: Instant) -> Vec<Output> {
        self.names.tick(now)
    }

    fn facts(&self, now: Instant, direction: Direction, protocol: Protocol, end: End) -> Facts {
        Facts {
            direction,
            protocol,
            address: end.address,
            port: (!protocol.is_icmp()).then_some(end.port),
            names: self.names.names(now, end.address),
            tls: Tls::Unseen,
        }
    }

    /// The verdict, which is told to the log.
    fn judge(&self, flow: &Flow, facts: Facts, log: &mut Log) -> Verdict {
        let verdict = self.judge.verdict(&facts);
        if verdict.allows() {
            log.allowed(*flow, facts, verdict);
        } else {
            log.deny(flow, &facts, verdict);
        }
        verdict
    }

    /// Where a connection of the guest goes, or a datagram. `None`: nowhere.
    pub(crate) fn egress(
        &mut self,
        network: &Network,
        flow: &Flow,
        protocol: Protocol,
        (now, log): (Instant, &mut Log),
    ) -> Option<Way> {
        if flow.remote.port == DNS_PORT {
            return Some(Way::Names);
        }
        let facts = self.facts(now, Direction::Egress, protocol, flow.remote);
        let verdict = self.judge(flow, facts.clone(), log);
        let target = SocketAddr::new(host_address(network, flow.remote.address), flow.remote.port);
        verdict.allows().then_some(Way::To {
            target,
            look: verdict.look,
            facts,
        })
    }

    /// A datagram of the guest goes nowhere, since nobody has the address. The log is told if the policy has a reason for it.
    pub(crate) fn nobody(&self, flow: &Flow, (now, log): (Instant, &mut Log)) {
        let facts = self.facts(now, Direction::Egress, Protocol::Udp, flow.remote);
        self.judge(flow, facts, log);
    }

    /// Whether a connection may go on, now that it is known what the guest says first: as facts to judge it by later.
    pub(crate) fn look(
        &mut self,
        flow: &Flow,
        tls: Tls,
        (now, log): (Instant, &mut Log),
    ) -> Option<Facts> {
        let facts = self.facts(now, Direction::Egress, Protocol::Tcp, flow.remote);
        let facts = Facts { tls, ..facts };
        let verdict = self.judge.verdict(&facts);
        if !verdict.allows() {
            log.deny(flow, &facts, verdict);
            return None;
        }
        Some(facts)
    }

    /// Whether what is open may stay, now that the policy is another. The names count that its address had when it was
    /// opened. What would have to be looked at, and was not, may not.
    pub(crate) fn stays(&self, flow: &Flow, facts: &Facts, log: &mut Log) -> bool {
        let verdict = self.judge.verdict(facts);
        let stays = verdict.allows() && !(verdict.look && facts.tls == Tls::Unseen);
        if !stays {
            log.deny(flow, facts, verdict);
        }
        stays
    }

    /// Whether the guest may ask somebody for an echo.
    pub(crate) fn ping(
        &mut self,
        guest: IpAddr,
        remote: IpAddr,
        (now, log): (Instant, &mut Log),
    ) -> bool {
        let protocol = if remote.is_ipv4() {
            Protocol::Icmpv4
        } else {
            Protocol::Icmpv6
        };
        let end = |address| End { address, port: 0 };
        let flow = Flow {
            guest: end(guest),
            remote: end(remote),
        };
        let facts = self.facts(now, Direction::Egress, protocol, flow.remote);
        self.judge(&flow, facts, log).allows()
    }

    /// Whether somebody may come to a published port, which is that of the flow's guest: what it was judged by.
    pub(crate) fn ingress(
        &mut self,
        flow: &Flow,
        peer: SocketAddr,
        protocol: Protocol,
        (now, log): (Instant, &mut Log),
    ) -> Option<Facts> {
        let caller = End {
            address: peer.ip().to_canonical(),
            port: flow.guest.port,
        };
        let facts = self.facts(now, Direction::Ingress, protocol, caller);
        let verdict = self.judge(flow, facts.clone(), log);
        verdict.allows().then_some(facts)
    }
}

/// The address of the host's sockets for an address that the guest uses.
fn host_address(network: &Network, address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) if network.is_gateway(address) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) if network.is_gateway(address) => Ipv6Addr::LOCALHOST.into(),
        _ => address,
    }
}
