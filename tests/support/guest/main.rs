//! The static program that the tests run inside a guest, and on the host for comparison.
//!
//! - `walk ROOT` prints a line for each path below ROOT.
//! - `walk-under-mounts PLACE` does so for `/`, and shows what lies under its mount points. PLACE is made for it.
//! - `fork-exec COUNT PROGRAM` prints the mean time of a fork, exec and wait, in nanoseconds.
//! - `burn SECONDS` computes until it has used that much CPU time, and prints how much it was, in seconds.
//! - `hold MEBIBYTES` takes that much memory, prints `held`, and keeps it until standard input ends.
//! - `grant FILE` gives a file a capability, so that who executes it may bind low ports.
//! - `echo-datagrams PORT` sends each datagram of that port back, and never ends.
//! - `call` makes the attempts to reach somebody that are on standard input, and prints what became of each.
//! - `send-frames INTERFACE TIMES [PLACE]` sends the Ethernet frames that are on standard input.
//! - As process 1 it prints `hello` and restarts the machine: the least that a boot can lead to. libkrun's process then ends
//!   with status 42. Where there is a file `/stay`, it does nothing instead: the least that a machine can do.

#![no_main]

mod burn;
mod call;
mod frames;
mod hold;
mod spawn;
mod walk;

use std::ffi::OsString;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use rustix::fs::XattrFlags;
use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, reboot};

/// The console's driver finds its device after the first process has started.
const CONSOLE_WAIT: Duration = Duration::from_secs(5);

/// Called by the C library, not by Rust's runtime: that one aborts when descriptors 0 to 2 are
/// closed and there is no
/// `/dev/null` to open instead, which is how a first process starts here.
#[unsafe(no_mangle)]
extern "C" fn main() -> std::ffi::c_int {
    if std::process::id() == 1 {
        return first_process();
    }
    match run() {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("msb-test-guest: error: {error}");
            1
        }
    }
}

fn run() -> io::Result<()> {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let words: Vec<&str> = args.iter().filter_map(|arg| arg.to_str()).collect();
    match words.as_slice() {
        ["walk", root] => walk::print(root.as_ref()),
        ["walk-under-mounts", place] => walk::print_under_mounts(place.as_ref()),
        ["fork-exec", count, program] => spawn::measure(count, program),
        ["burn", seconds] => burn::print(seconds),
        ["hold", mebibytes] => hold::memory(mebibytes),
        ["grant", file] => grant(file),
        ["echo-datagrams", port] => echo_datagrams(port),
        ["call"] => call::all(),
        ["send-frames", interface, times] => frames::send(interface, times, None),
        ["send-frames", interface, times, place] => frames::send(interface, times, Some(place)),
        _ => Err(io::Error::other(
            "usage: walk ROOT | walk-under-mounts PLACE | fork-exec COUNT PROGRAM | burn SECONDS | hold MEBIBYTES | grant FILE | echo-datagrams PORT | call | send-frames INTERFACE TIMES [PLACE]",
        )),
    }
}

/// `struct vfs_cap_data` of version 2, effective, with `CAP_NET_BIND_SERVICE`.
fn grant(file: &str) -> io::Result<()> {
    let data = [0x0200_0001_u32, 1 << 10, 0, 0, 0].map(u32::to_le_bytes).concat();
    Ok(rustix::fs::setxattr(file, "security.capability", &data, XattrFlags::empty())?)
}

fn echo_datagrams(port: &str) -> io::Result<()> {
    let port: u16 = port.parse().map_err(io::Error::other)?;
    let socket = std::net::UdpSocket::bind(("0.0.0.0", port))?;
    let mut buffer = vec![0; 65536];
    loop {
        let (count, peer) = socket.recv_from(&mut buffer)?;
        socket.send_to(&buffer[..count], peer)?;
    }
}

/// A machine's whole life. Without a directory for devices there is no console to print to.
fn first_process() -> std::ffi::c_int {
    if mount("dev", "/dev", "devtmpfs", MountFlags::empty(), None).is_ok() {
        print_hello();
    }
    tell_libkrun();
    while Path::new("/stay").exists() {
        thread::park();
    }
    // The emulator is told to end where a machine would start again.
    match reboot(RebootCommand::Restart) {
        Ok(()) => 0,
        Err(_) => 1,
    }
}

/// Reports the end to libkrun. Output that a console still holds when the machine ends is lost with
/// libkrun, and status 0 is also that of a panic; so the status says that this has run. It goes as
/// an ioctl to libkrun's file system (`VIRTIO_IOC_EXIT_CODE_REQ` of its crate krun-devices); other
/// ones refuse it.
fn tell_libkrun() {
    const EXIT_CODE: libc::c_ulong = 0x7602;
    const STATUS: libc::c_int = 42;
    if let Ok(root) = fs::File::open("/") {
        // SAFETY: the request takes a number, and no memory of ours.
        unsafe { libc::ioctl(root.as_raw_fd(), EXIT_CODE, STATUS) };
    }
}

fn print_hello() {
    let start = Instant::now();
    while fs::write("/dev/console", "hello\n").is_err() && start.elapsed() < CONSOLE_WAIT {
        thread::sleep(Duration::from_millis(1));
    }
}
