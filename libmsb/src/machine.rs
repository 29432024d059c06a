//! The plan of a virtual machine: what `msb-supervisor` hands to `msb-vmm`, as JSON on a descriptor.
//!
//! It says what the machine has, and by which engine it runs. Descriptors are numbers in the process of msb-vmm, which
//! inherits them. Unknown fields are refused: a machine that lacks a part it was to have must not run.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The version of the plan's form.
pub const PLAN_VERSION: u32 = 2;
/// Longest plan, in bytes.
pub const PLAN_BYTES_MAX: u64 = 1024 * 1024;

/// Serial number of the disk with the image.
pub const SERIAL_ROOT: &str = "msb-root";
/// Serial number of the writable disk.
pub const SERIAL_UPPER: &str = "msb-upper";
/// Name of the console port over which the guest's agent speaks.
pub const PORT_AGENT: &str = "msb.agent";

/// Name of the bus of QEMU's machines that shares are plugged into.
pub const SHARE_BUS: &str = "shares";

/// Largest packet of a guest's network.
pub const NET_MTU: u16 = crate::net::network::MTU_MAX;

/// A virtual machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// [`PLAN_VERSION`].
    pub version: u32,
    /// What runs it.
    pub engine: Engine,
    /// Virtual processors.
    pub cpus: u32,
    /// Memory, in MiB.
    pub memory_mib: u32,
    /// Disks, found in the guest by their serial numbers.
    pub disks: Vec<Disk>,
    /// A connected stream socket: the other side of the port [`PORT_AGENT`].
    pub agent_fd: i32,
    /// Takes what the guest's kernel prints: for QEMU a connected stream socket, for libkrun the writing end of a pipe.
    pub console_fd: i32,
    /// The reading end of a pipe whose writing end the supervisor holds: closed when it is gone.
    pub life_fd: i32,
    /// The writing end of a pipe: takes one line of JSON that says what the machine's process has given up
    /// ([`crate::isolate::Step`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report_fd: Option<i32>,
    /// The network, if the machine has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net: Option<Net>,
    /// Folders of the host that the guest may mount.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shares: Vec<Share>,
}

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Net {
    /// A connected stream socket with Ethernet frames, each after its length: four bytes, big-endian.
    pub fd: i32,
    /// The guest's hardware address.
    pub mac: [u8; 6],
}

/// Folders and files of the host, as one folder of which they are the entries. It exists only where they are shared: in a
/// mount namespace of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// The tag by which the guest mounts it with virtiofs, at most 36 bytes.
    pub tag: String,
    /// A connected stream socket that speaks vhost-user: in the plan of a share's server. None in that of a machine: QEMU gets
    /// its side when the share is plugged in, and libkrun serves by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fd: Option<i32>,
    /// What is in it.
    pub entries: Vec<ShareEntry>,
}

/// A folder or a file of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareEntry {
    /// Its name in the share, a plain one.
    pub name: String,
    /// What it is on the host: an absolute path without symbolic links.
    pub path: PathBuf,
    /// Whether it is a file.
    pub file: bool,
    /// Whether the guest may only read.
    pub read_only: bool,
    /// The device that it is on: with the inode, what was there when the plan was made.
    pub device: u64,
    /// Its inode.
    pub inode: u64,
}

/// The plan of a share's server: `msb-vmm --share`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharePlan {
    /// [`PLAN_VERSION`].
    pub version: u32,
    /// As in [`Plan`].
    pub life_fd: i32,
    /// As in [`Plan`], of what the server has given up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report_fd: Option<i32>,
    /// What is shared.
    pub share: Share,
}

/// What runs the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum Engine {
    /// QEMU, by exec.
    Qemu(Qemu),
    /// libkrun, in the process of msb-vmm itself.
    Krun(Krun),
}

/// How QEMU runs the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Qemu {
    /// The program.
    pub program: PathBuf,
    /// The board.
    pub board: Board,
    /// Hardware virtualization or emulation.
    pub accelerator: Accelerator,
    /// The guest's kernel.
    pub kernel: PathBuf,
    /// The initial RAM disk.
    pub initrd: PathBuf,
    /// The kernel's command line.
    pub cmdline: String,
    /// A connected stream socket for QEMU's machine protocol (QMP).
    pub monitor_fd: i32,
    /// The guest's memory: a memfd of its size. Only this machine has it open for writing, besides the supervisor.
    pub memory_fd: i32,
    /// Waits for an incoming state, which the monitor hands over, in place of a boot.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub incoming: bool,
}

/// How libkrun runs the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Krun {
    /// Where the guest's kernel comes from.
    pub kernel: KrunKernel,
}

/// Which engine is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum EngineChoice {
    /// libkrun where it works, else QEMU.
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
        /// The library.
        path: PathBuf,
        /// The agent, which becomes the first process.
        agent: PathBuf,
    },
    /// A file.
    Image {
        /// An uncompressed vmlinux.
        path: PathBuf,
        /// The initial RAM disk.
        initrd: PathBuf,
        /// The kernel's command line.
        cmdline: String,
    },
}

/// QEMU's boards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Board {
    /// Few devices and no PCI: starts fastest.
    Microvm,
    /// A whole PC.
    Q35,
}

/// How QEMU runs the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Accelerator {
    /// The processor's own virtualization.
    Kvm,
    /// In software.
    Tcg,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// Serial number, at most 20 bytes.
    pub serial: String,
    /// The file. Empty: a placeholder, in a machine that is only booted for its state to be taken.
    pub path: PathBuf,
    /// Its format, declared and never probed: a guest may write the header of any format.
    pub format: Format,
    /// Whether the guest may only read.
    pub read_only: bool,
    /// Whether its contents go with the machine: then a flush of the guest need not reach the host's disk.
    pub volatile: bool,
}

/// Formats of disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// The bytes of the disk.
    Raw,
    /// A VMDK descriptor of flat extents.
    Vmdk,
    /// QEMU's own format, without a backing file.
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
        let plan: Plan = serde_json::from_value(value.clone()).unwrap();
        assert_eq!(serde_json::to_value(&plan).unwrap(), value);
    }

    #[test]
    fn a_part_that_is_not_known_is_refused_wherever_it_stands() {
        serde_json::from_value::<Plan>(plan()).unwrap();
        for place in ["", "/engine", "/engine/kernel"] {
            let mut value = plan();
            value.pointer_mut(place).unwrap()["more"] = json!(1);
            let error = serde_json::from_value::<Plan>(value)
                .unwrap_err()
                .to_string();
            assert!(error.contains("more"), "{place}: {error}");
        }
    }
}
