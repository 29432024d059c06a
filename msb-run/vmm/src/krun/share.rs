//! The guest's shares as a virtio device of this program in libkrun's VM.
//!
//! libkrun builds a VM from a description of its own devices only, and its file server lets a guest
//! use names for five seconds after the host changed them (krun-devices, `Fs::new`). The
//! description therefore contains an empty file system, which [`ShareDevice`] replaces when the VM
//! is built. The guest's vCPUs run by then, but the guest cannot have reached the device: it probes
//! its devices some 10 ms after its kernel was entered, and the replacement takes place within
//! microseconds after the first instruction. If it should ever be late,
//! [`ReadyShare::replace_device`] detects that the guest has initialized the device (virtio 1.2,
//! 2.1), and the VM does not start.
//!
//! The guest's notifications and the device's interrupt keep their event descriptors, which are
//! registered with KVM.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use anyhow::{Context, anyhow, ensure};
use krun_devices::legacy::{IrqChip, IrqChipDevice, IrqChipT};
use krun_devices::virtio::{
    ActivateError, ActivateResult, DeviceQueue, InterruptTransport, MmioTransport, QueueConfig,
    TYPE_FS, VirtioDevice,
};
use krun_devices::{BusDevice, DeviceType, Error as DeviceError};
use krun_utils::eventfd::EventFd;
use krun_vmm::Vmm;
use vm_memory::GuestMemoryMmap;

use crate::share::{
    FEATURES, FileServer, GuestNotifier, QUEUE_SIZE_MAX, QUEUES, QueueWorker, RingLayout,
    VIRTIO_RING_F_EVENT_IDX,
};

/// The register of a device's status (virtio 1.2, 4.2.2).
const STATUS_REGISTER: u64 = 0x70;
/// Maximum size of a file system's tag, in bytes (virtio 1.2, 5.11.4).
const TAG_BYTES: usize = 36;
/// Size of the configuration of a file system: its tag and its number of request queues.
const CONFIG_BYTES: usize = TAG_BYTES + 4;

const QUEUE_CONFIG: [QueueConfig; QUEUES] = [QueueConfig::new(QUEUE_SIZE_MAX); QUEUES];

/// A share that is ready to be put into a VM.
pub(super) struct ReadyShare {
    name: String,
    tag: String,
    server: FileServer,
}

/// A share of the plan, and the number of its placeholder among the file systems.
#[derive(Debug, PartialEq)]
pub(super) struct PlannedShare {
    pub(super) number: usize,
    pub(super) tag: String,
    pub(super) host_locks: bool,
}

/// Opens the shares before a guest runs.
pub(super) fn prepare(shares: &[PlannedShare]) -> anyhow::Result<Vec<ReadyShare>> {
    shares
        .iter()
        .map(|share| {
            Ok(ReadyShare {
                // The name that libkrun gives to the device (krun-vmm, `attach_fs_devices`).
                name: format!("virtio_fs{}", share.number),
                tag: share.tag.clone(),
                server: FileServer::open(share.host_locks)?,
            })
        })
        .collect()
}

impl ReadyShare {
    /// Replaces the empty file system in a VM that has just been built.
    pub(super) fn replace_device(self, vm: &Vmm) -> anyhow::Result<()> {
        let mut device = vm
            .get_bus_device(DeviceType::Virtio(TYPE_FS), &self.name)
            .with_context(|| format!("libkrun has no device '{}'", self.name))?
            .lock()
            .map_err(|_| anyhow!("a thread of libkrun panicked"))?;
        let mut status = [0; 4];
        device.read(0, STATUS_REGISTER, &mut status);
        ensure!(
            u32::from_le_bytes(status) == 0,
            "the guest initialized its shared directories too early; start the sandbox again"
        );
        let transport = (*device)
            .as_mut_any()
            .downcast_mut::<MmioTransport>()
            .context("unexpected device type in libkrun")?;
        let share = ShareDevice::new(&self.tag, self.server, transport.queue_evts().to_vec())?;
        let interrupt = transport
            .interrupt_evt()
            .try_clone()
            .context("cannot duplicate an event descriptor")?;
        let chip = IrqChipDevice::new(Box::new(IrqEvent(interrupt)));
        let chip: IrqChip = Arc::new(Mutex::new(chip));
        let memory = vm.guest_memory().clone();
        *transport = MmioTransport::new(memory, chip, Arc::new(Mutex::new(share)))
            .map_err(|error| anyhow!("cannot create a device: {error}"))?;
        Ok(())
    }
}

/// The device's interrupt: an event descriptor registered with KVM.
struct IrqEvent(EventFd);

impl BusDevice for IrqEvent {}

impl IrqChipT for IrqEvent {
    fn get_mmio_addr(&self) -> u64 {
        0
    }

    fn get_mmio_size(&self) -> u64 {
        0
    }

    fn set_irq(&self, _line: Option<u32>, _event: Option<&EventFd>) -> Result<(), DeviceError> {
        self.0.write(1).map_err(DeviceError::FailedSignalingUsedQueue)
    }
}

impl GuestNotifier for InterruptTransport {
    fn notify(&self, _index: usize) {
        self.signal_used_queue();
    }
}

/// A virtiofs device that the file server of this program serves.
struct ShareDevice {
    config: [u8; CONFIG_BYTES],
    acked_features: u64,
    server: FileServer,
    /// Event descriptors that KVM signals when the guest notifies a queue.
    kicks: Vec<Arc<EventFd>>,
    worker: Option<QueueWorker>,
}

impl ShareDevice {
    fn new(tag: &str, server: FileServer, kicks: Vec<Arc<EventFd>>) -> anyhow::Result<ShareDevice> {
        ensure!(tag.len() <= TAG_BYTES, "the tag '{tag}' is too long");
        let mut config = [0; CONFIG_BYTES];
        config[..tag.len()].copy_from_slice(tag.as_bytes());
        config[TAG_BYTES..].copy_from_slice(&1_u32.to_le_bytes());
        Ok(ShareDevice { config, acked_features: 0, server, kicks, worker: None })
    }

    fn start(
        &self,
        memory: GuestMemoryMmap,
        interrupt: InterruptTransport,
        queues: &[DeviceQueue],
    ) -> anyhow::Result<QueueWorker> {
        let layouts: Vec<RingLayout> = queues
            .iter()
            .map(|DeviceQueue { queue, .. }| RingLayout {
                size: queue.size,
                descriptors: queue.desc_table.0,
                available: queue.avail_ring.0,
                used: queue.used_ring.0,
                next: 0,
            })
            .collect();
        let kicks = self.kicks.iter().map(|kick| duplicate(kick));
        let kicks = kicks.collect::<anyhow::Result<Vec<OwnedFd>>>()?;
        let wrong = || anyhow!("a virtiofs device has {QUEUES} queues");
        QueueWorker::start(
            self.server.clone(),
            memory,
            (layouts.try_into().map_err(|_| wrong())?, Vec::new()),
            kicks.try_into().map_err(|_| wrong())?,
            self.acked_features & VIRTIO_RING_F_EVENT_IDX != 0,
            interrupt,
        )
    }
}

fn duplicate(event: &EventFd) -> anyhow::Result<OwnedFd> {
    // SAFETY: the descriptor is open as long as the event is, which outlives this borrow.
    let borrowed = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
    borrowed.try_clone_to_owned().context("cannot duplicate an event descriptor")
}

impl VirtioDevice for ShareDevice {
    fn avail_features(&self) -> u64 {
        FEATURES
    }

    fn acked_features(&self) -> u64 {
        self.acked_features
    }

    fn set_acked_features(&mut self, features: u64) {
        self.acked_features = features;
    }

    fn device_type(&self) -> u32 {
        TYPE_FS
    }

    fn device_name(&self) -> &str {
        "share"
    }

    fn queue_config(&self) -> &[QueueConfig] {
        &QUEUE_CONFIG
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let start = usize::try_from(offset).unwrap_or(CONFIG_BYTES);
        let rest = self.config.get(start..).unwrap_or_default();
        for (byte, config) in data.iter_mut().zip(rest) {
            *byte = *config;
        }
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(
        &mut self,
        memory: GuestMemoryMmap,
        interrupt: InterruptTransport,
        queues: Vec<DeviceQueue>,
    ) -> ActivateResult {
        let worker = self.start(memory, interrupt, &queues).map_err(|error| {
            log::error!("share: {error:#}");
            ActivateError::BadActivate
        })?;
        self.worker = Some(worker);
        Ok(())
    }

    fn is_activated(&self) -> bool {
        self.worker.is_some()
    }

    fn reset(&mut self) -> bool {
        if let Some(worker) = self.worker.take() {
            worker.stop();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_replaced_device_keeps_its_descriptors_and_describes_itself() {
        let directory = tempfile::tempdir().unwrap();
        let server = FileServer::open_directory(directory.path()).unwrap();
        let share = ShareDevice::new("msb", server, Vec::new()).unwrap();
        let mut config = [0xff; CONFIG_BYTES + 4];
        share.read_config(0, &mut config);
        assert_eq!(config[..4], *b"msb\0");
        assert_eq!(config[TAG_BYTES..], [1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        share.read_config(u64::MAX, &mut config);
        let Err(error) = ShareDevice::new(&"x".repeat(37), share.server.clone(), Vec::new()) else {
            panic!("a tag of 37 bytes is too long");
        };
        assert!(error.to_string().contains("too long"));
    }
}
