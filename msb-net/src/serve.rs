//! `msb net serve`: builds the network stack from the arguments and runs it.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use libmsb::cli::error::Failure;
use libmsb::isolate::raise_file_limit;
use libmsb::net::args::NetArgs;
use libmsb::net::{dns, host_addresses};
use libmsb::samples::NetWriter;
use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd, ioctl_fionbio};
use rustix::rand::{GetRandomFlags, getrandom};

use crate::control::ControlSocket;
use crate::dns::DnsServer;
use crate::event_log::{EventLog, PortChange};
use crate::host_addresses::HostAddresses;
use crate::interceptor::InterceptorLink;
use crate::isolate;
use crate::policy_gate::PolicyGate;
use crate::policy_settings::engine_and_dns_settings;
use crate::published_port::PublishedPort;
use crate::stack::{Stack, StackConfig};
use libmsb::net::network::{
    Ipv4Network, Ipv6Network, MTU_MAX, NetSettings, Network, SETTINGS_BYTES_MAX,
};

/// Options of `serve`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  msb net serve --listen /run/guest.sock --net public,private")]
pub(crate) struct ServeArgs {
    /// Exchange frames on this descriptor, a connected stream socket
    #[arg(long, value_name = "N", group = "frames")]
    fd: Option<RawFd>,
    /// Accept one connection on this Unix socket and exchange frames on it
    ///
    /// A stale socket at this path is replaced.
    #[arg(long, value_name = "PATH", group = "frames")]
    listen: Option<PathBuf>,
    /// Connect to this Unix socket and exchange frames on it
    #[arg(long, value_name = "PATH", group = "frames")]
    connect: Option<PathBuf>,
    /// Read all other settings as JSON from this descriptor
    ///
    /// The format is in **SETTINGS**. Only --fd, --listen, --connect and the other descriptors can
    /// be given in addition.
    #[arg(
        long,
        value_name = "N",
        conflicts_with_all =
            ["address", "gateway", "prefix", "address6", "gateway6", "mtu", "no_ipv6"]
    )]
    settings_fd: Option<RawFd>,
    /// Set the IPv4 address of the guest
    #[arg(long, value_name = "ADDRESS", default_value = "172.16.0.2")]
    address: Ipv4Addr,
    /// Set the IPv4 address of the gateway, which represents the host
    #[arg(long, value_name = "ADDRESS", default_value = "172.16.0.1")]
    gateway: Ipv4Addr,
    /// Set the prefix length of the IPv4 network, in bits
    #[arg(long, value_name = "BITS", default_value_t = 30)]
    prefix: u8,
    /// Set the IPv6 address of the guest
    #[arg(long, value_name = "ADDRESS", default_value = "fd42:6d73:62::2")]
    address6: Ipv6Addr,
    /// Set the IPv6 address of the gateway
    #[arg(long, value_name = "ADDRESS", default_value = "fd42:6d73:62::1")]
    gateway6: Ipv6Addr,
    /// Disable IPv6
    #[arg(long)]
    no_ipv6: bool,
    /// Set the largest packet size (MTU), 1280 to 65520 bytes
    #[arg(long, value_name = "BYTES", default_value_t = MTU_MAX)]
    mtu: u16,
    /// Write events to this descriptor, one JSON object per line
    ///
    /// A slow reader loses events. See **EVENTS**.
    #[arg(long, value_name = "N")]
    events_fd: Option<RawFd>,
    /// Exit when the other end of this pipe is closed
    #[arg(long, value_name = "N")]
    life_fd: Option<RawFd>,
    /// Accept new settings on this connected SOCK_SEQPACKET socket
    ///
    /// The messages are in **CONTROL**.
    #[arg(long, value_name = "N")]
    control_fd: Option<RawFd>,
    /// Count bytes, packets and connections in this file, the sample file of a sandbox
    ///
    /// See msb-metrics(1).
    #[arg(long, value_name = "N")]
    samples_fd: Option<RawFd>,
    /// Write the confinement steps to this descriptor, a JSON array on one line
    ///
    /// The objects have the fields of `isolation` in msb-state(5).
    #[arg(long, value_name = "N")]
    report_fd: Option<RawFd>,
    /// Hand intercepted TLS connections over on this connected SOCK_SEQPACKET socket
    ///
    /// msb-intercept(8) has the other end. Without it intercepted connections are denied.
    #[arg(long, value_name = "N")]
    intercept_fd: Option<RawFd>,
    #[command(flatten)]
    net: NetArgs,
}

/// Serves one guest until it disconnects.
pub(crate) fn serve(args: &ServeArgs) -> anyhow::Result<()> {
    let settings = read_settings(args)?;
    settings.network.check().map_err(|error| Failure::usage(error.to_owned()))?;
    let ports = settings.ports.iter().map(|port| {
        let number = port.fd.context("a published port in the settings has no descriptor")?;
        let socket = take_inherited(number)?;
        ioctl_fionbio(&socket, true)?;
        Ok(PublishedPort { socket, host: port.host, guest: port.guest, transport: port.transport })
    });
    let ports = ports.collect::<anyhow::Result<Vec<PublishedPort>>>()?;
    let events = args.events_fd.map(take_inherited).transpose()?;
    if let Some(events) = &events {
        ioctl_fionbio(events, true).context("cannot use the descriptor for events")?;
    }
    let life = args.life_fd.map(take_inherited).transpose()?;
    let samples = args.samples_fd.map(take_inherited).transpose()?;
    let samples = samples.map(NetWriter::from_fd).transpose();
    let samples = samples.context("cannot use the descriptor for samples")?;
    let report = args.report_fd.map(take_inherited).transpose()?;
    let frames = open_frame_stream(args)?;
    ioctl_fionbio(&frames, true).context("cannot use the frame stream")?;
    // Each connection takes one descriptor.
    raise_file_limit();
    let interceptor = args.intercept_fd.map(take_inherited).transpose()?;
    let control = args.control_fd.map(take_inherited).transpose()?;
    let (engine, dns_settings) = engine_and_dns_settings(&settings);
    let dns = DnsServer::new(dns_settings, Box::new(random_id));
    let mut log = EventLog::new(events);
    ports.iter().for_each(|port| log.log_port(port, PortChange::Published));
    let host_addresses = HostAddresses::open();
    if let Err(error) = &host_addresses {
        let error = (*error).into();
        log.log_trouble("cannot watch the host's own addresses", &error);
    }
    let mut stack = Stack::new(StackConfig {
        frames,
        life_pipe: life,
        control: control.map(ControlSocket::new),
        host_addresses: host_addresses.ok(),
        samples,
        network: settings.network,
        gate: PolicyGate::new(engine, dns),
        log,
        ports,
        max_connections: settings.net.max_connections as usize,
        interceptor: interceptor.map(InterceptorLink::new),
    })?;
    isolate::confine(report.map(File::from))?;
    stack.run().map(drop)
}

/// Returns an unpredictable number.
fn random_id() -> Option<u16> {
    let mut bytes = [0; 2];
    let count = getrandom(&mut bytes[..], GetRandomFlags::empty()).ok()?;
    (count == bytes.len()).then(|| u16::from_ne_bytes(bytes))
}

fn read_settings(args: &ServeArgs) -> anyhow::Result<NetSettings> {
    let Some(number) = args.settings_fd else {
        return Ok(NetSettings {
            network: Network {
                gateway_mac: [2, 0x6d, 0x73, 0, 0, 1],
                guest_mac: [2, 0x6d, 0x73, 0, 0, 2],
                mtu: args.mtu,
                v4: Some(Ipv4Network {
                    guest: args.address,
                    gateway: args.gateway,
                    prefix: args.prefix,
                }),
                v6: (!args.no_ipv6).then_some(Ipv6Network {
                    guest: args.address6,
                    gateway: args.gateway6,
                    prefix: 64,
                }),
            },
            net: args.net.spec()?,
            own: host_addresses::addresses(),
            nameservers: dns::upstreams(&args.net.spec()?.dns)?,
            ports: Vec::new(),
        });
    };
    let mut bytes = Vec::new();
    File::from(take_inherited(number)?)
        .take(SETTINGS_BYTES_MAX)
        .read_to_end(&mut bytes)
        .context("cannot read the settings")?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Failure::usage(format!("invalid settings: {error}")).into())
}

fn open_frame_stream(args: &ServeArgs) -> anyhow::Result<OwnedFd> {
    if let Some(number) = args.fd {
        return take_inherited(number);
    }
    if let Some(path) = &args.connect {
        let socket = UnixStream::connect(path)
            .with_context(|| format!("cannot connect to '{}'", path.display()))?;
        return Ok(socket.into());
    }
    let Some(path) = &args.listen else {
        return Err(Failure::usage("no frame stream given")
            .hint("add --fd, --listen or --connect")
            .into());
    };
    let listener = listen(path)?;
    let accepted = listener.accept();
    // One guest is served, so the path is no longer needed.
    let _ = std::fs::remove_file(path);
    Ok(accepted.context("cannot accept a connection")?.0.into())
}

/// Listens at a path. A stale socket, left by a process that was killed while it waited, is
/// replaced.
fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    let mut bound = UnixListener::bind(path);
    if bound.as_ref().is_err_and(is_in_use) && is_stale_socket(path) {
        let _ = std::fs::remove_file(path);
        bound = UnixListener::bind(path);
    }
    bound.map_err(|error| {
        let message = format!("cannot listen at '{}': {error}", path.display());
        let failure = Failure::failed(message);
        if is_in_use(&error) {
            return failure.hint("choose another path, or remove the existing file").into();
        }
        failure.into()
    })
}

fn is_in_use(error: &io::Error) -> bool {
    error.kind() == ErrorKind::AddrInUse
}

/// Returns whether the path is a socket without a listener. A process that still listens is not
/// disturbed: a datagram socket has another type, which connect(2) refuses with `EPROTOTYPE`
/// instead of `ECONNREFUSED`. A file that is not a socket also gives `ECONNREFUSED`, so the type is
/// checked first.
fn is_stale_socket(path: &Path) -> bool {
    let is_socket = path.symlink_metadata().is_ok_and(|file| file.file_type().is_socket());
    let refused = |error: io::Error| error.kind() == ErrorKind::ConnectionRefused;
    let connect = || UnixDatagram::unbound()?.connect(path);
    is_socket && connect().is_err_and(refused)
}

/// Takes ownership of a descriptor inherited from the parent process.
fn take_inherited(number: RawFd) -> anyhow::Result<OwnedFd> {
    let wrong = || Failure::usage(format!("descriptor {number} is not open"));
    if number < 3 {
        return Err(wrong().into());
    }
    // SAFETY: the descriptor is only queried, and rejected if it is not open.
    let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
    fcntl_getfd(borrowed).map_err(|_| wrong())?;
    fcntl_setfd(borrowed, FdFlags::CLOEXEC).context("cannot set close-on-exec on a descriptor")?;
    // SAFETY: the descriptor is open, was passed to this process for this use, and each is taken
    // once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_stale_socket_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("guest.sock");
        let refused = |path: &Path| {
            let error = listen(path).unwrap_err();
            let hint = libmsb::cli::error::hint(&error).unwrap_or_default();
            assert!(hint.starts_with("choose another path"), "{error:#}");
        };
        let first = listen(&path).unwrap();
        refused(&path);
        // The waiting listener was not disturbed.
        first.set_nonblocking(true).unwrap();
        assert_eq!(first.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
        drop(first);
        drop(listen(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "mine").unwrap();
        refused(&path);
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("elsewhere", &path).unwrap();
        refused(&path);
    }
}
