//! Notices of the relay: events of the agent and requests of the clients.

use std::time::Duration;

use libmsb::state::status::Reason;
use msb_wire::exec::ExecEvent;
use msb_wire::network::NetworkRequest;
use msb_wire::samples::SamplesControl;

use super::{SandboxSupervisor, allocated_bytes};
use crate::supervisor::lifecycle::LifecycleEvent;
use crate::supervisor::network::NetworkAnswer;
use crate::supervisor::relay::{ClientId, ClientStream, InternalStream, RelayNotice};

impl SandboxSupervisor {
    pub(super) fn handle_notice(&mut self, notice: RelayNotice) -> anyhow::Result<()> {
        match notice {
            RelayNotice::Event { internal, message } => self.handle_event(internal, &message)?,
            RelayNotice::Output { session, tty, channel, bytes } => {
                self.journal.output(session.as_deref(), tty, channel, &bytes)
            }
            RelayNotice::SessionEnded { session } => self.journal.end_session(Some(&session)),
            RelayNotice::MainEnded(event) => self.main_ended(&event)?,
            RelayNotice::Stop { client, stream, timeout_ms } => {
                self.clients.add_stop_request((client, stream));
                let reason =
                    if timeout_ms == 0 { Reason::KillRequested } else { Reason::StopRequested };
                let timeout = Duration::from_millis(timeout_ms);
                self.drive(LifecycleEvent::StopRequested { reason, timeout })?;
            }
            RelayNotice::Drain { requester } => self.clients.begin_drain(requester),
            RelayNotice::HoldEnded(client) => self.clients.add_finished(client),
            RelayNotice::Pause { requester } => self.pause(requester)?,
            RelayNotice::Resume { requester } => self.resume(requester)?,
            RelayNotice::StartBackup { requester } => self.start_backup(requester)?,
            RelayNotice::EndBackup { requester } => self.end_backup(Some(requester))?,
            RelayNotice::SaveMemory { requester } => self.save_memory(requester)?,
            RelayNotice::EndSave { requester } => self.end_save(Some(requester))?,
            RelayNotice::Wait { client, stream } => self.clients.add_wait_request((client, stream)),
            RelayNotice::Watch { client, interval_ms } => {
                let interval_ms = self.samples.watch(client, interval_ms);
                self.request_sample_interval(interval_ms);
            }
            RelayNotice::Network { requester, request } => self.change_network(requester, request),
            RelayNotice::Job { requester, request } => {
                let (jobs, links) = self.jobs();
                jobs.start(links, requester, *request);
            }
            RelayNotice::Signal { requester, request } => {
                let (jobs, links) = self.jobs();
                jobs.signal(links, requester, &request);
            }
            RelayNotice::Detach { requester, timeout_ms } => {
                let (jobs, links) = self.jobs();
                if jobs.adopt(links, requester, timeout_ms) {
                    self.clients.release_main();
                }
            }
            RelayNotice::Attach { requester, job, attached } => {
                let (jobs, links) = self.jobs();
                jobs.attach(links, requester, &job, attached);
            }
            RelayNotice::Gone(id) => self.client_gone(id)?,
        }
        Ok(())
    }

    fn handle_event(&mut self, internal: InternalStream, message: &[u8]) -> anyhow::Result<()> {
        match internal {
            InternalStream::Boot => self.handle_boot_reply(message)?,
            InternalStream::Init => self.handle_init_reply(message)?,
            InternalStream::Shutdown => self.handle_shutdown_reply(message)?,
            InternalStream::Ping => {
                self.console.clear_guest_exit();
                self.drive(LifecycleEvent::PingAnswered)?;
            }
            InternalStream::Samples => {
                self.samples.take(message, allocated_bytes(self.setup.upper.as_ref()))
            }
            InternalStream::Job(number) => {
                let (jobs, links) = self.jobs();
                jobs.handle_event(links, number, message);
            }
            InternalStream::Clock => {
                self.pause.clock_answered();
                self.answer_resume(false);
            }
            InternalStream::Quiesce => self.agent_is_quiescent(message)?,
            InternalStream::Main | InternalStream::Wake => {}
        }
        Ok(())
    }

    fn main_ended(&mut self, event: &ExecEvent) -> anyhow::Result<()> {
        let by_itself = matches!(event, ExecEvent::Exited { code: Some(_), .. });
        let timed_out = self.jobs.take_timed_out(InternalStream::Main, by_itself);
        self.journal.end_main(event, timed_out);
        let oom_killed = self.journal.status.oom_killed;
        let attached = self.clients.ends_with_main();
        if attached && self.clients.relay.is_held() {
            self.clients.hold();
        } else {
            self.drive(LifecycleEvent::MainEnded { oom_killed, attached })?;
        }
        if self.lifecycle.is_running() {
            self.journal.write_status();
        }
        Ok(())
    }

    fn client_gone(&mut self, id: ClientId) -> anyhow::Result<()> {
        self.jobs.detach_client(id);
        self.abandon_backup(id)?;
        self.abandon_save(Some(id))?;
        let interval_ms = self.samples.remove_watcher(id);
        self.request_sample_interval(interval_ms);
        // When the main command has ended, the client has no reason to stay.
        if self.clients.forget(id) && self.journal.status.exit_code.is_none() {
            if self.clients.relay.is_held() {
                // The main command is killed, and the others go on.
                self.clients.release_main();
            } else {
                self.drive(LifecycleEvent::Stop(Reason::ClientGone))?;
            }
        }
        Ok(())
    }

    /// Stops the sandbox after the last command that it was kept for. Disconnects the clients of
    /// such commands that have ended before.
    pub(super) fn end_with_last_command(
        &mut self,
        notices: &mut Vec<RelayNotice>,
    ) -> anyhow::Result<()> {
        if self.lifecycle.is_running() && self.clients.is_hold_over() {
            let oom_killed = self.journal.status.oom_killed;
            self.drive(LifecycleEvent::MainEnded { oom_killed, attached: true })?;
        } else if self.lifecycle.is_running() && self.clients.is_drained() {
            self.drive(LifecycleEvent::Stop(Reason::StopRequested))?;
        }
        if self.lifecycle.is_running() {
            self.clients.finish_clients(&mut self.guest.port, notices);
        } else if self.lifecycle.is_stopping() {
            self.clients.relay.close_to_commands();
        }
        Ok(())
    }

    /// Requests samples at another interval. A guest whose agent cannot be asked keeps its
    /// interval. A paused guest is asked after the pause: its queue must not grow.
    pub(super) fn request_sample_interval(&mut self, interval_ms: Option<u64>) {
        if self.lifecycle.is_pausing() {
            self.pause.interval_ms = interval_ms.or(self.pause.interval_ms);
        } else if let Some(interval_ms) = interval_ms {
            let control = SamplesControl::Interval { interval_ms };
            self.clients.relay.control(InternalStream::Samples, &control, &mut self.guest.port);
        }
    }

    fn change_network(&mut self, requester: ClientStream, request: NetworkRequest) {
        let (current, process) = (self.setup.net.as_ref(), self.vm.net.as_ref());
        let answer = self.network.change(requester, request, current, process);
        self.answer_change(answer);
    }

    /// Handles an answer of `msb-net`.
    pub(super) fn read_net_answer(&mut self) {
        let answer = self.vm.net.as_ref().and_then(|process| self.network.read_answer(process));
        self.answer_change(answer);
    }

    fn answer_change(&mut self, answer: Option<NetworkAnswer>) {
        let Some(NetworkAnswer { requester, adopted, event }) = answer else {
            return;
        };
        if let Some(net) = adopted {
            self.setup.spec.net = net.spec().clone();
            self.setup.net = Some(net);
        }
        self.clients.answer(requester, &event);
    }
}
