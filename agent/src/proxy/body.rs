//! The body of a response on its way down: streamed, counted, and the place where a request ends.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use super::exchange::Exchange;
use super::grpc;
use super::log::Reason;
use crate::upstream::{AnswerBody, Break};

/// Bytes for the client. Dropping it ends the exchange and writes its record.
pub(super) struct ResponseBody {
    inner: Inner,
    /// How long the next part may take, where that is limited.
    patience: Option<Box<Patience>>,
    exchange: Option<Box<Exchange>>,
}

/// Ends when nothing came for a while.
struct Patience {
    limit: Duration,
    sleep: Pin<Box<Sleep>>,
}

enum Inner {
    Full(Option<Bytes>),
    Streamed(AnswerBody),
    /// With the time at which it has to be over.
    Limited(AnswerBody, Pin<Box<Sleep>>),
}

/// Why a response breaks off.
#[derive(Debug, thiserror::Error)]
pub(super) enum Cut {
    /// The upstream broke off.
    #[error(transparent)]
    Upstream(#[from] Break),
    /// The time that the rule allows is over.
    #[error("the answer was not complete in the time that the rule allows")]
    Deadline,
    /// Nothing more came in the time that a policy allows.
    #[error("no more of the answer came in the time that the policy allows")]
    Idle,
}

impl Inner {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        Poll::Ready(match self {
            Self::Full(bytes) => bytes.take().map(|bytes| Ok(Frame::data(bytes))),
            Self::Streamed(body) => {
                ready!(Pin::new(body).poll_frame(context)).map(|frame| Ok(frame?))
            }
            // The time first: an answer that never stops coming has to end as well.
            Self::Limited(body, deadline) => match deadline.as_mut().poll(context) {
                Poll::Ready(()) => Some(Err(Cut::Deadline)),
                Poll::Pending => ready!(Pin::new(body).poll_frame(context)).map(|frame| Ok(frame?)),
            },
        })
    }
}

impl ResponseBody {
    pub(super) fn empty() -> Self {
        Self {
            inner: Inner::Full(None),
            patience: None,
            exchange: None,
        }
    }

    pub(super) fn full(bytes: impl Into<Bytes>) -> Self {
        Self {
            inner: Inner::Full(Some(bytes.into())),
            patience: None,
            exchange: None,
        }
    }

    pub(super) fn streamed(body: AnswerBody, deadline: Option<Instant>) -> Self {
        let inner = match deadline.filter(|_| !body.is_end_stream()) {
            Some(deadline) => Inner::Limited(body, Box::pin(tokio::time::sleep_until(deadline))),
            None => Inner::Streamed(body),
        };
        Self {
            inner,
            patience: None,
            exchange: None,
        }
    }

    /// Breaks off when the next part takes longer than a limit.
    pub(super) fn patient(mut self, limit: Option<Duration>) -> Self {
        let limit = limit.filter(|_| !self.ended());
        self.patience = limit.map(|limit| {
            Box::new(Patience {
                limit,
                sleep: Box::pin(tokio::time::sleep(limit)),
            })
        });
        self
    }

    /// Lets the exchange end with this body.
    pub(super) fn ends(mut self, exchange: Box<Exchange>) -> Self {
        self.exchange = Some(exchange);
        self
    }

    /// Fields that the head tells besides its own, where it is written and not handed on.
    pub(super) fn told(&self, tell: impl FnMut(HeaderName, &HeaderValue)) {
        if let Some(exchange) = &self.exchange {
            exchange.told(tell);
        }
    }

    fn ended(&self) -> bool {
        match &self.inner {
            Inner::Full(bytes) => bytes.is_none(),
            Inner::Streamed(body) | Inner::Limited(body, _) => body.is_end_stream(),
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let this = self.get_mut();
        let frame = match (this.inner.poll(context), &mut this.patience) {
            (Poll::Pending, None) => return Poll::Pending,
            (Poll::Pending, Some(patience)) => {
                ready!(patience.sleep.as_mut().poll(context));
                Some(Err(Cut::Idle))
            }
            (Poll::Ready(frame), None) => frame,
            (Poll::Ready(frame), Some(patience)) => {
                let end = Instant::now() + patience.limit;
                patience.sleep.as_mut().reset(end);
                frame
            }
        };
        if let Some(exchange) = &mut this.exchange {
            match &frame {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        exchange.record.bytes_out += data.len() as u64;
                    }
                }
                Some(Err(error @ Cut::Upstream(why))) => {
                    let reason = match why.is_clients() {
                        true => Reason::ClientClosed,
                        false => Reason::UpstreamReset,
                    };
                    exchange.failed(reason, error);
                }
                Some(Err(error @ (Cut::Deadline | Cut::Idle))) => {
                    exchange.failed(Reason::UpstreamTimeout, error);
                    if exchange.grpc {
                        // A call can be told why it ends.
                        this.inner = Inner::Full(None);
                        let end = Frame::trailers(grpc::deadline_exceeded());
                        return Poll::Ready(Some(Ok(end)));
                    }
                }
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
            Inner::Streamed(body) | Inner::Limited(body, _) => body.size_hint(),
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
