//! Network policies in the tables: what Kubernetes says of them, evaluated naively over the policies as they were written, is
//! what the look-ups of the kernel find.

use agent_common::Lookups;
use proptest::prelude::*;
use serde_json::{Value, json};
use snapshot::model::{Border, Borders};
use snapshot::{Snapshot, SourceFile, parse, take};

use super::*;

type Pairs = &'static [(&'static str, &'static str)];

/// Pods by number: namespace, labels, and the port called `http`, if any. The first four are of a cell.
const PODS: [(&str, Pairs, Option<u16>); 6] = [
    ("red", &[("app", "a")], Some(8080)),
    ("red", &[("app", "b"), ("tier", "x")], Some(4096)),
    ("blue", &[("app", "a"), ("tier", "x")], None),
    ("blue", &[("app", "b")], Some(8080)),
    ("red", &[("app", "a")], Some(80)),
    ("blue", &[], Some(31)),
];
const OF_CELL: usize = 4;
const OTHERS: [&str; 5] = [
    "203.0.113.7",
    "203.0.113.200",
    "198.51.100.1",
    "192.0.2.1",
    "192.0.2.2",
];
const NODE: &str = "192.0.2.1";
const PORTS: [u16; 9] = [1, 31, 32, 80, 4095, 4096, 8080, 5432, 65535];
const BLOCKS: [(&str, &[&str]); 5] = [
    ("0.0.0.0/0", &["10.1.0.0/30"]),
    ("203.0.113.0/24", &["203.0.113.128/25"]),
    ("10.1.0.2/32", &[]),
    ("192.0.2.0/24", &["192.0.2.2/32"]),
    ("10.0.0.0/8", &[]),
];

#[derive(Clone, Debug)]
struct Policy {
    namespace: &'static str,
    pods: Labels,
    ingress: Option<Vec<Rules>>,
    egress: Option<Vec<Rules>>,
}

#[derive(Clone, Debug)]
struct Rules {
    peers: Vec<Peer>,
    ports: Vec<Port>,
}

#[derive(Clone, Debug)]
enum Peer {
    /// Labels of namespaces, if asked for, and of pods.
    Pods(Option<Labels>, Option<Labels>),
    Block(usize),
}

/// A selector, as one of a few.
#[derive(Clone, Copy, Debug)]
enum Labels {
    All,
    Is(&'static str, &'static str),
    IsNot(&'static str, &'static str),
    Has(&'static str),
    HasNot(&'static str),
}

#[derive(Clone, Copy, Debug)]
enum Port {
    All(u8),
    Range(u8, u16, u16),
    Named(u8),
    /// SCTP.
    Foreign,
}

fn labels() -> impl Strategy<Value = Labels> {
    prop_oneof![
        Just(Labels::All),
        Just(Labels::Is("app", "a")),
        Just(Labels::IsNot("app", "a")),
        Just(Labels::Has("tier")),
        Just(Labels::HasNot("tier")),
    ]
}

fn policy() -> impl Strategy<Value = Policy> {
    let namespaces = prop_oneof![
        Just(Labels::All),
        Just(Labels::Is("team", "red")),
        Just(Labels::IsNot("team", "red")),
        Just(Labels::Is("kubernetes.io/metadata.name", "blue")),
    ];
    let selected = (
        proptest::option::of(namespaces),
        proptest::option::of(labels()),
    );
    let peer = prop_oneof![
        selected.prop_filter_map("one of both", |(namespaces, pods)| {
            let some = namespaces.is_some() || pods.is_some();
            some.then_some(Peer::Pods(namespaces, pods))
        }),
        (0..BLOCKS.len()).prop_map(Peer::Block),
    ];
    let protocol = prop_oneof![Just(TCP), Just(UDP)];
    let port = prop_oneof![
        1 => protocol.clone().prop_map(Port::All),
        3 => (protocol.clone(), 0..PORTS.len(), 0..PORTS.len()).prop_map(|(protocol, one, other)| {
            let mut ends = [PORTS[one], PORTS[other]];
            ends.sort_unstable();
            Port::Range(protocol, ends[0], ends[1])
        }),
        2 => protocol.prop_map(Port::Named),
        1 => Just(Port::Foreign),
    ];
    let rules = (
        proptest::collection::vec(peer, 0..3),
        proptest::collection::vec(port, 0..3),
    );
    let rules = rules.prop_map(|(peers, ports)| Rules { peers, ports });
    let rules = || proptest::option::of(proptest::collection::vec(rules.clone(), 0..3));
    (
        prop_oneof![Just("red"), Just("blue")],
        labels(),
        rules(),
        rules(),
    )
        .prop_filter("it is about something", |(_, _, ingress, egress)| {
            ingress.is_some() || egress.is_some()
        })
        .prop_map(|(namespace, pods, ingress, egress)| Policy {
            namespace,
            pods,
            ingress,
            egress,
        })
}

impl Labels {
    fn document(self) -> Value {
        let expression = |key: &str, operator: &str, values: &[&str]| {
            let mut one = json!({ "key": key, "operator": operator });
            if !values.is_empty() {
                one["values"] = json!(values);
            }
            json!({ "matchExpressions": [one] })
        };
        match self {
            Self::All => json!({}),
            Self::Is(key, value) => json!({ "matchLabels": { key: value } }),
            Self::IsNot(key, value) => expression(key, "NotIn", &[value]),
            Self::Has(key) => expression(key, "Exists", &[]),
            Self::HasNot(key) => expression(key, "DoesNotExist", &[]),
        }
    }

    fn select(self, labels: &[(&str, &str)]) -> bool {
        let value = |key| labels.iter().find(|(known, _)| *known == key);
        let value = |key| value(key).map(|(_, value)| *value);
        match self {
            Self::All => true,
            Self::Is(key, wanted) => value(key) == Some(wanted),
            Self::IsNot(key, unwanted) => value(key) != Some(unwanted),
            Self::Has(key) => value(key).is_some(),
            Self::HasNot(key) => value(key).is_none(),
        }
    }
}

fn namespace(name: &str) -> [(&'static str, &str); 2] {
    let team = match name {
        "red" => ("team", "red"),
        _ => ("team", "blue"),
    };
    [team, ("kubernetes.io/metadata.name", name)]
}

fn address(pod: usize) -> String {
    format!("10.1.0.{}", pod + 1)
}

pub(super) fn document(object: &Value) -> SourceFile {
    let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or("");
    SourceFile {
        path: format!(
            "{}/{}/{}",
            text("/kind"),
            text("/metadata/namespace"),
            text("/metadata/name")
        ),
        bytes: object.to_string().into_bytes(),
    }
}

/// The documents, with these borders of the cell: of cells that are not derived from labels they are closed. Its pods are of two
/// namespaces, so they are those of a folder.
fn documents(policies: &[Policy], all: bool, borders: Borders) -> Snapshot {
    let component = |name: &str, pods: [usize; 2]| {
        json!({
            "name": name,
            "workloads": { "addresses": pods.map(address) },
            "endpoints": [{ "name": "api", "type": "TCP", "port": 8080 }],
        })
    };
    let mut objects = vec![
        json!({
            "apiVersion": "cardinal.dev/v1alpha1", "kind": "Cell",
            "metadata": { "namespace": "red", "name": "shop" },
            "spec": {
                "organization": "acme", "project": "shop", "environment": "prod", "intra": "open",
                "components": [component("one", [0, 1]), component("two", [2, 3])],
                "egress": { "south": [{
                    "name": "partner", "cidrs": ["203.0.113.0/24"], "port": 5432, "protocol": "TCP",
                }] },
            },
        }),
        json!({
            "apiVersion": "cardinal.dev/v1alpha1", "kind": "Platform", "metadata": { "name": "platform" },
            "spec": {
                "networkPolicies": if all { "all" } else { "cells" },
                "nodes": [{ "name": "other", "addresses": ["192.0.2.2"] }],
            },
        }),
    ];
    for name in ["red", "blue"] {
        objects.push(json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": { "name": name, "labels": { "team": name } },
        }));
    }
    for (number, (namespace, labels, port)) in PODS.iter().enumerate() {
        let labels: BTreeMap<_, _> = labels.iter().copied().collect();
        let mut container = json!({ "ports": [{ "name": "other", "containerPort": 1 }] });
        if let Some(port) = port {
            container["ports"][0] = json!({ "name": "http", "containerPort": port });
        }
        objects.push(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": namespace, "name": format!("pod-{number}"), "labels": labels },
            "spec": { "containers": [container] },
            "status": { "phase": "Running", "podIPs": [{ "ip": address(number) }] },
        }));
    }
    for (number, policy) in policies.iter().enumerate() {
        objects.push(policy.document(number));
    }
    let files: Vec<_> = objects.iter().map(document).collect();
    let mut snapshot = parse(&files).expect("good documents");
    for cell in snapshot.cells.values_mut() {
        cell.borders = borders;
    }
    snapshot
}

/// Borders that are open, or not: towards the cell, and out of it.
fn borders() -> impl Strategy<Value = Borders> {
    let border = || prop_oneof![Just(Border::Declared), Just(Border::Open)];
    (border(), border()).prop_map(|(ingress, egress)| Borders { ingress, egress })
}

impl Policy {
    fn document(&self, number: usize) -> Value {
        let rules = |rules: &[Rules], peers: &str| -> Vec<Value> {
            let rules = rules.iter().map(|rule| {
                json!({
                    peers: rule.peers.iter().map(Peer::document).collect::<Vec<_>>(),
                    "ports": rule.ports.iter().map(|port| port.document()).collect::<Vec<_>>(),
                })
            });
            rules.collect()
        };
        let mut spec = json!({ "podSelector": self.pods.document(), "policyTypes": [] });
        if let Some(ingress) = &self.ingress {
            spec["policyTypes"] = json!(["Ingress"]);
            spec["ingress"] = rules(ingress, "from").into();
        }
        if let Some(egress) = &self.egress {
            let types = spec["policyTypes"].as_array_mut().expect("a list");
            types.push("Egress".into());
            spec["egress"] = rules(egress, "to").into();
        }
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": { "namespace": self.namespace, "name": format!("policy-{number}") },
            "spec": spec,
        })
    }

    fn selects(&self, pod: usize) -> bool {
        PODS[pod].0 == self.namespace && self.pods.select(PODS[pod].1)
    }

    fn direction(&self, direction: Direction) -> Option<&[Rules]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }
}

impl Peer {
    fn document(&self) -> Value {
        match self {
            Self::Pods(namespaces, pods) => {
                let mut peer = json!({});
                if let Some(labels) = namespaces {
                    peer["namespaceSelector"] = labels.document();
                }
                if let Some(labels) = pods {
                    peer["podSelector"] = labels.document();
                }
                peer
            }
            Self::Block(at) => {
                let (cidr, except) = BLOCKS[*at];
                json!({ "ipBlock": { "cidr": cidr, "except": except } })
            }
        }
    }

    fn is(&self, own: &str, peer: &str) -> bool {
        match self {
            Self::Pods(namespaces, pods) => number(peer).is_some_and(|pod| {
                let (name, labels, _) = PODS[pod];
                let there = match namespaces {
                    Some(selector) => selector.select(&namespace(name)),
                    None => name == own,
                };
                there && pods.is_none_or(|selector| selector.select(labels))
            }),
            Self::Block(at) => {
                let (network, except) = BLOCKS[*at];
                let holds = |network: &str| cidr(network).contains(&Cidr::host(ip(peer)));
                holds(network) && !except.iter().any(|part| holds(part))
            }
        }
    }
}

impl Port {
    fn document(self) -> Value {
        let word = |protocol| if protocol == TCP { "TCP" } else { "UDP" };
        match self {
            Self::All(protocol) => json!({ "protocol": word(protocol) }),
            Self::Range(protocol, first, last) => {
                json!({ "protocol": word(protocol), "port": first, "endPort": last })
            }
            Self::Named(protocol) => json!({ "protocol": word(protocol), "port": "http" }),
            Self::Foreign => json!({ "protocol": "SCTP", "port": 80 }),
        }
    }

    fn is(self, called: &str, port: u16, protocol: u8) -> bool {
        match self {
            Self::All(own) => own == protocol,
            Self::Range(own, first, last) => own == protocol && (first..=last).contains(&port),
            // Containers' ports are of TCP here.
            Self::Named(own) => {
                let named = number(called).and_then(|pod| PODS[pod].2);
                own == protocol && own == TCP && named == Some(port)
            }
            Self::Foreign => false,
        }
    }
}

/// The pod with an address.
fn number(peer: &str) -> Option<usize> {
    (0..PODS.len()).find(|pod| address(*pod) == peer)
}

/// What Kubernetes says of a connection at one pod (`NetworkPolicy`): no policy selects it for the direction, or a rule of one that
/// does allows the connection.
fn allowed(
    policies: &[Policy],
    pod: usize,
    peer: &str,
    port: u16,
    protocol: u8,
    direction: Direction,
) -> bool {
    if direction == Direction::Ingress && peer == NODE {
        return true;
    }
    let mut isolated = false;
    let own = address(pod);
    let called = match direction {
        Direction::Ingress => own.as_str(),
        Direction::Egress => peer,
    };
    for policy in policies.iter().filter(|policy| policy.selects(pod)) {
        let Some(rules) = policy.direction(direction) else {
            continue;
        };
        isolated = true;
        for rule in rules {
            let peers = rule.peers.is_empty()
                || rule.peers.iter().any(|one| one.is(policy.namespace, peer));
            let ports = rule.ports.is_empty()
                || rule.ports.iter().any(|one| one.is(called, port, protocol));
            if peers && ports {
                return true;
            }
        }
    }
    !isolated
}

/// What the cell says.
fn declared(borders: Borders, peer: &str, port: u16, protocol: u8, direction: Direction) -> bool {
    let border = match direction {
        Direction::Ingress => borders.ingress,
        Direction::Egress => borders.egress,
    };
    if border == Border::Open {
        return true;
    }
    match number(peer) {
        Some(pod) => pod < OF_CELL,
        None if direction == Direction::Ingress => peer == NODE && (port, protocol) == (8080, TCP),
        None => {
            cidr("203.0.113.0/24").contains(&Cidr::host(ip(peer)))
                && (port, protocol) == (5432, TCP)
        }
    }
}

/// What the programs find, in their order (`agent-ebpf/src/verdict/rules.rs`).
pub(super) fn found(
    tables: &KernelTables,
    pod: &crate::datapath::Pod,
    peer: Identity,
    port: u16,
    protocol: u8,
    way: Direction,
) -> bool {
    let Some(rules) = tables.policies.get(&pod.identity) else {
        return false;
    };
    let mut keys = Vec::new();
    for peer in [peer, RuleKey::ANYBODY] {
        if peer == RuleKey::ANYBODY && !pod.lookups.has(Lookups::ANYBODY) {
            continue;
        }
        keys.push(RuleKey::new(peer, port, protocol, way));
        if pod.lookups.has(Lookups::RANGES) {
            keys.extend((1..=3).map(|width| RuleKey::range(peer, port, width, protocol, way)));
        }
        keys.push(RuleKey::new(peer, 0, protocol, way));
        keys.push(RuleKey::new(peer, 0, 0, way));
    }
    let rule = keys.iter().find_map(|key| rules.get(key));
    rule.is_some_and(|rule| rule.action() == Action::Pass)
}

fn node() -> Discovery {
    Discovery {
        pods: (0..PODS.len())
            .map(|number| {
                pod(
                    11 + u32::try_from(number).expect("few"),
                    &[&address(number)],
                )
            })
            .collect(),
        unidentified: Vec::new(),
        node_addresses: vec![ip(NODE)],
    }
}

fn agrees(policies: &[Policy], all: bool, borders: Borders) -> Result<(), TestCaseError> {
    let snapshot = documents(policies, all, borders);
    let tables = compile(&snapshot, &node(), 1);
    for own in 0..PODS.len() {
        let ifindex = 11 + u32::try_from(own).expect("few");
        let isolated = policies.iter().any(|policy| policy.selects(own));
        let guarded = own < OF_CELL || (all && isolated);
        let endpoint = tables.endpoints.get(&ifindex);
        prop_assert_eq!(endpoint.is_some(), guarded, "pod {}", own);
        let Some(endpoint) = endpoint else { continue };
        let peers = (0..PODS.len()).map(address);
        for peer in peers.chain(OTHERS.map(str::to_owned)) {
            let who = owner(&tables, &peer);
            if let Some(other) = number(&peer) {
                let other = 11 + u32::try_from(other).expect("few");
                let there = tables.endpoints.contains_key(&other);
                prop_assert_eq!(who.ifindex, if there { other } else { 0 }, "{}", peer);
            }
            for way in [Direction::Ingress, Direction::Egress] {
                // Who calls from an address of this node is the node.
                let identity = match way {
                    Direction::Ingress if peer == NODE => Identity::NODE,
                    _ => who.identity,
                };
                let calls = PORTS.iter().flat_map(|port| [(*port, TCP), (*port, UDP)]);
                for (port, protocol) in calls.chain([(0, ICMP)]) {
                    let cell = own >= OF_CELL || declared(borders, &peer, port, protocol, way);
                    let wanted = cell && allowed(policies, own, &peer, port, protocol, way);
                    let passes = found(&tables, endpoint, identity, port, protocol, way);
                    prop_assert_eq!(
                        passes,
                        wanted,
                        "pod {} {} {} {}/{}",
                        own,
                        way,
                        peer,
                        port,
                        protocol
                    );
                }
            }
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn property_policies_allow_what_kubernetes_says(
        policies in proptest::collection::vec(policy(), 0..5),
        all in any::<bool>(),
        borders in borders(),
    ) {
        agrees(&policies, all, borders)?;
    }

    #[test]
    fn property_policies_make_the_same_tables_whatever_was_before(
        before in proptest::collection::vec(policy(), 0..3),
        after in proptest::collection::vec(policy(), 0..3),
        scopes in any::<(bool, bool)>(),
        borders in (borders(), borders()),
    ) {
        let first = documents(&before, scopes.0, borders.0);
        let first = Compiled::default().next(&Arc::new(first), &node(), 1);
        let snapshot = documents(&after, scopes.1, borders.1);
        let known = first.from.as_deref().expect("compiled");
        let next = Arc::new(snapshot.clone().sharing(known));
        let next = first.next(&next, &node(), 2);
        prop_assert_eq!(next.tables(), &compile(&snapshot, &node(), 2));
    }
}

#[test]
fn without_policies_identities_are_those_of_cells() {
    let snapshot = documents(&[], true, Borders::default());
    let tables = compile(&snapshot, &node(), 1);
    assert_eq!(
        owner(&tables, &address(0)).identity,
        owner(&tables, &address(1)).identity
    );
    assert_eq!(owner(&tables, &address(4)).identity, Identity::WORLD);
    assert!(
        tables
            .endpoints
            .values()
            .all(|pod| pod.lookups == Lookups::default())
    );
}

/// A policy that cannot be read isolates whom it selects, in the directions that it names, and allows nothing.
#[test]
fn a_refused_policy_closes() {
    let table = [
        (
            json!({ "podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{ "form": [] }] }),
            [true, false],
        ),
        (
            json!({ "podSelector": {}, "egress": [{ "ports": [{ "port": 0 }] }] }),
            [true, true],
        ),
        (
            json!({ "podSelector": {}, "policyTypes": ["Inbound"] }),
            [true, true],
        ),
        (
            json!({ "podSelector": { "matchLabels": { "app": 1 } }, "policyTypes": ["Egress"] }),
            [false, true],
        ),
        (json!("nothing"), [true, true]),
    ];
    for (spec, closed) in table {
        let mut objects = vec![json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": { "namespace": "red", "name": "broken" }, "spec": spec,
        })];
        // One cell of two namespaces.
        objects.push(json!({
            "apiVersion": "cardinal.dev/v1alpha1", "kind": "Platform", "metadata": { "name": "platform" },
            "spec": { "cells": { "derivedFrom": "OpenChoreo" } },
        }));
        for namespace in ["red", "blue"] {
            objects.push(json!({
                "apiVersion": "v1", "kind": "Namespace",
                "metadata": { "name": namespace, "labels": {
                    "openchoreo.dev/namespace": "acme", "openchoreo.dev/project": "shop",
                    "openchoreo.dev/environment": "prod",
                } },
            }));
        }
        for (number, namespace) in [(0, "red"), (2, "blue")] {
            objects.push(json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": { "namespace": namespace, "name": format!("pod-{number}"), "labels": { "app": "a" } },
                "status": { "phase": "Running", "podIPs": [{ "ip": address(number) }] },
            }));
        }
        let taken = take(objects.iter().map(document));
        let refused = taken
            .report
            .objects
            .values()
            .filter(|verdict| !verdict.accepted);
        assert_eq!(refused.count(), 1, "{spec}");
        let tables = compile(&taken.snapshot, &node(), 1);
        let passes = |own: u32, peer: usize, way| {
            let identity = owner(&tables, &address(peer)).identity;
            found(&tables, &tables.endpoints[&own], identity, 80, TCP, way)
        };
        let ways = [Direction::Ingress, Direction::Egress];
        assert_eq!(ways.map(|way| !passes(11, 2, way)), closed, "{spec}");
        // The pod of another namespace is not isolated.
        assert_eq!(ways.map(|way| passes(13, 0, way)), [true, true], "{spec}");
    }
}

/// `world` is nobody of the cluster, also where the cell itself lets everybody pass.
#[test]
fn an_open_border_opens_what_a_policy_names_and_nothing_else() {
    let rule = |peers: &str| json!([{ peers: ["world"] }]);
    let policy = json!({
        "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
        "metadata": { "namespace": "red", "name": "outside" },
        "spec": {
            "endpointSelector": { "matchLabels": { "app": "a" } },
            "egress": rule("toEntities"), "ingress": rule("fromEntities"),
        },
    });
    let mut objects = vec![policy];
    for (cell, number) in [("shop", 0), ("bank", 2)] {
        objects.push(json!({
            "apiVersion": "cardinal.dev/v1alpha1", "kind": "Cell",
            "metadata": { "namespace": "red", "name": cell },
            "spec": {
                "organization": "acme", "project": cell, "environment": "prod",
                "components": [{ "name": "one", "workloads": { "addresses": [address(number)] } }],
            },
        }));
    }
    for (number, app) in [(0, "a"), (2, "b"), (4, "b")] {
        objects.push(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": "red", "name": format!("pod-{number}"), "labels": { "app": app } },
            "status": { "phase": "Running", "podIPs": [{ "ip": address(number) }] },
        }));
    }
    let mut taken = take(objects.iter().map(document));
    let mistakes = taken.report.objects.values();
    let mistakes: Vec<_> = mistakes.flat_map(|verdict| &verdict.mistakes).collect();
    assert!(mistakes.is_empty(), "{mistakes:?}");
    for cell in taken.snapshot.cells.values_mut() {
        cell.borders = Borders {
            ingress: Border::Open,
            egress: Border::Open,
        };
    }
    let tables = compile(&taken.snapshot, &node(), 1);
    let passes = |own: u32, peer: &str, protocol, way| {
        let identity = match (way, peer) {
            (Direction::Ingress, NODE) => Identity::NODE,
            _ => owner(&tables, peer).identity,
        };
        found(
            &tables,
            &tables.endpoints[&own],
            identity,
            443,
            protocol,
            way,
        )
    };
    let ways = [Direction::Ingress, Direction::Egress];
    for (peer, open) in [
        ("203.0.113.7", [true, true]),
        (&*address(2), [false, false]),
        (&*address(4), [false, false]),
        // The pod's own node is never a policy's matter.
        (NODE, [true, false]),
    ] {
        for protocol in [TCP, UDP] {
            assert_eq!(
                ways.map(|way| passes(11, peer, protocol, way)),
                open,
                "{peer}"
            );
        }
    }
    // Whom no policy isolates, the border is open to everybody.
    for peer in ["203.0.113.7", &*address(0), &*address(4), NODE] {
        assert_eq!(
            ways.map(|way| passes(13, peer, TCP, way)),
            [true, true],
            "{peer}"
        );
    }
}
