//! The body of a request on its way up: streamed, counted, and watched for progress.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Instant;

/// How far a request's body is. One per request, on one core.
#[derive(Debug)]
pub struct Progress {
    last: Cell<Instant>,
    bytes: Cell<u64>,
    waits: Cell<bool>,
    broken: Cell<Option<BodyBreak>>,
}

/// Why a request's body ended before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyBreak {
    /// The client broke off.
    Client,
    /// It was longer than this many bytes.
    TooLong(u64),
}

/// What whoever reads a request's body is told.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The client broke off.
    #[error("client broke off its request body")]
    Client(#[source] hyper::Error),
    /// More bytes than the request's target takes.
    #[error("request body is longer than {limit} bytes")]
    TooLong {
        /// The limit.
        limit: u64,
    },
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            last: Cell::new(Instant::now()),
            bytes: Cell::new(0),
            waits: Cell::new(false),
            broken: Cell::new(None),
        }
    }
}

impl Progress {
    /// Starts the clock again.
    pub fn touch(&self) {
        self.last.set(Instant::now());
    }

    /// When the body last moved, or the clock was started.
    pub fn last(&self) -> Instant {
        self.last.get()
    }

    /// Bytes of the body so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.get()
    }

    /// Whether the next bytes have to come from the client.
    pub fn waits_for_client(&self) -> bool {
        self.waits.get()
    }

    /// Why the body ended before its end, if it did.
    pub fn broken(&self) -> Option<BodyBreak> {
        self.broken.get()
    }
}

/// A request's body; whatever the client has not sent yet is waited for, never stored.
#[derive(Debug)]
pub struct RequestBody {
    inner: Option<Incoming>,
    limit: Option<u64>,
    progress: Rc<Progress>,
}

impl RequestBody {
    /// Watches a body.
    pub fn new(inner: Incoming, progress: Rc<Progress>) -> Self {
        Self {
            inner: Some(inner),
            limit: None,
            progress,
        }
    }

    /// No body.
    pub fn empty(progress: Rc<Progress>) -> Self {
        Self {
            inner: None,
            limit: None,
            progress,
        }
    }

    /// The same body, of which no byte above a limit is passed on.
    #[must_use]
    pub fn limited(self, limit: Option<u64>) -> Self {
        Self { limit, ..self }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let Some(inner) = &mut this.inner else {
            return Poll::Ready(None);
        };
        this.progress.waits.set(true);
        let frame = ready!(Pin::new(inner).poll_frame(context));
        this.progress.waits.set(false);
        this.progress.touch();
        let frame = match frame {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => {
                this.progress.broken.set(Some(BodyBreak::Client));
                return Poll::Ready(Some(Err(BodyError::Client(error))));
            }
            None => return Poll::Ready(None),
        };
        if let Some(data) = frame.data_ref() {
            let bytes = this.progress.bytes() + data.len() as u64;
            this.progress.bytes.set(bytes);
            if let Some(limit) = this.limit.filter(|limit| bytes > *limit) {
                this.progress.broken.set(Some(BodyBreak::TooLong(limit)));
                return Poll::Ready(Some(Err(BodyError::TooLong { limit })));
            }
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}
