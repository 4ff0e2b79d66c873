//! Says what this node goes by, in a `Lease` of its own.
//!
//! Its name is `cardinal-agent.` and the node's, and it is the node's: the cluster removes it with the node.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, OwnerReference};
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, Patch, PatchParams};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::timeout;

use super::Nodes;
use crate::error::explain;
use crate::kinds::Kind;
use crate::object::ObjectId;
use crate::status::Outcome;
use crate::store::Objects;

/// Annotation with the digest.
pub(super) const ACTIVATED: &str = "cardinal.dev/activated";
/// Labels of leases of nodes, and the selector that finds them.
const LABELS: [(&str, &str); 2] = [
    ("app.kubernetes.io/name", "cardinal-agent"),
    ("app.kubernetes.io/component", "node"),
];
pub(super) const SELECTOR: &str =
    "app.kubernetes.io/name=cardinal-agent,app.kubernetes.io/component=node";

/// How often it is said again although it is the same.
pub(super) const RENEWAL: Duration = Duration::from_secs(60);
/// From one change of it to the next, at least.
const PAUSE: Duration = Duration::from_millis(500);
/// When it is tried again.
const AGAIN: Duration = Duration::from_secs(5);
/// Until the API server must answer.
const ANSWER: Duration = Duration::from_secs(5);

/// Follows what this node goes by, and says it, until it is not polled any more.
pub(crate) async fn report(
    client: Client,
    node: String,
    mut outcomes: watch::Receiver<Option<Outcome>>,
    nodes: Arc<watch::Sender<Nodes>>,
) {
    let api: Api<Lease> = Api::default_namespaced(client);
    let mut said = None;
    let mut renewal = Instant::now();
    let mut failing = false;
    loop {
        let outcome = outcomes.borrow_and_update().clone();
        // What was there before goes on when a node does not take what is new.
        let Some(outcome) = outcome.filter(|outcome| outcome.active.is_ok() || said.is_some())
        else {
            if outcomes.changed().await.is_err() {
                return;
            }
            continue;
        };
        let objects = &outcome.seen.objects;
        let now = Instant::now();
        if outcome.active.is_ok() {
            nodes.send_if_modified(|nodes| nodes.activate(objects, now));
        }
        let digest = nodes.borrow().digest().clone();
        if said.as_ref() != Some(&digest) || now >= renewal {
            let lease = lease(&node, objects, &digest.0);
            let name = name(&node);
            let params = PatchParams::apply("cardinal-agent").force();
            let patch = Patch::Apply(&lease);
            let written = match timeout(ANSWER, api.patch(&name, &params, &patch)).await {
                Ok(Ok(_)) => None,
                Ok(Err(error)) => Some(explain(&error)),
                Err(_) => Some("no answer in time".to_owned()),
            };
            if let Some(error) = written {
                if !failing {
                    tracing::warn!(
                        lease = name,
                        error,
                        "what this node goes by could not be told"
                    );
                }
                failing = true;
                tokio::time::sleep(AGAIN).await;
                continue;
            }
            failing = false;
            said = Some(digest);
            renewal = now + RENEWAL;
            tokio::time::sleep(PAUSE).await;
        }
        let rest = renewal.saturating_duration_since(Instant::now());
        if let Ok(Err(_)) = timeout(rest, outcomes.changed()).await {
            return;
        }
    }
}

fn name(node: &str) -> String {
    format!("cardinal-agent.{node}")
}

/// The node that a lease is of.
pub(super) fn node_of(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref()
}

fn lease(node: &str, objects: &Objects, digest: &str) -> Lease {
    let texts = |texts: &[(&str, &str)]| -> BTreeMap<String, String> {
        let texts = texts.iter();
        texts
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    };
    let id = ObjectId {
        kind: Kind::Node,
        namespace: "".into(),
        name: node.into(),
    };
    let owner = objects.get(&id).map(|object| OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node.to_owned(),
        uid: object.uid.to_string(),
        ..OwnerReference::default()
    });
    Lease {
        metadata: ObjectMeta {
            name: Some(name(node)),
            labels: Some(texts(&LABELS)),
            annotations: Some(texts(&[(ACTIVATED, digest)])),
            owner_references: owner.map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(node.to_owned()),
            lease_duration_seconds: i32::try_from(super::FORGOTTEN.as_secs()).ok(),
            renew_time: Some(MicroTime(Timestamp::now())),
            ..LeaseSpec::default()
        }),
    }
}
