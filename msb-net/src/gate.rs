//! The gate: each connection and each flow is judged here before anything of the host is touched for it.
//!
//! The gateway's address stands for the host: what is allowed to go there goes to the host's loopback.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use libmsb::net::rule::{Direction, Protocol};

use crate::flow::{End, Flow};
use crate::log::Log;
use crate::policy::{Facts, Judge, Tls, Verdict};
use libmsb::net::network::Network;

/// The port of name servers.
pub(crate) const DNS_PORT: u16 = 53;

/// What judges.
pub(crate) struct Gate {
    judge: Judge,
}

impl Gate {
    pub(crate) fn new(judge: Judge) -> Gate {
        Gate { judge }
    }

    /// Another policy, from now on: what was allowed before goes on.
    pub(crate) fn replace(&mut self, judge: Judge) {
        self.judge = judge;
    }

    fn judge(&self, direction: Direction, protocol: Protocol, end: End) -> Verdict {
        self.judge.verdict(&Facts {
            direction,
            protocol,
            address: end.address,
            port: Some(end.port),
            names: Vec::new(),
            tls: Tls::Unseen,
        })
    }

    /// Where a connection of the guest goes. `None`: nowhere.
    pub(crate) fn tcp(
        &mut self,
        network: &Network,
        flow: &Flow,
        log: &mut Log,
    ) -> Option<SocketAddr> {
        self.egress(network, flow, Protocol::Tcp, log)
    }

    /// Where a datagram of the guest goes. `None`: nowhere.
    pub(crate) fn udp(
        &mut self,
        network: &Network,
        flow: &Flow,
        log: &mut Log,
    ) -> Option<SocketAddr> {
        self.egress(network, flow, Protocol::Udp, log)
    }

    fn egress(
        &self,
        network: &Network,
        flow: &Flow,
        protocol: Protocol,
        log: &mut Log,
    ) -> Option<SocketAddr> {
        let verdict = self.judge(Direction::Egress, protocol, flow.remote);
        // A question for a name is no connection: whoever comes here with one has found no name server.
        if !verdict.allows() || flow.remote.port == DNS_PORT {
            log.deny(
                flow,
                &protocol.to_string(),
                verdict.rule,
                verdict.reason.text(),
            );
            return None;
        }
        Some(SocketAddr::new(
            host_address(network, flow.remote.address),
            flow.remote.port,
        ))
    }

    /// Whether the guest may ask somebody for an echo.
    pub(crate) fn ping(&mut self, guest: IpAddr, remote: IpAddr, log: &mut Log) -> bool {
        let protocol = if remote.is_ipv4() {
            Protocol::Icmpv4
        } else {
            Protocol::Icmpv6
        };
        let verdict = self.judge.verdict(&Facts {
            direction: Direction::Egress,
            protocol,
            address: remote,
            port: None,
            names: Vec::new(),
            tls: Tls::Unseen,
        });
        if !verdict.allows() {
            let end = |address| End { address, port: 0 };
            let flow = Flow {
                guest: end(guest),
                remote: end(remote),
            };
            log.deny(
                &flow,
                &protocol.to_string(),
                verdict.rule,
                verdict.reason.text(),
            );
        }
        verdict.allows()
    }

    /// Whether somebody may come to a published port, which is that of the flow's guest.
    pub(crate) fn ingress(
        &mut self,
        flow: &Flow,
        peer: SocketAddr,
        protocol: Protocol,
        log: &mut Log,
    ) -> bool {
        let facts = End {
            address: peer.ip().to_canonical(),
            port: flow.guest.port,
        };
        let verdict = self.judge(Direction::Ingress, protocol, facts);
        if !verdict.allows() {
            log.deny(
                flow,
                &protocol.to_string(),
                verdict.rule,
                verdict.reason.text(),
            );
        }
        verdict.allows()
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
