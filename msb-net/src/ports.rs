//! Published ports: sockets that listen on the host, handed in by whoever started us, and lead to the guest.
//!
//! The guest sees who calls by their own address, where that can be: a caller on the host itself, or one whose address the
//! guest could not answer (another family, one on the wire), comes from the gateway's. The guest is called by IPv4 where it
//! has it.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use libmsb::net::ports::Transport;
use libmsb::net::rule::Protocol;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SocketFlags, acceptfrom_with, recvfrom};

use crate::flow::{End, Flow};
use crate::host;
use crate::stack::World;
use crate::tcp::Tcp;
use crate::udp::Udp;
use libmsb::net::network::Network;

/// Callers, or datagrams, that are taken in a turn.
const TAKES: usize = 64;
/// Other ports of the gateway that are tried when a caller's is in use.
const TRIES: u16 = 64;
/// The first of those.
const PORTS_FROM: u16 = 1024;

/// A published port.
pub(crate) struct Port {
    /// Listens, or takes datagrams.
    pub(crate) socket: OwnedFd,
    pub(crate) guest: u16,
    pub(crate) transport: Transport,
}

/// Takes who calls at a port.
pub(crate) fn accept(world: &mut World, tcp: &mut Tcp, number: u32) {
    for _ in 0..TAKES {
        let Some(port) = world.ports.get(number as usize) else {
            return;
        };
        let guest_port = port.guest;
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (socket, peer) = match acceptfrom_with(&port.socket, flags) {
            Ok((socket, Some(peer))) => (socket, peer),
            Ok(_) | Err(Errno::INTR | Errno::CONNABORTED) => continue,
            Err(Errno::AGAIN) => return,
            Err(error) => {
                world
                    .log
                    .trouble("cannot accept a connection", &error.into());
                return;
            }
        };
        let Ok(peer) = SocketAddr::try_from(peer) else {
            continue;
        };
        host::prepare(&socket);
        let flow = flow_of(&world.network, guest_port, peer, |flow| tcp.has(flow));
        match flow {
            Some(flow)
                if world
                    .gate
                    .ingress(&flow, peer, Protocol::Tcp, (world.now, &mut world.log)) =>
            {
                tcp.accepted(world, flow, socket);
            }
            _ => host::break_off(socket),
        }
    }
}

/// Takes datagrams that came to a port.
pub(crate) fn receive(world: &mut World, udp: &mut Udp, number: u32) {
    let mut buffer = std::mem::take(&mut world.scratch);
    for _ in 0..TAKES {
        let Some(port) = world.ports.get(number as usize) else {
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
        // A flow that is there is this caller's or another's of the same face: who is it is told by the socket's side.
        let flow = flow_of(&world.network, guest_port, peer, |flow| {
            udp.is_of_another(flow, number, peer)
        });
        if let Some(flow) = flow
            && (udp.has(&flow)
                || world
                    .gate
                    .ingress(&flow, peer, Protocol::Udp, (world.now, &mut world.log)))
        {
            udp.published(world, flow, (number, peer), &buffer[..count]);
        }
    }
    world.scratch = buffer;
}

/// The flow of a caller: as the guest is to see it.
fn flow_of(
    network: &Network,
    guest_port: u16,
    peer: SocketAddr,
    is_used: impl Fn(&Flow) -> bool,
) -> Option<Flow> {
    let peer = End::from(peer);
    let guest = match (network.v4, network.v6) {
        (Some(v4), _) => v4.guest.into(),
        (None, Some(v6)) => v6.guest.into(),
        (None, None) => return None,
    };
    let gateway = network.gateway(guest)?;
    let guest = End {
        address: guest,
        port: guest_port,
    };
    let hidden = peer.address.is_ipv4() != guest.address.is_ipv4()
        || peer.address.is_loopback()
        || network.is_on_link(peer.address);
    let own = Flow {
        guest,
        remote: peer,
    };
    if !hidden && !is_used(&own) {
        return Some(own);
    }
    let by_gateway = |port| Flow {
        guest,
        remote: End {
            address: gateway,
            port,
        },
    };
    let others = (0..TRIES).map(|number| peer.port.wrapping_add(number * 251).max(PORTS_FROM));
    others.map(by_gateway).find(|flow| !is_used(flow))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::network;

    fn remote(peer: &str, used: &[&str]) -> Option<String> {
        let used: Vec<SocketAddr> = used.iter().map(|text| text.parse().unwrap()).collect();
        let is_used = |flow: &Flow| used.contains(&flow.remote.into());
        flow_of(&network(), 80, peer.parse().unwrap(), is_used)
            .map(|flow| SocketAddr::from(flow.remote).to_string())
    }

    #[test]
    fn a_caller_keeps_its_address_where_the_guest_can_answer_it() {
        assert_eq!(remote("10.1.2.3:4567", &[]).unwrap(), "10.1.2.3:4567");
        assert_eq!(
            remote("[::ffff:10.1.2.3]:4567", &[]).unwrap(),
            "10.1.2.3:4567"
        );
        for hidden in [
            "127.0.0.1:4567",
            "[2001:db8::1]:4567",
            "172.16.0.2:4567",
            "172.16.0.1:4567",
        ] {
            assert_eq!(remote(hidden, &[]).unwrap(), "172.16.0.1:4567", "{hidden}");
        }
    }

    #[test]
    fn two_callers_are_never_one() {
        assert_eq!(
            remote("10.1.2.3:4567", &["10.1.2.3:4567"]).unwrap(),
            "172.16.0.1:4567"
        );
        let other = remote("127.0.0.1:4567", &["172.16.0.1:4567"]).unwrap();
        assert!(
            other.starts_with("172.16.0.1:") && other != "172.16.0.1:4567",
            "{other}"
        );
    }
}
