//! `CiliumNetworkPolicy` and `CiliumClusterwideNetworkPolicy`, as far as OpenChoreo makes them.
//!
//! What they say beyond that is refused by name, and closes. In one point they are read more strictly than Cilium does: an empty
//! list of rules isolates, where Cilium takes it for no word about the direction.

use std::sync::Arc;

use super::{
    IpBlock, NamespaceScope, PeerDraft, PodSelector, PolicyDraft, RuleDraft, Way, end, port_name,
};
use crate::document::Meta;
use crate::document::addresses::network;
use crate::document::selector::{Part, Selector, selector};
use crate::model::{Entity, PolicyPort, Port, PortNumbers, Transport};
use crate::reader::{Field, Object};

/// Where labels come from, in the keys of Cilium's selectors; without a word it is any source.
const SOURCES: [&str; 2] = ["k8s:", "any:"];
/// The key that stands for the name of a pod's namespace.
const NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// Keys that stand for labels of a pod's namespace.
const NAMESPACE_LABELS: &str = "io.cilium.k8s.namespace.labels.";
/// Keys of what Cilium derives itself: no label of a pod is one.
const DERIVED: [&str; 2] = ["io.cilium.", "io.kubernetes."];
/// The label that every namespace has in Kubernetes.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// Reads the `spec` of a policy of a namespace.
pub(crate) fn read(spec: &mut Object<'_>, meta: &Meta) -> Option<PolicyDraft> {
    policy(spec, Some(&meta.name.namespace().into()))
}

/// Reads the `spec` of a policy of the cluster.
pub(crate) fn clusterwide(spec: &mut Object<'_>, _: &Meta) -> Option<PolicyDraft> {
    policy(spec, None)
}

/// What is left of a policy with mistakes, as [`super::closed`] has it. `own` is none for one of the cluster.
pub(crate) fn closed(spec: Option<&mut Object<'_>>, own: Option<&Arc<str>>) -> PolicyDraft {
    let (mut subject, mut isolated) = (None, [true, true]);
    if let Some(spec) = spec {
        let field = spec.optional("endpointSelector");
        let nodes = field.is_none() && spec.optional("nodeSelector").is_some();
        subject = field.and_then(|field| pods(&field, own, true));
        // A direction in which it denies is isolated as well.
        let named = [["ingress", "ingressDeny"], ["egress", "egressDeny"]].map(|names| {
            names
                .map(|name| spec.optional(name).is_some())
                .contains(&true)
        });
        if nodes {
            // It is for nodes, and for no pod.
            isolated = [false, false];
        } else if named.contains(&true) {
            isolated = named;
        }
    }
    let nothing = |isolates: bool| isolates.then(Vec::new);
    PolicyDraft {
        subject: subject.unwrap_or_else(|| all(own)),
        ingress: nothing(isolated[0]),
        egress: nothing(isolated[1]),
    }
}

/// All pods of a namespace, or of the cluster.
fn all(own: Option<&Arc<str>>) -> PodSelector {
    PodSelector {
        namespaces: match own {
            Some(own) => NamespaceScope::Own(Arc::clone(own)),
            None => NamespaceScope::Selected(Selector::default()),
        },
        pods: Selector::default(),
    }
}

fn policy(spec: &mut Object<'_>, own: Option<&Arc<str>>) -> Option<PolicyDraft> {
    spec.ignored(&["description"]);
    spec.unsupported(&[
        "ingressDeny",
        "egressDeny",
        "nodeSelector",
        "enableDefaultDeny",
        "labels",
        "log",
    ]);
    let subject = spec
        .required("endpointSelector")
        .and_then(|field| pods(&field, own, true));
    let ingress = spec.optional("ingress");
    let egress = spec.optional("egress");
    let read = |field: Option<Field<'_>>, way| match field {
        None => Some(None),
        Some(field) => {
            let rules = field.list();
            let rules: Option<Vec<_>> = rules.iter().map(|item| rule(item, way, own)).collect();
            rules.map(Some)
        }
    };
    let (ingress, egress) = (read(ingress, Way::Ingress), read(egress, Way::Egress));
    Some(PolicyDraft {
        subject: subject?,
        ingress: ingress?,
        egress: egress?,
    })
}

/// Reads a selector. In a policy of a namespace it is about pods of that one, and as the selector of peers about those of the
/// namespaces that it names, if it names any.
fn pods(field: &Field<'_>, own: Option<&Arc<str>>, subject: bool) -> Option<PodSelector> {
    let read = selector(field)?;
    if let Some(key) = read.keys().find(|key| {
        let source = key.split_once(':').map(|(source, _)| source);
        source.is_some() && !SOURCES.iter().any(|known| key.starts_with(*known))
    }) {
        field.mistake(format_args!(
            "expected labels of Kubernetes, got `{}`",
            crate::tree::shortened(key)
        ));
        return None;
    }
    if let Some(key) = read.keys().map(bare).find(|key| {
        let known = *key == NAMESPACE || key.starts_with(NAMESPACE_LABELS);
        !known && DERIVED.iter().any(|derived| key.starts_with(derived))
    }) {
        field.mistake(format_args!(
            "`{}` is no label of a pod, and is not supported; expected labels of pods, `{NAMESPACE}` or `{NAMESPACE_LABELS}*`",
            crate::tree::shortened(key)
        ));
        return None;
    }
    let (namespaces, pods) = read.split(|key| {
        let key = bare(key);
        match (key, key.strip_prefix(NAMESPACE_LABELS)) {
            (NAMESPACE, _) => Part::Other(NAMESPACE_NAME.to_owned()),
            (_, Some(label)) => Part::Other(label.to_owned()),
            _ => Part::Own(key.to_owned()),
        }
    });
    let namespaces = match own {
        Some(own) if subject && namespaces.is_some() => {
            field.mistake(format_args!(
                "selects pods of namespace `{own}`, and cannot name another one"
            ));
            return None;
        }
        Some(own) if namespaces.is_none() => NamespaceScope::Own(Arc::clone(own)),
        _ => NamespaceScope::Selected(namespaces.unwrap_or_default()),
    };
    Some(PodSelector { namespaces, pods })
}

/// A key without its source.
fn bare(key: &str) -> &str {
    let known = SOURCES.iter().find_map(|source| key.strip_prefix(*source));
    known.unwrap_or(key)
}

fn rule(field: &Field<'_>, way: Way, own: Option<&Arc<str>>) -> Option<RuleDraft> {
    let mut object = field.object()?;
    object.unsupported(&[
        "authentication",
        "icmps",
        "fromRequires",
        "toRequires",
        "fromGroups",
        "toGroups",
        "fromNodes",
        "toNodes",
        "toFQDNs",
        "toServices",
    ]);
    let [endpoints, entities, cidrs, sets] = match way {
        Way::Ingress => ["fromEndpoints", "fromEntities", "fromCIDR", "fromCIDRSet"],
        Way::Egress => ["toEndpoints", "toEntities", "toCIDR", "toCIDRSet"],
    }
    .map(|name| object.optional(name));
    let ports = object.optional("toPorts");
    object.finish();
    let named = [&endpoints, &entities, &cidrs, &sets];
    let anybody = named.iter().all(|field| field.is_none());
    let mut peers = Vec::new();
    for item in items(&endpoints) {
        peers.push(PeerDraft::Pods(pods(&item, own, false)?));
    }
    for item in items(&entities) {
        peers.extend(entity(&item)?.iter().copied().map(PeerDraft::Entity));
    }
    for item in items(&cidrs) {
        peers.push(PeerDraft::Block(IpBlock {
            cidr: network(&item)?,
            except: Vec::new(),
            outside: true,
        }));
    }
    for item in items(&sets) {
        peers.push(PeerDraft::Block(set(&item)?));
    }
    let ports: Option<Vec<_>> = items(&ports).iter().map(group).collect();
    let ports: Vec<PolicyPort> = ports?.into_iter().flatten().collect();
    Some(RuleDraft {
        declared: field.source().clone(),
        // A rule that says nothing allows nothing; an empty list of ports says nothing.
        peers: (!anybody || ports.is_empty()).then_some(peers),
        ports: (!ports.is_empty()).then_some(ports),
    })
}

fn items<'a>(field: &Option<Field<'a>>) -> Vec<Field<'a>> {
    field.as_ref().map(Field::list).unwrap_or_default()
}

fn entity(field: &Field<'_>) -> Option<&'static [Entity]> {
    const WORDS: [(&str, &[Entity]); 5] = [
        ("host", &[Entity::Host]),
        ("remote-node", &[Entity::RemoteNode]),
        ("world", &[Entity::World]),
        ("cluster", &[Entity::Cluster]),
        ("all", &[Entity::World, Entity::Cluster]),
    ];
    field.choice(&WORDS)
}

fn set(field: &Field<'_>) -> Option<IpBlock> {
    let mut object = field.object()?;
    let cidr = object.required("cidr").and_then(|field| network(&field));
    let parts = object.list("except");
    object.unsupported(&["cidrGroupRef", "cidrGroupSelector"]);
    object.finish();
    let except: Option<Vec<_>> = parts.iter().map(network).collect();
    Some(IpBlock {
        cidr: cidr?,
        except: except?,
        outside: true,
    })
}

/// Ports of an item of `toPorts`, one or more. Of `rules` only the one of HTTP that takes every request is read: it restricts nothing.
fn group(field: &Field<'_>) -> Option<Vec<PolicyPort>> {
    let mut object = field.object()?;
    let ports = object.required("ports").map(|field| field.some_list());
    object.unsupported(&[
        "listener",
        "originatingTLS",
        "terminatingTLS",
        "serverNames",
    ]);
    let rules = object.optional("rules");
    object.finish();
    if let Some(rules) = rules {
        let mut rules = rules.object()?;
        let http = rules.list("http");
        rules.unsupported(&["kafka", "dns", "l7", "l7proto"]);
        rules.finish();
        for rule in http {
            if !rule.entries().is_empty() {
                rule.mistake("restricts requests, which is not supported");
                return None;
            }
        }
    }
    let ports: Option<Vec<_>> = ports?.iter().map(port).collect();
    Some(ports?.into_iter().flatten().collect())
}

/// Transports without a word.
const ANY: &[Transport] = &[Transport::Tcp, Transport::Udp];
const TRANSPORTS: [(&str, &[Transport]); 3] = [
    ("TCP", &[Transport::Tcp]),
    ("UDP", &[Transport::Udp]),
    ("ANY", ANY),
];

/// A port, once for each transport that it means.
fn port(field: &Field<'_>) -> Option<Vec<PolicyPort>> {
    let mut object = field.object()?;
    let number = object.required("port");
    let protocol = object.optional("protocol");
    let last = object.optional("endPort");
    object.finish();
    let transports = match protocol {
        Some(field) => field.choice(&TRANSPORTS)?,
        None => ANY,
    };
    let numbers = field_numbers(&number?, last.as_ref())?;
    let of = |transport: &Transport| PolicyPort {
        transport: *transport,
        numbers: numbers.clone(),
    };
    Some(transports.iter().map(of).collect())
}

fn field_numbers(field: &Field<'_>, last: Option<&Field<'_>>) -> Option<PortNumbers> {
    let text = field.string()?;
    let Ok(number) = text.parse::<u16>() else {
        return field.parse(port_name).map(PortNumbers::Named);
    };
    let Some(first) = Port::new(number) else {
        return Some(PortNumbers::All);
    };
    // Zero is the same as none.
    let last = last.filter(|field| *field.value() != crate::tree::Value::Integer(0));
    let last = match last {
        Some(field) => end(field, first)?,
        None => first,
    };
    Some(PortNumbers::Range { first, last })
}
