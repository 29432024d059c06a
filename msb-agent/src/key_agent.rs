//! A socket behind which the SSH agent of a client answers.
//!
//! It is served by a process of its own, as the user who logged in, in a folder that only this user can enter. The
//! process understands nothing of what is said: it carries the bytes of each connection to the host, and back. Who does
//! not read its answers is hung up on, so that nobody holds up the others.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_int};
use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use msb_wire::key_agent::{CONNECTIONS_MAX, KeyAgentRequest, PIECE_BYTES_MAX, Piece};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::Pid;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::boot::Guest;
use crate::exec::Refusal;
use crate::session::Session;
use crate::spawn::Spawner;
use crate::{console, ourselves, sys};

/// First argument of the process that serves the socket.
pub(crate) const ARGUMENT: &str = "key-agent";

/// The same for execve(2).
const ROLE: &CStr = c"key-agent";

/// Where folders of sockets are, by old custom.
const PARENT: &str = "/tmp";

/// Names that are tried for the folder. All are random: more than one means that somebody plays.
const ATTEMPTS: usize = 16;

/// Starts the process.
pub(crate) fn start(
    guest: &Guest,
    stream: u32,
    request: &KeyAgentRequest,
    spawner: &mut Spawner,
) -> Result<(Session, Pid), Refusal> {
    let (user, json) = (request.user.as_ref(), serde_json::to_vec(request));
    let (session, pid) = ourselves::start(guest, stream, ROLE, user, json, spawner)?;
    // When its input ends it removes the socket.
    Ok((session.that_ends_by_itself(), pid))
}

/// The life of the process.
pub(crate) fn serve() -> c_int {
    sys::ignore_broken_pipes();
    match converse() {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("key agent: {}", console::reason(error));
            1
        }
    }
}

/// The folder of the socket, which goes with it.
struct Folder(PathBuf);

impl Folder {
    fn make() -> io::Result<Folder> {
        let mut error = io::Error::from(ErrorKind::AlreadyExists);
        for _ in 0..ATTEMPTS {
            let mut random = [0; 8];
            getrandom(&mut random, GetRandomFlags::empty())?;
            let name = format!("msb-ssh-{:016x}", u64::from_ne_bytes(random));
            let path = Path::new(PARENT).join(name);
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Folder(path)),
                Err(why) => error = why,
            }
        }
        Err(error)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn converse() -> io::Result<()> {
    let folder = Folder::make()?;
    let path = folder.0.join("agent");
    let listener = UnixListener::bind(&path)?;
    listener.set_nonblocking(true)?;
    let mut sockets = Sockets {
        listener,
        open: BTreeMap::new(),
        next: 1,
        from_host: Vec::new(),
        to_host: Vec::new(),
    };
    Piece::Path(path.as_os_str().as_bytes()).put(&mut sockets.to_host);
    loop {
        io::stdout().write_all(&sockets.to_host)?;
        io::stdout().flush()?;
        sockets.to_host.clear();
        if !sockets.turn()? {
            return Ok(());
        }
    }
}

/// The connections of one socket.
struct Sockets {
    listener: UnixListener,
    open: BTreeMap<u32, UnixStream>,
    next: u32,
    /// What came of pieces that are not whole yet.
    from_host: Vec<u8>,
    to_host: Vec<u8>,
}

/// Who has something.
struct Ready {
    host: bool,
    listener: bool,
    connections: Vec<u32>,
}

impl Sockets {
    /// Waits, and does what there is to do. False when the host has ended.
    fn turn(&mut self) -> io::Result<bool> {
        let ready = self.wait()?;
        if ready.host && !self.hear_host()? {
            return Ok(false);
        }
        for id in ready.connections {
            self.hear(id);
        }
        if ready.listener {
            self.accept();
        }
        Ok(true)
    }

    fn wait(&self) -> io::Result<Ready> {
        let stdin = rustix::stdio::stdin();
        let watch = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        let mut watched = vec![watch(stdin)];
        watched.extend(self.open.values().map(|socket| watch(socket.as_fd())));
        // Who comes when there are too many waits until one has gone.
        if self.open.len() < CONNECTIONS_MAX {
            watched.push(watch(self.listener.as_fd()));
        }
        match poll(&mut watched, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let is_ready = |at: usize| watched.get(at).is_some_and(|fd| !fd.revents().is_empty());
        Ok(Ready {
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
        // Numbers that are in use cannot come around again: there are few, and four thousand million others.
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        Piece::Opened(id).put(&mut self.to_host);
        self.open.insert(id, socket);
    }

    /// From a connection to the host.
    fn hear(&mut self, id: u32) {
        let Some(socket) = self.open.get_mut(&id) else {
            return;
        };
        let mut bytes = [0; PIECE_BYTES_MAX];
        match socket.read(&mut bytes) {
            Ok(count @ 1..) => Piece::Data(id, &bytes[..count]).put(&mut self.to_host),
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            _ => self.close(id),
        }
    }

    fn close(&mut self, id: u32) {
        if self.open.remove(&id).is_some() {
            Piece::Closed(id).put(&mut self.to_host);
        }
    }

    /// From the host to connections. False at its end.
    fn hear_host(&mut self) -> io::Result<bool> {
        let mut bytes = [0; PIECE_BYTES_MAX];
        let count = rustix::io::read(rustix::stdio::stdin(), &mut bytes)?;
        if count == 0 {
            return Ok(false);
        }
        self.from_host.extend_from_slice(&bytes[..count]);
        let whole = std::mem::take(&mut self.from_host);
        let mut rest = &whole[..];
        let malformed = |_| io::Error::from(ErrorKind::InvalidData);
        while let Some(piece) = Piece::take(&mut rest).map_err(malformed)? {
            self.tell(piece);
        }
        self.from_host = rest.to_vec();
        Ok(true)
    }

    /// What is for a connection that has gone is for nobody.
    fn tell(&mut self, piece: Piece<'_>) {
        match piece {
            Piece::Data(id, data) => {
                let taken = self.open.get_mut(&id).map(|socket| socket.write_all(data));
                if taken.is_some_and(|taken| taken.is_err()) {
                    self.close(id);
                }
            }
            Piece::Closed(id) => self.close(id),
            Piece::Path(_) | Piece::Opened(_) => {}
        }
    }
}
