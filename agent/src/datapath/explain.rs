//! Questions to the programs that are pinned for nothing else: what would become of this frame, at this pod's gate?
//!
//! Flows in: a frame and where it is seen. Flows out: the answer of the very code that judges packets, on the very maps. It
//! opens pins and writes nothing, so it works beside an agent and without one; a question about a generation that is not active
//! needs one that is prepared, see [`Datapath::rehearse`].

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use agent_common::{
    Control, Direction, Endpoint, EndpointKey, Identity, IdentityKey, IdentityValue,
    Path as Border, Reason, Verdict, address_bytes, address_ip,
};
use aya::maps::lpm_trie::Key as Prefix;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, MapError};

use super::{
    Datapath, adopt, error::Error, identities, maps, sys, tables::KernelTables, wire::Raw,
};

/// `TC_ACT_REDIRECT` of the kernel's `linux/pkt_cls.h`.
const REDIRECT: u32 = 7;

/// The pinned programs and maps that answer.
pub struct Explainer {
    links: PathBuf,
    egress: OwnedFd,
    ingress: OwnedFd,
    control: Array<MapData, Raw<Control>>,
    endpoints: maps::Hash<EndpointKey, Endpoint>,
    identities: identities::Trie,
}

impl std::fmt::Debug for Explainer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Explainer").finish_non_exhaustive()
    }
}

/// A frame at a gate.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Which of the pod's gates: [`Direction::Egress`] for what it sends.
    pub way: Direction,
    /// The pod's host-side interface, in the caller's network namespace.
    pub ifindex: u32,
    /// The packet's mark; the router's packets have one.
    pub mark: u32,
    /// The generation to judge by; 0 for the active one.
    pub generation: u32,
    /// The frame with its Ethernet header, at least 14 bytes.
    pub frame: &'a [u8],
}

/// What the program said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What would become of the packet.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
    /// Who opened the connection, or which way the packet goes.
    pub direction: Direction,
    /// Which border it crosses.
    pub path: Border,
    /// The rule that decided; 0 if none did.
    pub rule: u32,
    /// The other side.
    pub peer: Identity,
    /// The generation that judged.
    pub generation: u32,
    /// The pod.
    pub local: Identity,
    /// Whether the same program would judge at the receiver's gate too, and hand the packet to it past the stack.
    pub direct: bool,
}

/// A pod as the kernel knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownPod {
    /// Its host-side interface.
    pub ifindex: u32,
    /// The component that it runs.
    pub identity: Identity,
    /// Number of the cell.
    pub cell: u32,
    /// Its hardware address.
    pub mac: [u8; 6],
}

impl Explainer {
    /// Opens what an agent pinned.
    ///
    /// # Errors
    ///
    /// When nothing is pinned there, or by an agent of another layout, or the caller may not open it.
    pub fn open(bpffs: &Path) -> Result<Self, Error> {
        let folder = adopt::own_maps(bpffs);
        let program = |name: &str| {
            let path = bpffs.join(adopt::PROGRAMS).join(name);
            sys::pinned(&path).map_err(Error::file("open pinned program", path))
        };
        let map = |name: &'static str| {
            MapData::from_pin(folder.join(name)).map_err(Error::map("open pinned", name))
        };
        Ok(Self {
            links: bpffs.join(adopt::LINKS),
            egress: program("explain_egress")?,
            ingress: program("explain_ingress")?,
            control: Array::try_from(Map::Array(map("control")?))
                .map_err(Error::map("use", "control"))?,
            endpoints: HashMap::try_from(Map::HashMap(map("endpoints")?))
                .map_err(Error::map("use", "endpoints"))?,
            identities: LpmTrie::try_from(Map::LpmTrie(map("identities")?))
                .map_err(Error::map("use", "identities"))?,
        })
    }

    /// The generation that packets are judged by; 0 if none.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn active(&self) -> Result<u32, Error> {
        let Raw(control) = self
            .control
            .get(&0, 0)
            .map_err(Error::map("read", "control"))?;
        Ok(control.generation())
    }

    /// Asks what would become of a frame.
    ///
    /// # Errors
    ///
    /// When the interface is not in this network namespace, the frame is shorter than an Ethernet header or longer than a page,
    /// or the kernel refuses.
    pub fn judge(&self, asked: &Asked<'_>) -> Result<Answer, Error> {
        let program = match asked.way {
            Direction::Egress => &self.egress,
            Direction::Ingress => &self.ingress,
        };
        let mut context = sys::SkBuff::default();
        context.mark = asked.mark;
        context.ifindex = asked.ifindex;
        context.cb[0] = asked.generation;
        let run = sys::test_run(program.as_fd(), asked.frame, context).map_err(Error::kernel(
            format!(
                "ask about a frame of {} bytes at interface {} (is it in this network namespace?)",
                asked.frame.len(),
                asked.ifindex
            ),
        ))?;
        let [said, rule, peer, generation, local] = run.context.cb;
        let [verdict, reason, direction, path] = said.to_le_bytes();
        let (Some(verdict), Some(reason), Some(direction), Some(path)) = (
            Verdict::from_raw(verdict),
            Reason::from_raw(reason),
            Direction::from_raw(direction),
            Border::from_raw(path),
        ) else {
            return Err(Error::kernel("understand the pinned program")(
                io::Error::other(format!("it answered {said:#010x}")),
            ));
        };
        Ok(Answer {
            verdict,
            reason,
            direction,
            path,
            rule,
            peer: Identity::from_raw(peer),
            generation,
            local: Identity::from_raw(local),
            direct: run.code == REDIRECT,
        })
    }

    /// The pods of a generation.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn pods(&self, generation: u32) -> Result<Vec<KnownPod>, Error> {
        let mut pods = Vec::new();
        for entry in self.endpoints.iter() {
            let (Raw(key), Raw(endpoint)) = entry.map_err(Error::map("read", "endpoints"))?;
            if key.generation() == generation {
                pods.push(known(key.ifindex(), &endpoint));
            }
        }
        pods.sort_by_key(|pod| pod.ifindex);
        Ok(pods)
    }

    /// The pod behind an interface in a generation.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn pod(&self, generation: u32, ifindex: u32) -> Result<Option<KnownPod>, Error> {
        match self
            .endpoints
            .get(&Raw(EndpointKey::new(generation, ifindex)), 0)
        {
            Ok(Raw(endpoint)) => Ok(Some(known(ifindex, &endpoint))),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(Error::map("read", "endpoints")(error)),
        }
    }

    /// Whether an interface has gates, whoever is behind it.
    #[must_use]
    pub fn has_gates(&self, ifindex: u32) -> bool {
        ["cell_egress", "clsact"]
            .iter()
            .any(|kind| self.links.join(format!("{kind}_{ifindex}")).exists())
    }

    /// Who an address is in a generation.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn owner(&self, generation: u32, address: IpAddr) -> Result<Option<IdentityValue>, Error> {
        match self
            .identities
            .get(&Prefix::new(128, address_bytes(address)), 0)
        {
            Ok(Raw(value)) => Ok(value.at(generation).copied()),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(Error::map("read", "identities")(error)),
        }
    }

    /// Every single address that a generation knows, and who it is. Walks through the map: for people, not for packets.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn addresses(&self, generation: u32) -> Result<Vec<(IpAddr, IdentityValue)>, Error> {
        let mut hosts = Vec::new();
        for entry in self.identities.iter() {
            let (key, Raw(value)) = entry.map_err(Error::map("read", "identities"))?;
            let key = IdentityKey::new(key.prefix_len(), key.data());
            if let Some(owner) = value.at(generation).filter(|_| key.bits() == 128) {
                hosts.push((address_ip(key.address()), *owner));
            }
        }
        hosts.sort_unstable_by_key(|(address, _)| *address);
        Ok(hosts)
    }
}

fn known(ifindex: u32, endpoint: &Endpoint) -> KnownPod {
    KnownPod {
        ifindex,
        identity: endpoint.identity(),
        cell: endpoint.cell(),
        mac: endpoint.mac(),
    }
}

impl Datapath {
    /// Writes a generation beside the active one, lets `ask` look at it, and takes it back. No packet is judged by it: it is
    /// never active, and pods that only it knows get no gates.
    ///
    /// # Errors
    ///
    /// As [`Datapath::prepare`]. Whatever was written is removed again.
    pub fn rehearse<T>(&self, tables: &KernelTables, ask: impl FnOnce() -> T) -> Result<T, Error> {
        // Held to the end, since a second generation cannot be prepared beside this one.
        let mut inner = self.lock();
        inner.check(tables)?;
        let asked = inner.write(tables).map(|_| ask());
        let undone = inner.retire(tables.generation);
        let asked = asked?;
        undone?;
        Ok(asked)
    }
}
