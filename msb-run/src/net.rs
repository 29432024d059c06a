//! The network of a sandbox: what `msb-net` is told, and its process.
//!
//! Published ports are bound here, before anything else of the sandbox is there: one that is in use ends the start with
//! nothing left behind. Everything reaches `msb-net` as a descriptor, so that it needs no files and no privileges.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use anyhow::Context;
use libmsb::cli::error::Failure;
use libmsb::machine;
use libmsb::net::dns;
use libmsb::net::network::{HandedPort, Network, Settings};
use libmsb::net::ports::{PublishedPort, Transport};
use libmsb::net::{HOST_ALIAS, NetSpec, own};
use msb_wire::boot::{BootAddress, BootNet};
use rustix::fs::{MemfdFlags, SeekFrom, memfd_create, seek};
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, ipproto, listen, socket_with, sockopt,
};

use crate::supervisor::process::Process;

/// Callers that wait at a published port, at most; the system has a bound of its own.
const BACKLOG: i32 = 4096;

/// A network whose ports are bound.
pub(crate) struct Net {
    spec: NetSpec,
    network: Network,
    ports: Vec<(OwnedFd, PublishedPort)>,
    nameservers: Vec<SocketAddr>,
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
        }))
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

    /// Starts `msb-net`, which ends when the life pipe is closed, and counts in the sample file, if there is one.
    pub(crate) fn start(
        &self,
        life: BorrowedFd<'_>,
        samples: Option<BorrowedFd<'_>>,
    ) -> anyhow::Result<NetProcess> {
        let (frames, theirs) = UnixStream::pair().context("cannot make a socket for frames")?;
        let (events, events_theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .context("cannot make a pipe")?;
        rustix::io::ioctl_fionbio(&events, true)?;
        let settings = self.settings_file()?;
        let mut args = vec!["serve".to_owned()];
        for (option, descriptor) in [
            ("--fd", Some(theirs.as_fd())),
            ("--settings-fd", Some(settings.as_fd())),
            ("--events-fd", Some(events_theirs.as_fd())),
            ("--life-fd", Some(life)),
            ("--samples-fd", samples),
        ] {
            if let Some(descriptor) = descriptor {
                args.extend([option.to_owned(), descriptor.as_raw_fd().to_string()]);
            }
        }
        let mut inherited = vec![
            theirs.as_fd(),
            settings.as_fd(),
            events_theirs.as_fd(),
            life,
        ];
        inherited.extend(samples);
        inherited.extend(self.ports.iter().map(|(socket, _)| socket.as_fd()));
        Ok(NetProcess {
            process: Process::start("msb-net", &args, &inherited)?,
            events: events.into(),
            frames: Some(frames.into()),
        })
    }

    fn settings_file(&self) -> anyhow::Result<File> {
        let settings = Settings {
            network: self.network.clone(),
            net: self.spec.clone(),
            own: own::addresses(),
            nameservers: self.nameservers.clone(),
            ports: self
                .ports
                .iter()
                .map(|(socket, port)| HandedPort {
                    fd: socket.as_raw_fd(),
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
    /// The machine's end of the frame stream, until it has it.
    pub(crate) frames: Option<OwnedFd>,
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
