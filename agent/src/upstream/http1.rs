//! HTTP/1.1 towards an upstream (RFC 9112): one exchange at a time over one connection.
//!
//! Flows in: a connection and a request. Flows out: the head of the answer, then its body, and at the end the connection
//! again if it can be used for another exchange. There is no channel, and no task but for the rest of a request whose answer
//! came before its end: whoever waits for the answer drives both directions, so that an answer wakes nobody but the task that
//! passes it on. Nothing here waits by the clock.

use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header;
use http::{Method, Response, StatusCode};
use http_body::Body as _;

use super::{BodyError, RequestBody, Stream, UpstreamRequest};
use crate::http1::{Arena, Framing, MessageError, Outgoing, Unsent, announced, skip_blank};

mod head;
mod rest;
mod shelf;
mod upload;

#[cfg(test)]
mod tests;

pub(super) use rest::Rest;
pub(super) use shelf::{Idle, Shelf};

use rest::Reading;

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

/// Sends a request, and gives the head of its answer as soon as it is there. `shelf` gets the connection when the answer's
/// body is read to its end.
pub(super) async fn send(
    idle: Box<Idle>,
    request: Box<UpstreamRequest>,
    shelf: &Rc<Shelf>,
) -> Result<Head, Http1Error> {
    let mut exchange = Exchange::new(idle, request);
    let answer = std::future::poll_fn(|context| exchange.poll_head(context, shelf)).await?;
    Ok(exchange.follow(answer, shelf))
}

/// An exchange whose answer has not begun.
struct Exchange {
    idle: Box<Idle>,
    method: Method,
    sending: Outgoing<RequestBody>,
    /// What the writing side said when it broke; the answer may be there all the same.
    broken: Option<io::Error>,
    sent: bool,
    /// Bytes of an incomplete head that were looked at.
    seen: usize,
    /// Bytes of empty lines before heads.
    blank: usize,
}

impl Exchange {
    #[expect(
        clippy::boxed_local,
        reason = "it comes in a box, and is moved once, to where it is taken apart"
    )]
    fn new(mut idle: Box<Idle>, request: Box<UpstreamRequest>) -> Self {
        idle.begin();
        let method = request.parts.method.clone();
        let sending = outgoing(*request, idle.reader.arena());
        Self {
            idle,
            method,
            sending,
            broken: None,
            sent: false,
            seen: 0,
            blank: 0,
        }
    }

    fn poll_head(
        &mut self,
        context: &mut Context<'_>,
        shelf: &Shelf,
    ) -> Poll<Result<head::Answer, Http1Error>> {
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
        if std::mem::take(&mut self.idle.watched) && self.sent {
            // Nothing had come a moment ago, and this task hears of what does.
            return Poll::Pending;
        }
        let reader = &mut self.idle.reader;
        for _ in 0..INTERIM {
            let blank = skip_blank(&mut reader.input);
            if blank > 0 {
                self.blank += blank;
                self.seen = 0;
            }
            let (input, arena) = reader.input();
            let names = &mut shelf.names.borrow_mut();
            let answer = head::read(input, self.seen, &self.method, arena, names)?;
            let Some(answer) = answer else {
                self.seen = reader.input.len();
                if self.blank + self.seen > MAX_HEAD {
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
        let unsent = (!self.sent && self.broken.is_none()).then_some(sending);
        let reading = Reading {
            decoder: answer.decoder,
            reusable: answer.reusable && self.broken.is_none(),
            shelf: Rc::clone(shelf),
        };
        let rest = Rest::new(idle, unsent, reading);
        let response = response.map(|_| rest);
        Head {
            response,
            switched: None,
        }
    }
}

/// A request on its way out. Of its head nothing is kept but the bytes: whoever waits for an answer holds no memory that the
/// next request could use.
fn outgoing(request: UpstreamRequest, arena: &Arena) -> Outgoing<RequestBody> {
    let UpstreamRequest { parts, more, body } = request;
    let body = Some(body).filter(|body| !body.is_end_stream());
    let framing = match body.as_ref().map(|body| body.size_hint().exact()) {
        None => Framing::Length(0),
        Some(Some(length)) => Framing::Length(length),
        Some(None) => Framing::Chunked(announced(&parts.headers)),
    };
    // That there is no body is said to whoever heard it said.
    let told = body.is_some() || parts.headers.contains_key(header::CONTENT_LENGTH);
    let head = arena.written(head::ROOM, |out| {
        head::write(&parts, &more, out);
        if told {
            framing.write(out);
        }
        out.extend_from_slice(b"\r\n");
    });
    arena.give(parts.headers);
    Outgoing::new(head, body, framing)
}
