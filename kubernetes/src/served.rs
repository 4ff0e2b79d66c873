//! Starts to watch a kind as soon as the API server serves it.
//!
//! A kind whose definition is not installed is no mistake: it has no objects, and what was known of some is forgotten. Definitions
//! are watched, so that one that is installed later is noticed at once; a look every [`LOOK`] is the net under that, and all there is
//! where definitions may not be watched. A kind that is served in other versions only than those that are read has objects all the
//! same: what is known of them stays, and where they restrict something nothing begins without them.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, Client};
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

use crate::backoff::Backoff;
use crate::cluster::Known;
use crate::error::explain;
use crate::kinds::Kind;
use crate::watch;

/// How often the API server is asked what it serves without a reason.
const LOOK: Duration = Duration::from_secs(30);
/// Until it must answer.
const ANSWER: Duration = Duration::from_secs(10);
/// A new definition is served a moment after it is stored.
const SETTLE: Duration = Duration::from_millis(500);

/// The definition of classes of gateways, and where it says of which version it is.
const CLASSES: &str = "gatewayclasses.gateway.networking.k8s.io";
const BUNDLE: &str = "gateway.networking.k8s.io/bundle-version";

/// Follows every kind that is served, as long as it is polled.
pub(crate) async fn follow(client: Client, known: Arc<Known>) {
    let changed = Arc::new(Notify::new());
    let mut tasks = JoinSet::new();
    tasks.spawn(definitions(
        client.clone(),
        Arc::clone(&known),
        Arc::clone(&changed),
    ));
    let mut running: BTreeMap<Kind, AbortHandle> = BTreeMap::new();
    let mut identity = None;
    let mut backoff = Backoff::default();
    loop {
        running.retain(|_, task| !task.is_finished());
        let pause = match look(&client).await {
            Ok(Found {
                mut served,
                unreadable,
                cluster,
            }) => {
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
                again.unwrap_or(LOOK)
            }
            Err(error) => {
                let fresh = known.change(|store| store.unreachable(error.clone(), Instant::now()));
                if fresh {
                    tracing::warn!(
                        error,
                        "the API server does not say what it serves; what is known goes on"
                    );
                }
                backoff.next()
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = changed.notified() => tokio::time::sleep(SETTLE).await,
            // A kind that is not served any more, or a watch that failed: either may be there again.
            Some(ended) = tasks.join_next() => if let Err(error) = ended && error.is_panic() {
                tracing::error!(error = &error as &dyn std::error::Error, "a watch has failed");
            },
        }
    }
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

/// Asks what is served.
async fn look(client: &Client) -> Result<Found, String> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let identity = timeout(ANSWER, namespaces.get_metadata("kube-system"))
        .await
        .map_err(|_| silence())?
        .map_err(|error| explain(&error))?;
    let identity = identity.metadata.uid.unwrap_or_default();
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
    let groups = timeout(ANSWER, client.list_api_groups()).await;
    let groups = groups
        .map_err(|_| silence())?
        .map_err(|error| explain(&error))?;
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
    Ok(Found {
        served,
        unreadable,
        cluster: identity,
    })
}

fn silence() -> String {
    format!("no answer within {} seconds", ANSWER.as_secs())
}

/// Kinds of a version that can be listed and watched, with the names of their resources; none if there is no such version.
async fn resources(
    client: &Client,
    group: &str,
    version: &str,
) -> Result<Option<BTreeMap<String, String>>, String> {
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
        Err(error) => return Err(explain(&error)),
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
async fn definitions(client: Client, known: Arc<Known>, changed: Arc<Notify>) {
    let kind = GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
    let resource = ApiResource::from_gvk(&kind);
    let api: Api<DynamicObject> = Api::all_with(client, &resource);
    let mut backoff = Backoff::default();
    loop {
        let started = Instant::now();
        if let Err(error) = changes(&api, &known, &changed).await {
            tracing::debug!(
                error = explain(&error),
                "definitions of kinds cannot be watched; the API server is asked now and then"
            );
        }
        if started.elapsed() > LOOK {
            backoff.reset();
        }
        tokio::time::sleep(backoff.next()).await;
    }
}

async fn changes(
    api: &Api<DynamicObject>,
    known: &Known,
    changed: &Notify,
) -> Result<(), kube::Error> {
    // Only the version of the list is of interest.
    let list = api.list_metadata(&ListParams::default().limit(1)).await?;
    bundle(api, known).await?;
    changed.notify_one();
    let version = list.metadata.resource_version.unwrap_or_default();
    let events = api
        .watch_metadata(&WatchParams::default(), &version)
        .await?;
    let mut events = pin!(events);
    while let Some(event) = events.next().await {
        match event? {
            WatchEvent::Error(status) => return Err(kube::Error::Api(status.boxed())),
            WatchEvent::Bookmark(_) => {}
            _ => {
                bundle(api, known).await?;
                changed.notify_one();
            }
        }
    }
    Ok(())
}

/// Asks which version of the Gateway API the definition of its first kind is of.
async fn bundle(api: &Api<DynamicObject>, known: &Known) -> Result<(), kube::Error> {
    let definition = api.get_metadata_opt(CLASSES).await?;
    let annotations = definition.and_then(|definition| definition.metadata.annotations);
    let version = annotations.and_then(|mut annotations| annotations.remove(BUNDLE));
    known.change(|store| store.installed(version.map(Into::into)));
    Ok(())
}
