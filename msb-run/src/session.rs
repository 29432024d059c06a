//! A command in the guest with our own standard streams: as if it ran here.
//!
//! One thread waits for what comes from the guest; one reads our input; one each writes output and errors, so that a slow
//! reader of one does not hold up the other; one passes signals on. Writers are started when there is something to write,
//! and that for signals with the first: most commands say little and end by themselves. Whatever is under way is bounded
//! by the protocol's windows. The streams may be shared with other programs, so they are never made non-blocking.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use libmsb::capture::CaptureBuffer;
use libmsb::signals::{Signals, signal};
use msb_wire::client::{Connection, Incoming, Reader, Sender};
use msb_wire::exec::{ExecControl, ExecEvent, ExecRequest};
use msb_wire::frame::{STDERR, STDIN, STDOUT};
use msb_wire::limits::DATA_BYTES;
use msb_wire::sandbox::Request;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Signal, kill_process};

use crate::terminal::{RawTerminal, window_size};

/// Signals that are for the command.
const FORWARDED: &[i32] = &[
    signal::SIGINT,
    signal::SIGTERM,
    signal::SIGHUP,
    signal::SIGQUIT,
    signal::SIGUSR1,
    signal::SIGUSR2,
];

/// So many requests to end, and we go without waiting for the command.
const PATIENCE: u32 = 3;

/// Time for a command to end after SIGKILL.
const KILL_PATIENCE: Duration = Duration::from_secs(1);

/// Time for the guest to say so.
const CLOSE_PATIENCE: Duration = Duration::from_secs(10);

/// How a session ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The command's last event; `None` when the connection ended before it.
    pub(crate) event: Option<ExecEvent>,
    /// The signal because of which we did not wait.
    pub(crate) interrupted_by: Option<i32>,
    /// Whether nobody reads our output any more.
    pub(crate) output_closed: bool,
    /// Whether it was killed since it did not end in time.
    pub(crate) timed_out: bool,
}

/// What a session needs of this process, taken before anything is started.
#[derive(Debug)]
pub(crate) struct Streams {
    terminal: Option<Arc<RawTerminal>>,
    signals: Signals,
    timeout: Option<Duration>,
    captured: Option<Arc<Captured>>,
}

/// What a command printed, kept in place of being passed on.
#[derive(Debug)]
pub(crate) struct Captured {
    /// Standard output.
    pub(crate) stdout: Mutex<CaptureBuffer>,
    /// Standard error.
    pub(crate) stderr: Mutex<CaptureBuffer>,
}

impl Captured {
    /// Keeps at most so many bytes of each stream.
    pub(crate) fn new(bytes_max: u64) -> Captured {
        let buffer = || Mutex::new(CaptureBuffer::new(bytes_max));
        Captured {
            stdout: buffer(),
            stderr: buffer(),
        }
    }

    fn append(&self, channel: u8, bytes: &[u8]) {
        let kept = match channel {
            STDERR => &self.stderr,
            _ => &self.stdout,
        };
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.append(bytes);
    }
}

impl Streams {
    /// Takes signals over and, for a command on a terminal, the terminal.
    pub(crate) fn take(tty: bool) -> anyhow::Result<Streams> {
        let terminal = if tty {
            RawTerminal::enter().context("cannot use the terminal")?
        } else {
            None
        };
        let mut numbers = FORWARDED.to_vec();
        if tty {
            numbers.push(signal::SIGWINCH);
        }
        if terminal.is_some() {
            // Without raw mode to be left, the default action is right.
            numbers.extend([signal::SIGTSTP, signal::SIGCONT]);
        }
        let signals = Signals::of(&numbers).context("cannot wait for signals")?;
        Ok(Streams {
            terminal: terminal.map(Arc::new),
            signals,
            timeout: None,
            captured: None,
        })
    }

    /// The command is killed when it has run for so long.
    pub(crate) fn with_timeout(self, timeout: Option<Duration>) -> Streams {
        Streams { timeout, ..self }
    }

    /// What the command prints is kept in place of being passed on.
    pub(crate) fn captured(self, captured: Arc<Captured>) -> Streams {
        Streams {
            captured: Some(captured),
            ..self
        }
    }
}

/// What the threads tell each other.
#[derive(Debug, Default)]
struct Shared {
    started: AtomicBool,
    stdin_closed: AtomicBool,
    output_closed: AtomicBool,
    interrupted_by: AtomicI32,
    timed_out: AtomicBool,
}

/// Runs a command to its end, or to that of the connection.
pub(crate) fn run(
    connection: Connection,
    request: ExecRequest,
    streams: Streams,
) -> anyhow::Result<(Outcome, Reader)> {
    let forward_stdin = request.stdin;
    let call = connection.open(&Request::Exec(request))?;
    let (mut reader, sender) = (call.reader, call.sender);
    let shared = Arc::new(Shared::default());
    let terminal = streams.terminal.clone();
    let (timeout, captured) = (streams.timeout, streams.captured.clone());
    let mut forwarder = Forwarder::Idle(Arc::new(streams), sender.clone(), Arc::clone(&shared));
    if forward_stdin {
        let (sender, shared) = (sender.clone(), Arc::clone(&shared));
        spawn("stdin", move || pump_input(&sender, &shared))?;
    }
    let writer = |channel| {
        Writer::Idle(
            channel,
            sender.clone(),
            Arc::clone(&shared),
            captured.clone(),
        )
    };
    let (mut stdout, mut stderr) = (writer(STDOUT), writer(STDERR));
    let mut on_start = || match timeout {
        Some(timeout) => {
            let (sender, shared) = (sender.clone(), Arc::clone(&shared));
            spawn("timeout", move || end_after(timeout, &sender, &shared)).map(drop)
        }
        None => Ok(()),
    };
    let event = receive(
        (&mut reader, &mut forwarder),
        &shared,
        &mut stdout,
        &mut stderr,
        &mut on_start,
    );
    stdout.finish();
    stderr.finish();
    // The thread for signals, if there is one, holds the terminal too, and never ends.
    terminal.iter().for_each(|terminal| terminal.suspend());
    let interrupted_by =
        Some(shared.interrupted_by.load(Ordering::Relaxed)).filter(|number| *number != 0);
    let output_closed = shared.output_closed.load(Ordering::Relaxed);
    // One that ended by itself in the last moment was in time.
    let by_itself = matches!(event, Ok(Some(ExecEvent::Exited { code: Some(_), .. })));
    let timed_out = shared.timed_out.load(Ordering::Relaxed) && !by_itself;
    Ok((
        Outcome {
            event: event?,
            interrupted_by,
            output_closed,
            timed_out,
        },
        reader,
    ))
}

fn receive(
    (reader, forwarder): (&mut Reader, &mut Forwarder),
    shared: &Shared,
    stdout: &mut Writer,
    stderr: &mut Writer,
    on_start: &mut dyn FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Option<ExecEvent>> {
    loop {
        let incoming = match reader.receive_after(|socket| forwarder.wait(socket)) {
            Ok(Some(incoming)) => incoming,
            Ok(None) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(error).context("the sandbox broke the protocol");
            }
            // The supervisor was killed: as if it had closed.
            Err(_) => return Ok(None),
        };
        match incoming {
            Incoming::Data { channel, bytes, .. } => match channel {
                STDERR => stderr.write(bytes)?,
                _ => stdout.write(bytes)?,
            },
            Incoming::Event { message, last } => {
                let event = match serde_json::from_slice(&message) {
                    Ok(event) => event,
                    Err(error) if last => {
                        return Err(error).context("the command's end cannot be understood");
                    }
                    // Events of later versions, which are no end.
                    Err(_) => continue,
                };
                match event {
                    ExecEvent::Started { .. } => {
                        shared.started.store(true, Ordering::Relaxed);
                        on_start()?;
                    }
                    ExecEvent::StdinClosed => shared.stdin_closed.store(true, Ordering::Relaxed),
                    end if last => return Ok(Some(end)),
                    _ => {}
                }
            }
        }
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> anyhow::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .context("cannot start a thread")
}

/// Reads our input until its end, or that of the command's interest in it.
fn pump_input(sender: &Sender, shared: &Shared) {
    let mut buffer = vec![0; DATA_BYTES];
    // The descriptor itself: the standard library would read ahead what is not ours to take.
    let mut stdin = io::stdin().lock();
    while !shared.stdin_closed.load(Ordering::Relaxed) {
        let count = match read_once(&mut stdin, &mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(count) => count,
        };
        if sender.data(STDIN, &buffer[..count]).is_err() {
            return;
        }
    }
    // When the call is over there is nobody to be told.
    let _ = sender.end(STDIN);
}

fn read_once(stdin: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match stdin.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// A thread that writes what comes on a channel, and says when it is written. Many commands print nothing.
enum Writer {
    /// What it is to know.
    Idle(u8, Sender, Arc<Shared>, Option<Arc<Captured>>),
    /// What it is to write, and itself. The queue needs no bound of its own: what is in it has not been granted back.
    Busy(mpsc::Sender<Vec<u8>>, JoinHandle<()>),
}

impl Writer {
    fn write(&mut self, bytes: Vec<u8>) -> anyhow::Result<()> {
        if bytes.is_empty() {
            // It says no more than that the channel has ended.
            return Ok(());
        }
        if let Writer::Idle(channel, sender, shared, captured) = self {
            let (queue, incoming) = mpsc::channel();
            let channel = *channel;
            let (sender, shared, captured) = (sender.clone(), Arc::clone(shared), captured.take());
            let name = if channel == STDERR {
                "stderr"
            } else {
                "stdout"
            };
            let thread = spawn(name, move || {
                write_all(channel, &incoming, &sender, &shared, captured.as_deref());
            })?;
            *self = Writer::Busy(queue, thread);
        }
        if let Writer::Busy(queue, _) = self {
            // The thread ends only after this.
            let _ = queue.send(bytes);
        }
        Ok(())
    }

    fn finish(self) {
        if let Writer::Busy(queue, thread) = self {
            drop(queue);
            let _ = thread.join();
        }
    }
}

fn write_all(
    channel: u8,
    incoming: &mpsc::Receiver<Vec<u8>>,
    sender: &Sender,
    shared: &Shared,
    captured: Option<&Captured>,
) {
    let mut closed = false;
    while let Ok(bytes) = incoming.recv() {
        if let Some(captured) = captured {
            captured.append(channel, &bytes);
        } else if !closed && write_raw(channel, &bytes).is_err() {
            closed = true;
            if channel == STDOUT {
                // Nobody reads any more: in a pipeline here the command would be ended by SIGPIPE.
                shared.output_closed.store(true, Ordering::Relaxed);
                let _ = sender.close();
            }
        }
        if sender.used(channel, bytes.len()).is_err() {
            // The connection is gone; what came before is still written.
            continue;
        }
    }
}

/// Writes to the descriptor itself: what the command printed is shown the moment it comes.
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
            // Somebody else has made the descriptor non-blocking: wait until it takes more.
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

/// Ends the command when its time is over. What it has printed by then still comes; what does not die is given up.
fn end_after(timeout: Duration, sender: &Sender, shared: &Shared) {
    std::thread::sleep(timeout);
    shared.timed_out.store(true, Ordering::Relaxed);
    let kill = ExecControl::Signal {
        signal: Signal::KILL.as_raw(),
    };
    let _ = sender.control(&kill);
    // Of a terminal only the job in the foreground was killed: close, and its shell is too.
    std::thread::sleep(KILL_PATIENCE);
    let _ = sender.close();
    std::thread::sleep(CLOSE_PATIENCE);
    sender.hang_up();
}

/// The thread that passes signals on, from the first on. Until then they are waited for beside what comes from the guest.
enum Forwarder {
    /// What it is to know.
    Idle(Arc<Streams>, Sender, Arc<Shared>),
    /// It has been started.
    Busy,
}

impl Forwarder {
    /// Waits until the socket has something, or starts the thread with the first signal.
    fn wait(&mut self, socket: BorrowedFd<'_>) {
        let Forwarder::Idle(streams, sender, shared) = self else {
            return;
        };
        let signals = streams.signals.as_fd();
        let mut fds = [socket, signals].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        // When it cannot be waited for both, or there is no thread, the next time is as good.
        let waited = rustix::io::retry_on_intr(|| poll(&mut fds, None));
        if waited.is_err() || fds[1].revents().is_empty() {
            return;
        }
        let (streams, sender, shared) = (Arc::clone(streams), sender.clone(), Arc::clone(shared));
        let thread = spawn("signals", move || {
            forward_signals(&streams, &sender, &shared);
        });
        if thread.is_ok() {
            *self = Forwarder::Busy;
        }
    }
}

/// Passes signals on to the command. Before it has started, and when it does not listen, the session is broken off.
fn forward_signals(streams: &Streams, sender: &Sender, shared: &Shared) {
    let mut endings = 0;
    while let Ok(number) = streams.signals.wait() {
        match number {
            signal::SIGWINCH => drop(sender.control(&ExecControl::Resize(window_size()))),
            signal::SIGTSTP => stop_ourselves(streams),
            signal::SIGCONT => go_on(streams, sender),
            _ => {
                endings += u32::from(matches!(
                    number,
                    signal::SIGINT | signal::SIGTERM | signal::SIGHUP
                ));
                if !shared.started.load(Ordering::Relaxed) || endings >= PATIENCE {
                    shared.interrupted_by.store(number, Ordering::Relaxed);
                    sender.hang_up();
                } else {
                    drop(sender.control(&ExecControl::Signal { signal: number }));
                }
            }
        }
    }
}

/// A stop that was meant for us: the terminal is given back as it was. When we are to go on, SIGCONT says so: this
/// thread itself may run a little further before the stop takes hold of it.
fn stop_ourselves(streams: &Streams) {
    streams
        .terminal
        .iter()
        .for_each(|terminal| terminal.suspend());
    let _ = kill_process(rustix::process::getpid(), Signal::STOP);
}

/// The terminal is ours again, perhaps with another size.
fn go_on(streams: &Streams, sender: &Sender) {
    streams
        .terminal
        .iter()
        .for_each(|terminal| drop(terminal.resume()));
    let _ = sender.control(&ExecControl::Resize(window_size()));
}
