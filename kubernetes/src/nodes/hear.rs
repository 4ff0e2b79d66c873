//! Listens to what other nodes go by, as long as this agent writes status.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::timeout;

use super::report::{ACTIVATED, SELECTOR, node_of};
use super::{FORGOTTEN, Nodes};
use crate::backoff::Backoff;
use crate::error::explain;

/// How long the API server keeps a watch open, in seconds.
const WATCH: u32 = 270;
/// A watch that says nothing for so long is taken for dead.
const QUIET: Duration = Duration::from_secs(100);
/// One that ends sooner than this again and again is opened ever more seldom.
const SHORT: Duration = Duration::from_secs(1);
/// Until an answer must begin.
const ANSWER: Duration = Duration::from_secs(10);

/// Listens while `leads`, until it is not polled any more.
pub(crate) async fn hear(
    client: Client,
    me: String,
    mut leads: watch::Receiver<bool>,
    nodes: Arc<watch::Sender<Nodes>>,
) {
    let api: Api<Lease> = Api::default_namespaced(client);
    while leads.wait_for(|leads| *leads).await.is_ok() {
        let ended = tokio::select! {
            ended = leads.wait_for(|leads| !*leads) => ended.map(|_| ()),
            () = follow(&api, &me, &nodes) => Ok(()),
            () = expire(&nodes) => Ok(()),
        };
        nodes.send_if_modified(|nodes| {
            nodes.forget();
            false
        });
        if ended.is_err() {
            return;
        }
    }
}

/// Drops nodes that say nothing any more.
async fn expire(nodes: &watch::Sender<Nodes>) {
    loop {
        tokio::time::sleep(FORGOTTEN / 10).await;
        nodes.send_if_modified(|nodes| nodes.expire(Instant::now()));
    }
}

async fn follow(api: &Api<Lease>, me: &str, nodes: &watch::Sender<Nodes>) {
    let mut backoff = Backoff::default();
    let mut failing = false;
    loop {
        if let Err(error) = listen(api, me, nodes, &mut backoff, &mut failing).await {
            if !failing {
                tracing::warn!(error, "what other nodes go by cannot be heard");
            }
            failing = true;
            nodes.send_modify(Nodes::deaf);
        }
        tokio::time::sleep(backoff.next()).await;
    }
}

/// Lists, and watches as long as that goes on without a list.
async fn listen(
    api: &Api<Lease>,
    me: &str,
    nodes: &watch::Sender<Nodes>,
    backoff: &mut Backoff,
    failing: &mut bool,
) -> Result<(), String> {
    let list = ListParams::default().labels(SELECTOR);
    let listed = timeout(ANSWER, api.list(&list)).await;
    let listed = listed.map_err(|_| "no answer in time".to_owned())?;
    let listed = listed.map_err(|error| explain(&error))?;
    *failing = false;
    nodes.send_modify(|nodes| {
        let now = Instant::now();
        let others = listed.items.iter().filter_map(node_of);
        let others: Vec<Arc<str>> = others.filter(|name| *name != me).map(Arc::from).collect();
        nodes.listed(&others);
        for lease in &listed.items {
            said(nodes, lease, me, now);
        }
    });
    let mut version = listed.metadata.resource_version.unwrap_or_default();
    loop {
        let opened = Instant::now();
        let params = WatchParams::default().timeout(WATCH).labels(SELECTOR);
        let events = timeout(ANSWER, api.watch(&params, &version)).await;
        let events = events.map_err(|_| "no answer in time".to_owned())?;
        let mut events = pin!(events.map_err(|error| explain(&error))?);
        while let Ok(Some(event)) = timeout(QUIET, events.next()).await {
            let metadata = match event.map_err(|error| explain(&error))? {
                WatchEvent::Added(lease) | WatchEvent::Modified(lease) => {
                    nodes.send_if_modified(|nodes| said(nodes, &lease, me, Instant::now()));
                    lease.metadata
                }
                WatchEvent::Deleted(lease) => {
                    if let Some(name) = node_of(&lease) {
                        nodes.send_modify(|nodes| nodes.gone(name));
                    }
                    lease.metadata
                }
                WatchEvent::Bookmark(mark) => {
                    version = mark.metadata.resource_version;
                    continue;
                }
                // What the API server has forgotten is listed anew.
                WatchEvent::Error(status) if status.code == 410 => return Ok(()),
                WatchEvent::Error(status) => return Err(status.message.clone()),
            };
            if let Some(seen) = metadata.resource_version {
                version = seen;
            }
        }
        if opened.elapsed() >= SHORT {
            backoff.reset();
        }
        tokio::time::sleep(backoff.next()).await;
    }
}

/// Takes what a lease says; whether that is news.
fn said(nodes: &mut Nodes, lease: &Lease, me: &str, now: Instant) -> bool {
    let Some(name) = node_of(lease).filter(|name| *name != me) else {
        return false;
    };
    let annotations = lease.metadata.annotations.as_ref();
    let Some(digest) = annotations.and_then(|annotations| annotations.get(ACTIVATED)) else {
        return false;
    };
    let renewed = lease.spec.as_ref().and_then(|spec| spec.renew_time.clone());
    nodes.heard(name, digest, renewed, now)
}
