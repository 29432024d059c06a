//! The network of a sandbox: what `msb-net` is told, and its process.
//!
//! Published ports are bound here, before anything else of the sandbox is there: one that is in use ends the start with
//! nothing left behind. Everything reaches `msb-net` as a descriptor, so that it needs no files and no privileges.

use std::fs::{self, File};
use std::io::{self, IoSlice, Write};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::Context;
use libmsb::cli::error::Failure;
use libmsb::machine;
use libmsb::net::dns;
use libmsb::net::network::{
    Answer, HandedPort, Network, PACKET_DESCRIPTORS_MAX, PACKET_PORTS, PACKET_SETTINGS, Settings,
};
use libmsb::net::ports::{PublishedPort, Transport};
use libmsb::net::{HOST_ALIAS, NetSpec, own};
use libmsb::samples::{self, NetField};
use msb_wire::boot::{BootAddress, BootNet};
use rustix::fs::{MemfdFlags, SeekFrom, memfd_create, seek};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    SocketType, bind, ipproto, listen, recv, sendmsg, socket_with, socketpair, sockopt,
};

use crate::supervisor::process::Process;

/// Callers that wait at a published port, at most; the system has a bound of its own.
const BACKLOG: i32 = 4096;

/// Longest answer of `msb-net`, in bytes.
const ANSWER_BYTES_MAX: usize = 4096;

/// A network whose ports are bound.
pub(crate) struct Net {
    spec: NetSpec,
    network: Network,
    ports: Vec<(OwnedFd, PublishedPort)>,
    nameservers: Vec<SocketAddr>,
    /// The host's own addresses.
    own: Vec<IpAddr>,
}

impl Net {
    /// Binds the ports and finds the name servers. `None`: the sandbox has no network.
    pub(crate) fn prepare(name: &str, spec: &NetSpec) -> anyhow::Result<Option<Net>> {
        if !spec.enabled {
            return Ok(None);
        }
        let mut network = Network::of_sandbox(name, spec);
        if !host_has_v6() {
            network.v6 = None;
        }
        let ports = spec.ports.iter().flat_map(|ports| ports.each());
        let ports = ports
            .map(|port| Ok((bound(&port)?, port)))
            .collect::<Result<Vec<_>, Failure>>()?;
        Ok(Some(Net {
            spec: spec.clone(),
            network,
            ports,
            nameservers: dns::upstreams(&spec.dns)?,
            own: own::addresses(),
        }))
    }

    /// What it should be.
    pub(crate) fn spec(&self) -> &NetSpec {
        &self.spec
    }

    /// The network that this one can become while it runs: the same wire, and another policy, name servers and ports. Gives
    /// also the places of the ports that are new, which are bound already.
    pub(crate) fn renewed(
        &self,
        spec: NetSpec,
        nameservers: Vec<SocketAddr>,
        own: Vec<IpAddr>,
    ) -> anyhow::Result<(Net, Vec<usize>)> {
        let same = spec.enabled
            && (spec.ipv4_pool, spec.ipv6_pool) == (self.spec.ipv4_pool, self.spec.ipv6_pool);
        if !same {
            let message = "addresses, and whether there is a network, do not change while it runs";
            return Err(Failure::wrong_state(message).into());
        }
        let mut ports = Vec::new();
        let mut new_ports = Vec::new();
        for port in spec.ports.iter().flat_map(|ports| ports.each()) {
            let had = self.ports.iter().find(|(_, had)| *had == port);
            let socket = match had {
                Some((socket, _)) => socket.try_clone().context("cannot keep a port")?,
                None => {
                    new_ports.push(ports.len());
                    bound(&port)?
                }
            };
            ports.push((socket, port));
        }
        let net = Net {
            network: self.network.clone(),
            own,
            spec,
            ports,
            nameservers,
        };
        Ok((net, new_ports))
    }

    /// Tells `msb-net` that the network is this one now. It answers later.
    pub(crate) fn tell(&self, process: &NetProcess, new_ports: &[usize]) -> anyhow::Result<()> {
        let place = |at: usize| new_ports.iter().position(|new| *new == at);
        let settings =
            self.settings_file(|at, _| place(at).and_then(|place| i32::try_from(place).ok()))?;
        let sockets: Vec<BorrowedFd<'_>> = new_ports
            .iter()
            .map(|at| self.ports[*at].0.as_fd())
            .collect();
        for some in sockets.chunks(PACKET_DESCRIPTORS_MAX) {
            process.send(PACKET_PORTS, some)?;
        }
        process.send(PACKET_SETTINGS, &[settings.as_fd()])
    }

    /// The device, as the machine gets it.
    pub(crate) fn device(&self, frames: &OwnedFd) -> machine::Net {
        machine::Net {
            fd: frames.as_raw_fd(),
            mac: self.network.guest_mac,
        }
    }

    /// What the guest is told.
    pub(crate) fn boot(&self) -> BootNet {
        let v4 = self.network.v4.map(|v4| BootAddress {
            address: v4.guest.into(),
            prefix: v4.prefix,
            gateway: v4.gateway.into(),
        });
        let v6 = self.network.v6.map(|v6| BootAddress {
            address: v6.guest.into(),
            prefix: v6.prefix,
            gateway: v6.gateway.into(),
        });
        let addresses: Vec<BootAddress> = v4.into_iter().chain(v6).collect();
        let gateways = addresses.iter().map(|entry| entry.gateway);
        BootNet {
            mac: self.network.guest_mac,
            mtu: u32::from(self.network.mtu),
            // One is enough: it is the same server by any address.
            nameservers: gateways.clone().take(1).collect(),
            hosts: gateways
                .map(|gateway| (gateway, HOST_ALIAS.to_owned()))
                .collect(),
            addresses,
        }
    }

    /// Starts `msb-net`, which ends when the life pipe is closed, counts in a page of the sample file, and reports what it
    /// has given up.
    pub(crate) fn start(
        &self,
        life: BorrowedFd<'_>,
        counters: OwnedFd,
        report: BorrowedFd<'_>,
    ) -> anyhow::Result<NetProcess> {
        let (frames, theirs) = UnixStream::pair().context("cannot make a socket for frames")?;
        let (events, events_theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .context("cannot make a pipe")?;
        rustix::io::ioctl_fionbio(&events, true)?;
        let (control, control_theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .context("cannot make a socket for the network")?;
        let settings = self.settings_file(|_, socket| Some(socket.as_raw_fd()))?;
        let mut args = vec!["serve".to_owned()];
        let mut inherited = Vec::new();
        for (option, descriptor) in [
            ("--fd", theirs.as_fd()),
            ("--settings-fd", settings.as_fd()),
            ("--events-fd", events_theirs.as_fd()),
            ("--control-fd", control_theirs.as_fd()),
            ("--life-fd", life),
            ("--samples-fd", counters.as_fd()),
            ("--report-fd", report),
        ] {
            args.extend([option.to_owned(), descriptor.as_raw_fd().to_string()]);
            inherited.push(descriptor);
        }
        inherited.extend(self.ports.iter().map(|(socket, _)| socket.as_fd()));
        Ok(NetProcess {
            process: Process::start("msb-net", &args, &inherited)?,
            events: events.into(),
            control,
            counters: counters.into(),
            frames: Some(frames.into()),
        })
    }

    /// The settings, with what they call the ports' sockets.
    fn settings_file(&self, name: impl Fn(usize, &OwnedFd) -> Option<i32>) -> anyhow::Result<File> {
        let settings = Settings {
            network: self.network.clone(),
            net: self.spec.clone(),
            own: self.own.clone(),
            nameservers: self.nameservers.clone(),
            ports: self
                .ports
                .iter()
                .enumerate()
                .map(|(at, (socket, port))| HandedPort {
                    fd: name(at, socket),
                    host: port.host,
                    guest: port.guest,
                    transport: port.transport,
                })
                .collect(),
        };
        let file = memfd_create("msb-net", MemfdFlags::CLOEXEC)
            .context("cannot make the network's file")?;
        let mut file = File::from(file);
        file.write_all(&serde_json::to_vec(&settings)?)
            .context("cannot write the network's file")?;
        seek(&file, SeekFrom::Start(0)).context("cannot write the network's file")?;
        Ok(file)
    }
}

/// The process of a network.
#[derive(Debug)]
pub(crate) struct NetProcess {
    pub(crate) process: Process,
    /// What happens, a line each.
    pub(crate) events: File,
    /// Takes new settings, and gives an answer to each.
    pub(crate) control: OwnedFd,
    /// What it counts.
    counters: File,
    /// The machine's end of the frame stream, until it has it.
    pub(crate) frames: Option<OwnedFd>,
}

impl NetProcess {
    fn send(&self, kind: u8, descriptors: &[BorrowedFd<'_>]) -> anyhow::Result<()> {
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PACKET_DESCRIPTORS_MAX))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
        let flags = SendFlags::NOSIGNAL;
        sendmsg(
            &self.control,
            &[IoSlice::new(&[kind])],
            &mut ancillary,
            flags,
        )
        .map(drop)
        .context("cannot tell msb-net")
    }

    /// When a published port was used last: now, while somebody is connected.
    pub(crate) fn published_use(&self) -> Option<Instant> {
        let counters = samples::read_net(&self.counters)?;
        let now = Instant::now();
        if counters.get(NetField::PublishedOpen)? > 0 {
            return Some(now);
        }
        let ago = samples::boot_ns().checked_sub(counters.get(NetField::PublishedAtNs)?)?;
        now.checked_sub(Duration::from_nanos(ago))
    }

    /// What became of the settings that it was told.
    pub(crate) fn answer(&self) -> Option<Answer> {
        let mut bytes = [0; ANSWER_BYTES_MAX];
        let (count, _) = recv(&self.control, &mut bytes[..], RecvFlags::DONTWAIT).ok()?;
        serde_json::from_slice(&bytes[..count]).ok()
    }
}

/// Binds a port of the host.
fn bound(port: &PublishedPort) -> Result<OwnedFd, Failure> {
    try_bind(port).map_err(|error| {
        let failure = Failure::failed(format!(
            "cannot publish the port {}/{}: {}",
            port.host,
            port.transport,
            libmsb::cli::error::clean(&error.to_string())
        ));
        match error.kind() {
            io::ErrorKind::AddrInUse => {
                failure.hint("choose another port of the host, or end what listens there")
            }
            _ => failure,
        }
    })
}

fn try_bind(port: &PublishedPort) -> io::Result<OwnedFd> {
    let family = match port.host {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let (kind, protocol) = match port.transport {
        Transport::Tcp => (SocketType::STREAM, ipproto::TCP),
        Transport::Udp => (SocketType::DGRAM, ipproto::UDP),
    };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, Some(protocol))?;
    if port.host.is_ipv6() {
        // Each family is published by itself.
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if port.transport == Transport::Tcp {
        // Connections of before that linger do not keep the port busy. (With UDP two could share it.)
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    bind(&socket, &port.host)?;
    if port.transport == Transport::Tcp {
        listen(&socket, BACKLOG)?;
    }
    Ok(socket)
}

fn host_has_v6() -> bool {
    fs::exists("/proc/net/if_inet6").unwrap_or(false)
}
