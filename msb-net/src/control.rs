//! The control socket: new settings for a running network, from the process that started it.
//!
//! Messages arrive on a connected socket of sequenced packets
//! ([`libmsb::net::network::PACKET_PORTS`] and related constants). Sockets of new ports come first,
//! as descriptors, in as many packets as needed; then the settings, in a file. Messages are
//! trusted: the peer of this socket is the process that started this one.

use std::fs::File;
use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use libmsb::net::PUBLISHED_MAX;
use libmsb::net::network::{
    NetSettings, PACKET_DESCRIPTORS_MAX, PACKET_PORTS, PACKET_SETTINGS, SETTINGS_BYTES_MAX,
    SettingsReply,
};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, recvmsg, send,
};

/// A message on the control socket.
pub(crate) enum ControlMessage {
    /// New settings, and the sockets of new ports in the order of their indexes.
    NetSettings(Box<NetSettings>, Vec<OwnedFd>),
    /// An invalid message, with the reason.
    Malformed(String),
    /// No message for now.
    Empty,
    /// The peer closed the socket.
    Closed,
    /// Reading the socket failed.
    Failed(Errno),
}

/// The control socket.
pub(crate) struct ControlSocket {
    socket: OwnedFd,
    /// Sockets of ports that wait for their settings.
    ports: Vec<OwnedFd>,
}

impl ControlSocket {
    pub(crate) fn new(socket: OwnedFd) -> ControlSocket {
        ControlSocket { socket, ports: Vec::new() }
    }

    /// Returns the socket, which becomes readable when a message arrives.
    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Reads the next message.
    pub(crate) fn next_message(&mut self) -> ControlMessage {
        loop {
            let (kind, mut descriptors) = match self.read_packet() {
                Ok(Some(packet)) => packet,
                Ok(None) => return ControlMessage::Closed,
                Err(Errno::AGAIN) => return ControlMessage::Empty,
                Err(Errno::INTR) => continue,
                Err(Errno::MFILE) => {
                    return self.malformed("too many open files".to_owned());
                }
                // Reading again would give the same error.
                Err(error) => return ControlMessage::Failed(error),
            };
            match kind {
                PACKET_PORTS if self.ports.len() + descriptors.len() <= PUBLISHED_MAX => {
                    self.ports.append(&mut descriptors);
                }
                PACKET_PORTS => return self.malformed("too many ports".to_owned()),
                PACKET_SETTINGS => {
                    let Some(file) = descriptors.pop() else {
                        return self.malformed("missing settings file".to_owned());
                    };
                    return match read(file) {
                        Ok(settings) => {
                            ControlMessage::NetSettings(settings, std::mem::take(&mut self.ports))
                        }
                        Err(error) => self.malformed(format!("cannot read the settings: {error}")),
                    };
                }
                kind => return self.malformed(format!("unknown packet type {kind}")),
            }
        }
    }

    fn malformed(&mut self, why: String) -> ControlMessage {
        self.ports.clear();
        ControlMessage::Malformed(why)
    }

    /// Reads one packet: its type and its descriptors. `None`: the peer closed the socket.
    fn read_packet(&self) -> Result<Option<(u8, Vec<OwnedFd>)>, Errno> {
        let mut kind = [0];
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PACKET_DESCRIPTORS_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received =
            recvmsg(&self.socket, &mut [IoSliceMut::new(&mut kind)], &mut ancillary, flags)?;
        let mut descriptors = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            // This process has reached its limit of descriptors.
            return Err(Errno::MFILE);
        }
        Ok((received.bytes > 0).then_some((kind[0], descriptors)))
    }

    /// Sends the result of applying settings. A peer that does not read it is ignored.
    pub(crate) fn answer(&self, error: Option<String>) {
        if let Ok(json) = serde_json::to_vec(&SettingsReply { error }) {
            let _ = send(&self.socket, &json, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        }
    }
}

fn read(file: OwnedFd) -> io::Result<Box<NetSettings>> {
    let mut bytes = Vec::new();
    File::from(file).take(SETTINGS_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn pair() -> (ControlSocket, OwnedFd) {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .unwrap();
        (ControlSocket::new(ours), theirs)
    }

    fn describe(word: ControlMessage) -> String {
        match word {
            ControlMessage::NetSettings(..) => "settings".to_owned(),
            ControlMessage::Malformed(why) => why,
            ControlMessage::Empty => "nothing".to_owned(),
            ControlMessage::Closed => "end".to_owned(),
            ControlMessage::Failed(error) => error.to_string(),
        }
    }

    #[test]
    fn malformed_messages_are_reported_and_the_close_is_seen() {
        let (mut control, other) = pair();
        assert_eq!(describe(control.next_message()), "nothing");
        for (packet, why) in
            [(b'x', "unknown packet type 120"), (PACKET_SETTINGS, "missing settings file")]
        {
            send(&other, &[packet], SendFlags::empty()).unwrap();
            assert_eq!(describe(control.next_message()), why);
        }
        control.answer(Some("no".to_owned()));
        let mut answer = [0; 64];
        let (count, _) = rustix::net::recv(&other, &mut answer[..], RecvFlags::empty()).unwrap();
        assert_eq!(&answer[..count], br#"{"error":"no"}"#);
        drop(other);
        assert_eq!(describe(control.next_message()), "end");
    }
    #[test]
    fn a_failed_socket_is_reported() {
        let (read, _write) = rustix::pipe::pipe().unwrap();
        let mut control = ControlSocket::new(read);
        assert!(matches!(control.next_message(), ControlMessage::Failed(Errno::NOTSOCK)));
    }
}
