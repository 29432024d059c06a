//! Published ports: listening sockets of the host, inherited from the parent process, that lead to
//! the guest.
//!
//! The guest sees the caller's own address where possible. Callers on the host itself, and those
//! whose address the guest could not answer (another family, or on-link), appear with the gateway's
//! address. The guest is called over IPv4 if it has it.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use libmsb::net::network::PassedPort;
use libmsb::net::rule::Protocol;
use rustix::event::epoll;
use rustix::io::{Errno, ioctl_fionbio};
use rustix::net::{RecvFlags, SocketFlags, acceptfrom_with, recvfrom};

use crate::context::StackContext;
use crate::event_log::PortChange;
use crate::flow::{Flow, FlowEndpoint};
use crate::host_sockets;
use crate::published_port::PublishedPort;
use crate::tcp::Tcp;
use crate::udp::Udp;
use libmsb::net::network::Network;

/// Limit of connections or datagrams accepted per turn.
const ACCEPTS_PER_TURN: usize = 64;
/// Number of other gateway ports to try when the caller's is in use.
const GATEWAY_PORTS_MAX: u16 = 64;
/// Lowest of those ports.
const GATEWAY_PORT_MIN: u16 = 1024;

/// Replaces the set of ports. `fresh` holds the sockets of new ports. Connections through removed
/// ports stay open.
pub(crate) fn apply(
    context: &mut StackContext,
    wanted: &[PassedPort],
    fresh: Vec<OwnedFd>,
) -> Result<(), String> {
    let mut fresh: Vec<Option<OwnedFd>> = fresh.into_iter().map(Some).collect();
    let mut added = Vec::new();
    for port in wanted {
        let Some(number) = port.fd else {
            if !context.ports.iter().flatten().any(|existing| existing.matches(port)) {
                return Err(format!("unknown port {}/{}", port.host, port.transport));
            }
            continue;
        };
        let socket = usize::try_from(number).ok().and_then(|slot| fresh.get_mut(slot)?.take());
        let socket = socket.ok_or_else(|| {
            format!("missing descriptor for the port {}/{}", port.host, port.transport)
        })?;
        ioctl_fionbio(&socket, true)
            .map_err(|error| format!("cannot use the socket of a port: {error}"))?;
        added.push(PublishedPort {
            socket,
            host: port.host,
            guest: port.guest,
            transport: port.transport,
        });
    }
    for slot in &mut context.ports {
        if let Some(port) = slot
            && !wanted.iter().any(|wanted| wanted.fd.is_none() && port.matches(wanted))
        {
            // Another process may hold the socket too, so closing it here would not remove it from
            // epoll.
            let _ = epoll::delete(&context.epoll, &port.socket);
            context.log.log_port(port, PortChange::Removed);
            *slot = None;
        }
    }
    for port in added {
        let number = context.ports.iter().position(Option::is_none);
        let number = number.unwrap_or(context.ports.len());
        context
            .watch_port(&port, number)
            .map_err(|error| format!("cannot watch the socket of a port: {error}"))?;
        if number == context.ports.len() {
            context.ports.push(None);
        }
        context.log.log_port(&port, PortChange::Published);
        context.ports[number] = Some(port);
    }
    Ok(())
}

/// Accepts connections at a published port.
pub(crate) fn accept_connections(context: &mut StackContext, tcp: &mut Tcp, number: u32) {
    for _ in 0..ACCEPTS_PER_TURN {
        let Some(Some(port)) = context.ports.get(number as usize) else {
            return;
        };
        let guest_port = port.guest;
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (socket, peer) = match acceptfrom_with(&port.socket, flags) {
            Ok((socket, Some(peer))) => (socket, peer),
            Ok(_) | Err(Errno::INTR | Errno::CONNABORTED) => continue,
            Err(Errno::AGAIN) => return,
            Err(error) => {
                context.log.log_trouble("cannot accept a connection", &error.into());
                return;
            }
        };
        let Ok(peer) = SocketAddr::try_from(peer) else {
            continue;
        };
        host_sockets::prepare(&socket);
        let flow =
            caller_flow(&context.emitter.network, guest_port, peer, |flow| tcp.contains(flow));
        let admitted = flow.and_then(|flow| {
            let log = (context.now, &mut context.log);
            let facts = context.gate.ingress(&flow, peer, Protocol::Tcp, log)?;
            Some((flow, facts))
        });
        match admitted {
            Some((flow, facts)) => tcp.open_inbound(context, (flow, facts), socket),
            None => host_sockets::break_off(socket),
        }
    }
}

/// Reads datagrams at a published port.
pub(crate) fn receive_datagrams(context: &mut StackContext, udp: &mut Udp, number: u32) {
    let mut buffer = std::mem::take(&mut context.scratch);
    for _ in 0..ACCEPTS_PER_TURN {
        let Some(Some(port)) = context.ports.get(number as usize) else {
            break;
        };
        let guest_port = port.guest;
        let Ok((count, _, Some(peer))) =
            recvfrom(&port.socket, &mut buffer[..], RecvFlags::DONTWAIT)
        else {
            break;
        };
        let Ok(peer) = SocketAddr::try_from(peer) else {
            continue;
        };
        // A flow with this pair of addresses may belong to another caller; the host's socket and
        // the peer tell.
        let flow = caller_flow(&context.emitter.network, guest_port, peer, |flow| {
            udp.is_taken(flow, number, peer)
        });
        let Some(flow) = flow else { continue };
        if !udp.contains(&flow) {
            let log = (context.now, &mut context.log);
            let Some(facts) = context.gate.ingress(&flow, peer, Protocol::Udp, log) else {
                continue;
            };
            udp.open_inbound(context, (flow, facts), (number, peer));
        }
        udp.forward_published(context, &flow, &buffer[..count]);
    }
    context.scratch = buffer;
}

/// Returns the flow of a caller, as the guest sees it.
fn caller_flow(
    network: &Network,
    guest_port: u16,
    peer: SocketAddr,
    is_used: impl Fn(&Flow) -> bool,
) -> Option<Flow> {
    let peer = FlowEndpoint::from(peer);
    let guest = match (network.v4, network.v6) {
        (Some(v4), _) => v4.guest.into(),
        (None, Some(v6)) => v6.guest.into(),
        (None, None) => return None,
    };
    let gateway = network.gateway(guest)?;
    let guest = FlowEndpoint { address: guest, port: guest_port };
    let hidden = peer.address.is_ipv4() != guest.address.is_ipv4()
        || peer.address.is_loopback()
        || network.is_on_link(peer.address);
    let direct = Flow { guest, remote: peer };
    if !hidden && !is_used(&direct) {
        return Some(direct);
    }
    let via_gateway = |port| Flow { guest, remote: FlowEndpoint { address: gateway, port } };
    let candidates = (0..GATEWAY_PORTS_MAX)
        .map(|number| peer.port.wrapping_add(number * 251).max(GATEWAY_PORT_MIN));
    candidates.map(via_gateway).find(|flow| !is_used(flow))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::network;

    fn remote(peer: &str, used: &[&str]) -> Option<String> {
        let used: Vec<SocketAddr> = used.iter().map(|text| text.parse().unwrap()).collect();
        let is_used = |flow: &Flow| used.contains(&flow.remote.into());
        caller_flow(&network(), 80, peer.parse().unwrap(), is_used)
            .map(|flow| SocketAddr::from(flow.remote).to_string())
    }

    #[test]
    fn a_caller_keeps_its_address_where_the_guest_can_answer_it() {
        assert_eq!(remote("10.1.2.3:4567", &[]).unwrap(), "10.1.2.3:4567");
        assert_eq!(remote("[::ffff:10.1.2.3]:4567", &[]).unwrap(), "10.1.2.3:4567");
        for hidden in ["127.0.0.1:4567", "[2001:db8::1]:4567", "172.16.0.2:4567", "172.16.0.1:4567"]
        {
            assert_eq!(remote(hidden, &[]).unwrap(), "172.16.0.1:4567", "{hidden}");
        }
    }

    #[test]
    fn two_callers_never_share_a_flow() {
        assert_eq!(remote("10.1.2.3:4567", &["10.1.2.3:4567"]).unwrap(), "172.16.0.1:4567");
        let other = remote("127.0.0.1:4567", &["172.16.0.1:4567"]).unwrap();
        assert!(other.starts_with("172.16.0.1:") && other != "172.16.0.1:4567", "{other}");
    }
}
