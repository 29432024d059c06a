//! Boot of the guest: from the agent's hello to a guest that takes commands.

use std::time::Duration;

use anyhow::Context;
use libmsb::events::EventKind;
use libmsb::machine::{SERIAL_ROOT, SERIAL_UPPER};
use libmsb::state::guest::RootDisk;
use libmsb::state::spec::Spec;
use libmsb::state::status::State;
use libmsb::state::write;
use msb_wire::boot::{BootEvent, BootRequest, BootTrust, Root};
use msb_wire::exec::ExecRequest;
use msb_wire::guest::GuestSettings;
use msb_wire::handshake::{Hello, operation};
use msb_wire::samples::SamplesRequest;
use msb_wire::sandbox::Request;
use msb_wire::text::{Text, to_hex};

use super::SandboxSupervisor;
use crate::net::SandboxNetwork;
use crate::startup::{StartupReport, monotonic_ns};
use crate::supervisor::clock;
use crate::supervisor::lifecycle::LifecycleEvent;
use crate::supervisor::relay::{InternalStream, ProtocolViolation};
use crate::supervisor::setup::SandboxSetup;

impl SandboxSupervisor {
    /// Answers the agent's hello and sends the boot request. Returns what is wrong with the hello
    /// otherwise.
    pub(super) fn send_boot_request(&mut self, hello: &Hello) -> Result<(), String> {
        let required = required_operations(&self.setup);
        self.guest.accept(hello, &required).map_err(|ProtocolViolation(what)| what)?;
        self.start.times.guest_agent_ns = hello.agent_start_ns.unwrap_or(0);
        self.clients.relay.set_peer(hello.clone());
        let trust = self.start.trust.as_deref();
        let boot = boot_request(&self.setup, trust).map_err(|error| error.to_string())?;
        self.request(InternalStream::Boot, &Request::Boot(Box::new(boot)))
            .map_err(|error| error.to_string())
    }

    /// Handles the agent's answer to the boot request.
    pub(super) fn handle_boot_reply(&mut self, message: &[u8]) -> anyhow::Result<()> {
        match serde_json::from_slice(message)
            .context("cannot parse the agent's answer to the boot request")?
        {
            BootEvent::Failed { stage, message } => self.drive(LifecycleEvent::GuestFailed(
                format!("the guest failed at stage '{stage}': {message}"),
            )),
            BootEvent::Ready { kernel, ready_ns } => {
                let saved_uptime_ns = self.start.saved_uptime_ns;
                let times = &mut self.start.times;
                times.from_memory = saved_uptime_ns.is_some();
                times.guest_ready_ns = ready_ns.saturating_sub(saved_uptime_ns.unwrap_or(0));
                if saved_uptime_ns.is_some() {
                    times.guest_agent_ns = 0;
                }
                self.journal.status.kernel = Some(kernel);
                self.drive(LifecycleEvent::GuestReady)
            }
        }
    }

    /// Opens the guest to clients: it takes commands.
    pub(super) fn open_guest(&mut self) -> anyhow::Result<()> {
        self.start.times.ready_ns = monotonic_ns();
        self.setup.net.iter_mut().for_each(SandboxNetwork::forget_values);
        // Commands first: they run while the files are written.
        let mut notices = Vec::new();
        self.clients.relay.open(&mut self.guest.port, &mut notices);
        self.start_main()?;
        self.guest.flush();
        self.start_samples();
        self.journal.enter(State::Running, EventKind::Running);
        self.journal.remark("sandbox started");
        if let Some(note) = self.start.note.take() {
            self.starter.report(&StartupReport::Prepared { note: Some(note) });
        }
        self.starter.report(&StartupReport::Ready(self.start.times));
        notices.into_iter().try_for_each(|notice| self.handle_notice(notice))
    }

    /// Requests samples from the guest, if its agent supports them.
    fn start_samples(&mut self) {
        let interval_ms = self.samples.start_guest().filter(|_| self.guest.sends_samples());
        if let Some(interval_ms) = interval_ms {
            let request = Request::Samples(SamplesRequest { interval_ms });
            // A request that holds a number always serializes.
            let _ = self.request(InternalStream::Samples, &request);
        }
    }

    /// Starts the main command, if there is one and no client is attached.
    fn start_main(&mut self) -> anyhow::Result<()> {
        let spec = &self.setup.spec;
        if self.start.is_resumed || self.clients.is_attached() || spec.command.is_empty() {
            return Ok(());
        }
        let exec = ExecRequest {
            argv: spec.command.clone(),
            rlimits: spec.main.rlimits.clone(),
            main: true,
            ..ExecRequest::default()
        };
        if let Some(timeout_ms) = spec.main.timeout_ms {
            self.jobs.set_timeout(InternalStream::Main, Duration::from_millis(timeout_ms));
        }
        Ok(self.request(InternalStream::Main, &Request::Exec(exec))?)
    }
}

/// Returns the operations that the agent must support for this sandbox.
fn required_operations(setup: &SandboxSetup) -> Vec<&'static str> {
    let guest = &setup.spec.guest;
    let required = [
        (true, operation::BOOT),
        (setup.net.is_some(), operation::NET),
        (setup.spec.net.enabled && setup.spec.net.tls.is_active(), operation::TRUST),
        (guest.security.is_restricted(), operation::SECURITY),
        (!guest.rlimits.is_empty(), operation::BOOT_RLIMIT),
        (!setup.mounts.guest.is_empty(), operation::MOUNTS),
        (setup.mounts.root.is_some(), operation::BOOT_ROOT),
    ];
    required.into_iter().filter(|(is_used, _)| *is_used).map(|(_, name)| name).collect()
}

/// Returns the environment of the guest. Placeholders of secrets come last: a value that was also
/// given as a variable by mistake does not enter the guest.
fn with_placeholders(spec: &Spec) -> Vec<Text> {
    let secrets = spec.net.tls.secrets.iter();
    let placeholders = secrets.map(|secret| format!("{}={}", secret.name, secret.placeholder()));
    spec.env.iter().cloned().chain(placeholders.map(Text::from)).collect()
}

pub(super) fn boot_request(
    setup: &SandboxSetup,
    trust: Option<&str>,
) -> anyhow::Result<BootRequest> {
    let spec = &setup.spec;
    let mut entropy = [0; 32];
    write::random(&mut entropy)?;
    let lower = SERIAL_ROOT.to_owned();
    Ok(BootRequest {
        root: match (&setup.mounts.root, &spec.guest.root_disk) {
            (Some(root), _) => root.clone(),
            (None, RootDisk::Tmpfs { size_mib }) => {
                Root::OverlayInMemory { lower, size_mib: *size_mib }
            }
            (None, RootDisk::Managed | RootDisk::Disk { .. }) => {
                Root::Overlay { lower, upper: SERIAL_UPPER.to_owned() }
            }
        },
        hostname: spec.hostname.clone(),
        machine_id: spec.machine_id.clone(),
        env: with_placeholders(spec),
        cwd: spec.workdir.clone(),
        user: spec.user.clone(),
        net: setup.net.as_ref().map(SandboxNetwork::boot),
        mounts: setup.mounts.guest.clone(),
        trust: trust.map(|pem| BootTrust { certificates: pem.to_owned() }),
        clock_unix_ns: clock::unix_ns(),
        entropy_hex: to_hex(&entropy),
        guest: GuestSettings {
            security: spec.guest.security,
            scripts: spec.guest.has_scripts(),
            rlimits: spec.guest.rlimits.clone(),
            directories: spec.guest.directories.clone(),
        },
    })
}
