//! Copies of requests to other backends (Gateway API, `RequestMirror`).
//!
//! Flows in: a request as it goes upstream, and the mirrors of its rule. Flows out: nothing that
//! anybody waits for. A copy has its own connection, its own time and its place among a bounded
//! number; one with a body leaves once the upstream has read all of it, and only if it is small. So
//! the request itself is neither slower nor worse for it.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http_body_util::BodyExt;
use tokio::time::Instant;

use super::target::mirrored;
use super::worker::Worker;
use crate::route::filter::Mirror;
use crate::route::{Filters, Identity, RouteTable};
use crate::upstream::kept::Kept;
use crate::upstream::{AnswerBody, Destination, Patience, Progress, RequestBody, UpstreamRequest};

/// Copies that a core has under way at most; beyond that they are left out.
const MAX_COPIES: usize = 128;

/// From the request's beginning to the end of the copy's answer.
const LIMIT: Duration = Duration::from_secs(15);

/// Copies under way on one core.
#[derive(Clone, Debug, Default)]
pub(super) struct Copies(Rc<Cell<usize>>);

/// One copy's place.
struct Place(Rc<Cell<usize>>);

impl Copies {
    fn place(&self) -> Option<Place> {
        let count = self.0.get();
        (count < MAX_COPIES).then(|| {
            self.0.set(count + 1);
            Place(Rc::clone(&self.0))
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// The mirrors that get a copy of this request.
pub(super) fn chosen<'a, const N: usize>(
    worker: &Worker,
    lists: [&'a Filters; N],
) -> Vec<&'a Mirror> {
    lists
        .into_iter()
        .flat_map(|filters| &filters.mirrors)
        .filter(|mirror| worker.random() % u64::from(mirror.of.get()) < u64::from(mirror.share))
        .collect()
}

/// Sends a copy to each mirror. `like` is where the request itself goes, and what is shown there: copies
/// speak the same version, carry the same mark and show the same.
pub(super) fn send(
    worker: &Rc<Worker>,
    table: &Arc<RouteTable>,
    mirrors: &[&Mirror],
    parts: &Parts,
    body: Option<&Rc<Kept>>,
    like: (&Destination, Option<&Arc<Identity>>),
) {
    for mirror in mirrors {
        let destinations = mirrored(worker, table.generation, &mirror.target, like);
        let tallies = worker.metrics.mirrors.clone();
        let Some(place) = worker.copies.place().filter(|_| !destinations.is_empty()) else {
            tallies.left_out.inc();
            continue;
        };
        let (worker, table) = (Rc::clone(worker), Arc::clone(table));
        let (parts, body) = (Box::new(parts.clone()), body.cloned());
        tokio::task::spawn_local(async move {
            let _place = place;
            let deadline = Instant::now() + LIMIT;
            let progress: Rc<Progress> = Rc::default();
            let body = match body {
                None => Some(RequestBody::empty(Rc::clone(&progress))),
                Some(kept) => match tokio::time::timeout_at(deadline, kept.copy()).await {
                    Ok(Some(frames)) => Some(RequestBody::copied(frames, Rc::clone(&progress))),
                    Ok(None) | Err(_) => None,
                },
            };
            let Some(body) = body else {
                tallies.left_out.inc();
                return;
            };
            let more = Vec::new();
            let request = Box::new(UpstreamRequest { parts, more, body });
            let patience = Patience::Until(deadline);
            let client = &worker.client;
            let answer = client.send(&destinations, request, &progress, patience, &table);
            match answer.await {
                Ok(answer) => {
                    tallies.sent.inc();
                    read_to_the_end(answer.body, deadline).await;
                }
                Err(error) => {
                    tallies.failed.inc();
                    tracing::debug!(%error, "a mirror took no copy");
                }
            }
        });
    }
}

/// Reads an answer that nobody wants, so that its connection can be used again.
async fn read_to_the_end(mut body: AnswerBody, deadline: Instant) {
    while let Ok(Some(Ok(_))) = tokio::time::timeout_at(deadline, body.frame()).await {}
}
