//! Gateways of our classes: their addresses, and their listeners with those that sets add.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::context::{Context, Fault};
use super::listener::{Entry, Owner, conflicts};
use super::pool::Pool;
use super::{Taking, balancer, gateway_tls};
use crate::document::Table;
use crate::document::address_source::{AddressSource, AddressSources, LoadBalancerDraft};
use crate::document::addresses::of_node;
use crate::document::gateway::{AddressDraft, GatewayDraft};
use crate::document::gateway_class::ClassDraft;
use crate::document::listener_set::ListenerSetDraft;
use crate::document::policy::SetTarget;
use crate::document::service::ServiceDraft;
use crate::model::{
    Cidr, Gateway, NodeCheck, NodePorts, ObjectName, Parent, SectionName, Transport, Unserved,
};
use crate::report::Source;
use crate::status::{GatewayAddress, ParentKind, Reason};

/// Gateway API, `GatewayStatus`: at most 16 addresses.
const MAX_ADDRESSES: usize = 16;
/// Ports of a node's own that no gateway takes from it: SSH, etcd, the API server, the kubelet and kube-proxy.
const NODES_OWN: [u16; 8] = [22, 2379, 2380, 6443, 10248, 10249, 10250, 10256];

/// A gateway with all its listeners, whatever their state is.
pub(super) struct Built {
    pub(super) name: ObjectName,
    pub(super) declared: Source,
    pub(super) draft: Arc<GatewayDraft>,
    pub(super) addresses: Vec<IpAddr>,
    /// Where it listens on nodes, and the addresses of these if they are its own.
    node_ports: NodePorts,
    nodes: Vec<IpAddr>,
    /// Where its load balancer asks nodes.
    health_check: Option<NodeCheck>,
    /// Names that a load balancer has for it.
    hostnames: Vec<String>,
    /// What its `Service` is like, if it needs one.
    pub(super) balancer: Option<Arc<LoadBalancerDraft>>,
    /// Why it is not accepted.
    pub(super) accepted: Option<Fault>,
    /// Why it has no addresses.
    pub(super) programmed: Option<Fault>,
    /// Why its own references lead nowhere.
    pub(super) resolved: Option<Fault>,
    /// Its own listeners, then those of sets, in the order of precedence.
    pub(super) entries: Vec<Entry>,
    /// What sets would add that have mistakes.
    refused: Vec<Unserved>,
    pub(super) identity: Option<ObjectName>,
}

/// What gateways that name no address get theirs from.
pub(super) struct Giving<'a> {
    /// Networks that addresses are taken from.
    pub(super) pools: &'a [Cidr],
    pub(super) sources: &'a AddressSources,
    /// Addresses of all nodes.
    pub(super) nodes: Vec<IpAddr>,
    pub(super) services: &'a Table<ServiceDraft>,
}

/// What could be read of gateways that have mistakes.
pub(super) type RefusedGateways = BTreeMap<ObjectName, (Arc<GatewayDraft>, Fault)>;

/// A set of listeners.
pub(super) struct Set {
    pub(super) draft: Arc<ListenerSetDraft>,
    /// Why it adds nothing to its gateway.
    pub(super) refused: Option<Fault>,
}

/// What a reference to a gateway or a set leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Nothing.
    Absent,
    /// A document that has mistakes.
    Unread,
    /// Something of another controller.
    Foreign,
    /// Listeners.
    Ours,
}

/// All gateways and sets.
#[derive(Default)]
pub(super) struct Gateways {
    pub(super) built: BTreeMap<ObjectName, Built>,
    pub(super) sets: BTreeMap<ObjectName, Set>,
    unread: Vec<(ParentKind, ObjectName)>,
    foreign: Vec<(ParentKind, ObjectName)>,
}

impl Gateways {
    /// Links gateways and sets. `refused` is what could be read of those that have mistakes.
    pub(super) fn new(
        gateways: &Table<GatewayDraft>,
        sets: &Table<ListenerSetDraft>,
        classes: &Table<ClassDraft>,
        (refused, refused_sets): (&RefusedGateways, &[(ObjectName, Arc<ListenerSetDraft>)]),
        giving: &Giving<'_>,
        to: &Context<'_>,
    ) -> Self {
        let mut all = Self::default();
        for (name, (declared, draft)) in gateways {
            let key = (ParentKind::Gateway, name.clone());
            let (draft, fault) = match (draft, refused.get(name)) {
                (Some(draft), _) => (draft, None),
                // What attaches to it and what its status says is as if it had nothing but its mistakes.
                (None, Some((draft, fault))) => (draft, Some(fault.clone())),
                (None, None) => {
                    all.unread.push(key);
                    continue;
                }
            };
            if !is_ours(draft, classes, to.taking) {
                all.foreign.push(key);
                continue;
            }
            let mut built = Built::new(name, declared, draft, to);
            built.accepted = fault.or(built.accepted);
            all.built.insert(name.clone(), built);
        }
        all.assign(giving, to);
        all.add_sets(sets, to);
        all.close_sets(refused_sets, to);
        for built in all.built.values_mut() {
            conflicts(&mut built.entries, to);
            gateway_tls::apply(built, to);
        }
        all.sockets(&giving.nodes, to);
        all
    }

    /// What a reference leads to.
    pub(super) fn place(&self, kind: ParentKind, name: &ObjectName) -> Place {
        let ours = match kind {
            ParentKind::Gateway => self.built.contains_key(name),
            ParentKind::ListenerSet => self.sets.contains_key(name),
        };
        let is =
            |list: &[(ParentKind, ObjectName)]| list.iter().any(|one| *one == (kind, name.clone()));
        if ours {
            Place::Ours
        } else if is(&self.unread) {
            Place::Unread
        } else if is(&self.foreign) {
            Place::Foreign
        } else {
            Place::Absent
        }
    }

    /// The gateway behind a reference, and its listeners that the reference is about.
    pub(super) fn listeners(
        &self,
        kind: ParentKind,
        name: &ObjectName,
    ) -> Option<(&Built, Vec<&Entry>)> {
        let (built, set) = match kind {
            ParentKind::Gateway => (self.built.get(name)?, None),
            ParentKind::ListenerSet => {
                let set = self.sets.get(name)?;
                (self.built.get(&set.draft.gateway)?, Some(name))
            }
        };
        let entries = built.entries.iter();
        Some((
            built,
            entries.filter(|one| one.set.as_ref() == set).collect(),
        ))
    }

    /// Listeners of sets, by their gateways and their names in these.
    pub(super) fn of_sets<'a>(
        &'a self,
        targets: &'a [SetTarget],
    ) -> impl Iterator<Item = (&'a ObjectName, &'a SectionName)> {
        let all = self.built.values();
        let all = all.flat_map(|built| built.entries.iter().map(move |entry| (built, entry)));
        let is = |entry: &Entry, set: &ObjectName, target: &SetTarget| match target {
            SetTarget::Named(name, section) => {
                set == name
                    && section
                        .as_ref()
                        .is_none_or(|section| entry.name == *section)
            }
            SetTarget::All(namespace) => set.namespace() == &**namespace,
        };
        all.filter_map(move |(built, entry)| {
            let set = entry.set.as_ref()?;
            let found = targets.iter().any(|target| is(entry, set, target));
            found.then_some((&built.name, &entry.id))
        })
    }

    /// A listener by its name in its gateway.
    pub(super) fn listener(
        &self,
        gateway: &ObjectName,
        id: &SectionName,
    ) -> Option<(&Built, &Entry)> {
        let built = self.built.get(gateway)?;
        let entry = built.entries.iter().find(|entry| entry.id == *id)?;
        Some((built, entry))
    }

    /// Gateways as the router and the kernel get them: those with addresses, and of their listeners those that work.
    pub(super) fn served(&self) -> BTreeMap<ObjectName, Gateway> {
        let working = self.built.iter().filter(|(_, built)| built.works());
        working
            .map(|(name, built)| (name.clone(), built.model()))
            .collect()
    }

    fn by_age(&self) -> Vec<ObjectName> {
        let mut names: Vec<_> = self.built.values().collect();
        names.sort_by_key(|built| {
            let created = built.draft.created;
            (created.is_none(), created, built.name.clone())
        });
        names.into_iter().map(|built| built.name.clone()).collect()
    }

    /// Gives every gateway its addresses: those that it names, then those that it had, then new ones.
    fn assign(&mut self, giving: &Giving<'_>, to: &Context<'_>) {
        let mut pool = Pool::new(giving.pools);
        for built in self.built.values_mut() {
            built.fixed(&mut pool, to);
        }
        let mut order = self.by_age();
        // What is left takes from the pools.
        order.retain(|name| {
            let built = self.built.get_mut(name);
            built.is_some_and(|built| !built.elsewhere(giving, to))
        });
        for name in &order {
            if let Some(built) = self.built.get_mut(name) {
                built.kept(&mut pool);
            }
        }
        for name in &order {
            if let Some(built) = self.built.get_mut(name) {
                built.new_ones(&mut pool, to);
            }
        }
    }

    /// Adds listeners of sets to their gateways, those of the oldest set first (Gateway API, `ListenerSet`).
    fn add_sets(&mut self, sets: &Table<ListenerSetDraft>, to: &Context<'_>) {
        let mut known = Vec::new();
        for (name, (_, draft)) in sets {
            match draft {
                Some(draft) => known.push((name, draft)),
                None => self.unread.push((ParentKind::ListenerSet, name.clone())),
            }
        }
        known
            .sort_by_key(|(name, draft)| (draft.created.is_none(), draft.created, (*name).clone()));
        for (name, draft) in known {
            let gateway = &draft.gateway;
            match self.place(ParentKind::Gateway, gateway) {
                Place::Ours => {}
                place => {
                    let key = (ParentKind::ListenerSet, name.clone());
                    match place {
                        Place::Absent => to
                            .sink
                            .mistake(draft.parent.clone(), format_args!("no `Gateway` {gateway}")),
                        Place::Unread | Place::Foreign | Place::Ours => {}
                    }
                    // Whose the gateway is nobody knows: another controller may have something to say.
                    self.foreign.push(key);
                    continue;
                }
            }
            let Some(built) = self.built.get_mut(gateway) else {
                continue;
            };
            let refused = if !built.takes(name, to) {
                let why = format!(
                    "`Gateway` {gateway} takes no `ListenerSet` of namespace `{}`; one whose `allowedListeners` have this namespace would",
                    name.namespace()
                );
                to.sink.mistake(draft.parent.clone(), &why);
                Some(Fault::new(Reason::NotAllowed, why))
            } else if built.accepted.is_some() {
                let why = format!("`Gateway` {gateway} is not accepted");
                Some(Fault::new(Reason::ParentNotAccepted, why))
            } else {
                let listeners = draft.listeners.iter();
                built
                    .entries
                    .extend(listeners.map(|one| Entry::new(one, Owner::Set(name), to)));
                None
            };
            let set = Set {
                draft: Arc::clone(draft),
                refused,
            };
            self.sets.insert(name.clone(), set);
        }
    }

    /// Keeps hosts of sets that have mistakes from broader listeners of their gateways.
    fn close_sets(&mut self, refused: &[(ObjectName, Arc<ListenerSetDraft>)], to: &Context<'_>) {
        for (name, draft) in refused {
            let built = self.built.get_mut(&draft.gateway);
            let built = built.filter(|built| built.takes(name, to));
            if let Some(built) = built {
                let listeners = draft.listeners.iter();
                let kept = listeners.filter_map(|one| Entry::of_refused(one, name));
                built.refused.extend(kept);
            }
        }
    }

    /// Two gateways cannot have one socket: the older has it.
    fn sockets(&mut self, nodes: &[IpAddr], to: &Context<'_>) {
        let mut taken: BTreeMap<(IpAddr, Transport, crate::model::Port), (ObjectName, Source)> =
            BTreeMap::new();
        for name in self.by_age() {
            let Some(built) = self.built.get_mut(&name) else {
                continue;
            };
            if !built.works() {
                continue;
            }
            let (addresses, ports) = (built.addresses.clone(), built.node_ports.clone());
            for entry in &mut built.entries {
                let Some(listener) = entry.model() else {
                    continue;
                };
                let transport = listener.protocol.transport();
                let own = addresses.iter().map(|address| (*address, listener.port));
                let port = ports.of(transport, listener.port).into_iter();
                let port_source = || {
                    let source = &listener.declared;
                    source.at(format!("{}.port", source.field))
                };
                if ports == NodePorts::Same && NODES_OWN.contains(&listener.port.get()) {
                    let why = format!("port {} is one that nodes are run by", listener.port);
                    to.sink.mistake(port_source(), &why);
                    entry.unavailable(why);
                    continue;
                }
                let on_nodes =
                    port.flat_map(|port| nodes.iter().map(move |address| (*address, port)));
                for (address, port) in own.chain(on_nodes) {
                    let socket = (address, transport, port);
                    let (first, declared) = taken
                        .entry(socket)
                        .or_insert_with(|| (name.clone(), built.declared.clone()));
                    if *first != name {
                        let why = format!("port {port} of address {address} belongs to {declared}");
                        to.sink.mistake(port_source(), &why);
                        entry.unavailable(why);
                        break;
                    }
                }
            }
        }
    }
}

/// Whether a gateway is for Cardinal. In a folder a class without document is nobody else's.
fn is_ours(draft: &GatewayDraft, classes: &Table<ClassDraft>, taking: Taking) -> bool {
    let class = classes
        .iter()
        .find(|(name, _)| name.name() == draft.class)
        .and_then(|(_, (_, class))| class.as_ref());
    match class {
        Some(class) => class.is_ours(),
        None => taking == Taking::Whole,
    }
}

impl Built {
    fn new(
        name: &ObjectName,
        declared: &Source,
        draft: &Arc<GatewayDraft>,
        to: &Context<'_>,
    ) -> Self {
        let mut accepted = None;
        if let Some(source) = &draft.parameters {
            let why = "a gateway has no parameters; expected none";
            to.sink.mistake(source.clone(), why);
            accepted = Some(Fault::new(Reason::InvalidParameters, why));
        }
        for address in &draft.addresses {
            if let AddressDraft::Unsupported(source, why) = address {
                to.sink.mistake(source.clone(), why);
                accepted.get_or_insert_with(|| Fault::new(Reason::UnsupportedAddress, why));
            }
        }
        let listeners = draft.listeners.iter();
        Self {
            name: name.clone(),
            declared: declared.clone(),
            addresses: Vec::new(),
            node_ports: NodePorts::None,
            health_check: None,
            nodes: Vec::new(),
            hostnames: Vec::new(),
            balancer: None,
            accepted,
            programmed: None,
            resolved: None,
            entries: listeners
                .map(|one| Entry::new(one, Owner::Gateway(name), to))
                .collect(),
            refused: Vec::new(),
            identity: None,
            draft: Arc::clone(draft),
        }
    }

    /// Whether a set may add listeners to it.
    fn takes(&self, set: &ObjectName, to: &Context<'_>) -> bool {
        let namespaces = to.namespaces;
        namespaces.allow(&self.draft.sets, self.name.namespace(), set.namespace())
    }

    /// Whether it can have listeners at all.
    pub(super) fn works(&self) -> bool {
        let somewhere = !self.addresses.is_empty() || self.node_ports != NodePorts::None;
        self.accepted.is_none() && self.programmed.is_none() && somewhere
    }

    fn model(&self) -> Gateway {
        Gateway {
            name: self.name.clone(),
            declared: self.declared.clone(),
            addresses: self.addresses.clone(),
            node_ports: self.node_ports.clone(),
            health_check: self.health_check.clone(),
            listeners: self.entries.iter().filter_map(Entry::model).collect(),
            unserved: {
                let own = self.entries.iter().filter_map(Entry::unserved);
                own.chain(self.refused.iter().cloned()).collect()
            },
            gate: None,
            identity: self.identity.clone(),
        }
    }

    /// The parent that a listener of the gateway is for routes; none: it does not work.
    pub(super) fn parent(&self, entry: &Entry) -> Option<Parent> {
        (self.works() && entry.works()).then(|| Parent {
            gateway: self.name.clone(),
            listener: Some(entry.id.clone()),
            port: None,
        })
    }

    fn fixed(&mut self, pool: &mut Pool<'_>, to: &Context<'_>) {
        for address in &self.draft.addresses {
            let AddressDraft::Fixed(placed) = address else {
                continue;
            };
            if !pool.has(placed.address) {
                let why = format!(
                    "`{}` is in no network of `spec.gateways.addressPools` of the `Platform`",
                    placed.address
                );
                to.sink.mistake(placed.source.clone(), &why);
                self.programmed
                    .get_or_insert(Fault::new(Reason::AddressNotUsable, why));
                continue;
            }
            // Connections of the node to itself, and to what only it reaches, are nobody's of a namespace.
            let own = of_node(placed.address).filter(|_| to.taking == Taking::Each);
            if let Some(own) = own {
                let why = format!(
                    "`{}` is {own}, which in a cluster is the node's",
                    placed.address
                );
                to.sink.mistake(placed.source.clone(), &why);
                self.programmed
                    .get_or_insert(Fault::new(Reason::AddressNotUsable, why));
                continue;
            }
            // Two gateways may have one address as long as their ports differ.
            pool.take(placed.address);
            self.addresses.push(placed.address);
        }
    }

    /// Where its clients reach it, as far as a status has room for that.
    pub(super) fn listed(&self) -> Vec<GatewayAddress> {
        let addresses = self.addresses.iter().chain(&self.nodes);
        let addresses = addresses.map(|address| GatewayAddress::Ip(*address));
        let names = self.hostnames.iter().cloned().map(GatewayAddress::Hostname);
        addresses.chain(names).take(MAX_ADDRESSES).collect()
    }

    /// Gives it addresses that are in no pool, if its class wants that.
    fn elsewhere(&mut self, giving: &Giving<'_>, to: &Context<'_>) -> bool {
        if !self.draft.addresses.is_empty() {
            return false;
        }
        let fault = match giving.sources.of(&self.draft.class) {
            AddressSource::Pools => return false,
            AddressSource::Nodes => {
                self.node_ports = NodePorts::Same;
                self.nodes.clone_from(&giving.nodes);
                let none = "is missing, and required: no `Node` has an address";
                giving.nodes.is_empty().then_some(none)
            }
            AddressSource::LoadBalancer(draft) => {
                self.balancer = Some(Arc::clone(draft));
                match (
                    balancer::given(&self.name, draft, giving.services),
                    to.taking,
                ) {
                    (Some(given), _) => {
                        self.addresses = given.addresses;
                        self.hostnames = given.hostnames;
                        self.node_ports = given.node_ports;
                        self.health_check = given.health_check;
                        None
                    }
                    // It comes later, and nobody has made a mistake.
                    (None, Taking::Each) => {
                        let why = "its `Service` has no address yet";
                        self.programmed = Some(Fault::new(Reason::AddressNotAssigned, why));
                        None
                    }
                    (None, Taking::Whole) => {
                        Some("is missing, and required: load balancers are a cluster's")
                    }
                }
            }
        };
        if let Some(why) = fault {
            to.sink.mistake(self.draft.addresses_source.clone(), why);
            self.programmed = Some(Fault::new(Reason::AddressNotAssigned, why));
        }
        true
    }

    /// How many addresses are to be given beside those that it names; none named: one of each family.
    fn missing(&self, pool: &Pool<'_>) -> usize {
        let named = &self.draft.addresses;
        let any = |one: &&AddressDraft| matches!(one, AddressDraft::Any);
        match named.is_empty() {
            true => pool.families().count().max(1),
            false => named.iter().filter(any).count(),
        }
    }

    fn kept(&mut self, pool: &mut Pool<'_>) {
        let mut room = self.missing(pool);
        for address in &self.draft.assigned {
            let family = |one: &&IpAddr| one.is_ipv4() == address.is_ipv4();
            let spare = match self.draft.addresses.is_empty() {
                true => !self.addresses.iter().any(|one| family(&one)),
                false => true,
            };
            if room > 0 && spare && pool.keep(*address) {
                self.addresses.push(*address);
                room -= 1;
            }
        }
    }

    fn new_ones(&mut self, pool: &mut Pool<'_>, to: &Context<'_>) {
        let fixed = |one: &&AddressDraft| matches!(one, AddressDraft::Fixed(_));
        let named = self.draft.addresses.iter().filter(fixed).count();
        let wanted = match self.programmed {
            Some(_) => 0,
            None => named + self.missing(pool),
        };
        let families: Vec<_> = pool.families().collect();
        let each = self.draft.addresses.is_empty();
        for family in families {
            let has = each && self.addresses.iter().any(|one| family.has(*one));
            while self.addresses.len() < wanted && !has {
                let Some(address) = pool.assign(&self.name, family) else {
                    break;
                };
                self.addresses.push(address);
                if each {
                    break;
                }
            }
        }
        if self.addresses.len() < wanted {
            let why = "is missing, and required: `spec.gateways.addressPools` of the `Platform` have no address to give";
            // Addresses that could not be read are no reason to ask for others.
            if !to.sink.tainted(&self.declared) {
                to.sink.mistake(self.draft.addresses_source.clone(), why);
            }
            self.programmed = Some(Fault::new(Reason::AddressNotAssigned, why));
        }
        self.addresses.sort_by_key(|address| !address.is_ipv4());
    }
}
