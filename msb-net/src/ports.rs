//! Published ports: sockets that listen on the host, handed in by whoever started us, and lead to the guest.
//!
//! The guest sees who calls by their own address, where that can be: a caller on the host itself, or one whose address the
//! guest could not answer (another family, one on the wire), comes from the gateway's. The guest is called by IPv4 where it
//! has it.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use libmsb::net::network::HandedPort;
use libmsb::net::ports::Transport;
use libmsb::net::rule::Protocol;
use rustix::event::epoll;
use rustix::io::{Errno, ioctl_fionbio};
use rustix::net::{RecvFlags, SocketFlags, acceptfrom_with, recvfrom};

use crate::flow::{End, Flow};
use crate::host;
use crate::log::PortChange;
use crate::tcp::Tcp;
use crate::udp::Udp;
use crate::world::World;
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
    /// What it is bound to.
    pub(crate) host: SocketAddr,
    pub(crate) guest: u16,
    pub(crate) transport: Transport,
}

/// Published ports, by their numbers. The number of one that is published no more is free for another.
pub(crate) type Ports = Vec<Option<Port>>;

/// Makes the ports those that are wanted: `fresh` has the sockets of those that are new. What came through a port that goes
/// stays.
pub(crate) fn renew(
    world: &mut World,
    wanted: &[HandedPort],
    fresh: Vec<OwnedFd>,
) -> Result<(), String> {
    let mut fresh: Vec<Option<OwnedFd>> = fresh.into_iter().map(Some).collect();
    let mut added = Vec::new();
    for port in wanted {
        let Some(number) = port.fd else {
            if !world.ports.iter().flatten().any(|had| had.is(port)) {
                return Err(format!(
                    "the port {}/{} is not there",
                    port.host, port.transport
                ));
            }
            continue;
        };
        let socket = usize::try_from(number)
            .ok()
            .and_then(|place| fresh.get_mut(place)?.take());
        let socket = socket
            .ok_or_else(|| format!("the port {}/{} did not come", port.host, port.transport))?;
        ioctl_fionbio(&socket, true).map_err(|error| format!("a port cannot be used: {error}"))?;
        added.push(Port {
            socket,
            host: port.host,
            guest: port.guest,
            transport: port.transport,
        });
    }
    for place in &mut world.ports {
        if let Some(port) = place
            && !wanted
                .iter()
                .any(|wanted| wanted.fd.is_none() && port.is(wanted))
        {
            // Whoever has the socket beside us keeps it in there otherwise.
            let _ = epoll::delete(&world.epoll, &port.socket);
            world.log.port(port, PortChange::Removed);
            *place = None;
        }
    }
    for port in added {
        let number = world.ports.iter().position(Option::is_none);
        let number = number.unwrap_or(world.ports.len());
        world
            .watch_port(&port, number)
            .map_err(|error| format!("a port cannot be watched: {error}"))?;
        if number == world.ports.len() {
            world.ports.push(None);
        }
        world.log.port(&port, PortChange::Published);
        world.ports[number] = Some(port);
    }
    Ok(())
}

impl Port {
    /// Whether it is that port, and leads to where that is to lead.
    fn is(&self, wanted: &HandedPort) -> bool {
        (self.host, self.transport, self.guest) == (wanted.host, wanted.transport, wanted.guest)
    }
}

/// Takes who calls at a port.
pub(crate) fn accept(world: &mut World, tcp: &mut Tcp, number: u32) {
    for _ in 0..TAKES {
        let Some(Some(port)) = world.ports.get(number as usize) else {
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
        let admitted = flow.and_then(|flow| {
            let told = (world.now, &mut world.log);
            let facts = world.gate.ingress(&flow, peer, Protocol::Tcp, told)?;
            Some((flow, facts))
        });
        match admitted {
            Some((flow, facts)) => tcp.accepted(world, (flow, facts), socket),
            None => host::break_off(socket),
        }
    }
}

/// Takes datagrams that came to a port.
pub(crate) fn receive(world: &mut World, udp: &mut Udp, number: u32) {
    let mut buffer = std::mem::take(&mut world.scratch);
    for _ in 0..TAKES {
        let Some(Some(port)) = world.ports.get(number as usize) else {
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
        let Some(flow) = flow else { continue };
        if !udp.has(&flow) {
            let told = (world.now, &mut world.log);
            let Some(facts) = world.gate.ingress(&flow, peer, Protocol::Udp, told) else {
                continue;
            };
            udp.admit(world, (flow, facts), (number, peer));
        }
        udp.published(world, &flow, &buffer[..count]);
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
