//! The plan of a virtual machine: `msb-supervisor` passes it to `msb-vmm`, as JSON on a descriptor.
//!
//! It lists the devices of the virtual machine, and the engine. Descriptors are numbers in the
//! process of msb-vmm, which inherits them. Unknown fields are refused: a virtual machine must not
//! run without a device that it should have.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Version of the plan's format.
pub const PLAN_VERSION: u32 = 2;
/// Longest plan, in bytes.
pub const PLAN_BYTES_MAX: u64 = 1024 * 1024;

/// Serial number of the disk with the image.
pub const SERIAL_ROOT: &str = "msb-root";
/// Serial number of the writable disk.
pub const SERIAL_UPPER: &str = "msb-upper";
/// Name of the console port of the guest's agent.
pub const PORT_AGENT: &str = "msb.agent";

/// Name of QEMU's bus for shares that are hot-plugged.
pub const SHARE_BUS: &str = "shares";

/// Largest packet of a guest's network.
pub const NET_MTU: u16 = crate::net::network::MTU_MAX;

/// A plan of a virtual machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmPlan {
    /// [`PLAN_VERSION`].
    pub version: u32,
    /// The engine.
    pub engine: Engine,
    /// Virtual processors.
    pub cpus: u32,
    /// Memory, in MiB.
    pub memory_mib: u32,
    /// Disks, found in the guest by their serial numbers.
    pub disks: Vec<DiskDevice>,
    /// A connected stream socket: the other end of the port [`PORT_AGENT`].
    pub agent_fd: i32,
    /// Descriptor for the console output of the guest's kernel: for QEMU a connected stream socket,
    /// for libkrun the writing end of a pipe.
    pub console_fd: i32,
    /// The reading end of a pipe whose writing end the supervisor holds: end of file means that the
    /// supervisor has ended.
    pub life_fd: i32,
    /// The writing end of a pipe for one JSON line: the isolation steps of the VMM process
    /// ([`crate::isolate::Step`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report_fd: Option<i32>,
    /// The network device, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net: Option<NetDevice>,
    /// Shares: directories of the host that the guest may mount.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shares: Vec<ShareDevice>,
}

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetDevice {
    /// A connected stream socket for Ethernet frames, each after its length: four bytes,
    /// big-endian.
    pub fd: i32,
    /// The guest's hardware address.
    pub mac: [u8; 6],
}

/// A share: directories and files of the host as the entries of one directory. That directory
/// exists only in a mount namespace of the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareDevice {
    /// Tag for a virtiofs mount in the guest, at most 36 bytes.
    pub tag: String,
    /// A connected stream socket for vhost-user, in the plan of a share's server. Missing in the
    /// plan of a virtual machine: QEMU gets its end when the share is plugged in, and libkrun
    /// serves shares itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fd: Option<i32>,
    /// Entries of the directory.
    pub entries: Vec<ShareEntry>,
    /// True if file locks are taken on the files of the host, where they hold among all guests.
    /// Otherwise they hold within the guest.
    #[serde(default, skip_serializing_if = "is_off")]
    pub host_locks: bool,
}

fn is_off(flag: &bool) -> bool {
    !flag
}

/// A directory or a file of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareEntry {
    /// Name in the share: one plain name.
    pub name: String,
    /// Path on the host, absolute and without symbolic links.
    pub path: PathBuf,
    /// True for a file.
    pub file: bool,
    /// True for read-only access.
    pub read_only: bool,
    /// Device number when the plan was made. With the inode it identifies the file.
    pub device: u64,
    /// Inode number when the plan was made.
    pub inode: u64,
}

/// The plan of a share's server: `msb-vmm --share`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharePlan {
    /// [`PLAN_VERSION`].
    pub version: u32,
    /// As in [`VmPlan`].
    pub life_fd: i32,
    /// As in [`VmPlan`], for the steps of the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report_fd: Option<i32>,
    /// The share.
    pub share: ShareDevice,
}

/// The engine, with its settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum Engine {
    /// QEMU, by exec.
    Qemu(QemuPlan),
    /// libkrun, in the process of msb-vmm itself.
    Krun(KrunPlan),
}

/// Settings of QEMU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QemuPlan {
    /// Path of the program.
    pub program: PathBuf,
    /// The machine type.
    pub board: Board,
    /// Hardware virtualization or emulation.
    pub accelerator: Accelerator,
    /// Path of the guest's kernel.
    pub kernel: PathBuf,
    /// Path of the initial RAM disk (initramfs).
    pub initrd: PathBuf,
    /// The kernel's command line.
    pub cmdline: String,
    /// A connected stream socket for the QEMU machine protocol (QMP).
    pub monitor_fd: i32,
    /// The guest's memory: a memfd of its size. Only this process and the supervisor have it open
    /// for writing.
    pub memory_fd: i32,
    /// True to wait for an incoming boot state, sent over the monitor, instead of a boot.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub incoming: bool,
    /// True if the incoming state is that of a guest that was running: a state of the devices alone,
    /// after which the guest waits.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub resumed: bool,
}

/// Settings of libkrun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KrunPlan {
    /// Source of the guest's kernel.
    pub kernel: KrunKernel,
}

/// The requested engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum EngineChoice {
    /// libkrun if it works on this host, otherwise QEMU.
    #[default]
    Auto,
    /// libkrun.
    Krun,
    /// QEMU.
    Qemu,
}

/// The guest's kernel for libkrun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "snake_case", deny_unknown_fields)]
pub enum KrunKernel {
    /// libkrunfw: a kernel as a shared library. It takes no initial RAM disk.
    Library {
        /// Path of the library.
        path: PathBuf,
        /// Path of the agent, which becomes the first process.
        agent: PathBuf,
    },
    /// A kernel file.
    Image {
        /// Path of an uncompressed vmlinux.
        path: PathBuf,
        /// Path of the initial RAM disk.
        initrd: PathBuf,
        /// The kernel's command line.
        cmdline: String,
    },
}

/// Machine type of QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Board {
    /// `microvm`: few devices and no PCI; starts fastest.
    Microvm,
    /// `q35`: a complete PC.
    Q35,
}

/// Accelerator of QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Accelerator {
    /// KVM: hardware virtualization.
    Kvm,
    /// TCG: emulation in software.
    Tcg,
}

/// A block device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskDevice {
    /// Serial number, at most 20 bytes.
    pub serial: String,
    /// Path of the file. Empty: a placeholder, in a virtual machine that is only booted to save its
    /// state.
    pub path: PathBuf,
    /// Format, declared and never probed: a guest can write the header of any format.
    pub format: DiskImageFormat,
    /// True for read-only access.
    pub read_only: bool,
    /// True if the contents are discarded with the virtual machine. Then a flush of the guest need
    /// not reach the host's disk.
    pub volatile: bool,
}

/// Format of a disk image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskImageFormat {
    /// Raw: the bytes of the disk.
    Raw,
    /// VMDK: a descriptor of flat extents.
    Vmdk,
    /// QEMU's qcow2, without a backing file.
    Qcow2,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn plan() -> Value {
        json!({
            "version": PLAN_VERSION,
            "engine": { "name": "krun", "kernel": { "from": "library", "path": "/l", "agent": "/a" } },
            "cpus": 1, "memory_mib": 512, "disks": [], "agent_fd": 3, "console_fd": 4, "life_fd": 5,
        })
    }

    #[test]
    fn a_plan_comes_back_as_it_was() {
        let mut value = plan();
        value["net"] = json!({ "fd": 6, "mac": [2, 0, 0, 0, 0, 1] });
        value["shares"] = json!([{ "tag": "t", "fd": 7, "entries":
            [{ "name": "0", "path": "/s", "file": false, "read_only": true, "device": 1, "inode": 2 }] }]);
        let plan: VmPlan = serde_json::from_value(value.clone()).unwrap();
        assert_eq!(serde_json::to_value(&plan).unwrap(), value);
    }

    #[test]
    fn a_part_that_is_not_known_is_refused_wherever_it_stands() {
        serde_json::from_value::<VmPlan>(plan()).unwrap();
        for place in ["", "/engine", "/engine/kernel"] {
            let mut value = plan();
            value.pointer_mut(place).unwrap()["more"] = json!(1);
            let error = serde_json::from_value::<VmPlan>(value).unwrap_err().to_string();
            assert!(error.contains("more"), "{place}: {error}");
        }
    }
}
