//! Keeps the `Service`s of type `LoadBalancer` that gateways need, as the one agent that writes status.
//!
//! Flows in: the services that linking asks for, and those that are there. Flows out: an apply for each that is not as it should be, and a
//! deletion for each whose gateway needs none any more. They are in the agents' own namespace, since they select the agents' pods,
//! and are told from others by a label. Their class owns them, so that they go with it also when no agent is there.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Service;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, Client};
use serde_json::{Map, Value, json};
use snapshot::model::{ObjectName, Transport};
use snapshot::status::LoadBalancer;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::cluster::Seen;
use crate::error::explain;
use crate::failures::Failures;
use crate::kinds::Kind;
use crate::object::{Object, ObjectId};
use crate::packed::Packed;
use crate::status::Outcome;
use crate::store::Objects;
use crate::uid::Uid;
use crate::writer::{Bucket, SETTLES};

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

/// What is wanted of a service that is wanted no more.
const NOTHING: u64 = 0;

/// The services of gateways.
struct Balancers {
    client: Client,
    bucket: Arc<Bucket>,
    applied: BTreeMap<ObjectName, Applied>,
    failures: Failures<ObjectName>,
    /// Services that are wanted elsewhere than here.
    misplaced: BTreeSet<ObjectName>,
    /// Those that were deleted, which are there until what their load balancer has is given back.
    deleted: BTreeMap<ObjectName, Uid>,
    seed: RandomState,
}

/// Keeps them until it is not polled any more.
pub(crate) async fn keep(
    client: Client,
    bucket: Arc<Bucket>,
    mut seen: watch::Receiver<Option<Seen>>,
    mut outcomes: watch::Receiver<Option<Outcome>>,
    mut leads: watch::Receiver<bool>,
) {
    let mut balancers = Balancers::new(client.clone(), Arc::clone(&bucket));
    loop {
        let leading = *leads.borrow_and_update();
        let outcome = outcomes.borrow_and_update().clone();
        let now = seen.borrow_and_update().clone();
        let mut again = Duration::MAX;
        match (leading, outcome, now) {
            (true, Some(outcome), Some(now)) => {
                again = balancers.round(&outcome, &now.objects, &leads).await;
            }
            // Another agent may change what was applied.
            (false, ..) => balancers = Balancers::new(client.clone(), Arc::clone(&bucket)),
            _ => {}
        }
        let changed = async {
            tokio::select! {
                changed = leads.changed() => changed,
                changed = outcomes.changed() => changed,
                changed = seen.changed() => changed,
            }
        };
        if let Ok(Err(_)) = timeout(again, changed).await {
            return;
        }
        tokio::time::sleep(SETTLES).await;
    }
}

impl Balancers {
    fn new(client: Client, bucket: Arc<Bucket>) -> Self {
        Self {
            client,
            bucket,
            applied: BTreeMap::new(),
            failures: Failures::default(),
            misplaced: BTreeSet::new(),
            deleted: BTreeMap::new(),
            seed: RandomState::new(),
        }
    }

    /// Makes them what they should be; how long nothing is to be done then.
    async fn round(
        &mut self,
        outcome: &Outcome,
        now: &Objects,
        leads: &watch::Receiver<bool>,
    ) -> Duration {
        let mut again = Duration::MAX;
        // What is not known to be needed no more stays.
        let Some(wanted) = &outcome.report.load_balancers else {
            return again;
        };
        let own = self.client.default_namespace().to_owned();
        self.applied.retain(|name, _| wanted.contains_key(name));
        self.misplaced.retain(|name| wanted.contains_key(name));
        let known = |name: &ObjectName| wanted.contains_key(name) || now.contains_key(&id(name));
        self.failures.retain(known);
        self.deleted
            .retain(|name, uid| now.get(&id(name)).is_some_and(|one| one.uid == *uid));
        let to_apply = wanted.iter();
        let to_apply = to_apply.filter_map(|(name, one)| Some((name, one.as_ref()?)));
        for (name, balancer) in to_apply {
            if name.namespace() != own {
                if self.misplaced.insert(name.clone()) {
                    tracing::warn!(
                        service = %name,
                        agents = own,
                        "the service of a gateway is not in the agents' namespace; `spec.gateways.loadBalancer.namespace` of the `Platform` names it"
                    );
                }
                continue;
            }
            let found = now.get(&id(name)).map(|one| one.document.clone());
            let manifest = manifest(name, balancer, class(now, &balancer.gateway_class));
            let state = (manifest, found);
            if self.applied.get(name) == Some(&state) {
                continue;
            }
            let wish = self.seed.hash_one(&state.0);
            if let Some(pause) = self.failures.wait(name, wish, Instant::now()) {
                again = again.min(pause);
                continue;
            }
            if !self.turn(leads).await {
                return Duration::MAX;
            }
            match self.apply(name, &state.0).await {
                Ok(()) => {
                    self.failures.forget(name);
                    self.applied.insert(name.clone(), state);
                }
                Err(error) => again = again.min(self.failed(name, wish, &error)),
            }
        }
        if outcome.seen.kept {
            return again;
        }
        for made in ours(now, &own) {
            // One that the outcome does not know may be made for a gateway that it does not know either.
            let known = outcome.seen.objects.get(&made.object.id);
            let known = known.is_some_and(|known| known.uid == made.object.uid);
            let Some(name) = made.object.id.object_name() else {
                continue;
            };
            let deleted = self.deleted.get(&name) == Some(&made.object.uid);
            if !known || deleted || wanted.contains_key(&name) {
                continue;
            }
            if let Some(pause) = self.failures.wait(&name, NOTHING, Instant::now()) {
                again = again.min(pause);
                continue;
            }
            if !self.turn(leads).await {
                return Duration::MAX;
            }
            match self.delete(&name, &made, outcome).await {
                Ok(()) => {
                    self.failures.forget(&name);
                    self.deleted.insert(name, made.object.uid.clone());
                }
                Err(error) => again = again.min(self.failed(&name, NOTHING, &error)),
            }
        }
        again
    }

    /// Waits until something may be written; whether this agent still writes then.
    async fn turn(&self, leads: &watch::Receiver<bool>) -> bool {
        tokio::time::sleep(self.bucket.take(Instant::now())).await;
        *leads.borrow()
    }

    fn failed(&mut self, name: &ObjectName, wish: u64, error: &str) -> Duration {
        let (news, pause) = self.failures.failed(name, wish, error, Instant::now());
        if news {
            tracing::warn!(service = %name, error, "the service of a gateway could not be brought up to date");
        }
        pause
    }

    fn api(&self, name: &ObjectName) -> Api<Service> {
        Api::namespaced(self.client.clone(), name.namespace())
    }

    async fn apply(&self, name: &ObjectName, manifest: &Value) -> Result<(), String> {
        let params = PatchParams::apply(MANAGER).force();
        let patch = Patch::Apply(manifest);
        let api = self.api(name);
        settled(api.patch(name.name(), &params, &patch)).await?;
        Ok(())
    }

    /// Deletes a service whose gateway needs none.
    async fn delete(
        &self,
        name: &ObjectName,
        made: &Made<'_>,
        outcome: &Outcome,
    ) -> Result<(), String> {
        if !self.needs_none(made, outcome).await? {
            return Err("its gateway is not known here as it is".to_owned());
        }
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(made.object.uid.to_string()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        let api = self.api(name);
        settled(api.delete(name.name(), &params)).await?;
        Ok(())
    }

    /// Whether the outcome is about the gateway as the API server has it now. An agent that has just begun to write may have heard of a
    /// service, and not yet of the gateway that it was made for.
    async fn needs_none(&self, made: &Made<'_>, outcome: &Outcome) -> Result<bool, String> {
        let version = Kind::Gateway.versions()[0];
        let kind = GroupVersionKind::gvk(Kind::Gateway.group(), version, Kind::Gateway.name());
        let resource = ApiResource::from_gvk(&kind);
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), &made.namespace, &resource);
        let Some(live) = settled(api.get_metadata(&made.gateway)).await? else {
            return Ok(true);
        };
        let id = ObjectId {
            kind: Kind::Gateway,
            namespace: made.namespace.as_str().into(),
            name: made.gateway.as_str().into(),
        };
        Ok(outcome.seen.objects.get(&id).is_some_and(|known| {
            live.metadata.uid.as_deref() == Some(known.uid.to_string().as_str())
                && live.metadata.generation.unwrap_or_default() == known.generation
        }))
    }
}

/// An answer; none if there is no such object.
async fn settled<T>(
    answer: impl Future<Output = Result<T, kube::Error>>,
) -> Result<Option<T>, String> {
    match timeout(ANSWER, answer).await {
        Ok(Ok(answer)) => Ok(Some(answer)),
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => Ok(None),
        Ok(Err(error)) => Err(explain(&error)),
        Err(_) => Err("no answer in time".to_owned()),
    }
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

/// A service that was made here, and for which gateway.
struct Made<'a> {
    object: &'a Arc<Object>,
    namespace: String,
    gateway: String,
}

/// Services of the agents' namespace that were made here.
fn ours<'a>(now: &'a Objects, own: &'a str) -> impl Iterator<Item = Made<'a>> {
    let first = ObjectId {
        kind: Kind::Service,
        namespace: own.into(),
        name: "".into(),
    };
    let all = now.range(first..).map(|(_, object)| object);
    let of_namespace =
        all.take_while(move |one| one.id.kind == Kind::Service && *one.id.namespace == *own);
    of_namespace.filter_map(|object| {
        let document: Value = match serde_json::from_slice(&object.document.text()) {
            Ok(document) => document,
            // What cannot be read is nothing to take away.
            Err(error) => {
                tracing::error!(service = object.id.name.as_ref(), %error, "a kept object is no JSON");
                return None;
            }
        };
        let labels = &document["metadata"]["labels"];
        let label = |key: &str| labels[key].as_str().map(str::to_owned);
        (label(MANAGED)? == MANAGER).then_some(Made {
            object,
            namespace: label(NAMESPACE)?,
            gateway: label(GATEWAY)?,
        })
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
    use std::sync::Arc;
    use std::time::Duration;

    use serde_json::json;
    use snapshot::model::{ObjectName, Transport};
    use snapshot::status::{BalancedPort, LoadBalancer, Report};
    use tokio::sync::watch;

    use super::{Balancers, manifest};
    use crate::cluster::Seen;
    use crate::fake::{Answer, Asked, server};
    use crate::kinds::Kind;
    use crate::object::{Object, ObjectId};
    use crate::status::Outcome;
    use crate::store::Objects;
    use crate::writer::Bucket;

    fn object(kind: Kind, name: &str, document: &serde_json::Value) -> Arc<Object> {
        Arc::new(Object {
            id: ObjectId {
                kind,
                namespace: "default".into(),
                name: name.into(),
            },
            api_version: "v1".into(),
            uid: "u".into(),
            generation: 1,
            document: document.to_string().as_bytes().into(),
            status: None,
        })
    }

    fn objects(all: &[Arc<Object>]) -> Objects {
        let all = all.iter();
        all.map(|one| (one.id.clone(), Arc::clone(one))).collect()
    }

    fn outcome(objects: &Objects, wanted: &[(&str, LoadBalancer)]) -> Outcome {
        let wanted = wanted.iter().map(|(name, one)| {
            let name = ObjectName::new("default", name).expect("a name");
            (name, Some(one.clone()))
        });
        Outcome {
            seen: Seen {
                objects: objects.clone(),
                documents: 1,
                changes: 1,
                bundle: None,
                kept: false,
                astray: false,
            },
            report: Arc::new(Report {
                load_balancers: Some(wanted.collect()),
                ..Report::default()
            }),
            active: Ok(1),
        }
    }

    fn deleted(asked: &Asked) -> usize {
        let asked = asked.all();
        asked.iter().filter(|one| one.starts_with("DELETE")).count()
    }

    #[tokio::test]
    async fn a_service_goes_only_when_its_gateway_is_known_to_need_none() {
        let labels = json!({
            "app.kubernetes.io/managed-by": "cardinal-agent",
            "gateway.networking.k8s.io/gateway-name": "web",
            "cardinal.dev/gateway-namespace": "default",
        });
        let service = object(
            Kind::Service,
            "gateway-x",
            &json!({ "metadata": { "labels": labels } }),
        );
        let gateway = object(Kind::Gateway, "web", &json!({}));
        let (_lead, leads) = watch::channel(true);
        let live = |uid: &'static str| {
            server(move |request| match request.contains("/gateways/web") {
                true if uid.is_empty() => Answer::Json(
                    404,
                    json!({
                        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404, "message": "", "reason": "NotFound"
                    }),
                ),
                true => Answer::Json(
                    200,
                    json!({
                        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
                        "metadata": { "name": "web", "uid": uid, "generation": 1 }
                    }),
                ),
                false => Answer::Json(
                    200,
                    json!({
                        "kind": "Status", "apiVersion": "v1", "status": "Success"
                    }),
                ),
            })
        };
        let with = objects(&[Arc::clone(&service), Arc::clone(&gateway)]);
        let alone = objects(&[service]);
        let cases = [
            // The gateway that it was made for was not heard of yet.
            ("u", &alone, &alone, 0),
            // Another one has its name by now.
            ("other", &with, &with, 0),
            // Nobody knows what it was made for.
            ("", &alone, &Objects::new(), 0),
            ("", &alone, &alone, 1),
            // It is there, and needs none any more.
            ("u", &with, &with, 1),
        ];
        for (uid, now, judged, times) in cases {
            let (client, asked) = live(uid).await;
            let mut balancers = Balancers::new(client, Arc::new(Bucket::default()));
            balancers.round(&outcome(judged, &[]), now, &leads).await;
            assert_eq!(deleted(&asked), times, "{:?}", asked.all());
            // What its load balancer has may take minutes to be given back, and one deletion is enough.
            if times == 1 {
                balancers.round(&outcome(judged, &[]), now, &leads).await;
                assert_eq!(deleted(&asked), 1, "{:?}", asked.all());
                balancers
                    .round(&outcome(judged, &[]), &Objects::new(), &leads)
                    .await;
                balancers.round(&outcome(judged, &[]), now, &leads).await;
                assert_eq!(deleted(&asked), 2, "{:?}", asked.all());
            }
        }
        // One that writes no more deletes nothing.
        let (client, asked) = live("").await;
        let mut balancers = Balancers::new(client, Arc::new(Bucket::default()));
        let (_lead, leads) = watch::channel(false);
        balancers.round(&outcome(&alone, &[]), &alone, &leads).await;
        assert!(asked.all().is_empty());
    }

    #[tokio::test]
    async fn a_service_that_is_refused_is_not_applied_at_every_change() {
        let (client, asked) = server(|_| Answer::Json(403, json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403, "message": "no", "reason": "Forbidden"
        })))
        .await;
        let (_lead, leads) = watch::channel(true);
        let balancer = LoadBalancer {
            gateway: ObjectName::new("shop", "web").expect("a name"),
            gateway_class: "edge".to_owned(),
            class: None,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            local: true,
            ports: Vec::new(),
        };
        let now = Objects::new();
        let outcome = outcome(&now, &[("gateway-x", balancer)]);
        let mut balancers = Balancers::new(client, Arc::new(Bucket::default()));
        for _ in 0..10 {
            let again = balancers.round(&outcome, &now, &leads).await;
            assert!(again < Duration::from_secs(1));
        }
        assert_eq!(asked.all().len(), 1);
    }

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
