//! The queues of a virtiofs device, and the thread that serves them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::{Context, ensure};
use fuse_backend_rs::abi::fuse_abi::{InHeader, Opcode};
use fuse_backend_rs::api::server::Server;
use fuse_backend_rs::transport::{Reader, VirtioFsWriter};
use libmsb::cli::error::warn;
use libmsb::cli::exit;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::files::SharedFiles;

/// Queues of a virtiofs device: one for high-priority requests, one for the others (virtio 1.2,
/// 5.11.2).
pub(crate) const QUEUES: usize = 2;
/// Maximum number of descriptors of a queue.
pub(crate) const QUEUE_SIZE_MAX: u16 = 1024;
/// Feature bits: virtio version 1, and event indices, with which both sides choose when to be
/// notified (virtio 1.2, 6 and 2.7.10).
pub(crate) const VIRTIO_F_VERSION_1: u64 = 1 << 32;
pub(crate) const VIRTIO_RING_F_EVENT_IDX: u64 = 1 << 29;
/// Features that the device offers.
pub(crate) const FEATURES: u64 = VIRTIO_F_VERSION_1 | VIRTIO_RING_F_EVENT_IDX;

/// Interval at which locks are tried again for guests that wait for them. The host's kernel can
/// wait, but not for several locks in one thread, and nothing else announces a release.
const LOCK_RETRY: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };

/// A queue as the guest has set it up, with guest addresses.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RingLayout {
    /// The number of descriptors.
    pub(crate) size: u16,
    /// The descriptor table.
    pub(crate) descriptors: u64,
    /// The driver's ring.
    pub(crate) available: u64,
    /// The device's ring.
    pub(crate) used: u64,
    /// The next index in the rings.
    pub(crate) next: u16,
}

/// Notification of the guest that a queue has answers.
pub(crate) trait GuestNotifier: Send {
    /// Interrupts the guest on behalf of the queue of this number.
    fn notify(&self, index: usize);
}

/// The file server that answers requests. It outlives the threads that serve a device: a paused VM
/// continues with its files.
#[derive(Clone)]
pub(crate) struct FileServer {
    server: Arc<Server<Arc<SharedFiles>>>,
    files: Arc<SharedFiles>,
}

/// Result of a request.
enum Answer {
    /// Number of bytes of the answer; a malformed request has none.
    Bytes(u32),
    /// Another owner has the lock that the guest waits for. There is no answer yet.
    LockHeld,
}

impl FileServer {
    /// Opens the share in the mount namespace.
    pub(crate) fn open(host_locks: bool) -> anyhow::Result<FileServer> {
        let files = SharedFiles::open(host_locks).context("cannot open the share")?;
        Ok(FileServer::new(files))
    }

    fn new(files: SharedFiles) -> FileServer {
        let files = Arc::new(files);
        FileServer { server: Arc::new(Server::new(files.clone())), files }
    }

    /// Opens another directory.
    #[cfg(test)]
    pub(crate) fn open_directory(directory: &std::path::Path) -> anyhow::Result<FileServer> {
        let directory = directory.to_str().context("no UTF-8")?;
        Ok(FileServer::new(SharedFiles::open_directory(directory, false)?))
    }

    /// Answers a request.
    fn answer(&self, memory: &GuestMemoryMmap, chain: &Chain) -> Answer {
        let answer = || -> Result<usize, String> {
            let reader = Reader::from_descriptor_chain(memory, chain.clone())
                .map_err(|error| error.to_string())?;
            let writer =
                VirtioFsWriter::new(memory, chain.clone()).map_err(|error| error.to_string())?;
            self.server
                .handle_message(reader, writer.into(), None, None)
                .map_err(|error| error.to_string())
        };
        let answer = answer().inspect_err(|error| log::debug!("share: {error}"));
        if self.files.take_refused_lock() && waits_for_lock(memory, chain) {
            return Answer::LockHeld;
        }
        Answer::Bytes(answer.map_or(0, |bytes| u32::try_from(bytes).unwrap_or(0)))
    }
}

/// Returns whether the request is one for a lock that the guest waits for.
fn waits_for_lock(memory: &GuestMemoryMmap, chain: &Chain) -> bool {
    let reader = Reader::from_descriptor_chain(memory, chain.clone());
    let header = reader.ok().and_then(|mut reader| reader.read_obj::<InHeader>().ok());
    header.is_some_and(|header| header.opcode == Opcode::Setlkw as u32)
}

/// A request of a guest that waits for a lock.
pub(crate) struct WaitingRequest {
    queue: usize,
    chain: Chain,
}

/// State of the queues of a device that is not served.
#[derive(Default)]
pub(crate) struct StoppedQueues {
    /// The next index of each queue.
    pub(crate) next: [u16; QUEUES],
    /// Requests before it that have no answer yet.
    pub(crate) waiting: Vec<WaitingRequest>,
}

/// A queue that is served.
struct ServedQueue {
    queue: Queue,
    kick: OwnedFd,
}

/// The thread that serves a device until it is stopped.
pub(crate) struct QueueWorker {
    stop: Arc<OwnedFd>,
    thread: JoinHandle<StoppedQueues>,
}

impl QueueWorker {
    /// Starts to serve. `kicks` are event descriptors, one for each queue, with which the guest
    /// announces requests. `waiting` are requests that a stopped worker left.
    pub(crate) fn start(
        server: FileServer,
        memory: GuestMemoryMmap,
        (layouts, waiting): ([RingLayout; QUEUES], Vec<WaitingRequest>),
        kicks: [OwnedFd; QUEUES],
        event_idx: bool,
        notify: impl GuestNotifier + 'static,
    ) -> anyhow::Result<QueueWorker> {
        let mut queues = Vec::with_capacity(QUEUES);
        for (index, (layout, kick)) in layouts.iter().zip(kicks).enumerate() {
            let unanswered = waiting.iter().filter(|request| request.queue == index).count();
            let queue = layout.queue(&memory, event_idx, unanswered)?;
            queues.push(ServedQueue { queue, kick });
        }
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let memory = Arc::new(memory);
        let mut serving =
            QueueThread { server, memory, queues, waiting, notify, stop: stop.clone() };
        let thread = thread::Builder::new()
            .name("share".to_owned())
            .spawn(move || serving.serve_or_exit())?;
        Ok(QueueWorker { stop, thread })
    }

    /// Stops after the pending requests, but does not wait for locks.
    pub(crate) fn stop(self) -> StoppedQueues {
        // A thread that has ended does not react.
        let _ = signal(&*self.stop);
        self.thread.join().unwrap_or_default()
    }
}

impl RingLayout {
    fn queue(
        &self,
        memory: &GuestMemoryMmap,
        event_idx: bool,
        unanswered: usize,
    ) -> anyhow::Result<Queue> {
        let unanswered = u16::try_from(unanswered).context("too many requests")?;
        let mut queue = Queue::new(QUEUE_SIZE_MAX)?;
        queue.set_size(self.size);
        queue.try_set_desc_table_address(GuestAddress(self.descriptors))?;
        queue.try_set_avail_ring_address(GuestAddress(self.available))?;
        queue.try_set_used_ring_address(GuestAddress(self.used))?;
        queue.set_event_idx(event_idx);
        queue.set_next_avail(self.next);
        queue.set_next_used(self.next.wrapping_sub(unanswered));
        queue.set_ready(true);
        ensure!(
            queue.size() == self.size && queue.is_valid(memory),
            "the guest's queue is outside its memory"
        );
        Ok(queue)
    }
}

/// The state of the thread.
struct QueueThread<N> {
    server: FileServer,
    memory: Arc<GuestMemoryMmap>,
    queues: Vec<ServedQueue>,
    waiting: Vec<WaitingRequest>,
    notify: N,
    stop: Arc<OwnedFd>,
}

impl<N: GuestNotifier> QueueThread<N> {
    /// Serves the queues. Exits the process on a malformed queue: a guest that waits for its files
    /// for ever is worse than none.
    fn serve_or_exit(&mut self) -> StoppedQueues {
        let served = panic::catch_unwind(AssertUnwindSafe(|| self.serve()));
        if !matches!(served, Ok(Ok(()))) {
            // A panic has printed its own message.
            if let Ok(Err(error)) = served {
                warn(&format!("the share is lost: {error:#}"));
            }
            std::process::exit(i32::from(exit::BUG));
        }
        let waiting = std::mem::take(&mut self.waiting);
        let mut stopped = StoppedQueues { next: [0; QUEUES], waiting };
        for (next, served) in stopped.next.iter_mut().zip(&self.queues) {
            *next = served.queue.next_avail();
        }
        stopped
    }

    fn serve(&mut self) -> anyhow::Result<()> {
        // Requests from before the thread was started.
        for index in 0..QUEUES {
            self.drain(index)?;
        }
        loop {
            let [ready @ .., stopped] = self.wait()?;
            if stopped {
                return Ok(());
            }
            for (index, ready) in ready.into_iter().enumerate() {
                if ready {
                    self.take_kick(index)?;
                    self.drain(index)?;
                }
            }
            self.retry_locks()?;
        }
    }

    /// Waits for requests, for the stop, or until locks are tried again. Returns which queues have
    /// requests, and last whether to stop.
    fn wait(&self) -> anyhow::Result<[bool; QUEUES + 1]> {
        let fds: Vec<BorrowedFd<'_>> = self
            .queues
            .iter()
            .map(|served| served.kick.as_fd())
            .chain([self.stop.as_fd()])
            .collect();
        let mut polled: Vec<PollFd<'_>> =
            fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
        let timeout = (!self.waiting.is_empty()).then_some(&LOCK_RETRY);
        loop {
            match poll(&mut polled, timeout) {
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error).context("cannot wait for the guest"),
            }
        }
        let mut ready = [false; QUEUES + 1];
        for (ready, polled) in ready.iter_mut().zip(&polled) {
            *ready = !polled.revents().is_empty();
        }
        Ok(ready)
    }

    fn take_kick(&self, index: usize) -> anyhow::Result<()> {
        let Some(served) = self.queues.get(index) else {
            return Ok(());
        };
        match rustix::io::read(&served.kick, &mut [0_u8; 8]) {
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(error) => Err(error).context("cannot read the guest's notification"),
        }
    }

    /// Answers all requests of a queue.
    fn drain(&mut self, index: usize) -> anyhow::Result<()> {
        let Some(served) = self.queues.get_mut(index) else {
            return Ok(());
        };
        loop {
            served.queue.disable_notification(&*self.memory)?;
            while let Some(chain) = next(&mut served.queue, &self.memory)? {
                match self.server.answer(&self.memory, &chain) {
                    Answer::LockHeld => self.waiting.push(WaitingRequest { queue: index, chain }),
                    Answer::Bytes(bytes) => {
                        let head = chain.head_index();
                        served
                            .put_answer(&self.memory, head, bytes, || self.notify.notify(index))?;
                    }
                }
            }
            if !served.queue.enable_notification(&*self.memory)? {
                return Ok(());
            }
        }
    }

    /// Tries the locks again that guests wait for.
    fn retry_locks(&mut self) -> anyhow::Result<()> {
        for request in std::mem::take(&mut self.waiting) {
            let index = request.queue;
            match (self.server.answer(&self.memory, &request.chain), self.queues.get_mut(index)) {
                (Answer::Bytes(bytes), Some(served)) => {
                    let head = request.chain.head_index();
                    served.put_answer(&self.memory, head, bytes, || self.notify.notify(index))?;
                }
                _ => self.waiting.push(request),
            }
        }
        Ok(())
    }
}

impl ServedQueue {
    /// Gives an answer to the guest, and notifies it if it wants to be.
    fn put_answer(
        &mut self,
        memory: &GuestMemoryMmap,
        head: u16,
        bytes: u32,
        notify: impl FnOnce(),
    ) -> anyhow::Result<()> {
        self.queue.add_used(memory, head, bytes)?;
        if self.queue.needs_notification(memory)? {
            notify();
        }
        Ok(())
    }
}

type Chain = DescriptorChain<Arc<GuestMemoryMmap>>;

fn next(queue: &mut Queue, memory: &Arc<GuestMemoryMmap>) -> anyhow::Result<Option<Chain>> {
    Ok(queue.iter(memory.clone())?.next())
}

/// Writes to an event descriptor.
pub(crate) fn signal(event: impl AsFd) -> io::Result<()> {
    rustix::io::write(event, &1_u64.to_ne_bytes())?;
    Ok(())
}
