//! What the host offers: whether the processor's virtualization can be used, and why not.

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

/// Where the kernel offers the processor's virtualization.
const DEVICE: &str = "/dev/kvm";

/// Time for a virtual machine to execute one instruction: a few milliseconds, but on a host that is itself emulated, and
/// busy, they become seconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// One page of memory for the guest, at this address.
const PAGE_BYTES: usize = 4096;
const PAGE_AT: u64 = 0x1000;
/// Three pages below the top of the first 4 GiB, as all virtual machine monitors have it.
const TASK_STATE_AT: usize = 0xfffb_d000;
/// HLT.
const PROGRAM: [u8; 1] = [0xf4];

/// Whether the processor's virtualization can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kvm {
    /// A virtual machine has executed an instruction.
    Works,
    /// The processor could, but there is no `/dev/kvm`.
    Missing,
    /// `/dev/kvm` may not be opened by this user.
    NoPermission {
        /// The group that may, if the file belongs to one that has a name.
        group: Option<String>,
    },
    /// The processor has neither vmx nor svm, whatever the kernel offers.
    NoHardware,
    /// All is there, and it does not work.
    Broken {
        /// What went wrong.
        what: String,
    },
}

impl Kvm {
    /// Why it cannot be used, with the next step.
    pub(crate) fn failure(&self) -> Option<Failure> {
        let (message, hint) = match self {
            Kvm::Works => return None,
            Kvm::Missing => (
                format!("hardware virtualization cannot be used: there is no '{DEVICE}'"),
                "load the kernel's module: sudo modprobe kvm_intel, or kvm_amd; if that fails, virtualization is turned \
                 off in the firmware (BIOS)"
                    .to_owned(),
            ),
            Kvm::NoPermission { group } => (
                format!("hardware virtualization cannot be used: no permission to open '{DEVICE}'"),
                permission_hint(group.as_deref()),
            ),
            Kvm::NoHardware => (
                "this machine has no hardware virtualization: its processor shows neither vmx nor svm".to_owned(),
                "use the engine qemu; if this is a virtual machine itself, turn on nested virtualization in its host"
                    .to_owned(),
            ),
            Kvm::Broken { what } => (
                format!("hardware virtualization does not work: {what}"),
                "use the engine qemu, and see what the kernel says: sudo dmesg | grep -i kvm".to_owned(),
            ),
        };
        Some(Failure::failed(message).hint(hint))
    }
}

fn permission_hint(group: Option<&str>) -> String {
    match group {
        // Of that group one is no member by being given it: the next login makes one.
        Some(group) if group != "root" => {
            format!("join its group, then log in again: sudo usermod -aG {group} $USER")
        }
        _ => format!("let a group open it: sudo chgrp kvm {DEVICE} && sudo chmod 660 {DEVICE}"),
    }
}

/// Looks whether the processor's virtualization works. An open `/dev/kvm` proves nothing, nor does a virtual machine that
/// was made: only one that executed something does.
pub(crate) fn probe_kvm() -> Kvm {
    let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    probe(&processor, Path::new(DEVICE))
}

fn probe(processor: &str, device: &Path) -> Kvm {
    if !is_capable(processor) {
        return Kvm::NoHardware;
    }
    // Closed on exec, as is all that comes of it.
    let opened = OpenOptions::new().read(true).write(true).open(device);
    let file = match opened {
        Ok(file) => file,
        Err(error) => return unopened(&error, device),
    };
    // In a thread, so that a machine which hangs does not hang us.
    let (sender, answer) = mpsc::channel();
    thread::spawn(move || {
        // Nobody waits until the machine is taken apart, which takes the kernel longer than to make it.
        let ended = execute(file);
        drop(sender.send(ended.as_ref().map(|_| ()).map_err(String::clone)));
    });
    match answer.recv_timeout(PATIENCE) {
        Ok(Ok(())) => Kvm::Works,
        Ok(Err(what)) => Kvm::Broken { what },
        Err(_) => Kvm::Broken {
            what: "a virtual machine did not execute its first instruction in time".to_owned(),
        },
    }
}

/// Whether the processor says that it has one of the two kinds of virtualization.
fn is_capable(processor: &str) -> bool {
    let flags = processor.lines().find(|line| line.starts_with("flags"));
    flags
        .unwrap_or_default()
        .split_whitespace()
        .any(|flag| flag == "vmx" || flag == "svm")
}

fn unopened(error: &io::Error, device: &Path) -> Kvm {
    match error.kind() {
        io::ErrorKind::NotFound => Kvm::Missing,
        io::ErrorKind::PermissionDenied => Kvm::NoPermission {
            group: std::fs::metadata(device)
                .ok()
                .and_then(|meta| group_name(meta.gid())),
        },
        // The file is there, and no driver behind it.
        _ if error.raw_os_error() == Some(libc::ENODEV) => Kvm::Missing,
        _ => Kvm::Broken {
            what: format!("cannot open '{}': {error}", device.display()),
        },
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

/// A virtual machine that has halted. Its memory goes after it.
struct Halted {
    _machine: VmFd,
    _page: Page,
}

/// Runs a virtual machine of one page until it halts.
fn execute(device: File) -> Result<Halted, String> {
    use std::os::fd::IntoRawFd;
    // SAFETY: the descriptor is open, it is given away here, and nobody else owns it.
    let kvm =
        unsafe { <kvm_ioctls::Kvm as std::os::fd::FromRawFd>::from_raw_fd(device.into_raw_fd()) };
    if kvm.get_api_version() != KVM_API_VERSION as i32 {
        return Err(format!(
            "its version is {}, not {KVM_API_VERSION}",
            kvm.get_api_version()
        ));
    }
    let machine = kvm
        .create_vm()
        .map_err(|error| format!("cannot make a virtual machine: {error}"))?;
    let page = Page::new().map_err(|error| format!("cannot map memory: {error}"))?;
    halt(&machine, &page)?;
    Ok(Halted {
        _machine: machine,
        _page: page,
    })
}

fn halt(machine: &VmFd, page: &Page) -> Result<(), String> {
    let said = |what: &str| {
        let what = what.to_owned();
        move |error: kvm_ioctls::Error| format!("cannot {what}: {error}")
    };
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: PAGE_AT,
        memory_size: PAGE_BYTES as u64,
        userspace_addr: page.address as u64,
    };
    // Intel's processors need a place for a task state in real mode; any that is no memory will do.
    machine
        .set_tss_address(TASK_STATE_AT)
        .map_err(said("set up a virtual machine"))?;
    // SAFETY: the region is a whole mapping that outlives the machine, whose owner holds it; nothing else looks into it.
    unsafe { machine.set_user_memory_region(region) }
        .map_err(said("give memory to a virtual machine"))?;
    let mut processor = machine
        .create_vcpu(0)
        .map_err(said("make a virtual processor"))?;
    let mut segments = processor
        .get_sregs()
        .map_err(said("read a virtual processor"))?;
    (segments.cs.base, segments.cs.selector) = (0, 0);
    processor
        .set_sregs(&segments)
        .map_err(said("set up a virtual processor"))?;
    let mut registers = processor
        .get_regs()
        .map_err(said("read a virtual processor"))?;
    // Bit 1 is always set (Intel's manual, volume 1, 3.4.3).
    (registers.rip, registers.rflags) = (PAGE_AT, 2);
    processor
        .set_regs(&registers)
        .map_err(said("set up a virtual processor"))?;
    loop {
        match processor.run() {
            Ok(VcpuExit::Hlt) => return Ok(()),
            Ok(other) => {
                return Err(format!(
                    "a virtual machine that was to halt did something else: {other:?}"
                ));
            }
            Err(error) if error.errno() == libc::EINTR => {}
            Err(error) => return Err(format!("cannot run a virtual machine: {error}")),
        }
    }
}

/// A page of memory with [`PROGRAM`] at its begin.
struct Page {
    address: *mut libc::c_void,
}

impl Page {
    fn new() -> io::Result<Page> {
        // SAFETY: a new mapping at an address of the kernel's choice, private to this value; the program fits into it.
        let address = unsafe {
            let address = mmap_anonymous(
                std::ptr::null_mut(),
                PAGE_BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )?;
            address
                .cast::<u8>()
                .copy_from_nonoverlapping(PROGRAM.as_ptr(), PROGRAM.len());
            address
        };
        Ok(Page { address })
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and of this size; the machine that used it is gone, or will fault on its own.
        let _ = unsafe { munmap(self.address, PAGE_BYTES) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const CAPABLE: &str = "processor\t: 0\nflags\t\t: fpu vme svm lm\n";

    #[test]
    fn a_processor_without_vmx_or_svm_is_told_whatever_the_kernel_offers() {
        for processor in [
            "",
            "flags\t\t: fpu svm_lock hypervisor\n",
            "model name: vmx\nflags: fpu\n",
        ] {
            assert_eq!(probe(processor, Path::new("/dev/null")), Kvm::NoHardware);
        }
    }

    #[test]
    fn a_device_that_is_missing_is_told_apart_from_one_that_does_not_work() {
        assert_eq!(probe(CAPABLE, Path::new("/nowhere/kvm")), Kvm::Missing);
        let Kvm::Broken { what } = probe(CAPABLE, Path::new("/dev/null")) else {
            panic!("/dev/null is taken for KVM");
        };
        assert!(what.contains("version"), "{what}");
    }

    #[test]
    fn one_that_may_not_be_opened_names_the_group_that_may() {
        let error = io::Error::from_raw_os_error(libc::EACCES);
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file()
            .set_permissions(std::fs::Permissions::from_mode(0o660))
            .unwrap();
        let group = group_name(file.as_file().metadata().unwrap().gid());
        assert!(group.is_some());
        assert_eq!(unopened(&error, file.path()), Kvm::NoPermission { group });
        assert!(permission_hint(Some("kvm")).contains("usermod -aG kvm"));
        assert!(permission_hint(Some("root")).contains("chgrp kvm"));
    }

    #[test]
    fn all_that_is_no_success_has_its_own_words_and_a_next_step() {
        let kinds = [
            Kvm::Missing,
            Kvm::NoPermission { group: None },
            Kvm::NoHardware,
            Kvm::Broken {
                what: "x".to_owned(),
            },
        ];
        let failures: Vec<Failure> = kinds.iter().filter_map(Kvm::failure).collect();
        let hints: std::collections::BTreeSet<_> =
            failures.iter().filter_map(Failure::hint_text).collect();
        assert_eq!(hints.len(), kinds.len());
        assert_eq!(Kvm::Works.failure(), None);
    }
}
