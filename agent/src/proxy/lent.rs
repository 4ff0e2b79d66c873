//! Bodies for HTTP/2 whose bytes are not copied on their way.
//!
//! HTTP/2's codec gives its stream slices, and whoever holds writes back has to copy what it is given. But right before
//! it does, it asks the body for these slices. So what a body was asked for is left beside it, and the stream finds there
//! whose memory a slice is, and keeps that instead.

use std::cell::Cell;
use std::io::IoSlice;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};

/// Bytes of a slice from which on it costs less to keep than to copy.
pub(super) const WORTH: usize = 4096;

/// What a body of a connection was asked for last.
#[derive(Clone, Default)]
pub(super) struct Offer(Rc<Cell<Option<Bytes>>>);

impl Offer {
    /// Takes it.
    pub(super) fn take(&self) -> Option<Bytes> {
        self.0.take()
    }

    /// A piece of a body, which is offered here when it is asked for its bytes.
    pub(super) fn lend(&self, bytes: Bytes) -> Lent {
        Lent {
            bytes,
            offer: self.clone(),
        }
    }
}

/// The slice as a part of what was offered, if it is one and worth it.
pub(super) fn part(offered: &Bytes, slice: &[u8]) -> Option<Bytes> {
    let (whole, wanted) = (offered.as_ptr_range(), slice.as_ptr_range());
    let inside = whole.start <= wanted.start && wanted.end <= whole.end;
    (inside && slice.len() >= WORTH).then(|| offered.slice_ref(slice))
}

/// A piece of a body.
pub(super) struct Lent {
    bytes: Bytes,
    offer: Offer,
}

impl Buf for Lent {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        if self.bytes.len() >= WORTH {
            self.offer.0.set(Some(self.bytes.clone()));
        }
        self.bytes.chunks_vectored(slices)
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }
}

/// A body in such pieces.
pub(super) struct Lending<B> {
    body: B,
    offer: Offer,
}

impl<B> Lending<B> {
    pub(super) fn new(body: B, offer: &Offer) -> Self {
        Self {
            body,
            offer: offer.clone(),
        }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Lending<B> {
    type Data = Lent;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Lent>, B::Error>>> {
        let Self { body, offer } = self.get_mut();
        let frame = ready!(Pin::new(body).poll_frame(context));
        Poll::Ready(frame.map(|frame| Ok(frame?.map_data(|bytes| offer.lend(bytes)))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
