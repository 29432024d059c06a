//! The network of a sandbox: the settings of `msb-net`, and its process.
//!
//! Published ports are bound here, before anything else of the sandbox exists: a port in use fails
//! the start and leaves nothing behind. `msb-net` gets everything as a descriptor, so that it needs
//! no files and no privileges.

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
    NetSettings, Network, PACKET_DESCRIPTORS_MAX, PACKET_PORTS, PACKET_SETTINGS, PassedPort,
    SettingsReply,
};
use libmsb::net::ports::{PublishedPort, Transport};
use libmsb::net::{HOST_ALIAS, NetSpec, host_addresses};
use libmsb::samples::{self, NetField};
use libmsb::state::sandboxes::Sandbox;
use libmsb::state::spec::Spec;
use msb_wire::boot::{BootAddress, BootNet};
use rustix::fs::{MemfdFlags, SeekFrom, memfd_create, seek};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    SocketType, bind, ipproto, listen, recv, sendmsg, socket_with, socketpair, sockopt,
};

use crate::intercept::{InterceptProcess, Interception};
use crate::process::child_process::ChildProcess;

/// Backlog of a published port: the longest queue of pending connections. The kernel has its own
/// limit.
const BACKLOG: i32 = 4096;

/// Longest answer of `msb-net`, in bytes.
const ANSWER_BYTES_MAX: usize = 4096;

/// A network whose published ports are bound.
pub(crate) struct SandboxNetwork {
    spec: NetSpec,
    network: Network,
    ports: Vec<(OwnedFd, PublishedPort)>,
    nameservers: Vec<SocketAddr>,
    /// Search domains of the guest, which are read with the name servers.
    search: Vec<String>,
    /// The host's own addresses.
    own: Vec<IpAddr>,
    /// TLS interception.
    interception: Option<Interception>,
}

impl SandboxNetwork {
    /// Binds the ports and finds the name servers. Returns `None` if the sandbox has no network.
    pub(crate) fn prepare(
        sandbox: &Sandbox,
        spec: &Spec,
        secrets: Option<OwnedFd>,
    ) -> anyhow::Result<Option<SandboxNetwork>> {
        let interception = Interception::prepare(sandbox, spec, secrets)?;
        let (name, spec) = (&spec.name, &spec.net);
        if !spec.enabled {
            return Ok(None);
        }
        let mut network = Network::of_sandbox(name, spec);
        if !host_has_v6() {
            network.v6 = None;
        }
        let ports = spec.ports.iter().flat_map(|ports| ports.each());
        let ports =
            ports.map(|port| Ok((bind_port(&port)?, port))).collect::<Result<Vec<_>, Failure>>()?;
        let search = dns::search_domains(&spec.dns);
        Ok(Some(SandboxNetwork {
            spec: spec.clone(),
            network,
            ports,
            nameservers: dns::upstreams(&spec.dns)?,
            search: search.iter().map(|name| name.as_str().to_owned()).collect(),
            own: host_addresses::addresses(),
            interception,
        }))
    }

    /// Forgets the values of secrets, once the guest is up.
    pub(crate) fn forget_values(&mut self) {
        self.interception.iter_mut().for_each(Interception::forget_values);
    }

    /// Returns the network's specification.
    pub(crate) fn spec(&self) -> &NetSpec {
        &self.spec
    }

    /// Returns this network with changes that can be applied while the sandbox runs: another
    /// policy, other name servers and ports on the same link. Also returns the indexes of the new
    /// ports, which are already bound.
    pub(crate) fn with_changes(
        &self,
        spec: NetSpec,
        nameservers: Vec<SocketAddr>,
        own: Vec<IpAddr>,
    ) -> anyhow::Result<(SandboxNetwork, Vec<usize>)> {
        let same = spec.enabled
            && (spec.ipv4_pool, spec.ipv6_pool) == (self.spec.ipv4_pool, self.spec.ipv6_pool);
        if !same {
            let message =
                "cannot change the addresses or enable or disable the network of a running sandbox";
            return Err(Failure::wrong_state(message).into());
        }
        if spec.tls != self.spec.tls {
            let message = "cannot change secrets and TLS interception of a running sandbox";
            return Err(Failure::wrong_state(message).into());
        }
        let mut ports = Vec::new();
        let mut new_ports = Vec::new();
        for port in spec.ports.iter().flat_map(|ports| ports.each()) {
            let existing = self.ports.iter().find(|(_, existing)| *existing == port);
            let socket = match existing {
                Some((socket, _)) => {
                    socket.try_clone().context("cannot duplicate the socket of a port")?
                }
                None => {
                    new_ports.push(ports.len());
                    bind_port(&port)?
                }
            };
            ports.push((socket, port));
        }
        let (network, search) = (self.network.clone(), self.search.clone());
        // The process of the interception goes on, and is not started again.
        let interception = None;
        let net = SandboxNetwork { network, own, spec, ports, nameservers, search, interception };
        Ok((net, new_ports))
    }

    /// Sends the new settings to `msb-net`, which answers later.
    pub(crate) fn send_settings(
        &self,
        process: &NetProcess,
        new_ports: &[usize],
    ) -> anyhow::Result<()> {
        let index = |at: usize| new_ports.iter().position(|new| *new == at);
        let settings =
            self.settings_file(|at, _| index(at).and_then(|index| i32::try_from(index).ok()))?;
        let sockets: Vec<BorrowedFd<'_>> =
            new_ports.iter().map(|at| self.ports[*at].0.as_fd()).collect();
        for chunk in sockets.chunks(PACKET_DESCRIPTORS_MAX) {
            process.send(PACKET_PORTS, chunk)?;
        }
        process.send(PACKET_SETTINGS, &[settings.as_fd()])
    }

    /// Returns the network device of the VM.
    pub(crate) fn device(&self, frames: &OwnedFd) -> machine::NetDevice {
        machine::NetDevice { fd: frames.as_raw_fd(), mac: self.network.guest_mac }
    }

    /// Returns the network settings of the guest's boot configuration.
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
            // One name server is enough: every gateway address reaches the same resolver.
            nameservers: gateways.clone().take(1).collect(),
            search: self.search.clone(),
            hosts: gateways.map(|gateway| (gateway, HOST_ALIAS.to_owned())).collect(),
            addresses,
        }
    }

    /// Starts `msb-net`, and before it `msb-intercept` if TLS is intercepted. The process ends when the life pipe is closed, counts in a page of the
    /// sample file, and reports its confinement steps.
    pub(crate) fn start(
        &self,
        life: BorrowedFd<'_>,
        counters: OwnedFd,
        report: BorrowedFd<'_>,
    ) -> anyhow::Result<NetProcess> {
        let (frames, theirs) = UnixStream::pair().context("cannot create a socket for frames")?;
        let (events, events_theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .context("cannot create a pipe")?;
        rustix::io::ioctl_fionbio(&events, true)?;
        let (control, control_theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .context("cannot create a socket for the network")?;
        let settings = self.settings_file(|_, socket| Some(socket.as_raw_fd()))?;
        let intercept = self.interception.as_ref();
        let mut intercept = intercept.map(|settings| settings.start(life, report)).transpose()?;
        let intercepted = intercept.as_mut().and_then(|process| process.connections.take());
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
        if let Some(socket) = &intercepted {
            args.extend(["--intercept-fd".to_owned(), socket.as_raw_fd().to_string()]);
            inherited.push(socket.as_fd());
        }
        inherited.extend(self.ports.iter().map(|(socket, _)| socket.as_fd()));
        Ok(NetProcess {
            process: ChildProcess::start("msb-net", &args, &inherited)?,
            events: events.into(),
            control,
            counters: counters.into(),
            frames: Some(frames.into()),
            intercept,
        })
    }

    /// Writes the settings to a file, with the descriptor number of each port's socket as given by
    /// `name`.
    fn settings_file(&self, name: impl Fn(usize, &OwnedFd) -> Option<i32>) -> anyhow::Result<File> {
        let settings = NetSettings {
            network: self.network.clone(),
            net: self.spec.clone(),
            own: self.own.clone(),
            nameservers: self.nameservers.clone(),
            ports: self
                .ports
                .iter()
                .enumerate()
                .map(|(at, (socket, port))| PassedPort {
                    fd: name(at, socket),
                    host: port.host,
                    guest: port.guest,
                    transport: port.transport,
                })
                .collect(),
        };
        let file = memfd_create("msb-net", MemfdFlags::CLOEXEC)
            .context("cannot create the network's settings file")?;
        let mut file = File::from(file);
        file.write_all(&serde_json::to_vec(&settings)?)
            .context("cannot write the network's settings file")?;
        seek(&file, SeekFrom::Start(0)).context("cannot write the network's settings file")?;
        Ok(file)
    }
}

/// The process of a network.
#[derive(Debug)]
pub(crate) struct NetProcess {
    pub(crate) process: ChildProcess,
    /// Pipe of events, one per line.
    pub(crate) events: File,
    /// Socket that takes new settings and returns an answer to each.
    pub(crate) control: OwnedFd,
    /// Counters page of the sample file.
    counters: File,
    /// The VM's end of the frame stream, until the VM has taken it.
    pub(crate) frames: Option<OwnedFd>,
    /// The process that intercepts TLS, if there is one.
    pub(crate) intercept: Option<InterceptProcess>,
}

impl NetProcess {
    fn send(&self, kind: u8, descriptors: &[BorrowedFd<'_>]) -> anyhow::Result<()> {
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PACKET_DESCRIPTORS_MAX))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
        let flags = SendFlags::NOSIGNAL;
        sendmsg(&self.control, &[IoSlice::new(&[kind])], &mut ancillary, flags)
            .map(drop)
            .context("cannot send settings to msb-net")
    }

    /// Returns the time of the last use of a published port: the current time while a connection is
    /// open.
    pub(crate) fn last_published_use(&self) -> Option<Instant> {
        let counters = samples::read_net(&self.counters)?;
        let now = Instant::now();
        if counters.get(NetField::PublishedOpen)? > 0 {
            return Some(now);
        }
        let ago = samples::boot_ns().checked_sub(counters.get(NetField::PublishedAtNs)?)?;
        now.checked_sub(Duration::from_nanos(ago))
    }

    /// Returns the answer to the last settings, if one has arrived.
    pub(crate) fn answer(&self) -> Option<SettingsReply> {
        let mut bytes = [0; ANSWER_BYTES_MAX];
        let (count, _) = recv(&self.control, &mut bytes[..], RecvFlags::DONTWAIT).ok()?;
        serde_json::from_slice(&bytes[..count]).ok()
    }
}

/// Binds a published port on the host.
fn bind_port(port: &PublishedPort) -> Result<OwnedFd, Failure> {
    try_bind(port).map_err(|error| {
        let failure = Failure::failed(format!(
            "cannot publish port {}/{}: {}",
            port.host,
            port.transport,
            libmsb::cli::error::clean(&error.to_string())
        ));
        match error.kind() {
            io::ErrorKind::AddrInUse => {
                failure.hint("choose another host port, or stop the program that listens there")
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
        // Each address family is published separately.
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if port.transport == Transport::Tcp {
        // Lingering connections in TIME_WAIT do not keep the port busy. For UDP this option would
        // let two sockets share the port.
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
