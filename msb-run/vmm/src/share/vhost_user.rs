//! The vhost-user back end of a virtiofs device: QEMU describes the guest's memory and the queues,
//! and afterwards only the queues are used (QEMU: docs/interop/vhost-user.rst).

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use libmsb::cli::exit;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVirtioFeatures,
    VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    BackendReqHandler, Error, GpuBackend, Result, VhostUserBackendReqHandlerMut,
};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use super::queue::{
    FEATURES, FileServer, GuestNotifier, QUEUE_SIZE_MAX, QUEUES, QueueWorker, RingLayout,
    VIRTIO_RING_F_EVENT_IDX, WaitingRequest, signal,
};

/// Serves until the VM closes the connection.
pub(super) fn serve(socket: UnixStream, host_locks: bool) -> anyhow::Result<()> {
    exit_on_panic();
    let device = Arc::new(Mutex::new(VhostDevice::new(FileServer::open(host_locks)?)));
    let mut requests = BackendReqHandler::from_stream(socket, device);
    loop {
        match requests.handle_request() {
            Ok(()) => {}
            Err(Error::Disconnected | Error::PartialMessage | Error::SocketBroken(_)) => {
                return Ok(());
            }
            Err(error) => return Err(error).context("invalid vhost-user message"),
        }
    }
}

/// Exits the process when any thread panics. Otherwise the guest would block on
/// its shares indefinitely.
fn exit_on_panic() {
    let default_hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        default_hook(panic);
        std::process::exit(i32::from(exit::BUG));
    }));
}

/// Notification of the guest through descriptors that QEMU sends, one for each queue.
#[derive(Default)]
struct CallFds(Mutex<[Option<File>; QUEUES]>);

impl CallFds {
    fn set(&self, index: usize, file: Option<File>) -> Result<()> {
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *files.get_mut(index).ok_or(Error::InvalidParam)? = file;
        Ok(())
    }
}

impl GuestNotifier for Arc<CallFds> {
    fn notify(&self, index: usize) {
        let files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Some(file)) = files.get(index)
            && let Err(error) = signal(file)
        {
            log::error!("share: cannot notify the guest: {error}");
        }
    }
}

/// A queue as QEMU describes it, message by message.
#[derive(Default)]
struct VhostRing {
    layout: RingLayout,
    kick: Option<File>,
    enabled: bool,
}

/// A range of the guest's memory: its guest address and its address in QEMU.
struct GuestRegion {
    guest: u64,
    qemu: u64,
    bytes: u64,
}

struct VhostDevice {
    server: FileServer,
    worker: Option<QueueWorker>,
    features: u64,
    memory: Option<GuestMemoryMmap>,
    regions: Vec<GuestRegion>,
    rings: [VhostRing; QUEUES],
    /// Requests that wait for locks while the queues are stopped.
    waiting: Vec<WaitingRequest>,
    calls: Arc<CallFds>,
}

impl VhostDevice {
    fn new(server: FileServer) -> VhostDevice {
        VhostDevice {
            server,
            worker: None,
            features: 0,
            memory: None,
            regions: Vec::new(),
            rings: Default::default(),
            waiting: Vec::new(),
            calls: Arc::default(),
        }
    }

    fn ring(&mut self, index: usize) -> Result<&mut VhostRing> {
        self.rings.get_mut(index).ok_or(Error::InvalidParam)
    }

    /// Translates an address of QEMU into a guest address.
    fn guest_address(&self, address: u64) -> Result<u64> {
        let inside = |region: &&GuestRegion| {
            address.checked_sub(region.qemu).is_some_and(|offset| offset < region.bytes)
        };
        let region = self.regions.iter().find(inside).ok_or(Error::InvalidParam)?;
        Ok(region.guest + (address - region.qemu))
    }

    /// Starts to serve when all queues and the memory are known.
    fn start_if_ready(&mut self) -> Result<()> {
        let ready = self.rings.iter().all(|ring| ring.enabled && ring.kick.is_some());
        let (true, Some(memory), None) = (ready, self.memory.clone(), &self.worker) else {
            return Ok(());
        };
        let layouts = self.rings.each_ref().map(|ring| ring.layout);
        let kicks = self.rings.iter().filter_map(|ring| ring.kick.as_ref());
        // The rings keep theirs, for a VM that stops and continues.
        let kicks: std::io::Result<Vec<OwnedFd>> =
            kicks.map(|kick| Ok(OwnedFd::from(kick.try_clone()?))).collect();
        let kicks = kicks.map_err(Error::ReqHandlerError)?;
        let kicks = kicks.try_into().map_err(|_| Error::BackendInternalError)?;
        let event_idx = self.features & VIRTIO_RING_F_EVENT_IDX != 0;
        let server = self.server.clone();
        let queues = (layouts, std::mem::take(&mut self.waiting));
        let worker =
            QueueWorker::start(server, memory, queues, kicks, event_idx, self.calls.clone());
        self.worker = Some(worker.map_err(|error| {
            log::error!("share: {error:#}");
            Error::BackendInternalError
        })?);
        Ok(())
    }

    fn stop(&mut self) {
        if let Some(worker) = self.worker.take() {
            let stopped = worker.stop();
            for (ring, next) in self.rings.iter_mut().zip(stopped.next) {
                ring.layout.next = next;
            }
            self.waiting = stopped.waiting;
        }
    }
}

impl VhostUserBackendReqHandlerMut for VhostDevice {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        Err(Error::InvalidOperation("reset"))
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(FEATURES | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        self.features = features;
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::MQ)
    }

    fn set_protocol_features(&mut self, _features: u64) -> Result<()> {
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(QUEUES as u64)
    }

    fn set_mem_table(&mut self, table: &[VhostUserMemoryRegion], files: Vec<File>) -> Result<()> {
        let mut parts = Vec::new();
        let mut regions = Vec::new();
        for (region, file) in table.iter().zip(files) {
            let bytes = usize::try_from(region.memory_size).map_err(|_| Error::InvalidParam)?;
            let offset = FileOffset::new(file, region.mmap_offset);
            parts.push((GuestAddress(region.guest_phys_addr), bytes, Some(offset)));
            regions.push(GuestRegion {
                guest: region.guest_phys_addr,
                qemu: region.user_addr,
                bytes: region.memory_size,
            });
        }
        parts.sort_by_key(|(address, ..)| *address);
        let memory = GuestMemoryMmap::from_ranges_with_files(parts);
        // QEMU may describe other memory while the queues are in use.
        self.stop();
        self.memory = Some(memory.map_err(|_| Error::InvalidParam)?);
        self.regions = regions;
        self.start_if_ready()
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let size = u16::try_from(num).map_err(|_| Error::InvalidParam)?;
        if size == 0 || size > QUEUE_SIZE_MAX {
            return Err(Error::InvalidParam);
        }
        self.ring(index as usize)?.layout.size = size;
        Ok(())
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        let addresses = [descriptor, used, available].map(|address| self.guest_address(address));
        let [descriptors, used, available] = addresses;
        let layout = &mut self.ring(index as usize)?.layout;
        let before = (layout.descriptors, layout.used, layout.available);
        let now = (descriptors?, used?, available?);
        (layout.descriptors, layout.used, layout.available) = now;
        if now != before {
            // The guest has initialized the device again, and its earlier requests are gone.
            self.waiting.clear();
        }
        Ok(())
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let next = u16::try_from(base).map_err(|_| Error::InvalidParam)?;
        let layout = &mut self.ring(index as usize)?.layout;
        let before = std::mem::replace(&mut layout.next, next);
        if next != before {
            self.waiting.clear();
        }
        Ok(())
    }

    /// Stops the queue: the guest has released the device, or the VM pauses.
    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        self.stop();
        let ring = self.ring(index as usize)?;
        ring.enabled = false;
        ring.kick = None;
        let next = u32::from(ring.layout.next);
        Ok(VhostUserVringState::new(index, next))
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> Result<()> {
        self.ring(usize::from(index))?.kick = file;
        self.start_if_ready()
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> Result<()> {
        self.calls.set(usize::from(index), file)
    }

    fn set_vring_err(&mut self, _index: u8, _file: Option<File>) -> Result<()> {
        Ok(())
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.ring(index as usize)?.enabled = enable;
        self.start_if_ready()
    }

    // The operations below were not offered, so QEMU does not use them.

    fn get_config(&mut self, _: u32, _: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        Err(Error::InvalidOperation("config"))
    }

    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        Err(Error::InvalidOperation("config"))
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        Err(Error::InvalidOperation("gpu"))
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        Err(Error::InvalidOperation("shared object"))
    }

    fn get_inflight_fd(&mut self, _: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        Err(Error::InvalidOperation("inflight"))
    }

    fn set_inflight_fd(&mut self, _: &VhostUserInflight, _: File) -> Result<()> {
        Err(Error::InvalidOperation("inflight"))
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Err(Error::InvalidOperation("memory slots"))
    }

    fn add_mem_region(&mut self, _: &VhostUserSingleMemoryRegion, _: File) -> Result<()> {
        Err(Error::InvalidOperation("memory slots"))
    }

    fn remove_mem_region(&mut self, _: &VhostUserSingleMemoryRegion) -> Result<()> {
        Err(Error::InvalidOperation("memory slots"))
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        Err(Error::InvalidOperation("device state"))
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(Error::InvalidOperation("device state"))
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(Error::InvalidOperation("shared memory"))
    }

    fn set_log_base(&mut self, _: &VhostUserLog, _: File) -> Result<()> {
        Err(Error::InvalidOperation("log"))
    }
}
