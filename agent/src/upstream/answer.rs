//! What an upstream answers, in either version of HTTP.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::BodyError;
use super::http1::{Http1Error, Rest, Switched};
use super::lifetime::UnderWay;

/// The head of a response and where it came from.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body, which streams.
    pub body: AnswerBody,
    /// The connection, if the response says that it speaks another protocol from here on.
    pub switched: Option<Box<Switched>>,
    /// Address that answered, as a text; the path of a Unix socket.
    pub from: Arc<str>,
    /// Position of the destination that it is of, among those that were asked.
    pub at: usize,
}

impl Answer {
    /// The response alone.
    pub fn into_response(self) -> Response<AnswerBody> {
        let mut response = Response::new(self.body);
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response
    }
}

/// The body of an answer. Dropping it before its end closes its connection, or resets its stream.
#[derive(Debug)]
pub struct AnswerBody(Inner);

#[derive(Debug)]
enum Inner {
    Http1(Rest),
    Http2 {
        body: Incoming,
        _under_way: UnderWay,
    },
}

/// How an exchange broke.
#[derive(Debug, thiserror::Error)]
pub enum Break {
    /// In HTTP/1.
    #[error(transparent)]
    Http1(#[from] Http1Error),
    /// In HTTP/2.
    #[error(transparent)]
    Http2(#[from] hyper::Error),
}

impl Break {
    /// Whether it is the client who broke off, in the middle of its request.
    pub(crate) fn is_clients(&self) -> bool {
        let body = match self {
            Self::Http1(Http1Error::Body(error)) => error,
            Self::Http1(_) | Self::Http2(_) => return false,
        };
        matches!(body, BodyError::Client(_))
    }
}

impl From<Rest> for AnswerBody {
    fn from(rest: Rest) -> Self {
        Self(Inner::Http1(rest))
    }
}

impl AnswerBody {
    /// That of a request on a connection with others.
    pub(super) fn shared(incoming: Incoming, under_way: UnderWay) -> Self {
        Self(Inner::Http2 {
            body: incoming,
            _under_way: under_way,
        })
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Break;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Break>>> {
        let frame = match &mut self.get_mut().0 {
            Inner::Http1(rest) => ready!(rest.poll_frame(context)).map(|one| Ok(one?)),
            Inner::Http2 { body, .. } => {
                ready!(Pin::new(body).poll_frame(context)).map(|one| Ok(one?))
            }
        };
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Inner::Http1(rest) => rest.is_end_stream(),
            Inner::Http2 { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Inner::Http1(rest) => rest.size_hint(),
            Inner::Http2 { body, .. } => body.size_hint(),
        }
    }
}
