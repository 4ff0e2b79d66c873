//! Writes of one turn of a connection, sent together.
//!
//! HTTP/2's codec writes each frame by itself, and flushes before it takes the next. Of many streams on one connection
//! each answer would then be a system call, and under TLS a record. Here what is written waits until the connection has
//! nothing more to say, or until there is much of it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::lent::{self, Offer};

/// Bytes that wait at most; then they are sent before more is taken.
const MOST: usize = 64 * 1024;

/// Pieces that are sent at a time.
const PIECES: usize = 32;

/// A stream that holds writes back until [`Turns`] sends them.
pub(super) struct Held<T>(Rc<RefCell<Inner<T>>>);

struct Inner<T> {
    stream: T,
    waiting: Waiting,
    /// Whether the stream may hold back something of what it was given.
    unflushed: bool,
    offer: Offer,
    /// How sending failed, for the next who writes.
    failed: Option<io::Error>,
}

/// What waits: first the pieces, then what was copied since.
#[derive(Default)]
struct Waiting {
    pieces: VecDeque<Bytes>,
    copied: BytesMut,
    /// Bytes of all of it.
    length: usize,
}

impl Waiting {
    /// Puts a slice behind the rest: as a part of what was offered, or as a copy.
    fn put(&mut self, slice: &[u8], offered: Option<&Bytes>) {
        self.length += slice.len();
        let Some(part) = offered.and_then(|bytes| lent::part(bytes, slice)) else {
            self.copied.extend_from_slice(slice);
            return;
        };
        if !self.copied.is_empty() {
            self.pieces.push_back(self.copied.split().freeze());
        }
        self.pieces.push_back(part);
    }

    /// Its beginning.
    fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>; PIECES]) -> usize {
        let copied = Some(&*self.copied).filter(|copied| !copied.is_empty());
        let all = self.pieces.iter().map(|piece| &**piece).chain(copied);
        let places = slices.iter_mut().zip(all);
        places
            .map(|(place, slice)| *place = IoSlice::new(slice))
            .count()
    }

    fn advance(&mut self, mut count: usize) {
        self.length -= count;
        while let Some(first) = self.pieces.front_mut() {
            if count < first.len() {
                return first.advance(count);
            }
            count -= first.len();
            self.pieces.pop_front();
        }
        self.copied.advance(count);
    }

    fn clear(&mut self) {
        self.pieces.clear();
        self.copied.clear();
        self.length = 0;
    }
}

impl<T: AsyncWrite + Unpin> Inner<T> {
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self {
            stream,
            waiting,
            unflushed,
            ..
        } = self;
        let mut stream = Pin::new(stream);
        while waiting.length > 0 {
            let mut slices = [IoSlice::new(&[]); PIECES];
            let written = match waiting.slices(&mut slices) {
                1 => stream.as_mut().poll_write(context, &slices[0]),
                count => stream
                    .as_mut()
                    .poll_write_vectored(context, &slices[..count]),
            };
            match ready!(written)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => waiting.advance(count),
            }
            *unflushed = true;
        }
        if *unflushed {
            ready!(stream.poll_flush(context))?;
            *unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Makes room for more.
    fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Err(error));
        }
        if self.waiting.length < MOST {
            return Poll::Ready(Ok(()));
        }
        self.poll_send(context)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Held<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.borrow_mut().stream).poll_read(context, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Held<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let inner = &mut *self.0.borrow_mut();
        ready!(inner.poll_room(context))?;
        let before = inner.waiting.length;
        let offered = inner.offer.take();
        for slice in slices {
            inner.waiting.put(slice, offered.as_ref());
        }
        Poll::Ready(Ok(inner.waiting.length - before))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_room(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let inner = &mut *self.0.borrow_mut();
        ready!(inner.poll_send(context))?;
        Pin::new(&mut inner.stream).poll_shutdown(context)
    }
}

/// A connection over a [`Held`] stream: after each of its turns what it wrote is sent.
pub(super) struct Turns<C, T> {
    connection: Pin<Box<C>>,
    held: Held<T>,
}

impl<C, T> Turns<C, T> {
    /// `connect` makes the connection of the stream; what its bodies offer is not copied.
    pub(super) fn new(stream: T, offer: Offer, connect: impl FnOnce(Held<T>) -> C) -> Self {
        let held = Held(Rc::new(RefCell::new(Inner {
            stream,
            waiting: Waiting::default(),
            unflushed: false,
            offer,
            failed: None,
        })));
        Self {
            connection: Box::pin(connect(Held(Rc::clone(&held.0)))),
            held,
        }
    }

    pub(super) fn connection(&mut self) -> Pin<&mut C> {
        self.connection.as_mut()
    }
}

impl<C: Future, T: AsyncWrite + Unpin> Future for Turns<C, T> {
    type Output = C::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<C::Output> {
        let polled = self.connection.as_mut().poll(context);
        let inner = &mut *self.held.0.borrow_mut();
        // Of a stream that is over by now, maybe.
        drop(inner.offer.take());
        // A connection that is over has sent what it had to when it shut the stream down.
        if let (Poll::Ready(Err(error)), true) = (inner.poll_send(context), polled.is_pending()) {
            inner.failed = Some(error);
            inner.waiting.clear();
            inner.unflushed = false;
            context.waker().wake_by_ref();
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use bytes::Buf;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::proxy::lent::WORTH;

    #[tokio::test]
    async fn what_is_written_in_one_turn_is_sent_together_and_within_bounds() {
        let (near, mut far) = tokio::io::duplex(4 * MOST);
        let mut turns = Turns::new(near, Offer::default(), |mut held| async move {
            for piece in [&b"a"[..], b"bc"] {
                held.write_all(piece).await?;
                held.flush().await?;
            }
            tokio::task::yield_now().await;
            let much = vec![b'd'; MOST];
            held.write_all(&much).await?;
            held.write_all(b"e").await?;
            std::future::pending::<()>().await;
            held.shutdown().await
        });
        let mut heard = vec![0; 4 * MOST];
        // Nothing before the turn is over, and then all of it.
        poll_fn(|context| {
            assert!(Pin::new(&mut turns).poll(context).is_pending());
            Poll::Ready(())
        })
        .await;
        let count = far.read(&mut heard).await.expect("bytes");
        assert_eq!(&heard[..count], b"abc");
        poll_fn(|context| {
            assert!(turns.connection().poll(context).is_pending());
            Poll::Ready(())
        })
        .await;
        // Without its end the turn sent only what was too much to wait.
        let count = far.read(&mut heard).await.expect("bytes");
        assert_eq!(count, MOST);
        assert_eq!(turns.held.0.borrow().waiting.copied, b"e"[..]);
    }

    #[tokio::test]
    async fn what_a_body_offered_is_kept_and_not_copied() {
        let (near, mut far) = tokio::io::duplex(4 * MOST);
        let offer = Offer::default();
        let body = Bytes::from((0..=255).cycle().take(2 * WORTH).collect::<Vec<u8>>());
        let (given, lent) = (offer.clone(), body.clone());
        let mut turns = Turns::new(near, offer, |mut held| async move {
            // As the codec writes: the head of a frame and as much of the body as fits, twice.
            let mut left = given.lend(lent);
            for _ in 0..2 {
                let frame = Buf::chain(&b"head"[..], (&mut left).take(WORTH));
                let mut slices = [IoSlice::new(&[]); 4];
                let count = frame.chunks_vectored(&mut slices);
                let written = held.write_vectored(&slices[..count]).await?;
                assert_eq!(written, b"head".len() + WORTH);
                left.advance(WORTH);
            }
            // No part of it.
            let mut slices = [IoSlice::new(&[])];
            given
                .lend(Bytes::from_static(&[1; WORTH]))
                .chunks_vectored(&mut slices);
            held.write_all(&[7; WORTH]).await?;
            std::future::pending::<io::Result<()>>().await
        });
        poll_fn(|context| {
            assert!(turns.connection().poll(context).is_pending());
            Poll::Ready(())
        })
        .await;
        {
            let inner = turns.held.0.borrow();
            let pieces: Vec<_> = inner.waiting.pieces.iter().collect();
            assert_eq!(pieces.len(), 4);
            assert_eq!(pieces[1].as_ptr(), body.as_ptr());
            assert_eq!(pieces[3].as_ptr(), body[WORTH..].as_ptr());
            assert_eq!(inner.waiting.copied, [7; WORTH][..]);
        }
        poll_fn(|context| {
            assert!(Pin::new(&mut turns).poll(context).is_pending());
            Poll::Ready(())
        })
        .await;
        let expected = [
            &b"head"[..],
            &body[..WORTH],
            b"head",
            &body[WORTH..],
            &[7; WORTH],
        ]
        .concat();
        let mut heard = vec![0; expected.len()];
        far.read_exact(&mut heard).await.expect("bytes");
        assert!(heard == expected);
        assert!(turns.held.0.borrow().waiting.pieces.is_empty());
    }

    #[tokio::test]
    async fn what_a_full_stream_takes_late_is_in_its_order() {
        let (near, mut far) = tokio::io::duplex(1000);
        let offer = Offer::default();
        let body = Bytes::from((0..=250).cycle().take(3 * MOST).collect::<Vec<u8>>());
        let (given, lent) = (offer.clone(), body.clone());
        let turns = Turns::new(near, offer, |mut held| async move {
            let mut left = given.lend(lent);
            while left.has_remaining() {
                held.write_all(b"head").await?;
                let mut slices = [IoSlice::new(&[])];
                let frame = (&mut left).take(5000);
                let count = frame.chunks_vectored(&mut slices);
                let written = held.write_vectored(&slices[..count]).await?;
                left.advance(written);
            }
            held.shutdown().await
        });
        let mut heard = Vec::new();
        let (sent, read) = tokio::join!(turns, far.read_to_end(&mut heard));
        sent.expect("room");
        read.expect("bytes");
        let frames = body.chunks(5000).map(|chunk| [b"head", chunk].concat());
        assert!(heard == frames.collect::<Vec<_>>().concat());
    }

    #[tokio::test]
    async fn a_stream_that_broke_is_told_to_whoever_writes() {
        let (near, far) = tokio::io::duplex(64);
        drop(far);
        let turns = Turns::new(near, Offer::default(), |mut held| async move {
            held.write_all(b"a").await?;
            tokio::task::yield_now().await;
            held.write_all(b"b").await?;
            std::future::pending::<io::Result<()>>().await
        });
        assert!(turns.await.is_err());
    }
}
