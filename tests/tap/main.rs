//! A tap device at one end, a frame stream at the other: makes a network namespace the guest of whatever speaks the frame
//! stream. For benchmarks, where every peer is reached through the same bridge.
//!
//! `msb-test-tap NAME MTU connect|listen PATH`, within the namespace. The device is up when the first line is printed.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

/// Frames are gathered up to so many bytes.
const GATHER: usize = 256 * 1024;
/// Largest frame.
const FRAME: usize = 65535 + 14;
const LENGTH: usize = 4;

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const IFF_TAP: i16 = 0x0002;
const IFF_NO_PI: i16 = 0x1000;

fn main() -> std::io::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [name, mtu, how, path] = &words[..] else {
        eprintln!("usage: msb-test-tap NAME MTU connect|listen PATH");
        std::process::exit(2);
    };
    let tap = open_tap(name)?;
    let status = std::process::Command::new("ip")
        .args(["link", "set", name, "mtu", mtu, "up"])
        .status()?;
    assert!(status.success(), "ip link failed");
    let socket = match how.as_str() {
        "connect" => UnixStream::connect(path)?,
        _ => UnixListener::bind(path)?.accept()?.0,
    };
    enlarge(&socket);
    println!("ready");
    let (tap2, socket2) = (tap.try_clone()?, socket.try_clone()?);
    thread::spawn(move || {
        let _ = to_tap(socket2, tap2);
        std::process::exit(0);
    });
    to_socket(tap, socket)
}

fn open_tap(name: &str) -> std::io::Result<File> {
    let tap = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    let mut request = [0u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    request[16..18].copy_from_slice(&(IFF_TAP | IFF_NO_PI).to_ne_bytes());
    // SAFETY: TUNSETIFF reads an ifreq, which is 40 bytes; the name in it is terminated.
    let answer = unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETIFF as _, request.as_mut_ptr()) };
    if answer < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(tap)
}

fn enlarge(socket: &UnixStream) {
    for option in [libc::SO_SNDBUF, libc::SO_RCVBUF] {
        let bytes: libc::c_int = 4 * 1024 * 1024;
        // SAFETY: the option is an int, and its address and size are given.
        unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const bytes).cast(),
                size_of::<libc::c_int>() as u32,
            );
        }
    }
}

/// Waits for the device, then takes what is there.
fn to_socket(mut tap: File, mut socket: UnixStream) -> std::io::Result<()> {
    let mut buffer = vec![0; GATHER + FRAME + LENGTH];
    loop {
        let mut end = 0;
        loop {
            let count = match tap.read(&mut buffer[end + LENGTH..]) {
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            buffer[end..end + LENGTH].copy_from_slice(&(count as u32).to_be_bytes());
            end += LENGTH + count;
            if end >= GATHER || !has_more(&tap) {
                break;
            }
        }
        socket.write_all(&buffer[..end])?;
    }
}

fn has_more(tap: &File) -> bool {
    let mut poll = libc::pollfd {
        fd: tap.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one pollfd is given, and its count is one.
    unsafe { libc::poll(&mut poll, 1, 0) > 0 }
}

fn to_tap(mut socket: UnixStream, mut tap: File) -> std::io::Result<()> {
    let mut buffer = vec![0; 2 * GATHER];
    let (mut start, mut end) = (0, 0);
    loop {
        if buffer.len() - start < FRAME + LENGTH {
            buffer.copy_within(start..end, 0);
            (start, end) = (0, end - start);
        }
        let count = socket.read(&mut buffer[end..])?;
        if count == 0 {
            return Ok(());
        }
        end += count;
        while end - start >= LENGTH {
            let length = u32::from_be_bytes([
                buffer[start],
                buffer[start + 1],
                buffer[start + 2],
                buffer[start + 3],
            ]) as usize;
            if end - start < LENGTH + length {
                break;
            }
            let frame = &buffer[start + LENGTH..start + LENGTH + length];
            // A device that is down, or full, loses frames.
            let _ = tap.write(frame);
            start += LENGTH + length;
        }
        if start == end {
            (start, end) = (0, 0);
        }
    }
}
