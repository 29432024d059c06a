//! The loop: frames of the guest, sockets of the host, and time.
//!
//! One thread waits in one place (epoll). A turn takes what has come, moves what can be moved, and writes the frames that
//! came of it. Whatever there is much of (frames, bytes of one connection, callers at one port) has a bound in each turn, so
//! that nobody waits for somebody else's flood.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::Context;
use libmsb::net::ports::Transport;
use libmsb::samples::{NetField, NetWriter};
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventFlags};
use rustix::io::Errno;

use crate::control::{Control, Word};
use crate::device::{Received, Receiver, Transmitter};
use crate::fragments::Fragments;
use crate::gate::Gate;
use crate::icmp::Icmp;
use crate::ip::{self, Frame, Packet, protocol};
use crate::kept::Keeper;
use crate::log::Log;
use crate::neighbours;
use crate::own::Own;
use crate::patience::Patience;
use crate::ports::{self, Port};
use crate::resolver::Resolver;
use crate::serve;
use crate::slab::Key;
use crate::tcp::Tcp;
use crate::udp::{self, Udp};
use crate::world::{Kind, Published, SCRATCH_BYTES, World, whose};
use libmsb::net::network::{Network, Settings};

/// Events that are taken at once.
pub(crate) const EVENTS: usize = 256;
/// A slow reader of events is tried again after so long.
const LOG_PAUSE: Duration = Duration::from_millis(100);

/// What is waited for at the frame stream, but for room: that would wake us whenever the guest takes something.
const FRAMES: EventFlags = EventFlags::IN
    .union(EventFlags::RDHUP)
    .union(EventFlags::ET);

/// Why it came to an end that is none of our errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The other side of the frame stream is gone.
    GuestGone,
    /// Whoever started us is gone.
    StarterGone,
}

/// Everything.
pub(crate) struct Stack {
    world: World,
    receiver: Receiver,
    /// The frame stream may have something.
    readable: bool,
    /// Its end is behind what is there.
    hung_up: bool,
    patience: Patience,
    /// We wait for it to take more.
    waits: bool,
    fragments: Fragments,
    tcp: Tcp,
    udp: Udp,
    icmp: Icmp,
    resolver: Resolver,
    life: Option<OwnedFd>,
    control: Option<Control>,
    own: Option<Own>,
    /// Where it is counted what goes through, if anybody wants to know.
    samples: Option<NetWriter>,
}

/// What a stack is made of.
pub(crate) struct Parts {
    pub(crate) frames: OwnedFd,
    pub(crate) life: Option<OwnedFd>,
    pub(crate) control: Option<Control>,
    pub(crate) own: Option<Own>,
    pub(crate) samples: Option<NetWriter>,
    pub(crate) network: Network,
    pub(crate) gate: Gate,
    pub(crate) log: Log,
    pub(crate) ports: Vec<Port>,
    pub(crate) max_connections: usize,
}

impl Stack {
    pub(crate) fn new(parts: Parts) -> anyhow::Result<Stack> {
        let epoll = epoll::create(CreateFlags::CLOEXEC).context("cannot wait for events")?;
        let world = World {
            epoll,
            network: parts.network,
            transmitter: Transmitter::new(parts.frames),
            gate: parts.gate,
            keeper: Keeper::default(),
            log: parts.log,
            ports: parts.ports.into_iter().map(Some).collect(),
            asked: Vec::new(),
            now: Instant::now(),
            scratch: vec![0; SCRATCH_BYTES].into_boxed_slice(),
            piece_id: 0,
            published: Published::default(),
        };
        let watched = || -> Result<(), Errno> {
            world.watch(world.transmitter.socket(), Kind::Frames, 0, FRAMES)?;
            if let Some(life) = &parts.life {
                world.watch(life.as_fd(), Kind::Life, 0, EventFlags::IN)?;
            }
            if let Some(control) = &parts.control {
                world.watch(control.socket(), Kind::Control, 0, EventFlags::IN)?;
            }
            if let Some(own) = &parts.own {
                world.watch(own.socket(), Kind::Own, 0, EventFlags::IN)?;
            }
            for (number, port) in world.ports.iter().enumerate() {
                port.iter()
                    .try_for_each(|port| world.watch_port(port, number))?;
            }
            Ok(())
        };
        watched().context("cannot watch a descriptor")?;
        let mut stack = Stack {
            world,
            receiver: Receiver::new(),
            readable: true,
            hung_up: false,
            patience: Patience::new(),
            waits: false,
            fragments: Fragments::default(),
            tcp: Tcp::new(parts.max_connections),
            udp: Udp::new(),
            icmp: Icmp::new(),
            resolver: Resolver::new(),
            life: parts.life,
            control: parts.control,
            own: parts.own,
            samples: parts.samples,
        };
        stack.judge_by_own();
        Ok(stack)
    }

    #[cfg(any(test, fuzzing))]
    pub(crate) fn tcp(&self) -> &Tcp {
        &self.tcp
    }

    #[cfg(test)]
    pub(crate) fn udp(&self) -> &Udp {
        &self.udp
    }

    /// Somebody has called a published port.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn accepted(
        &mut self,
        judged: (crate::flow::Flow, crate::policy::Facts),
        socket: OwnedFd,
    ) {
        self.tcp.accepted(&mut self.world, judged, socket);
    }

    /// Tells the gate which addresses are the host's.
    fn judge_by_own(&mut self) {
        if let Some(own) = &self.own {
            self.world.gate.set_own(own.addresses());
        }
    }

    /// The host has got an address, or lost one.
    fn own(&mut self) {
        let buffer = &mut self.world.scratch;
        if self.own.as_mut().is_some_and(|own| own.update(buffer)) {
            self.judge_by_own();
            self.renew_open();
        }
    }

    /// Serves the guest until one side is gone.
    pub(crate) fn run(&mut self) -> anyhow::Result<End> {
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            let timeout = self.timeout();
            if let Some(end) = self.step(&mut events, timeout.as_ref())? {
                return Ok(end);
            }
        }
    }

    /// Waits for something, and does what is to be done then.
    pub(crate) fn step(
        &mut self,
        events: &mut Vec<Event>,
        timeout: Option<&Timespec>,
    ) -> anyhow::Result<Option<End>> {
        events.clear();
        let converses = self.tcp.has_conversed();
        let epoll = &self.world.epoll;
        match self.patience.wait(epoll, events, timeout, converses) {
            Ok(()) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for events"),
        }
        self.world.now = Instant::now();
        for event in events.iter() {
            if let Some(end) = self.event(event) {
                return Ok(Some(end));
            }
        }
        self.turn().context("the frame stream is broken")
    }

    /// What can be done now.
    fn turn(&mut self) -> io::Result<Option<End>> {
        if self.readable && self.receive()? == Received::Closed {
            return Ok(Some(End::GuestGone));
        }
        self.tcp.serve(&mut self.world)?;
        self.tcp.tick(&mut self.world)?;
        self.udp.tick(&mut self.world);
        self.icmp.tick(self.world.now);
        self.resolver.serve(&mut self.world);
        self.world.log.flush();
        let flushed = self.world.transmitter.flush();
        self.publish_counters();
        match flushed {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Some(End::GuestGone)),
            Err(error) => Err(error),
            Ok(()) => self.wait_for_room().map(|()| None),
        }
    }

    /// Lets it be seen what has gone through. Echoes are counted as the frames that they are.
    fn publish_counters(&mut self) {
        let Some(samples) = &mut self.samples else {
            return;
        };
        let published_at = self.world.published.at_ns();
        let (to_guest, from_guest) = (&self.world.transmitter, &self.receiver);
        let counters = samples.counters();
        for (field, value) in [
            (NetField::RxBytes, to_guest.bytes),
            (NetField::TxBytes, from_guest.bytes),
            (NetField::RxPackets, to_guest.frames),
            (NetField::TxPackets, from_guest.frames),
            (NetField::Connections, self.tcp.opened() + self.udp.opened()),
            (NetField::Denied, self.world.log.denied),
            (NetField::Open, (self.tcp.len() + self.udp.len()) as u64),
            (NetField::PublishedOpen, self.world.published.open),
            (NetField::PublishedAtNs, published_at),
        ] {
            counters.set(field, value);
        }
        samples.publish();
    }

    fn wait_for_room(&mut self) -> io::Result<()> {
        let blocked = self.world.transmitter.is_blocked();
        if blocked != self.waits {
            self.waits = blocked;
            let flags = if blocked {
                FRAMES | EventFlags::OUT
            } else {
                FRAMES
            };
            self.world.watch_frames(flags)?;
        }
        Ok(())
    }

    fn timeout(&self) -> Option<Timespec> {
        if self.readable || self.tcp.is_busy(&self.world) {
            return Some(Timespec::default());
        }
        let log = self.world.log.waits().then(|| self.world.now + LOG_PAUSE);
        let deadlines = [
            self.tcp.deadline(),
            self.udp.deadline(),
            self.icmp.deadline(),
            self.resolver.deadline(&self.world),
            log,
        ];
        let deadline = deadlines.into_iter().flatten().min()?;
        let left = deadline.saturating_duration_since(Instant::now());
        Some(Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: i64::from(left.subsec_nanos()),
        })
    }

    /// Takes new settings.
    fn control(&mut self) {
        let Some(mut control) = self.control.take() else {
            return;
        };
        loop {
            match control.next() {
                Word::Settings(settings, ports) => {
                    control.answer(self.renew(*settings, ports).err());
                }
                Word::Nonsense(why) => control.answer(Some(why)),
                Word::Nothing => break,
                // Nobody has a word any more; who started us is watched elsewhere.
                Word::End => return,
                Word::Broken(error) => {
                    let log = &mut self.world.log;
                    return log.trouble("cannot take new settings", &error.into());
                }
            }
        }
        self.control = Some(control);
    }

    /// Judges what is open anew.
    fn renew_open(&mut self) {
        self.tcp.renew(&mut self.world);
        self.udp.renew(&mut self.world);
    }

    /// Makes the policy, the name servers, the ports and the number of connections others.
    fn renew(&mut self, settings: Settings, fresh: Vec<OwnedFd>) -> Result<(), String> {
        let world = &mut self.world;
        let kept = (
            settings.network.v4,
            settings.network.v6,
            settings.network.mtu,
        );
        if kept != (world.network.v4, world.network.v6, world.network.mtu) {
            return Err("the addresses of a network that runs do not change".to_owned());
        }
        ports::renew(world, &settings.ports, fresh)?;
        let (judge, names) = serve::judges(&settings);
        world.gate.renew(judge, names);
        self.judge_by_own();
        self.tcp.set_max(settings.net.max_connections as usize);
        self.renew_open();
        Ok(())
    }

    fn event(&mut self, event: &Event) -> Option<End> {
        let (kind, data) = whose(event)?;
        let (key, flags) = (Key::from_bits(data), event.flags);
        let world = &mut self.world;
        match kind {
            Kind::Frames => {
                self.readable |= !(flags & !EventFlags::OUT).is_empty();
                self.hung_up |= flags.contains(EventFlags::RDHUP);
                if flags.contains(EventFlags::OUT) {
                    world.transmitter.unblock();
                }
            }
            Kind::Life => return self.life.is_some().then_some(End::StarterGone),
            Kind::Tcp => self.tcp.event(world, key, flags),
            Kind::Udp => self.udp.event(world, key),
            Kind::Ping => self.icmp.event(world, key),
            Kind::Stream => self.resolver.stream(world, key),
            Kind::Upstream => self.resolver.upstream(world, key),
            Kind::Control => self.control(),
            Kind::Own => self.own(),
            Kind::Port => {
                let number = data as u32;
                let port = world.ports.get(number as usize).and_then(Option::as_ref);
                match port.map(|port| port.transport) {
                    Some(Transport::Tcp) => ports::accept(world, &mut self.tcp, number),
                    Some(Transport::Udp) => ports::receive(world, &mut self.udp, number),
                    None => {}
                }
            }
        }
        None
    }

    /// Reads frames once and handles them.
    fn receive(&mut self) -> io::Result<Received> {
        let received = self.receiver.fill(self.world.transmitter.socket())?;
        self.readable = received == Received::Some || (self.hung_up && received == Received::Last);
        while let Some(place) = self.receiver.next_frame()? {
            let frame = self.receiver.bytes(place.clone());
            match ip::parse(frame) {
                Some(Frame::Arp(packet)) => neighbours::arp(&mut self.world, packet),
                Some(Frame::Ip(packet)) => {
                    let offset = packet.payload.as_ptr().addr() - frame.as_ptr().addr();
                    handle(
                        &mut self.world,
                        (
                            &mut self.tcp,
                            &mut self.udp,
                            &mut self.icmp,
                            &mut self.fragments,
                        ),
                        &packet,
                        Some(place.start + offset),
                    );
                }
                None => {}
            }
        }
        self.tcp.commit(self.receiver.all());
        Ok(received)
    }
}

type Protocols<'a> = (&'a mut Tcp, &'a mut Udp, &'a mut Icmp, &'a mut Fragments);

/// Handles a packet of the guest. `place`: where its payload lies in the receiver's buffer, if it does.
fn handle(world: &mut World, protocols: Protocols<'_>, packet: &Packet<'_>, place: Option<usize>) {
    // Two come before the guest has an address.
    if packet.protocol == protocol::ICMPV6
        && packet.piece.is_none()
        && neighbours::discovery(world, packet)
    {
        return;
    }
    if packet.protocol == protocol::UDP
        && packet.piece.is_none()
        && neighbours::lease(world, packet)
    {
        return;
    }
    let network = &world.network;
    if !network.is_guest(packet.source) {
        return;
    }
    if is_nobody(network, packet) {
        return udp::nobody(world, packet);
    }
    // Whoever speaks the frame stream chooses its own.
    world.network.guest_mac = packet.mac;
    let (tcp, udp, icmp, fragments) = protocols;
    if let Some(piece) = packet.piece {
        if let Some(payload) = fragments.add(packet, piece, world.now) {
            let whole = Packet {
                piece: None,
                payload: &payload,
                ..*packet
            };
            handle(world, (tcp, udp, icmp, fragments), &whole, None);
        }
        return;
    }
    match packet.protocol {
        protocol::TCP => tcp.packet(world, packet, place),
        protocol::UDP => udp.packet(world, packet),
        protocol::ICMP | protocol::ICMPV6 => icmp.packet(world, packet),
        _ => {}
    }
}

/// Nobody has this address: many have it together, or the wire would have to have a third.
fn is_nobody(network: &Network, packet: &Packet<'_>) -> bool {
    let address = packet.destination;
    let broadcast = matches!(address, std::net::IpAddr::V4(address) if address.is_broadcast());
    address.is_multicast()
        || broadcast
        || (network.is_on_link(address) && !network.is_gateway(address))
}
