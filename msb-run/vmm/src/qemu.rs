//! The qemu engine: translates the plan into a command line of QEMU.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::process::Command;

use libmsb::machine::{
    Accelerator, Board, DiskDevice, DiskImageFormat, NET_MTU, NetDevice, PORT_AGENT, QemuPlan,
    SHARE_BUS, VmPlan,
};

/// Directory of a process's open descriptors.
const OWN_DESCRIPTORS: &str = "/proc/self/fd";

/// Executes QEMU. Returns only on failure, with the reason.
pub(crate) fn exec(plan: &VmPlan, engine: &QemuPlan) -> anyhow::Result<io::Error> {
    Ok(Command::new(&engine.program).args(arguments(plan, engine)).exec())
}

fn arguments(plan: &VmPlan, engine: &QemuPlan) -> Vec<OsString> {
    let mut args = QemuArguments::default();
    // Only what is listed: no default devices, no configuration files, no windows.
    args.flags(&["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    // QEMU's own seccomp filter: an exploit of a device can neither start a program nor gain
    // privileges.
    args.pair(
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    );
    // Names the threads, so that the sampler recognizes vCPUs.
    args.pair("-name", "msb,debug-threads=on");
    // A shared file is left out of the saved VM state: the supervisor copies it.
    args.pair(
        "-object",
        format!(
            "memory-backend-file,id=memory,mem-path={OWN_DESCRIPTORS}/{},share=on,size={}M",
            engine.memory_fd, plan.memory_mib
        ),
    );
    args.pair("-M", format!("{},memory-backend=memory", machine_type(engine.board)));
    if engine.incoming {
        args.pair("-incoming", "defer");
    }
    if engine.resumed {
        args.flags(&["-S"]);
        // The state starts with the devices.
        args.pair("-global", "migration.send-configuration=off");
    }
    args.pair("-chardev", format!("socket,id=monitor,fd={}", engine.monitor_fd));
    args.pair("-mon", "chardev=monitor,mode=control");
    args.pair(
        "-accel",
        if engine.accelerator == Accelerator::Kvm { "kvm" } else { "tcg,thread=multi" },
    );
    args.pair("-cpu", cpu_model(engine.accelerator));
    args.pair("-smp", plan.cpus.to_string());
    args.pair("-m", format!("{}M", plan.memory_mib));
    args.pair("-kernel", &engine.kernel);
    args.pair("-initrd", &engine.initrd);
    args.pair("-append", &engine.cmdline);
    args.pair("-chardev", format!("socket,id=console,fd={}", plan.console_fd));
    args.pair("-serial", "chardev:console");
    let bus = VirtioBus::of(engine.board);
    args.pair("-device", format!("virtio-serial-{bus},max_ports=2"));
    args.pair("-chardev", format!("socket,id=agent,fd={}", plan.agent_fd));
    args.pair("-device", format!("virtserialport,chardev=agent,name={PORT_AGENT}"));
    // Returns freed guest memory to the host.
    args.pair("-device", format!("virtio-balloon-{bus},free-page-reporting=on"));
    for (number, disk) in plan.disks.iter().enumerate() {
        args.pair("-drive", drive(number, disk));
        args.pair("-device", format!("virtio-blk-{bus},drive=disk{number},serial={}", disk.serial));
    }
    if let Some(net) = &plan.net {
        args.pair("-netdev", netdev(net));
        args.pair("-device", net_device(net, bus));
    }
    if !plan.shares.is_empty() {
        // Shares are plugged in when the guest runs: a VM that has one cannot be recorded. The
        // device is served over vhost-user.
        args.pair("-device", format!("pcie-root-port,id={SHARE_BUS},chassis=1,slot=1"));
    }
    args.list
}

/// Returns the frame stream.
fn netdev(net: &NetDevice) -> String {
    format!("stream,id=net,server=off,addr.type=fd,addr.str={}", net.fd)
}

/// Returns the network device. It announces its MTU to the guest. All offloads are off, because the
/// peer handles complete frames only. There is no option ROM to boot from the network.
fn net_device(net: &NetDevice, bus: VirtioBus) -> String {
    let mac = net.mac.map(|byte| format!("{byte:02x}")).join(":");
    let firmware = if bus.0 == "pci" { ",romfile=" } else { "" };
    format!(
        "virtio-net-{bus},netdev=net,mac={mac},host_mtu={NET_MTU},mrg_rxbuf=on,csum=off,\
         guest_csum=off,gso=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off,\
         host_tso4=off,host_tso6=off,host_ecn=off,host_ufo=off{firmware}"
    )
}

#[derive(Default)]
struct QemuArguments {
    list: Vec<OsString>,
}

impl QemuArguments {
    fn flags(&mut self, flags: &[&str]) {
        self.list.extend(flags.iter().map(OsString::from));
    }

    fn pair(&mut self, option: &str, value: impl AsRef<OsStr>) {
        self.list.push(option.into());
        self.list.push(value.as_ref().to_owned());
    }
}

/// The suffix of QEMU's virtio device models, which names the bus.
#[derive(Clone, Copy)]
struct VirtioBus(&'static str);

impl VirtioBus {
    fn of(board: Board) -> VirtioBus {
        VirtioBus(match board {
            Board::Microvm => "device",
            Board::Q35 => "pci",
        })
    }
}

impl std::fmt::Display for VirtioBus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

fn machine_type(board: Board) -> &'static str {
    match board {
        // ACPI stays on: distribution kernels find virtio-mmio devices through it only.
        Board::Microvm => "microvm",
        Board::Q35 => "q35,hpet=off,smm=off,graphics=off,vmport=off",
    }
}

fn cpu_model(accelerator: Accelerator) -> &'static str {
    match accelerator {
        Accelerator::Kvm => "host",
        // x86-64-v2, for which current images are built, on the model that emulation boots fastest.
        // arat: a timer that continues in idle; without it a microvm wakes up 250 times a second.
        Accelerator::Tcg => {
            "qemu64,+arat,+cx16,+lahf_lm,+popcnt,+pni,\
             +ssse3,+sse4.1,+sse4.2,+aes,+pclmulqdq,+rdrand"
        }
    }
}

fn drive(number: usize, disk: &DiskDevice) -> OsString {
    if disk.path.as_os_str().is_empty() {
        let access = if disk.read_only { "read-only=on," } else { "" };
        return format!("if=none,id=disk{number},{access}driver=null-co,size=1M").into();
    }
    let format = match disk.format {
        DiskImageFormat::Raw => "raw",
        DiskImageFormat::Vmdk => "vmdk",
        DiskImageFormat::Qcow2 => "qcow2",
    };
    let access = match (disk.read_only, disk.volatile) {
        (true, _) => "read-only=on",
        (false, true) => "cache=unsafe,discard=unmap",
        (false, false) => "cache=writeback,discard=unmap",
    };
    // The guest sees errors of the host's disk as disk errors; by default QEMU would stop the guest
    // when the host is full.
    let errors = if disk.read_only { "" } else { "werror=report,rerror=report," };
    let mut value =
        format!("if=none,id=disk{number},format={format},{access},{errors}file=").into_bytes();
    value.extend_from_slice(&escape(disk.path.as_os_str()));
    OsString::from_vec(value)
}

/// Escapes a value. A comma ends a value in QEMU's options; two commas stand for one.
fn escape(value: &OsStr) -> Vec<u8> {
    value
        .as_bytes()
        .iter()
        .flat_map(|byte| std::iter::repeat_n(*byte, if *byte == b',' { 2 } else { 1 }))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn disk(path: &str) -> DiskDevice {
        DiskDevice {
            serial: "s".into(),
            path: PathBuf::from(path),
            format: DiskImageFormat::Raw,
            read_only: false,
            volatile: false,
        }
    }

    #[test]
    fn a_comma_in_a_path_does_not_start_another_option() {
        let value = drive(0, &disk("/a,read-only=on/b"));
        assert!(value.to_string_lossy().ends_with("file=/a,,read-only=on/b"), "{value:?}");
    }

    #[test]
    fn the_format_of_a_disk_is_always_said() {
        assert!(drive(1, &disk("/x")).to_string_lossy().contains("format=raw"));
    }
}
