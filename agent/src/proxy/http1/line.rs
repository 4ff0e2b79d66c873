//! A client's connection, shared by whoever writes answers to it and whoever reads the body of its request.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf as _, Bytes};
use http::StatusCode;
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite};

use super::head::{self, Head};
use crate::http1::{Arena, Decoder, MessageError, Outgoing, Piece, Reader, Unsent};
use crate::proxy::body::ResponseBody;
use crate::upstream::Upload;

/// Bytes of a body that nobody reads which are read for the sake of the next request.
const DRAINED: usize = 64 * 1024;

/// Bytes of a request that are read at a time, at most: what a client sends waits in memory for whoever takes it.
const READ: usize = 64 * 1024;

/// What says that a client may send the body.
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Both directions of a connection.
pub(super) struct Line<T>(RefCell<State<T>>);

struct State<T> {
    stream: T,
    reader: Reader,
    /// Bytes of an incomplete head that were looked at.
    seen: usize,
    /// Of the body of the request under way.
    decoder: Decoder,
    /// What is left to be said before the body comes.
    expected: Bytes,
    /// The body broke off.
    broken: bool,
    /// The body was given away, and not dropped yet.
    lent: bool,
    /// Who waits for the body's end.
    waiting: Option<Waker>,
}

/// What a client sent instead of a head.
pub(super) enum NoHead {
    /// Nothing, or not all of one; it is gone.
    Gone,
    /// No request; this is what to answer.
    Refused(StatusCode),
}

impl<T: AsyncRead + AsyncWrite + Unpin> Line<T> {
    /// A connection of which `ahead` was read before.
    pub(super) fn new(stream: T, ahead: Bytes, arena: Arena) -> Rc<Self> {
        let mut reader = Reader::new(arena, READ);
        reader.input = ahead;
        Rc::new(Self(RefCell::new(State {
            stream,
            reader,
            seen: 0,
            decoder: Decoder::Ended,
            expected: Bytes::new(),
            broken: false,
            lent: false,
            waiting: None,
        })))
    }

    /// The connection as it is now, and what was read ahead; none if somebody reads a body from it.
    pub(super) fn into_parts(self: Rc<Self>) -> Option<(Bytes, T)> {
        let state = Rc::try_unwrap(self).ok()?.0.into_inner();
        Some((state.reader.input, state.stream))
    }

    /// Whether a part of a request was read.
    pub(super) fn has_begun(&self) -> bool {
        !self.0.borrow().reader.input.is_empty()
    }

    /// The head of the next request.
    pub(super) fn poll_head(&self, context: &mut Context<'_>) -> Poll<Result<Head, NoHead>> {
        let state = &mut *self.0.borrow_mut();
        loop {
            let reader = &mut state.reader;
            let (input, arena) = reader.input();
            match head::read(input, state.seen, arena) {
                Err(status) => return Poll::Ready(Err(NoHead::Refused(status))),
                Ok(None) => state.seen = reader.input.len(),
                Ok(Some(mut head)) => {
                    state.seen = 0;
                    state.expected = match head.expects {
                        true => Bytes::from_static(CONTINUE),
                        false => Bytes::new(),
                    };
                    state.decoder = std::mem::replace(&mut head.decoder, Decoder::Ended);
                    state.lent = !state.decoder.ended();
                    return Poll::Ready(Ok(head));
                }
            }
            match ready!(reader.poll_more(&mut state.stream, context)) {
                Ok(0) | Err(_) => return Poll::Ready(Err(NoHead::Gone)),
                Ok(_) => {}
            }
        }
    }

    /// Whether the request under way has a body, which is then to be read by [`Upload`].
    pub(super) fn lends(&self) -> bool {
        self.0.borrow().lent
    }

    /// Ready when the client went away while it should wait for its answer. What it sends meanwhile is kept, up to
    /// one read.
    pub(super) fn poll_gone(&self, context: &mut Context<'_>) -> Poll<()> {
        let state = &mut *self.0.borrow_mut();
        if !state.decoder.ended() || !state.reader.input.is_empty() {
            return Poll::Pending;
        }
        match ready!(state.reader.poll_more(&mut state.stream, context)) {
            Ok(0) | Err(_) => Poll::Ready(()),
            Ok(_) => Poll::Pending,
        }
    }

    /// From here on an answer is written. True if its client waits to be told to go on, which it is not any more: nobody
    /// knows whether it sends the body all the same, or its next request (RFC 9110, section 10.1.1). None: it was told
    /// half of that.
    pub(super) fn answers(&self) -> Option<bool> {
        let state = &mut *self.0.borrow_mut();
        let untold = std::mem::take(&mut state.expected).len();
        if untold > 0 && untold < CONTINUE.len() {
            return None;
        }
        state.broken |= untold > 0 && !state.lent;
        Some(untold > 0)
    }

    /// Sends an answer.
    pub(super) fn poll_send(
        &self,
        outgoing: &mut Outgoing<ResponseBody>,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), Unsent<<ResponseBody as Body>::Error>>> {
        // The body may read from this connection: what its upstream answers while it still takes the request.
        outgoing.poll(&mut Writing(self), context)
    }

    /// Waits until whoever has the body has read it to its end, or left it. True if the next request can be read.
    pub(super) fn poll_free(&self, context: &mut Context<'_>) -> Poll<bool> {
        let state = &mut *self.0.borrow_mut();
        if state.broken {
            return Poll::Ready(false);
        }
        if state.lent && !state.decoder.ended() {
            state.waiting = Some(context.waker().clone());
            return Poll::Pending;
        }
        // Somebody left it: if the rest is short and here, nobody has to connect again.
        let mut drained = 0;
        while !state.decoder.ended() {
            if drained > DRAINED {
                return Poll::Ready(false);
            }
            match state.decoder.next(&mut state.reader.input) {
                Ok(Piece::Data(data)) => drained += data.len(),
                Ok(Piece::Trailers(_) | Piece::End) => {}
                Err(_) => return Poll::Ready(false),
                Ok(Piece::More) => {
                    match state.reader.poll_more(&mut state.stream, context) {
                        Poll::Ready(Ok(1..)) => {}
                        Poll::Ready(_) | Poll::Pending => return Poll::Ready(false),
                    };
                }
            }
        }
        Poll::Ready(true)
    }
}

/// The writing side.
struct Writing<'a, T>(&'a Line<T>);

impl<T: AsyncWrite + Unpin> AsyncWrite for Writing<'_, T> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0.0.borrow_mut().stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0.0.borrow_mut().stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.0.borrow().stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.0.borrow_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.0.borrow_mut().stream).poll_shutdown(context)
    }
}

impl<T> State<T> {
    /// Wakes who waits for the body.
    fn free(&mut self) {
        if let Some(waiting) = self.waiting.take() {
            waiting.wake();
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> State<T> {
    fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Option<Frame<Bytes>>, MessageError>> {
        while !self.expected.is_empty() {
            let stream = Pin::new(&mut self.stream);
            let written = ready!(stream.poll_write(context, &self.expected));
            match written.map_err(MessageError::Io)? {
                0 => return Poll::Ready(Err(MessageError::Closed)),
                count => self.expected.advance(count),
            }
            if self.expected.is_empty() {
                // TLS holds back what is small until it is asked.
                let flushed = ready!(Pin::new(&mut self.stream).poll_flush(context));
                flushed.map_err(MessageError::Io)?;
            }
        }
        loop {
            match self.decoder.next(&mut self.reader.input)? {
                Piece::Data(bytes) => return Poll::Ready(Ok(Some(Frame::data(bytes)))),
                Piece::Trailers(fields) => return Poll::Ready(Ok(Some(Frame::trailers(fields)))),
                Piece::End => return Poll::Ready(Ok(None)),
                Piece::More => {}
            }
            let more = self.reader.poll_more(&mut self.stream, context);
            if ready!(more).map_err(MessageError::Io)? == 0 {
                return Poll::Ready(Err(MessageError::Closed));
            }
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Upload for Line<T> {
    fn poll_frame(
        &self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, MessageError>>> {
        let state = &mut *self.0.borrow_mut();
        if state.broken {
            return Poll::Ready(Some(Err(MessageError::Closed)));
        }
        let frame = ready!(state.poll_frame(context));
        if frame.is_err() {
            state.broken = true;
        }
        if state.broken || state.decoder.ended() {
            state.free();
        }
        Poll::Ready(frame.transpose())
    }

    fn is_end_stream(&self) -> bool {
        let state = self.0.borrow();
        state.decoder.ended() && !state.broken
    }

    fn size_hint(&self) -> SizeHint {
        self.0.borrow().decoder.size_hint()
    }

    fn abandon(&self) {
        let state = &mut *self.0.borrow_mut();
        state.lent = false;
        state.free();
    }
}
