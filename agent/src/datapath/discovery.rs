//! Which pods are on this node: every network namespace that shares a veth pair with this one.
//!
//! Flows in: the links of this namespace, and what the kernel says of the other end of each pair, wherever it is: it
//! answers for another namespace by the number that this one has for it, so neither a process nor a name has to hold it.
//! Flows out: for each pair the host-side interface, and the addresses of the pod's end. Who the pod is, is not decided
//! here. What a message of the kernel names is looked at alone; everything is looked at when messages were lost.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use netlink_packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{InfoKind, LinkAttribute, LinkExtentMask, LinkInfo, LinkMessage},
};

use super::{error::Error, netlink::Netlink, quarantine::Changed};

/// The pods of this node, by host-side interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Discovery {
    /// Sorted by `ifindex`.
    pub pods: Vec<Pod>,
    /// Names of host-side interfaces of whose other end the kernel says nothing: this agent may not know its namespace.
    /// They have no gates, so the agent says their names.
    pub unidentified: Vec<String>,
    /// Addresses of this node's own interfaces, loopback networks left out, sorted.
    pub node_addresses: Vec<IpAddr>,
}

/// One end of a veth pair in another network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Host-side interface.
    pub ifindex: u32,
    /// Tells this interface from earlier and later ones with the same index; 0 if nobody follows them.
    pub number: u64,
    /// Its name.
    pub host_ifname: String,
    /// Hardware address of the pod's end.
    pub mac: [u8; 6],
    /// Addresses of the pod's end, link-local ones left out, sorted.
    pub addresses: Vec<IpAddr>,
}

/// Looks at the node now. Blocking: run it on a thread that may block.
///
/// # Errors
///
/// When the kernel refuses to tell. An interface or namespace that goes away meanwhile is no error.
pub fn scan() -> Result<Discovery, Error> {
    let everything = Changed {
        all: true,
        ..Changed::default()
    };
    Scanner::open()?.update(&everything, &BTreeMap::new())
}

/// The host side of a pair whose other end is in another namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pair {
    name: String,
    peer: u32,
    namespace: i32,
}

impl Pair {
    /// None for an interface whose other end is here, or not there yet.
    pub(super) fn of(link: &LinkMessage) -> Option<Self> {
        let (mut name, mut peer, mut namespace) = (None, None, None);
        for attribute in &link.attributes {
            match attribute {
                LinkAttribute::IfName(text) => name = Some(text.clone()),
                LinkAttribute::Link(index) => peer = Some(*index),
                LinkAttribute::LinkNetNsId(number) => namespace = Some(*number),
                _ => {}
            }
        }
        Some(Self {
            name: name?,
            peer: peer.filter(|peer| *peer != 0)?,
            namespace: namespace?,
        })
    }

    /// Asks for an interface. None also if it is gone or something else.
    pub(super) fn read(netlink: &mut Netlink, ifindex: u32) -> io::Result<Option<Self>> {
        let link = match one_link(netlink, ifindex, None) {
            Err(error) if is_gone(&error) => return Ok(None),
            link => link?,
        };
        Ok(link.filter(is_pair).as_ref().and_then(Self::of))
    }
}

/// Whether a message names the other end.
pub(super) fn has_peer(link: &LinkMessage) -> bool {
    link.attributes
        .iter()
        .any(|attribute| matches!(attribute, LinkAttribute::Link(index) if *index != 0))
}

/// Whether an interface is of a kind that comes in pairs.
pub(super) fn is_pair(link: &LinkMessage) -> bool {
    link.attributes.iter().any(|attribute| {
        matches!(attribute, LinkAttribute::LinkInfo(infos) if infos.iter().any(|info| {
            matches!(info, LinkInfo::Kind(InfoKind::Veth | InfoKind::Netkit))
        }))
    })
}

/// The pod's end of a pair.
#[derive(Clone, Debug)]
struct End {
    mac: [u8; 6],
    addresses: Vec<IpAddr>,
}

/// What was seen at the last look.
pub(super) struct Scanner {
    netlink: Netlink,
    pairs: BTreeMap<u32, Pair>,
    /// Of pairs; one without is unidentified.
    ends: BTreeMap<u32, End>,
    own: BTreeSet<(u32, IpAddr)>,
}

impl Scanner {
    /// Sees nothing yet. It looks at the namespace of the calling thread, from whichever thread.
    pub(super) fn open() -> Result<Self, Error> {
        Ok(Self {
            netlink: Netlink::open().map_err(Error::kernel("open a netlink socket"))?,
            pairs: BTreeMap::new(),
            ends: BTreeMap::new(),
            own: BTreeSet::new(),
        })
    }

    /// Looks at what changed. `numbers` tells interfaces with one index apart; they are older than the look, so that an
    /// interface which takes the place of another meanwhile does not pass for that one.
    pub(super) fn update(
        &mut self,
        changed: &Changed,
        numbers: &BTreeMap<u32, u64>,
    ) -> Result<Discovery, Error> {
        let failed = || Error::kernel("list the interfaces of this node");
        if changed.all {
            self.everything().map_err(failed())?;
        } else {
            self.some(changed).map_err(failed())?;
        }
        Ok(self.discovery(numbers))
    }

    fn everything(&mut self) -> io::Result<()> {
        self.pairs = links(&mut self.netlink)?
            .iter()
            .filter(|link| is_pair(link))
            .filter_map(|link| Some((link.header.index, Pair::of(link)?)))
            .collect();
        self.ends.clear();
        for (ifindex, pair) in &self.pairs {
            if let Some(end) = end(&mut self.netlink, pair)? {
                self.ends.insert(*ifindex, end);
            }
        }
        self.own = addresses(&mut self.netlink, None)?.into_iter().collect();
        Ok(())
    }

    fn some(&mut self, changed: &Changed) -> io::Result<()> {
        let mut again: BTreeSet<u32> = self
            .pairs
            .iter()
            .filter(|(_, pair)| changed.namespaces.contains(&pair.namespace))
            .map(|(ifindex, _)| *ifindex)
            .collect();
        for ifindex in &changed.interfaces {
            match Pair::read(&mut self.netlink, *ifindex)? {
                Some(pair) => {
                    self.pairs.insert(*ifindex, pair);
                    again.insert(*ifindex);
                }
                None => {
                    self.pairs.remove(ifindex);
                    again.remove(ifindex);
                    self.ends.remove(ifindex);
                }
            }
        }
        for ifindex in again {
            let Some(pair) = self.pairs.get(&ifindex) else {
                continue;
            };
            match end(&mut self.netlink, pair)? {
                Some(end) => drop(self.ends.insert(ifindex, end)),
                None => drop(self.ends.remove(&ifindex)),
            }
        }
        for (address, there) in &changed.addresses {
            match there {
                true => self.own.insert(*address),
                false => self.own.remove(address),
            };
        }
        Ok(())
    }

    fn discovery(&self, numbers: &BTreeMap<u32, u64>) -> Discovery {
        let mut found = Discovery::default();
        for (ifindex, pair) in &self.pairs {
            match self.ends.get(ifindex) {
                Some(end) => found.pods.push(Pod {
                    ifindex: *ifindex,
                    number: numbers.get(ifindex).copied().unwrap_or(0),
                    host_ifname: pair.name.clone(),
                    mac: end.mac,
                    addresses: end.addresses.clone(),
                }),
                None => found.unidentified.push(pair.name.clone()),
            }
        }
        // Link-local ones count: a pod's gateway often is one.
        let own: BTreeSet<IpAddr> = self
            .own
            .iter()
            .map(|(_, address)| *address)
            .filter(|address| !address.is_loopback())
            .collect();
        found.node_addresses = own.into_iter().collect();
        found
    }
}

/// What the kernel says of a pod's end; none if it says nothing. One that is gone, alone or with its namespace, takes the
/// pair with it, which the kernel tells.
fn end(netlink: &mut Netlink, pair: &Pair) -> io::Result<Option<End>> {
    let quiet = |error: &io::Error| {
        is_gone(error)
            || matches!(
                error.raw_os_error(),
                // No namespace has this number any more; it is beyond this agent's rights.
                Some(libc::EINVAL | libc::EACCES | libc::EPERM)
            )
    };
    let link = match one_link(netlink, pair.peer, Some(pair.namespace)) {
        Err(error) if quiet(&error) => return Ok(None),
        link => link?,
    };
    let Some(link) = link else {
        return Ok(None);
    };
    let mac = link
        .attributes
        .into_iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Address(bytes) => bytes.try_into().ok(),
            _ => None,
        });
    let all = match addresses(netlink, Some((pair.namespace, pair.peer))) {
        Err(error) if quiet(&error) => return Ok(None),
        all => all?,
    };
    let mut addresses: Vec<_> = all
        .into_iter()
        // Kernels that do not narrow the answer give it for all interfaces.
        .filter(|(ifindex, _)| *ifindex == pair.peer)
        .map(|(_, address)| address)
        .filter(|address| match address {
            IpAddr::V4(v4) => !v4.is_link_local(),
            IpAddr::V6(v6) => !v6.is_unicast_link_local(),
        })
        .collect();
    addresses.sort_unstable();
    Ok(Some(End {
        // An interface without one carries no Ethernet, of which its gates then find nothing that passes.
        mac: mac.unwrap_or_default(),
        addresses,
    }))
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENXIO))
}

/// Every interface of this namespace.
pub(super) fn links(netlink: &mut Netlink) -> io::Result<Vec<LinkMessage>> {
    let mut request = LinkMessage::default();
    request.attributes = vec![LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])];
    let answers = netlink.dump(RouteNetlinkMessage::GetLink(request))?;
    Ok(answers.into_iter().filter_map(link_of).collect())
}

/// One interface, here or in the namespace with this number.
fn one_link(
    netlink: &mut Netlink,
    ifindex: u32,
    namespace: Option<i32>,
) -> io::Result<Option<LinkMessage>> {
    let mut request = LinkMessage::default();
    request.header.index = ifindex;
    request.attributes = vec![LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])];
    request
        .attributes
        .extend(namespace.map(LinkAttribute::IfNetnsId));
    let answers = netlink.request(RouteNetlinkMessage::GetLink(request), 0)?;
    Ok(answers.into_iter().find_map(link_of))
}

fn link_of(message: RouteNetlinkMessage) -> Option<LinkMessage> {
    match message {
        RouteNetlinkMessage::NewLink(link) => Some(link),
        _ => None,
    }
}

/// Interface and address of every address here, or of one interface in the namespace with this number.
fn addresses(netlink: &mut Netlink, of: Option<(i32, u32)>) -> io::Result<Vec<(u32, IpAddr)>> {
    let mut request = AddressMessage::default();
    if let Some((namespace, ifindex)) = of {
        request.header.index = ifindex;
        request.attributes = vec![AddressAttribute::TargetNetNsId(namespace)];
    }
    let answers = netlink.dump(RouteNetlinkMessage::GetAddress(request))?;
    Ok(answers
        .iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewAddress(message) => address(message),
            _ => None,
        })
        .collect())
}

/// The interface and the address of a message.
pub(super) fn address(message: &AddressMessage) -> Option<(u32, IpAddr)> {
    let (mut own, mut peer) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            // On a point-to-point interface `Address` is the other side's, `Local` is ours (rtnetlink(7)).
            AddressAttribute::Local(ip) => own = Some(*ip),
            AddressAttribute::Address(ip) => peer = Some(*ip),
            _ => {}
        }
    }
    Some((message.header.index, own.or(peer)?))
}
