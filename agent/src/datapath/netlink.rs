//! A blocking rtnetlink client: requests and all their answers, and what the kernel tells of itself. It speaks in the
//! network namespace of the thread that opened it, which is why it is not the asynchronous one.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, NetlinkAddr, recvmsg, setsockopt, sockopt::RcvBufForce,
};

/// A request socket.
pub(super) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Without it the kernel ignores what a request for many things narrows them to (4.20).
        socket.set_netlink_get_strict_chk(true)?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Asks for all objects of a kind.
    pub(super) fn dump(
        &mut self,
        message: RouteNetlinkMessage,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.exchange(message, NLM_F_REQUEST | NLM_F_DUMP)
    }

    /// Asks for one thing, or for something to be done.
    pub(super) fn request(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.exchange(message, NLM_F_REQUEST | NLM_F_ACK | flags)
    }

    /// Asks for several things to be done with one system call; the kernel does them in order, each whatever became of
    /// the one before. Gives what became of each.
    pub(super) fn batch(
        &mut self,
        messages: Vec<(RouteNetlinkMessage, u16)>,
    ) -> io::Result<Vec<io::Result<()>>> {
        let mut bytes = Vec::new();
        let mut numbers = Vec::new();
        for (message, flags) in messages {
            bytes.extend(self.message(message, NLM_F_REQUEST | NLM_F_ACK | flags));
            numbers.push(self.sequence);
        }
        self.socket.send(&bytes, 0)?;
        numbers
            .into_iter()
            .map(|number| {
                Ok(match self.answers(number) {
                    Ok(_) => Ok(()),
                    // What the kernel says of the request, not of the socket.
                    Err(Failure::Refused(error)) => Err(error),
                    Err(Failure::Socket(error)) => return Err(error),
                })
            })
            .collect()
    }

    fn message(&mut self, message: RouteNetlinkMessage, flags: u16) -> Vec<u8> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        // Messages are padded to four bytes (netlink(7)).
        let mut bytes = vec![0; request.buffer_len().next_multiple_of(4)];
        request.serialize(&mut bytes);
        bytes
    }

    fn exchange(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        let bytes = self.message(message, flags);
        self.socket.send(&bytes, 0)?;
        self.answers(self.sequence)
            .map_err(|failure| match failure {
                Failure::Refused(error) | Failure::Socket(error) => error,
            })
    }

    fn answers(&mut self, number: u32) -> Result<Vec<RouteNetlinkMessage>, Failure> {
        let mut answers = Vec::new();
        loop {
            let (received, _) = self.socket.recv_from_full().map_err(Failure::Socket)?;
            for answer in parse(&received) {
                let answer = answer.map_err(Failure::Socket)?;
                if answer.header.sequence_number != number {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                    // A dump that fails ends with the error instead of zero.
                    NetlinkPayload::Done(done) if done.code < 0 => {
                        return Err(Failure::Refused(io::Error::from_raw_os_error(-done.code)));
                    }
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(answers),
                    NetlinkPayload::Error(error) => return Err(Failure::Refused(error.to_io())),
                    _ => {}
                }
            }
        }
    }
}

/// Why a request has no answer.
enum Failure {
    /// The kernel's answer is no.
    Refused(io::Error),
    /// There is no answer.
    Socket(io::Error),
}

/// The messages of one datagram. After one that cannot be read there are no more.
fn parse(bytes: &[u8]) -> impl Iterator<Item = io::Result<NetlinkMessage<RouteNetlinkMessage>>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let message = NetlinkMessage::deserialize(rest).map_err(io::Error::other);
        let length = match &message {
            Ok(message) => (message.header.length as usize).next_multiple_of(4),
            Err(_) => rest.len(),
        };
        rest = rest.get(length..).unwrap_or(&[]);
        Some(message)
    })
}

/// Something that the kernel told without being asked.
pub(super) struct Event {
    /// The number of the namespace that it is about; none for the listener's own.
    pub(super) namespace: Option<i32>,
    /// What.
    pub(super) message: RouteNetlinkMessage,
}

/// A socket on which the kernel tells of changes, here and in every namespace that has a number here.
pub(super) struct Listener {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Listener {
    /// Room for the messages of some thousand interfaces that come at once, in bytes. The kernel's default is full after
    /// a hundred.
    const QUEUE: usize = 16 << 20;
    /// More than any message has; the kernel sends no larger one than 32 KiB without being asked.
    const MESSAGE: usize = 64 << 10;

    /// Listens to these groups (`RTNLGRP_*` of the kernel's `linux/rtnetlink.h`) from now on.
    pub(super) fn open(groups: &[u32]) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.set_non_blocking(true)?;
        setsockopt(&socket, RcvBufForce, &Self::QUEUE)?;
        socket.set_listen_all_namespaces(true)?;
        for group in groups {
            socket.add_membership(*group)?;
        }
        Ok(Self {
            socket,
            buffer: vec![0; Self::MESSAGE],
        })
    }

    /// What to wait for with poll(2).
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The events of the next datagram; none when nothing waits.
    ///
    /// # Errors
    ///
    /// `ENOBUFS` when events were lost; whatever else the socket or a message that cannot be read gives. The listener
    /// goes on in each case, and what was missed must be found by looking.
    pub(super) fn next(&mut self) -> io::Result<Option<Vec<Event>>> {
        let mut control = nix::cmsg_space!([u8; 64]);
        let (length, namespace) = {
            let mut buffers = [IoSliceMut::new(&mut self.buffer)];
            let received = match recvmsg::<NetlinkAddr>(
                self.socket.as_raw_fd(),
                &mut buffers,
                Some(&mut control),
                MsgFlags::empty(),
            ) {
                Err(nix::errno::Errno::EAGAIN) => return Ok(None),
                received => received?,
            };
            if received.address.is_none_or(|sender| sender.pid() != 0) {
                // Not the kernel's.
                return Ok(Some(Vec::new()));
            }
            if received.flags.contains(MsgFlags::MSG_TRUNC) {
                return Err(io::Error::other("a message is longer than any known one"));
            }
            let namespace = received.cmsgs()?.find_map(|message| match message {
                ControlMessageOwned::Unknown(unknown)
                    if unknown.cmsg_header.cmsg_level == libc::SOL_NETLINK
                        && unknown.cmsg_header.cmsg_type == libc::NETLINK_LISTEN_ALL_NSID =>
                {
                    let number = unknown.data_bytes.first_chunk().copied()?;
                    Some(i32::from_ne_bytes(number))
                }
                _ => None,
            });
            (received.bytes, namespace)
        };
        let mut events = Vec::new();
        for message in parse(&self.buffer[..length]) {
            if let NetlinkPayload::InnerMessage(message) = message?.payload {
                events.push(Event { namespace, message });
            }
        }
        Ok(Some(events))
    }
}
