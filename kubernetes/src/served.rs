//! Starts to watch a kind as soon as the API server serves it.
//!
//! A kind whose definition is not installed is no mistake: it has no objects, and what was known of some is forgotten. Definitions
//! are watched, so that one that is installed later is noticed at once; a look every [`RARELY`] is the net under that, and one every
//! [`LOOK`] all there is where definitions may not be watched. Whose cluster it is is asked that often anyway. A kind that is served in other versions only than those that are read has objects all the
//! same: what is known of them stays, and where they restrict something nothing begins without them.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, Client};
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

use crate::backoff::{Backoff, random};
use crate::cluster::Known;
use crate::error::Unheard;
use crate::kinds::Kind;
use crate::watch;

/// How often the API server is asked whose it is, and without a watch of definitions what it serves.
const LOOK: Duration = Duration::from_secs(30);
/// How often it is asked what it serves while definitions are watched.
const RARELY: Duration = Duration::from_secs(600);
/// Until it must answer.
const ANSWER: Duration = Duration::from_secs(10);
/// A new definition is served a moment after it is stored.
const SETTLE: Duration = Duration::from_millis(500);
/// For how long it may not be served everywhere: there may be several API servers, and they may be busy.
const UNSETTLED: Duration = Duration::from_secs(120);

/// The definition of classes of gateways, and where it says of which version it is.
const CLASSES: &str = "gatewayclasses.gateway.networking.k8s.io";
const BUNDLE: &str = "gateway.networking.k8s.io/bundle-version";

/// Follows every kind that is served, as long as it is polled.
pub(crate) async fn follow(client: Client, known: Arc<Known>) {
    let definitions = Arc::new(Definitions::default());
    let mut tasks = JoinSet::new();
    tasks.spawn(follow_definitions(
        client.clone(),
        Arc::clone(&known),
        Arc::clone(&definitions),
    ));
    let mut running: BTreeMap<Kind, AbortHandle> = BTreeMap::new();
    let mut identity: Option<String> = None;
    // When it is asked what is served, and not only whose it is.
    let mut due = Instant::now();
    // When definitions changed last.
    let mut stirred = Instant::now();
    let mut backoff = Backoff::default();
    loop {
        running.retain(|_, task| !task.is_finished());
        let same = identity.as_deref().filter(|_| Instant::now() < due);
        let pause = match look(&client, same).await {
            Ok(None) => {
                backoff.reset();
                spread(LOOK).min(due.saturating_duration_since(Instant::now()))
            }
            Ok(Some(Found {
                mut served,
                unreadable,
                cluster,
            })) => {
                backoff.reset();
                if identity.as_ref().is_some_and(|known| *known != cluster) {
                    tracing::warn!(
                        "another cluster answers, or one that has lost its data; everything is listed again"
                    );
                    running.values().for_each(AbortHandle::abort);
                    running.clear();
                }
                identity = Some(cluster);
                let kinds = served.keys().chain(running.keys()).chain(unreadable.keys());
                let kinds: BTreeSet<Kind> = kinds.copied().collect();
                served.retain(|kind, _| !running.contains_key(kind));
                let now = Instant::now();
                // In one step: nothing is complete while what restricts is missing.
                let (again, news) = known.change(|store| {
                    store.serves(&served.keys().copied().collect());
                    let mut news = unreadable;
                    news.retain(|kind, versions| {
                        !running.contains_key(kind) && store.unreadable(*kind, versions, now)
                    });
                    (store.unserved(&kinds, now), news)
                });
                for (kind, versions) in news {
                    tracing::warn!(
                        %kind, versions, "this kind is served in versions only that are not read; what is known of it goes on"
                    );
                }
                for (kind, resource) in served {
                    tracing::debug!(%kind, version = %resource.api_version, "watching");
                    let api = Api::all_with(client.clone(), &resource);
                    let task = watch::follow(kind, resource, api, Arc::clone(&known));
                    running.insert(kind, tasks.spawn(task));
                }
                let watched = definitions.watched.load(Ordering::Relaxed);
                let rests = match watched && stirred.elapsed() > UNSETTLED {
                    true => RARELY,
                    false => LOOK,
                };
                let rests = again.unwrap_or_else(|| spread(rests));
                due = Instant::now() + rests;
                spread(LOOK).min(rests)
            }
            Err(error) => {
                due = Instant::now();
                let fresh = known.change(|store| store.unreachable(error.clone(), Instant::now()));
                if fresh {
                    tracing::warn!(
                        error = error.error,
                        "the API server does not say what it serves; what is known goes on"
                    );
                }
                backoff.next()
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = definitions.changed.notified() => {
                due = Instant::now();
                stirred = due;
                tokio::time::sleep(SETTLE).await;
            }
            // A kind that is not served any more, or a watch that failed: either may be there again.
            Some(ended) = tasks.join_next() => {
                due = Instant::now();
                if let Err(error) = ended && error.is_panic() {
                    tracing::error!(error = &error as &dyn std::error::Error, "a watch has failed");
                }
            }
        }
    }
}

/// A time of a node's own around this one: not all ask at one moment.
fn spread(pause: Duration) -> Duration {
    pause / 2 + pause.mul_f64(random())
}

/// What is heard of definitions.
#[derive(Default)]
struct Definitions {
    /// One of a kind that is read has changed.
    changed: Notify,
    /// They are watched.
    watched: AtomicBool,
}

/// What is served.
struct Found {
    /// Kinds in the version that is read.
    served: BTreeMap<Kind, ApiResource>,
    /// Kinds of which no version is read, with those that there are.
    unreadable: BTreeMap<Kind, String>,
    /// Whose they are: the namespace `kube-system` is as old as its cluster.
    cluster: String,
}

/// Asks what is served; none if it is not to be asked as long as the cluster is the `same`, and it is.
async fn look(client: &Client, same: Option<&str>) -> Result<Option<Found>, Unheard> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let identity = answered(namespaces.get_metadata("kube-system")).await?;
    let identity = identity.metadata.uid.unwrap_or_default();
    if same == Some(identity.as_str()) {
        return Ok(None);
    }
    let mut versions: BTreeMap<(&str, String), Option<BTreeMap<String, String>>> = BTreeMap::new();
    let mut served = BTreeMap::new();
    let mut absent = Vec::new();
    for kind in Kind::ALL {
        for version in kind.versions() {
            let resources = match versions.entry((kind.group(), (*version).to_owned())) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(asked) => {
                    asked.insert(resources(client, kind.group(), version).await?)
                }
            };
            let plural = resources
                .as_ref()
                .and_then(|resources| resources.get(kind.name()));
            if let Some(plural) = plural {
                let kinds = GroupVersionKind::gvk(kind.group(), version, kind.name());
                served.insert(kind, ApiResource::from_gvk_with_plural(&kinds, plural));
                break;
            }
        }
        if !served.contains_key(&kind) {
            absent.push(kind);
        }
    }
    let groups = answered(client.list_api_groups()).await?;
    let mut unreadable = BTreeMap::new();
    for kind in absent {
        let others = groups
            .groups
            .iter()
            .filter(|group| group.name == kind.group());
        let mut with = Vec::new();
        for version in others.flat_map(|group| &group.versions) {
            let resources = match versions.entry((kind.group(), version.version.clone())) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(asked) => {
                    asked.insert(resources(client, kind.group(), &version.version).await?)
                }
            };
            if resources
                .as_ref()
                .is_some_and(|all| all.contains_key(kind.name()))
            {
                with.push(version.version.as_str());
            }
        }
        if !with.is_empty() {
            unreadable.insert(kind, with.join(", "));
        }
    }
    Ok(Some(Found {
        served,
        unreadable,
        cluster: identity,
    }))
}

/// An answer that begins within [`ANSWER`].
async fn answered<T>(answer: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Unheard> {
    let answer = timeout(ANSWER, answer).await.map_err(|_| silence())?;
    answer.map_err(|error| Unheard::from(&error))
}

fn silence() -> Unheard {
    Unheard::silence(format!("no answer within {} seconds", ANSWER.as_secs()))
}

/// Kinds of a version that can be listed and watched, with the names of their resources; none if there is no such version.
async fn resources(
    client: &Client,
    group: &str,
    version: &str,
) -> Result<Option<BTreeMap<String, String>>, Unheard> {
    let answer = async {
        match group {
            "" => client.list_core_api_resources(version).await,
            group => {
                client
                    .list_api_group_resources(&format!("{group}/{version}"))
                    .await
            }
        }
    };
    let answer = timeout(ANSWER, answer).await.map_err(|_| silence())?;
    let list = match answer {
        Ok(list) => list,
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(None),
        Err(error) => return Err(Unheard::from(&error)),
    };
    let can = |verbs: &[String], verb: &str| verbs.iter().any(|one| one == verb);
    Ok(Some(
        list.resources
            .into_iter()
            .filter(|one| !one.name.contains('/'))
            .filter(|one| can(&one.verbs, "list") && can(&one.verbs, "watch"))
            .map(|one| (one.kind, one.name))
            .collect(),
    ))
}

/// Tells of each change of a definition, as long as definitions may be watched.
async fn follow_definitions(client: Client, known: Arc<Known>, definitions: Arc<Definitions>) {
    let kind = GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
    let resource = ApiResource::from_gvk(&kind);
    let api: Api<DynamicObject> = Api::all_with(client, &resource);
    let mut backoff = Backoff::default();
    loop {
        let started = Instant::now();
        let Err(error) = changes(&api, &known, &definitions).await;
        tracing::debug!(
            error = error.error,
            "definitions of kinds cannot be watched; the API server is asked now and then"
        );
        if definitions.watched.swap(false, Ordering::Relaxed) {
            definitions.changed.notify_one();
        }
        if started.elapsed() > LOOK {
            backoff.reset();
        }
        tokio::time::sleep(backoff.next()).await;
    }
}

/// Watches definitions until that fails.
async fn changes(
    api: &Api<DynamicObject>,
    known: &Known,
    definitions: &Definitions,
) -> Result<Infallible, Unheard> {
    // Only the version of the list is of interest.
    let list = answered(api.list_metadata(&ListParams::default().limit(1))).await?;
    bundle(api, known).await?;
    definitions.changed.notify_one();
    let mut version = list.metadata.resource_version.unwrap_or_default();
    loop {
        let opened = Instant::now();
        let params = WatchParams::default();
        let events = answered(api.watch_metadata(&params, &version)).await?;
        let mut events = pin!(events);
        definitions.watched.store(true, Ordering::Relaxed);
        loop {
            let event = timeout(watch::QUIET, events.next()).await;
            let quiet = || Unheard::silence("the watch says nothing".to_owned());
            let Some(event) = event.map_err(|_| quiet())? else {
                break;
            };
            match event.map_err(|error| Unheard::from(&error))? {
                WatchEvent::Error(status) => {
                    return Err(Unheard::from(&kube::Error::Api(status.boxed())));
                }
                WatchEvent::Bookmark(mark) => version = mark.metadata.resource_version,
                WatchEvent::Added(one) | WatchEvent::Modified(one) | WatchEvent::Deleted(one) => {
                    version = one.metadata.resource_version.unwrap_or(version);
                    let name = one.metadata.name.unwrap_or_default();
                    if name == CLASSES {
                        bundle(api, known).await?;
                    }
                    if is_read(&name) {
                        definitions.changed.notify_one();
                    }
                }
            }
        }
        // One that is closed over and over is not opened without end.
        tokio::time::sleep(SETTLE.saturating_sub(opened.elapsed())).await;
    }
}

/// Whether a definition of this name is one of a kind that is read, or of its neighbour. Others change more often.
fn is_read(name: &str) -> bool {
    let group = name.split_once('.').map(|(_, group)| group);
    group.is_some_and(|group| Kind::ALL.iter().any(|kind| kind.group() == group))
}

/// Asks which version of the Gateway API the definition of its first kind is of.
async fn bundle(api: &Api<DynamicObject>, known: &Known) -> Result<(), Unheard> {
    let definition = answered(api.get_metadata_opt(CLASSES)).await?;
    let annotations = definition.and_then(|definition| definition.metadata.annotations);
    let version = annotations.and_then(|mut annotations| annotations.remove(BUNDLE));
    known.change(|store| store.installed(version.map(Into::into)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kube::Api;
    use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
    use serde_json::{Value, json};
    use tokio::time::timeout;

    use super::{CLASSES, Definitions, changes, is_read, look};
    use crate::cluster::Known;
    use crate::fake::{Answer, server};

    #[tokio::test]
    async fn definitions_of_others_ask_for_nothing() {
        let definition = |name: &str| {
            json!({
                "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
                "metadata": { "name": name, "resourceVersion": "8" }
            })
        };
        let told = ["widgets.example.com", "gadgets.example.com", CLASSES];
        let lines = told.map(|name| json!({ "type": "MODIFIED", "object": definition(name) }));
        let (client, asked) = server(move |request| {
            if request.contains("watch=true") {
                Answer::Lines(lines.to_vec())
            } else if request.contains(CLASSES) {
                Answer::Json(200, definition(CLASSES))
            } else {
                Answer::Json(
                    200,
                    json!({
                        "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
                        "metadata": { "resourceVersion": "7" }, "items": []
                    }),
                )
            }
        })
        .await;
        let kind = GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
        let api: Api<DynamicObject> = Api::all_with(client, &ApiResource::from_gvk(&kind));
        let (known, definitions) = (Known::default(), Definitions::default());
        let watched = changes(&api, &known, &definitions);
        let ended = timeout(Duration::from_millis(500), watched).await;
        assert!(ended.is_err(), "{ended:?}");
        let all = asked.all();
        let times = all.iter().filter(|one| one.contains(CLASSES)).count();
        assert_eq!(times, 2, "{all:?}");
        assert!(is_read("cells.cardinal.dev") && !is_read("cells.dev"));
        assert!(!is_read("widgets.example.com") && !is_read("pods"));
    }

    #[tokio::test]
    async fn whose_the_cluster_is_takes_one_request() {
        let namespace: Value = json!({
            "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
            "metadata": { "name": "kube-system", "uid": "u" }
        });
        let (client, asked) = server(move |request| {
            if request.contains("kube-system") {
                return Answer::Json(200, namespace.clone());
            }
            let kind = match request.contains("/apis ") {
                true => "APIGroupList",
                false => "APIResourceList",
            };
            let nothing = json!({
                "kind": kind, "apiVersion": "v1", "groupVersion": "v1", "resources": [], "groups": []
            });
            Answer::Json(200, nothing)
        })
        .await;
        assert!(look(&client, Some("u")).await.expect("an answer").is_none());
        assert_eq!(asked.all().len(), 1);
        let other = look(&client, Some("other")).await.expect("an answer");
        assert!(other.is_some_and(|found| found.cluster == "u"));
        assert!(asked.all().len() > 5);
    }
}
