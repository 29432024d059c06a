//! Jobs: commands that run without a client. They are recorded in `jobs.json`, which all clients
//! read.

use std::time::{Duration, Instant};

use libmsb::cli::error::{message, warn};
use libmsb::cli::exit;
use libmsb::state::jobs::{Job, Jobs};
use libmsb::state::sandboxes::Sandbox;
use msb_wire::exec::{ExecControl, ExecEvent, ExecRequest, FailureKind};
use msb_wire::job::{JOBS_RUNNING_MAX, JobEvent, SignalRequest};
use msb_wire::text::Text;
use rustix::process::Signal;

use super::frame_socket::FrameSocket;
use super::journal::SandboxJournal;
use super::relay::{ClientStream, InternalStream, Relay, session_id};
use crate::boot_state::SavedJob;

/// Time between SIGKILL for a command and the end of all processes on its terminal.
const KILL_TIMEOUT: Duration = Duration::from_secs(1);

/// A job that has not ended.
#[derive(Debug)]
struct RunningJob {
    number: u32,
    id: String,
    command: Vec<Text>,
    tty: bool,
    stdin: bool,
    timeout: Option<Duration>,
    /// It is the main command of the sandbox, from which a client has detached.
    main: bool,
    /// The client that is answered when the job has started.
    requester: ClientStream,
    /// The clients that receive the job's end.
    attached: Vec<ClientStream>,
}

impl RunningJob {
    /// Returns the job as clients read it.
    fn record(&self, pid: Option<u32>, started_at: jiff::Timestamp) -> Job {
        Job {
            id: self.id.clone(),
            command: self.command.clone(),
            tty: self.tty,
            stdin: self.stdin,
            pid,
            started_at,
            ended_at: None,
            exit_code: None,
            timed_out: false,
            oom_killed: false,
            other: serde_json::Map::new(),
        }
    }
}

/// The deadline of a command.
#[derive(Clone, Copy, Debug)]
struct CommandTimeout {
    internal: InternalStream,
    at: Instant,
    killed: bool,
}

/// The jobs of a sandbox.
#[derive(Debug)]
pub(crate) struct JobTable {
    known: Jobs,
    running: Vec<RunningJob>,
    next_number: u32,
    timeouts: Vec<CommandTimeout>,
    timed_out: Vec<InternalStream>,
}

impl JobTable {
    /// Reads the jobs that earlier runs of the sandbox have left. Those without an end were ended
    /// by the end of their run.
    pub(crate) fn of(sandbox: &Sandbox) -> JobTable {
        let mut known = Jobs::of(sandbox).unwrap_or_else(|error| {
            // A damaged list of jobs must not prevent the start of the sandbox.
            warn(&message(&error));
            Jobs::default()
        });
        if known.end_all(jiff::Timestamp::now()) {
            write(&known, sandbox);
        }
        JobTable {
            known,
            running: Vec::new(),
            next_number: 0,
            timeouts: Vec::new(),
            timed_out: Vec::new(),
        }
    }

    /// Records the end of all jobs when the sandbox ends.
    pub(crate) fn end_all(&mut self, sandbox: &Sandbox) {
        if self.known.end_all(jiff::Timestamp::now()) {
            write(&self.known, sandbox);
        }
    }

    /// Returns the next deadline of a command.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.timeouts.iter().map(|bound| bound.at).min()
    }

    /// Sets the timeout of a command, from now on.
    pub(crate) fn set_timeout(&mut self, internal: InternalStream, timeout: Duration) {
        if let Some(at) = Instant::now().checked_add(timeout) {
            self.timeouts.push(CommandTimeout { internal, at, killed: false });
        }
    }

    /// Removes the timeout of a command that has ended. Returns whether the timeout ended it.
    pub(crate) fn take_timed_out(&mut self, internal: InternalStream, by_itself: bool) -> bool {
        self.timeouts.retain(|bound| bound.internal != internal);
        let count = self.timed_out.len();
        self.timed_out.retain(|late| *late != internal);
        // A command that ended by itself at the last moment was in time.
        self.timed_out.len() < count && !by_itself
    }

    /// Returns the time that a command has left, in milliseconds, if it has a timeout.
    pub(crate) fn time_left(&self, internal: InternalStream) -> Option<u64> {
        let bound = self.timeouts.iter().find(|bound| bound.internal == internal)?;
        let left = bound.at.saturating_duration_since(Instant::now());
        Some(u64::try_from(left.as_millis()).unwrap_or(u64::MAX))
    }

    /// Returns a running job as saved memory describes it.
    pub(crate) fn saved(&self, number: u32) -> Option<SavedJob> {
        let job = self.running.iter().find(|job| job.number == number)?;
        let known = self.known.jobs.iter().find(|known| known.id == job.id);
        Some(SavedJob {
            id: job.id.clone(),
            command: job.command.clone(),
            stdin: job.stdin,
            pid: known.and_then(|known| known.pid),
            started_ms: known
                .map_or_else(jiff::Timestamp::now, |known| known.started_at)
                .as_millisecond(),
        })
    }

    /// Records a job that goes on from saved memory. Returns its number.
    pub(crate) fn adopt_saved(
        &mut self,
        sandbox: &Sandbox,
        saved: &SavedJob,
        (tty, main): (bool, bool),
    ) -> u32 {
        let number = self.next_number;
        self.next_number = number.wrapping_add(1);
        let job = RunningJob {
            number,
            id: saved.id.clone(),
            command: saved.command.clone(),
            tty,
            stdin: saved.stdin,
            timeout: None,
            main,
            // No client has this number.
            requester: (0, 0),
            attached: Vec::new(),
        };
        self.known.jobs.retain(|known| known.id != saved.id);
        let started_at = jiff::Timestamp::from_millisecond(saved.started_ms);
        let started_at = started_at.unwrap_or_else(|_| jiff::Timestamp::now());
        self.known.jobs.push(job.record(saved.pid, started_at));
        write(&self.known, sandbox);
        self.running.push(job);
        number
    }

    fn by_id(&mut self, id: &str) -> Option<&mut RunningJob> {
        self.running.iter_mut().find(|job| job.id == id)
    }
}

/// Writes the file. It informs others; a full disk must not end the sandbox.
fn write(known: &Jobs, sandbox: &Sandbox) {
    if let Err(error) = known.write(sandbox) {
        warn(&message(&error));
    }
}

/// The parts of the supervisor that jobs use.
pub(crate) struct JobLinks<'a> {
    pub(crate) relay: &'a mut Relay,
    /// The agent's port.
    pub(crate) port: &'a mut FrameSocket,
    pub(crate) journal: &'a mut SandboxJournal,
}

impl JobLinks<'_> {
    fn answer(&mut self, (client, stream): ClientStream, event: &impl serde::Serialize) {
        self.relay.answer(client, stream, event);
    }

    fn refuse(&mut self, (client, stream): ClientStream, kind: FailureKind, message: String) {
        self.relay.refuse(client, stream, kind, message);
    }

    fn refuse_unknown_job(&mut self, requester: ClientStream, id: &str) {
        self.refuse(requester, FailureKind::NotFound, format!("no running job '{id}'"));
    }
}

impl JobTable {
    /// Starts a job for a client.
    pub(crate) fn start(
        &mut self,
        mut links: JobLinks<'_>,
        requester: ClientStream,
        mut request: ExecRequest,
    ) {
        if self.running.len() >= JOBS_RUNNING_MAX {
            let message = format!("{JOBS_RUNNING_MAX} jobs are running already");
            return links.refuse(requester, FailureKind::ResourceLimit, message);
        }
        links.journal.require_log();
        let number = self.next_number;
        self.next_number = number.wrapping_add(1);
        // Fields for the supervisor alone mean nothing to the agent.
        let timeout = request.timeout_ms.take().map(Duration::from_millis);
        (request.job, request.log, request.main) = (false, false, false);
        let job = RunningJob {
            number,
            id: session_id(),
            command: request.argv.clone(),
            tty: request.tty.is_some(),
            stdin: request.stdin,
            timeout,
            main: false,
            requester,
            attached: Vec::new(),
        };
        match links.relay.start_job(number, &job.id, request, links.port) {
            Ok(()) => self.running.push(job),
            Err(error) => links.refuse(requester, FailureKind::Other, error.to_string()),
        }
    }

    /// Handles an event of the agent about a job.
    pub(crate) fn handle_event(&mut self, links: JobLinks<'_>, number: u32, message: &[u8]) {
        match serde_json::from_slice(message) {
            Ok(ExecEvent::Started { pid }) => self.started(links, number, pid),
            Ok(ExecEvent::StdinClosed) => {}
            Ok(event) => self.ended(links, number, &event),
            Err(error) => warn(&format!("cannot parse the agent's event about a job: {error}")),
        }
    }

    /// Makes a command that a client detaches from a job. Returns whether it was the sandbox's main
    /// command.
    pub(crate) fn adopt(
        &mut self,
        mut links: JobLinks<'_>,
        requester: ClientStream,
        timeout_ms: Option<u64>,
    ) -> bool {
        let number = self.next_number;
        if self.running.len() >= JOBS_RUNNING_MAX {
            return false;
        }
        let Some(command) = links.relay.adopt_command(requester, number, links.port) else {
            return false;
        };
        links.journal.require_log();
        self.next_number = number.wrapping_add(1);
        let job = RunningJob {
            number,
            id: command.id,
            command: command.argv,
            tty: true,
            stdin: command.stdin,
            timeout: None,
            main: command.main,
            requester,
            attached: Vec::new(),
        };
        if let Some(timeout_ms) = timeout_ms {
            self.set_timeout(InternalStream::Job(number), Duration::from_millis(timeout_ms));
        }
        self.known.jobs.push(job.record(None, command.started_at));
        write(&self.known, links.journal.sandbox());
        links.answer(requester, &JobEvent::Started { job: job.id.clone() });
        self.running.push(job);
        command.main
    }

    fn started(&mut self, mut links: JobLinks<'_>, number: u32, pid: u32) {
        let Some(job) = self.running.iter().find(|job| job.number == number) else {
            return;
        };
        if let Some(known) = self.known.find_mut(&job.id) {
            // A client detached from it before it had started.
            known.pid = Some(pid);
            return write(&self.known, links.journal.sandbox());
        }
        self.known.jobs.push(job.record(Some(pid), jiff::Timestamp::now()));
        let (requester, timeout) = (job.requester, job.timeout);
        let answer = JobEvent::Started { job: job.id.clone() };
        if let Some(timeout) = timeout {
            self.set_timeout(InternalStream::Job(number), timeout);
        }
        // A client that has the ID finds the job in the file.
        write(&self.known, links.journal.sandbox());
        links.answer(requester, &answer);
    }

    fn ended(&mut self, mut links: JobLinks<'_>, number: u32, event: &ExecEvent) {
        let Some(place) = self.running.iter().position(|job| job.number == number) else {
            return;
        };
        let job = self.running.remove(place);
        if let ExecEvent::Failed { .. } = event {
            return links.answer(job.requester, event);
        }
        let by_itself = matches!(event, ExecEvent::Exited { code: Some(_), .. });
        let timed_out = self.take_timed_out(InternalStream::Job(number), by_itself);
        if timed_out && job.main {
            // The notice about the end of the main command follows.
            self.timed_out.push(InternalStream::Main);
        }
        links.journal.end_session(Some(&job.id));
        if let Some(known) = self.known.find_mut(&job.id) {
            known.ended_at = Some(jiff::Timestamp::now());
            known.timed_out = timed_out;
            known.oom_killed = matches!(event, ExecEvent::Exited { oom_killed, .. } if *oom_killed);
            known.exit_code =
                if timed_out { Some(i32::from(exit::TIMED_OUT)) } else { event.exit_code() };
        }
        self.known.forget_old();
        write(&self.known, links.journal.sandbox());
        for client in job.attached {
            links.answer(client, event);
        }
    }

    /// Sends a client's signal to a job.
    pub(crate) fn signal(
        &mut self,
        mut links: JobLinks<'_>,
        requester: ClientStream,
        request: &SignalRequest,
    ) {
        let Some(number) = self.by_id(&request.job).map(|job| job.number) else {
            return links.refuse_unknown_job(requester, &request.job);
        };
        let control = ExecControl::Signal { signal: request.signal };
        if links.relay.control(InternalStream::Job(number), &control, links.port) {
            links.answer(requester, &JobEvent::Signalled);
        } else {
            links.refuse_unknown_job(requester, &request.job);
        }
    }

    /// Attaches a client to a job until the job ends, unless another client sends the job's input.
    pub(crate) fn attach(
        &mut self,
        mut links: JobLinks<'_>,
        requester: ClientStream,
        id: &str,
        attached: bool,
    ) {
        let Some(job) = self.by_id(id) else {
            return links.refuse_unknown_job(requester, id);
        };
        if attached {
            return job.attached.push(requester);
        }
        let message = "another client already sends the job's input".to_owned();
        links.refuse(requester, FailureKind::Other, message);
    }

    /// Removes a client that has gone from all jobs.
    pub(crate) fn detach_client(&mut self, client: u32) {
        for job in &mut self.running {
            job.attached.retain(|(id, _)| *id != client);
        }
    }

    /// Kills the commands whose deadline has passed: first the command, then the other processes on
    /// its terminal.
    pub(crate) fn kill_timed_out(&mut self, relay: &mut Relay, port: &mut FrameSocket) {
        let now = Instant::now();
        let timeouts = std::mem::take(&mut self.timeouts);
        for mut bound in timeouts {
            if bound.at > now {
                self.timeouts.push(bound);
            } else if bound.killed {
                relay.close(bound.internal, port);
            } else {
                let kill = ExecControl::Signal { signal: Signal::KILL.as_raw() };
                relay.control(bound.internal, &kill, port);
                self.timed_out.push(bound.internal);
                bound.killed = true;
                bound.at = now + KILL_TIMEOUT;
                self.timeouts.push(bound);
            }
        }
        // Flush now: the event loop may have no other reason to wake.
        let _ = port.flush();
    }
}
