//! The one writer: switches kernel and router to a new generation together, or not at all.
//!
//! Flows in: a snapshot and what was discovered. Flows out: an active generation. The order is: compile → write the generation's
//! kernel tables → open listeners → publish the route table → attach to new pods → flip the kernel → close what is no longer wanted →
//! retire the generation before. Whatever fails before the flip undoes what came before it, except the gates of new pods: no
//! generation knows these pods, so they are denied. The old generation never stopped serving.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use agent_common::SocketKey;

use arc_swap::ArcSwap;
use snapshot::model::ComponentId;
use snapshot::{Mistake, Rejections, Snapshot};

use crate::compile::{self, kernel::Compiled};
use crate::datapath::{
    self, Care, Datapath, DiscoveredPod, Discovery, KernelTables, RuleSource, ServiceAddress,
};
use crate::explain::{Explanation, Question, Refusal, rehearsal::rehearse};
use crate::proxy::{ListenError, Proxy, SocketKind};
use crate::route::RouteTable;

mod claims;

use claims::Claims;

/// Why a generation did not become active. The one before it goes on serving.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The documents are valid one by one, and cannot be made into tables.
    #[error("{0}")]
    Refused(Rejections),
    /// The kernel side failed.
    #[error("kernel tables of generation {generation} could not be activated")]
    Kernel {
        /// The generation that was not activated.
        generation: u32,
        /// Why.
        #[source]
        source: datapath::Error,
    },
    /// A listener could not be opened.
    #[error("listeners of generation {generation} could not be opened")]
    Listen {
        /// The generation that was not activated.
        generation: u32,
        /// Why.
        #[source]
        source: ListenError,
    },
}

/// What is active.
#[derive(Debug)]
pub struct Active {
    /// Its number.
    pub generation: u32,
    /// What it was compiled from.
    pub snapshot: Arc<Snapshot>,
    /// What was on the node.
    pub discovery: Discovery,
    /// What the kernel was given; none without a datapath.
    pub kernel: Option<KernelTables>,
    components: HashMap<IpAddr, ComponentId>,
}

impl Active {
    pub(crate) fn new(
        generation: u32,
        snapshot: &Arc<Snapshot>,
        discovery: &Discovery,
        kernel: Option<KernelTables>,
    ) -> Self {
        let mut components = HashMap::new();
        for component in snapshot
            .cells
            .values()
            .flat_map(|cell| cell.components.values())
        {
            for address in component.workloads.addresses() {
                components.insert(*address, component.id.clone());
            }
        }
        Self {
            generation,
            snapshot: Arc::clone(snapshot),
            discovery: discovery.clone(),
            kernel,
            components,
        }
    }

    /// The component that an address belongs to.
    pub fn component_at(&self, address: &IpAddr) -> Option<&ComponentId> {
        self.components.get(address)
    }

    /// The component that a pod runs.
    pub fn component_of(&self, pod: &DiscoveredPod) -> Option<&ComponentId> {
        pod.addresses
            .iter()
            .find_map(|address| self.component_at(address))
    }

    /// What a rule was made from, by its number in the kernel's counts and events.
    pub fn rule(&self, number: u32) -> Option<&RuleSource> {
        self.kernel.as_ref()?.rules.get(&number)
    }

    /// The cell behind a number in the kernel's counters and events; empty for nobody's.
    pub fn cell_name(&self, number: u32) -> &str {
        self.kernel
            .as_ref()
            .and_then(|kernel| kernel.cells.get(&number))
            .map_or("", String::as_str)
    }
}

/// The writer.
pub struct Activator {
    generation: u32,
    routes: Arc<ArcSwap<RouteTable>>,
    proxy: Arc<Proxy>,
    datapath: Option<Datapath>,
    /// What the active generation's tables are made of. The next ones have in common with them what stays.
    compiled: Compiled,
    /// Gateways' addresses for which the kernel holds a socket of the router.
    steered: BTreeSet<SocketAddr>,
}

impl Activator {
    /// A writer that goes on counting where the kernel's tables of an earlier agent stopped.
    pub fn new(
        routes: Arc<ArcSwap<RouteTable>>,
        proxy: Arc<Proxy>,
        datapath: Option<Datapath>,
    ) -> Self {
        let generation = datapath.as_ref().map_or(0, Datapath::active_generation);
        Self {
            generation,
            routes,
            proxy,
            datapath,
            compiled: Compiled::default(),
            steered: BTreeSet::new(),
        }
    }

    /// Compares what the kernel holds with what it was given, its large tables only if asked to, and puts it right. Nothing to compare without a datapath.
    pub fn look_after(&self, large: bool) -> Care {
        match &self.datapath {
            Some(datapath) => {
                let mut sockets = self.sockets(&self.steered);
                sockets.extend(datagram_keys(&self.proxy.datagram_sockets()));
                datapath.look_after(&sockets, large)
            }
            None => Care::default(),
        }
    }

    /// The router's sockets as the kernel should have them: for these gateways' addresses, and for steered connections.
    fn sockets(&self, listeners: &BTreeSet<SocketAddr>) -> Vec<(SocketKey, RawFd)> {
        let sockets: BTreeMap<SocketKind, RawFd> = self.proxy.sockets().into_iter().collect();
        let gateways = listeners.iter().map(|address| {
            let kind = if address.is_ipv4() {
                SocketKind::GatewayV4
            } else {
                SocketKind::GatewayV6
            };
            (socket_key(*address, TCP), kind)
        });
        let transparent = [
            (SocketKey::TRANSPARENT_V4, SocketKind::SteeredV4),
            (SocketKey::TRANSPARENT_V6, SocketKind::SteeredV6),
        ];
        gateways
            .chain(transparent)
            .filter_map(|(key, kind)| Some((key, *sockets.get(&kind)?)))
            .collect()
    }

    /// Asks what a snapshot would say of a connection, without making it active.
    ///
    /// # Errors
    ///
    /// Its mistakes, or why it cannot be tried.
    pub fn rehearse(
        &self,
        snapshot: &Arc<Snapshot>,
        discovery: &Discovery,
        question: &Question,
    ) -> Result<Explanation, Refusal> {
        let Some(datapath) = &self.datapath else {
            return Err(Refusal::Failed(
                "the agent runs with --datapath none: there is nothing to ask".to_owned(),
            ));
        };
        let generation = self.generation + 1;
        rehearse(
            datapath,
            &self.compiled,
            generation,
            snapshot,
            discovery,
            question,
        )
    }

    /// Lets the interfaces go that are nobody's, whatever becomes of the generation for them: `snapshots` are the active
    /// documents and those that are wanted. In a cluster `node` is the name of this one: while a pod is on its way to it that may
    /// be somebody's, an interface that nobody is known to own may be that pod's.
    pub fn release(
        &self,
        discovery: &Discovery,
        patience: Duration,
        snapshots: &[&Snapshot],
        node: Option<&str>,
    ) {
        let Some(datapath) = &self.datapath else {
            return;
        };
        if datapath.held().is_empty() {
            return;
        }
        let claims = Claims::of(snapshots);
        let awaited = node.is_some_and(|node| claims.are_awaited(node, discovery));
        let owned = |address: &IpAddr| claims.have(address);
        datapath.release(discovery, patience, awaited, owned);
    }

    /// Makes a snapshot and a discovery the active generation.
    pub fn activate(
        &mut self,
        snapshot: &Arc<Snapshot>,
        discovery: &Discovery,
    ) -> Result<Active, ActivateError> {
        let generation = self.generation + 1;
        let refused = |mistakes: Vec<Mistake>| ActivateError::Refused(Rejections { mistakes });
        let node = compile::node_addresses(&snapshot.platform, discovery);
        let routes = {
            let before = self.routes.load();
            let routes = compile::route::next(snapshot, &node, generation.into(), &before)
                .map_err(refused)?;
            routes.adopt(&before);
            routes
        };
        let listeners = routes.addresses();
        let kernel = match self.datapath.clone() {
            Some(datapath) => Some(self.steer(
                &datapath, snapshot, discovery, routes, &listeners, generation,
            )?),
            None => {
                let opened = self
                    .proxy
                    .open(&listeners)
                    .map_err(|source| ActivateError::Listen { generation, source })?;
                let datagrams = self
                    .proxy
                    .open_datagrams(&routes.datagram_addresses())
                    .map_err(|source| ActivateError::Listen { generation, source })?;
                self.routes.store(Arc::new(routes));
                opened.commit();
                datagrams.commit();
                None
            }
        };
        self.proxy.published();
        self.generation = generation;
        Ok(Active::new(generation, snapshot, discovery, kernel))
    }

    /// Kernel and router together. The router's sockets for new gateway addresses are in the kernel's hands before the flip names
    /// them as listeners; those of old ones leave after it.
    fn steer(
        &mut self,
        datapath: &Datapath,
        snapshot: &Arc<Snapshot>,
        discovery: &Discovery,
        routes: RouteTable,
        listeners: &BTreeSet<SocketAddr>,
        generation: u32,
    ) -> Result<KernelTables, ActivateError> {
        let failed = |source| ActivateError::Kernel { generation, source };
        let compiled = self.compiled.next(snapshot, discovery, generation);
        let before: Vec<u32> = (datapath.active_generation() > 0)
            .then(|| datapath.active_generation())
            .into_iter()
            .collect();
        let prepared = datapath.prepare(compiled.tables()).map_err(failed)?;
        datapath.withdraw(generation, discovery).map_err(failed)?;
        let mut sockets = self.sockets(listeners);
        for address in listeners {
            if !sockets
                .iter()
                .any(|(key, _)| *key == socket_key(*address, TCP))
            {
                tracing::warn!(%address, "the node has no such address family; nobody answers there");
            }
        }
        let proxy = Arc::clone(&self.proxy);
        let datagrams = proxy
            .open_datagrams(&routes.datagram_addresses())
            .map_err(|source| ActivateError::Listen { generation, source })?;
        sockets.extend(datagram_keys(&datagrams.sockets()));
        for (key, socket) in sockets {
            datapath
                .set_socket(key, &Borrowed(socket))
                .map_err(failed)?;
        }
        let published = self.routes.swap(Arc::new(routes));
        match prepared.flip() {
            Ok(flipped) => {
                for ifindex in flipped.interfaces_gone {
                    tracing::info!(ifindex, "interface went away while its pod was taken over");
                }
            }
            Err(source) => {
                self.routes.store(published);
                return Err(failed(source));
            }
        }
        self.compiled = compiled;
        // From here on the generation is active. What is left over costs memory and decides nothing.
        for address in self.steered.difference(listeners) {
            report(
                datapath.clear_socket(socket_key(*address, TCP)),
                "failed to take a socket out of the kernel's hands",
            );
        }
        self.steered.clone_from(listeners);
        for address in datagrams.unwanted() {
            report(
                datapath.clear_socket(socket_key(*address, UDP)),
                "failed to take a socket out of the kernel's hands",
            );
        }
        datagrams.commit();
        for generation in before {
            report(
                datapath.retire(generation),
                "failed to retire the generation before",
            );
        }
        Ok(self.compiled.tables().clone())
    }
}

fn report(result: Result<(), datapath::Error>, what: &str) {
    if let Err(error) = result {
        tracing::error!(error = &error as &dyn std::error::Error, "{what}");
    }
}

/// IP protocol numbers.
const TCP: u8 = 6;
const UDP: u8 = 17;

fn socket_key(address: SocketAddr, protocol: u8) -> SocketKey {
    ServiceAddress {
        address: address.ip(),
        port: address.port(),
        protocol,
    }
    .socket_key()
}

fn datagram_keys(sockets: &[(SocketAddr, RawFd)]) -> Vec<(SocketKey, RawFd)> {
    let keys = sockets.iter();
    keys.map(|(address, socket)| (socket_key(*address, UDP), *socket))
        .collect()
}

/// A descriptor that the proxy owns and keeps open as long as it runs.
struct Borrowed(RawFd);

impl AsRawFd for Borrowed {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}
