//! HTTP/1.1 towards an upstream (RFC 9112): one exchange at a time over one connection.
//!
//! Flows in: a connection and a request. Flows out: the head of the answer, then its body, and at the end the connection
//! again if it can be used for another exchange. There is no task and no channel: whoever waits for the answer drives both
//! directions, so that an answer wakes nobody but the task that passes it on. Nothing here waits by the clock.

use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{self, HeaderMap};
use http::{Method, Request, Response, StatusCode};
use http_body::{Body as _, Frame, SizeHint};

use super::{BodyError, RequestBody, Stream};
use crate::http1::{Arena, Decoder, Framing, MessageError, Outgoing, Piece, Unsent, announced};

mod head;
mod shelf;

#[cfg(test)]
mod tests;

pub(super) use shelf::{Idle, Shelf};

/// Bytes of an answer's head; more is no answer.
const MAX_HEAD: usize = 400 * 1024;

/// Interim answers that are read before others get their turn.
const INTERIM: usize = 32;

/// Why an exchange broke.
#[derive(Debug, thiserror::Error)]
pub enum Http1Error {
    /// The connection, or what came on it.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// The head has no end in sight.
    #[error("head of the answer is longer than {MAX_HEAD} bytes")]
    TooLong,
    /// The request's body was not there to its end.
    #[error("body of the request broke off")]
    Body(#[source] BodyError),
}

impl Http1Error {
    const CLOSED: Self = Self::Message(MessageError::Closed);

    fn io(error: io::Error) -> Self {
        Self::Message(MessageError::Io(error))
    }
}

/// The head of an answer, and what follows it.
pub(super) struct Head {
    pub(super) response: Response<Rest>,
    /// The connection, if it speaks another protocol from here on.
    pub(super) switched: Option<Switched>,
}

/// A connection that left HTTP, and what the other side said already.
#[derive(Debug)]
pub struct Switched {
    /// The connection.
    pub stream: Stream,
    /// Bytes that came with the head of the answer.
    pub ahead: Bytes,
}

/// An exchange whose answer has not begun.
pub(super) struct Exchange {
    idle: Idle,
    method: Method,
    sending: Outgoing<RequestBody>,
    /// What the writing side said when it broke; the answer may be there all the same.
    broken: Option<io::Error>,
    sent: bool,
    /// Bytes of an incomplete head that were looked at.
    seen: usize,
    /// An empty map for those of the answer.
    headers: HeaderMap,
}

impl Exchange {
    pub(super) fn new(idle: Idle, request: Request<RequestBody>) -> Self {
        let method = request.method().clone();
        let (sending, headers) = outgoing(request, idle.reader.arena());
        Self {
            idle,
            method,
            sending,
            broken: None,
            sent: false,
            seen: 0,
            headers,
        }
    }

    /// Sends, and gives the head of the answer as soon as it is there. `shelf` gets the connection when the answer's body
    /// is read to its end. Not to be called again after it is ready.
    pub(super) async fn head(self, shelf: &Rc<Shelf>) -> Result<Head, Http1Error> {
        let mut exchange = Some(self);
        std::future::poll_fn(move |context| {
            let Some(current) = &mut exchange else {
                return Poll::Pending;
            };
            let parsed = ready!(current.poll_head(context))?;
            let ended = exchange.take().ok_or(Http1Error::CLOSED)?;
            Poll::Ready(Ok(ended.follow(parsed, shelf)))
        })
        .await
    }

    fn poll_head(&mut self, context: &mut Context<'_>) -> Poll<Result<head::Answer, Http1Error>> {
        if !self.sent && self.broken.is_none() {
            match self.sending.poll(&mut self.idle.stream, context) {
                Poll::Ready(Ok(())) => self.sent = true,
                Poll::Ready(Err(Unsent::Body(error))) => {
                    return Poll::Ready(Err(Http1Error::Body(error)));
                }
                Poll::Ready(Err(Unsent::Length)) => {
                    return Poll::Ready(Err(Http1Error::Body(BodyError::Length)));
                }
                // An upstream may answer before it read everything, and close.
                Poll::Ready(Err(Unsent::Io(error))) => self.broken = Some(error),
                Poll::Pending => {}
            }
        }
        let reader = &mut self.idle.reader;
        for _ in 0..INTERIM {
            let headers = || std::mem::take(&mut self.headers);
            let Some(answer) = head::read(&mut reader.input, self.seen, &self.method, headers)?
            else {
                self.seen = reader.input.len();
                if self.seen > MAX_HEAD {
                    return Poll::Ready(Err(Http1Error::TooLong));
                }
                let more = match ready!(reader.poll_more(&mut self.idle.stream, context)) {
                    Ok(more) => more,
                    Err(error) => return Poll::Ready(Err(self.failed(Some(error)))),
                };
                if more == 0 {
                    return Poll::Ready(Err(self.failed(None)));
                }
                continue;
            };
            self.seen = 0;
            let interim = answer.status.is_informational();
            if !interim || answer.status == StatusCode::SWITCHING_PROTOCOLS {
                return Poll::Ready(Ok(answer));
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// What broke first is what is told.
    fn failed(&mut self, error: Option<io::Error>) -> Http1Error {
        match self.broken.take().or(error) {
            Some(error) => Http1Error::io(error),
            None => Http1Error::CLOSED,
        }
    }

    fn follow(self, answer: head::Answer, shelf: &Rc<Shelf>) -> Head {
        let Self { idle, sending, .. } = self;
        let mut response = Response::new(Rest::none());
        *response.status_mut() = answer.status;
        *response.headers_mut() = answer.headers;
        if answer.status == StatusCode::SWITCHING_PROTOCOLS {
            let switched = Some(Switched {
                stream: idle.stream,
                ahead: idle.reader.input,
            });
            return Head { response, switched };
        }
        let following = Box::new(Following {
            idle,
            sending: (!self.sent && self.broken.is_none()).then_some(sending),
            reusable: answer.reusable && self.broken.is_none(),
            decoder: answer.decoder,
            shelf: Rc::clone(shelf),
        });
        let rest = Rest(match following.decoder.ended() {
            false => State::Reads(following),
            true => following.end(),
        });
        let response = response.map(|_| rest);
        Head {
            response,
            switched: None,
        }
    }
}

/// The body of an answer.
pub(super) struct Rest(State);

enum State {
    Reads(Box<Following>),
    /// It broke, which is told in the next turn.
    Broke(Http1Error),
    Ended,
}

/// An exchange whose answer's head was read.
struct Following {
    idle: Idle,
    /// The request, as long as it is not sent to its end.
    sending: Option<Outgoing<RequestBody>>,
    decoder: Decoder,
    reusable: bool,
    shelf: Rc<Shelf>,
}

impl Following {
    fn poll(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Http1Error>>> {
        if let Some(sending) = &mut self.sending {
            match sending.poll(&mut self.idle.stream, context) {
                Poll::Ready(Ok(())) => self.sending = None,
                Poll::Ready(Err(Unsent::Body(error))) => {
                    return Poll::Ready(Some(Err(Http1Error::Body(error))));
                }
                Poll::Ready(Err(Unsent::Length)) => {
                    return Poll::Ready(Some(Err(Http1Error::Body(BodyError::Length))));
                }
                Poll::Ready(Err(Unsent::Io(_))) => {
                    // The answer is on its way all the same.
                    self.sending = None;
                    self.reusable = false;
                }
                Poll::Pending => {}
            }
        }
        loop {
            match self.decoder.next(&mut self.idle.reader.input)? {
                Piece::Data(bytes) => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
                Piece::Trailers(fields) => return Poll::Ready(Some(Ok(Frame::trailers(fields)))),
                Piece::End => return Poll::Ready(None),
                Piece::More => {}
            }
            let more = self.idle.reader.poll_more(&mut self.idle.stream, context);
            if ready!(more).map_err(Http1Error::io)? == 0 {
                self.decoder.closed()?;
                self.reusable = false;
            }
        }
    }

    /// The answer was read to its end. A request that was not sent to its end goes on without anybody waiting: the upstream
    /// may want it, and the client's next request is behind it.
    fn end(mut self: Box<Self>) -> State {
        match self.sending.take() {
            None => self.give_back(),
            Some(mut sending) => {
                tokio::task::spawn_local(async move {
                    let sent = std::future::poll_fn(|context| {
                        sending.poll(&mut self.idle.stream, context)
                    });
                    match sent.await {
                        Ok(()) => self.give_back(),
                        Err(error) => tracing::debug!(%error, "request was answered and not read"),
                    }
                });
            }
        }
        State::Ended
    }

    fn give_back(self: Box<Self>) {
        // More than was announced is nobody's.
        if self.reusable && self.idle.reader.input.is_empty() {
            self.shelf.keep(self.idle);
        }
    }
}

impl Rest {
    fn none() -> Self {
        Self(State::Ended)
    }

    pub(super) fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Http1Error>>> {
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
                    self.0 = match following.decoder.ended() {
                        true => following.end(),
                        false => State::Reads(following),
                    };
                }
                Poll::Ready(frame)
            }
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        matches!(self.0, State::Ended)
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        match &self.0 {
            State::Reads(following) => following.decoder.size_hint(),
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

/// A request on its way out, and the map of its headers, empty now, for those of the answer.
fn outgoing(request: Request<RequestBody>, arena: &Arena) -> (Outgoing<RequestBody>, HeaderMap) {
    let (mut parts, body) = request.into_parts();
    let body = Some(body).filter(|body| !body.is_end_stream());
    let framing = match body.as_ref().map(|body| body.size_hint().exact()) {
        None => Framing::Length(0),
        Some(Some(length)) => Framing::Length(length),
        Some(None) => Framing::Chunked(announced(&parts.headers)),
    };
    // That there is no body is said to whoever heard it said.
    let told = body.is_some() || parts.headers.contains_key(header::CONTENT_LENGTH);
    let head = arena.written(head::room(&parts), |out| {
        head::write(&parts, out);
        if told {
            framing.write(out);
        }
        out.extend_from_slice(b"\r\n");
    });
    parts.headers.clear();
    (Outgoing::new(head, body, framing), parts.headers)
}
