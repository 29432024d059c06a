//! Probe of hardware virtualization: finds out whether KVM works on the host, and why not.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use kvm_bindings::{KVM_API_VERSION, kvm_userspace_memory_region};
use kvm_ioctls::{VcpuExit, VmFd};
use libmsb::cli::error::Failure;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// The device of KVM.
const KVM_DEVICE: &str = "/dev/kvm";

/// Timeout of a virtual machine that executes one instruction. It takes a few milliseconds, but
/// seconds on a busy host that is itself emulated.
const PROBE_TIMEOUT: Duration = Duration::from_secs(30);

/// One page of memory for the guest, and its guest address.
const PAGE_BYTES: usize = 4096;
const GUEST_PAGE_ADDRESS: u64 = 0x1000;
/// Address of the task state segment: three pages below the top of the first 4 GiB, where other
/// VMMs place it.
const TSS_ADDRESS: usize = 0xfffb_d000;
/// The instruction HLT.
const HLT: [u8; 1] = [0xf4];

/// Support for hardware virtualization.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum KvmSupport {
    /// A virtual machine has executed an instruction.
    Works,
    /// The processor supports it, but there is no `/dev/kvm`.
    Missing,
    /// `/dev/kvm` cannot be opened by this user.
    NoPermission {
        /// The group that has the permission, if the file's group has a name.
        group: Option<String>,
    },
    /// The processor has neither vmx nor svm, whatever the kernel offers.
    NoHardware,
    /// KVM is present but does not work.
    Broken {
        /// The error.
        what: String,
    },
}

impl KvmSupport {
    /// Returns the reason why it cannot be used, with a hint.
    pub(crate) fn failure(&self) -> Option<Failure> {
        let (message, hint) = match self {
            KvmSupport::Works => return None,
            KvmSupport::Missing => (
                format!("hardware virtualization cannot be used: there is no '{KVM_DEVICE}'"),
                "load the kernel module: sudo modprobe kvm_intel, or kvm_amd; \
                 if that fails, enable virtualization in the firmware (BIOS)"
                    .to_owned(),
            ),
            KvmSupport::NoPermission { group } => (
                format!(
                    "hardware virtualization cannot be used: no permission to open '{KVM_DEVICE}'"
                ),
                permission_hint(group.as_deref()),
            ),
            KvmSupport::NoHardware => (
                "the processor of this host has no hardware virtualization \
                 (neither vmx nor svm)"
                    .to_owned(),
                "use the engine qemu; if this host is itself a virtual machine, \
                 enable nested virtualization on its host"
                    .to_owned(),
            ),
            KvmSupport::Broken { what } => (
                format!("hardware virtualization does not work: {what}"),
                "use the engine qemu, and read the kernel log: sudo dmesg | grep -i kvm".to_owned(),
            ),
        };
        Some(Failure::failed(message).hint(hint))
    }
}

fn permission_hint(group: Option<&str>) -> String {
    match group {
        // Membership in a group takes effect at the next login.
        Some(group) if group != "root" => {
            format!("join its group, then log in again: sudo usermod -aG {group} $USER")
        }
        _ => format!(
            "let a group open it: sudo chgrp kvm {KVM_DEVICE} && sudo chmod 660 {KVM_DEVICE}"
        ),
    }
}

/// Probes whether KVM works. Neither an open `/dev/kvm` nor a created virtual machine proves it:
/// only an executed instruction does.
pub(crate) fn probe_kvm() -> KvmSupport {
    let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    probe(&processor, Path::new(KVM_DEVICE))
}

fn probe(processor: &str, device: &Path) -> KvmSupport {
    if !is_capable(processor) {
        return KvmSupport::NoHardware;
    }
    // Closed on exec, as are all descriptors derived from it.
    let opened = OpenOptions::new().read(true).write(true).open(device);
    let file = match opened {
        Ok(file) => file,
        Err(error) => return open_failure(&error, device),
    };
    // In a thread, so that a hanging virtual machine does not block this process.
    let (sender, answer) = mpsc::channel();
    thread::spawn(move || {
        // The result is sent before the VM is destroyed: that takes the kernel longer than creating
        // it.
        let ended = execute(file);
        drop(sender.send(ended.as_ref().map(|_| ()).map_err(String::clone)));
    });
    match answer.recv_timeout(PROBE_TIMEOUT) {
        Ok(Ok(())) => KvmSupport::Works,
        Ok(Err(what)) => KvmSupport::Broken { what },
        Err(_) => KvmSupport::Broken {
            what: "a virtual machine did not execute its first instruction in time".to_owned(),
        },
    }
}

/// Returns whether the processor has one of the two virtualization extensions.
fn is_capable(processor: &str) -> bool {
    let flags = processor.lines().find(|line| line.starts_with("flags"));
    flags.unwrap_or_default().split_whitespace().any(|flag| flag == "vmx" || flag == "svm")
}

fn open_failure(error: &io::Error, device: &Path) -> KvmSupport {
    match error.kind() {
        io::ErrorKind::NotFound => KvmSupport::Missing,
        io::ErrorKind::PermissionDenied => KvmSupport::NoPermission {
            group: std::fs::metadata(device).ok().and_then(|meta| group_name(meta.gid())),
        },
        // The file exists without a driver.
        _ if error.raw_os_error() == Some(libc::ENODEV) => KvmSupport::Missing,
        _ => KvmSupport::Broken { what: format!("cannot open '{}': {error}", device.display()) },
    }
}

fn group_name(id: u32) -> Option<String> {
    let groups = std::fs::read_to_string("/etc/group").ok()?;
    let id = id.to_string();
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == id).then(|| name.to_owned())
    })
}

/// A virtual machine that has halted. Its memory is dropped after it.
struct HaltedVm {
    _vm: VmFd,
    _page: GuestPage,
}

/// Runs a virtual machine of one page until it halts.
fn execute(device: File) -> Result<HaltedVm, String> {
    use std::os::fd::IntoRawFd;
    // SAFETY: the descriptor is open, its ownership is passed on here, and there is no other owner.
    let kvm =
        unsafe { <kvm_ioctls::Kvm as std::os::fd::FromRawFd>::from_raw_fd(device.into_raw_fd()) };
    if kvm.get_api_version() != KVM_API_VERSION as i32 {
        return Err(format!("its API version is {}, not {KVM_API_VERSION}", kvm.get_api_version()));
    }
    let vm =
        kvm.create_vm().map_err(|error| format!("cannot create a virtual machine: {error}"))?;
    let page = GuestPage::new().map_err(|error| format!("cannot map memory: {error}"))?;
    halt(&vm, &page)?;
    Ok(HaltedVm { _vm: vm, _page: page })
}

fn halt(vm: &VmFd, page: &GuestPage) -> Result<(), String> {
    let describe = |what: &str| {
        let what = what.to_owned();
        move |error: kvm_ioctls::Error| format!("cannot {what}: {error}")
    };
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: GUEST_PAGE_ADDRESS,
        memory_size: PAGE_BYTES as u64,
        userspace_addr: page.address as u64,
    };
    // Intel's processors need a task state segment for real mode; any address without memory will
    // do.
    vm.set_tss_address(TSS_ADDRESS).map_err(describe("set up a virtual machine"))?;
    // SAFETY: the region is a whole mapping that outlives the VM, whose owner holds it;
    // nothing else looks into it.
    unsafe { vm.set_user_memory_region(region) }
        .map_err(describe("give memory to a virtual machine"))?;
    let mut processor = vm.create_vcpu(0).map_err(describe("create a virtual processor"))?;
    let mut segments = processor.get_sregs().map_err(describe("read a virtual processor"))?;
    (segments.cs.base, segments.cs.selector) = (0, 0);
    processor.set_sregs(&segments).map_err(describe("set up a virtual processor"))?;
    let mut registers = processor.get_regs().map_err(describe("read a virtual processor"))?;
    // Bit 1 is always set (Intel's manual, volume 1, 3.4.3).
    (registers.rip, registers.rflags) = (GUEST_PAGE_ADDRESS, 2);
    processor.set_regs(&registers).map_err(describe("set up a virtual processor"))?;
    loop {
        match processor.run() {
            Ok(VcpuExit::Hlt) => return Ok(()),
            Ok(other) => {
                return Err(format!(
                    "unexpected exit of a virtual machine that should halt: {other:?}"
                ));
            }
            Err(error) if error.errno() == libc::EINTR => {}
            Err(error) => return Err(format!("cannot run a virtual machine: {error}")),
        }
    }
}

/// A page of memory that starts with [`HLT`].
struct GuestPage {
    address: *mut libc::c_void,
}

impl GuestPage {
    fn new() -> io::Result<GuestPage> {
        // SAFETY: a new mapping at an address of the kernel's choice, private to this value; the
        // program fits into it.
        let address = unsafe {
            let address = mmap_anonymous(
                std::ptr::null_mut(),
                PAGE_BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )?;
            address.cast::<u8>().copy_from_nonoverlapping(HLT.as_ptr(), HLT.len());
            address
        };
        Ok(GuestPage { address })
    }
}

impl Drop for GuestPage {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and of this size; the VM that used it is gone, or will
        // fault on its own.
        let _ = unsafe { munmap(self.address, PAGE_BYTES) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const CAPABLE: &str = "processor\t: 0\nflags\t\t: fpu vme svm lm\n";

    #[test]
    fn a_processor_without_vmx_or_svm_is_reported_whatever_the_kernel_offers() {
        for processor in
            ["", "flags\t\t: fpu svm_lock hypervisor\n", "model name: vmx\nflags: fpu\n"]
        {
            assert_eq!(probe(processor, Path::new("/dev/null")), KvmSupport::NoHardware);
        }
    }

    #[test]
    fn a_device_that_is_missing_is_told_apart_from_one_that_does_not_work() {
        assert_eq!(probe(CAPABLE, Path::new("/nowhere/kvm")), KvmSupport::Missing);
        let KvmSupport::Broken { what } = probe(CAPABLE, Path::new("/dev/null")) else {
            panic!("/dev/null is taken for KVM");
        };
        assert!(what.contains("version"), "{what}");
    }

    #[test]
    fn a_device_without_permission_names_the_group_that_has_it() {
        let error = io::Error::from_raw_os_error(libc::EACCES);
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_permissions(std::fs::Permissions::from_mode(0o660)).unwrap();
        let group = group_name(file.as_file().metadata().unwrap().gid());
        assert!(group.is_some());
        assert_eq!(open_failure(&error, file.path()), KvmSupport::NoPermission { group });
        assert!(permission_hint(Some("kvm")).contains("usermod -aG kvm"));
        assert!(permission_hint(Some("root")).contains("chgrp kvm"));
    }

    #[test]
    fn each_failure_has_its_own_message_and_hint() {
        let kinds = [
            KvmSupport::Missing,
            KvmSupport::NoPermission { group: None },
            KvmSupport::NoHardware,
            KvmSupport::Broken { what: "x".to_owned() },
        ];
        let failures: Vec<Failure> = kinds.iter().filter_map(KvmSupport::failure).collect();
        let hints: std::collections::BTreeSet<_> =
            failures.iter().filter_map(Failure::hint_text).collect();
        assert_eq!(hints.len(), kinds.len());
        assert_eq!(KvmSupport::Works.failure(), None);
    }
}
