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
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            last: Cell::new(Instant::now()),
            bytes: Cell::new(0),
            waits: Cell::new(false),
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
}

/// A request's body; whatever the client has not sent yet is waited for, never stored.
#[derive(Debug)]
pub struct RequestBody {
    inner: Option<Incoming>,
    progress: Rc<Progress>,
}

impl RequestBody {
    /// Watches a body.
    pub fn new(inner: Incoming, progress: Rc<Progress>) -> Self {
        Self {
            inner: Some(inner),
            progress,
        }
    }

    /// No body.
    pub fn empty(progress: Rc<Progress>) -> Self {
        Self {
            inner: None,
            progress,
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let Some(inner) = &mut this.inner else {
            return Poll::Ready(None);
        };
        this.progress.waits.set(true);
        let frame = ready!(Pin::new(inner).poll_frame(context));
        this.progress.waits.set(false);
        this.progress.touch();
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            let bytes = &this.progress.bytes;
            bytes.set(bytes.get() + data.len() as u64);
        }
        Poll::Ready(frame)
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
