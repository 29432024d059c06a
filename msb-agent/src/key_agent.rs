//! Agent forwarding: a socket in the guest that forwards to a client's SSH agent.
//!
//! A helper process serves it as the user who logged in, in a directory that only this user can
//! enter. It does not interpret the data: it relays the bytes of each connection to the host and
//! back. A connection that does not read its answers is closed, so it cannot block the others.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_int};
use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use msb_wire::key_agent::{AgentMessage, CONNECTIONS_MAX, KeyAgentRequest, PIECE_BYTES_MAX};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::Pid;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::boot::GuestState;
use crate::exec::StartRefusal;
use crate::session::CommandSession;
use crate::spawn::Spawner;
use crate::{console, helper, sys};

/// First argument of the helper process.
pub(crate) const ARGUMENT: &str = "key-agent";

/// Same argument for execve(2).
const ROLE: &CStr = c"key-agent";

/// Parent of the socket's directory, as is usual for SSH agents.
const PARENT: &str = "/tmp";

/// Attempts to create a directory. Its name is random, so a collision means that another process
/// interferes.
const ATTEMPTS: usize = 16;

/// Starts the helper process.
pub(crate) fn start(
    guest: &GuestState,
    stream: u32,
    request: &KeyAgentRequest,
    spawner: &mut Spawner,
) -> Result<(CommandSession, Pid), StartRefusal> {
    let (user, json) = (request.user.as_ref(), serde_json::to_vec(request));
    let (session, pid) = helper::start(guest, stream, ROLE, user, json, spawner)?;
    // It removes the socket when its input ends.
    Ok((session.into_helper(), pid))
}

/// Runs the helper process.
pub(crate) fn serve() -> c_int {
    sys::ignore_broken_pipes();
    match relay() {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("key agent: {}", console::reason(error));
            1
        }
    }
}

/// Directory of the socket, removed when dropped.
struct SocketDirectory(PathBuf);

impl SocketDirectory {
    fn make() -> io::Result<SocketDirectory> {
        let mut error = io::Error::from(ErrorKind::AlreadyExists);
        for _ in 0..ATTEMPTS {
            let mut random = [0; 8];
            getrandom(&mut random, GetRandomFlags::empty())?;
            let name = format!("msb-ssh-{:016x}", u64::from_ne_bytes(random));
            let path = Path::new(PARENT).join(name);
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(SocketDirectory(path)),
                Err(why) => error = why,
            }
        }
        Err(error)
    }
}

impl Drop for SocketDirectory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn relay() -> io::Result<()> {
    let directory = SocketDirectory::make()?;
    let path = directory.0.join("agent");
    let listener = UnixListener::bind(&path)?;
    listener.set_nonblocking(true)?;
    let mut sockets = AgentSocket {
        listener,
        open: BTreeMap::new(),
        next: 1,
        from_host: Vec::new(),
        to_host: Vec::new(),
    };
    AgentMessage::Path(path.as_os_str().as_bytes()).put(&mut sockets.to_host);
    loop {
        io::stdout().write_all(&sockets.to_host)?;
        io::stdout().flush()?;
        sockets.to_host.clear();
        if !sockets.run_once()? {
            return Ok(());
        }
    }
}

/// Connections of one socket.
struct AgentSocket {
    listener: UnixListener,
    open: BTreeMap<u32, UnixStream>,
    next: u32,
    /// Received bytes of an incomplete message.
    from_host: Vec<u8>,
    to_host: Vec<u8>,
}

/// Result of a wait: descriptors with events.
struct ReadySet {
    host: bool,
    listener: bool,
    connections: Vec<u32>,
}

impl AgentSocket {
    /// Waits for events and handles them. Returns false when the host has closed its end.
    fn run_once(&mut self) -> io::Result<bool> {
        let ready = self.wait()?;
        if ready.host && !self.read_host()? {
            return Ok(false);
        }
        for id in ready.connections {
            self.read_connection(id);
        }
        if ready.listener {
            self.accept();
        }
        Ok(true)
    }

    fn wait(&self) -> io::Result<ReadySet> {
        let stdin = rustix::stdio::stdin();
        let watch = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        let mut watched = vec![watch(stdin)];
        watched.extend(self.open.values().map(|socket| watch(socket.as_fd())));
        // Further connections wait in the backlog until one is closed.
        if self.open.len() < CONNECTIONS_MAX {
            watched.push(watch(self.listener.as_fd()));
        }
        match poll(&mut watched, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let is_ready = |at: usize| watched.get(at).is_some_and(|fd| !fd.revents().is_empty());
        Ok(ReadySet {
            host: is_ready(0),
            listener: is_ready(1 + self.open.len()),
            connections: (1..)
                .zip(self.open.keys())
                .filter(|(at, _)| is_ready(*at))
                .map(|(_, id)| *id)
                .collect(),
        })
    }

    fn accept(&mut self) {
        let Ok((socket, _)) = self.listener.accept() else {
            return;
        };
        if socket.set_nonblocking(true).is_err() {
            return;
        }
        // An id in use cannot come around again: few are in use, out of four billion.
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        AgentMessage::Opened(id).put(&mut self.to_host);
        self.open.insert(id, socket);
    }

    /// Relays data from a connection to the host.
    fn read_connection(&mut self, id: u32) {
        let Some(socket) = self.open.get_mut(&id) else {
            return;
        };
        let mut bytes = [0; PIECE_BYTES_MAX];
        match socket.read(&mut bytes) {
            Ok(count @ 1..) => AgentMessage::Data(id, &bytes[..count]).put(&mut self.to_host),
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            _ => self.close(id),
        }
    }

    fn close(&mut self, id: u32) {
        if self.open.remove(&id).is_some() {
            AgentMessage::Closed(id).put(&mut self.to_host);
        }
    }

    /// Relays data from the host to connections. Returns false at the end of input.
    fn read_host(&mut self) -> io::Result<bool> {
        let mut bytes = [0; PIECE_BYTES_MAX];
        let count = rustix::io::read(rustix::stdio::stdin(), &mut bytes)?;
        if count == 0 {
            return Ok(false);
        }
        self.from_host.extend_from_slice(&bytes[..count]);
        let whole = std::mem::take(&mut self.from_host);
        let mut rest = &whole[..];
        let malformed = |_| io::Error::from(ErrorKind::InvalidData);
        while let Some(piece) = AgentMessage::take(&mut rest).map_err(malformed)? {
            self.handle_message(piece);
        }
        self.from_host = rest.to_vec();
        Ok(true)
    }

    /// Handles a message from the host. Data for a closed connection is dropped.
    fn handle_message(&mut self, piece: AgentMessage<'_>) {
        match piece {
            AgentMessage::Data(id, data) => {
                let taken = self.open.get_mut(&id).map(|socket| socket.write_all(data));
                if taken.is_some_and(|taken| taken.is_err()) {
                    self.close(id);
                }
            }
            AgentMessage::Closed(id) => self.close(id),
            AgentMessage::Path(_) | AgentMessage::Opened(_) => {}
        }
    }
}
