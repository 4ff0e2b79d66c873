//! Frames that a test run refuses, sent over the pod's interface instead.
//!
//! A test run takes no frame that says IP and ends within the IP header (`EINVAL`; older kernels do). No gate passes one,
//! so that it goes no further than the gate here too.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use agent_common::Direction;

use crate::model::Asked;
use crate::world::{World, inside};

/// Packet sockets on both ends of each pod's interface.
pub(crate) struct Cable(BTreeMap<(u32, Direction), OwnedFd>);

/// Whether a test run would refuse the frame.
pub(crate) fn refused(frame: &[u8]) -> bool {
    let network = frame.len() - 14;
    match [frame[12], frame[13]] {
        [0x08, 0x00] => network < 20,
        [0x86, 0xdd] => network < 40,
        _ => false,
    }
}

impl Cable {
    /// Opens the sockets, and makes the interfaces silent: what the kernel says of itself would be counted too.
    pub(crate) fn open(world: &World) -> Self {
        let mut sockets = BTreeMap::new();
        for pod in &world.pods {
            let ends = [
                (Direction::Egress, &pod.netns, "eth0"),
                (Direction::Ingress, &world.node, pod.ifname.as_str()),
            ];
            for (way, netns, interface) in ends {
                let interface = interface.to_owned();
                let socket = inside(netns, move || {
                    let setting = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
                    std::fs::write(setting, "1").expect("a namespace's own setting");
                    packet_socket(&interface)
                });
                sockets.insert((pod.ifindex, way), socket);
            }
        }
        Self(sockets)
    }

    /// Sends a frame towards a gate. The gate sees it soon, not at once.
    pub(crate) fn send(&self, asked: &Asked) {
        let socket = &self.0[&(asked.gate, asked.way)];
        let frame = &asked.frame;
        // SAFETY: the frame is as long as told and outlives the call.
        let sent = unsafe { libc::send(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        // A frame that the gate drops on the way out of the sender's own queue is reported as no buffer.
        let error = std::io::Error::last_os_error();
        let dropped = error.raw_os_error() == Some(libc::ENOBUFS);
        assert!(
            sent == frame.len() as isize || dropped,
            "{asked:x?}: {error}"
        );
    }
}

fn packet_socket(interface: &str) -> OwnedFd {
    let index = nix::net::if_::if_nametoindex(interface).expect("the interface exists");
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
    // SAFETY: all zero is a valid link-layer address.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = index as i32;
    // SAFETY: the address is as long as told and outlives the call.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            std::ptr::from_ref(&address).cast(),
            size_of::<libc::sockaddr_ll>() as u32,
        )
    };
    assert_eq!(bound, 0, "{}", std::io::Error::last_os_error());
    socket
}
