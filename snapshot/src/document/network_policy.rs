//! `NetworkPolicy` of Kubernetes: by whom pods may be called, and whom they may call.
//!
//! Flows in: a `spec`. Flows out: a [`PolicyDraft`], which [`cilium`] has in common. What cannot be read closes: a policy with
//! a mistake isolates the pods that it selects and allows nothing ([`closed`]).

use std::sync::Arc;

use super::Meta;
use super::addresses::network;
use super::selector::{Selector, selector};
use crate::model::{Cidr, CidrError, Entity, IpBlock, PolicyPort, Port, PortNumbers, Transport};
use crate::reader::{Field, Object};
use crate::report::Source;

pub(crate) mod cilium;

/// Characters of a port's name (RFC 6335, section 5.1).
const LONGEST_PORT_NAME: usize = 15;

/// A policy whose selectors are not resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PolicyDraft {
    /// The pods that it isolates.
    pub(crate) subject: PodSelector,
    /// Rules of a direction in which it isolates them; none: it does not.
    pub(crate) ingress: Option<Vec<RuleDraft>>,
    pub(crate) egress: Option<Vec<RuleDraft>>,
}

/// Pods by their labels and those of their namespaces.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PodSelector {
    pub(crate) namespaces: NamespaceScope,
    pub(crate) pods: Selector,
}

/// Namespaces of pods.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum NamespaceScope {
    /// This one.
    Own(Arc<str>),
    /// Those with such labels.
    Selected(Selector),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RuleDraft {
    pub(crate) declared: Source,
    /// None: anybody.
    pub(crate) peers: Option<Vec<PeerDraft>>,
    /// None: everything.
    pub(crate) ports: Option<Vec<PolicyPort>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PeerDraft {
    Pods(PodSelector),
    Block(IpBlock),
    Entity(Entity),
}

/// Which way connections go, seen from the pods that a policy selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Ingress,
    Egress,
}

impl Way {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "Ingress",
            Self::Egress => "Egress",
        }
    }

    /// The field of a rule that names the other side.
    fn peers(self) -> &'static str {
        match self {
            Self::Ingress => "from",
            Self::Egress => "to",
        }
    }
}

/// Reads the `spec`.
pub(crate) fn read(spec: &mut Object<'_>, meta: &Meta) -> Option<PolicyDraft> {
    let own: Arc<str> = meta.name.namespace().into();
    let pods = match spec.optional("podSelector") {
        Some(field) => selector(&field),
        None => Some(Selector::default()),
    };
    let types = spec.optional("policyTypes");
    let ingress = spec.optional("ingress");
    let egress = spec.optional("egress");
    let ways = ways(types.as_ref(), egress.as_ref());
    let read = |field: Option<Field<'_>>, way: Way| {
        let rules = field.as_ref().map(|field| (field, field.list()));
        let rules = rules.map(|(field, items)| {
            let rules = items.iter().map(|item| rule(item, way, &own));
            (field, rules.collect::<Option<Vec<_>>>())
        });
        let isolates = ways.as_ref()?.contains(&way);
        match rules {
            Some((field, rules)) => {
                if !isolates {
                    field.warning(format_args!(
                        "has no effect without `{}` in `policyTypes`",
                        way.as_str()
                    ));
                    return Some(None);
                }
                Some(Some(rules?))
            }
            None => Some(isolates.then(Vec::new)),
        }
    };
    let (ingress, egress) = (read(ingress, Way::Ingress), read(egress, Way::Egress));
    Some(PolicyDraft {
        subject: PodSelector {
            pods: pods?,
            namespaces: NamespaceScope::Own(own),
        },
        ingress: ingress?,
        egress: egress?,
    })
}

/// What is left of a policy with mistakes: it isolates whom it selects, as far as that can be read, and allows nothing. Where
/// the pods cannot be read, that is all of its namespace; where the directions cannot, both.
pub(super) fn closed(spec: Option<&mut Object<'_>>, meta: &Meta) -> PolicyDraft {
    let mut pods = Selector::default();
    let mut isolated = vec![Way::Ingress, Way::Egress];
    if let Some(spec) = spec {
        let selected = spec.optional("podSelector");
        pods = selected
            .and_then(|field| selector(&field))
            .unwrap_or_default();
        let types = spec.optional("policyTypes");
        let egress = spec.optional("egress");
        if let Some(ways) = ways(types.as_ref(), egress.as_ref()) {
            isolated = ways;
        }
    }
    let nothing = |way| isolated.contains(&way).then(Vec::new);
    PolicyDraft {
        subject: PodSelector {
            namespaces: NamespaceScope::Own(meta.name.namespace().into()),
            pods,
        },
        ingress: nothing(Way::Ingress),
        egress: nothing(Way::Egress),
    }
}

/// Directions in which the policy isolates. Without `policyTypes` that is ingress, and egress if there are rules for it
/// (Kubernetes, `NetworkPolicySpec.policyTypes`).
fn ways(types: Option<&Field<'_>>, egress: Option<&Field<'_>>) -> Option<Vec<Way>> {
    let items = types.map(Field::list).unwrap_or_default();
    if items.is_empty() {
        let mut ways = vec![Way::Ingress];
        if egress.is_some_and(|field| !field.list().is_empty()) {
            ways.push(Way::Egress);
        }
        return Some(ways);
    }
    let choices = [Way::Ingress, Way::Egress].map(|way| (way.as_str(), way));
    items.iter().map(|item| item.choice(&choices)).collect()
}

fn rule(field: &Field<'_>, way: Way, own: &Arc<str>) -> Option<RuleDraft> {
    let mut object = field.object()?;
    let peers = object.list(way.peers());
    let ports = object.list("ports");
    object.finish();
    let peers: Option<Vec<PeerDraft>> = match peers.as_slice() {
        [] => None,
        some => Some(
            some.iter()
                .map(|item| peer(item, own))
                .collect::<Option<_>>()?,
        ),
    };
    let ports = match ports.as_slice() {
        [] => None,
        some => {
            let read: Option<Vec<Option<PolicyPort>>> = some.iter().map(port).collect();
            Some(read?.into_iter().flatten().collect())
        }
    };
    Some(RuleDraft {
        declared: field.source().clone(),
        peers,
        ports,
    })
}

fn peer(field: &Field<'_>, own: &Arc<str>) -> Option<PeerDraft> {
    let mut object = field.object()?;
    let pods = object.optional("podSelector");
    let namespaces = object.optional("namespaceSelector");
    let block = object.optional("ipBlock");
    object.finish();
    if let Some(block) = block {
        if pods.is_some() || namespaces.is_some() {
            field.mistake("expected either `ipBlock` or selectors, got both");
            return None;
        }
        return ip_block(&block).map(PeerDraft::Block);
    }
    if pods.is_none() && namespaces.is_none() {
        field.mistake("expected `podSelector`, `namespaceSelector` or `ipBlock`");
        return None;
    }
    let read = |field: Option<Field<'_>>| match field {
        Some(field) => Some(Some(selector(&field)?)),
        None => Some(None),
    };
    let (pods, namespaces) = (read(pods), read(namespaces));
    Some(PeerDraft::Pods(PodSelector {
        pods: pods?.unwrap_or_default(),
        namespaces: match namespaces? {
            Some(selector) => NamespaceScope::Selected(selector),
            None => NamespaceScope::Own(Arc::clone(own)),
        },
    }))
}

fn ip_block(field: &Field<'_>) -> Option<IpBlock> {
    let mut object = field.object()?;
    let cidr = object
        .required("cidr")
        .and_then(|field| block_network(&field));
    let parts = object.list("except");
    object.finish();
    let mut except = Vec::new();
    for part in parts {
        let network = block_network(&part)?;
        if let Some(cidr) = cidr
            && (!cidr.contains(&network) || cidr == network)
        {
            part.mistake(format_args!("expected a network inside of `{cidr}`"));
        }
        except.push(network);
    }
    except.sort_unstable();
    except.dedup();
    Some(IpBlock {
        cidr: cidr?,
        except,
        outside: false,
    })
}

/// A network as Kubernetes takes it: bits behind the prefix mean nothing.
fn block_network(field: &Field<'_>) -> Option<Cidr> {
    if let Some(text) = field.value().text()
        && let Err(CidrError::HostBits { canonical, .. }) = text.parse::<Cidr>()
    {
        field.warning(format_args!(
            "has host bits set; it is read as `{canonical}`"
        ));
        return canonical.parse().ok();
    }
    network(field)
}

/// A port; the inner one is none where it is one of SCTP, which no rule of the kernel's tables is about: such a port allows
/// nothing, and its rule stays.
fn port(field: &Field<'_>) -> Option<Option<PolicyPort>> {
    let mut object = field.object()?;
    let protocol = object.optional("protocol");
    let number = object.optional("port");
    let last = object.optional("endPort");
    object.finish();
    let transport = match &protocol {
        Some(field) => field.choice(&[
            ("TCP", Some(Transport::Tcp)),
            ("UDP", Some(Transport::Udp)),
            ("SCTP", None),
        ])?,
        None => Some(Transport::Tcp),
    };
    let numbers = match (number, last) {
        (None, None) => PortNumbers::All,
        (None, Some(last)) => {
            last.mistake("has no meaning without `port`");
            return None;
        }
        (Some(field), last) if field.value().text().is_some() => {
            if let Some(last) = last {
                last.mistake("has no meaning where `port` is a name");
                return None;
            }
            PortNumbers::Named(field.parse(port_name)?)
        }
        (Some(field), last) => {
            let first = field.port()?;
            let last = match last {
                Some(field) => end(&field, first)?,
                None => first,
            };
            PortNumbers::Range { first, last }
        }
    };
    let Some(transport) = transport else {
        field.warning("SCTP is not supported: this port allows nothing");
        return Some(None);
    };
    Some(Some(PolicyPort { transport, numbers }))
}

fn end(field: &Field<'_>, first: Port) -> Option<Port> {
    let last = field.port()?;
    if last < first {
        field.mistake(format_args!("expected a port from {first} on, got {last}"));
        return None;
    }
    Some(last)
}

/// A port's name (RFC 6335, section 5.1).
fn port_name(text: &str) -> Result<Arc<str>, String> {
    let bytes = text.as_bytes();
    let good = text.len() <= LONGEST_PORT_NAME
        && bytes
            .iter()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && bytes.iter().any(u8::is_ascii_lowercase)
        && !text.starts_with('-')
        && !text.ends_with('-')
        && !text.contains("--");
    match good {
        true => Ok(text.into()),
        false => Err(format!(
            "expected a port, 1 to 65535 without quotes, or the name of one such as `http`, got `{}`",
            crate::tree::shortened(text)
        )),
    }
}
