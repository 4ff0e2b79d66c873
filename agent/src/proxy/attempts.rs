//! Sending a request: how long it is waited for, and how often it is tried.
//!
//! Flows in: a request, its destinations, and what its rule says of time and retries. Flows out: the
//! head of the last answer and the moment at which it has to be over. Every wait ends with the
//! request's own time, and every retry is taken from its backend's budget.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::{HeaderName, HeaderValue};
use http_body::Body as _;
use snapshot::model::{Failures, Jitter, Limit, Retry, RuleTimeouts};
use tokio::time::Instant;

use super::exchange::Exchange;
use super::log::Reason;
use super::managed::Try;
use super::request::Stage;
use super::respond::Refusal;
use crate::causes::chain;
use crate::route::Managed;
use crate::upstream::kept::Kept;
use crate::upstream::{Answer, Destination, Patience, RequestBody, UpstreamError, UpstreamRequest};

/// What a rule says of its requests' time and tries.
#[derive(Clone, Copy)]
pub(super) struct Effort<'a> {
    pub(super) timeouts: RuleTimeouts,
    pub(super) retry: Option<&'a Retry>,
    /// Whose budget retries are taken from.
    pub(super) backend: &'a Arc<str>,
    /// The backend, if a policy is about it.
    pub(super) managed: Option<&'a Managed>,
}

/// The head of an answer, and when its body has to be over.
pub(super) struct Got {
    pub(super) answer: Box<Answer>,
    pub(super) deadline: Option<Instant>,
}

/// When a request has to be over, and the try that begins now.
struct Limits {
    whole: Option<Instant>,
    /// Of this try.
    deadline: Option<Instant>,
    /// Of this try, if the request or its answer is a stream.
    stream: Option<Instant>,
    /// How long its head is waited for.
    patience: Patience,
}

impl Limits {
    /// `streams`: whether the request has no length that its head tells.
    fn new(
        timeouts: RuleTimeouts,
        begun: Instant,
        streams: bool,
        now: impl FnOnce() -> Instant,
    ) -> Self {
        let after = |limit, from: &dyn Fn() -> Instant| match limit {
            Limit::After(limit) => Some(from() + limit),
            Limit::Off | Limit::Unset => None,
        };
        let whole = after(timeouts.request, &|| begun);
        let one = match timeouts.backend {
            Limit::After(limit) => Some(now() + limit),
            Limit::Off | Limit::Unset => None,
        };
        let deadline = [whole, one].into_iter().flatten().min();
        let stream = after(timeouts.stream, &|| begun);
        let usual = [timeouts.request, timeouts.backend, timeouts.idle] == [Limit::Unset; 3];
        let end = [deadline, stream.filter(|_| streams)]
            .into_iter()
            .flatten()
            .min();
        Self {
            whole,
            deadline,
            stream,
            patience: match end {
                Some(end) if usual => Patience::UsualUntil(end),
                Some(end) => Patience::Until(end),
                None if usual => Patience::Usual,
                None => Patience::Endless,
            },
        }
    }

    /// An answer, and when its body has to be over.
    fn got(&self, answer: Box<Answer>, streams: bool) -> Got {
        let body = &answer.body;
        let streams = streams || (!body.is_end_stream() && body.size_hint().exact().is_none());
        let stream = self.stream.filter(|_| streams);
        Got {
            deadline: [self.deadline, stream].into_iter().flatten().min(),
            answer,
        }
    }
}

/// Sends a request as often as its rule says.
pub(super) async fn send(
    stage: &Stage<'_>,
    exchange: &mut Exchange,
    destinations: &mut [Destination],
    request: Box<UpstreamRequest>,
    effort: Effort<'_>,
) -> Result<Got, Refusal> {
    let streams = request.body.size_hint().exact().is_none();
    if let Some(retry) = effort.retry.filter(|retry| retry.attempts > 0) {
        let how = (retry, effort, streams);
        return Box::pin(retried(stage, exchange, destinations, request, how)).await;
    }
    let limits = Limits::new(effort.timeouts, exchange.begun(), streams, Instant::now);
    let answer = match effort.managed {
        None => {
            let client = &stage.worker.client;
            let (progress, patience) = (&exchange.progress, limits.patience);
            client
                .send(destinations, request, progress, patience, stage.table)
                .await?
        }
        // What has more to wait for has memory of its own.
        managed => {
            let how = (limits.patience, managed);
            Box::pin(once(stage, exchange, destinations, request, how)).await?
        }
    };
    Ok(limits.got(answer, streams))
}

async fn retried(
    stage: &Stage<'_>,
    exchange: &mut Exchange,
    destinations: &mut [Destination],
    request: Box<UpstreamRequest>,
    (retry, effort, streams): (&Retry, Effort<'_>, bool),
) -> Result<Got, Refusal> {
    let begun = exchange.begun();
    let worker = stage.worker;
    let budgets = &worker.budgets;
    budgets.borrow_mut().request(effort.backend, Instant::now());
    let mut original = Original {
        parts: request.parts,
        more: request.more,
        body: request.body.keep(&worker.room),
    };
    let mut retries = 0;
    loop {
        let now = Instant::now();
        exchange.progress.touch(now);
        let limits = Limits::new(effort.timeouts, begun, streams, || now);
        let Some(request) = original.request(exchange) else {
            // Asked for only while the body is whole.
            return Err(Refusal::new(Reason::RequestTimeout, "the body is gone"));
        };
        let how = (limits.patience, effort.managed);
        let got = once(stage, exchange, destinations, request, how).await;
        let again = match &got {
            Ok(answer) => wanted(retry, answer),
            Err(error) => failed(retry.failures, error),
        };
        let now = Instant::now();
        let wait = wait(retry, retries, worker.random());
        let why_not = if !again {
            None
        } else if retries == retry.attempts {
            Some("no try is left")
        } else if limits.whole.is_some_and(|whole| now + wait >= whole) {
            Some("no time is left")
        } else if !original.is_whole() {
            worker.metrics.retries.body.inc();
            Some("the request's body is too large to be sent again")
        } else if !budgets
            .borrow_mut()
            .retry(effort.backend, retry.budget, now)
        {
            worker.metrics.retries.budget.inc();
            Some("the backend's retry budget is used up")
        } else if !may_retry(exchange, effort.managed, retries) {
            worker.metrics.retries.overflow.inc();
            Some("the backend has as many retries under way as it may have")
        } else {
            worker.metrics.retries.sent.inc();
            retries += 1;
            exchange.record.retries = retries;
            drop(got);
            tokio::time::sleep(wait).await;
            destinations.rotate_left(1);
            continue;
        };
        return match got {
            Ok(answer) => Ok(limits.got(answer, streams)),
            Err(error) if error.is_connection() => {
                let why = why_not.unwrap_or("the rule does not ask for it");
                let detail = format!("{}; not tried again: {why}", chain(&error));
                Err(Refusal::new(Reason::RetriesExhausted, detail))
            }
            Err(error) => Err(error.into()),
        };
    }
}

async fn once(
    stage: &Stage<'_>,
    exchange: &mut Exchange,
    destinations: &[Destination],
    request: Box<UpstreamRequest>,
    (patience, managed): (Patience, Option<&Managed>),
) -> Result<Box<Answer>, UpstreamError> {
    let client = &stage.worker.client;
    let watched = match managed {
        Some(managed) => Some(Try::begin(stage.worker, managed, destinations, patience).await?),
        None => None,
    };
    let result = client
        .send(
            destinations,
            request,
            &exchange.progress,
            patience,
            stage.table,
        )
        .await;
    if let Some(watched) = watched {
        exchange.slots.served = watched.ended(stage.worker, destinations, &result);
    }
    result
}

/// Takes a place among the backend's retries under way, if there is one; it is enough for all retries of the
/// request.
fn may_retry(exchange: &mut Exchange, managed: Option<&Managed>, retries: u32) -> bool {
    let Some(managed) = managed.filter(|_| retries == 0) else {
        return true;
    };
    let slot = managed.retry();
    let taken = slot.is_some();
    if taken {
        exchange.slots.retry = slot;
    }
    taken
}

/// Whether an answer is tried for again.
fn wanted(retry: &Retry, answer: &Answer) -> bool {
    let grpc = || {
        let status = answer.headers.get("grpc-status")?;
        let status: u8 = status.to_str().ok()?.parse().ok()?;
        Some(retry.grpc_codes.contains(&status))
    };
    retry.codes.contains(&answer.status.as_u16())
        || (!retry.grpc_codes.is_empty() && grpc().unwrap_or(false))
}

/// Whether a try that got no answer is followed by another.
fn failed(wanted: Failures, error: &UpstreamError) -> bool {
    match error {
        UpstreamError::Connect { .. } | UpstreamError::ConnectTimeout { .. } => wanted.connect,
        UpstreamError::Broken { .. } => {
            wanted.reset || (wanted.refused && error.is_refused_stream())
        }
        UpstreamError::Deadline { .. } => wanted.timeout,
        _ => false,
    }
}

/// A request that can be sent again.
struct Original {
    parts: Box<Parts>,
    more: Vec<(HeaderName, HeaderValue)>,
    body: Option<Rc<Kept>>,
}

impl Original {
    fn request(&mut self, exchange: &Exchange) -> Option<Box<UpstreamRequest>> {
        let progress = Rc::clone(&exchange.progress);
        let body = match &self.body {
            Some(kept) => RequestBody::again(kept, progress)?,
            None => RequestBody::empty(progress),
        };
        Some(Box::new(UpstreamRequest {
            parts: self.parts.clone(),
            more: self.more.clone(),
            body,
        }))
    }

    fn is_whole(&self) -> bool {
        self.body.as_ref().is_none_or(|kept| kept.is_whole())
    }
}

/// Time before the next try, after so many.
fn wait(retry: &Retry, retries: u32, random: u64) -> Duration {
    let doubled = 1u32.checked_shl(retries).unwrap_or(u32::MAX);
    let interval = retry.backoff.saturating_mul(doubled).min(retry.max_backoff);
    let part = random
        % u64::try_from(interval.as_nanos())
            .unwrap_or(u64::MAX)
            .max(1);
    let part = Duration::from_nanos(part);
    match retry.jitter {
        Jitter::Above => interval.saturating_add(part),
        Jitter::Full => part,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use snapshot::model::{Failures, Jitter, Limit, Retry, RetryBudget, RuleTimeouts};
    use tokio::time::Instant;

    use super::{Limits, wait};
    use crate::upstream::Patience;

    #[test]
    fn waits_grow_and_end() {
        let millis = Duration::from_millis;
        let mut retry = Retry {
            attempts: 9,
            codes: BTreeSet::new(),
            grpc_codes: BTreeSet::new(),
            failures: Failures::ALL,
            backoff: millis(25),
            max_backoff: millis(250),
            jitter: Jitter::Above,
            budget: RetryBudget::default(),
        };
        for (retries, interval) in [(0, 25), (1, 50), (2, 100), (3, 200), (4, 250), (99, 250)] {
            for random in [0, 1, 12_345_678_901, u64::MAX] {
                retry.jitter = Jitter::Above;
                let above = wait(&retry, retries, random);
                assert!(
                    above >= millis(interval) && above < millis(2 * interval),
                    "{retries}: {above:?}"
                );
                retry.jitter = Jitter::Full;
                assert_eq!(wait(&retry, retries, random), above - millis(interval));
            }
        }
    }

    #[test]
    fn the_shortest_limit_holds() {
        let begun = Instant::now();
        let second = Duration::from_secs(1);
        let now = begun + second;
        let after = |seconds| Limit::After(Duration::from_secs(seconds));
        for (request, backend, expected) in [
            (Limit::Unset, Limit::Unset, None),
            (Limit::Off, Limit::Off, None),
            (after(5), Limit::Unset, Some(5)),
            (after(5), after(3), Some(4)),
            (after(5), after(5), Some(5)),
            (Limit::Off, after(3), Some(4)),
        ] {
            let timeouts = RuleTimeouts {
                request,
                backend,
                ..RuleTimeouts::default()
            };
            let limits = Limits::new(timeouts, begun, true, || now);
            let expected = expected.map(|seconds| begun + second * seconds);
            assert_eq!(limits.deadline, expected);
            let usual = timeouts == RuleTimeouts::default();
            assert_eq!(matches!(limits.patience, Patience::Usual), usual);
        }
    }

    #[test]
    fn a_stream_has_its_time_and_nothing_else_has() {
        let begun = Instant::now();
        let after = |seconds| Limit::After(Duration::from_secs(seconds));
        let limits = |timeouts, streams| Limits::new(timeouts, begun, streams, || begun);
        let stream = RuleTimeouts {
            stream: after(5),
            ..RuleTimeouts::default()
        };
        let end = begun + Duration::from_secs(5);
        let patience = limits(stream, true).patience;
        assert!(matches!(patience, Patience::UsualUntil(at) if at == end));
        assert!(matches!(limits(stream, false).patience, Patience::Usual));
        let shorter = RuleTimeouts {
            request: after(3),
            ..stream
        };
        let end = begun + Duration::from_secs(3);
        for streams in [true, false] {
            let patience = limits(shorter, streams).patience;
            assert!(matches!(patience, Patience::Until(at) if at == end));
        }
        let idle = RuleTimeouts {
            idle: Limit::Off,
            ..RuleTimeouts::default()
        };
        assert!(matches!(limits(idle, true).patience, Patience::Endless));
    }
}
