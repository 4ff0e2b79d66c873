//! Tells authors of refused objects why, where they look: in an event (events.k8s.io/v1) about the object.
//!
//! Each refusal of a state of an object is told once, by the agent that writes status. Objects that have nothing to do with us are
//! left alone, as other controllers may take what is refused here.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use snapshot::status::Verdict;
use tokio::time::timeout;

use crate::error::explain;
use crate::kinds::Kind;
use crate::object::{Object, ObjectId};
use crate::status::{CONTROLLER, Outcome, find};

/// Longest note of an event (`Event.note`).
const LONGEST: usize = 1_024;
/// Until the API server must answer.
const ANSWER: Duration = Duration::from_secs(5);
/// Most events of one round: an agent that begins to write tells of everything that is refused.
const MOST: usize = 50;

/// Tells of refusals.
pub(crate) struct Events {
    client: Client,
    node: String,
    /// What was told of each object, as a number.
    told: BTreeMap<ObjectId, u64>,
    seed: RandomState,
}

impl Events {
    pub(crate) fn new(client: Client, node: &str) -> Self {
        Self {
            client,
            node: node.to_owned(),
            told: BTreeMap::new(),
            seed: RandomState::new(),
        }
    }

    /// Tells of every refusal that was not told yet.
    pub(crate) async fn refused(&mut self, outcome: &Outcome) {
        let objects = &outcome.seen.objects;
        let refused = outcome.report.objects.iter();
        let refused = refused.filter(|(_, verdict)| !verdict.mistakes.is_empty());
        let refused: BTreeMap<ObjectId, &Verdict> = refused
            .filter_map(|(key, verdict)| {
                let kind = Kind::find(key.kind.group(), key.kind.as_str())?;
                let id = find(objects, kind, &key.name)?;
                concerns(objects.get(&id)?, outcome).then_some((id, &**verdict))
            })
            .collect();
        self.told.retain(|id, _| refused.contains_key(id));
        let mut events = Vec::new();
        for (id, verdict) in refused {
            let Some(object) = objects.get(&id) else {
                continue;
            };
            let note = note(verdict);
            let hash = self.seed.hash_one((&object.uid, &note));
            if self.told.get(&id) != Some(&hash) {
                events.push((Arc::clone(object), note, hash));
            }
        }
        for (object, note, hash) in events.into_iter().take(MOST) {
            let namespace = match &*object.id.namespace {
                "" => "default",
                namespace => namespace,
            };
            let event = self.event(&object, namespace, note);
            let api: Api<Event> = Api::namespaced(self.client.clone(), namespace);
            match timeout(ANSWER, api.create(&PostParams::default(), &event)).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => {
                    let object = object.id.to_string();
                    tracing::debug!(
                        object,
                        error = explain(&error),
                        "an event could not be written"
                    );
                }
                Err(_) => {
                    // Status does not wait for fifty of these; the rest is told another time.
                    tracing::debug!(
                        object = object.id.to_string(),
                        "an event was not written in time"
                    );
                    return;
                }
            }
            // Events are news: one that is lost is not told again, as the status says the same.
            self.told.insert(object.id.clone(), hash);
        }
    }

    fn event(&self, object: &Object, namespace: &str, note: String) -> Event {
        Event {
            metadata: ObjectMeta {
                generate_name: Some("cardinal-".to_owned()),
                namespace: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            },
            action: Some("Read".to_owned()),
            event_time: Some(MicroTime(Timestamp::now())),
            note: Some(note),
            reason: Some("Refused".to_owned()),
            regarding: Some(ObjectReference {
                api_version: Some(object.api_version.to_string()),
                kind: Some(object.id.kind.name().to_owned()),
                name: Some(object.id.name.to_string()),
                namespace: Some(object.id.namespace.to_string()).filter(|name| !name.is_empty()),
                uid: Some(object.uid.to_string()),
                ..ObjectReference::default()
            }),
            reporting_controller: Some(CONTROLLER.to_owned()),
            reporting_instance: Some(self.node.clone()),
            type_: Some("Warning".to_owned()),
            ..Event::default()
        }
    }
}

/// Whether an object is for us: of our own group, a network policy, or attached to a gateway of ours.
fn concerns(object: &Object, outcome: &Outcome) -> bool {
    let report = &outcome.report;
    let Some(name) = object.id.object_name() else {
        return false;
    };
    match object.id.kind {
        Kind::Cell | Kind::RoutingTable | Kind::Platform => true,
        // One of Kubernetes has no status, and that of Cilium's may be left to Cilium.
        Kind::NetworkPolicy | Kind::CiliumNetworkPolicy | Kind::CiliumClusterwideNetworkPolicy => {
            true
        }
        Kind::Gateway => report.gateways.contains_key(&name),
        Kind::ListenerSet => report.listener_sets.contains_key(&name),
        kind => {
            let route = kind.route();
            let route = route.is_some_and(|kind| report.routes.contains_key(&(kind, name.clone())));
            let policy = kind.document();
            route || policy.is_some_and(|kind| report.policies.contains_key(&(kind, name)))
        }
    }
}

fn note(verdict: &Verdict) -> String {
    let mut note = String::new();
    for mistake in &verdict.mistakes {
        if !note.is_empty() {
            note.push_str("; ");
        }
        if !mistake.source.field.is_empty() {
            note.push_str(&mistake.source.field);
            note.push_str(": ");
        }
        note.push_str(&mistake.message);
    }
    if note.len() > LONGEST {
        note.truncate(note.floor_char_boundary(LONGEST - '…'.len_utf8()));
        note.push('…');
    }
    note
}
