//! The qemu engine: the plan as a command line of QEMU.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::process::Command;

use libmsb::machine::{
    Accelerator, Board, Disk, Format, NET_MTU, Net, PORT_AGENT, Plan, Qemu, SHARE_BUS,
};

/// Where a process finds what it has open.
const OWN_FILES: &str = "/proc/self/fd";

/// Becomes QEMU. Returns only when that fails, with the reason.
pub(crate) fn exec(plan: &Plan, engine: &Qemu) -> anyhow::Result<io::Error> {
    Ok(Command::new(&engine.program)
        .args(arguments(plan, engine))
        .exec())
}

fn arguments(plan: &Plan, engine: &Qemu) -> Vec<OsString> {
    let mut args = Arguments::default();
    // Nothing but what is asked for: no default devices, no configuration files, no windows.
    args.flags(&[
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
    ]);
    // A guest that breaks out of its devices finds no way to start a program or to gain privileges.
    args.pair(
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    );
    // Who looks at the threads finds those that are virtual processors by their names.
    args.pair("-name", "msb,debug-threads=on");
    // A file that is shared is left out of the state of a machine: the supervisor copies it.
    args.pair(
        "-object",
        format!(
            "memory-backend-file,id=memory,mem-path={OWN_FILES}/{},share=on,size={}M",
            engine.memory_fd, plan.memory_mib
        ),
    );
    args.pair(
        "-M",
        format!("{},memory-backend=memory", machine(engine.board)),
    );
    if engine.incoming {
        args.pair("-incoming", "defer");
    }
    args.pair(
        "-chardev",
        format!("socket,id=monitor,fd={}", engine.monitor_fd),
    );
    args.pair("-mon", "chardev=monitor,mode=control");
    args.pair(
        "-accel",
        if engine.accelerator == Accelerator::Kvm {
            "kvm"
        } else {
            "tcg,thread=multi"
        },
    );
    args.pair("-cpu", processor(engine.accelerator));
    args.pair("-smp", plan.cpus.to_string());
    args.pair("-m", format!("{}M", plan.memory_mib));
    args.pair("-kernel", &engine.kernel);
    args.pair("-initrd", &engine.initrd);
    args.pair("-append", &engine.cmdline);
    args.pair(
        "-chardev",
        format!("socket,id=console,fd={}", plan.console_fd),
    );
    args.pair("-serial", "chardev:console");
    let bus = Bus::of(engine.board);
    args.pair("-device", format!("virtio-serial-{bus},max_ports=2"));
    args.pair("-chardev", format!("socket,id=agent,fd={}", plan.agent_fd));
    args.pair(
        "-device",
        format!("virtserialport,chardev=agent,name={PORT_AGENT}"),
    );
    // Memory that the guest has freed goes back to the host.
    args.pair(
        "-device",
        format!("virtio-balloon-{bus},free-page-reporting=on"),
    );
    for (number, disk) in plan.disks.iter().enumerate() {
        args.pair("-drive", drive(number, disk));
        args.pair(
            "-device",
            format!("virtio-blk-{bus},drive=disk{number},serial={}", disk.serial),
        );
    }
    if let Some(net) = &plan.net {
        args.pair("-netdev", netdev(net));
        args.pair("-device", network(net, bus));
    }
    if !plan.shares.is_empty() {
        // Shares are plugged in when the guest runs: a machine that has one cannot be kept.
        args.pair(
            "-device",
            format!("pcie-root-port,id={SHARE_BUS},chassis=1,slot=1"),
        );
    }
    args.list
}

/// The frame stream.
fn netdev(net: &Net) -> String {
    format!("stream,id=net,server=off,addr.type=fd,addr.str={}", net.fd)
}

/// The network device. It tells the guest its largest packet. Nothing of a packet's making is left to the other side, which
/// sees whole frames only; and no program of the firmware is there to boot from the network.
fn network(net: &Net, bus: Bus) -> String {
    let mac = net.mac.map(|byte| format!("{byte:02x}")).join(":");
    let firmware = if bus.0 == "pci" { ",romfile=" } else { "" };
    format!(
        "virtio-net-{bus},netdev=net,mac={mac},host_mtu={NET_MTU},mrg_rxbuf=on,csum=off,guest_csum=off,gso=off,\
         guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off,host_tso4=off,host_tso6=off,host_ecn=off,host_ufo=off{firmware}"
    )
}

#[derive(Default)]
struct Arguments {
    list: Vec<OsString>,
}

impl Arguments {
    fn flags(&mut self, flags: &[&str]) {
        self.list.extend(flags.iter().map(OsString::from));
    }

    fn pair(&mut self, option: &str, value: impl AsRef<OsStr>) {
        self.list.push(option.into());
        self.list.push(value.as_ref().to_owned());
    }
}

/// How the devices are attached, as it ends the names of QEMU's models.
#[derive(Clone, Copy)]
struct Bus(&'static str);

impl Bus {
    fn of(board: Board) -> Bus {
        Bus(match board {
            Board::Microvm => "device",
            Board::Q35 => "pci",
        })
    }
}

impl std::fmt::Display for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

fn machine(board: Board) -> &'static str {
    match board {
        // ACPI stays on: distribution kernels find virtio-mmio devices through it only.
        Board::Microvm => "microvm",
        Board::Q35 => "q35,hpet=off,smm=off,graphics=off,vmport=off",
    }
}

fn processor(accelerator: Accelerator) -> &'static str {
    match accelerator {
        Accelerator::Kvm => "host",
        // x86-64-v2, which today's images are built for, on the model that emulation boots fastest. arat: a timer that
        // ticks on in idle, without which microvm wakes up 250 times a second.
        Accelerator::Tcg => {
            "qemu64,+arat,+cx16,+lahf_lm,+popcnt,+pni,+ssse3,+sse4.1,+sse4.2,+aes,+pclmulqdq,+rdrand"
        }
    }
}

fn drive(number: usize, disk: &Disk) -> OsString {
    if disk.path.as_os_str().is_empty() {
        let access = if disk.read_only { "read-only=on," } else { "" };
        return format!("if=none,id=disk{number},{access}driver=null-co,size=1M").into();
    }
    let format = match disk.format {
        Format::Raw => "raw",
        Format::Vmdk => "vmdk",
        Format::Qcow2 => "qcow2",
    };
    let access = match (disk.read_only, disk.volatile) {
        (true, _) => "read-only=on",
        (false, true) => "cache=unsafe,discard=unmap",
        (false, false) => "cache=writeback,discard=unmap",
    };
    // An error of the host's disk is one of the guest's disk; by default QEMU would stop the guest when the host is full.
    let errors = if disk.read_only {
        ""
    } else {
        "werror=report,rerror=report,"
    };
    let mut value =
        format!("if=none,id=disk{number},format={format},{access},{errors}file=").into_bytes();
    value.extend_from_slice(&escaped(disk.path.as_os_str()));
    OsString::from_vec(value)
}

/// A comma ends a value in QEMU's options; two of them stand for one.
fn escaped(value: &OsStr) -> Vec<u8> {
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

    fn disk(path: &str) -> Disk {
        Disk {
            serial: "s".into(),
            path: PathBuf::from(path),
            format: Format::Raw,
            read_only: false,
            volatile: false,
        }
    }

    #[test]
    fn a_comma_in_a_path_does_not_begin_another_option() {
        let value = drive(0, &disk("/a,read-only=on/b"));
        assert!(
            value.to_string_lossy().ends_with("file=/a,,read-only=on/b"),
            "{value:?}"
        );
    }

    #[test]
    fn the_format_of_a_disk_is_always_said() {
        assert!(
            drive(1, &disk("/x"))
                .to_string_lossy()
                .contains("format=raw")
        );
    }
}
