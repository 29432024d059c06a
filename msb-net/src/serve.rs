//! `msb-net serve`: from what was typed or handed in to a stack that runs.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use libmsb::cli::error::Failure;
use libmsb::net::args::NetArgs;
use libmsb::net::{dns, own};
use libmsb::samples::NetWriter;
use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd, ioctl_fionbio};
use rustix::rand::{GetRandomFlags, getrandom};

use crate::address::HostFacts;
use crate::control::Control;
use crate::dns::Server;
use crate::gate::Gate;
use crate::isolate;
use crate::log::{Log, PortChange};
use crate::own::Own;
use crate::policy::Judge;
use crate::ports::Port;
use crate::stack::{Parts, Stack};
use libmsb::net::network::{MTU_MAX, Network, SETTINGS_BYTES_MAX, Settings, V4, V6};

/// What is typed.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  msb-net serve --listen /run/guest.sock --net public,private")]
pub(crate) struct ServeArgs {
    /// Frames come and go on this descriptor, a connected stream socket
    #[arg(long, value_name = "N", group = "frames")]
    fd: Option<RawFd>,
    /// Wait for one connection at this Unix socket, and serve it
    #[arg(long, value_name = "PATH", group = "frames")]
    listen: Option<PathBuf>,
    /// Connect to this Unix socket
    #[arg(long, value_name = "PATH", group = "frames")]
    connect: Option<PathBuf>,
    /// Everything else, as JSON, on this descriptor; see SETTINGS in msb-net(1)
    #[arg(long, value_name = "N", conflicts_with_all = ["address", "gateway", "prefix", "address6", "gateway6", "mtu", "no_ipv6"])]
    settings_fd: Option<RawFd>,
    /// The guest's IPv4 address
    #[arg(long, default_value = "172.16.0.2")]
    address: Ipv4Addr,
    /// The gateway's, which stands for the host
    #[arg(long, default_value = "172.16.0.1")]
    gateway: Ipv4Addr,
    /// Bits of the network's prefix
    #[arg(long, default_value_t = 30)]
    prefix: u8,
    /// The guest's IPv6 address
    #[arg(long, default_value = "fd42:6d73:62::2")]
    address6: Ipv6Addr,
    /// The gateway's
    #[arg(long, default_value = "fd42:6d73:62::1")]
    gateway6: Ipv6Addr,
    /// No IPv6
    #[arg(long)]
    no_ipv6: bool,
    /// Largest packet, in bytes
    #[arg(long, default_value_t = MTU_MAX)]
    mtu: u16,
    /// Write events here, a JSON object a line
    #[arg(long, value_name = "N")]
    events_fd: Option<RawFd>,
    /// End when the other end of this pipe is closed
    #[arg(long, value_name = "N")]
    life_fd: Option<RawFd>,
    /// Take new settings over this connected socket of packets; see CONTROL in msb-net(1)
    #[arg(long, value_name = "N")]
    control_fd: Option<RawFd>,
    /// Count what goes through in this file, the samples of a sandbox
    #[arg(long, value_name = "N")]
    samples_fd: Option<RawFd>,
    /// Write here what was given up before serving, a JSON array on a line
    #[arg(long, value_name = "N")]
    report_fd: Option<RawFd>,
    #[command(flatten)]
    net: NetArgs,
}

/// Serves one guest to its end.
pub(crate) fn serve(args: &ServeArgs) -> anyhow::Result<()> {
    let settings = settings(args)?;
    settings
        .network
        .check()
        .map_err(|error| Failure::usage(error.to_owned()))?;
    let ports = settings.ports.iter().map(|port| {
        let number = port.fd.context("a port has no descriptor")?;
        let socket = inherited(number)?;
        ioctl_fionbio(&socket, true)?;
        Ok(Port {
            socket,
            host: port.host,
            guest: port.guest,
            transport: port.transport,
        })
    });
    let ports = ports.collect::<anyhow::Result<Vec<Port>>>()?;
    let events = args.events_fd.map(inherited).transpose()?;
    if let Some(events) = &events {
        ioctl_fionbio(events, true).context("cannot use the descriptor for events")?;
    }
    let life = args.life_fd.map(inherited).transpose()?;
    let samples = args.samples_fd.map(inherited).transpose()?;
    let samples = samples.map(NetWriter::from_fd).transpose();
    let samples = samples.context("cannot use the descriptor for samples")?;
    let report = args.report_fd.map(inherited).transpose()?;
    let frames = frames(args)?;
    ioctl_fionbio(&frames, true).context("cannot use the frame stream")?;
    raise_descriptor_limit();
    let control = args.control_fd.map(inherited).transpose()?;
    let (judge, names) = judges(&settings);
    let names = Server::new(names, Box::new(random));
    let mut log = Log::new(events);
    ports
        .iter()
        .for_each(|port| log.port(port, PortChange::Published));
    let own = Own::open();
    if let Err(error) = &own {
        let error = (*error).into();
        log.trouble("cannot watch the host's own addresses", &error);
    }
    let mut stack = Stack::new(Parts {
        frames,
        life,
        control: control.map(Control::new),
        own: own.ok(),
        samples,
        network: settings.network,
        gate: Gate::new(judge, names),
        log,
        ports,
        max_connections: settings.net.max_connections as usize,
    })?;
    isolate::while_serving(report.map(File::from))?;
    stack.run().map(drop)
}

/// A number that nobody can guess.
fn random() -> Option<u16> {
    let mut bytes = [0; 2];
    let count = getrandom(&mut bytes[..], GetRandomFlags::empty()).ok()?;
    (count == bytes.len()).then(|| u16::from_ne_bytes(bytes))
}

/// Who judges, and who is asked for names.
pub(crate) fn judges(settings: &Settings) -> (Judge, crate::dns::Settings) {
    let host = HostFacts {
        gateways: settings.network.gateways(),
        own: settings.own.clone(),
        nat64: settings.net.nat64.clone(),
    };
    let judge = Judge::new(
        settings.net.policy.clone(),
        settings.net.dns.rebind_protection,
        host,
    );
    let names = crate::dns::Settings {
        upstreams: settings.nameservers.clone(),
        timeout: Duration::from_millis(u64::from(settings.net.dns.query_timeout_ms)),
    };
    (judge, names)
}

fn settings(args: &ServeArgs) -> anyhow::Result<Settings> {
    let Some(number) = args.settings_fd else {
        return Ok(Settings {
            network: Network {
                gateway_mac: [2, 0x6d, 0x73, 0, 0, 1],
                guest_mac: [2, 0x6d, 0x73, 0, 0, 2],
                mtu: args.mtu,
                v4: Some(V4 {
                    guest: args.address,
                    gateway: args.gateway,
                    prefix: args.prefix,
                }),
                v6: (!args.no_ipv6).then_some(V6 {
                    guest: args.address6,
                    gateway: args.gateway6,
                    prefix: 64,
                }),
            },
            net: args.net.spec()?,
            own: own::addresses(),
            nameservers: dns::upstreams(&args.net.spec()?.dns)?,
            ports: Vec::new(),
        });
    };
    let mut bytes = Vec::new();
    File::from(inherited(number)?)
        .take(SETTINGS_BYTES_MAX)
        .read_to_end(&mut bytes)
        .context("cannot read the settings")?;
    serde_json::from_slice(&bytes).map_err(|error| {
        Failure::usage(format!("the settings cannot be understood: {error}")).into()
    })
}

fn frames(args: &ServeArgs) -> anyhow::Result<OwnedFd> {
    if let Some(number) = args.fd {
        return inherited(number);
    }
    if let Some(path) = &args.connect {
        let socket = UnixStream::connect(path)
            .with_context(|| format!("cannot connect to '{}'", path.display()))?;
        return Ok(socket.into());
    }
    let Some(path) = &args.listen else {
        return Err(Failure::usage("nothing says where the frames are")
            .hint("give --fd, --listen or --connect")
            .into());
    };
    let listener = listen(path)?;
    let accepted = listener.accept();
    // One guest is served, so nobody needs the name any more.
    let _ = std::fs::remove_file(path);
    Ok(accepted.context("cannot accept a connection")?.0.into())
}

/// Listens at a path, in the place of a socket that one of us has left there who was killed while it waited.
fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    let mut bound = UnixListener::bind(path);
    if bound.as_ref().is_err_and(is_in_use) && is_left_over(path) {
        let _ = std::fs::remove_file(path);
        bound = UnixListener::bind(path);
    }
    bound.map_err(|error| {
        let message = format!("cannot listen at '{}': {error}", path.display());
        let failure = Failure::failed(message);
        if is_in_use(&error) {
            return failure
                .hint("choose another path, or take away what is there")
                .into();
        }
        failure.into()
    })
}

fn is_in_use(error: &io::Error) -> bool {
    error.kind() == ErrorKind::AddrInUse
}

/// Whether it is a socket that nobody has any more. Who still waits there is not disturbed: a datagram is of another type,
/// which is refused otherwise (`EPROTOTYPE`, connect(2)). A file that is no socket refuses as one that is left over.
fn is_left_over(path: &Path) -> bool {
    let is_socket = path
        .symlink_metadata()
        .is_ok_and(|file| file.file_type().is_socket());
    let refused = |error: io::Error| error.kind() == ErrorKind::ConnectionRefused;
    let connect = || UnixDatagram::unbound()?.connect(path);
    is_socket && connect().is_err_and(refused)
}

/// A descriptor that whoever started us left open for us.
fn inherited(number: RawFd) -> anyhow::Result<OwnedFd> {
    let wrong = || Failure::usage(format!("there is no descriptor {number}"));
    if number < 3 {
        return Err(wrong().into());
    }
    // SAFETY: the number is only looked at, and refused if there is no such descriptor.
    let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
    fcntl_getfd(borrowed).map_err(|_| wrong())?;
    fcntl_setfd(borrowed, FdFlags::CLOEXEC).context("cannot use a descriptor")?;
    // SAFETY: it is open, it was handed over for us, and each is taken once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// A connection is a descriptor: as many as the system allows.
pub(crate) fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Where it fails there are fewer connections.
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_nobody_has_any_more_is_taken_over_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("guest.sock");
        let refused = |path: &Path| {
            let error = listen(path).unwrap_err();
            let hint = libmsb::cli::error::hint(&error).unwrap_or_default();
            assert!(hint.starts_with("choose another path"), "{error:#}");
        };
        let first = listen(&path).unwrap();
        refused(&path);
        // The one that waits was not disturbed.
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
