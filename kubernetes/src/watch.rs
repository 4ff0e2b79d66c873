//! Keeps one kind up to date: lists it, then watches what changes.
//!
//! Flows in: pages of lists and events of watches. Flows out: calls of the `Store`. A watch that ends goes on where it ended; one
//! that the API server cannot continue (410) begins with a list. Lists are read page by page without a resource version, which
//! asks for what is stored rather than for what some cache remembers.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{AsyncBufRead, AsyncBufReadExt as _, StreamExt as _};
use kube::Api;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::{ApiResource, DynamicObject, ListMeta, Request};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::timeout;

use crate::backoff::{Backoff, random};
use crate::cluster::Known;
use crate::error::Unheard;
use crate::kinds::Kind;
use crate::object::{Object, ObjectId};
use crate::store::Belief;
use crate::uid::Uid;

/// Until an answer to a request must begin, and from each part of it to the next one.
const ANSWER: Duration = Duration::from_secs(30);
/// How long the API server keeps a watch open, in seconds.
const WATCH: u32 = 270;
/// A watch that says nothing for so long is taken for dead: the API server sends a bookmark each minute.
pub(crate) const QUIET: Duration = Duration::from_secs(100);
/// Within this time after a watch has expired nodes list anew, each at a moment of its own: it has expired for all of them at once.
const SPREAD: Duration = Duration::from_secs(3);
/// A watch that ends sooner than this is not opened again at once.
const SHORT: Duration = Duration::from_secs(1);

/// A page of a list. Its objects are taken apart one by one: all of them at once are many times as large as the page.
#[derive(Deserialize)]
struct Page<'a> {
    #[serde(default)]
    metadata: ListMeta,
    /// `null` stands for an empty list.
    #[serde(borrow, default)]
    items: Option<Vec<&'a RawValue>>,
}

/// Why a kind is not heard of.
#[derive(Debug)]
enum Trouble {
    /// It is not served.
    NotServed,
    /// The API server has forgotten what happened since; a list is needed.
    Expired,
    /// Anything else.
    Failed(Unheard),
}

impl From<kube::Error> for Trouble {
    fn from(error: kube::Error) -> Self {
        match &error {
            kube::Error::Api(status) if status.code == 404 => Self::NotServed,
            kube::Error::Api(status) if status.code == 410 => Self::Expired,
            error => Self::Failed(Unheard::from(error)),
        }
    }
}

/// What ended a watch that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The API server closed it.
    Closed,
    /// Nothing was said for too long: whoever answers next may be another one.
    Quiet,
}

/// Follows a kind until it is not served any more. Whether it has no objects then, what else is served tells.
pub(crate) async fn follow(
    kind: Kind,
    resource: ApiResource,
    api: Api<DynamicObject>,
    known: Arc<Known>,
) {
    let mut watcher = Watcher {
        kind,
        resource,
        api,
        known,
        quiet: QUIET,
        backoff: Backoff::default(),
    };
    loop {
        let trouble = match watcher.list().await {
            Ok(version) => watcher.watch(version).await,
            Err(trouble) => trouble,
        };
        match trouble {
            Trouble::NotServed => {
                tracing::info!(%kind, "the API server does not serve this version of the kind any more");
                // Whoever asks what is served believes it there first.
                tokio::time::sleep(SHORT).await;
                return;
            }
            Trouble::Expired => {
                tracing::debug!(%kind, "a watch has expired; listing again");
                // One that forgets faster than it tells is not to be asked for lists without end.
                let spread = SPREAD.mul_f64(random());
                tokio::time::sleep(spread + watcher.backoff.next()).await;
            }
            Trouble::Failed(error) => watcher.failed(error).await,
        }
    }
}

struct Watcher {
    kind: Kind,
    resource: ApiResource,
    api: Api<DynamicObject>,
    known: Arc<Known>,
    /// How long a watch may say nothing.
    quiet: Duration,
    backoff: Backoff,
}

impl Watcher {
    /// Lists until the list is believed; gives the version to watch from.
    async fn list(&mut self) -> Result<String, Trouble> {
        loop {
            let (objects, version) = self.pages().await?;
            let kind = self.kind;
            let belief = self
                .known
                .change(|store| store.listed(kind, objects, Instant::now()));
            match belief {
                Belief::Whole => return Ok(version),
                Belief::AskAgain(pause) => tokio::time::sleep(pause).await,
            }
        }
    }

    async fn pages(&self) -> Result<(Vec<Object>, String), Trouble> {
        let mut params = ListParams::default().limit(self.kind.page());
        params.field_selector = self.kind.selector().map(str::to_owned);
        let client = self.api.clone().into_client();
        let mut objects = Vec::new();
        loop {
            let request = Request::new(self.api.resource_url()).list(&params);
            let request = request.map_err(kube::Error::BuildRequest)?;
            let text = whole(answered(client.request_stream(request)).await?).await?;
            let page: Page<'_> = serde_json::from_slice(&text).map_err(kube::Error::SerdeError)?;
            for item in page.items.unwrap_or_default() {
                let sent = serde_json::from_str(item.get()).map_err(kube::Error::SerdeError)?;
                objects.extend(Object::new(self.kind, &self.resource, sent));
            }
            params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
            if params.continue_token.is_none() {
                let version = page.metadata.resource_version.unwrap_or_default();
                return Ok((objects, version));
            }
        }
    }

    /// Watches from a version on, as long as that is possible without a list.
    async fn watch(&mut self, mut version: String) -> Trouble {
        let mut doubtful = false;
        loop {
            let opened = Instant::now();
            let watched = match doubtful {
                true => self.is_past(&version).await,
                false => Ok(()),
            };
            let watched = match watched {
                Ok(()) => self.events(&mut version).await,
                Err(trouble) => Err(trouble),
            };
            doubtful = !matches!(watched, Ok(End::Closed));
            match watched {
                Ok(_) if opened.elapsed() >= SHORT => {}
                Ok(_) => tokio::time::sleep(self.backoff.next()).await,
                Err(Trouble::Failed(error)) => self.failed(error).await,
                Err(trouble) => return trouble,
            }
        }
    }

    /// Whether the API server has come to this version. One whose data were lost or restored has not, and a watch from a version
    /// to come tells nothing until then.
    async fn is_past(&self, version: &str) -> Result<(), Trouble> {
        let page = answered(self.api.list(&ListParams::default().limit(1))).await?;
        let now = page.metadata.resource_version.unwrap_or_default();
        // Versions are compared as numbers (KEP-5504).
        match (now.parse::<u128>(), version.parse::<u128>()) {
            (Ok(now), Ok(version)) if now >= version => Ok(()),
            _ => Err(Trouble::Expired),
        }
    }

    /// One watch, until the API server or silence ends it.
    async fn events(&mut self, version: &mut String) -> Result<End, Trouble> {
        let mut params = WatchParams::default().timeout(WATCH);
        params.field_selector = self.kind.selector().map(str::to_owned);
        let events = answered(self.api.watch(&params, version)).await?;
        let mut events = pin!(events);
        self.well();
        loop {
            let event = match timeout(self.quiet, events.next()).await {
                Ok(Some(event)) => event?,
                Ok(None) => return Ok(End::Closed),
                Err(_) => return Ok(End::Quiet),
            };
            match event {
                WatchEvent::Added(sent) | WatchEvent::Modified(sent) => {
                    remember(version, sent.metadata.resource_version.as_deref());
                    if let Some(object) = Object::new(self.kind, &self.resource, sent) {
                        self.known.change(|store| store.applied(object));
                    }
                }
                WatchEvent::Deleted(sent) => {
                    remember(version, sent.metadata.resource_version.as_deref());
                    let id = ObjectId {
                        kind: self.kind,
                        namespace: sent.metadata.namespace.unwrap_or_default().into(),
                        name: sent.metadata.name.unwrap_or_default().into(),
                    };
                    let uid = Uid::from(&*sent.metadata.uid.unwrap_or_default());
                    self.known.change(|store| store.deleted(&id, &uid));
                }
                WatchEvent::Bookmark(mark) => {
                    remember(version, Some(&mark.metadata.resource_version));
                }
                WatchEvent::Error(status) => return Err(kube::Error::Api(status.boxed()).into()),
            }
            self.backoff.reset();
        }
    }

    fn well(&self) {
        let kind = self.kind;
        self.known.change(|store| store.heard(kind));
    }

    async fn failed(&mut self, unheard: Unheard) {
        let pause = self.backoff.next();
        let kind = self.kind;
        let error = unheard.error.clone();
        let fresh = self
            .known
            .change(|store| store.failed(kind, unheard, Instant::now()));
        if fresh {
            tracing::warn!(%kind, error, "this kind cannot be followed; what is known of it goes on");
        } else {
            tracing::debug!(%kind, error, "this kind can still not be followed");
        }
        tokio::time::sleep(pause).await;
    }
}

fn remember(version: &mut String, seen: Option<&str>) {
    if let Some(seen) = seen.filter(|seen| !seen.is_empty()) {
        seen.clone_into(version);
    }
}

/// An answer that begins within [`ANSWER`].
async fn answered<T>(answer: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Trouble> {
    match timeout(ANSWER, answer).await {
        Ok(answer) => answer.map_err(Trouble::from),
        Err(_) => Err(silence()),
    }
}

/// All of an answer. A large one over a slow line takes as long as it takes.
async fn whole(answer: impl AsyncBufRead) -> Result<Vec<u8>, Trouble> {
    let mut answer = pin!(answer);
    let mut text = Vec::new();
    loop {
        let part = timeout(ANSWER, answer.fill_buf()).await;
        let part = part.map_err(|_| silence())?;
        let part = part.map_err(kube::Error::ReadEvents)?;
        if part.is_empty() {
            return Ok(text);
        }
        text.extend_from_slice(part);
        let taken = part.len();
        answer.consume_unpin(taken);
    }
}

fn silence() -> Trouble {
    Trouble::Failed(Unheard::silence(format!(
        "no answer within {} seconds",
        ANSWER.as_secs()
    )))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use kube::Api;
    use kube::core::{ApiResource, GroupVersionKind};
    use serde_json::{Value, json};
    use tokio::time::timeout;

    use super::{Trouble, Watcher};
    use crate::backoff::Backoff;
    use crate::cluster::Known;
    use crate::fake::{Answer, server};
    use crate::kinds::Kind;

    fn watcher(client: kube::Client, kind: Kind) -> Watcher {
        let resource = GroupVersionKind::gvk(kind.group(), kind.versions()[0], kind.name());
        let resource = ApiResource::from_gvk(&resource);
        Watcher {
            kind,
            api: Api::all_with(client, &resource),
            resource,
            known: Arc::new(Known::default()),
            quiet: Duration::from_millis(50),
            backoff: Backoff::default(),
        }
    }

    #[tokio::test]
    async fn a_list_comes_in_pages_that_are_small_where_objects_are_large() {
        let page = |name: &str, next: &str| {
            json!({
                "apiVersion": "v1", "kind": "List",
                "metadata": { "resourceVersion": "7", "continue": next },
                "items": [{ "metadata": { "name": name, "namespace": "n" } }]
            })
        };
        for (kind, limit) in [
            (Kind::Service, 500),
            (Kind::Secret, 50),
            (Kind::ConfigMap, 50),
        ] {
            let (client, asked) = server(move |request| match request.contains("continue=more") {
                true => Answer::Json(200, page("b", "")),
                false => Answer::Json(200, page("a", "more")),
            })
            .await;
            let (objects, version) = watcher(client, kind).pages().await.expect("a list");
            let names: Vec<_> = objects.iter().map(|object| &*object.id.name).collect();
            assert_eq!((names, &*version), (vec!["a", "b"], "7"));
            for request in asked.all() {
                let mut parts = request.split(['?', '&', ' ']);
                assert!(
                    parts.any(|part| part == format!("limit={limit}")),
                    "{request}"
                );
            }
        }
    }

    fn list(version: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "ServiceList",
            "metadata": { "resourceVersion": version }, "items": []
        })
    }

    #[tokio::test]
    async fn a_watch_that_says_nothing_is_not_opened_again_at_a_version_to_come() {
        // Its data are older than they were: watches of what is to come hear nothing.
        let (client, asked) = server(|request| match request.contains("watch=true") {
            true => Answer::Lines(Vec::new()),
            false => Answer::Json(200, list("100")),
        })
        .await;
        let mut watcher = watcher(client, Kind::Service);
        let watched = timeout(Duration::from_secs(20), watcher.watch("5000".to_owned())).await;
        assert!(matches!(watched, Ok(Trouble::Expired)), "{:?}", asked.all());
        assert_eq!(asked.all().len(), 2);
    }
}
