//! A tap device at one end, a frame stream at the other: makes a network namespace the guest of
//! whatever speaks the frame stream. For tests of load, and for benchmarks, where every peer is
//! reached through the same bridge.
//!
//! `msb-test-tap NAME MTU connect|listen PATH [LOST OVERTAKEN DELAY]`, within the namespace. The device is up when the first
//! line is printed. With the last three, of a million frames so many are lost, and so many
//! overtaken by others; all of them are so many microseconds late.

/// Wires that are worse.
mod faults;

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use faults::Faults;

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
    let [name, mtu, how, path, bad @ ..] = &words[..] else {
        usage();
    };
    let bad: Vec<u32> = bad.iter().filter_map(|word| word.parse().ok()).collect();
    let faults = match bad[..] {
        [] => Faults::default(),
        [lost, overtaken, delay] => {
            Faults { lost, overtaken, delay: Duration::from_micros(delay.into()) }
        }
        _ => usage(),
    };
    let tap = open_tap(name)?;
    let status =
        std::process::Command::new("ip").args(["link", "set", name, "mtu", mtu, "up"]).status()?;
    assert!(status.success(), "ip link failed");
    let socket = match how.as_str() {
        "connect" => UnixStream::connect(path)?,
        _ => UnixListener::bind(path)?.accept()?.0,
    };
    enlarge(&socket);
    println!("ready");
    let (tap2, socket2) = (tap.try_clone()?, socket.try_clone()?);
    if !faults.is_none() {
        return worse(faults, (tap, tap2), (socket, socket2));
    }
    thread::spawn(move || {
        let _ = to_tap(socket2, |frame| lenient(&tap2, frame));
        std::process::exit(0);
    });
    to_socket(tap, socket)
}

fn usage() -> ! {
    eprintln!("usage: msb-test-tap NAME MTU connect|listen PATH [LOST OVERTAKEN DELAY]");
    std::process::exit(2);
}

/// Both ways over a bad wire.
fn worse(
    faults: Faults,
    (mut tap, tap2): (File, File),
    (mut socket, socket2): (UnixStream, UnixStream),
) -> std::io::Result<()> {
    let (to_guest, for_guest) = mpsc::channel();
    let (to_host, for_host) = mpsc::channel();
    thread::spawn(move || {
        let _ =
            to_tap(socket2, |frame| to_guest.send(frame.to_vec()).map_err(std::io::Error::other));
        std::process::exit(0);
    });
    thread::spawn(move || faults.pass(&for_guest, |frame| lenient(&tap2, frame)));
    thread::spawn(move || {
        let _ = faults.pass(&for_host, |frame| {
            let length = (frame.len() as u32).to_be_bytes();
            socket.write_all(&[&length, frame].concat())
        });
        std::process::exit(0);
    });
    let mut buffer = vec![0; FRAME];
    loop {
        let count = tap.read(&mut buffer)?;
        let frame = buffer[..count].to_vec();
        to_host.send(frame).map_err(std::io::Error::other)?;
    }
}

/// A device that is down, or full, loses frames.
fn lenient(mut tap: &File, frame: &[u8]) -> std::io::Result<()> {
    let _ = tap.write(frame);
    Ok(())
}

fn open_tap(name: &str) -> std::io::Result<File> {
    let tap = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
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
    let mut poll = libc::pollfd { fd: tap.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd is given, and its count is one.
    unsafe { libc::poll(&mut poll, 1, 0) > 0 }
}

fn to_tap(
    mut socket: UnixStream,
    mut send: impl FnMut(&[u8]) -> std::io::Result<()>,
) -> std::io::Result<()> {
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
            send(&buffer[start + LENGTH..start + LENGTH + length])?;
            start += LENGTH + length;
        }
        if start == end {
            (start, end) = (0, 0);
        }
    }
}
