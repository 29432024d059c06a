//! The queues of a virtiofs device, and the thread that serves them, whatever the way is on which a machine describes them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::{Context, ensure};
use fuse_backend_rs::api::server::Server;
use fuse_backend_rs::transport::{Reader, VirtioFsWriter};
use libmsb::cli::error::print_warning;
use libmsb::cli::exit;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::files::SharedFiles;
use crate::TOOL;

/// Queues of a virtiofs device: one for what is urgent, one for requests (virtio 1.2, 5.11.2).
pub(crate) const QUEUES: usize = 2;
/// Most descriptors of a queue.
pub(crate) const QUEUE_SIZE_MAX: u16 = 1024;
/// Feature bits: the device is one of virtio 1, and both sides say when they want to be notified (virtio 1.2, 6 and 2.7.10).
pub(crate) const VERSION_1: u64 = 1 << 32;
pub(crate) const EVENT_IDX: u64 = 1 << 29;
/// What the device offers.
pub(crate) const FEATURES: u64 = VERSION_1 | EVENT_IDX;

/// A queue as the guest has set it up. Addresses are the guest's.
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
    /// Where in the rings to go on.
    pub(crate) next: u16,
}

/// How the guest is told that a queue has answers.
pub(crate) trait Notify: Send {
    /// Interrupts the guest on behalf of the queue of this number.
    fn notify(&self, index: usize);
}

/// What answers requests. It outlives the threads that serve a device: a machine that is paused goes on with its files.
#[derive(Clone)]
pub(crate) struct FileServer(Arc<Server<SharedFiles>>);

impl FileServer {
    /// Opens what stands on the stage.
    pub(crate) fn open() -> anyhow::Result<FileServer> {
        let files = SharedFiles::open().context("cannot open what is shared")?;
        Ok(FileServer(Arc::new(Server::new(files))))
    }

    /// The same with another directory.
    #[cfg(test)]
    pub(crate) fn open_directory(directory: &std::path::Path) -> anyhow::Result<FileServer> {
        let directory = directory.to_str().context("no UTF-8")?;
        let files = SharedFiles::open_directory(directory)?;
        Ok(FileServer(Arc::new(Server::new(files))))
    }

    /// Answers a request. Returns how many bytes the answer has; one that cannot be understood has none.
    fn answer(&self, memory: &GuestMemoryMmap, chain: Chain<'_>) -> u32 {
        let answer = || -> Result<usize, String> {
            let reader = Reader::from_descriptor_chain(memory, chain.clone())
                .map_err(|error| error.to_string())?;
            let writer = VirtioFsWriter::new(memory, chain).map_err(|error| error.to_string())?;
            self.0
                .handle_message(reader, writer.into(), None, None)
                .map_err(|error| error.to_string())
        };
        answer()
            .inspect_err(|error| log::debug!("share: {error}"))
            .map_or(0, |bytes| u32::try_from(bytes).unwrap_or(0))
    }
}

/// A queue that is served.
struct ServedQueue {
    queue: Queue,
    kick: OwnedFd,
}

/// The thread that serves a device, until it is told to stop.
pub(crate) struct Worker {
    stop: Arc<OwnedFd>,
    thread: JoinHandle<[u16; QUEUES]>,
}

impl Worker {
    /// Starts to serve. `kicks` are event descriptors, one for each queue, by which the guest tells of requests.
    pub(crate) fn start(
        server: FileServer,
        memory: GuestMemoryMmap,
        layouts: [RingLayout; QUEUES],
        kicks: [OwnedFd; QUEUES],
        event_idx: bool,
        notify: impl Notify + 'static,
    ) -> anyhow::Result<Worker> {
        let mut queues = Vec::with_capacity(QUEUES);
        for (layout, kick) in layouts.iter().zip(kicks) {
            let queue = layout.queue(&memory, event_idx)?;
            queues.push(ServedQueue { queue, kick });
        }
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let mut serving = Serving {
            server,
            memory,
            queues,
            notify,
            stop: stop.clone(),
        };
        let thread = thread::Builder::new()
            .name("share".to_owned())
            .spawn(move || serving.serve_or_end())?;
        Ok(Worker { stop, thread })
    }

    /// Stops to serve, after the requests that are there. Returns where each queue would go on.
    pub(crate) fn stop(self) -> [u16; QUEUES] {
        // One that has ended already takes no notice.
        let _ = signal(&*self.stop);
        self.thread.join().unwrap_or_default()
    }
}

impl RingLayout {
    fn queue(&self, memory: &GuestMemoryMmap, event_idx: bool) -> anyhow::Result<Queue> {
        let mut queue = Queue::new(QUEUE_SIZE_MAX)?;
        queue.set_size(self.size);
        queue.try_set_desc_table_address(GuestAddress(self.descriptors))?;
        queue.try_set_avail_ring_address(GuestAddress(self.available))?;
        queue.try_set_used_ring_address(GuestAddress(self.used))?;
        queue.set_event_idx(event_idx);
        queue.set_next_avail(self.next);
        queue.set_next_used(self.next);
        queue.set_ready(true);
        ensure!(
            queue.size() == self.size && queue.is_valid(memory),
            "the guest's queue lies outside of its memory"
        );
        Ok(queue)
    }
}

/// What the thread has.
struct Serving<N> {
    server: FileServer,
    memory: GuestMemoryMmap,
    queues: Vec<ServedQueue>,
    notify: N,
    stop: Arc<OwnedFd>,
}

impl<N: Notify> Serving<N> {
    /// Ends the process with a queue that makes no sense: a guest that waits for its files for ever is worse than none.
    fn serve_or_end(&mut self) -> [u16; QUEUES] {
        let served = panic::catch_unwind(AssertUnwindSafe(|| self.serve()));
        if !matches!(served, Ok(Ok(()))) {
            // A panic has said so itself.
            if let Ok(Err(error)) = served {
                print_warning(TOOL, &format!("the share is lost: {error:#}"));
            }
            std::process::exit(i32::from(exit::BUG));
        }
        let mut next = [0; QUEUES];
        for (next, served) in next.iter_mut().zip(&self.queues) {
            *next = served.queue.next_avail();
        }
        next
    }

    fn serve(&mut self) -> anyhow::Result<()> {
        // What came while nobody served.
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
        }
    }

    /// Waits for requests, or for the end. Returns which queues have some, and last whether it is the end.
    fn wait(&self) -> anyhow::Result<[bool; QUEUES + 1]> {
        let fds: Vec<BorrowedFd<'_>> = self
            .queues
            .iter()
            .map(|served| served.kick.as_fd())
            .chain([self.stop.as_fd()])
            .collect();
        let mut polled: Vec<PollFd<'_>> = fds
            .iter()
            .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
            .collect();
        loop {
            match poll(&mut polled, None) {
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
            served.queue.disable_notification(&self.memory)?;
            while let Some(chain) = next(&mut served.queue, &self.memory)? {
                let head = chain.head_index();
                let bytes = self.server.answer(&self.memory, chain);
                served.queue.add_used(&self.memory, head, bytes)?;
                if served.queue.needs_notification(&self.memory)? {
                    self.notify.notify(index);
                }
            }
            if !served.queue.enable_notification(&self.memory)? {
                return Ok(());
            }
        }
    }
}

type Chain<'a> = DescriptorChain<&'a GuestMemoryMmap>;

fn next<'a>(queue: &mut Queue, memory: &'a GuestMemoryMmap) -> anyhow::Result<Option<Chain<'a>>> {
    Ok(queue.iter(memory)?.next())
}

/// Writes to an event descriptor.
pub(crate) fn signal(event: impl AsFd) -> io::Result<()> {
    rustix::io::write(event, &1_u64.to_ne_bytes())?;
    Ok(())
}
