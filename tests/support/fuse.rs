//! A wicked machine: it speaks vhost-user to the server of a share, as QEMU does, and puts into the
//! queue what no guest's kernel would, but any guest's root could.
//!
//! The guest's memory is a file. It is written and read as one, and the server maps it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::json;

use super::{PATIENCE, stage};

/// The root of a file system, in FUSE.
pub(crate) const ROOT: u64 = 1;

/// FUSE's numbers of requests (linux/fuse.h).
pub(crate) mod opcode {
    pub(crate) const LOOKUP: u32 = 1;
    pub(crate) const FORGET: u32 = 2;
    pub(crate) const GETATTR: u32 = 3;
    pub(crate) const SETATTR: u32 = 4;
    pub(crate) const READLINK: u32 = 5;
    pub(crate) const SYMLINK: u32 = 6;
    pub(crate) const MKNOD: u32 = 8;
    pub(crate) const MKDIR: u32 = 9;
    pub(crate) const UNLINK: u32 = 10;
    pub(crate) const RMDIR: u32 = 11;
    pub(crate) const RENAME: u32 = 12;
    pub(crate) const LINK: u32 = 13;
    pub(crate) const OPEN: u32 = 14;
    pub(crate) const READ: u32 = 15;
    pub(crate) const WRITE: u32 = 16;
    pub(crate) const STATFS: u32 = 17;
    pub(crate) const RELEASE: u32 = 18;
    pub(crate) const FSYNC: u32 = 20;
    pub(crate) const SETXATTR: u32 = 21;
    pub(crate) const GETXATTR: u32 = 22;
    pub(crate) const FLUSH: u32 = 25;
    pub(crate) const INIT: u32 = 26;
    pub(crate) const OPENDIR: u32 = 27;
    pub(crate) const ACCESS: u32 = 34;
    pub(crate) const CREATE: u32 = 35;
    pub(crate) const RENAME2: u32 = 45;
    pub(crate) const COPY_FILE_RANGE: u32 = 47;
}

/// Stands for the error number of a request that gets no answer, only its descriptor back.
pub(crate) const NO_ANSWER: i32 = 0;

/// vhost-user's numbers of requests (QEMU: docs/interop/vhost-user.rst).
const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const SET_OWNER: u32 = 3;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_BASE: u32 = 10;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const SET_VRING_ENABLE: u32 = 18;

const MEMORY_BYTES: u64 = 1 << 20;
/// Address at which the machine claims to have the guest's memory.
const BASE: u64 = 0x7000_0000_0000;
const QUEUE_SIZE: u16 = 16;
const REQUEST_AT: u64 = 0x1_0000;
const ANSWER_AT: u64 = 0x4_0000;
const ANSWER_BYTES: u32 = 0x2_0000;
/// Flags of a descriptor.
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// Places of the parts of a queue.
fn parts(queue: u64) -> (u64, u64, u64) {
    let at = 0x1000 + queue * 0x4000;
    (at, at + 0x1000, at + 0x2000)
}

/// An entry of a share.
pub(crate) struct Entry<'a> {
    pub(crate) path: &'a Path,
    pub(crate) read_only: bool,
}

/// A server, and the machine that torments it.
pub(crate) struct Machine {
    server: Child,
    socket: UnixStream,
    memory: File,
    kicks: Vec<OwnedFd>,
    calls: Vec<OwnedFd>,
    requests: u16,
    _life: std::io::PipeWriter,
}

impl Machine {
    /// Starts a server for some directories, which have the names `0`, `1`, …, and says hello to
    /// it.
    pub(crate) fn start(entries: &[Entry<'_>]) -> Machine {
        Machine::start_under(&[], Stdio::inherit(), entries)
    }

    /// The same, with a command that starts the server in its turn, and where the server's errors
    /// go.
    pub(crate) fn start_under(starter: &[&str], errors: Stdio, entries: &[Entry<'_>]) -> Machine {
        let (socket, theirs) = UnixStream::pair().unwrap();
        let (life_theirs, life) = std::io::pipe().unwrap();
        let entries = entries.iter().enumerate().map(|(number, entry)| {
            let meta = fs::metadata(entry.path).unwrap();
            json!({ "name": number.to_string(), "path": entry.path, "file": meta.is_file(),
                    "read_only": entry.read_only, "device": meta.dev(), "inode": meta.ino() })
        });
        let plan = json!({ "version": 2, "life_fd": life_theirs.as_raw_fd(), "share": {
            "tag": "t", "fd": theirs.as_raw_fd(), "entries": entries.collect::<Vec<_>>() } });
        let path = std::env::temp_dir().join(format!("plan-{}", theirs.as_raw_fd()));
        fs::write(&path, plan.to_string()).unwrap();
        let inherited = [theirs.as_fd(), life_theirs.as_fd()];
        for fd in inherited {
            fcntl_setfd(fd, FdFlags::empty()).unwrap();
        }
        let program = stage("prefix/lib/msb/msb-vmm");
        let mut words = starter.iter().map(OsStr::new).chain([program.as_os_str()]);
        let server = Command::new(words.next().unwrap())
            .args(words)
            .arg("--share")
            .arg(&path)
            .stdin(Stdio::null())
            .stderr(errors)
            .spawn()
            .unwrap();
        for fd in inherited {
            fcntl_setfd(fd, FdFlags::CLOEXEC).unwrap();
        }
        drop(theirs);
        let memory = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
        memory.set_len(MEMORY_BYTES).unwrap();
        let event = || eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let mut machine = Machine {
            server,
            socket,
            memory,
            kicks: vec![event(), event()],
            calls: vec![event(), event()],
            requests: 0,
            _life: life,
        };
        machine.introduce();
        let _ = fs::remove_file(path);
        machine
    }

    fn introduce(&mut self) {
        self.say(GET_FEATURES, &[], None);
        let mut reply = [0; 20];
        self.socket.read_exact(&mut reply).unwrap();
        let features: u64 = 1 << 32 | 1 << 30;
        self.say(SET_FEATURES, &features.to_ne_bytes(), None);
        self.say(SET_OWNER, &[], None);
        let table = [1_u64, 0, MEMORY_BYTES, BASE, 0].map(u64::to_ne_bytes).concat();
        let memory = self.memory.try_clone().unwrap();
        self.say(SET_MEM_TABLE, &table, Some(memory.as_fd()));
        for queue in 0..2_u32 {
            let state = |value: u32| [queue, value].map(u32::to_ne_bytes).concat();
            self.say(SET_VRING_NUM, &state(u32::from(QUEUE_SIZE)), None);
            self.say(SET_VRING_BASE, &state(0), None);
            let (descriptors, available, used) = parts(u64::from(queue));
            let address = [u64::from(queue), BASE + descriptors, BASE + used, BASE + available, 0];
            self.say(SET_VRING_ADDR, &address.map(u64::to_ne_bytes).concat(), None);
            let index = u64::from(queue).to_ne_bytes();
            self.say(SET_VRING_KICK, &index, Some(self.kicks[queue as usize].as_fd()));
            self.say(SET_VRING_CALL, &index, Some(self.calls[queue as usize].as_fd()));
            self.say(SET_VRING_ENABLE, &state(1), None);
        }
        // Version 7.31, no feature.
        let init = [7_u32, 31, 0, 0].map(u32::to_ne_bytes).concat();
        self.ask(opcode::INIT, 0, &init).unwrap();
    }

    fn say(&self, request: u32, payload: &[u8], fd: Option<BorrowedFd<'_>>) {
        let header = [request, 1, payload.len() as u32].map(u32::to_ne_bytes).concat();
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
        if !fds.is_empty() {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
        }
        let parts = [IoSlice::new(&header), IoSlice::new(payload)];
        sendmsg(&self.socket, &parts, &mut ancillary, SendFlags::empty()).unwrap();
    }

    /// Puts a request into the queue, as root of the guest, and waits for the answer: what follows
    /// its header, or the error's number.
    pub(crate) fn ask(&mut self, opcode: u32, node: u64, payload: &[u8]) -> Result<Vec<u8>, i32> {
        self.ask_as(0, opcode, node, payload)
    }

    /// The same as any user of the guest.
    pub(crate) fn ask_as(
        &mut self,
        user: u32,
        opcode: u32,
        node: u64,
        payload: &[u8],
    ) -> Result<Vec<u8>, i32> {
        let length = 40 + payload.len() as u32;
        let mut request = [length, opcode].map(u32::to_ne_bytes).concat();
        request.extend([u64::from(self.requests) + 1, node].map(u64::to_ne_bytes).concat());
        request.extend([user, user, 1, 0].map(u32::to_ne_bytes).concat());
        request.extend(payload);
        self.memory.write_all_at(&request, REQUEST_AT).unwrap();
        self.memory.write_all_at(&[0; 16], ANSWER_AT).unwrap();
        self.offer(length);
        self.answer()
    }

    /// One chain: the request to be read, and room for the answer's header and for what follows it,
    /// apart, as Linux has it (virtio 1.2, 2.7).
    fn offer(&mut self, length: u32) {
        let (descriptors, available, _) = parts(1);
        let descriptor = |address: u64, length: u32, flags: u16, next: u16| {
            let mut bytes = address.to_le_bytes().to_vec();
            bytes.extend(length.to_le_bytes());
            bytes.extend([flags, next].map(u16::to_le_bytes).concat());
            bytes
        };
        let chain = [
            descriptor(REQUEST_AT, length, NEXT, 1),
            descriptor(ANSWER_AT, 16, WRITE | NEXT, 2),
            descriptor(ANSWER_AT + 16, ANSWER_BYTES, WRITE, 0),
        ];
        self.memory.write_all_at(&chain.concat(), descriptors).unwrap();
        let slot = u64::from(self.requests % QUEUE_SIZE);
        self.memory.write_all_at(&0_u16.to_le_bytes(), available + 4 + 2 * slot).unwrap();
        self.requests += 1;
        self.memory.write_all_at(&self.requests.to_le_bytes(), available + 2).unwrap();
        rustix::io::write(&self.kicks[1], &1_u64.to_ne_bytes()).unwrap();
    }

    fn answer(&mut self) -> Result<Vec<u8>, i32> {
        let (_, _, used) = parts(1);
        let mut index = [0; 2];
        loop {
            self.memory.read_exact_at(&mut index, used + 2).unwrap();
            if u16::from_le_bytes(index) == self.requests {
                break;
            }
            let mut call = [PollFd::new(&self.calls[1], PollFlags::IN)];
            let patience = Timespec::try_from(PATIENCE).unwrap();
            assert_eq!(poll(&mut call, Some(&patience)), Ok(1), "the server does not answer");
            rustix::io::read(&self.calls[1], &mut [0; 8]).unwrap();
        }
        let mut header = [0; 16];
        self.memory.read_exact_at(&mut header, ANSWER_AT).unwrap();
        let length = u32::from_ne_bytes(*header.first_chunk().unwrap());
        let error = i32::from_ne_bytes(*header[4..].first_chunk().unwrap());
        if error != 0 || length == 0 {
            return Err(-error);
        }
        let mut body = vec![0; length as usize - 16];
        self.memory.read_exact_at(&mut body, ANSWER_AT + 16).unwrap();
        Ok(body)
    }

    /// The node of a name in a directory.
    pub(crate) fn lookup(&mut self, directory: u64, name: &str) -> Result<u64, i32> {
        let entry = self.ask(opcode::LOOKUP, directory, &[name.as_bytes(), b"\0"].concat())?;
        Ok(u64::from_ne_bytes(*entry.first_chunk().unwrap()))
    }

    /// Returns the content of a file.
    pub(crate) fn read(&mut self, node: u64) -> Result<Vec<u8>, i32> {
        let handle = self.open(node)?;
        self.read_by(node, handle)
    }

    /// A handle of a file, for reading.
    pub(crate) fn open(&mut self, node: u64) -> Result<u64, i32> {
        let opened = self.ask(opcode::OPEN, node, &[0; 8])?;
        Ok(u64::from_ne_bytes(*opened.first_chunk().unwrap()))
    }

    /// Returns the content of a file, by a handle of it.
    pub(crate) fn read_by(&mut self, node: u64, handle: u64) -> Result<Vec<u8>, i32> {
        let mut request = handle.to_ne_bytes().to_vec();
        request.extend(0_u64.to_ne_bytes());
        request.extend(4096_u32.to_ne_bytes());
        request.extend([0; 20]);
        self.ask(opcode::READ, node, &request)
    }

    /// Closes the connection, and returns the server's exit code.
    pub(crate) fn hang_up(mut self) -> Option<i32> {
        self.socket.flush().unwrap();
        self.socket.shutdown(std::net::Shutdown::Both).unwrap();
        self.server.wait().unwrap().code()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
