//! Frames made by hand, and the way to put them on a link as they are.

use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use super::world::{NODE_MAC, POD_MAC, inside};

pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

pub(crate) fn parse(text: &str) -> IpAddr {
    text.parse().expect("an address of the table")
}

pub(crate) fn ethernet(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [NODE_MAC, POD_MAC].concat();
    frame.extend(kind.to_be_bytes());
    frame.extend(payload);
    frame
}

/// An IPv4 packet; `fragment` is flags and offset.
pub(crate) fn ipv4(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    fragment: u16,
    payload: &[u8],
) -> Vec<u8> {
    let length = (20 + payload.len()) as u16;
    let mut packet = vec![0x45, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([0x12, 0x34]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(octets(source));
    packet.extend(octets(destination));
    packet.extend(payload);
    ethernet(0x0800, &packet)
}

/// The same with options, which are padded to four bytes.
pub(crate) fn with_options(mut frame: Vec<u8>, options: &[u8]) -> Vec<u8> {
    let padded = options.len().next_multiple_of(4);
    let mut bytes = options.to_vec();
    bytes.resize(padded, 0);
    frame[14] += (padded / 4) as u8;
    let length = u16::from_be_bytes([frame[16], frame[17]]) + padded as u16;
    frame[16..18].copy_from_slice(&length.to_be_bytes());
    frame.splice(34..34, bytes);
    frame
}

pub(crate) fn ipv6(source: IpAddr, destination: IpAddr, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, 255]);
    packet.extend(octets(source));
    packet.extend(octets(destination));
    packet.extend(payload);
    ethernet(0x86dd, &packet)
}

pub(crate) fn udp_header(port: u16) -> Vec<u8> {
    let mut header = vec![0xc0, 0];
    header.extend(port.to_be_bytes());
    header.extend([0, 8, 0, 0]);
    header
}

pub(crate) fn syn(port: u16) -> Vec<u8> {
    tcp(port, 0x02)
}

pub(crate) fn tcp(port: u16, flags: u8) -> Vec<u8> {
    let mut header = vec![0xc0, 0];
    header.extend(port.to_be_bytes());
    header.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    header
}

pub(crate) fn icmp(kind: u8, rest: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0];
    message.extend(rest);
    message
}

pub(crate) fn arp(sender: IpAddr, target: IpAddr) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 2];
    packet.extend(octets(sender));
    packet.extend([0; 6]);
    packet.extend(octets(target));
    ethernet(0x0806, &packet)
}

/// Sends a frame as it is, out of an interface of a namespace.
pub(crate) fn send(netns: &str, interface: &str, frame: Vec<u8>) {
    send_all(netns, interface, vec![frame]);
}

/// Sends frames as they are, one after the other.
pub(crate) fn send_all(netns: &str, interface: &str, frames: Vec<Vec<u8>>) {
    let interface = interface.to_owned();
    inside(netns, move || {
        let index =
            nix::net::if_::if_nametoindex(interface.as_str()).expect("the interface exists");
        // SAFETY: opens a packet socket, whose descriptor nobody else owns.
        let socket = unsafe {
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
            assert!(
                fd >= 0,
                "packet socket: {}",
                std::io::Error::last_os_error()
            );
            OwnedFd::from_raw_fd(fd)
        };
        for frame in frames {
            // SAFETY: all zero is a valid link-layer address.
            let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_ifindex = index as i32;
            address.sll_protocol = u16::from_be_bytes([frame[12], frame[13]]).to_be();
            address.sll_halen = 6;
            // SAFETY: frame and address are as long as told and outlive the call.
            let sent = unsafe {
                libc::sendto(
                    socket.as_raw_fd(),
                    frame.as_ptr().cast(),
                    frame.len(),
                    0,
                    std::ptr::from_ref(&address).cast(),
                    size_of::<libc::sockaddr_ll>() as u32,
                )
            };
            // A frame that the sender's own queue drops (tc egress) is reported as no buffer.
            let dropped = std::io::Error::last_os_error().raw_os_error() == Some(libc::ENOBUFS);
            assert!(
                sent == frame.len() as isize || dropped,
                "{}",
                std::io::Error::last_os_error()
            );
        }
    });
}
