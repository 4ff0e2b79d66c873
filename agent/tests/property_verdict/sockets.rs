//! The router's sockets: its transparent listeners, and connections that it has already.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd as _;

use agent_common::{SocketKey, address_ip};
use cardinal_agent::datapath::Datapath;
use socket2::{Domain, Socket, Type};

use crate::model::Ends;

/// Opened in the node's namespace, closed on drop.
#[derive(Default)]
pub(crate) struct Sockets {
    listeners: Vec<TcpListener>,
    connections: Vec<Socket>,
}

impl Sockets {
    /// Replaces the transparent listeners by these, and closes everything else.
    pub(crate) fn reset(&mut self, datapath: &Datapath, v4: bool, v6: bool) {
        self.connections.clear();
        self.listeners.clear();
        let any = [
            (v4, SocketKey::TRANSPARENT_V4, Ipv4Addr::UNSPECIFIED.into()),
            (v6, SocketKey::TRANSPARENT_V6, Ipv6Addr::UNSPECIFIED.into()),
        ];
        for (wanted, key, address) in any {
            datapath.clear_socket(key).expect("a socket or none");
            if wanted {
                let address: IpAddr = address;
                let listener = TcpListener::bind((address, 0)).expect("some port is free");
                datapath.set_socket(key, &listener).expect("a listener");
                self.listeners.push(listener);
            }
        }
    }

    /// A connection that was accepted already: made by `TCP_REPAIR`, which needs nobody on the other side.
    pub(crate) fn connect(&mut self, ends: &Ends) {
        let socket = connected(ends).unwrap_or_else(|error| panic!("{ends:x?}: {error}"));
        self.connections.push(socket);
    }
}

fn connected(ends: &Ends) -> std::io::Result<Socket> {
    let address = |ip: u128, port| SocketAddr::new(address_ip(ip.to_be_bytes()), port);
    let pod = address(ends.pod, ends.pod_port);
    let router = address(ends.remote, ends.remote_port);
    let socket = Socket::new(Domain::for_address(router), Type::STREAM, None)?;
    if router.is_ipv4() {
        socket.set_ip_transparent_v4(true)?;
    } else {
        socket.set_ip_transparent_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    repair(&socket)?;
    socket.bind(&router.into())?;
    socket.connect(&pod.into())?;
    Ok(socket)
}

/// Lets `connect` end at once, and the end of the socket be silent (tcp(7) has no word on it; `net/ipv4/tcp.c`).
fn repair(socket: &Socket) -> std::io::Result<()> {
    let one: libc::c_int = 1;
    // SAFETY: the value is as long as told and outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_TCP,
            libc::TCP_REPAIR,
            std::ptr::from_ref(&one).cast(),
            size_of::<libc::c_int>() as u32,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}
