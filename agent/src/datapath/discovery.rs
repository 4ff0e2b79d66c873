//! Which pods are on this node: every network namespace that shares a veth pair with this one.
//!
//! Flows in: the links of this namespace and the namespaces that processes and `/run/netns` hold. Flows out: for each
//! pair the host-side interface, and the addresses of the pod's end. Who the pod is, is not decided here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::thread;

use netlink_packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{LinkAttribute, LinkMessage},
    nsid::{NsidAttribute, NsidMessage},
};
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use nix::sched::{CloneFlags, setns};
use tokio::io::unix::AsyncFd;

use super::{error::Error, netlink::Netlink};

/// The pods of this node, by host-side interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Discovery {
    /// Sorted by `ifindex`.
    pub pods: Vec<Pod>,
    /// Names of host-side interfaces whose other end nobody could be found at: no process or name holds its namespace,
    /// or this agent may not read it. They have no gates, so the agent says their names.
    pub unidentified: Vec<String>,
    /// Addresses of this node's own interfaces, loopback networks left out, sorted.
    pub node_addresses: Vec<IpAddr>,
}

/// One end of a veth pair in another network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Host-side interface.
    pub ifindex: u32,
    /// Its name.
    pub host_ifname: String,
    /// Hardware address of the pod's end.
    pub mac: [u8; 6],
    /// Addresses of the pod's end, link-local ones left out, sorted.
    pub addresses: Vec<IpAddr>,
    /// Inode of the pod's network namespace.
    pub netns: u64,
}

/// A veth interface of this namespace.
struct Veth {
    name: String,
    peer: u32,
    namespace: i32,
}

/// Looks at the node now. Blocking: run it on a thread that may block.
///
/// # Errors
///
/// When the kernel refuses to tell. A process or namespace that goes away meanwhile is no error.
pub fn scan() -> Result<Discovery, Error> {
    let failed = || Error::kernel("list the interfaces of this node");
    let mut netlink = Netlink::open().map_err(failed())?;
    // Listing the links also gives every peer namespace its number, which is asked for below.
    let veths = veths(&mut netlink).map_err(failed())?;
    let wanted: BTreeSet<i32> = veths.values().map(|veth| veth.namespace).collect();
    let mut node_addresses: Vec<IpAddr> = own_addresses(&mut netlink).map_err(failed())?;
    node_addresses.sort_unstable();
    node_addresses.dedup();
    let mut pods = Vec::new();
    if wanted.is_empty() {
        return Ok(Discovery {
            node_addresses,
            ..Discovery::default()
        });
    }
    let mut found = BTreeSet::new();
    for (inode, file) in namespaces()? {
        if found.len() == wanted.len() {
            break;
        }
        let number = number_of(&mut netlink, &file).map_err(failed())?;
        if !wanted.contains(&number) || !found.insert(number) {
            continue;
        }
        let ends = ends(file)?;
        for (ifindex, veth) in veths.iter().filter(|(_, veth)| veth.namespace == number) {
            if let Some(end) = ends.get(&veth.peer) {
                let mut addresses = end.addresses.clone();
                addresses.sort_unstable();
                pods.push(Pod {
                    ifindex: *ifindex,
                    host_ifname: veth.name.clone(),
                    mac: end.mac,
                    addresses,
                    netns: inode,
                });
            }
        }
    }
    pods.sort_by_key(|pod| pod.ifindex);
    let unidentified = veths
        .into_values()
        .filter(|veth| !found.contains(&veth.namespace))
        .map(|veth| veth.name)
        .collect();
    Ok(Discovery {
        pods,
        unidentified,
        node_addresses,
    })
}

fn veths(netlink: &mut Netlink) -> io::Result<BTreeMap<u32, Veth>> {
    let mut veths = BTreeMap::new();
    for message in netlink.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))? {
        let RouteNetlinkMessage::NewLink(link) = message else {
            continue;
        };
        let (mut name, mut peer, mut namespace) = (None, None, None);
        for attribute in link.attributes {
            match attribute {
                LinkAttribute::IfName(text) => name = Some(text),
                LinkAttribute::Link(index) => peer = Some(index),
                LinkAttribute::LinkNetNsId(number) => namespace = Some(number),
                _ => {}
            }
        }
        // Only an interface whose other end is elsewhere has all three.
        if let (Some(name), Some(peer), Some(namespace)) = (name, peer, namespace) {
            veths.insert(
                link.header.index,
                Veth {
                    name,
                    peer,
                    namespace,
                },
            );
        }
    }
    Ok(veths)
}

/// Every network namespace that something holds, this one left out, with its inode.
fn namespaces() -> Result<Vec<(u64, File)>, Error> {
    let own = fs::metadata("/proc/thread-self/ns/net")
        .map_err(Error::file("read", "/proc/thread-self/ns/net"))?
        .ino();
    let mut seen = BTreeSet::from([own]);
    let mut files = Vec::new();
    let processes = fs::read_dir("/proc").map_err(Error::file("list", "/proc"))?;
    let named = fs::read_dir("/run/netns").into_iter().flatten();
    let paths = processes
        .flatten()
        .filter(|entry| {
            entry
                .file_name()
                .as_encoded_bytes()
                .iter()
                .all(u8::is_ascii_digit)
        })
        .map(|entry| entry.path().join("ns/net"))
        .chain(named.flatten().map(|entry| entry.path()));
    for path in paths {
        match open_once(&path, &mut seen) {
            Ok(Some(found)) => files.push(found),
            Ok(None) => {}
            // The process ended; a name under /run/netns is no namespace; or a process is beyond this agent's rights.
            // A pair whose other end is missed for any of these is reported as unidentified.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ENOENT | libc::ESRCH | libc::EINVAL | libc::EACCES | libc::EPERM)
                ) => {}
            Err(error) => return Err(Error::file("open", path)(error)),
        }
    }
    Ok(files)
}

fn open_once(path: &PathBuf, seen: &mut BTreeSet<u64>) -> io::Result<Option<(u64, File)>> {
    let inode = fs::metadata(path)?.ino();
    if !seen.insert(inode) {
        return Ok(None);
    }
    Ok(Some((inode, File::open(path)?)))
}

/// The number that this namespace has for another; negative if it has none, or if the file is no namespace.
fn number_of(netlink: &mut Netlink, namespace: &File) -> io::Result<i32> {
    let mut message = NsidMessage::default();
    message.attributes = vec![NsidAttribute::Fd(namespace.as_raw_fd() as u32)];
    let answers = match netlink.request(RouteNetlinkMessage::GetNsId(message), 0) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(-1),
        answers => answers?,
    };
    let number = answers.into_iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewNsId(message) => {
            message
                .attributes
                .into_iter()
                .find_map(|attribute| match attribute {
                    NsidAttribute::Id(number) => Some(number),
                    _ => None,
                })
        }
        _ => None,
    });
    Ok(number.unwrap_or(-1))
}

/// An interface of a pod.
#[derive(Default)]
struct End {
    mac: [u8; 6],
    addresses: Vec<IpAddr>,
}

/// The interfaces of another namespace. A thread of its own enters it and ends there: it never comes back to a pool.
fn ends(namespace: File) -> Result<BTreeMap<u32, End>, Error> {
    let failed = || Error::kernel("read a pod's addresses");
    thread::Builder::new()
        .name("cardinal-netns".into())
        .spawn(move || {
            setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
            read_ends(&mut Netlink::open()?)
        })
        .map_err(failed())?
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the reading thread panicked")))
        .map_err(failed())
}

fn read_ends(netlink: &mut Netlink) -> io::Result<BTreeMap<u32, End>> {
    let mut ends: BTreeMap<u32, End> = BTreeMap::new();
    for message in netlink.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))? {
        let RouteNetlinkMessage::NewLink(link) = message else {
            continue;
        };
        let end = ends.entry(link.header.index).or_default();
        for attribute in link.attributes {
            if let LinkAttribute::Address(bytes) = attribute
                && let Ok(mac) = bytes.try_into()
            {
                end.mac = mac;
            }
        }
    }
    for (index, ip) in addresses(netlink)? {
        let link_local = match ip {
            IpAddr::V4(v4) => v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        };
        if let Some(end) = ends.get_mut(&index).filter(|_| !link_local) {
            end.addresses.push(ip);
        }
    }
    Ok(ends)
}

/// The node's addresses. Link-local ones count: a pod's gateway often is one.
fn own_addresses(netlink: &mut Netlink) -> io::Result<Vec<IpAddr>> {
    let all = addresses(netlink)?;
    Ok(all
        .into_iter()
        .map(|(_, ip)| ip)
        .filter(|ip| !ip.is_loopback())
        .collect())
}

/// Interface and address of every address in the socket's namespace.
fn addresses(netlink: &mut Netlink) -> io::Result<Vec<(u32, IpAddr)>> {
    let mut all = Vec::new();
    for message in netlink.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))? {
        let RouteNetlinkMessage::NewAddress(address) = message else {
            continue;
        };
        let (mut own, mut peer) = (None, None);
        for attribute in address.attributes {
            match attribute {
                // On a point-to-point interface `Address` is the other side's, `Local` is ours (rtnetlink(7)).
                AddressAttribute::Local(ip) => own = Some(ip),
                AddressAttribute::Address(ip) => peer = Some(ip),
                _ => {}
            }
        }
        all.extend(own.or(peer).map(|ip| (address.header.index, ip)));
    }
    Ok(all)
}

/// Tells when interfaces or addresses change, here or in a namespace that shares a link with this one.
#[derive(Debug)]
pub struct Changes {
    socket: AsyncFd<Socket>,
}

impl Changes {
    /// Starts listening. Needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// When the kernel or the runtime refuses.
    pub fn listen() -> Result<Self, Error> {
        /// `RTNLGRP_LINK`, `RTNLGRP_IPV4_IFADDR`, `RTNLGRP_IPV6_IFADDR` of `linux/rtnetlink.h`.
        const GROUPS: [u32; 3] = [1, 5, 9];
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.set_non_blocking(true)?;
            // A pod's addresses change in its own namespace.
            socket.set_listen_all_namespaces(true)?;
            for group in GROUPS {
                socket.add_membership(group)?;
            }
            // SAFETY: the socket is opened here, never replaced, and closed only when the `AsyncFd` is dropped.
            unsafe { AsyncFd::register(socket) }.map_err(io::Error::from)
        };
        open()
            .map(|socket| Self { socket })
            .map_err(Error::kernel("listen for changes of interfaces"))
    }

    /// Returns when something changed; bursts come as one. Safe to cancel.
    ///
    /// # Errors
    ///
    /// When the runtime is shutting down.
    pub async fn changed(&mut self) -> io::Result<()> {
        let mut guard = self.socket.readable_mut().await?;
        let mut buffer = Vec::with_capacity(1 << 16);
        loop {
            buffer.clear();
            match guard.get_inner().recv(&mut buffer, 0) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // Too many at once: something changed all the same.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) => return Err(error),
            }
        }
        guard.clear_ready();
        Ok(())
    }
}
