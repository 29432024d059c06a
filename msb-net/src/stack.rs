//! The network stack's event loop: frames of the guest, sockets of the host, and timers.
//!
//! One thread waits in one epoll_wait(2). A turn reads what has arrived, moves what can be moved,
//! and writes the resulting frames. Frames, bytes of one connection and new connections at one port
//! each have a limit per turn, so one busy peer cannot delay the others.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::Context;
use libmsb::net::ports::Transport;
use libmsb::samples::{NetField, NetWriter};
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventFlags};
use rustix::io::Errno;

use crate::busy_poll::BusyPoll;
use crate::context::{EventSource, SCRATCH_BYTES, StackContext, event_source};
use crate::control::{ControlMessage, ControlSocket};
use crate::device::{FrameReceiver, FrameTransmitter, ReceiveStatus};
use crate::dns::DnsRequestQueue;
use crate::emitter::PacketEmitter;
use crate::event_log::EventLog;
use crate::fragments::FragmentReassembler;
use crate::host_addresses::HostAddresses;
use crate::icmp::Icmp;
use crate::interceptor::InterceptorLink;
use crate::ip::{self, Frame, Packet, protocol};
use crate::neighbours::{arp, dhcp, discovery};
use crate::policy_gate::PolicyGate;
use crate::policy_settings::engine_and_dns_settings;
use crate::port_usage::PortUsage;
use crate::published_port::PublishedPort;
use crate::published_ports;
use crate::resolver::Resolver;
use crate::slab::SlabKey;
use crate::tcp::Tcp;
use crate::udp::{self, Udp};
use crate::verdict_facts::FactsBudget;
use libmsb::net::network::{NetSettings, Network};

/// Maximum number of events per epoll wait.
pub(crate) const EVENTS_MAX: usize = 256;
/// Delay before writing to a slow reader of the event log again.
const LOG_RETRY_DELAY: Duration = Duration::from_millis(100);

/// Events awaited on the frame stream, without writability: that would wake the loop whenever the
/// guest reads.
const FRAME_EVENTS: EventFlags = EventFlags::IN.union(EventFlags::RDHUP).union(EventFlags::ET);

/// Normal reason for the end of the event loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExitReason {
    /// The peer of the frame stream closed it.
    GuestGone,
    /// The process that started this one closed the life pipe.
    ParentGone,
}

/// The network stack of one guest.
pub(crate) struct Stack {
    context: StackContext,
    receiver: FrameReceiver,
    /// The frame stream may be readable.
    readable: bool,
    /// The peer has closed the frame stream; buffered frames may remain.
    hung_up: bool,
    busy_poll: BusyPoll,
    /// The loop waits until the frame stream is writable.
    waits_for_room: bool,
    fragments: FragmentReassembler,
    tcp: Tcp,
    udp: Udp,
    icmp: Icmp,
    resolver: Resolver,
    life_pipe: Option<OwnedFd>,
    control: Option<ControlSocket>,
    host_addresses: Option<HostAddresses>,
    /// Counters of the sandbox's sample file, if one was given.
    samples: Option<NetWriter>,
}

/// Parameters of [`Stack::new`].
pub(crate) struct StackConfig {
    pub(crate) frames: OwnedFd,
    pub(crate) life_pipe: Option<OwnedFd>,
    pub(crate) control: Option<ControlSocket>,
    pub(crate) host_addresses: Option<HostAddresses>,
    pub(crate) samples: Option<NetWriter>,
    pub(crate) network: Network,
    pub(crate) gate: PolicyGate,
    pub(crate) log: EventLog,
    pub(crate) ports: Vec<PublishedPort>,
    pub(crate) max_connections: usize,
    pub(crate) interceptor: Option<InterceptorLink>,
}

impl Stack {
    pub(crate) fn new(config: StackConfig) -> anyhow::Result<Stack> {
        let epoll = epoll::create(CreateFlags::CLOEXEC).context("cannot wait for events")?;
        let context = StackContext {
            epoll,
            emitter: PacketEmitter::new(config.network, FrameTransmitter::new(config.frames)),
            gate: config.gate,
            facts_budget: FactsBudget::default(),
            log: config.log,
            ports: config.ports.into_iter().map(Some).collect(),
            dns_requests: DnsRequestQueue::default(),
            now: Instant::now(),
            scratch: vec![0; SCRATCH_BYTES].into_boxed_slice(),
            port_usage: PortUsage::default(),
            interceptor: config.interceptor,
        };
        let watched = || -> Result<(), Errno> {
            context.watch(
                context.emitter.transmitter.socket(),
                EventSource::Frames,
                0,
                FRAME_EVENTS,
            )?;
            if let Some(life_pipe) = &config.life_pipe {
                context.watch(life_pipe.as_fd(), EventSource::LifePipe, 0, EventFlags::IN)?;
            }
            if let Some(control) = &config.control {
                context.watch(control.socket(), EventSource::ControlSocket, 0, EventFlags::IN)?;
            }
            if let Some(host_addresses) = &config.host_addresses {
                context.watch(
                    host_addresses.socket(),
                    EventSource::HostAddresses,
                    0,
                    EventFlags::IN,
                )?;
            }
            for (number, port) in context.ports.iter().enumerate() {
                port.iter().try_for_each(|port| context.watch_port(port, number))?;
            }
            Ok(())
        };
        watched().context("cannot watch a descriptor")?;
        let mut stack = Stack {
            context,
            receiver: FrameReceiver::new(),
            readable: true,
            hung_up: false,
            busy_poll: BusyPoll::new(),
            waits_for_room: false,
            fragments: FragmentReassembler::default(),
            tcp: Tcp::new(config.max_connections),
            udp: Udp::new(),
            icmp: Icmp::new(),
            resolver: Resolver::new(),
            life_pipe: config.life_pipe,
            control: config.control,
            host_addresses: config.host_addresses,
            samples: config.samples,
        };
        stack.update_gate_addresses();
        Ok(stack)
    }

    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn tcp(&self) -> &Tcp {
        &self.tcp
    }

    #[cfg(test)]
    pub(crate) fn udp(&self) -> &Udp {
        &self.udp
    }

    /// Accepts a connection at a published port.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn open_inbound(
        &mut self,
        judged: (crate::flow::Flow, crate::policy::ConnectionFacts),
        socket: OwnedFd,
    ) {
        self.tcp.open_inbound(&mut self.context, judged, socket);
    }

    /// Passes the host's current addresses to the policy gate.
    fn update_gate_addresses(&mut self) {
        if let Some(host_addresses) = &self.host_addresses {
            self.context.gate.set_host_addresses(host_addresses.addresses());
        }
    }

    /// Handles a change of the host's addresses.
    fn update_host_addresses(&mut self) {
        let buffer = &mut self.context.scratch;
        if self.host_addresses.as_mut().is_some_and(|host_addresses| host_addresses.update(buffer))
        {
            self.update_gate_addresses();
            self.recheck_open();
        }
    }

    /// Serves the guest until one side closes.
    pub(crate) fn run(&mut self) -> anyhow::Result<ExitReason> {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        loop {
            let timeout = self.timeout();
            if let Some(end) = self.step(&mut events, timeout.as_ref())? {
                return Ok(end);
            }
        }
    }

    /// Waits for events and handles them.
    pub(crate) fn step(
        &mut self,
        events: &mut Vec<Event>,
        timeout: Option<&Timespec>,
    ) -> anyhow::Result<Option<ExitReason>> {
        events.clear();
        let interactive = self.tcp.take_interactive();
        let epoll = &self.context.epoll;
        match self.busy_poll.wait(epoll, events, timeout, interactive) {
            Ok(()) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for events"),
        }
        self.context.now = Instant::now();
        for event in events.iter() {
            if let Some(end) = self.handle_event(event) {
                return Ok(Some(end));
            }
        }
        self.run_turn().context("the frame stream failed")
    }

    /// Does all work that is possible without waiting.
    fn run_turn(&mut self) -> io::Result<Option<ExitReason>> {
        if self.readable && self.receive_frames()? == ReceiveStatus::Closed {
            return Ok(Some(ExitReason::GuestGone));
        }
        self.tcp.serve_ready(&mut self.context)?;
        self.tcp.tick(&mut self.context)?;
        self.udp.tick(&mut self.context);
        self.icmp.tick(self.context.now);
        self.resolver.serve_requests(&mut self.context);
        self.context.log.flush();
        let flushed = self.context.emitter.transmitter.flush();
        self.publish_counters();
        match flushed {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                Ok(Some(ExitReason::GuestGone))
            }
            Err(error) => Err(error),
            Ok(()) => self.wait_for_room().map(|()| None),
        }
    }

    /// Writes the traffic counters to the sample file. Echoes count as the frames that carry them.
    fn publish_counters(&mut self) {
        let Some(samples) = &mut self.samples else {
            return;
        };
        let published_at = self.context.port_usage.last_used_ns();
        let (to_guest, from_guest) = (&self.context.emitter.transmitter, &self.receiver);
        let counters = samples.counters();
        for (field, value) in [
            (NetField::RxBytes, to_guest.bytes),
            (NetField::TxBytes, from_guest.bytes),
            (NetField::RxPackets, to_guest.frames),
            (NetField::TxPackets, from_guest.frames),
            (NetField::Connections, self.tcp.opened_total() + self.udp.opened_total()),
            (NetField::Denied, self.context.log.denied),
            (NetField::Open, (self.tcp.len() + self.udp.len()) as u64),
            (NetField::PublishedOpen, self.context.port_usage.open),
            (NetField::PublishedAtNs, published_at),
        ] {
            counters.set(field, value);
        }
        samples.publish();
    }

    /// Awaits writability of the frame stream while it is blocked, and only then.
    fn wait_for_room(&mut self) -> io::Result<()> {
        let blocked = self.context.emitter.transmitter.is_blocked();
        if blocked != self.waits_for_room {
            self.waits_for_room = blocked;
            let flags = if blocked { FRAME_EVENTS | EventFlags::OUT } else { FRAME_EVENTS };
            self.context.watch_frames(flags)?;
        }
        Ok(())
    }

    /// Returns the time until the next deadline; zero if there is work to do now.
    fn timeout(&self) -> Option<Timespec> {
        if self.readable || self.tcp.has_ready(&self.context) {
            return Some(Timespec::default());
        }
        let log = self.context.log.is_waiting().then(|| self.context.now + LOG_RETRY_DELAY);
        let deadlines = [
            self.tcp.deadline(),
            self.udp.deadline(),
            self.icmp.deadline(),
            self.resolver.deadline(&self.context),
            log,
        ];
        let deadline = deadlines.into_iter().flatten().min()?;
        let left = deadline.saturating_duration_since(Instant::now());
        Some(Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) })
    }

    /// Handles messages on the control socket.
    fn handle_control(&mut self) {
        let Some(mut control) = self.control.take() else {
            return;
        };
        loop {
            match control.next_message() {
                ControlMessage::NetSettings(settings, ports) => {
                    control.answer(self.apply_settings(*settings, ports).err());
                }
                ControlMessage::Malformed(why) => control.answer(Some(why)),
                ControlMessage::Empty => break,
                // The peer closed the control socket. The end of the parent process shows on the
                // life pipe.
                ControlMessage::Closed => return,
                ControlMessage::Failed(error) => {
                    let log = &mut self.context.log;
                    return log.log_trouble("cannot read new settings", &error.into());
                }
            }
        }
        self.control = Some(control);
    }

    /// Judges open connections and flows again.
    fn recheck_open(&mut self) {
        self.tcp.recheck_policy(&mut self.context);
        self.udp.recheck_policy(&mut self.context);
    }

    /// Applies new settings: policy, name servers, published ports and the connection limit.
    fn apply_settings(
        &mut self,
        settings: NetSettings,
        new_sockets: Vec<OwnedFd>,
    ) -> Result<(), String> {
        let context = &mut self.context;
        let unchanged = (settings.network.v4, settings.network.v6, settings.network.mtu);
        if unchanged
            != (context.emitter.network.v4, context.emitter.network.v6, context.emitter.network.mtu)
        {
            return Err("cannot change the addresses of a running network".to_owned());
        }
        published_ports::apply(context, &settings.ports, new_sockets)?;
        let (engine, dns_settings) = engine_and_dns_settings(&settings);
        context.gate.apply_settings(engine, dns_settings);
        self.update_gate_addresses();
        self.tcp.set_max_connections(settings.net.max_connections as usize);
        self.recheck_open();
        Ok(())
    }

    /// Dispatches an epoll event to its source.
    fn handle_event(&mut self, event: &Event) -> Option<ExitReason> {
        let (source, data) = event_source(event)?;
        let (key, flags) = (SlabKey::from_bits(data), event.flags);
        let context = &mut self.context;
        match source {
            EventSource::Frames => {
                self.readable |= !(flags & !EventFlags::OUT).is_empty();
                self.hung_up |= flags.contains(EventFlags::RDHUP);
                if flags.contains(EventFlags::OUT) {
                    context.emitter.transmitter.set_writable();
                }
            }
            EventSource::LifePipe => {
                return self.life_pipe.is_some().then_some(ExitReason::ParentGone);
            }
            EventSource::Tcp => self.tcp.handle_event(context, key, flags),
            EventSource::Udp => self.udp.handle_event(context, key),
            EventSource::Echo => self.icmp.handle_event(context, key),
            EventSource::DnsStream => self.resolver.handle_stream(context, key),
            EventSource::DnsUpstream => self.resolver.handle_upstream(context, key),
            EventSource::ControlSocket => self.handle_control(),
            EventSource::HostAddresses => self.update_host_addresses(),
            EventSource::PublishedPort => {
                let number = data as u32;
                let port = context.ports.get(number as usize).and_then(Option::as_ref);
                match port.map(|port| port.transport) {
                    Some(Transport::Tcp) => {
                        published_ports::accept_connections(context, &mut self.tcp, number)
                    }
                    Some(Transport::Udp) => {
                        published_ports::receive_datagrams(context, &mut self.udp, number)
                    }
                    None => {}
                }
            }
        }
        None
    }

    /// Reads the frame stream once and handles the frames.
    fn receive_frames(&mut self) -> io::Result<ReceiveStatus> {
        let received = self.receiver.fill(self.context.emitter.transmitter.socket())?;
        self.readable =
            received == ReceiveStatus::More || (self.hung_up && received == ReceiveStatus::Last);
        while let Some(range) = self.receiver.next_frame()? {
            let frame = self.receiver.bytes(range.clone());
            match ip::parse(frame) {
                Some(Frame::Arp(packet)) => arp::answer(&mut self.context.emitter, packet),
                Some(Frame::Ip(packet)) => {
                    let offset = packet.payload.as_ptr().addr() - frame.as_ptr().addr();
                    handle_packet(
                        &mut self.context,
                        (&mut self.tcp, &mut self.udp, &mut self.icmp, &mut self.fragments),
                        &packet,
                        Some(range.start + offset),
                    );
                }
                None => {}
            }
        }
        self.tcp.deliver_batches(self.receiver.buffer());
        Ok(received)
    }
}

type Protocols<'a> = (&'a mut Tcp, &'a mut Udp, &'a mut Icmp, &'a mut FragmentReassembler);

/// Handles an IP packet of the guest. `offset`: position of its payload in the receive buffer, if
/// it is there.
fn handle_packet(
    context: &mut StackContext,
    protocols: Protocols<'_>,
    packet: &Packet<'_>,
    offset: Option<usize>,
) {
    // Two protocols work before the guest has an address.
    if packet.protocol == protocol::ICMPV6
        && packet.fragment.is_none()
        && discovery::answer(&mut context.emitter, packet)
    {
        return;
    }
    if packet.protocol == protocol::UDP
        && packet.fragment.is_none()
        && dhcp::answer(&mut context.emitter, packet)
    {
        return;
    }
    let network = &context.emitter.network;
    if !network.is_guest(packet.source) {
        return;
    }
    if is_undeliverable(network, packet) {
        return udp::log_undeliverable(context, packet);
    }
    // The guest's hardware address is the one it last sent from.
    context.emitter.network.guest_mac = packet.mac;
    let (tcp, udp, icmp, fragments) = protocols;
    if let Some(fragment) = packet.fragment {
        if let Some(payload) = fragments.add(packet, fragment, context.now) {
            let reassembled = Packet { fragment: None, payload: &payload, ..*packet };
            handle_packet(context, (tcp, udp, icmp, fragments), &reassembled, None);
        }
        return;
    }
    match packet.protocol {
        protocol::TCP => tcp.handle_packet(context, packet, offset),
        protocol::UDP => udp.handle_packet(context, packet),
        protocol::ICMP | protocol::ICMPV6 => icmp.handle_packet(context, packet),
        _ => {}
    }
}

/// Returns whether the destination is multicast, broadcast, or an on-link address other than the
/// gateway.
fn is_undeliverable(network: &Network, packet: &Packet<'_>) -> bool {
    let address = packet.destination;
    let broadcast = matches!(address, std::net::IpAddr::V4(address) if address.is_broadcast());
    address.is_multicast()
        || broadcast
        || (network.is_on_link(address) && !network.is_gateway(address))
}
