//! The body of a response on its way down: streamed, counted, and the place where a request ends.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::exchange::Exchange;
use super::log::Reason;

/// Bytes for the client. Dropping it ends the exchange and writes its record.
pub(super) struct ResponseBody {
    inner: Inner,
    exchange: Option<Box<Exchange>>,
}

enum Inner {
    Full(Option<Bytes>),
    Streamed(Incoming),
}

impl ResponseBody {
    pub(super) fn empty() -> Self {
        Self {
            inner: Inner::Full(None),
            exchange: None,
        }
    }

    pub(super) fn full(bytes: impl Into<Bytes>) -> Self {
        Self {
            inner: Inner::Full(Some(bytes.into())),
            exchange: None,
        }
    }

    pub(super) fn streamed(body: Incoming) -> Self {
        Self {
            inner: Inner::Streamed(body),
            exchange: None,
        }
    }

    /// Lets the exchange end with this body.
    pub(super) fn ends(mut self, exchange: Box<Exchange>) -> Self {
        self.exchange = Some(exchange);
        self
    }

    fn ended(&self) -> bool {
        match &self.inner {
            Inner::Full(bytes) => bytes.is_none(),
            Inner::Streamed(body) => body.is_end_stream(),
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let frame = match &mut this.inner {
            Inner::Full(bytes) => bytes.take().map(|bytes| Ok(Frame::data(bytes))),
            Inner::Streamed(body) => ready!(Pin::new(body).poll_frame(context)),
        };
        if let Some(exchange) = &mut this.exchange {
            match &frame {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        exchange.record.bytes_out += data.len() as u64;
                    }
                }
                Some(Err(error)) => exchange.failed(Reason::UpstreamReset, error),
                None => exchange.complete(),
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.ended()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Full(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Inner::Streamed(body) => body.size_hint(),
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        let ended = self.ended();
        if let Some(exchange) = &mut self.exchange
            && ended
        {
            exchange.complete();
        }
    }
}
