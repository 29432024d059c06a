//! Exits of the sandbox's processes, and what the sandbox leaves at its end.

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use libmsb::cli::error::Failure;
use libmsb::state::spec::Spec;
use libmsb::state::status::Reason;
use msb_wire::sandbox::StopEvent;

use super::SandboxSupervisor;
use crate::intercept;
use crate::process::child_process::ChildProcess;
use crate::startup::{LOGS_HINT, StartupReport};
use crate::supervisor::lifecycle::{LifecycleEvent, POWER_OFF_TIMEOUT, SandboxEnd};
use crate::supervisor::setup::last_log_line;
use crate::supervisor::{network, vm_outcome};

impl SandboxSupervisor {
    /// Handles the guest's answer to the shutdown request.
    pub(super) fn handle_shutdown_reply(&mut self, message: &[u8]) -> anyhow::Result<()> {
        match serde_json::from_slice(message) {
            Ok(StopEvent::Stopped { clean }) => {
                self.drive(LifecycleEvent::ShutdownAnswered { clean })
            }
            _ => Ok(()),
        }
    }

    /// Handles end of file on the agent's port. The engine closes its sockets a moment before its
    /// process exits.
    pub(super) fn agent_closed(&mut self) -> anyhow::Result<()> {
        if self.wait_for_exit(POWER_OFF_TIMEOUT) {
            return self.vm_exited();
        }
        self.vm.kill();
        let message = "the virtual machine closed the agent's port and did not exit; it was killed";
        self.process_failed(Reason::VmmFailed, message.to_owned())
    }

    /// Waits for the exit of the VMM process. Returns whether it has exited.
    fn wait_for_exit(&mut self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        while self.vm.poll_exit().is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.vm.poll_exit().is_some()
    }

    /// Handles the exit of the VMM process.
    pub(super) fn vm_exited(&mut self) -> anyhow::Result<()> {
        let exit = self.vm.poll_exit();
        if exit.is_none() {
            return Ok(());
        }
        self.console.copy_all();
        let words = last_log_line(&self.setup.sandbox);
        let outcome = vm_outcome::of_vm(exit, self.console.guest_exit(), words);
        self.drive(LifecycleEvent::VmExited(outcome))
    }

    /// Handles the exit of the share server. A guest without it hangs at the next file that it
    /// needs. The server exits with success only after the VM has closed the connection; the end of
    /// the VM then says why.
    pub(super) fn share_exited(&mut self) -> anyhow::Result<()> {
        let exit = self.vm.share.as_mut().and_then(ChildProcess::poll_exit);
        let Some(exit) = exit else { return Ok(()) };
        self.vm.share = None;
        if exit.success() {
            return Ok(());
        }
        let how = match exit.signal() {
            Some(signal) => format!("killed by signal {signal}"),
            None => last_log_line(&self.setup.sandbox).unwrap_or_else(|| exit.to_string()),
        };
        self.process_failed(Reason::ShareFailed, format!("the share server failed: {how}"))
    }

    /// Handles the exit of the network's process. In order it exits only after the VM has closed
    /// its side.
    pub(super) fn net_exited(&mut self) -> anyhow::Result<()> {
        let Some(process) = &mut self.vm.net else { return Ok(()) };
        let Some(exit) = process.process.poll_exit() else { return Ok(()) };
        self.network.copy_events(process);
        // The VM and its network end together, in either order.
        let timeout = if exit.success() { POWER_OFF_TIMEOUT } else { Duration::ZERO };
        let vm_has_exited = self.wait_for_exit(timeout);
        self.vm.net = None;
        if vm_has_exited {
            return Ok(());
        }
        let words = last_log_line(&self.setup.sandbox);
        self.process_failed(Reason::NetFailed, network::describe_exit(exit, words))
    }

    /// Handles the exit of the process that intercepts TLS. In order it exits only after the
    /// network's process. Without it no connection is passed on, and the sandbox ends.
    pub(super) fn intercept_exited(&mut self) -> anyhow::Result<()> {
        let Some(process) = self.vm.intercept_mut() else { return Ok(()) };
        let Some(exit) = process.process.poll_exit() else { return Ok(()) };
        self.network.copy_intercept_events(process);
        let timeout = if exit.success() { POWER_OFF_TIMEOUT } else { Duration::ZERO };
        let vm_has_exited = self.wait_for_exit(timeout);
        if let Some(net) = &mut self.vm.net {
            net.intercept = None;
        }
        if vm_has_exited {
            return Ok(());
        }
        let words = last_log_line(&self.setup.sandbox);
        self.process_failed(Reason::NetFailed, intercept::describe_exit(exit, words))
    }

    fn process_failed(&mut self, reason: Reason, message: String) -> anyhow::Result<()> {
        self.drive(LifecycleEvent::ProcessFailed { reason, message })
    }

    /// Shuts the supervisor down: kills the VM, records the end in the sandbox's directory or
    /// removes it, releases the lock, and answers the waiting clients.
    pub(crate) fn shut_down(mut self) -> anyhow::Result<()> {
        self.vm.kill();
        self.console.copy_all();
        let unknown = SandboxEnd { reason: Reason::Other, message: None, hint: None, clean: false };
        let end = self.lifecycle.end().cloned().unwrap_or(unknown);
        let hint = hint(&end, &self.setup.spec);
        self.journal.log_end(&end);
        if !self.setup.spec.ephemeral {
            self.jobs.end_all(&self.setup.sandbox);
        }
        let left = self.journal.record_end(&end);
        let ended = self.journal.end_event(&end);
        let SandboxSupervisor {
            setup,
            mut starter,
            mut clients,
            mut guest,
            vm,
            samples,
            mut start,
            ..
        } = self;
        drop(samples);
        clients.stop_listening();
        drop(setup);
        if let Some(message) = &end.message {
            let failure = Failure::failed(message.clone()).hint(hint);
            starter.report(&StartupReport::failed(&failure.into()));
        }
        clients.finish(&mut guest.port, end.clean, &ended);
        drop(vm);
        start.finish_publishing();
        left
    }
}

/// Returns the hint for an end.
fn hint(end: &SandboxEnd, spec: &Spec) -> String {
    if let Some(hint) = &end.hint {
        return hint.clone();
    }
    match end.reason {
        Reason::OutOfMemory => {
            format!("give the sandbox more memory than {} MiB: --memory", spec.memory_mib)
        }
        _ if spec.ephemeral => {
            "name the sandbox to keep its console log and messages: --name".to_owned()
        }
        _ => LOGS_HINT.to_owned(),
    }
}
