//! Jobs: commands that go on without a client. What is known of them is in `jobs.json`, from which everybody reads it.

use std::time::{Duration, Instant};

use libmsb::cli::error::print_warning;
use libmsb::cli::exit;
use libmsb::state::jobs::{Job, Jobs};
use libmsb::state::sandboxes::Sandbox;
use msb_wire::exec::{ExecControl, ExecEvent, ExecRequest, FailureKind};
use msb_wire::job::{JOBS_RUNNING_MAX, JobEvent, SignalRequest};
use msb_wire::text::Text;
use rustix::process::Signal;

use super::{ExecLog, Life, TOOL};
use crate::supervisor::relay::{ClientStream, Own, session_id};

/// Time for a command to end after SIGKILL, before all that it left on its terminal is killed too.
const KILL_PATIENCE: Duration = Duration::from_secs(1);

/// A job of which the end has not come.
#[derive(Debug)]
struct Running {
    number: u32,
    id: String,
    command: Vec<Text>,
    tty: bool,
    stdin: bool,
    timeout: Option<Duration>,
    /// Who is told when it has been started.
    asker: ClientStream,
    /// Who is told how it ends.
    attached: Vec<ClientStream>,
}

/// When a command must have ended.
#[derive(Clone, Copy, Debug)]
struct Bound {
    own: Own,
    at: Instant,
    killed: bool,
}

/// The jobs of a sandbox.
#[derive(Debug)]
pub(super) struct Table {
    known: Jobs,
    running: Vec<Running>,
    next_number: u32,
    bounds: Vec<Bound>,
    timed_out: Vec<Own>,
}

impl Table {
    /// With what earlier lives of the sandbox have left; what had no end then was ended by theirs.
    pub(super) fn of(sandbox: &Sandbox) -> Table {
        let mut known = Jobs::of(sandbox).unwrap_or_else(|error| {
            // Nobody's job is worth a sandbox that does not start.
            print_warning(TOOL, &libmsb::cli::error::message(&error));
            Jobs::default()
        });
        if known.end_all(jiff::Timestamp::now()) {
            write(&known, sandbox);
        }
        Table {
            known,
            running: Vec::new(),
            next_number: 0,
            bounds: Vec::new(),
            timed_out: Vec::new(),
        }
    }

    /// The sandbox ends, and with it all that runs.
    pub(super) fn end_all(&mut self, sandbox: &Sandbox) {
        if self.known.end_all(jiff::Timestamp::now()) {
            write(&self.known, sandbox);
        }
    }

    /// When the next command's time is over.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.bounds.iter().map(|bound| bound.at).min()
    }

    /// A command has so much time from now on.
    pub(super) fn bind(&mut self, own: Own, timeout: Duration) {
        if let Some(at) = Instant::now().checked_add(timeout) {
            self.bounds.push(Bound {
                own,
                at,
                killed: false,
            });
        }
    }

    /// The command has ended. Gives whether it was for its time.
    pub(super) fn was_timed_out(&mut self, own: Own, by_itself: bool) -> bool {
        self.bounds.retain(|bound| bound.own != own);
        let count = self.timed_out.len();
        self.timed_out.retain(|late| *late != own);
        // One that ended by itself in the last moment was in time.
        self.timed_out.len() < count && !by_itself
    }

    fn by_id(&mut self, id: &str) -> Option<&mut Running> {
        self.running.iter_mut().find(|job| job.id == id)
    }
}

/// The file informs others; a full disk must not end the sandbox.
fn write(known: &Jobs, sandbox: &Sandbox) {
    if let Err(error) = known.write(sandbox) {
        print_warning(TOOL, &libmsb::cli::error::message(&error));
    }
}

impl Life {
    /// A client wants a command that goes on without it.
    pub(super) fn start_job(&mut self, asker: ClientStream, mut request: ExecRequest) {
        if self.jobs.running.len() >= JOBS_RUNNING_MAX {
            let message = format!("{JOBS_RUNNING_MAX} jobs are running already");
            return self.refuse(asker, FailureKind::ResourceLimit, message);
        }
        // A sandbox that goes with its command has no log until somebody needs it.
        if self.log.is_none() {
            let path = self.setup.sandbox.path(libmsb::state::layout::EXEC_LOG);
            self.log = ExecLog::open(&path).ok();
        }
        let number = self.jobs.next_number;
        self.jobs.next_number = number.wrapping_add(1);
        // What is for us alone means nothing to the agent.
        let timeout = request.timeout_ms.take().map(Duration::from_millis);
        (request.job, request.log, request.main) = (false, false, false);
        let job = Running {
            number,
            id: session_id(),
            command: request.argv.clone(),
            tty: request.tty.is_some(),
            stdin: request.stdin,
            timeout,
            asker,
            attached: Vec::new(),
        };
        let agent = &mut self.machine.agent;
        match self.relay.start_job(number, &job.id, request, agent) {
            Ok(()) => self.jobs.running.push(job),
            Err(error) => self.refuse(asker, FailureKind::Other, error.to_string()),
        }
    }

    fn refuse(&mut self, (client, stream): ClientStream, kind: FailureKind, message: String) {
        self.relay.refuse(client, stream, kind, message);
    }

    /// The agent said something of a job.
    pub(super) fn job_event(&mut self, number: u32, message: &[u8]) {
        match serde_json::from_slice(message) {
            Ok(ExecEvent::Started { pid }) => self.job_started(number, pid),
            Ok(ExecEvent::StdinClosed) => {}
            Ok(event) => self.job_ended(number, &event),
            Err(error) => {
                let message = format!("the agent said of a job what cannot be understood: {error}");
                print_warning(TOOL, &message);
            }
        }
    }

    fn job_started(&mut self, number: u32, pid: u32) {
        let Some(job) = self.jobs.running.iter().find(|job| job.number == number) else {
            return;
        };
        self.jobs.known.jobs.push(Job {
            id: job.id.clone(),
            command: job.command.clone(),
            tty: job.tty,
            stdin: job.stdin,
            pid: Some(pid),
            started_at: jiff::Timestamp::now(),
            ended_at: None,
            exit_code: None,
            timed_out: false,
            oom_killed: false,
            other: serde_json::Map::new(),
        });
        let (asker, timeout) = (job.asker, job.timeout);
        let answer = JobEvent::Started {
            job: job.id.clone(),
        };
        if let Some(timeout) = timeout {
            self.jobs.bind(Own::Job(number), timeout);
        }
        // Whoever has the id finds the job.
        write(&self.jobs.known, &self.setup.sandbox);
        self.relay.answer(asker.0, asker.1, &answer);
    }

    fn job_ended(&mut self, number: u32, event: &ExecEvent) {
        let Some(place) = self
            .jobs
            .running
            .iter()
            .position(|job| job.number == number)
        else {
            return;
        };
        let job = self.jobs.running.remove(place);
        if let ExecEvent::Failed { .. } = event {
            return self.relay.answer(job.asker.0, job.asker.1, event);
        }
        let by_itself = matches!(event, ExecEvent::Exited { code: Some(_), .. });
        let timed_out = self.jobs.was_timed_out(Own::Job(number), by_itself);
        let _ = self.log.as_mut().map(|log| log.end(Some(&job.id)));
        if let Some(known) = self.jobs.known.find_mut(&job.id) {
            known.ended_at = Some(jiff::Timestamp::now());
            known.timed_out = timed_out;
            known.oom_killed = matches!(event, ExecEvent::Exited { oom_killed, .. } if *oom_killed);
            known.exit_code = if timed_out {
                Some(i32::from(exit::TIMED_OUT))
            } else {
                event.exit_code()
            };
        }
        self.jobs.known.forget_old();
        write(&self.jobs.known, &self.setup.sandbox);
        for (client, stream) in job.attached {
            self.relay.answer(client, stream, event);
        }
    }

    /// A client sends a signal to a job.
    pub(super) fn signal_job(&mut self, asker: ClientStream, request: &SignalRequest) {
        let Some(number) = self.jobs.by_id(&request.job).map(|job| job.number) else {
            return self.refuse_for_lack(asker, &request.job);
        };
        let control = ExecControl::Signal {
            signal: request.signal,
        };
        let agent = &mut self.machine.agent;
        if self.relay.control(Own::Job(number), &control, agent) {
            self.relay.answer(asker.0, asker.1, &JobEvent::Signalled);
        } else {
            self.refuse_for_lack(asker, &request.job);
        }
    }

    /// A client wants to be with a job until it ends, and is, unless another client sends its input.
    pub(super) fn attached_to_job(&mut self, asker: ClientStream, id: &str, attached: bool) {
        let Some(job) = self.jobs.by_id(id) else {
            return self.refuse_for_lack(asker, id);
        };
        if attached {
            return job.attached.push(asker);
        }
        let message = "another client sends the job its input".to_owned();
        self.refuse(asker, FailureKind::Other, message);
    }

    fn refuse_for_lack(&mut self, asker: ClientStream, id: &str) {
        let message = format!("no job '{id}' runs");
        self.refuse(asker, FailureKind::NotFound, message);
    }

    /// A client has gone, and wants to know of nothing any more.
    pub(super) fn forget_client(&mut self, client: u32) {
        for job in &mut self.jobs.running {
            job.attached.retain(|(id, _)| *id != client);
        }
    }

    /// Kills the commands whose time is over; first the command, then what it left.
    pub(super) fn end_late_commands(&mut self) {
        let now = Instant::now();
        let bounds = std::mem::take(&mut self.jobs.bounds);
        for mut bound in bounds {
            if bound.at > now {
                self.jobs.bounds.push(bound);
            } else if bound.killed {
                self.relay.close(bound.own, &mut self.machine.agent);
            } else {
                let kill = ExecControl::Signal {
                    signal: Signal::KILL.as_raw(),
                };
                self.relay
                    .control(bound.own, &kill, &mut self.machine.agent);
                self.jobs.timed_out.push(bound.own);
                bound.killed = true;
                bound.at = now + KILL_PATIENCE;
                self.jobs.bounds.push(bound);
            }
        }
        // What was just said goes out now: the loop may have nothing else to wake it.
        let _ = self.machine.agent.flush();
    }
}
