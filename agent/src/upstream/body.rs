//! The body of a request on its way up: streamed, counted, and watched for progress.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use super::client_body::{ClientBody, ClientBreak};
use super::kept::{Kept, Position, Room};

/// How far a request's body is. One per request, on one core.
#[derive(Debug)]
pub struct Progress {
    last: Cell<Instant>,
    bytes: Cell<u64>,
    waits: Cell<bool>,
    released: Cell<bool>,
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
    Client(#[source] ClientBreak),
    /// More bytes than the request's target takes.
    #[error("request body is longer than {limit} bytes")]
    TooLong {
        /// The limit.
        limit: u64,
    },
    /// It is longer or shorter than its head said.
    #[error("request body is not as long as announced")]
    Length,
    /// The request is being sent elsewhere by now.
    #[error("request is sent again, elsewhere")]
    Superseded,
}

impl Default for Progress {
    fn default() -> Self {
        Self::new(Instant::now())
    }
}

impl Progress {
    /// A body whose clock starts now.
    pub fn new(now: Instant) -> Self {
        Self {
            last: Cell::new(now),
            bytes: Cell::new(0),
            waits: Cell::new(false),
            released: Cell::new(false),
            broken: Cell::new(None),
        }
    }

    /// Starts the clock again.
    pub fn touch(&self, now: Instant) {
        self.last.set(now);
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

    /// What was meant for the listener's requests is not for this one.
    pub fn release(&self) {
        self.released.set(true);
    }

    /// Whether it was released from the listener's limits.
    pub fn released(&self) -> bool {
        self.released.get()
    }

    /// Why the body ended before its end, if it did.
    pub fn broken(&self) -> Option<BodyBreak> {
        self.broken.get()
    }
}

/// A request's body; whatever the client has not sent yet is waited for.
#[derive(Debug)]
pub struct RequestBody {
    source: Source,
    limit: Option<u64>,
    progress: Rc<Progress>,
}

#[derive(Debug)]
enum Source {
    Empty,
    /// Straight from the client, never stored.
    Client(ClientBody),
    /// By way of copies that another try can have.
    Kept(Rc<Kept>, Position),
    /// A copy of a whole one, and the bytes that are left of it.
    Copy(std::vec::IntoIter<Bytes>, u64),
}

impl RequestBody {
    /// Watches a body.
    pub fn new(inner: ClientBody, progress: Rc<Progress>) -> Self {
        let source = match inner.is_end_stream() {
            true => Source::Empty,
            false => Source::Client(inner),
        };
        Self {
            source,
            limit: None,
            progress,
        }
    }

    /// No body.
    pub fn empty(progress: Rc<Progress>) -> Self {
        Self {
            source: Source::Empty,
            limit: None,
            progress,
        }
    }

    /// The copy of a whole body.
    pub fn copied(frames: Vec<Bytes>, progress: Rc<Progress>) -> Self {
        let bytes: usize = frames.iter().map(Bytes::len).sum();
        Self {
            source: Source::Copy(frames.into_iter(), bytes as u64),
            limit: None,
            progress,
        }
    }

    /// Copies what passes from here on, if there is a body.
    pub fn keep(self, room: &Room) -> Option<Rc<Kept>> {
        match self.source {
            Source::Client(incoming) => Some(Kept::new(incoming, self.limit, room)),
            Source::Kept(kept, _) => Some(kept),
            Source::Empty | Source::Copy(..) => None,
        }
    }

    /// A body once more from its beginning, if it is still there. Who read it before gets no more.
    pub fn again(kept: &Rc<Kept>, progress: Rc<Progress>) -> Option<Self> {
        let position = kept.again()?;
        Some(Self {
            source: Source::Kept(Rc::clone(kept), position),
            limit: kept.limit(),
            progress,
        })
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
        this.progress.waits.set(true);
        let (frame, fresh) = match &mut this.source {
            Source::Empty => (None, true),
            Source::Client(inner) => {
                let frame = ready!(Pin::new(inner).poll_frame(context));
                (frame.map(|frame| frame.map_err(BodyError::Client)), true)
            }
            Source::Kept(kept, position) => ready!(kept.poll(position, context)),
            Source::Copy(frames, left) => {
                let frame = frames.next();
                *left -= frame.as_ref().map_or(0, |frame| frame.len() as u64);
                (frame.map(|frame| Ok(Frame::data(frame))), true)
            }
        };
        this.progress.waits.set(false);
        this.progress.touch(Instant::now());
        let frame = match frame {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => {
                if matches!(error, BodyError::Client(_)) {
                    this.progress.broken.set(Some(BodyBreak::Client));
                }
                return Poll::Ready(Some(Err(error)));
            }
            None => return Poll::Ready(None),
        };
        if let Some(data) = frame.data_ref()
            && fresh
        {
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
        match &self.source {
            Source::Empty => true,
            Source::Client(inner) => inner.is_end_stream(),
            Source::Kept(kept, position) => kept.is_end(position),
            Source::Copy(_, left) => *left == 0,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Empty => SizeHint::with_exact(0),
            Source::Client(inner) => inner.size_hint(),
            Source::Kept(kept, position) => kept.size_hint(position),
            Source::Copy(_, left) => SizeHint::with_exact(*left),
        }
    }
}
