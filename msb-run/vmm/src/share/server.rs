//! The vhost-user side of a virtiofs device: QEMU says where the guest's memory and the queues are, and then only the
//! queues speak (QEMU: docs/interop/vhost-user.rst).

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
    EVENT_IDX, FEATURES, FileServer, Notify, QUEUE_SIZE_MAX, QUEUES, RingLayout, Worker, signal,
};

/// Serves until the machine hangs up.
pub(super) fn serve(socket: UnixStream) -> anyhow::Result<()> {
    end_with_any_thread();
    let device = Arc::new(Mutex::new(Device::new(FileServer::open()?)));
    let mut requests = BackendReqHandler::from_stream(socket, device);
    loop {
        match requests.handle_request() {
            Ok(()) => {}
            Err(Error::Disconnected | Error::PartialMessage | Error::SocketBroken(_)) => {
                return Ok(());
            }
            Err(error) => return Err(error).context("cannot understand the machine"),
        }
    }
}

/// A guest that waits for its files for ever is worse than none.
fn end_with_any_thread() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        std::process::exit(i32::from(exit::BUG));
    }));
}

/// How the guest is notified: by descriptors that QEMU sends, one for each queue.
#[derive(Default)]
struct Calls(Mutex<[Option<File>; QUEUES]>);

impl Calls {
    fn set(&self, index: usize, file: Option<File>) -> Result<()> {
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *files.get_mut(index).ok_or(Error::InvalidParam)? = file;
        Ok(())
    }
}

impl Notify for Arc<Calls> {
    fn notify(&self, index: usize) {
        let files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Some(file)) = files.get(index)
            && let Err(error) = signal(file)
        {
            log::error!("share: cannot notify the guest: {error}");
        }
    }
}

/// A queue as QEMU describes it, bit by bit.
#[derive(Default)]
struct Ring {
    layout: RingLayout,
    kick: Option<File>,
    enabled: bool,
}

/// A part of the guest's memory: where it is for the guest, and where QEMU has it.
struct Region {
    guest: u64,
    qemu: u64,
    bytes: u64,
}

struct Device {
    server: FileServer,
    worker: Option<Worker>,
    features: u64,
    memory: Option<GuestMemoryMmap>,
    regions: Vec<Region>,
    rings: [Ring; QUEUES],
    calls: Arc<Calls>,
}

impl Device {
    fn new(server: FileServer) -> Device {
        Device {
            server,
            worker: None,
            features: 0,
            memory: None,
            regions: Vec::new(),
            rings: Default::default(),
            calls: Arc::default(),
        }
    }

    fn ring(&mut self, index: usize) -> Result<&mut Ring> {
        self.rings.get_mut(index).ok_or(Error::InvalidParam)
    }

    /// An address of QEMU as one of the guest.
    fn guest_address(&self, address: u64) -> Result<u64> {
        let inside = |region: &&Region| {
            address
                .checked_sub(region.qemu)
                .is_some_and(|offset| offset < region.bytes)
        };
        let region = self
            .regions
            .iter()
            .find(inside)
            .ok_or(Error::InvalidParam)?;
        Ok(region.guest + (address - region.qemu))
    }

    /// Starts to serve when all is there that this needs.
    fn start_if_ready(&mut self) -> Result<()> {
        let ready = self
            .rings
            .iter()
            .all(|ring| ring.enabled && ring.kick.is_some());
        let (true, Some(memory), None) = (ready, self.memory.clone(), &self.worker) else {
            return Ok(());
        };
        let layouts = self.rings.each_ref().map(|ring| ring.layout);
        let kicks = self.rings.iter().filter_map(|ring| ring.kick.as_ref());
        // The rings keep theirs, for a machine that stops and goes on.
        let kicks: std::io::Result<Vec<OwnedFd>> = kicks
            .map(|kick| Ok(OwnedFd::from(kick.try_clone()?)))
            .collect();
        let kicks = kicks.map_err(Error::ReqHandlerError)?;
        let kicks = kicks.try_into().map_err(|_| Error::BackendInternalError)?;
        let event_idx = self.features & EVENT_IDX != 0;
        let server = self.server.clone();
        let worker = Worker::start(
            server,
            memory,
            layouts,
            kicks,
            event_idx,
            self.calls.clone(),
        );
        self.worker = Some(worker.map_err(|error| {
            log::error!("share: {error:#}");
            Error::BackendInternalError
        })?);
        Ok(())
    }

    fn stop(&mut self) {
        if let Some(worker) = self.worker.take() {
            for (ring, next) in self.rings.iter_mut().zip(worker.stop()) {
                ring.layout.next = next;
            }
        }
    }
}

impl VhostUserBackendReqHandlerMut for Device {
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
            regions.push(Region {
                guest: region.guest_phys_addr,
                qemu: region.user_addr,
                bytes: region.memory_size,
            });
        }
        parts.sort_by_key(|(address, ..)| *address);
        let memory = GuestMemoryMmap::from_ranges_with_files(parts);
        // QEMU may tell of other memory while the queues are in use.
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
        (layout.descriptors, layout.used, layout.available) = (descriptors?, used?, available?);
        Ok(())
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let next = u16::try_from(base).map_err(|_| Error::InvalidParam)?;
        self.ring(index as usize)?.layout.next = next;
        Ok(())
    }

    /// The queue stops: the guest has let go of the device, or the machine pauses.
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

    // Nothing below was offered, so nobody asks for it.

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
