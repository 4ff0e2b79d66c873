//! Keeps the `Service`s of type `LoadBalancer` that gateways need, as the one agent that writes status.
//!
//! Flows in: the services that linking asks for, and those that are there. Flows out: an apply for each that is not as it should be, and a
//! deletion for each whose gateway needs none any more. They are in the agents' own namespace, since they select the agents' pods,
//! and are told from others by a label. Their class owns them, so that they go with it also when no agent is there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Map, Value, json};
use snapshot::model::{ObjectName, Transport};
use snapshot::status::LoadBalancer;
use tokio::time::timeout;

use crate::error::explain;
use crate::kinds::Kind;
use crate::object::{Object, ObjectId};
use crate::packed::Packed;
use crate::status::Outcome;
use crate::store::Objects;

/// Until the API server must answer.
const ANSWER: Duration = Duration::from_secs(10);
/// Who applies.
const MANAGER: &str = "cardinal-agent";
/// The label by which the services are known, and the gateway's name and namespace (GEP-1762 has the first two).
const GATEWAY: &str = "gateway.networking.k8s.io/gateway-name";
const CLASS: &str = "gateway.networking.k8s.io/gateway-class-name";
const NAMESPACE: &str = "cardinal.dev/gateway-namespace";
const MANAGED: &str = "app.kubernetes.io/managed-by";

/// What was applied last, over which document.
type Applied = (Value, Option<Packed>);

/// The services of gateways.
pub(crate) struct Balancers {
    client: Client,
    applied: BTreeMap<ObjectName, Applied>,
}

impl Balancers {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            client,
            applied: BTreeMap::new(),
        }
    }

    /// Forgets what was applied: another agent may have changed it.
    pub(crate) fn forget(&mut self) {
        self.applied.clear();
    }

    /// Makes them what they should be; whether they are.
    pub(crate) async fn keep(&mut self, outcome: &Outcome, now: &Objects) -> bool {
        // What is not known to be needed no more stays.
        let Some(wanted) = &outcome.report.load_balancers else {
            return true;
        };
        let own = self.client.default_namespace().to_owned();
        self.applied.retain(|name, _| wanted.contains_key(name));
        let mut done = true;
        let to_apply = wanted.iter();
        let to_apply = to_apply.filter_map(|(name, one)| Some((name, one.as_ref()?)));
        for (name, balancer) in to_apply {
            if name.namespace() != own {
                tracing::warn!(
                    service = %name,
                    agents = own,
                    "the service of a gateway is not in the agents' namespace; `spec.gateways.loadBalancer.namespace` of the `Platform` names it"
                );
                continue;
            }
            let found = now.get(&id(name)).map(|one| one.document.clone());
            let manifest = manifest(name, balancer, class(now, &balancer.gateway_class));
            let state = (manifest, found);
            if self.applied.get(name) == Some(&state) {
                continue;
            }
            let told = self.apply(name, &state.0).await;
            done &= told;
            if told {
                self.applied.insert(name.clone(), state);
            }
        }
        if outcome.seen.kept {
            return done;
        }
        for object in ours(now, &own) {
            let Some(name) = object.id.object_name() else {
                continue;
            };
            if !wanted.contains_key(&name) {
                done &= self.delete(&name).await;
            }
        }
        done
    }

    fn api(&self, name: &ObjectName) -> Api<Service> {
        Api::namespaced(self.client.clone(), name.namespace())
    }

    async fn apply(&self, name: &ObjectName, manifest: &Value) -> bool {
        let params = PatchParams::apply(MANAGER).force();
        let patch = Patch::Apply(manifest);
        let api = self.api(name);
        let applied = timeout(ANSWER, api.patch(name.name(), &params, &patch)).await;
        settled(name, applied.map(|answer| answer.map(drop)))
    }

    async fn delete(&self, name: &ObjectName) -> bool {
        let params = DeleteParams::default();
        let api = self.api(name);
        let deleted = timeout(ANSWER, api.delete(name.name(), &params)).await;
        settled(name, deleted.map(|answer| answer.map(drop)))
    }
}

/// Says what went wrong, if anything did.
fn settled(
    name: &ObjectName,
    answer: Result<Result<(), kube::Error>, tokio::time::error::Elapsed>,
) -> bool {
    let why = match answer {
        Ok(Ok(())) => return true,
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => return true,
        Ok(Err(error)) => explain(&error),
        Err(_) => "no answer in time".to_owned(),
    };
    tracing::warn!(service = %name, error = why, "the service of a gateway could not be brought up to date");
    false
}

fn id(name: &ObjectName) -> ObjectId {
    ObjectId {
        kind: Kind::Service,
        namespace: name.namespace().into(),
        name: name.name().into(),
    }
}

/// The uid of a class.
fn class(now: &Objects, name: &str) -> Option<String> {
    let id = ObjectId {
        kind: Kind::GatewayClass,
        namespace: "".into(),
        name: name.into(),
    };
    now.get(&id).map(|class| class.uid.to_string())
}

/// Services of the agents' namespace that were made here.
fn ours<'a>(now: &'a Objects, own: &'a str) -> impl Iterator<Item = &'a Arc<Object>> {
    let first = ObjectId {
        kind: Kind::Service,
        namespace: own.into(),
        name: "".into(),
    };
    let all = now.range(first..).map(|(_, object)| object);
    let of_namespace =
        all.take_while(move |one| one.id.kind == Kind::Service && *one.id.namespace == *own);
    of_namespace.filter(|one| {
        let document: Value = match serde_json::from_slice(&one.document.text()) {
            Ok(document) => document,
            // What cannot be read is nothing to take away.
            Err(error) => {
                tracing::error!(service = one.id.name.as_ref(), %error, "a kept object is no JSON");
                return false;
            }
        };
        let labels = &document["metadata"]["labels"];
        labels[MANAGED] == MANAGER && labels[GATEWAY].is_string() && labels[NAMESPACE].is_string()
    })
}

/// What is applied.
fn manifest(name: &ObjectName, balancer: &LoadBalancer, class: Option<String>) -> Value {
    let mut labels: Map<String, Value> = Map::new();
    for (key, value) in &balancer.labels {
        labels.insert(key.clone(), value.as_str().into());
    }
    for (key, value) in [
        (MANAGED, MANAGER),
        (GATEWAY, balancer.gateway.name()),
        (NAMESPACE, balancer.gateway.namespace()),
        (CLASS, &balancer.gateway_class),
    ] {
        labels.insert(key.to_owned(), value.into());
    }
    let ports = balancer.ports.iter().map(|one| {
        let (word, protocol) = match one.transport {
            Transport::Tcp => ("tcp", "TCP"),
            Transport::Udp => ("udp", "UDP"),
        };
        let mut port = json!({
            "name": format!("{word}-{}", one.port),
            "port": one.port.get(),
            "protocol": protocol,
        });
        // Where agents listen for it; the cluster tells with its answer to the first time.
        if let Some(target) = one.target {
            port["targetPort"] = target.get().into();
        }
        port
    });
    let mut spec = json!({
        "type": "LoadBalancer",
        "selector": { "app.kubernetes.io/name": "cardinal-agent" },
        "externalTrafficPolicy": if balancer.local { "Local" } else { "Cluster" },
        "ports": ports.collect::<Vec<_>>(),
    });
    if let Some(class) = &balancer.class {
        spec["loadBalancerClass"] = class.as_str().into();
    }
    let mut metadata = json!({
        "name": name.name(),
        "namespace": name.namespace(),
        "labels": labels,
        "annotations": balancer.annotations,
    });
    if let Some(uid) = class {
        metadata["ownerReferences"] = json!([{
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "GatewayClass",
            "name": balancer.gateway_class,
            "uid": uid,
        }]);
    }
    json!({ "apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::num::NonZeroU16;

    use snapshot::model::{ObjectName, Transport};
    use snapshot::status::{BalancedPort, LoadBalancer};

    use super::manifest;

    #[test]
    fn a_service_says_whose_it_is_and_where_agents_listen() {
        let port = |number| NonZeroU16::new(number).expect("a port");
        let name = |namespace, name| ObjectName::new(namespace, name).expect("a name");
        let balancer = LoadBalancer {
            gateway: name("shop", "web"),
            gateway_class: "edge".to_owned(),
            class: Some("tailscale".to_owned()),
            // Nobody takes the labels away by which it is known.
            labels: BTreeMap::from([
                ("team".to_owned(), "a".to_owned()),
                ("app.kubernetes.io/managed-by".to_owned(), "b".to_owned()),
            ]),
            annotations: BTreeMap::from([("tailscale.com/hostname".to_owned(), "web".to_owned())]),
            local: true,
            ports: vec![
                BalancedPort {
                    port: port(443),
                    transport: Transport::Tcp,
                    target: Some(port(30_443)),
                },
                BalancedPort {
                    port: port(443),
                    transport: Transport::Udp,
                    target: None,
                },
            ],
        };
        let manifest = manifest(
            &name("agents", "gateway-x"),
            &balancer,
            Some("u".to_owned()),
        );
        assert_eq!(
            manifest,
            serde_json::json!({
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {
                    "name": "gateway-x",
                    "namespace": "agents",
                    "labels": {
                        "team": "a",
                        "app.kubernetes.io/managed-by": "cardinal-agent",
                        "gateway.networking.k8s.io/gateway-name": "web",
                        "gateway.networking.k8s.io/gateway-class-name": "edge",
                        "cardinal.dev/gateway-namespace": "shop",
                    },
                    "annotations": { "tailscale.com/hostname": "web" },
                    "ownerReferences": [{
                        "apiVersion": "gateway.networking.k8s.io/v1",
                        "kind": "GatewayClass",
                        "name": "edge",
                        "uid": "u",
                    }],
                },
                "spec": {
                    "type": "LoadBalancer",
                    "loadBalancerClass": "tailscale",
                    "externalTrafficPolicy": "Local",
                    "selector": { "app.kubernetes.io/name": "cardinal-agent" },
                    "ports": [
                        { "name": "tcp-443", "port": 443, "protocol": "TCP", "targetPort": 30_443 },
                        { "name": "udp-443", "port": 443, "protocol": "UDP" },
                    ],
                },
            })
        );
    }
}
