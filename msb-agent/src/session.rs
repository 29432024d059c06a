//! One running command and its streams.
//!
//! Flow control: output is read from the command only while the host has granted credit and the
//! port has room, and input is kept only within the window granted to the host. So a session
//! buffers at most one window per channel. After the command has ended, its remaining output is
//! still sent, but its background processes are not waited for.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use msb_wire::credit::{ReceiveCredit, SendCredit};
use msb_wire::exec::{ExecControl, ExecEvent};
use msb_wire::frame::{
    FrameKind, STDIN, STDOUT, flags, put_credit, put_data, put_frame, put_message,
};
use msb_wire::limits::DATA_BYTES;
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::pipe::fcntl_setpipe_size;
use rustix::process::{Pid, WaitStatus};

use crate::{clock, oom, pty, sys};

/// Bytes that are still read from a terminal after the end of the command; more than a terminal can
/// buffer.
const TERMINAL_REST_BYTES: usize = 1024 * 1024;

/// Pipe size for commands with much data.
const PIPE_BYTES: usize = 1024 * 1024;

/// Bytes on a channel after which its pipe grows, so that other commands do not pay for it.
const PIPE_GROWS_AFTER_BYTES: usize = 128 * 1024;

/// Exit status of a shell whose command was killed: 128 + SIGKILL.
const KILLED: i32 = 137;

/// Error: the host violated flow control on this stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CreditViolation;

/// A running command.
pub(crate) struct CommandSession {
    stream: u32,
    pid: Pid,
    /// Start time, since the start of the kernel.
    started_ns: u64,
    status: Option<WaitStatus>,
    oom_killed: bool,
    /// Set for a helper process of the agent, which cleans up and ends when its pipes are closed.
    is_helper: bool,
    /// Set when the client has closed the stream.
    is_closed: bool,
    terminal: Option<Rc<OwnedFd>>,
    input: CommandInput,
    outputs: Vec<CommandOutput>,
}

/// A descriptor for poll(2).
pub(crate) struct WatchedFd<'a> {
    /// Descriptor.
    pub(crate) fd: BorrowedFd<'a>,
    /// Events to wait for; errors and hang-ups are always reported.
    pub(crate) events: PollFlags,
    /// Set if it is the command's standard input.
    pub(crate) is_input: bool,
}

impl CommandSession {
    /// Returns the session of a command on pipes. The agent's ends do not block.
    pub(crate) fn on_pipes(
        stream: u32,
        pid: Pid,
        input: Option<OwnedFd>,
        outputs: Vec<(u8, OwnedFd)>,
    ) -> CommandSession {
        let outputs = outputs
            .into_iter()
            .map(|(channel, fd)| CommandOutput::new(channel, Rc::new(fd)))
            .collect();
        let input = CommandInput::new(input.map(Rc::new), false);
        CommandSession {
            stream,
            pid,
            started_ns: clock::boottime_ns(),
            status: None,
            oom_killed: false,
            is_helper: false,
            is_closed: false,
            terminal: None,
            input,
            outputs,
        }
    }

    /// Marks the process as a helper of the agent, which is not killed because it cleans up when
    /// its pipes are closed.
    pub(crate) fn into_helper(self) -> CommandSession {
        CommandSession { is_helper: true, ..self }
    }

    /// Returns the session of a command on a pseudo-terminal.
    pub(crate) fn on_terminal(
        stream: u32,
        pid: Pid,
        terminal: OwnedFd,
        has_input: bool,
    ) -> CommandSession {
        let terminal = Rc::new(terminal);
        let outputs = vec![CommandOutput::new(STDOUT, Rc::clone(&terminal))];
        let input = CommandInput::new(has_input.then(|| Rc::clone(&terminal)), true);
        CommandSession {
            stream,
            pid,
            started_ns: clock::boottime_ns(),
            status: None,
            oom_killed: false,
            is_helper: false,
            is_closed: false,
            terminal: Some(terminal),
            input,
            outputs,
        }
    }

    /// Returns the command's process.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Returns whether the command has a terminal and is running.
    pub(crate) fn holds_terminal(&self) -> bool {
        self.terminal.is_some() && self.status.is_none()
    }

    /// Returns the descriptors to poll: output while it may be sent, input while some is queued,
    /// and the read end of input for hang-ups.
    pub(crate) fn watches(&self, port_has_room: bool) -> impl Iterator<Item = WatchedFd<'_>> {
        let outputs = self
            .outputs
            .iter()
            .filter(move |output| port_has_room && output.credit.available() > 0);
        let output = outputs.filter_map(|output| {
            Some(WatchedFd {
                fd: output.fd.as_ref()?.as_fd(),
                events: PollFlags::IN,
                is_input: false,
            })
        });
        output.chain(self.input.watch())
    }

    /// Takes data for the command's standard input.
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
            input.return_credit(data.len(), self.stream, out);
        } else {
            input.queue.extend(data);
        }
        input.ended |= ends;
        if unread {
            self.report_unread(out);
        }
        self.pump_input(out);
        Ok(())
    }

    /// Adds credit for a channel.
    pub(crate) fn take_credit(&mut self, channel: u8, bytes: u32) -> Result<(), CreditViolation> {
        let output = self.outputs.iter_mut().find(|output| output.channel == channel);
        if output.is_none_or(|output| output.credit.grant(bytes)) {
            Ok(())
        } else {
            Err(CreditViolation)
        }
    }

    /// Handles a resize or a signal.
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

    /// Closes the session for the client: kills the command and drops its output.
    pub(crate) fn close(&mut self) {
        self.is_closed = true;
        self.hang_up();
        self.input = CommandInput::new(None, false);
        self.input.reported_unread = true;
        self.outputs.clear();
        self.terminal = None;
    }

    /// Returns whether the client has closed the stream.
    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Starts the flow control again with whole windows, for a host that knows nothing of the data
    /// before.
    pub(crate) fn reset_credit(&mut self) {
        self.input.window = SendCredit::default();
        self.input.used = ReceiveCredit::default();
        self.input.inherited = self.input.queue.len();
        for output in &mut self.outputs {
            output.credit = SendCredit::default();
        }
    }

    /// Kills the process group.
    pub(crate) fn hang_up(&self) {
        if self.status.is_none() && !self.is_helper {
            for group in
                [self.terminal.as_ref().and_then(pty::foreground), Some(self.pid.as_raw_pid())]
            {
                let Some(group) = group else { continue };
                sys::kill_group(group, libc::SIGHUP);
                sys::kill_group(group, libc::SIGKILL);
            }
        }
    }

    /// Records the end of the command. The data in its pipes at this time is all that it wrote.
    pub(crate) fn ended(&mut self, status: WaitStatus) {
        self.status = Some(status);
        self.oom_killed = match (status.terminating_signal(), status.exit_status()) {
            (Some(libc::SIGKILL), _) => oom::was_killed_since(Some(self.pid), self.started_ns),
            // A shell returns this status for a command that it ran.
            (_, Some(KILLED)) => oom::was_killed_since(None, self.started_ns),
            _ => false,
        };
        self.input.fd = None;
        for output in &mut self.outputs {
            let Some(fd) = &output.fd else { continue };
            let waiting =
                rustix::io::ioctl_fionread(fd).ok().and_then(|bytes| usize::try_from(bytes).ok());
            output.left = Some(if self.terminal.is_some() {
                TERMINAL_REST_BYTES
            } else {
                waiting.unwrap_or(0)
            });
        }
    }

    /// Handles the loss of the input pipe's last reader.
    pub(crate) fn input_lost_reader(&mut self, out: &mut Vec<u8>) {
        if self.input.fd.is_some() && self.terminal.is_none() {
            self.input.fd = None;
            self.input.discard(self.stream, out);
            self.report_unread(out);
        }
    }

    /// Moves available data, each channel once; output only if the port has room. `scratch` holds
    /// one payload.
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
            self.report_unread(out);
        }
    }

    /// Reports once that the input has no reader.
    fn report_unread(&mut self, out: &mut Vec<u8>) {
        if !self.input.reported_unread && self.status.is_none() {
            self.input.reported_unread = true;
            put_event(out, self.stream, 0, &ExecEvent::StdinClosed);
        }
    }

    /// Returns whether the session must be pumped without an event on its descriptors.
    pub(crate) fn is_draining(&self) -> bool {
        self.status.is_some()
    }

    /// Returns the last event once all output is sent.
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

/// Appends a command event.
pub(crate) fn put_event(out: &mut Vec<u8>, stream: u32, last: u16, event: &ExecEvent) {
    if let Ok(json) = serde_json::to_vec(event) {
        put_message(out, stream, FrameKind::Event, last, &json);
    }
}

/// Standard input of a command.
struct CommandInput {
    fd: Option<Rc<OwnedFd>>,
    is_terminal: bool,
    queue: VecDeque<u8>,
    /// Set when the client has sent its last data.
    ended: bool,
    /// Set when the client was told that the input has no reader.
    reported_unread: bool,
    /// Set if the last written byte ended a line.
    at_line_start: bool,
    /// The end of the input that a terminal was sent last.
    end_sent: Option<pty::EndOfInput>,
    moved: usize,
    window: SendCredit,
    used: ReceiveCredit,
    /// Bytes at the front of the queue for which no credit is returned.
    inherited: usize,
}

impl CommandInput {
    fn new(fd: Option<Rc<OwnedFd>>, is_terminal: bool) -> CommandInput {
        CommandInput {
            fd,
            is_terminal,
            queue: VecDeque::new(),
            ended: false,
            reported_unread: false,
            at_line_start: true,
            end_sent: None,
            moved: 0,
            window: SendCredit::default(),
            used: ReceiveCredit::default(),
            inherited: 0,
        }
    }

    fn watch(&self) -> Option<WatchedFd<'_>> {
        let fd = self.fd.as_ref()?.as_fd();
        match (self.queue.is_empty(), self.is_terminal) {
            (false, _) => Some(WatchedFd { fd, events: PollFlags::OUT, is_input: true }),
            // poll(2) reports a pipe without a reader as an error even without requested events.
            (true, false) => Some(WatchedFd { fd, events: PollFlags::empty(), is_input: true }),
            (true, true) => None,
        }
    }

    /// Writes queued data. Returns true if the input has just lost its reader.
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
        self.return_queued(count, stream, out);
    }

    /// Ends the input after all data is written: closes a pipe, sends VEOF to a terminal.
    fn finish(&mut self, fd: &OwnedFd) {
        if self.is_terminal {
            self.send_end_of_input(fd);
        } else {
            self.fd = None;
        }
    }

    /// Sends VEOF, and again when the terminal enters or leaves canonical mode: a shell edits its
    /// lines in another mode than that in which its programs read, and a VEOF that was sent in one
    /// mode does not count in the other.
    fn send_end_of_input(&mut self, fd: &OwnedFd) {
        let Some(end) = pty::end_of_input(fd) else { return };
        if self.end_sent == Some(end) {
            return;
        }
        self.end_sent = Some(end);
        // In canonical mode the first VEOF only flushes an incomplete line.
        let flushes = end.is_canonical && !self.at_line_start;
        let codes = if flushes { &[end.code, end.code][..] } else { &[end.code][..] };
        // If the terminal's buffer is full, its reader is not at the end of the input.
        let _ = rustix::io::write(fd, codes);
        self.at_line_start = true;
    }

    fn discard(&mut self, stream: u32, out: &mut Vec<u8>) {
        let count = self.queue.len();
        self.queue.clear();
        self.return_queued(count, stream, out);
    }

    /// Returns credit for bytes of the queue.
    fn return_queued(&mut self, count: usize, stream: u32, out: &mut Vec<u8>) {
        let of_others = count.min(self.inherited);
        self.inherited -= of_others;
        self.return_credit(count - of_others, stream, out);
    }

    fn return_credit(&mut self, count: usize, stream: u32, out: &mut Vec<u8>) {
        if let Some(grant) = self.used.used(count) {
            let _ = self.window.grant(grant);
            put_credit(out, stream, STDIN, grant);
        }
    }
}

/// Standard output or standard error of a command.
struct CommandOutput {
    channel: u8,
    fd: Option<Rc<OwnedFd>>,
    credit: SendCredit,
    /// Bytes that are still to be read after the end of the command.
    left: Option<usize>,
    moved: usize,
}

impl CommandOutput {
    fn new(channel: u8, fd: Rc<OwnedFd>) -> CommandOutput {
        CommandOutput { channel, fd: Some(fd), credit: SendCredit::default(), left: None, moved: 0 }
    }

    fn pump(&mut self, stream: u32, out: &mut Vec<u8>, scratch: &mut [u8]) {
        let Some(fd) = &self.fd else { return };
        if self.left == Some(0) {
            return self.finish(stream, out);
        }
        let max = scratch.len().min(self.credit.available()).min(self.left.unwrap_or(usize::MAX));
        if max == 0 {
            return;
        }
        match rustix::io::read(fd, &mut scratch[..max]) {
            Ok(0) => self.finish(stream, out),
            Ok(count) => self.send(&scratch[..count], stream, out),
            Err(Errno::AGAIN) if self.left.is_none() => {}
            Err(Errno::INTR) => {}
            // A terminal reports its end as EIO.
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
        put_frame(out, stream, FrameKind::Data, self.channel, flags::END, &[]);
    }
}

/// Allocates a buffer for the payload of one frame.
pub(crate) fn scratch() -> Box<[u8]> {
    vec![0; DATA_BYTES].into_boxed_slice()
}
