//! What serves a sandbox, opened before its machine is started: what cannot be had ends the start.

use anyhow::Context;
use libmsb::events::{Event, What};
use libmsb::signals::{Signals, signal};
use libmsb::state::layout;
use libmsb::state::lock::Lock;
use libmsb::state::status::{State, Status};
use msb_wire::handshake::Hello;

use super::net::NetLog;
use super::{CONSOLE_BOUNDS, OPERATIONS, PROGRAM};
use crate::slots;
use crate::supervisor::clock::HostClock;
use crate::supervisor::exec_log::ExecLog;
use crate::supervisor::machine::Machine;
use crate::supervisor::relay::{ClientId, Relay};
use crate::supervisor::rotate::RotatedFile;
use crate::supervisor::samples::Samples;
use crate::supervisor::socket::Socket;
use crate::supervisor::task::Task;
use crate::supervisor::{Setup, Starter};

/// See the fields of [`super::Life`].
pub(super) struct Parts {
    pub(super) machine: Machine,
    pub(super) samples: Samples,
    pub(super) queue: Task<Lock>,
    pub(super) signals: Signals,
    pub(super) clock: HostClock,
    pub(super) socket: Socket,
    pub(super) relay: Relay,
    pub(super) attached: Option<ClientId>,
    pub(super) log: Option<ExecLog>,
    pub(super) console: RotatedFile,
    pub(super) net_log: NetLog,
    pub(super) status: Status,
}

impl Parts {
    pub(super) fn open(setup: &Setup, starter: &mut Starter) -> anyhow::Result<Parts> {
        let samples = Samples::begin(setup);
        let machine = Machine::unborn().context("cannot make a socket for the agent")?;
        let signals = Signals::of(&[
            signal::SIGTERM,
            signal::SIGINT,
            signal::SIGHUP,
            signal::SIGCHLD,
        ])
        .context("cannot wait for signals")?;
        let clock = HostClock::new().context("cannot watch the clock")?;
        let socket = Socket::listen(setup.home.agent_socket(&setup.sandbox.name))?;
        // Of a sandbox that goes with its command, and whose client sees all, nobody could read a log.
        let logged = !setup.spec.ephemeral || starter.client.is_none();
        let mut relay = Relay::new(&Hello::of(PROGRAM, OPERATIONS), logged)?;
        let attach = |client| {
            relay
                .attach(client)
                .context("cannot use the client's socket")
        };
        let attached = starter.client.take().map(attach).transpose()?;
        let path = |name| setup.sandbox.path(name);
        let log = logged.then(|| ExecLog::open(&path(layout::EXEC_LOG)));
        let log = log
            .transpose()
            .context("cannot open the log of the main command")?;
        let console = RotatedFile::open(&path(layout::CONSOLE_LOG), CONSOLE_BOUNDS)
            .context("cannot open the log of the console")?;
        let net_log = NetLog::open(&path(layout::NET_LOG), setup.net.is_some())
            .context("cannot open the log of the network")?;
        let status = tell_start(setup)?;
        let home = setup.home.clone();
        let queue = Task::begin("slot", move || slots::take(&home))?;
        Ok(Parts {
            machine,
            samples,
            queue,
            signals,
            clock,
            socket,
            relay,
            attached,
            log,
            console,
            net_log,
            status,
        })
    }
}

/// From here on everybody can see that the sandbox starts.
fn tell_start(setup: &Setup) -> anyhow::Result<Status> {
    let status = Status {
        started_at: Some(jiff::Timestamp::now()),
        engine: Some(setup.engine.name().to_owned()),
        changed: setup.sandbox.status().is_ok_and(|status| status.changed),
        ..Status::new(State::Starting)
    };
    setup.sandbox.set_status(&status)?;
    let starting = Event::now(What::Starting, setup.sandbox.name.as_str());
    setup.sandbox.record(&starting);
    Ok(status)
}
