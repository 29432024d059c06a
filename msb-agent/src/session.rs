//! One running command and its streams.
//!
//! Output is read from the command only as far as the host has granted credit and the port has room, input is kept
//! only as far as we granted it; so a session holds a window of each channel and no more. When the command has ended,
//! what it wrote before is still sent, but its background children are not waited for.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use msb_wire::credit::{ReceiveCredit, SendCredit};
use msb_wire::exec::{ExecControl, ExecEvent};
use msb_wire::frame::{Kind, STDIN, STDOUT, flags, put_credit, put_data, put_frame, put_message};
use msb_wire::limits::DATA_BYTES;
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::pipe::fcntl_setpipe_size;
use rustix::process::{Pid, WaitStatus};

use crate::{clock, oom, pty, sys};

/// After the end of a command: bytes that are still read from its terminal. More than a terminal can hold.
const TERMINAL_REST_BYTES: usize = 1024 * 1024;

/// Size of the pipes of a command that moves much.
const PIPE_BYTES: usize = 1024 * 1024;

/// Bytes on a channel after which its pipe grows: a command with little to say is not to pay for it.
const PIPE_GROWS_AFTER_BYTES: usize = 128 * 1024;

/// The exit status by which a command passes on that its own was killed: 128 + SIGKILL.
const KILLED: i32 = 137;

/// The host broke the protocol on this stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CreditViolation;

/// A running command.
pub(crate) struct Session {
    stream: u32,
    pid: Pid,
    /// When it was started, since the kernel's start.
    started_ns: u64,
    status: Option<WaitStatus>,
    oom_killed: bool,
    /// It is a process of our own, which tidies up and ends when its pipes are closed.
    ends_by_itself: bool,
    terminal: Option<Rc<OwnedFd>>,
    input: Input,
    outputs: Vec<Output>,
}

/// A descriptor that poll(2) shall watch, and whose it is.
pub(crate) struct Watch<'a> {
    /// The descriptor.
    pub(crate) fd: BorrowedFd<'a>,
    /// What for; errors and hang-ups are told anyway.
    pub(crate) events: PollFlags,
    /// Whether it is the command's input.
    pub(crate) is_input: bool,
}

impl Session {
    /// A command that has just been started. Our ends do not block.
    pub(crate) fn on_pipes(
        stream: u32,
        pid: Pid,
        input: Option<OwnedFd>,
        outputs: Vec<(u8, OwnedFd)>,
    ) -> Session {
        let outputs = outputs
            .into_iter()
            .map(|(channel, fd)| Output::new(channel, Rc::new(fd)))
            .collect();
        let input = Input::new(input.map(Rc::new), false);
        Session {
            stream,
            pid,
            started_ns: clock::boottime_ns(),
            status: None,
            oom_killed: false,
            ends_by_itself: false,
            terminal: None,
            input,
            outputs,
        }
    }

    /// The same for a process of our own, which tidies up when its pipes are closed and so is not to be killed.
    pub(crate) fn that_ends_by_itself(self) -> Session {
        Session {
            ends_by_itself: true,
            ..self
        }
    }

    /// The same on a terminal.
    pub(crate) fn on_terminal(
        stream: u32,
        pid: Pid,
        terminal: OwnedFd,
        has_input: bool,
    ) -> Session {
        let terminal = Rc::new(terminal);
        let outputs = vec![Output::new(STDOUT, Rc::clone(&terminal))];
        let input = Input::new(has_input.then(|| Rc::clone(&terminal)), true);
        Session {
            stream,
            pid,
            started_ns: clock::boottime_ns(),
            status: None,
            oom_killed: false,
            ends_by_itself: false,
            terminal: Some(terminal),
            input,
            outputs,
        }
    }

    /// The command's process.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Whether it is on a terminal and running.
    pub(crate) fn holds_terminal(&self) -> bool {
        self.terminal.is_some() && self.status.is_none()
    }

    /// What to watch: output while it may be sent, input while there is some, and the closing of input.
    pub(crate) fn watches(&self, port_has_room: bool) -> impl Iterator<Item = Watch<'_>> {
        let outputs = self
            .outputs
            .iter()
            .filter(move |output| port_has_room && output.credit.available() > 0);
        let output = outputs.filter_map(|output| {
            Some(Watch {
                fd: output.fd.as_ref()?.as_fd(),
                events: PollFlags::IN,
                is_input: false,
            })
        });
        output.chain(self.input.watch())
    }

    /// Bytes for the command's standard input.
    pub(crate) fn take_input(
        &mut self,
        data: &[u8],
        ends: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), CreditViolation> {
        let input = &mut self.input;
        if !input.window.spend(data.len()) {
            return Err(CreditViolation);
        }
        let unread = input.fd.is_none() && !input.ended && !data.is_empty();
        if input.fd.is_none() || input.ended {
            input.use_up(data.len(), self.stream, out);
        } else {
            input.queue.extend(data);
        }
        input.ended |= ends;
        if unread {
            self.tell_unread(out);
        }
        self.pump_input(out);
        Ok(())
    }

    /// More credit for a channel.
    pub(crate) fn take_credit(&mut self, channel: u8, bytes: u32) -> Result<(), CreditViolation> {
        let output = self
            .outputs
            .iter_mut()
            .find(|output| output.channel == channel);
        if output.is_none_or(|output| output.credit.grant(bytes)) {
            Ok(())
        } else {
            Err(CreditViolation)
        }
    }

    /// Resize or signal.
    pub(crate) fn control(&mut self, control: &ExecControl) {
        match control {
            ExecControl::Resize(size) => {
                if let Some(terminal) = &self.terminal {
                    let _ = pty::resize(terminal, *size);
                }
            }
            ExecControl::Signal { signal } if self.status.is_none() => {
                let foreground = self.terminal.as_ref().and_then(pty::foreground);
                sys::kill_group(foreground.unwrap_or(self.pid.as_raw_pid()), *signal);
            }
            ExecControl::Signal { .. } => {}
        }
    }

    /// The client is gone: the command is killed, and what it has to say is not read any more.
    pub(crate) fn close(&mut self) {
        self.hang_up();
        self.input = Input::new(None, false);
        self.input.told = true;
        self.outputs.clear();
        self.terminal = None;
    }

    /// Ends the process group at once.
    pub(crate) fn hang_up(&self) {
        if self.status.is_none() && !self.ends_by_itself {
            for group in [
                self.terminal.as_ref().and_then(pty::foreground),
                Some(self.pid.as_raw_pid()),
            ] {
                let Some(group) = group else { continue };
                sys::kill_group(group, libc::SIGHUP);
                sys::kill_group(group, libc::SIGKILL);
            }
        }
    }

    /// The command has ended. What lies in its pipes now is all that it wrote.
    pub(crate) fn ended(&mut self, status: WaitStatus) {
        self.status = Some(status);
        self.oom_killed = match (status.terminating_signal(), status.exit_status()) {
            (Some(libc::SIGKILL), _) => oom::took(Some(self.pid), self.started_ns),
            // A shell says so of a command that it ran.
            (_, Some(KILLED)) => oom::took(None, self.started_ns),
            _ => false,
        };
        self.input.fd = None;
        for output in &mut self.outputs {
            let Some(fd) = &output.fd else { continue };
            let waiting = rustix::io::ioctl_fionread(fd)
                .ok()
                .and_then(|bytes| usize::try_from(bytes).ok());
            output.left = Some(if self.terminal.is_some() {
                TERMINAL_REST_BYTES
            } else {
                waiting.unwrap_or(0)
            });
        }
    }

    /// The input's pipe has no reader any more.
    pub(crate) fn lost_reader(&mut self, out: &mut Vec<u8>) {
        if self.input.fd.is_some() && self.terminal.is_none() {
            self.input.fd = None;
            self.input.discard(self.stream, out);
            self.tell_unread(out);
        }
    }

    /// Moves what can be moved, each channel once; output only if the port has room. `scratch` holds one payload.
    pub(crate) fn pump(&mut self, port_has_room: bool, out: &mut Vec<u8>, scratch: &mut [u8]) {
        self.pump_input(out);
        if !port_has_room {
            return;
        }
        for output in &mut self.outputs {
            output.pump(self.stream, out, scratch);
        }
    }

    fn pump_input(&mut self, out: &mut Vec<u8>) {
        if self.input.pump(self.stream, out) {
            self.tell_unread(out);
        }
    }

    /// Tells once that nobody reads the input.
    fn tell_unread(&mut self, out: &mut Vec<u8>) {
        if !self.input.told && self.status.is_none() {
            self.input.told = true;
            put_event(out, self.stream, 0, &ExecEvent::StdinClosed);
        }
    }

    /// Whether it must be pumped though nothing is heard of its descriptors.
    pub(crate) fn is_draining(&self) -> bool {
        self.status.is_some()
    }

    /// The last event, once all output is sent.
    pub(crate) fn last_event(&self) -> Option<ExecEvent> {
        let status = self.status?;
        if self.outputs.iter().any(|output| output.fd.is_some()) {
            return None;
        }
        Some(ExecEvent::Exited {
            code: status.exit_status(),
            signal: status.terminating_signal(),
            oom_killed: self.oom_killed,
        })
    }
}

/// Appends an event about a command.
pub(crate) fn put_event(out: &mut Vec<u8>, stream: u32, last: u16, event: &ExecEvent) {
    if let Ok(json) = serde_json::to_vec(event) {
        put_message(out, stream, Kind::Event, last, &json);
    }
}

/// Standard input.
struct Input {
    fd: Option<Rc<OwnedFd>>,
    is_terminal: bool,
    queue: VecDeque<u8>,
    /// The client said that nothing follows.
    ended: bool,
    /// The client was told that nobody reads.
    told: bool,
    /// Whether the last byte that was written ended a line.
    at_line_start: bool,
    moved: usize,
    window: SendCredit,
    used: ReceiveCredit,
}

impl Input {
    fn new(fd: Option<Rc<OwnedFd>>, is_terminal: bool) -> Input {
        Input {
            fd,
            is_terminal,
            queue: VecDeque::new(),
            ended: false,
            told: false,
            at_line_start: true,
            moved: 0,
            window: SendCredit::default(),
            used: ReceiveCredit::default(),
        }
    }

    fn watch(&self) -> Option<Watch<'_>> {
        let fd = self.fd.as_ref()?.as_fd();
        match (self.queue.is_empty(), self.is_terminal) {
            (false, _) => Some(Watch {
                fd,
                events: PollFlags::OUT,
                is_input: true,
            }),
            // A pipe without a reader is told as an error, which needs no asking.
            (true, false) => Some(Watch {
                fd,
                events: PollFlags::empty(),
                is_input: true,
            }),
            (true, true) => None,
        }
    }

    /// Writes what waits. Gives whether it was just found that nobody reads it.
    fn pump(&mut self, stream: u32, out: &mut Vec<u8>) -> bool {
        let Some(fd) = self.fd.clone() else {
            self.discard(stream, out);
            return false;
        };
        while !self.queue.is_empty() {
            match rustix::io::write(&fd, self.queue.as_slices().0) {
                Ok(count) => self.wrote(count, &fd, stream, out),
                Err(Errno::AGAIN) => return false,
                Err(Errno::INTR) => {}
                Err(_) => {
                    self.fd = None;
                    self.discard(stream, out);
                    return true;
                }
            }
        }
        if self.ended {
            self.finish(&fd);
        }
        false
    }

    fn wrote(&mut self, count: usize, fd: &OwnedFd, stream: u32, out: &mut Vec<u8>) {
        self.at_line_start =
            count.checked_sub(1).and_then(|last| self.queue.get(last)) == Some(&b'\n');
        self.queue.drain(..count);
        let before = self.moved;
        self.moved = self.moved.saturating_add(count);
        if before < PIPE_GROWS_AFTER_BYTES
            && self.moved >= PIPE_GROWS_AFTER_BYTES
            && !self.is_terminal
        {
            let _ = fcntl_setpipe_size(fd, PIPE_BYTES);
        }
        self.use_up(count, stream, out);
    }

    /// Everything is written and nothing follows.
    fn finish(&mut self, fd: &OwnedFd) {
        if self.is_terminal
            && let Some(code) = pty::end_of_input(fd)
        {
            // The first one only hands over an unfinished line.
            let codes = if self.at_line_start {
                &[code][..]
            } else {
                &[code, code][..]
            };
            let _ = rustix::io::write(fd, codes);
        }
        self.fd = None;
    }

    fn discard(&mut self, stream: u32, out: &mut Vec<u8>) {
        let count = self.queue.len();
        self.queue.clear();
        self.use_up(count, stream, out);
    }

    fn use_up(&mut self, count: usize, stream: u32, out: &mut Vec<u8>) {
        if let Some(grant) = self.used.used(count) {
            let _ = self.window.grant(grant);
            put_credit(out, stream, STDIN, grant);
        }
    }
}

/// Standard output or error.
struct Output {
    channel: u8,
    fd: Option<Rc<OwnedFd>>,
    credit: SendCredit,
    /// After the end of the command: bytes that are still to be read.
    left: Option<usize>,
    moved: usize,
}

impl Output {
    fn new(channel: u8, fd: Rc<OwnedFd>) -> Output {
        Output {
            channel,
            fd: Some(fd),
            credit: SendCredit::default(),
            left: None,
            moved: 0,
        }
    }

    fn pump(&mut self, stream: u32, out: &mut Vec<u8>, scratch: &mut [u8]) {
        let Some(fd) = &self.fd else { return };
        if self.left == Some(0) {
            return self.finish(stream, out);
        }
        let most = scratch
            .len()
            .min(self.credit.available())
            .min(self.left.unwrap_or(usize::MAX));
        if most == 0 {
            return;
        }
        match rustix::io::read(fd, &mut scratch[..most]) {
            Ok(0) => self.finish(stream, out),
            Ok(count) => self.send(&scratch[..count], stream, out),
            Err(Errno::AGAIN) if self.left.is_none() => {}
            Err(Errno::INTR) => {}
            // EIO is how a terminal ends.
            Err(_) => self.finish(stream, out),
        }
    }

    fn send(&mut self, data: &[u8], stream: u32, out: &mut Vec<u8>) {
        put_data(out, stream, self.channel, data);
        let within = self.credit.spend(data.len());
        debug_assert!(within, "more was read than the credit allows");
        let before = self.moved;
        self.moved = self.moved.saturating_add(data.len());
        if before < PIPE_GROWS_AFTER_BYTES
            && self.moved >= PIPE_GROWS_AFTER_BYTES
            && let Some(fd) = &self.fd
        {
            let _ = fcntl_setpipe_size(fd, PIPE_BYTES);
        }
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(data.len());
            if *left == 0 {
                self.finish(stream, out);
            }
        }
    }

    fn finish(&mut self, stream: u32, out: &mut Vec<u8>) {
        self.fd = None;
        put_frame(out, stream, Kind::Data, self.channel, flags::END, &[]);
    }
}

/// Room for the data of one frame.
pub(crate) fn scratch() -> Box<[u8]> {
    vec![0; DATA_BYTES].into_boxed_slice()
}
