//! New settings for a network that runs, from whoever started it.
//!
//! They come over a connected socket of sequenced packets ([`libmsb::net::network::PACKET_PORTS`] and its like). Ports come
//! first, as descriptors, in as many packets as they need; then the settings, in a file. All of it is believed: who holds
//! the other end of this socket has started us.

use std::fs::File;
use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use libmsb::net::PUBLISHED_MAX;
use libmsb::net::network::{
    Answer, PACKET_DESCRIPTORS_MAX, PACKET_PORTS, PACKET_SETTINGS, SETTINGS_BYTES_MAX, Settings,
};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, recvmsg, send,
};

/// What came.
pub(crate) enum Word {
    /// New settings, and the sockets of ports that are new in them, in the order of their numbers.
    Settings(Box<Settings>, Vec<OwnedFd>),
    /// Something that is none, and why.
    Nonsense(String),
    /// Nothing more, for now.
    Nothing,
    /// Nothing more, ever.
    End,
    /// The same, since the socket fails.
    Broken(Errno),
}

/// The socket.
pub(crate) struct Control {
    socket: OwnedFd,
    /// Ports that came, and wait for their settings.
    ports: Vec<OwnedFd>,
}

impl Control {
    pub(crate) fn new(socket: OwnedFd) -> Control {
        Control {
            socket,
            ports: Vec::new(),
        }
    }

    /// Ready for reading when there is something.
    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// What came next.
    pub(crate) fn next(&mut self) -> Word {
        loop {
            let (kind, mut descriptors) = match self.packet() {
                Ok(Some(packet)) => packet,
                Ok(None) => return Word::End,
                Err(Errno::AGAIN) => return Word::Nothing,
                Err(Errno::INTR) => continue,
                Err(Errno::MFILE) => {
                    return self.nonsense("there are too many open files".to_owned());
                }
                // Who asked again would hear the same for ever.
                Err(error) => return Word::Broken(error),
            };
            match kind {
                PACKET_PORTS if self.ports.len() + descriptors.len() <= PUBLISHED_MAX => {
                    self.ports.append(&mut descriptors);
                }
                PACKET_PORTS => return self.nonsense("there are too many ports".to_owned()),
                PACKET_SETTINGS => {
                    let Some(file) = descriptors.pop() else {
                        return self.nonsense("there is no file with settings".to_owned());
                    };
                    return match read(file) {
                        Ok(settings) => Word::Settings(settings, std::mem::take(&mut self.ports)),
                        Err(error) => {
                            self.nonsense(format!("the settings cannot be read: {error}"))
                        }
                    };
                }
                kind => return self.nonsense(format!("there are no packets of the kind {kind}")),
            }
        }
    }

    fn nonsense(&mut self, why: String) -> Word {
        self.ports.clear();
        Word::Nonsense(why)
    }

    /// A packet: its kind, and its descriptors. `None`: the other end is closed.
    fn packet(&self) -> Result<Option<(u8, Vec<OwnedFd>)>, Errno> {
        let mut kind = [0];
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PACKET_DESCRIPTORS_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let came = recvmsg(
            &self.socket,
            &mut [IoSliceMut::new(&mut kind)],
            &mut ancillary,
            flags,
        )?;
        let mut descriptors = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        if came.flags.contains(ReturnFlags::CTRUNC) {
            // This process may have no more descriptors.
            return Err(Errno::MFILE);
        }
        Ok((came.bytes > 0).then_some((kind[0], descriptors)))
    }

    /// Says what became of settings. Who does not wait for it has no need of it.
    pub(crate) fn answer(&self, error: Option<String>) {
        if let Ok(json) = serde_json::to_vec(&Answer { error }) {
            let _ = send(
                &self.socket,
                &json,
                SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
            );
        }
    }
}

fn read(file: OwnedFd) -> io::Result<Box<Settings>> {
    let mut bytes = Vec::new();
    File::from(file)
        .take(SETTINGS_BYTES_MAX)
        .read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn pair() -> (Control, OwnedFd) {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        (Control::new(ours), theirs)
    }

    fn said(word: Word) -> String {
        match word {
            Word::Settings(..) => "settings".to_owned(),
            Word::Nonsense(why) => why,
            Word::Nothing => "nothing".to_owned(),
            Word::End => "end".to_owned(),
            Word::Broken(error) => error.to_string(),
        }
    }

    #[test]
    fn what_is_no_settings_is_told_and_the_end_is_seen() {
        let (mut control, other) = pair();
        assert_eq!(said(control.next()), "nothing");
        for (packet, why) in [
            (b'x', "there are no packets of the kind 120"),
            (PACKET_SETTINGS, "there is no file with settings"),
        ] {
            send(&other, &[packet], SendFlags::empty()).unwrap();
            assert_eq!(said(control.next()), why);
        }
        control.answer(Some("no".to_owned()));
        let mut answer = [0; 64];
        let (count, _) = rustix::net::recv(&other, &mut answer[..], RecvFlags::empty()).unwrap();
        assert_eq!(&answer[..count], br#"{"error":"no"}"#);
        drop(other);
        assert_eq!(said(control.next()), "end");
    }
    #[test]
    fn a_socket_that_fails_is_asked_no_more() {
        let (read, _write) = rustix::pipe::pipe().unwrap();
        let mut control = Control::new(read);
        assert!(matches!(control.next(), Word::Broken(Errno::NOTSOCK)));
    }
}
