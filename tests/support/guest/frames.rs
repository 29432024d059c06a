//! Frames as a guest's root can send them, whatever its kernel would.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::time::Duration;

/// Sends the frames on standard input, each after its length in two bytes, big-endian; all of them
/// so many times. The number of the round stands in the two bytes at a place of each frame, if one
/// is given.
pub(crate) fn send(interface: &str, times: &str, place: Option<&str>) -> io::Result<()> {
    let times: u16 = times.parse().map_err(io::Error::other)?;
    let place: Option<usize> = place.map(str::parse).transpose().map_err(io::Error::other)?;
    let mut input = Vec::new();
    io::stdin().lock().read_to_end(&mut input)?;
    let mut socket = socket(interface)?;
    for round in 0..times {
        let mut rest = &input[..];
        while let Some((length, after)) = rest.split_first_chunk::<2>() {
            let length = usize::from(u16::from_be_bytes(*length));
            let cut = || io::Error::other("a frame is cut");
            let (frame, after) = after.split_at_checked(length).ok_or_else(cut)?;
            let mut frame = frame.to_vec();
            let number = place.and_then(|place| frame.get_mut(place..place + 2));
            if let Some(number) = number {
                number.copy_from_slice(&round.to_be_bytes());
            }
            send_one(&mut socket, &frame)?;
            rest = after;
        }
    }
    Ok(())
}

/// The device takes no more than its ring holds.
fn send_one(socket: &mut File, frame: &[u8]) -> io::Result<()> {
    loop {
        match socket.write(frame) {
            Ok(_) => return Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(error),
        }
    }
}

/// A packet socket (packet(7)) of one interface, that takes nothing.
fn socket(interface: &str) -> io::Result<File> {
    let path = format!("/sys/class/net/{interface}/ifindex");
    let index = std::fs::read_to_string(path)?;
    let index: i32 = index.trim().parse().map_err(io::Error::other)?;
    // SAFETY: the call takes three numbers, and no memory of ours.
    let number = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made, and is nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(number) };
    // SAFETY: zeroes are an address of this kind: it holds numbers only.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = index;
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the address lives through the call, and is as long as it says.
    let bound = unsafe { libc::bind(number, (&raw const address).cast(), length) };
    if bound < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket.into())
}
