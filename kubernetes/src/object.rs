//! One object as the API server has it, without what no document says.
//!
//! Flows in: what the API server sent. Flows out: a document in JSON of the fields that documents have, beside it what the status
//! is merged with. Fields that change all the time and mean nothing here (`managedFields`, heartbeats of nodes, conditions of
//! pods) are left out, so that such a change is none.

use std::fmt;
use std::sync::Arc;

use kube::core::{ApiResource, DynamicObject};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use snapshot::model::ObjectName;
use snapshot::status::ObjectKey;

use crate::kinds::Kind;
use crate::packed::Packed;
use crate::uid::Uid;

/// Which object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; empty for objects of the whole cluster.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.namespace {
            "" => write!(f, "{} {}", self.kind, self.name),
            namespace => write!(f, "{} {namespace}/{}", self.kind, self.name),
        }
    }
}

impl ObjectId {
    /// Its name as documents have it: one without a namespace is in `default`.
    pub(crate) fn object_name(&self) -> Option<ObjectName> {
        let namespace = match &*self.namespace {
            "" => "default",
            namespace => namespace,
        };
        ObjectName::new(namespace, &self.name).ok()
    }

    /// Its key in reports.
    pub(crate) fn key(&self) -> Option<ObjectKey> {
        Some(ObjectKey {
            kind: self.kind.document()?,
            name: self.object_name()?,
        })
    }
}

/// An object.
#[derive(Clone, PartialEq)]
pub struct Object {
    /// Which one.
    pub id: ObjectId,
    /// Its group and version, as it is watched.
    pub api_version: Arc<str>,
    /// Tells it from others that had or will have its name.
    pub uid: Uid,
    /// Counts changes of its spec; 0 for kinds that don't count.
    pub generation: i64,
    /// The document, in JSON.
    pub document: Packed,
    /// What its status says, in JSON; only of kinds that are answered.
    pub status: Option<Packed>,
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A document may hold secrets.
        f.debug_struct("Object")
            .field("id", &self.id)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

/// An object's form on disk.
#[derive(Serialize, Deserialize)]
pub(crate) struct Saved {
    kind: String,
    group: String,
    namespace: String,
    name: String,
    api_version: String,
    uid: String,
    generation: i64,
    document: Box<RawValue>,
    status: Option<Box<RawValue>>,
}

impl Object {
    /// Takes what the API server sent; none if it has no name, which no object of an API server has.
    pub(crate) fn new(kind: Kind, resource: &ApiResource, sent: DynamicObject) -> Option<Self> {
        let meta = sent.metadata;
        let name = meta.name?;
        let namespace = meta.namespace.unwrap_or_default();
        let Value::Object(mut data) = sent.data else {
            return None;
        };
        let status = data.remove("status");
        let mut metadata = Map::new();
        metadata.insert("name".into(), name.as_str().into());
        if !namespace.is_empty() {
            metadata.insert("namespace".into(), namespace.as_str().into());
        }
        if let Some(labels) = meta.labels {
            let labels = labels.into_iter().map(|(key, value)| (key, value.into()));
            metadata.insert("labels".into(), Value::Object(labels.collect()));
        }
        if let Some(created) = meta.creation_timestamp {
            let created = serde_json::to_value(created).ok()?;
            metadata.insert("creationTimestamp".into(), created);
        }
        if let Some(generation) = meta.generation {
            metadata.insert("generation".into(), generation.into());
        }
        let mut document = Map::new();
        document.insert("apiVersion".into(), resource.api_version.as_str().into());
        document.insert("kind".into(), kind.name().into());
        document.insert("metadata".into(), Value::Object(metadata));
        document.extend(used(kind, data, status.as_ref()));
        Some(Self {
            id: ObjectId {
                kind,
                namespace: namespace.into(),
                name: name.into(),
            },
            api_version: resource.api_version.as_str().into(),
            uid: meta.uid.unwrap_or_default().as_str().into(),
            generation: meta.generation.unwrap_or_default(),
            document: Value::Object(document).to_string().as_bytes().into(),
            status: status
                .filter(|_| kind.is_answered())
                .map(|status| status.to_string().as_bytes().into()),
        })
    }

    /// What its status says.
    pub(crate) fn status(&self) -> Option<Value> {
        let status = self.status.as_ref()?.text();
        // It was written from a value here, or read from disk as JSON.
        serde_json::from_slice(&status).ok()
    }

    /// The same as `other`, whose memory it then shares.
    pub(crate) fn sharing(mut self, other: &Self) -> Self {
        if self.document == other.document {
            self.document.clone_from(&other.document);
        }
        if self.status == other.status {
            self.status.clone_from(&other.status);
        }
        self
    }

    /// The same beside `neighbour`: objects that follow each other are of one namespace mostly, and those that were made together
    /// are nearly alike and have statuses that say the same.
    pub(crate) fn beside(mut self, neighbour: &Self) -> Self {
        if self.id.namespace == neighbour.id.namespace {
            self.id.namespace = Arc::clone(&neighbour.id.namespace);
        }
        if self.api_version == neighbour.api_version {
            self.api_version = Arc::clone(&neighbour.api_version);
        }
        // A key that is gone must not stay as the pattern of another one.
        if self.id.kind == neighbour.id.kind && self.id.kind != Kind::Secret {
            self.document = self.document.beside(&neighbour.document);
        }
        if self.status == neighbour.status {
            self.status.clone_from(&neighbour.status);
        } else if let Some(beside) = &neighbour.status {
            self.status = self.status.map(|status| status.beside(beside));
        }
        self
    }

    /// Whether both say the same document.
    #[must_use]
    pub fn same_document(&self, other: &Self) -> bool {
        self.document.is(&other.document)
            && self.uid == other.uid
            && self.generation == other.generation
    }

    pub(crate) fn save(&self) -> serde_json::Result<Saved> {
        Ok(Saved {
            kind: self.id.kind.name().to_owned(),
            group: self.id.kind.group().to_owned(),
            namespace: self.id.namespace.to_string(),
            name: self.id.name.to_string(),
            api_version: self.api_version.to_string(),
            uid: self.uid.to_string(),
            generation: self.generation,
            document: serde_json::from_slice(&self.document.text())?,
            status: self
                .status
                .as_ref()
                .map(|status| serde_json::from_slice(&status.text()))
                .transpose()?,
        })
    }
}

impl Saved {
    /// None for a kind that another version of the agent knew.
    pub(crate) fn object(self) -> Option<Object> {
        Some(Object {
            id: ObjectId {
                kind: Kind::find(&self.group, &self.kind)?,
                namespace: self.namespace.into(),
                name: self.name.into(),
            },
            api_version: self.api_version.into(),
            uid: self.uid.as_str().into(),
            generation: self.generation,
            document: self.document.get().as_bytes().into(),
            status: self.status.map(|status| status.get().as_bytes().into()),
        })
    }
}

/// The fields beside `metadata` that a document of this kind has.
fn used(kind: Kind, data: Map<String, Value>, status: Option<&Value>) -> Map<String, Value> {
    let fields: &[&str] = match kind {
        Kind::Namespace => &[],
        Kind::Pod => &["spec.nodeName", "spec.hostNetwork"],
        Kind::Node => &["spec.podCIDRs", "spec.podCIDR"],
        Kind::Service => &[
            "spec.type",
            "spec.clusterIP",
            "spec.clusterIPs",
            "spec.ipFamilies",
            "spec.ports",
            "spec.sessionAffinity",
            "spec.sessionAffinityConfig",
            "spec.internalTrafficPolicy",
            "spec.healthCheckNodePort",
        ],
        Kind::EndpointSlice => &["addressType", "endpoints", "ports"],
        Kind::Secret => &["type", "data"],
        Kind::ConfigMap => &[
            "data.ca.crt",
            "data.ca.crl",
            "binaryData.ca.crt",
            "binaryData.ca.crl",
        ],
        _ => {
            let mut kept = data;
            if kind == Kind::Gateway {
                // The record of the addresses that it was given.
                copy_status(&["addresses"], status, &mut kept);
            }
            return kept;
        }
    };
    let mut kept = Map::new();
    for field in fields {
        copy(field, &data, &mut kept);
    }
    match kind {
        Kind::Pod => {
            named_ports(&data, &mut kept);
            copy_status(&["podIPs", "podIP", "phase"], status, &mut kept);
        }
        Kind::Node => copy_status(&["addresses"], status, &mut kept),
        Kind::Service => copy_status(&["loadBalancer"], status, &mut kept),
        Kind::EndpointSlice => slim(&mut kept),
        _ => {}
    }
    kept
}

/// Copies `outer.inner` or `field`; what follows the first dot is one key.
fn copy(field: &str, from: &Map<String, Value>, to: &mut Map<String, Value>) {
    match field.split_once('.') {
        None => {
            if let Some(value) = from.get(field) {
                to.insert(field.to_owned(), value.clone());
            }
        }
        Some((outer, inner)) => {
            if let Some(value) = from.get(outer).and_then(|value| value.get(inner)) {
                nested(outer, to).insert(inner.to_owned(), value.clone());
            }
        }
    }
}

fn copy_status(fields: &[&str], status: Option<&Value>, to: &mut Map<String, Value>) {
    for field in fields {
        if let Some(value) = status.and_then(|status| status.get(field)) {
            nested("status", to).insert((*field).to_owned(), value.clone());
        }
    }
}

fn nested<'a>(key: &str, to: &'a mut Map<String, Value>) -> &'a mut Map<String, Value> {
    let value = to
        .entry(key)
        .or_insert_with(|| Value::Object(Map::default()));
    value.as_object_mut().expect("only mappings are nested")
}

/// Of a pod's containers nothing but their ports that have names: network policies may use these.
fn named_ports(pod: &Map<String, Value>, kept: &mut Map<String, Value>) {
    for list in ["containers", "initContainers"] {
        let containers = pod.get("spec").and_then(|spec| spec.get(list));
        let ports: Vec<Value> = containers
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|container| container.get("ports").and_then(Value::as_array))
            .flatten()
            .filter(|port| port.get("name").is_some())
            .map(|port| {
                let mut one = Map::new();
                for field in ["name", "containerPort", "protocol"] {
                    if let Some(value) = port.get(field) {
                        one.insert(field.to_owned(), value.clone());
                    }
                }
                Value::Object(one)
            })
            .collect();
        if !ports.is_empty() {
            let container = serde_json::json!([{ "ports": ports }]);
            nested("spec", kept).insert(list.to_owned(), container);
        }
    }
}

/// Of an endpoint who it is called and which pod it is says nothing about where it is.
fn slim(slice: &mut Map<String, Value>) {
    let endpoints = slice.get_mut("endpoints").and_then(Value::as_array_mut);
    for endpoint in endpoints.into_iter().flatten() {
        if let Some(endpoint) = endpoint.as_object_mut() {
            for field in ["targetRef", "deprecatedTopology", "hostname"] {
                endpoint.remove(field);
            }
        }
    }
    // `null` stands for an empty list.
    for list in ["endpoints", "ports"] {
        if slice.get(list).is_some_and(Value::is_null) {
            slice.insert(list.to_owned(), Value::Array(Vec::new()));
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
    use serde_json::{Value, json};

    use super::Object;
    use crate::kinds::Kind;

    fn taken(kind: Kind, version: &str, sent: Value) -> Object {
        let resource =
            ApiResource::from_gvk(&GroupVersionKind::gvk(kind.group(), version, kind.name()));
        let sent: DynamicObject = serde_json::from_value(sent).expect("an object");
        Object::new(kind, &resource, sent).expect("it has a name")
    }

    #[test]
    fn a_pod_is_its_labels_and_addresses() {
        let pod = |reason: &str| {
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {
                    "name": "web-1", "namespace": "shop", "labels": {"app": "web"}, "resourceVersion": "77",
                    "annotations": {"a": "b"}, "managedFields": [{"manager": "kubelet"}], "uid": "u",
                    "creationTimestamp": "2026-11-27T00:00:00Z"
                },
                "spec": {"nodeName": "node-1", "containers": [{"name": "c", "env": [{"name": "PASSWORD", "value": "x"}]}]},
                "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.7"}], "conditions": [{"type": reason}]}
            })
        };
        let ready = taken(Kind::Pod, "v1", pod("Ready"));
        let document: Value = serde_json::from_slice(&ready.document.text()).expect("JSON");
        assert_eq!(
            document,
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {
                    "name": "web-1", "namespace": "shop", "labels": {"app": "web"},
                    "creationTimestamp": "2026-11-27T00:00:00Z"
                },
                "spec": {"nodeName": "node-1"},
                "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.7"}]}
            })
        );
        assert_eq!(ready.status, None);
        let other = taken(Kind::Pod, "v1", pod("Initialized")).sharing(&ready);
        assert!(other.same_document(&ready));
    }

    #[test]
    fn a_route_keeps_its_spec_and_its_status_apart() {
        let route = taken(
            Kind::HttpRoute,
            "v1",
            json!({
                "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
                "metadata": {"name": "r", "namespace": "n", "generation": 3, "uid": "u"},
                "spec": {"rules": []},
                "status": {"parents": []}
            }),
        );
        let document: Value = serde_json::from_slice(&route.document.text()).expect("JSON");
        assert_eq!(document["spec"], json!({"rules": []}));
        assert_eq!(document["metadata"]["generation"], json!(3));
        assert_eq!(document.get("status"), None);
        assert_eq!(route.status(), Some(json!({"parents": []})));
        assert_eq!(route.generation, 3);
        let saved = serde_json::to_string(&route.save().expect("saved")).expect("JSON");
        let back: super::Saved = serde_json::from_str(&saved).expect("reads");
        assert_eq!(back.object(), Some(route));
    }

    #[test]
    fn a_gateway_keeps_the_addresses_that_it_was_given() {
        let status =
            json!({"addresses": [{"type": "IPAddress", "value": "10.0.0.1"}], "listeners": []});
        let sent = json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "g", "namespace": "n"},
            "spec": {"gatewayClassName": "c"}, "status": status
        });
        let gateway = taken(Kind::Gateway, "v1", sent);
        let document: Value = serde_json::from_slice(&gateway.document.text()).expect("JSON");
        assert_eq!(
            document["status"],
            json!({"addresses": [{"type": "IPAddress", "value": "10.0.0.1"}]})
        );
        assert_eq!(gateway.status(), Some(status));
    }

    #[test]
    fn of_config_maps_only_what_is_said_of_authorities_is_kept() {
        let map = taken(
            Kind::ConfigMap,
            "v1",
            json!({
                "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m", "namespace": "n"},
                "data": {"ca.crt": "PEM", "settings.yaml": "large"},
                "binaryData": {"ca.crl": "UEVN", "image": "large"}
            }),
        );
        let document: Value = serde_json::from_slice(&map.document.text()).expect("JSON");
        assert_eq!(document["data"], json!({"ca.crt": "PEM"}));
        assert_eq!(document["binaryData"], json!({"ca.crl": "UEVN"}));
    }
}
