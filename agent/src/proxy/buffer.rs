//! Requests that are taken whole before their upstream hears of them (Envoy Gateway, `requestBuffer`).

use std::num::NonZeroU64;
use std::rc::Rc;

use http_body::Body as _;
use tokio::time::Instant;

use super::exchange::Exchange;
use super::log::Reason;
use super::respond::Refusal;
use super::worker::Worker;
use crate::causes::chain;
use crate::upstream::kept::{Kept, Unkept};
use crate::upstream::{BodyError, RequestBody, UpstreamError};

/// Reads the body of a request to its end, of at most `limit` bytes. A client has as long for each part as an upstream has to
/// answer.
pub(super) async fn whole(
    worker: &Worker,
    exchange: &Exchange,
    body: RequestBody,
    limit: NonZeroU64,
) -> Result<RequestBody, Refusal> {
    let limit = limit.get();
    if body.is_end_stream() {
        return Ok(body);
    }
    let too_long = || Refusal::from(UpstreamError::BodyTooLong { limit });
    // What is announced need not be read.
    if body.size_hint().lower() > limit {
        return Err(too_long());
    }
    let progress = &exchange.progress;
    progress.touch(Instant::now());
    let read = Kept::whole(body.limited(Some(limit)), &worker.buffers);
    let patience = worker.client.settings().timeouts.head;
    let stalled = async {
        while progress.last() + patience > Instant::now() {
            tokio::time::sleep_until(progress.last() + patience).await;
        }
    };
    let kept = tokio::select! {
        biased;
        kept = read => kept,
        () = stalled => return Err(UpstreamError::ClientStalled { limit: patience }.into()),
    };
    let kept = kept.map_err(|error| match error {
        Unkept::Body(BodyError::TooLong { .. }) => too_long(),
        Unkept::Body(BodyError::Client(_)) => UpstreamError::ClientGone.into(),
        Unkept::Body(BodyError::Length | BodyError::Superseded) => {
            Refusal::new(Reason::BadRequest, chain(&error))
        }
        Unkept::NoRoom => Refusal::new(Reason::BackendOverloaded, chain(&error)),
    })?;
    let gone = || Refusal::new(Reason::RequestTimeout, "the body is gone");
    RequestBody::again(&kept, Rc::clone(progress)).ok_or_else(gone)
}
