//! A request's body that can be sent more than once, as long as it is small.
//!
//! Frames go to the upstream as they come, and a copy of each is kept until there are too many of
//! them. One reader at a time gets the body: what an abandoned try still asks for is refused, so that
//! no upstream takes a part for the whole.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use tokio::sync::Notify;

use super::body::{BodyError, RequestBody};
use super::client_body::ClientBody;

/// Bytes of one body that are kept at most.
pub const MAX_BODY: usize = 256 * 1024;

/// Bytes of a frame from which on it is kept as it is, and not copied.
const SMALL: usize = 8 * 1024;

/// Bytes of all bodies of a core that are kept at most; beyond that, new ones are not kept.
const MAX_TOTAL: usize = 32 * 1024 * 1024;

/// The same of bodies that are read to their end before they are sent; beyond that, requests are refused.
const MAX_BUFFERED: usize = 128 * 1024 * 1024;

/// Room for the bodies that a core keeps.
#[derive(Clone, Debug, Default)]
pub struct Room(Rc<Cell<usize>>);

/// Why a body is not there to its end.
#[derive(Debug, thiserror::Error)]
pub enum Unkept {
    /// It broke off, or is too long.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// Others take all the memory that there is for such bodies.
    #[error("as many bodies are buffered as there is memory for")]
    NoRoom,
}

/// A body and what was read of it.
#[derive(Debug)]
pub struct Kept {
    state: RefCell<State>,
    /// Bytes that the body may have.
    limit: Option<u64>,
    room: Room,
    /// Tells that no more will be kept.
    ended: Notify,
}

#[derive(Debug)]
struct State {
    incoming: ClientBody,
    frames: Vec<Bytes>,
    bytes: usize,
    trailers: Option<HeaderMap>,
    end: End,
    /// Number of the reader that gets the body.
    reader: u64,
    /// Who waits for the client.
    waiting: Option<Waker>,
}

/// How far the client's body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// More may come.
    Open,
    /// All of it was read.
    Whole,
    /// More may come, and what was is not kept: there is too much of it.
    Large,
    /// It broke off.
    Broken,
}

/// What a reader gets: a frame, the end, or why there is none.
pub(super) type Read = Option<Result<Frame<Bytes>, BodyError>>;

/// Where a reader is.
#[derive(Debug)]
pub(super) struct Position {
    reader: u64,
    frame: usize,
    trailers: bool,
}

impl Kept {
    /// Keeps a body from its beginning.
    pub fn new(incoming: ClientBody, limit: Option<u64>, room: &Room) -> Rc<Self> {
        Rc::new(Self {
            state: RefCell::new(State {
                incoming,
                frames: Vec::new(),
                bytes: 0,
                trailers: None,
                end: End::Open,
                reader: 0,
                waiting: None,
            }),
            limit,
            room: room.clone(),
            ended: Notify::new(),
        })
    }

    /// Reads a body to its end. `room` is that of such bodies alone.
    pub async fn whole(mut body: RequestBody, room: &Room) -> Result<Rc<Self>, Unkept> {
        let kept = Self::new(ClientBody::empty(), None, room);
        // However small its parts are.
        let mut all = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let data = match frame?.into_data() {
                Ok(data) => data,
                Err(frame) => {
                    // What is neither data nor trailers has no meaning yet (`http_body::Frame`), and takes nothing away.
                    if let Ok(trailers) = frame.into_trailers() {
                        kept.state.borrow_mut().trailers = Some(trailers);
                    }
                    continue;
                }
            };
            let total = room.0.get() + data.len();
            if total > MAX_BUFFERED {
                return Err(Unkept::NoRoom);
            }
            room.0.set(total);
            kept.state.borrow_mut().bytes += data.len();
            all.extend_from_slice(&data);
        }
        let mut state = kept.state.borrow_mut();
        if !all.is_empty() {
            state.frames.push(all.freeze());
        }
        state.end = End::Whole;
        drop(state);
        Ok(kept)
    }

    /// Bytes that the body may have.
    pub(super) fn limit(&self) -> Option<u64> {
        self.limit
    }

    /// Whether the beginning is still there.
    pub fn is_whole(&self) -> bool {
        !matches!(self.state.borrow().end, End::Large | End::Broken)
    }

    /// Starts from the beginning with another reader, or says that the beginning is not there any more.
    pub(super) fn again(&self) -> Option<Position> {
        if !self.is_whole() {
            return None;
        }
        let mut state = self.state.borrow_mut();
        state.reader += 1;
        // A body wakes only who asked last; the reader before is to hear that it gets no more.
        if let Some(before) = state.waiting.take() {
            before.wake();
        }
        Some(Position {
            reader: state.reader,
            frame: 0,
            trailers: false,
        })
    }

    /// The next frame for a reader, and whether it came from the client just now.
    pub(super) fn poll(
        &self,
        position: &mut Position,
        context: &mut Context<'_>,
    ) -> Poll<(Read, bool)> {
        let state = &mut *self.state.borrow_mut();
        if position.reader != state.reader {
            return Poll::Ready((Some(Err(BodyError::Superseded)), false));
        }
        if let Some(frame) = state.frames.get(position.frame) {
            position.frame += 1;
            return Poll::Ready((Some(Ok(Frame::data(frame.clone()))), false));
        }
        if state.end == End::Whole {
            let trailers = state.trailers.clone().filter(|_| !position.trailers);
            position.trailers = true;
            return Poll::Ready((
                trailers.map(|trailers| Ok(Frame::trailers(trailers))),
                false,
            ));
        }
        let frame = Pin::new(&mut state.incoming).poll_frame(context);
        state.waiting = frame.is_pending().then(|| context.waker().clone());
        let frame = ready!(frame);
        match &frame {
            None if state.end == End::Open => state.end = End::Whole,
            None => {}
            Some(Err(_)) => state.end = End::Broken,
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.keep(state, data);
                    position.frame = state.frames.len();
                } else if let Some(trailers) = frame.trailers_ref() {
                    state.trailers = Some(trailers.clone());
                    position.trailers = true;
                }
            }
        }
        // An upstream that was told the length does not ask for the end.
        if state.end == End::Open && state.incoming.is_end_stream() {
            state.end = End::Whole;
        }
        if state.end != End::Open {
            self.ended.notify_waiters();
        }
        Poll::Ready((frame.map(|frame| frame.map_err(BodyError::Client)), true))
    }

    /// Waits for the whole body and copies it; none if it is too large or never becomes whole. Trailers
    /// are not copied.
    pub async fn copy(&self) -> Option<Vec<Bytes>> {
        loop {
            let ended = self.ended.notified();
            {
                let state = self.state.borrow();
                match state.end {
                    End::Open => {}
                    End::Whole => return Some(state.frames.clone()),
                    End::Large | End::Broken => return None,
                }
            }
            ended.await;
        }
    }

    /// Says that nobody reads on: what is not whole by now never is.
    pub fn abandon(&self) {
        let mut state = self.state.borrow_mut();
        if state.end == End::Open {
            state.end = End::Broken;
            self.ended.notify_waiters();
        }
    }

    fn keep(&self, state: &mut State, data: &Bytes) {
        if state.end != End::Open {
            return;
        }
        let total = self.room.0.get();
        if state.bytes + data.len() > MAX_BODY || total + data.len() > MAX_TOTAL {
            self.room.0.set(total - state.bytes);
            state.bytes = 0;
            state.frames = Vec::new();
            state.end = End::Large;
            return;
        }
        self.room.0.set(total + data.len());
        state.bytes += data.len();
        // A small part of a large piece of memory would keep all of it.
        state.frames.push(match data.len() {
            0..SMALL => Bytes::copy_from_slice(data),
            _ => data.clone(),
        });
    }

    pub(super) fn is_end(&self, position: &Position) -> bool {
        let state = self.state.borrow();
        position.reader == state.reader
            && position.frame == state.frames.len()
            && match state.end {
                End::Whole => position.trailers || state.trailers.is_none(),
                End::Open | End::Large => state.incoming.is_end_stream(),
                End::Broken => false,
            }
    }

    pub(super) fn size_hint(&self, position: &Position) -> SizeHint {
        let state = self.state.borrow();
        let kept = state.frames.iter().skip(position.frame);
        let kept: usize = kept.map(Bytes::len).sum();
        let kept = kept as u64;
        let coming = state.incoming.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(kept + coming.lower());
        if let Some(upper) = coming.upper() {
            hint.set_upper(kept + upper);
        }
        hint
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.room
            .0
            .set(self.room.0.get() - self.state.get_mut().bytes);
    }
}
