//! The begin: from the agent's hello to a guest that takes commands.

use std::time::{Duration, Instant};

use anyhow::Context;
use libmsb::events::What;
use libmsb::machine::{SERIAL_ROOT, SERIAL_UPPER};
use libmsb::state::guest::RootDisk;
use libmsb::state::status::{Reason, State};
use libmsb::state::write;
use msb_wire::boot::{BootEvent, BootRequest, Root};
use msb_wire::exec::ExecRequest;
use msb_wire::frame::{self, Kind};
use msb_wire::guest::Settings;
use msb_wire::handshake::{Hello, operation};
use msb_wire::samples::SamplesRequest;
use msb_wire::sandbox::{ClockRequest, Request};
use msb_wire::text::to_hex;

use super::{BOOT_TIMEOUTS, Life, Limits, PROGRAM, Phase};
use crate::net::Net;
use crate::startup::{Startup, monotonic_ns};
use crate::supervisor::machine::{Machine, Way};
use crate::supervisor::relay::{Own, Violation};
use crate::supervisor::{Starter, clock, start_machine};

impl Life {
    /// There is a slot: the machine starts.
    pub(super) fn turn_came(&mut self) {
        let Some(queue) = self.queue.take() else {
            return;
        };
        let started = queue.finish().and_then(|slot| {
            self.slot = Some(slot);
            self.start_first()
        });
        if let Err(error) = started {
            self.finish_unborn(&error);
        }
    }

    /// A machine was started: its guest is waited for.
    pub(super) fn boots(&mut self, machine: Machine, attempt: u32) {
        self.samples.restart(&self.setup.spec, machine.pid());
        self.machine = machine;
        self.attempt = attempt;
        self.phase = Phase::Booting {
            deadline: Instant::now() + BOOT_TIMEOUTS[attempt as usize],
        };
        self.stamps.machine_ns = monotonic_ns();
    }

    /// The agent said hello.
    pub(super) fn greet(&mut self, message: &[u8]) -> Result<(), Violation> {
        if std::mem::replace(&mut self.greeted, true) {
            return Err(Violation("a second hello".to_owned()));
        }
        let peer: Hello = serde_json::from_slice(message)
            .map_err(|error| Violation(format!("a hello that cannot be understood: {error}")))?;
        peer.agree()
            .map_err(|error| Violation(format!("a hello: {error}")))?;
        if let Err(error) = self.make_ready(peer) {
            self.finish_unborn(&error);
        }
        Ok(())
    }

    /// Answers a hello, and sets the guest up.
    pub(super) fn meet(&mut self, peer: Hello) -> Result<(), Violation> {
        peer.require(operation::BOOT)
            .map_err(|error| Violation(format!("a hello: {error}")))?;
        if self.setup.net.is_some() {
            peer.require(operation::NET)
                .map_err(|error| Violation(format!("a hello: {error}")))?;
        }
        if self.setup.spec.guest.security.is_restricted() {
            peer.require(operation::SECURITY)
                .map_err(|error| Violation(format!("a hello: {error}")))?;
        }
        if !self.setup.mounts.guest.is_empty() {
            peer.require(operation::MOUNTS)
                .map_err(|error| Violation(format!("a hello: {error}")))?;
        }
        if self.setup.mounts.root.is_some() {
            peer.require(operation::BOOT_ROOT)
                .map_err(|error| Violation(format!("a hello: {error}")))?;
        }
        self.tells_time = peer.require(operation::CLOCK).is_ok();
        self.tells_costs = peer.require(operation::SAMPLES).is_ok();
        self.stamps.guest_agent_ns = peer.agent_start_ns.unwrap_or(0);
        self.relay.meet(peer);
        let hello = serde_json::to_vec(&Hello::of(PROGRAM, &[]))
            .map_err(|error| Violation(error.to_string()))?;
        let agent = &mut self.machine.agent;
        frame::put_message(agent.queue(), frame::CONNECTION, Kind::Hello, 0, &hello);
        let boot = self
            .boot_request()
            .map_err(|error| Violation(error.to_string()))?;
        self.relay
            .request(Own::Boot, &Request::Boot(boot), &mut self.machine.agent)
            .map_err(|error| Violation(error.to_string()))
    }

    fn boot_request(&self) -> anyhow::Result<BootRequest> {
        let spec = &self.setup.spec;
        let mut entropy = [0; 32];
        write::random(&mut entropy)?;
        let lower = SERIAL_ROOT.to_owned();
        Ok(BootRequest {
            root: match (&self.setup.mounts.root, &spec.guest.root_disk) {
                (Some(root), _) => root.clone(),
                (None, RootDisk::Tmpfs { size_mib }) => Root::OverlayInMemory {
                    lower,
                    size_mib: *size_mib,
                },
                (None, RootDisk::Managed | RootDisk::Disk { .. }) => Root::Overlay {
                    lower,
                    upper: SERIAL_UPPER.to_owned(),
                },
            },
            hostname: spec.hostname.clone(),
            machine_id: spec.machine_id.clone(),
            env: spec.env.clone(),
            cwd: spec.workdir.clone(),
            user: spec.user.clone(),
            net: self.setup.net.as_ref().map(Net::boot),
            mounts: self.setup.mounts.guest.clone(),
            clock_unix_ns: clock::unix_ns(),
            entropy_hex: to_hex(&entropy),
            guest: Settings {
                security: spec.guest.security,
                scripts: spec.guest.has_scripts(),
            },
        })
    }

    pub(super) fn booted(&mut self, message: &[u8], starter: &mut Starter) -> anyhow::Result<()> {
        match serde_json::from_slice(message)
            .context("the agent's answer to the boot cannot be understood")?
        {
            BootEvent::Failed { stage, message } => {
                self.finish(
                    Reason::BootFailed,
                    Some(format!(
                        "the guest failed in its stage '{stage}': {message}"
                    )),
                );
                Ok(())
            }
            BootEvent::Ready { kernel, ready_ns } => {
                // The next one may boot.
                self.slot = None;
                let from_ns = self.start.kept_ns();
                self.stamps.from_memory = from_ns.is_some();
                self.stamps.guest_ready_ns = ready_ns.saturating_sub(from_ns.unwrap_or(0));
                if from_ns.is_some() {
                    self.stamps.guest_agent_ns = 0;
                }
                self.status.kernel = Some(kernel);
                self.prepare(starter)
            }
        }
    }

    /// The guest takes commands.
    pub(super) fn open(&mut self, starter: &mut Starter) -> anyhow::Result<()> {
        self.stamps.ready_ns = monotonic_ns();
        if matches!(self.phase, Phase::Booting { .. } | Phase::Preparing) {
            self.phase = Phase::Running;
        }
        // The commands first: they run while the files are written.
        let mut notices = Vec::new();
        self.relay.open(&mut self.machine.agent, &mut notices);
        self.start_main()?;
        let _ = self.machine.agent.flush();
        self.start_clocks();
        self.start_samples();
        self.enter(State::Running, What::Running);
        if let Some(log) = &mut self.log {
            let _ = log.system("sandbox started");
        }
        if let Some(note) = self.start.note.take() {
            starter.tell(&Startup::Prepared { note: Some(note) });
        }
        starter.tell(&Startup::Ready(self.stamps));
        notices
            .into_iter()
            .try_for_each(|notice| self.act_on(notice, starter))
    }

    /// Tells the guest the time, which it takes if it is off. One that cannot be told keeps the time that it has.
    pub(super) fn tell_time(&mut self) {
        if matches!(self.phase, Phase::Running) && !self.pause.is_on() {
            self.send_time();
        }
    }

    /// Writes the time for the guest. One that is paused reads it when it runs.
    pub(super) fn send_time(&mut self) {
        if !self.tells_time {
            return;
        }
        self.pause.expect_clock();
        let request = Request::Clock(ClockRequest {
            unix_ns: clock::unix_ns(),
        });
        // It is made of a number: there is no way to fail.
        let _ = self
            .relay
            .request(Own::Clock, &request, &mut self.machine.agent);
    }

    /// The guest tells what it costs, if its agent can.
    fn start_samples(&mut self) {
        let Some(interval_ms) = self.samples.start().filter(|_| self.tells_costs) else {
            return;
        };
        let request = Request::Samples(SamplesRequest { interval_ms });
        // It is made of a number: there is no way to fail.
        let _ = self
            .relay
            .request(Own::Samples, &request, &mut self.machine.agent);
    }

    /// The times of this life begin when the guest takes commands: what was before, and earlier lives, do not count.
    fn start_clocks(&mut self) {
        let spec = &self.setup.spec;
        self.used_at = Instant::now();
        self.limits = Limits {
            idle: spec.idle_timeout_ms.map(Duration::from_millis),
            end: spec
                .max_duration_ms
                .and_then(|ms| self.used_at.checked_add(Duration::from_millis(ms))),
        };
    }

    /// Nobody is attached: the main command, if there is one, is ours to run.
    fn start_main(&mut self) -> anyhow::Result<()> {
        if self.attached.is_some() || self.setup.spec.command.is_empty() {
            return Ok(());
        }
        let spec = &self.setup.spec;
        let exec = ExecRequest {
            argv: spec.command.clone(),
            rlimits: spec.main.rlimits.clone(),
            main: true,
            ..ExecRequest::default()
        };
        if let Some(timeout_ms) = spec.main.timeout_ms {
            self.jobs.bind(Own::Main, Duration::from_millis(timeout_ms));
        }
        self.relay
            .request(Own::Main, &Request::Exec(exec), &mut self.machine.agent)?;
        Ok(())
    }

    /// The guest says nothing: perhaps the engine knows another way.
    pub(super) fn boot_hung(&mut self) -> anyhow::Result<()> {
        if self.start.records() {
            // An emulated boot can hang early when the host is very busy, whatever it is for.
            return self.boot_without_state();
        }
        if self.is_replaceable() {
            self.boot_instead("the guest did not come up in time");
            return Ok(());
        }
        self.machine.kill();
        let attempt = self.attempt + 1;
        let machine = BOOT_TIMEOUTS
            .get(attempt as usize)
            .map(|_| start_machine(&self.setup, &self.samples, attempt, Way::Boot))
            .transpose()?
            .flatten();
        let Some((machine, _)) = machine else {
            self.finish(
                Reason::BootFailed,
                Some("the guest did not come up in time".to_owned()),
            );
            return Ok(());
        };
        self.boots(machine, attempt);
        self.forget_machine();
        Ok(())
    }
}
