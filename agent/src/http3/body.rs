//! The body of a request, read from its stream by whoever wants the next part of it.

use std::cell::Cell;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use tokio::sync::Notify;

use super::frames::Item;
use super::message::trailers;
use super::{Code, Frames, Wrong};

/// What the body of a request and whoever answers it tell each other.
#[derive(Default)]
pub(crate) struct Link {
    /// Somebody asked for the body.
    pub(crate) wanted: Notify,
    /// Whether the message turned out to be malformed: its stream is to be given up then.
    pub(crate) malformed: Cell<bool>,
}

/// Why a body is not there to its end.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StreamError(String);

/// A body that its client still sends.
pub(crate) struct RequestBody {
    frames: Frames,
    connection: quinn::Connection,
    link: Rc<Link>,
    /// Bytes that are still to come, where the head told the length.
    announced: Option<u64>,
    /// What the sizes of the trailers' fields may sum up to.
    most: usize,
    state: State,
    trailers: Option<HeaderMap>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nobody has asked yet.
    Unasked,
    Data,
    /// Trailers are there. Nothing may follow but the stream's end, with which they are told.
    Trailed,
    Ended,
}

impl RequestBody {
    /// What follows the head on a stream. `announced`: how long it is, by its head.
    pub(crate) fn new(
        frames: Frames,
        connection: quinn::Connection,
        link: &Rc<Link>,
        announced: Option<u64>,
        most: usize,
    ) -> Self {
        Self {
            frames,
            connection,
            link: Rc::clone(link),
            announced,
            most,
            state: State::Unasked,
            trailers: None,
        }
    }

    /// As `http_body::Body::poll_frame`.
    pub(crate) fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        if self.state == State::Unasked {
            self.state = State::Data;
            self.link.wanted.notify_one();
        }
        if self.state == State::Ended {
            return Poll::Ready(None);
        }
        match ready!(self.poll_message(context)) {
            Ok(frame) => Poll::Ready(frame.map(Ok)),
            Err(wrong) => Poll::Ready(Some(Err(self.failed(wrong)))),
        }
    }

    fn poll_message(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Option<Frame<Bytes>>, Wrong>> {
        loop {
            match (ready!(self.frames.poll_next(context))?, self.state) {
                (Some(Item::Data(bytes)), State::Data) => {
                    if let Some(left) = &mut self.announced {
                        let rest = left.checked_sub(bytes.len() as u64);
                        *left =
                            rest.ok_or(Wrong::Message("a body that is longer than its head says"))?;
                    }
                    return Poll::Ready(Ok(Some(Frame::data(bytes))));
                }
                (Some(Item::Block(block)), State::Data) => {
                    self.whole()?;
                    self.trailers = Some(trailers(&block, self.most)?);
                    self.state = State::Trailed;
                }
                (Some(_), _) => {
                    return Poll::Ready(Err(Wrong::Connection(
                        Code::FRAME_UNEXPECTED,
                        "a frame behind the trailers",
                    )));
                }
                (None, _) => {
                    self.whole()?;
                    self.state = State::Ended;
                    let trailers = self.trailers.take();
                    return Poll::Ready(Ok(trailers.map(Frame::trailers)));
                }
            }
        }
    }

    /// Whether the body is as long as its head says.
    fn whole(&self) -> Result<(), Wrong> {
        match self.announced {
            Some(1..) if self.state == State::Data => {
                Err(Wrong::Message("a body that is shorter than its head says"))
            }
            _ => Ok(()),
        }
    }

    fn failed(&mut self, wrong: Wrong) -> StreamError {
        self.state = State::Ended;
        let said = StreamError(wrong.to_string());
        match wrong {
            Wrong::Connection(code, why) => self.connection.close(code.into(), why.as_bytes()),
            Wrong::Message(_) | Wrong::TooLarge => {
                self.link.malformed.set(true);
                self.frames.stop(Code::MESSAGE_ERROR);
            }
            Wrong::Incomplete | Wrong::Gone(_) => {}
        }
        said
    }

    /// As `http_body::Body::is_end_stream`.
    pub(crate) fn is_end_stream(&self) -> bool {
        self.state == State::Ended
    }

    /// As `http_body::Body::size_hint`.
    pub(crate) fn size_hint(&self) -> SizeHint {
        self.announced
            .map_or_else(SizeHint::new, SizeHint::with_exact)
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if self.state != State::Ended {
            // Its answer does not need the rest (RFC 9114, section 4.1).
            self.frames.stop(Code::NO_ERROR);
        }
    }
}
