//! Names for what the kernel knows as numbers: an agent's, or none.

use std::collections::BTreeMap;
use std::net::IpAddr;

use agent_common::{Identity, address_ip};
use serde::{Deserialize, Serialize};

use crate::activate::Active;
use crate::datapath::{Error, Explainer, RuleSource};

use super::target::{Gate, Place};

/// What an agent calls the things of one generation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    /// The generation; 0 before the first.
    pub generation: u32,
    /// Folder of the node's pins.
    pub bpffs: String,
    /// Pods of the node, of cells or not.
    pub pods: Vec<PodName>,
    /// Every component with its addresses, wherever they are.
    pub components: BTreeMap<String, Vec<IpAddr>>,
    /// What identities mean, by raw number.
    pub identities: BTreeMap<u32, String>,
    /// What rules mean, by number.
    pub rules: BTreeMap<u32, RuleName>,
    /// Addresses that play a gate.
    pub gates: Vec<(Gate, IpAddr)>,
    /// What the next generation waits for, if there is to be one.
    pub waiting: Vec<String>,
}

/// What a rule was made from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleName {
    /// What was declared, such as `public acme/shop/prod/web/site`.
    pub text: String,
    /// File, line and document.
    pub document: String,
    /// The field, such as `spec.egress.south[2]`.
    pub field: String,
}

impl RuleName {
    fn of(rule: &RuleSource) -> Self {
        Self {
            text: rule.text().to_owned(),
            document: rule.document(),
            field: rule.field(),
        }
    }
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodName {
    /// Its host-side interface.
    pub interface: String,
    /// The interface's number.
    pub ifindex: u32,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its component; empty for a pod that is no cell's.
    pub component: String,
}

impl Names {
    /// The names of an active generation, or of one that could be.
    #[must_use]
    pub fn of(active: &Active, bpffs: &str) -> Self {
        let mut names = Self {
            generation: active.generation,
            bpffs: bpffs.to_owned(),
            ..Self::default()
        };
        for pod in &active.discovery.pods {
            names.pods.push(PodName {
                interface: pod.host_ifname.clone(),
                ifindex: pod.ifindex,
                addresses: pod.addresses.clone(),
                component: active
                    .component_of(pod)
                    .map(ToString::to_string)
                    .unwrap_or_default(),
            });
        }
        for component in active
            .snapshot
            .cells
            .values()
            .flat_map(|cell| cell.components.values())
        {
            let addresses = component.workloads.addresses().to_vec();
            names.components.insert(component.id.to_string(), addresses);
        }
        let Some(kernel) = &active.kernel else {
            return names;
        };
        names.rules = kernel
            .rules
            .iter()
            .map(|(number, rule)| (*number, RuleName::of(rule)))
            .collect();
        for (network, owner) in &kernel.identities {
            let address = address_ip(network.address());
            let gate = match owner.identity {
                Identity::NORTH_GATE => Some(Gate::North),
                Identity::WEST_GATE => Some(Gate::West),
                _ => None,
            };
            names.gates.extend(gate.map(|gate| (gate, address)));
            let name = if owner.identity.is_component() {
                active.component_at(&address).map(ToString::to_string)
            } else {
                cidr(owner.identity, address, network.bits())
            };
            if let Some(name) = name {
                names.identities.entry(owner.identity.raw()).or_insert(name);
            }
        }
        names
    }

    /// What the pins alone tell of the active generation: interfaces and addresses, no names.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn from_pins(explainer: &Explainer, bpffs: &str) -> Result<Self, Error> {
        let generation = explainer.active()?;
        let mut names = Self {
            generation,
            bpffs: bpffs.to_owned(),
            ..Self::default()
        };
        let mut addresses: BTreeMap<u32, Vec<IpAddr>> = BTreeMap::new();
        for (address, owner) in explainer.addresses(generation)? {
            match owner.identity() {
                Identity::NORTH_GATE => names.gates.push((Gate::North, address)),
                Identity::WEST_GATE => names.gates.push((Gate::West, address)),
                _ => {}
            }
            if let Some(ifindex) = owner.local_pod() {
                addresses.entry(ifindex).or_default().push(address);
            }
        }
        for pod in explainer.pods(generation)? {
            let name = nix::net::if_::if_indextoname(pod.ifindex)
                .ok()
                .and_then(|name| name.into_string().ok())
                .unwrap_or_default();
            names.pods.push(PodName {
                interface: name,
                ifindex: pod.ifindex,
                addresses: addresses.remove(&pod.ifindex).unwrap_or_default(),
                component: pod.identity.to_string(),
            });
        }
        Ok(names)
    }

    /// What an identity is called.
    #[must_use]
    pub fn identity(&self, identity: Identity) -> String {
        self.identities
            .get(&identity.raw())
            .cloned()
            .unwrap_or_else(|| identity.to_string())
    }

    /// The component that a name means: its last parts, as many as leave no doubt.
    ///
    /// # Errors
    ///
    /// None or several are called so; the message lists what there is.
    pub(super) fn component(&self, name: &str) -> Result<(&str, &[IpAddr]), String> {
        let wanted: Vec<&str> = name.split('/').collect();
        let called = |full: &str| {
            let parts: Vec<&str> = full.split('/').collect();
            match (&wanted[..], &parts[..]) {
                ([component], [_, _, _, last]) => component == last,
                // Environments are left out more often than projects.
                ([project, component], [_, of, _, last]) => project == of && component == last,
                ([..], _) => parts.ends_with(&wanted),
            }
        };
        let found: Vec<_> = self
            .components
            .iter()
            .filter(|(full, _)| called(full))
            .collect();
        match found[..] {
            [(full, addresses)] => Ok((full, addresses)),
            [] => Err(self.unknown(name)),
            [..] => Err(format!(
                "`{name}` is the name of {}: {}",
                found.len(),
                list(found.iter().map(|(full, _)| full.as_str()))
            )),
        }
    }

    fn unknown(&self, name: &str) -> String {
        let of_cell = format!("{name}/");
        let inside: Vec<_> = self
            .components
            .keys()
            .filter(|full| full.starts_with(&of_cell))
            .map(String::as_str)
            .collect();
        if !inside.is_empty() {
            return format!(
                "`{name}` is a cell; name one of its components: {}",
                list(inside.into_iter())
            );
        }
        let pods: Vec<_> = self.pods.iter().map(|pod| pod.interface.as_str()).collect();
        if self.components.is_empty() {
            return format!(
                "nothing is called `{name}`: without an agent there are only addresses and the interfaces {}",
                list(pods.into_iter())
            );
        }
        format!(
            "nothing is called `{name}`; there are the components {} and the interfaces {}",
            list(self.components.keys().map(String::as_str)),
            list(pods.into_iter())
        )
    }

    /// The pod that a place names by interface, or whose address it is.
    pub(super) fn pod_at(&self, place: &Place) -> Option<&PodName> {
        self.pods.iter().find(|pod| match place {
            Place::Name(name) => pod.interface == *name,
            Place::Address(address) => pod.addresses.contains(address),
            Place::Router(_) => false,
        })
    }
}

/// A declared network by its notation; other identities have names of their own.
fn cidr(identity: Identity, address: IpAddr, bits: u32) -> Option<String> {
    let kind = match identity.raw() >> 24 {
        2 => "external",
        3 => "platform",
        _ => return None,
    };
    let bits = match address {
        IpAddr::V4(_) => bits.saturating_sub(96),
        IpAddr::V6(_) => bits,
    };
    Some(format!("{kind} {address}/{bits}"))
}

/// The first few of many.
fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    const SHOWN: usize = 8;
    let names: Vec<_> = names.collect();
    if names.is_empty() {
        return "(none)".to_owned();
    }
    let more = names.len().saturating_sub(SHOWN);
    let mut text = names[..names.len().min(SHOWN)].join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        let mut names = Names::default();
        for name in [
            "acme/shop/prod/web",
            "acme/shop/prod/orders",
            "acme/shop/test/web",
            "acme/bank/prod/ledger",
            "other/bank/prod/web",
        ] {
            names.components.insert(name.into(), Vec::new());
        }
        names
    }

    #[test]
    fn short_names_mean_what_they_can_only_mean() {
        let names = names();
        for (short, full) in [
            ("ledger", "acme/bank/prod/ledger"),
            ("bank/ledger", "acme/bank/prod/ledger"),
            ("orders", "acme/shop/prod/orders"),
            ("shop/test/web", "acme/shop/test/web"),
            ("acme/shop/prod/web", "acme/shop/prod/web"),
        ] {
            assert_eq!(
                names.component(short).map(|(full, _)| full),
                Ok(full),
                "{short}"
            );
        }
    }

    #[test]
    fn what_means_nothing_or_too_much_says_what_there_is() {
        let names = names();
        for (name, part) in [
            ("web", "is the name of 3: acme/shop/prod/web"),
            ("shop/web", "is the name of 2"),
            ("acme/shop/prod", "is a cell; name one of its components"),
            ("shop/nobody", "nothing is called `shop/nobody`; there are"),
        ] {
            let error = names.component(name).expect_err(name);
            assert!(error.contains(part), "{name}: {error}");
        }
        let error = Names::default().component("web").expect_err("no agent");
        assert!(error.contains("without an agent"), "{error}");
    }
}
