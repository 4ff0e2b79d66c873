//! Network policies: which pods they isolate, and whom their rules name.
//!
//! ```text
//! policies ─▶ those that isolate somebody here ─┬▶ selectors, networks, names of ports ─┐
//! pods, cells, gates ──────────────────────────┴────────────────────────────────────────┴▶ classes of addresses
//! ```
//!
//! A policy that isolates nobody says nothing, and tells nobody apart. One that is refused isolates whom it selects, and
//! allows nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;

use super::collect::Placed;
use super::grants::Namespaces;
use crate::document::labels::Labels;
use crate::document::network_policy::{
    NamespaceScope, PeerDraft, PodSelector, PolicyDraft, RuleDraft,
};
use crate::document::pod::PodDraft;
use crate::document::{Drafts, Kind, Table};
use crate::model::{
    AddressClass, BlockId, Cell, CellId, Cidr, ClassId, Classes, Gate, IpBlock, NetworkPolicies,
    PeerId, Platform, PolicyPeers, PolicyPort, PolicyRule, PolicyScope, PortNumbers,
};
use crate::reader::Sink;
use crate::report::Source;
use crate::shared::Shared;

mod gates;

use gates::GatePod;

/// A policy that counts.
struct Policy<'a> {
    source: &'a Source,
    draft: Arc<PolicyDraft>,
}

/// A pod with addresses.
struct Pod<'a> {
    draft: &'a PodDraft,
    namespace: &'a str,
    /// Whether policies may isolate it.
    subject: bool,
}

/// Resolves all policies.
pub(super) fn link(
    drafts: &Drafts,
    documents: &[Placed<'_>],
    cells: &BTreeMap<CellId, Shared<Cell>>,
    namespaces: &Namespaces,
    scope: PolicyScope,
    platform: &Platform,
    sink: &Sink,
) -> NetworkPolicies {
    let policies = policies(drafts, documents);
    if policies.is_empty() {
        return NetworkPolicies::default();
    }
    let of_cells: BTreeSet<IpAddr> = cells
        .values()
        .flat_map(|cell| cell.components.values())
        .flat_map(|component| component.workloads.addresses())
        .copied()
        .collect();
    let pods: Vec<Pod<'_>> = drafts
        .pods
        .iter()
        .filter_map(|(name, (_, draft))| {
            let draft = draft
                .as_deref()
                .filter(|draft| !draft.addresses.is_empty())?;
            let mut own = draft.addresses.iter();
            Some(Pod {
                draft,
                namespace: name.namespace(),
                subject: scope == PolicyScope::All
                    || own.any(|address| of_cells.contains(&address.address)),
            })
        })
        .collect();
    let mut selecting = Selecting::new(namespaces);
    let isolating: Vec<(&Policy<'_>, Vec<usize>)> = policies
        .iter()
        .filter_map(|policy| {
            let subject = &policy.draft.subject;
            let selected: Vec<usize> = (0..pods.len())
                .filter(|at| selecting.selects_pod(subject, &pods[*at]))
                .collect();
            let isolated: Vec<usize> = selected
                .iter()
                .copied()
                .filter(|at| pods[*at].subject)
                .collect();
            if isolated.is_empty() && !selected.is_empty() {
                sink.warning(
                    policy.source.clone(),
                    "selects no pod of a cell, and pods of no cell are let alone unless \
                     `spec.networkPolicies` of the `Platform` is `all`",
                );
            }
            (!isolated.is_empty()).then_some((policy, isolated))
        })
        .collect();
    if isolating.is_empty() {
        return NetworkPolicies::default();
    }
    let named = Named::of(isolating.iter().map(|(policy, _)| &*policy.draft));
    let mut isolated_by: Vec<Vec<usize>> = vec![Vec::new(); pods.len()];
    for (policy, (_, selected)) in isolating.iter().enumerate() {
        for pod in selected {
            isolated_by[*pod].push(policy);
        }
    }
    let rules: Vec<Rules> = isolating
        .iter()
        .map(|(policy, _)| named.rules(policy))
        .collect();
    let mut classes = BTreeMap::new();
    let mut members = BTreeMap::new();
    let of_pods: Vec<AddressClass> = pods
        .iter()
        .map(|pod| named.pod(pod, &mut selecting))
        .collect();
    let mut holders: BTreeMap<IpAddr, Vec<usize>> = BTreeMap::new();
    for (at, pod) in pods.iter().enumerate() {
        for placed in &pod.draft.addresses {
            holders.entry(placed.address).or_default().push(at);
        }
    }
    for (address, holders) in holders {
        let Some(mut class) = shared(holders.iter().map(|at| &of_pods[*at])) else {
            continue;
        };
        let policies: BTreeSet<usize> = holders
            .iter()
            .flat_map(|at| &isolated_by[*at])
            .copied()
            .collect();
        class.blocks = named.holding(address, true);
        // Whether what a policy allows in a direction is allowed to each of those that are isolated in it.
        let common = |policy: usize, way: Direction| {
            let isolated = |at: &&usize| {
                isolated_by[**at]
                    .iter()
                    .any(|one| way(&rules[*one]).is_some())
            };
            let mut isolated = holders.iter().filter(isolated);
            isolated.all(|at| isolated_by[*at].contains(&policy))
        };
        let words = named.words(
            &class,
            policies.iter().flat_map(|policy| {
                let object = &isolating[*policy].0.source.object;
                let common = &common;
                let rules = &rules[*policy];
                let without = WAYS.into_iter().filter_map(move |(word, way)| {
                    let says = way(rules).is_some() && !common(*policy, way);
                    says.then(|| format!("{object} without its {word}"))
                });
                std::iter::once(object.to_string()).chain(without)
            }),
        );
        // To nobody's policy it differs from an address that no pod has.
        if words.is_empty() && !named.outside {
            continue;
        }
        let id = ClassId::new(&words);
        members.insert(address, id.clone());
        classes.entry(id).or_insert_with(|| {
            let together = |way: Direction| {
                let all = policies.iter();
                together(all.map(|policy| (way(&rules[*policy]), common(*policy, way))))
            };
            class.ingress = together(|rules| &rules.ingress);
            class.egress = together(|rules| &rules.egress);
            class
        });
    }
    // What a component declares without a pod is selected by nobody, but networks hold it.
    for address in of_cells {
        if members.contains_key(&address) {
            continue;
        }
        let class = AddressClass {
            blocks: named.holding(address, true),
            ..AddressClass::default()
        };
        let words = named.words(&class, std::iter::empty());
        if !words.is_empty() || named.outside {
            let id = ClassId::new(&words);
            members.insert(address, id.clone());
            classes.entry(id).or_insert(class);
        }
    }
    let gates = gates::of(platform, &drafts.gateways);
    let gates = named.gates(&gates, &mut selecting);
    NetworkPolicies {
        classes: Classes {
            of: classes,
            blocks: named.blocks,
            gates,
        }
        .into(),
        members: members.into(),
    }
}

/// All policies in the order of their kinds and names, those that are refused with what is left of them.
fn policies<'a>(drafts: &'a Drafts, documents: &'a [Placed<'_>]) -> Vec<Policy<'a>> {
    let refused = documents.iter().filter(|placed| placed.refused);
    let refused = refused.filter_map(|placed| {
        let document = placed.document;
        let isolates = document.closes.as_ref()?.isolates.as_ref()?;
        let kind = document.draft.kind();
        let policy = Policy {
            source: &document.meta.declared,
            draft: Arc::clone(isolates),
        };
        Some(((kind, &document.meta.name), policy))
    });
    let mut policies: BTreeMap<_, Policy<'a>> = refused.collect();
    let tables: [(Kind, &'a Table<PolicyDraft>); 3] = [
        (Kind::NetworkPolicy, &drafts.network_policies),
        (Kind::CiliumNetworkPolicy, &drafts.cilium_policies),
        (
            Kind::CiliumClusterwideNetworkPolicy,
            &drafts.clusterwide_policies,
        ),
    ];
    for (kind, table) in tables {
        for (name, (source, draft)) in table {
            if let Some(draft) = draft {
                let draft = Arc::clone(draft);
                policies.insert((kind, name), Policy { source, draft });
            }
        }
    }
    policies.into_values().collect()
}

/// What is told of an address that pods have. While two have it, one of them ended without a word: which of them sends is not
/// known, so it is nobody that only one of them would be.
fn shared<'c>(mut pods: impl Iterator<Item = &'c AddressClass>) -> Option<AddressClass> {
    let first = pods.next()?.clone();
    Some(pods.fold(first, |mut class, other| {
        class.peers.retain(|peer| other.peers.contains(peer));
        class
            .ports
            .retain(|name, numbers| other.ports.get(name) == Some(&*numbers));
        class
    }))
}

/// Rules of all policies that isolate in a direction, but for those that do not count; none if none isolates.
fn together<'r>(
    policies: impl Iterator<Item = (&'r Option<Vec<Arc<PolicyRule>>>, bool)>,
) -> Option<Vec<Arc<PolicyRule>>> {
    let mut all: Option<Vec<Arc<PolicyRule>>> = None;
    for (rules, counts) in policies {
        let Some(rules) = rules else { continue };
        let all = all.get_or_insert_default();
        if counts {
            all.extend(rules.iter().cloned());
        }
    }
    all
}

/// Answers what selectors ask; namespaces, and pods that are copies of one another, are asked once.
struct Selecting<'a> {
    namespaces: &'a Namespaces,
    labels: BTreeMap<&'a str, Labels>,
}

impl<'a> Selecting<'a> {
    fn new(namespaces: &'a Namespaces) -> Self {
        Self {
            namespaces,
            labels: BTreeMap::new(),
        }
    }

    fn selects_pod(&mut self, selector: &PodSelector, pod: &Pod<'a>) -> bool {
        self.selects(selector, pod.namespace, &pod.draft.labels)
    }

    fn selects(&mut self, selector: &PodSelector, namespace: &'a str, labels: &Labels) -> bool {
        let selected = match &selector.namespaces {
            NamespaceScope::Own(own) => **own == *namespace,
            NamespaceScope::Selected(selector) => {
                let known = self.labels.entry(namespace);
                selector.selects(known.or_insert_with(|| self.namespaces.labels(namespace)))
            }
        };
        selected && selector.pods.selects(labels)
    }
}

/// What rules name, each once and in order.
struct Named<'a> {
    peers: Vec<&'a PodSelector>,
    blocks: Vec<IpBlock>,
    ports: BTreeSet<&'a str>,
    /// Whether a rule tells pods from other addresses.
    outside: bool,
}

/// Rules of one policy.
struct Rules {
    ingress: Option<Vec<Arc<PolicyRule>>>,
    egress: Option<Vec<Arc<PolicyRule>>>,
}

/// Rules of a policy in one direction.
type Direction = fn(&Rules) -> &Option<Vec<Arc<PolicyRule>>>;

const WAYS: [(&str, Direction); 2] = [
    ("ingress", |rules| &rules.ingress),
    ("egress", |rules| &rules.egress),
];

impl<'a> Named<'a> {
    fn of(policies: impl Iterator<Item = &'a PolicyDraft>) -> Self {
        let (mut peers, mut blocks) = (BTreeSet::new(), BTreeSet::new());
        let mut ports = BTreeSet::new();
        let mut outside = false;
        for rule in
            policies.flat_map(|policy| policy.ingress.iter().chain(&policy.egress).flatten())
        {
            for peer in rule.peers.iter().flatten() {
                match peer {
                    PeerDraft::Pods(selector) => drop(peers.insert(selector)),
                    PeerDraft::Block(block) => {
                        outside |= block.outside;
                        blocks.insert(block.clone());
                    }
                    PeerDraft::Entity(_) => outside = true,
                }
            }
            for port in rule.ports.iter().flatten() {
                if let PortNumbers::Named(name) = &port.numbers {
                    ports.insert(&**name);
                }
            }
        }
        Self {
            peers: peers.into_iter().collect(),
            blocks: blocks.into_iter().collect(),
            ports,
            outside,
        }
    }

    fn rules(&self, policy: &Policy<'_>) -> Rules {
        let object = &policy.source.object;
        let resolve = |rules: &Option<Vec<RuleDraft>>| {
            let rules = rules.as_ref()?.iter();
            Some(
                rules
                    .map(|rule| Arc::new(self.rule(object, rule)))
                    .collect(),
            )
        };
        Rules {
            ingress: resolve(&policy.draft.ingress),
            egress: resolve(&policy.draft.egress),
        }
    }

    fn rule(&self, policy: &Arc<str>, rule: &RuleDraft) -> PolicyRule {
        let peers = rule.peers.as_ref().map(|all| {
            let mut peers = PolicyPeers::default();
            for peer in all {
                match peer {
                    PeerDraft::Pods(selector) => {
                        let at = self.peers.binary_search(&selector);
                        peers.pods.extend(at.ok().map(PeerId));
                    }
                    PeerDraft::Block(block) => {
                        let at = self.blocks.binary_search(block);
                        peers.blocks.extend(at.ok().map(BlockId));
                    }
                    PeerDraft::Entity(entity) => {
                        peers.entities.insert(*entity);
                    }
                }
            }
            peers
        });
        let ports: Option<Vec<PolicyPort>> = rule.ports.clone();
        PolicyRule {
            declared: rule.declared.clone(),
            policy: Arc::clone(policy),
            peers,
            ports,
        }
    }

    /// The networks that hold an address.
    fn holding(&self, address: IpAddr, inside: bool) -> BTreeSet<BlockId> {
        let own = Cidr::host(address);
        let blocks = self.blocks.iter().enumerate();
        let holding = blocks.filter(|(_, block)| block.holds(&own, inside));
        holding.map(|(at, _)| BlockId(at)).collect()
    }

    /// What tells a pod from others, but for its addresses and the policies that isolate it.
    fn pod<'p>(&self, pod: &Pod<'p>, selecting: &mut Selecting<'p>) -> AddressClass {
        let peers = self.peers.iter().enumerate();
        let selected = peers.filter(|(_, selector)| selecting.selects_pod(selector, pod));
        let ports = pod.draft.ports.iter();
        AddressClass {
            peers: selected.map(|(at, _)| PeerId(at)).collect(),
            ports: ports
                .filter(|((name, _), _)| self.ports.contains(&**name))
                .map(|(name, numbers)| (name.clone(), numbers.clone()))
                .collect(),
            ..AddressClass::default()
        }
    }

    /// The selectors that select each gate, of those that some select.
    fn gates<'p>(
        &self,
        gates: &[GatePod<'p>],
        selecting: &mut Selecting<'p>,
    ) -> BTreeMap<Gate, BTreeSet<PeerId>> {
        let mut selected: BTreeMap<Gate, BTreeSet<PeerId>> = BTreeMap::new();
        for gate in gates {
            for (at, selector) in self.peers.iter().enumerate() {
                if selecting.selects(selector, gate.namespace, &gate.labels) {
                    selected.entry(gate.gate).or_default().insert(PeerId(at));
                }
            }
        }
        selected
    }

    /// What makes a class, in words that do not depend on what else policies name. Empty: nothing does.
    fn words(&self, class: &AddressClass, policies: impl Iterator<Item = String>) -> String {
        let mut words = String::new();
        for policy in policies {
            writeln!(words, "of {policy}").expect("a String takes everything");
        }
        for PeerId(at) in &class.peers {
            let PodSelector { namespaces, pods } = self.peers[*at];
            match namespaces {
                NamespaceScope::Own(own) => writeln!(words, "is [{pods}] in {own}"),
                NamespaceScope::Selected(labels) => writeln!(words, "is [{pods}] in [{labels}]"),
            }
            .expect("a String takes everything");
        }
        for BlockId(at) in &class.blocks {
            writeln!(words, "{}", self.blocks[*at]).expect("a String takes everything");
        }
        for ((name, transport), numbers) in &class.ports {
            write!(words, "{name}/{transport}").expect("a String takes everything");
            for number in numbers {
                write!(words, " {number}").expect("a String takes everything");
            }
            words.push('\n');
        }
        words
    }
}
