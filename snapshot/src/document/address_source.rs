//! Where gateways that name no address get theirs (`spec.gateways` of the `Platform`).

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::reader::{Field, Object};

/// The namespace that `deploy/` puts the agents in.
const AGENTS: &str = "cardinal-system";

/// Where the addresses of gateways are from, by their class.
#[derive(Default)]
pub(crate) struct AddressSources {
    usual: AddressSource,
    classes: BTreeMap<String, AddressSource>,
}

/// Where addresses are from.
#[derive(Clone, Default)]
pub(crate) enum AddressSource {
    /// Networks of the platform.
    #[default]
    Pools,
    /// The nodes' own.
    Nodes,
    /// Whoever gives a `Service` of type `LoadBalancer` its address.
    LoadBalancer(Arc<LoadBalancerDraft>),
}

/// What the `Service` of a gateway is like.
pub(crate) struct LoadBalancerDraft {
    /// Its `loadBalancerClass`; none: the cluster's usual one.
    pub(crate) class: Option<String>,
    pub(crate) annotations: BTreeMap<String, String>,
    /// Nodes bring what comes to them to their own agents only, and leave the client's address as it is.
    pub(crate) local: bool,
    /// The agents' namespace.
    pub(crate) namespace: String,
}

impl AddressSources {
    /// The one of a class of gateways.
    pub(crate) fn of(&self, class: &str) -> &AddressSource {
        self.classes.get(class).unwrap_or(&self.usual)
    }
}

/// Reads the fields of `spec.gateways`.
pub(crate) fn read(gateways: &mut Object<'_>) -> AddressSources {
    let usual = source(gateways).unwrap_or_default();
    let mut classes = BTreeMap::new();
    for item in gateways.list("classes") {
        let Some(mut object) = item.object() else {
            continue;
        };
        let name = object.required("name");
        let source = source(&mut object);
        object.finish();
        let Some((field, name)) = name.and_then(|field| Some((field.some_string()?, field))) else {
            continue;
        };
        if classes
            .insert(field.to_owned(), source.unwrap_or_default())
            .is_some()
        {
            name.mistake(format_args!("class `{field}` is in the list already"));
        }
    }
    AddressSources { usual, classes }
}

/// `addresses` and what goes with it.
fn source(object: &mut Object<'_>) -> Option<AddressSource> {
    let balancer = object.optional("loadBalancer");
    let draft = balancer.as_ref().map(load_balancer);
    let choices = [("Pools", false), ("Nodes", false), ("LoadBalancer", true)];
    let field = object.optional("addresses");
    let balanced = match &field {
        Some(field) => field.choice(&choices)?,
        None => false,
    };
    if balanced {
        let draft = draft.unwrap_or_else(|| Some(LoadBalancerDraft::default()));
        return Some(AddressSource::LoadBalancer(draft?.into()));
    }
    if let Some(balancer) = balancer {
        balancer.mistake("needs `addresses: LoadBalancer`");
    }
    match field?.value().text() {
        Some("Nodes") => Some(AddressSource::Nodes),
        _ => Some(AddressSource::Pools),
    }
}

impl Default for LoadBalancerDraft {
    fn default() -> Self {
        Self {
            class: None,
            annotations: BTreeMap::new(),
            local: true,
            namespace: AGENTS.to_owned(),
        }
    }
}

fn load_balancer(field: &Field<'_>) -> Option<LoadBalancerDraft> {
    let mut object = field.object()?;
    let class = object.optional("class").map(|field| field.some_string());
    let annotations = super::texts(object.optional("annotations"));
    let local = object
        .optional("externalTrafficPolicy")
        .map(|field| field.choice(&[("Local", true), ("Cluster", false)]));
    let namespace = object
        .optional("namespace")
        .map(|field| field.some_string());
    object.finish();
    let usual = LoadBalancerDraft::default();
    Some(LoadBalancerDraft {
        class: match class {
            Some(class) => Some(class?.to_owned()),
            None => None,
        },
        annotations,
        local: match local {
            Some(local) => local?,
            None => usual.local,
        },
        namespace: match namespace {
            Some(namespace) => namespace?.to_owned(),
            None => usual.namespace,
        },
    })
}
