//! The clients of a sandbox: those that are connected, the one to which the sandbox is attached,
//! the keepalive pipe, and those that wait for the end.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use msb_wire::client::check_peer;
use msb_wire::sandbox::{EndEvent, StopEvent};
use rustix::event::PollFlags;

use super::client_listener::ClientListener;
use super::event_loop::PollSet;
use super::frame_socket::FrameSocket;
use super::operations::hello_for_clients;
use super::relay::{ClientId, ClientStream, Relay, RelayNotice};
use crate::startup::StartupHandles;

/// Time for clients to receive what is still queued at the end. The attached client has no limit.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// Interval at which the drain looks at its timeout.
const DRAIN_INTERVAL: Duration = Duration::from_millis(100);

/// The clients of a sandbox.
#[derive(Debug)]
pub(crate) struct Clients {
    pub(crate) relay: Relay,
    /// None at the end: no further client connects.
    listener: Option<ClientListener>,
    attached: Option<ClientId>,
    /// The client that the sandbox was attached to has detached from the main command.
    is_released: bool,
    /// The main command has ended, and other commands hold the sandbox.
    is_held: bool,
    /// The sandbox stops when its commands have ended.
    is_draining: bool,
    /// Clients to disconnect, unless the sandbox ends now: their commands have ended.
    finished: Vec<ClientId>,
    /// The keepalive pipe: its other end is closed when the sandbox is not needed any more.
    keepalive_pipe: Option<File>,
    /// Clients that requested the stop. They are answered after the end.
    stop_requests: Vec<ClientStream>,
    /// Clients that wait for the end.
    wait_requests: Vec<ClientStream>,
}

impl Clients {
    /// Listens for clients, and connects those of the starter. `logged`: the output of the main
    /// command is logged.
    pub(crate) fn open(
        socket: PathBuf,
        starter: &mut StartupHandles,
        logged: bool,
    ) -> anyhow::Result<Clients> {
        let listener = ClientListener::listen(socket)?;
        let mut relay = Relay::new(&hello_for_clients(), logged)?;
        let attach = |client| relay.attach(client).context("cannot use the client's socket");
        let attached = starter.client.take().map(attach).transpose()?;
        Ok(Clients {
            relay,
            listener: Some(listener),
            attached,
            is_released: false,
            is_held: false,
            is_draining: false,
            finished: Vec::new(),
            keepalive_pipe: starter.keepalive_pipe.take(),
            stop_requests: Vec::new(),
            wait_requests: Vec::new(),
        })
    }

    /// Returns the descriptor of the listening socket.
    pub(crate) fn listener_fd(&self) -> Option<BorrowedFd<'_>> {
        self.listener.as_ref().map(|listener| listener.listener.as_fd())
    }

    /// Returns the descriptor of the keepalive pipe.
    pub(crate) fn keepalive_fd(&self) -> Option<BorrowedFd<'_>> {
        self.keepalive_pipe.as_ref().map(AsFd::as_fd)
    }

    /// Adds the connections of the clients. `port` is the agent's port: while its queue is full,
    /// clients are not read.
    pub(crate) fn links<'a, K: Copy>(
        &'a self,
        port: &FrameSocket,
        set: &mut PollSet<'a, K>,
        key: impl Fn(ClientId) -> K,
    ) {
        let takes_more = self.relay.takes_more(port);
        for (id, link, readable) in self.relay.links() {
            let readable = readable && (takes_more || self.relay.may_resume(id));
            set.add(key(id), link.as_fd(), poll_flags(readable, link) | PollFlags::RDHUP);
        }
    }

    /// Accepts the clients that have connected.
    pub(crate) fn accept(&mut self) {
        let Some(listener) = &self.listener else {
            return;
        };
        while let Ok((socket, _)) = listener.listener.accept() {
            if check_peer(&socket).is_err() {
                // The peer is another user. The mode of the directory excludes other users, but a
                // descriptor can be passed on.
                continue;
            }
            if is_ours(&socket) {
                self.relay.add_early_client(socket);
            } else {
                self.relay.add_client(socket);
            }
        }
    }

    /// Returns whether the client to which the sandbox is attached is connected.
    pub(crate) fn is_attached(&self) -> bool {
        self.attached.is_some()
    }

    /// Returns whether the sandbox ends with its main command because a client started it for that
    /// command.
    pub(crate) fn ends_with_main(&self) -> bool {
        self.is_attached() || self.is_released
    }

    /// Detaches the sandbox from its client: it goes on when the client disconnects.
    pub(crate) fn release_main(&mut self) {
        self.attached = None;
        self.is_released = true;
    }

    /// Keeps the sandbox after the end of its main command, for the commands that hold it.
    pub(crate) fn hold(&mut self) {
        self.is_held = true;
        self.finished.extend(self.attached.take());
    }

    /// Returns whether the last command has ended that held the sandbox.
    pub(crate) fn is_hold_over(&self) -> bool {
        self.is_held && !self.relay.is_held()
    }

    /// Refuses new commands. The requester is answered after the end.
    pub(crate) fn begin_drain(&mut self, requester: ClientStream) {
        self.stop_requests.push(requester);
        self.relay.close_to_commands();
        self.is_draining = true;
    }

    /// Returns whether the last command has ended after a request to drain.
    pub(crate) fn is_drained(&self) -> bool {
        self.is_draining && !self.relay.has_commands()
    }

    /// Disconnects a client after its queue is written, unless the sandbox ends now.
    pub(crate) fn add_finished(&mut self, id: ClientId) {
        self.finished.push(id);
    }

    /// Disconnects the clients whose commands have ended.
    pub(crate) fn finish_clients(
        &mut self,
        port: &mut FrameSocket,
        notices: &mut Vec<RelayNotice>,
    ) {
        for id in std::mem::take(&mut self.finished) {
            self.relay.finish_client(id, port, notices);
        }
    }

    /// Forgets a client that has disconnected. Returns whether the sandbox was attached to it.
    pub(crate) fn forget(&mut self, id: ClientId) -> bool {
        let was_attached = self.attached == Some(id);
        if was_attached {
            self.attached = None;
        }
        was_attached
    }

    /// Reads the keepalive pipe. A byte detaches the sandbox from it; returns whether its other end
    /// was closed instead, which stops the sandbox.
    pub(crate) fn keepalive_ended(&mut self) -> bool {
        let mut byte = [0];
        let pipe = self.keepalive_pipe.take();
        !matches!(pipe.as_ref().map(|mut pipe| pipe.read(&mut byte)), Some(Ok(1)))
    }

    /// Writes queued output as far as the sockets take it.
    pub(crate) fn write_out(&mut self, port: &mut FrameSocket, notices: &mut Vec<RelayNotice>) {
        for id in self.relay.unflushed() {
            self.relay.write_client(id, port, notices);
        }
    }

    /// Answers a client.
    pub(crate) fn answer(&mut self, (client, stream): ClientStream, event: &impl serde::Serialize) {
        self.relay.answer(client, stream, event);
    }

    /// Answers a client's stop request after the end.
    pub(crate) fn add_stop_request(&mut self, requester: ClientStream) {
        self.stop_requests.push(requester);
    }

    /// Answers a client's wait request after the end.
    pub(crate) fn add_wait_request(&mut self, requester: ClientStream) {
        self.wait_requests.push(requester);
    }

    /// Closes the listening socket and removes it.
    pub(crate) fn stop_listening(&mut self) {
        self.listener = None;
    }

    /// Answers the clients that wait for the end, and writes all queued output.
    pub(crate) fn finish(mut self, port: &mut FrameSocket, clean: bool, ended: &EndEvent) {
        for requester in std::mem::take(&mut self.stop_requests) {
            self.answer(requester, &StopEvent::Stopped { clean });
        }
        for requester in std::mem::take(&mut self.wait_requests) {
            self.answer(requester, ended);
        }
        self.drain(port);
    }

    fn drain(&mut self, port: &mut FrameSocket) {
        let deadline = Instant::now() + DRAIN_TIMEOUT;
        loop {
            self.write_out(port, &mut Vec::new());
            let unflushed = self.relay.unflushed();
            let waited_for = unflushed.iter().any(|id| self.attached == Some(*id));
            if unflushed.is_empty() || (!waited_for && deadline <= Instant::now()) {
                return;
            }
            let mut set = PollSet::new();
            for (id, link, _) in self.relay.links().filter(|(id, ..)| unflushed.contains(id)) {
                set.add(id, link.as_fd(), PollFlags::OUT);
            }
            let _ = set.wait(Some(Instant::now() + DRAIN_INTERVAL));
        }
    }
}

/// Returns the events to wait for on a connection that carries frames.
pub(crate) fn poll_flags(readable: bool, link: &FrameSocket) -> PollFlags {
    let read = if readable { PollFlags::IN } else { PollFlags::empty() };
    let write = if link.writable() > 0 { PollFlags::OUT } else { PollFlags::empty() };
    read | write
}

/// Returns whether the peer is this process.
fn is_ours(socket: &UnixStream) -> bool {
    rustix::net::sockopt::socket_peercred(socket)
        .is_ok_and(|peer| peer.pid == rustix::process::getpid())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn clients(starter: &mut StartupHandles) -> (tempfile::TempDir, Clients) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sandbox/agent.sock");
        let clients = Clients::open(path, starter, false).unwrap();
        (directory, clients)
    }

    fn keepalive(starter: &mut StartupHandles) -> File {
        let (read, write) = rustix::pipe::pipe().unwrap();
        starter.keepalive_pipe = Some(read.into());
        write.into()
    }

    #[test]
    fn a_byte_detaches_from_the_keepalive_pipe_and_its_end_does_not() {
        let mut starter = StartupHandles::default();
        let mut pipe = keepalive(&mut starter);
        let (_directory, mut detached) = clients(&mut starter);
        pipe.write_all(b"x").unwrap();
        assert!(!detached.keepalive_ended());
        assert!(detached.keepalive_fd().is_none());

        drop(keepalive(&mut starter));
        let (_directory, mut ended) = clients(&mut starter);
        assert!(ended.keepalive_ended());
    }

    #[test]
    fn the_attached_client_is_forgotten_once() {
        let (client, _peer) = UnixStream::pair().unwrap();
        let mut starter = StartupHandles { client: Some(client), ..StartupHandles::default() };
        let (_directory, mut clients) = clients(&mut starter);
        let id = clients.attached.unwrap();
        assert!(clients.is_attached());
        assert!(!clients.forget(id + 1));
        assert!(clients.forget(id));
        assert!(!clients.is_attached() && !clients.forget(id));
    }

    #[test]
    fn a_client_of_this_process_connects_until_the_end() {
        let mut starter = StartupHandles::default();
        let (directory, mut clients) = clients(&mut starter);
        let path = directory.path().join("sandbox/agent.sock");
        let _client = UnixStream::connect(&path).unwrap();
        clients.accept();
        assert_eq!(clients.relay.links().count(), 1);
        clients.stop_listening();
        assert!(!path.exists());
        clients.accept();
    }
}
