//! The first process of a sandbox.
//!
//! It sets the guest up (modules, disks, root file system), says hello to the supervisor over a console port, runs
//! commands, reaps what they leave behind, and flushes the disk before it ends the machine. One thread, one loop
//! over poll(2). The protocol is that of `msb-wire`; man page msb-agent(8) tells what a guest looks like.

#![cfg_attr(not(test), no_main)]
#![cfg_attr(fuzzing, allow(dead_code, reason = "the fuzzer has a main of its own"))]

/// What is mounted besides the root.
mod attach;
/// The boot request, step by step.
mod boot;
/// Folders that are made, and what is removed.
mod change;
/// The kernel's clocks.
mod clock;
/// Rights that commands of a restricted guest do not get.
mod confine;
/// TCP connections from inside the guest.
mod connection;
/// Messages of the agent on the guest's console, and the words for errors.
mod console;
/// Virtio devices that stay without a driver until the boot request.
mod devices;
/// Disks by serial number.
mod disk;
/// A command's environment.
mod env;
/// From a request to a running command.
mod exec;
/// Copies into the guest and out of it.
mod files;
/// Doors for any bytes.
#[cfg(any(test, fuzzing))]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by a panic"
)]
mod fuzz;
/// What the guest costs.
mod gauges;
/// The image's own init.
mod handover;
/// Host name, `/etc/hosts`, loopback, limits: who the guest is.
mod identity;
/// From the first instruction to the loop.
mod init;
/// A socket behind which the SSH agent of a client answers.
mod key_agent;
/// By what this guest differs from all others.
mod machine_id;
/// Kernel modules of the initramfs.
mod modules;
/// The guest's kernel file systems.
mod mount;
/// The network interface, and the files that name its servers.
mod net;
/// Messages to the kernel about interfaces.
mod netlink;
/// Whom the kernel killed for lack of memory.
mod oom;
/// This program once more, as a user of the guest.
mod ourselves;
/// The console port to the supervisor.
mod port;
/// Terminals for commands.
mod pty;
/// From the name of a host to its addresses.
mod resolve;
/// The root file system: EROFS below, ext4 above.
mod root;
/// Samples for the host, at an interval.
mod samples;
/// The loop over the port, the commands and their ends.
mod serve;
/// One running command and its streams.
mod session;
/// Files for SSH clients.
mod sftp;
/// The end of the machine.
mod shutdown;
/// fork and exec.
mod spawn;
/// System calls that rustix lacks.
mod sys;
/// Users and groups of the guest.
mod users;

/// Called by the C library, not by Rust's runtime: that one aborts when descriptors 0 to 2 are closed and there is no
/// `/dev/null` to open instead, which is how a first process may start.
#[cfg(not(any(test, fuzzing)))]
#[unsafe(no_mangle)]
extern "C" fn main() -> std::ffi::c_int {
    live()
}

/// Everything, but for how it is called.
#[cfg_attr(test, allow(dead_code))]
fn live() -> std::ffi::c_int {
    let start_ns = clock::boottime_ns();
    if std::process::id() == 1 {
        init::run(start_ns);
    }
    explain()
}

/// Whoever starts it by hand wants to know what it is.
fn explain() -> std::ffi::c_int {
    match std::env::args().nth(1).as_deref() {
        Some("--version" | "-V") => println!("msb-agent {}", env!("CARGO_PKG_VERSION")),
        Some(sftp::ARGUMENT) => return sftp::serve(std::env::args().nth(2).as_deref()),
        Some(key_agent::ARGUMENT) => return key_agent::serve(),
        Some(files::ARGUMENT) => return files::serve(std::env::args().nth(2).as_deref()),
        Some("--help" | "-h") => {
            println!("usage: msb-agent\n\nThe first process of a sandbox; see msb-agent(8).")
        }
        _ => {
            console::log("error: this is the first process of a sandbox and runs nowhere else");
            return 2;
        }
    }
    0
}
