//! An exec session: a command in the guest with the standard streams of this process.
//!
//! One thread waits for data from the guest. One reads the input. One each writes output and
//! errors, so that a slow reader of one stream does not block the other. One forwards signals. The
//! writer threads are started with the first data, the signal thread with the first signal: most
//! commands print little and end by themselves. Flow control of the protocol bounds the data in
//! flight. The streams may be shared with other programs, so they are never made non-blocking.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use libmsb::capture::CaptureBuffer;
use libmsb::signals::{Signals, signal};
use msb_wire::client::{CallReader, CallSender, ClientConnection, Incoming};
use msb_wire::exec::{ExecControl, ExecEvent, ExecRequest};
use msb_wire::frame::{STDERR, STDIN, STDOUT};
use msb_wire::handshake::operation;
use msb_wire::job::{DetachControl, JobEvent};
use msb_wire::limits::DATA_BYTES;
use msb_wire::sandbox::Request;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, kill_process};

use crate::detach_keys::DetachKeys;
use crate::spec_builder::milliseconds;
use crate::terminal::{RawTerminal, window_size};

/// Signals that are forwarded to the command.
const FORWARDED: &[i32] = &[
    signal::SIGINT,
    signal::SIGTERM,
    signal::SIGHUP,
    signal::SIGQUIT,
    signal::SIGUSR1,
    signal::SIGUSR2,
];

/// Number of interrupting signals after which the session ends without waiting for the command.
const INTERRUPTS_MAX: u32 = 3;

/// Time that a command has to end after SIGKILL.
const KILL_TIMEOUT: Duration = Duration::from_secs(1);

/// Time that the guest has to report that end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Time after which a prefix of the detach keys is passed on.
const KEYS_TIMEOUT: Duration = Duration::from_millis(500);

/// The outcome of a session.
#[derive(Debug)]
pub(crate) struct SessionOutcome {
    /// Last event of the command; `None` if the connection ended before it.
    pub(crate) event: Option<ExecEvent>,
    /// Signal that interrupted the session.
    pub(crate) interrupted_by: Option<i32>,
    /// Set when the command was started.
    pub(crate) started: bool,
    /// ID of the job that the command is now, if the user has detached from it.
    pub(crate) detached: Option<String>,
    /// Set when the reader of standard output has closed it.
    pub(crate) output_closed: bool,
    /// Set when the command was killed because of the timeout.
    pub(crate) timed_out: bool,
}

/// Resources of this process that a session uses. They are acquired before anything is started.
#[derive(Debug)]
pub(crate) struct SessionStreams {
    terminal: Option<Arc<RawTerminal>>,
    signals: Signals,
    timeout: Option<Duration>,
    captured: Option<Arc<CapturedOutput>>,
    detach_keys: Option<DetachKeys>,
}

/// Output of a command, captured instead of passed on.
#[derive(Debug)]
pub(crate) struct CapturedOutput {
    /// Standard output.
    pub(crate) stdout: Mutex<CaptureBuffer>,
    /// Standard error.
    pub(crate) stderr: Mutex<CaptureBuffer>,
}

impl CapturedOutput {
    /// Returns buffers that keep at most `bytes_max` bytes of each stream.
    pub(crate) fn new(bytes_max: u64) -> CapturedOutput {
        let buffer = || Mutex::new(CaptureBuffer::new(bytes_max));
        CapturedOutput { stdout: buffer(), stderr: buffer() }
    }

    fn append(&self, channel: u8, bytes: &[u8]) {
        let buffer = match channel {
            STDERR => &self.stderr,
            _ => &self.stdout,
        };
        let mut buffer = buffer.lock().unwrap_or_else(PoisonError::into_inner);
        buffer.append(bytes);
    }
}

impl SessionStreams {
    /// Takes over signal handling and, for a command on a terminal, the terminal.
    pub(crate) fn acquire(tty: bool) -> anyhow::Result<SessionStreams> {
        let terminal =
            if tty { RawTerminal::enter().context("cannot use the terminal")? } else { None };
        let mut numbers = FORWARDED.to_vec();
        if tty {
            numbers.push(signal::SIGWINCH);
        }
        if terminal.is_some() {
            // Without raw mode the default action of these signals is right.
            numbers.extend([signal::SIGTSTP, signal::SIGCONT]);
        }
        let signals = Signals::of(&numbers).context("cannot wait for signals")?;
        Ok(SessionStreams {
            terminal: terminal.map(Arc::new),
            signals,
            timeout: None,
            captured: None,
            detach_keys: None,
        })
    }

    /// Sets the time after which the command is killed.
    pub(crate) fn with_timeout(self, timeout: Option<Duration>) -> SessionStreams {
        SessionStreams { timeout, ..self }
    }

    /// Sets the keys that detach from the command. They have no effect without a terminal.
    pub(crate) fn with_detach_keys(self, keys: &DetachKeys) -> SessionStreams {
        let detach_keys = self.terminal.is_some().then(|| keys.clone());
        SessionStreams { detach_keys, ..self }
    }

    /// Captures the output instead of passing it on.
    pub(crate) fn with_capture(self, captured: Arc<CapturedOutput>) -> SessionStreams {
        SessionStreams { captured: Some(captured), ..self }
    }
}

/// State shared by the threads of a session.
#[derive(Debug, Default)]
struct SessionState {
    started: AtomicBool,
    stdin_closed: AtomicBool,
    output_closed: AtomicBool,
    interrupted_by: AtomicI32,
    timed_out: AtomicBool,
    /// Time at which the command is killed, when it has started.
    deadline: OnceLock<Instant>,
}

/// The end of a session.
enum SessionEnd {
    /// Last event of the command; `None` if the connection ended before it.
    Command(Option<ExecEvent>),
    /// ID of the job that the command is now.
    Detached(String),
}

/// Runs a command until it ends or the connection closes.
pub(crate) fn run(
    connection: ClientConnection,
    request: ExecRequest,
    streams: SessionStreams,
) -> anyhow::Result<(SessionOutcome, CallReader)> {
    let forward_stdin = request.stdin;
    // A supervisor of an earlier release would pass the request to detach on to the agent.
    let can_detach = connection.peer().require(operation::JOBS_DETACH).is_ok();
    let call = connection.open(&Request::Exec(request))?;
    let (mut reader, sender) = (call.reader, call.sender);
    let state = Arc::new(SessionState::default());
    let terminal = streams.terminal.clone();
    let (timeout, captured) = (streams.timeout, streams.captured.clone());
    let keys = streams.detach_keys.clone().filter(|_| can_detach);
    let mut forwarder =
        SignalForwarder::Idle(Arc::new(streams), sender.clone(), Arc::clone(&state));
    if forward_stdin {
        let (sender, state) = (sender.clone(), Arc::clone(&state));
        spawn("stdin", move || pump_input(&sender, &state, keys))?;
    }
    let writer =
        |channel| OutputWriter::Idle(channel, sender.clone(), Arc::clone(&state), captured.clone());
    let (mut stdout, mut stderr) = (writer(STDOUT), writer(STDERR));
    let mut on_start = || match timeout {
        Some(timeout) => {
            let (sender, state) = (sender.clone(), Arc::clone(&state));
            if let Some(deadline) = Instant::now().checked_add(timeout) {
                let _ = state.deadline.set(deadline);
            }
            spawn("timeout", move || kill_after(timeout, &sender, &state)).map(drop)
        }
        None => Ok(()),
    };
    let end =
        receive((&mut reader, &mut forwarder), &state, &mut stdout, &mut stderr, &mut on_start);
    stdout.finish();
    stderr.finish();
    // The signal thread, if there is one, also holds the terminal, and never ends.
    terminal.iter().for_each(|terminal| terminal.suspend());
    let interrupted_by =
        Some(state.interrupted_by.load(Ordering::Relaxed)).filter(|number| *number != 0);
    let output_closed = state.output_closed.load(Ordering::Relaxed);
    let (event, detached) = match end? {
        SessionEnd::Command(event) => (event, None),
        SessionEnd::Detached(job) => (None, Some(job)),
    };
    // A command that ended by itself at the last moment was in time.
    let ended_itself =
        matches!(event, Some(ExecEvent::Exited { code: Some(_), .. })) || detached.is_some();
    let timed_out = state.timed_out.load(Ordering::Relaxed) && !ended_itself;
    let started = state.started.load(Ordering::Relaxed);
    let outcome =
        SessionOutcome { event, interrupted_by, started, detached, output_closed, timed_out };
    Ok((outcome, reader))
}

fn receive(
    (reader, forwarder): (&mut CallReader, &mut SignalForwarder),
    state: &SessionState,
    stdout: &mut OutputWriter,
    stderr: &mut OutputWriter,
    on_start: &mut dyn FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<SessionEnd> {
    loop {
        let incoming = match reader.receive_after(|socket| forwarder.wait(socket)) {
            Ok(Some(incoming)) => incoming,
            Ok(None) => return Ok(SessionEnd::Command(None)),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(error).context("the sandbox broke the protocol");
            }
            // The supervisor was killed: handle it like a closed connection.
            Err(_) => return Ok(SessionEnd::Command(None)),
        };
        match incoming {
            Incoming::Data { channel, bytes, .. } => match channel {
                STDERR => stderr.write(bytes)?,
                _ => stdout.write(bytes)?,
            },
            Incoming::Event { message, last } => {
                if last && let Ok(JobEvent::Started { job }) = serde_json::from_slice(&message) {
                    return Ok(SessionEnd::Detached(job));
                }
                let event = match serde_json::from_slice(&message) {
                    Ok(event) => event,
                    Err(error) if last => {
                        return Err(error).context("cannot parse the command's last event");
                    }
                    // Ignore events of later versions that do not end the session.
                    Err(_) => continue,
                };
                match event {
                    ExecEvent::Started { .. } => {
                        state.started.store(true, Ordering::Relaxed);
                        on_start()?;
                    }
                    ExecEvent::StdinClosed => state.stdin_closed.store(true, Ordering::Relaxed),
                    end if last => return Ok(SessionEnd::Command(Some(end))),
                    _ => {}
                }
            }
        }
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> anyhow::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work).context("cannot start a thread")
}

/// Reads standard input until it ends or the command has closed its standard input.
fn pump_input(sender: &CallSender, state: &SessionState, mut keys: Option<DetachKeys>) {
    let mut buffer = vec![0; DATA_BYTES];
    // Read from the descriptor directly: the standard library would read ahead and take bytes that
    // belong to others.
    let mut stdin = io::stdin().lock();
    while !state.stdin_closed.load(Ordering::Relaxed) {
        let held = keys.as_mut().filter(|keys| keys.is_pending());
        if let Some(keys) = held
            && !is_readable_within(&stdin, KEYS_TIMEOUT)
            && sender.data(STDIN, &keys.take_pending()).is_err()
        {
            return;
        }
        let count = match read_once(&mut stdin, &mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(count) => count,
        };
        let (forwarded, detaches) = match &mut keys {
            Some(keys) => keys.filter(&buffer[..count]),
            None => (buffer[..count].to_vec(), false),
        };
        if sender.data(STDIN, &forwarded).is_err() {
            return;
        }
        if detaches && sender.control(&detach_control(state)).is_err() {
            return;
        }
    }
    // An error means that the call has ended.
    let _ = sender.end(STDIN);
}

/// Returns the request to detach, with the time that the command has left.
fn detach_control(state: &SessionState) -> DetachControl {
    let left = state.deadline.get().map(|at| at.saturating_duration_since(Instant::now()));
    DetachControl::Detach { timeout_ms: left.map(milliseconds) }
}

/// Waits for input. Returns `true` at once if that is not possible.
fn is_readable_within(descriptor: &impl AsFd, timeout: Duration) -> bool {
    let mut fds = [PollFd::new(descriptor, PollFlags::IN)];
    let timeout = Timespec::try_from(timeout).ok();
    !matches!(poll(&mut fds, timeout.as_ref()), Ok(0))
}

fn read_once(stdin: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match stdin.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// A thread that writes the data of one channel and grants the credit back. It starts with the
/// first data: many commands print nothing.
enum OutputWriter {
    /// Values for the thread, which has not started.
    Idle(u8, CallSender, Arc<SessionState>, Option<Arc<CapturedOutput>>),
    /// The running thread and its queue. The queue needs no limit of its own: credit for the data
    /// in it has not been granted back.
    Busy(mpsc::Sender<Vec<u8>>, JoinHandle<()>),
}

impl OutputWriter {
    fn write(&mut self, bytes: Vec<u8>) -> anyhow::Result<()> {
        if bytes.is_empty() {
            // An empty message only marks the end of the channel.
            return Ok(());
        }
        if let OutputWriter::Idle(channel, sender, state, captured) = self {
            let (queue, incoming) = mpsc::channel();
            let channel = *channel;
            let (sender, state, captured) = (sender.clone(), Arc::clone(state), captured.take());
            let name = if channel == STDERR { "stderr" } else { "stdout" };
            let thread = spawn(name, move || {
                write_all(channel, &incoming, &sender, &state, captured.as_deref());
            })?;
            *self = OutputWriter::Busy(queue, thread);
        }
        if let OutputWriter::Busy(queue, _) = self {
            // The thread ends only after this sender is dropped.
            let _ = queue.send(bytes);
        }
        Ok(())
    }

    fn finish(self) {
        if let OutputWriter::Busy(queue, thread) = self {
            drop(queue);
            let _ = thread.join();
        }
    }
}

fn write_all(
    channel: u8,
    incoming: &mpsc::Receiver<Vec<u8>>,
    sender: &CallSender,
    state: &SessionState,
    captured: Option<&CapturedOutput>,
) {
    let mut closed = false;
    while let Ok(bytes) = incoming.recv() {
        if let Some(captured) = captured {
            captured.append(channel, &bytes);
        } else if !closed && write_raw(channel, &bytes).is_err() {
            closed = true;
            if channel == STDOUT {
                // The reader has closed the pipe. In a pipeline on this host SIGPIPE would end the
                // command.
                state.output_closed.store(true, Ordering::Relaxed);
                let _ = sender.close();
            }
        }
        if sender.used(channel, bytes.len()).is_err() {
            // The connection is gone; data that came before is still written.
            continue;
        }
    }
}

/// Writes to the descriptor without a buffer, so that output appears as soon as it arrives.
fn write_raw(channel: u8, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = match channel {
            STDERR => io::stderr().write(bytes),
            _ => rustix::io::write(rustix::stdio::stdout(), bytes).map_err(io::Error::from),
        };
        match written {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Another program has made the descriptor non-blocking: wait until it is writable.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait_writable(channel)?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn wait_writable(channel: u8) -> io::Result<()> {
    let (stdout, stderr) = (rustix::stdio::stdout(), rustix::stdio::stderr());
    let descriptor = if channel == STDERR { &stderr } else { &stdout };
    let mut fds = [PollFd::new(descriptor, PollFlags::OUT)];
    poll(&mut fds, None)?;
    Ok(())
}

/// Kills the command after the timeout. Output from before that still arrives. If the command does
/// not end, the session is abandoned.
fn kill_after(timeout: Duration, sender: &CallSender, state: &SessionState) {
    std::thread::sleep(timeout);
    state.timed_out.store(true, Ordering::Relaxed);
    let kill = ExecControl::Signal { signal: Signal::KILL.as_raw() };
    let _ = sender.control(&kill);
    // On a terminal SIGKILL only reached the foreground job; closing the session also ends its
    // shell.
    std::thread::sleep(KILL_TIMEOUT);
    let _ = sender.close();
    std::thread::sleep(CLOSE_TIMEOUT);
    sender.hang_up();
}

/// The thread that forwards signals. It starts with the first signal; until then the main thread
/// polls for signals and for data together.
enum SignalForwarder {
    /// Values for the thread, which has not started.
    Idle(Arc<SessionStreams>, CallSender, Arc<SessionState>),
    /// The thread runs.
    Busy,
}

impl SignalForwarder {
    /// Waits until the socket is readable, or starts the thread at the first signal.
    fn wait(&mut self, socket: BorrowedFd<'_>) {
        let SignalForwarder::Idle(streams, sender, state) = self else {
            return;
        };
        let signals = streams.signals.as_fd();
        let mut fds = [socket, signals].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        // After a failed poll or a failed thread start, the next call tries again.
        let waited = rustix::io::retry_on_intr(|| poll(&mut fds, None));
        if waited.is_err() || fds[1].revents().is_empty() {
            return;
        }
        let (streams, sender, state) = (Arc::clone(streams), sender.clone(), Arc::clone(state));
        let thread = spawn("signals", move || {
            forward_signals(&streams, &sender, &state);
        });
        if thread.is_ok() {
            *self = SignalForwarder::Busy;
        }
    }
}

/// Forwards signals to the command. Ends the session if the command has not started or does not
/// respond to repeated signals.
fn forward_signals(streams: &SessionStreams, sender: &CallSender, state: &SessionState) {
    let mut interrupts = 0;
    while let Ok(number) = streams.signals.wait() {
        match number {
            signal::SIGWINCH => drop(sender.control(&ExecControl::Resize(window_size()))),
            signal::SIGTSTP => stop_self(streams),
            signal::SIGCONT => resume_after_stop(streams, sender),
            _ => {
                interrupts +=
                    u32::from(matches!(number, signal::SIGINT | signal::SIGTERM | signal::SIGHUP));
                if !state.started.load(Ordering::Relaxed) || interrupts >= INTERRUPTS_MAX {
                    state.interrupted_by.store(number, Ordering::Relaxed);
                    sender.hang_up();
                } else {
                    drop(sender.control(&ExecControl::Signal { signal: number }));
                }
            }
        }
    }
}

/// Handles SIGTSTP: restores the terminal and stops this process. SIGCONT resumes it; this thread
/// itself may run a little further before the stop takes effect.
fn stop_self(streams: &SessionStreams) {
    streams.terminal.iter().for_each(|terminal| terminal.suspend());
    let _ = kill_process(rustix::process::getpid(), Signal::STOP);
}

/// Takes the terminal back after SIGCONT; its size may have changed.
fn resume_after_stop(streams: &SessionStreams, sender: &CallSender) {
    streams.terminal.iter().for_each(|terminal| drop(terminal.resume()));
    let _ = sender.control(&ExecControl::Resize(window_size()));
}
