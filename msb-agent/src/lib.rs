//! PID 1 of the guest.
//!
//! It sets the guest up (kernel modules, disks, root file system), does the handshake with the
//! supervisor over a console port, runs commands, reaps processes, and flushes the disks before it
//! ends the VM. It has one thread with one poll(2) loop. The protocol is defined in `msb-wire`; the
//! man page msb-agent(8) describes the guest.
//!
//! The library is for the program `msb-agent` and its fuzz targets. Its interface may change with
//! every release.

/// The boot request, step by step.
mod boot;
/// Changes of files without data: directories that are created, paths that are removed.
mod change;
/// Clocks of the kernel.
mod clock;
/// Capabilities that commands of a restricted guest do not get.
mod confine;
/// TCP connections from inside the guest, for port forwarding.
mod connection;
/// Messages of the agent on the guest's console, and error texts.
mod console;
/// Virtio devices that get no driver before the boot request.
mod devices;
/// Disks by serial number.
mod disk;
/// Environment of a command.
mod env;
/// Start of a command from an exec request.
mod exec;
/// Copies into and out of the guest.
mod files;
/// Mounted shares and disks.
mod filesystem;
/// Free memory, cleared before it is saved.
mod free_memory;
/// Freezing the upper file system for a copy of its disk.
mod freeze;
/// The image's own init.
mod handover;
/// Helper processes: this program, run as a user of the guest.
mod helper;
/// Host name, loopback, limits, directories.
mod identity;
/// Start of the agent, from PID 1 to the event loop.
mod init;
/// Kernel file systems of the guest.
mod kernel_mounts;
/// A socket in the guest that forwards to a client's SSH agent.
mod key_agent;
/// Machine id of the guest.
mod machine_id;
/// Kernel modules of the initramfs.
mod modules;
/// Mounts besides the root: shares, disks, tmpfs.
mod mounts;
/// `/etc/hostname` and `/etc/hosts`.
mod names;
/// Network interface and resolv.conf.
mod net;
/// Netlink requests for interfaces, addresses and routes.
mod netlink;
/// Processes that the kernel killed because it was out of memory.
mod oom;
/// Console port to the supervisor.
mod port;
/// Pseudo-terminals of commands.
mod pty;
/// DNS resolver: host names to addresses.
mod resolve;
/// Root file system: an overlayfs of EROFS and ext4.
mod root;
/// Samples for the host, at an interval.
mod samples;
/// Event loop over the port, commands and signals.
mod serve;
/// One running command and its streams.
mod session;
/// SFTP server for SSH clients.
pub mod sftp;
/// End of the VM.
mod shutdown;
/// Process creation: fork and exec.
mod spawn;
/// Resource usage of the guest, from the kernel's statistics.
mod statistics;
/// System calls that rustix lacks.
mod sys;
/// Certificate authorities that the guest trusts.
mod trust;
/// Users and groups of the guest.
mod users;

/// Runs the agent as PID 1; otherwise runs a helper process or prints usage.
pub fn run() -> std::ffi::c_int {
    let start_ns = clock::boottime_ns();
    if std::process::id() == 1 {
        init::run(start_ns);
    }
    run_helper()
}

/// Runs a helper process, or tells a user what this program is.
fn run_helper() -> std::ffi::c_int {
    match std::env::args().nth(1).as_deref() {
        Some("--version" | "-V") => println!("msb-agent {}", env!("CARGO_PKG_VERSION")),
        Some(sftp::ARGUMENT) => return sftp::serve(std::env::args().nth(2).as_deref()),
        Some(key_agent::ARGUMENT) => return key_agent::serve(),
        Some(freeze::ARGUMENT) => return freeze::serve(std::env::args().nth(2).as_deref()),
        Some(files::ARGUMENT) => return files::serve(std::env::args().nth(2).as_deref()),
        Some("--help" | "-h") => {
            println!("usage: msb-agent\n\nPID 1 of a guest; see msb-agent(8).")
        }
        _ => {
            console::log("error: this program runs only as PID 1 of a guest");
            return 2;
        }
    }
    0
}
