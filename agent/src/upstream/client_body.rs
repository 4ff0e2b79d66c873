//! A request's body as its client sends it, in any version of HTTP.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::http1::MessageError;
use crate::http3::{self, StreamError};

/// What reads the body of one request of HTTP/1 from its connection.
pub(crate) trait Upload {
    /// The next frame, as [`Body::poll_frame`].
    fn poll_frame(
        &self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, MessageError>>>;

    /// As [`Body::is_end_stream`].
    fn is_end_stream(&self) -> bool;

    /// As [`Body::size_hint`].
    fn size_hint(&self) -> SizeHint;

    /// Nobody reads it any more.
    fn abandon(&self);
}

/// A body that its client still sends. Nothing of it is stored beyond what one read gave.
pub struct ClientBody(Inner);

enum Inner {
    Empty,
    Http1(Rc<dyn Upload>),
    /// With what takes from its trailers what they may not say.
    Http2(Incoming, fn(&mut HeaderMap)),
    /// The same. It is boxed, so that the bodies of the others are no larger.
    Http3(Box<http3::RequestBody>, fn(&mut HeaderMap)),
}

/// Why it is not there to its end.
#[derive(Debug, thiserror::Error)]
pub enum ClientBreak {
    /// In HTTP/1.
    #[error(transparent)]
    Http1(#[from] MessageError),
    /// In HTTP/2.
    #[error(transparent)]
    Http2(#[from] hyper::Error),
    /// In HTTP/3.
    #[error(transparent)]
    Http3(#[from] StreamError),
}

impl ClientBody {
    /// No body.
    pub(crate) fn empty() -> Self {
        Self(Inner::Empty)
    }

    /// What is read from a connection of HTTP/1.
    pub(crate) fn http1(upload: Rc<dyn Upload>) -> Self {
        Self(Inner::Http1(upload))
    }

    /// What comes on a stream of HTTP/2, with trailers as `strip` leaves them.
    pub(crate) fn http2(incoming: Incoming, strip: fn(&mut HeaderMap)) -> Self {
        Self(Inner::Http2(incoming, strip))
    }

    /// What comes on a stream of HTTP/3, with trailers as `strip` leaves them.
    pub(crate) fn http3(body: Box<http3::RequestBody>, strip: fn(&mut HeaderMap)) -> Self {
        Self(Inner::Http3(body, strip))
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = ClientBreak;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ClientBreak>>> {
        let frame = match &mut self.get_mut().0 {
            Inner::Empty => None,
            Inner::Http1(upload) => ready!(upload.poll_frame(context)).map(|one| Ok(one?)),
            Inner::Http2(body, strip) => {
                let frame = ready!(Pin::new(body).poll_frame(context));
                frame.map(|one| Ok(stripped(one?, *strip)))
            }
            Inner::Http3(body, strip) => {
                let frame = ready!(body.poll_frame(context));
                frame.map(|one| Ok(stripped(one?, *strip)))
            }
        };
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Inner::Empty => true,
            Inner::Http1(upload) => upload.is_end_stream(),
            Inner::Http2(body, _) => body.is_end_stream(),
            Inner::Http3(body, _) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Inner::Empty => SizeHint::with_exact(0),
            Inner::Http1(upload) => upload.size_hint(),
            Inner::Http2(body, _) => body.size_hint(),
            Inner::Http3(body, _) => body.size_hint(),
        }
    }
}

fn stripped(mut frame: Frame<Bytes>, strip: fn(&mut HeaderMap)) -> Frame<Bytes> {
    if let Some(trailers) = frame.trailers_mut() {
        strip(trailers);
    }
    frame
}

impl Drop for ClientBody {
    fn drop(&mut self) {
        if let Inner::Http1(upload) = &self.0 {
            upload.abandon();
        }
    }
}

impl std::fmt::Debug for ClientBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientBody").finish_non_exhaustive()
    }
}
