//! The body of an answer, and what becomes of its connection behind it.

use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::upload::Upload;
use super::{Http1Error, Idle, Shelf};
use crate::http1::{Decoder, Outgoing, Piece};
use crate::upstream::RequestBody;

/// The body of an answer. Dropping it before its end closes the connection.
pub(in crate::upstream) struct Rest(State);

enum State {
    Reads(Box<Following>),
    /// It broke, which is told in the next turn.
    Broke(Http1Error),
    Ended,
}

/// An exchange whose answer's head was read.
struct Following {
    line: Line,
    reading: Reading,
}

/// Who uses the connection.
enum Line {
    /// The answer alone.
    Own(Box<Idle>),
    /// The rest of the request as well.
    Shared(Upload),
}

/// How far an answer was read.
pub(super) struct Reading {
    pub(super) decoder: Decoder,
    /// Whether the connection can be used again.
    pub(super) reusable: bool,
    /// Where it goes then.
    pub(super) shelf: Rc<Shelf>,
}

/// A part of an answer, its end, or why there is none.
type Read = Option<Result<Frame<Bytes>, Http1Error>>;

impl Reading {
    fn poll(&mut self, idle: &mut Idle, context: &mut Context<'_>) -> Poll<Read> {
        loop {
            match self.decoder.next(&mut idle.reader.input)? {
                Piece::Data(bytes) => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
                Piece::Trailers(fields) => return Poll::Ready(Some(Ok(Frame::trailers(fields)))),
                Piece::End => return Poll::Ready(None),
                Piece::More => {}
            }
            let more = idle.reader.poll_more(&mut idle.stream, context);
            if ready!(more).map_err(Http1Error::io)? == 0 {
                self.decoder.closed()?;
                self.reusable = false;
            }
        }
    }

    /// Keeps the connection, if it can be used again.
    pub(super) fn give_back(self, idle: Box<Idle>) {
        // More than was announced is nobody's.
        if self.reusable && idle.reader.input.is_empty() {
            self.shelf.keep(idle);
        }
    }
}

impl Following {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Read> {
        match &mut self.line {
            Line::Own(idle) => self.reading.poll(idle, context),
            Line::Shared(upload) => {
                let reading = &mut self.reading;
                upload.poll_read(context, |idle, context| reading.poll(idle, context))
            }
        }
    }

    fn end(self) -> State {
        match self.line {
            Line::Own(idle) => self.reading.give_back(idle),
            Line::Shared(upload) => upload.read(self.reading),
        }
        State::Ended
    }
}

impl Rest {
    pub(super) fn none() -> Self {
        Self(State::Ended)
    }

    /// What follows the head of an answer, and what is left of the request.
    pub(super) fn new(
        idle: Box<Idle>,
        unsent: Option<Outgoing<RequestBody>>,
        reading: Reading,
    ) -> Self {
        let ended = reading.decoder.ended();
        let line = match unsent {
            None => Line::Own(idle),
            Some(sending) => Line::Shared(Upload::start(idle, sending)),
        };
        let following = Following { line, reading };
        Self(match ended {
            true => following.end(),
            false => State::Reads(Box::new(following)),
        })
    }

    pub(in crate::upstream) fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Read> {
        let frame = match &mut self.0 {
            State::Reads(following) => ready!(following.poll(context)),
            State::Broke(_) | State::Ended => {
                let State::Broke(error) = std::mem::replace(&mut self.0, State::Ended) else {
                    return Poll::Ready(None);
                };
                return Poll::Ready(Some(Err(error)));
            }
        };
        match frame {
            Some(Err(error)) => {
                // What came before is to be passed on before the client's connection breaks off as well.
                self.0 = State::Broke(error);
                context.waker().wake_by_ref();
                Poll::Pending
            }
            frame => {
                if let State::Reads(following) = std::mem::replace(&mut self.0, State::Ended) {
                    self.0 = match following.reading.decoder.ended() {
                        true => following.end(),
                        false => State::Reads(following),
                    };
                }
                Poll::Ready(frame)
            }
        }
    }

    pub(in crate::upstream) fn is_end_stream(&self) -> bool {
        matches!(self.0, State::Ended)
    }

    pub(in crate::upstream) fn size_hint(&self) -> SizeHint {
        match &self.0 {
            State::Reads(following) => following.reading.decoder.size_hint(),
            State::Broke(_) => SizeHint::default(),
            State::Ended => SizeHint::with_exact(0),
        }
    }
}

impl std::fmt::Debug for Rest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rest").finish_non_exhaustive()
    }
}
