//! One request from its head to the end of its answer, as the log sees it.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use http::{HeaderMap, HeaderName, HeaderValue};
use snapshot::model::Limit;

use super::connection::Conn;
use super::log::{AccessRecord, Reason};
use super::managed::Held;
use super::placed::ServedBy;
use super::request_id;
use super::worker::Worker;
use crate::causes::chain;
use crate::resilience::Slot;
use crate::route::cors::Cors;
use crate::route::limiter::Verdict;
use crate::upstream::Progress;
use crate::upstream::kept::Kept;

/// Collects the record of a request, or of a connection, and writes it when dropped.
pub(super) struct Exchange {
    pub(super) record: AccessRecord,
    pub(super) progress: Rc<Progress>,
    /// The connection, which is in use as long as this lives.
    pub(super) conn: Option<Rc<Conn>>,
    /// What pages of other origins are told, and the origin that asked.
    pub(super) cors: Option<(Arc<Cors>, Option<HeaderValue>)>,
    /// What a rate limit says of it.
    pub(super) rate: Option<Verdict>,
    /// How long it may stand still, if its rule says so.
    pub(super) idle: Limit,
    /// Whether the request is a call of gRPC.
    pub(super) grpc: bool,
    /// Position of the destination that answered.
    pub(super) at: Option<usize>,
    /// The request's id, as a header tells it. The answer is to tell it as long as it is here.
    pub(super) id: Option<HeaderValue>,
    /// The same of the placement that served.
    pub(super) served_by: Option<ServedBy>,
    /// The request's body, if copies of it are wanted.
    pub(super) kept: Option<Rc<Kept>>,
    /// What it holds of those that serve it; a tunnel that it becomes takes it over.
    pub(super) slots: Slots,
    worker: Rc<Worker>,
    started: Instant,
    answered: Option<Instant>,
    complete: bool,
    forgotten: bool,
}

/// A request's places among those under way.
#[derive(Debug, Default)]
pub(super) struct Slots {
    /// Of its placement.
    pub(super) placement: Option<Slot>,
    /// Of its backend.
    pub(super) backend: Option<Slot>,
    /// Among the backend's retries.
    pub(super) retry: Option<Slot>,
    /// Of the endpoint that answered.
    pub(super) served: Option<Held>,
}

impl Exchange {
    pub(super) fn begin(worker: &Rc<Worker>, protocol: &'static str, client: Arc<str>) -> Self {
        let started = Instant::now();
        let since = worker.wall(started);
        Self {
            record: AccessRecord {
                time_ms: since.as_millis() as u64,
                start_ns: since.as_nanos() as u64,
                protocol,
                client: Some(client),
                ..AccessRecord::default()
            },
            progress: Rc::new(Progress::new(started.into())),
            conn: None,
            cors: None,
            rate: None,
            idle: Limit::Unset,
            grpc: false,
            kept: None,
            at: None,
            id: None,
            served_by: None,
            slots: Slots::default(),
            worker: Rc::clone(worker),
            started,
            answered: None,
            complete: false,
            forgotten: false,
        }
    }

    /// When it began.
    pub(super) fn begun(&self) -> tokio::time::Instant {
        self.started.into()
    }

    /// The last moment that was looked at: the head of the upstream's answer, or the request's.
    pub(super) fn moment(&self) -> Instant {
        self.answered.unwrap_or(self.started)
    }

    /// Fields that the answer is to tell besides its own.
    pub(super) fn told(&self, mut tell: impl FnMut(HeaderName, &HeaderValue)) {
        if let Some(id) = &self.id {
            tell(request_id::HEADER, id);
        }
        if let Some(served) = &self.served_by {
            served.each(tell);
        }
    }

    /// Adds these fields to the answer's own.
    pub(super) fn tell(&mut self, headers: &mut HeaderMap) {
        self.told(|name, value| {
            headers.insert(name, value.clone());
        });
        (self.id, self.served_by) = (None, None);
    }

    /// The answer reached its end.
    pub(super) fn complete(&mut self) {
        self.complete = true;
    }

    /// An upstream is asked from now on; the answer tells how long that takes.
    pub(super) fn asks(&mut self) {
        let now = Instant::now();
        self.progress.touch(now.into());
        self.record.request_us = Some(now.duration_since(self.started).as_micros() as u64);
        self.record.upstream_us = None;
    }

    /// The head of the upstream's answer is there.
    pub(super) fn answered(&mut self) {
        let now = Instant::now();
        let total = now.duration_since(self.started).as_micros() as u64;
        self.answered = Some(now);
        self.record.upstream_us = self
            .record
            .request_us
            .map(|asked| total.saturating_sub(asked));
    }

    /// It broke on the way.
    pub(super) fn failed(&mut self, reason: Reason, error: &dyn std::error::Error) {
        self.complete = true;
        self.record.reason = reason;
        self.record.detail = Some(chain(error));
    }

    /// It was refused, and the answer says so.
    pub(super) fn refused(&mut self, reason: Reason, detail: impl Into<String>) {
        self.complete = true;
        self.record.reason = reason;
        self.record.detail = Some(detail.into());
    }

    /// Nothing to record: what follows has records of its own.
    pub(super) fn forget(&mut self) {
        self.forgotten = true;
    }

    pub(super) fn listener(&mut self, name: &Arc<str>) {
        self.record.listener = Some(Arc::clone(name));
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if let Some(kept) = &self.kept {
            kept.abandon();
        }
        if self.forgotten {
            return;
        }
        let now = Instant::now();
        if let Some(conn) = &self.conn {
            conn.free.set(now.into());
        }
        if !self.complete && self.record.reason == Reason::Ok {
            self.record.reason = Reason::ClientClosed;
        }
        self.record.bytes_in += self.progress.bytes();
        self.record.duration_us = now.duration_since(self.started).as_micros() as u64;
        self.worker.metrics.count(&self.record);
        self.worker.log.push(&mut self.record);
    }
}
