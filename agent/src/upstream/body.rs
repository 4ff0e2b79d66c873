//! The body of a request on its way up: streamed, counted, and watched for progress.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::kept::{Kept, Position, Room};

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

/// Why a body does not go on.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The client's body broke off.
    #[error("the client's body broke off")]
    Client(#[source] hyper::Error),
    /// The request is being sent elsewhere by now.
    #[error("the request is sent again, elsewhere")]
    Superseded,
}

/// A request's body; whatever the client has not sent yet is waited for.
#[derive(Debug)]
pub struct RequestBody {
    source: Source,
    progress: Rc<Progress>,
}

#[derive(Debug)]
enum Source {
    Empty,
    /// Straight from the client, never stored.
    Client(Incoming),
    /// By way of copies that another try can have.
    Kept(Rc<Kept>, Position),
    /// A copy of a whole one, and the bytes that are left of it.
    Copy(std::vec::IntoIter<Bytes>, u64),
}

impl RequestBody {
    /// Watches a body.
    pub fn new(inner: Incoming, progress: Rc<Progress>) -> Self {
        let source = match inner.is_end_stream() {
            true => Source::Empty,
            false => Source::Client(inner),
        };
        Self { source, progress }
    }

    /// No body.
    pub fn empty(progress: Rc<Progress>) -> Self {
        Self {
            source: Source::Empty,
            progress,
        }
    }

    /// The copy of a whole body.
    pub fn copied(frames: Vec<Bytes>, progress: Rc<Progress>) -> Self {
        let bytes: usize = frames.iter().map(Bytes::len).sum();
        Self {
            source: Source::Copy(frames.into_iter(), bytes as u64),
            progress,
        }
    }

    /// Copies what passes from here on, if there is a body.
    pub fn keep(self, room: &Room) -> Option<Rc<Kept>> {
        match self.source {
            Source::Client(incoming) => Some(Kept::new(incoming, room)),
            Source::Kept(kept, _) => Some(kept),
            Source::Empty | Source::Copy(..) => None,
        }
    }

    /// A body once more from its beginning, if it is still there. Who read it before gets no more.
    pub fn again(kept: &Rc<Kept>, progress: Rc<Progress>) -> Option<Self> {
        let position = kept.again()?;
        Some(Self {
            source: Source::Kept(Rc::clone(kept), position),
            progress,
        })
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
        this.progress.touch();
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
            && fresh
        {
            let bytes = &this.progress.bytes;
            bytes.set(bytes.get() + data.len() as u64);
        }
        Poll::Ready(frame)
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
