//! Writes of one turn of a connection, sent together.
//!
//! HTTP/2's codec writes each frame by itself, and flushes before it takes the next. Of many streams on one connection
//! each answer would then be a system call, and under TLS a record. Here what is written waits until the connection has
//! nothing more to say, or until there is much of it.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that wait at most; then they are sent before more is taken.
const MOST: usize = 64 * 1024;

/// A stream that holds writes back until [`Turns`] sends them.
pub(super) struct Held<T>(Rc<RefCell<Inner<T>>>);

struct Inner<T> {
    stream: T,
    waiting: Vec<u8>,
    /// Of these so many are sent.
    sent: usize,
    /// How sending failed, for the next who writes.
    failed: Option<io::Error>,
}

impl<T: AsyncWrite + Unpin> Inner<T> {
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.waiting.is_empty() {
            return Poll::Ready(Ok(()));
        }
        while self.sent < self.waiting.len() {
            let left = &self.waiting[self.sent..];
            match ready!(Pin::new(&mut self.stream).poll_write(context, left))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.sent += count,
            }
        }
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        self.waiting.clear();
        self.sent = 0;
        Poll::Ready(Ok(()))
    }

    /// Makes room for more.
    fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Err(error));
        }
        if self.waiting.len() < MOST {
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
        self.poll_write_vectored(context, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let inner = &mut *self.0.borrow_mut();
        ready!(inner.poll_room(context))?;
        let before = inner.waiting.len();
        for slice in slices {
            inner.waiting.extend_from_slice(slice);
        }
        Poll::Ready(Ok(inner.waiting.len() - before))
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
    /// `connect` makes the connection of the stream.
    pub(super) fn new(stream: T, connect: impl FnOnce(Held<T>) -> C) -> Self {
        let held = Held(Rc::new(RefCell::new(Inner {
            stream,
            waiting: Vec::new(),
            sent: 0,
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
        // A connection that is over has sent what it had to when it shut the stream down.
        if let (Poll::Ready(Err(error)), true) = (inner.poll_send(context), polled.is_pending()) {
            inner.failed = Some(error);
            inner.waiting.clear();
            inner.sent = 0;
            context.waker().wake_by_ref();
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn what_is_written_in_one_turn_is_sent_together_and_within_bounds() {
        let (near, mut far) = tokio::io::duplex(4 * MOST);
        let mut turns = Turns::new(near, |mut held| async move {
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
        assert_eq!(turns.held.0.borrow().waiting, b"e");
    }

    #[tokio::test]
    async fn a_stream_that_broke_is_told_to_whoever_writes() {
        let (near, far) = tokio::io::duplex(64);
        drop(far);
        let turns = Turns::new(near, |mut held| async move {
            held.write_all(b"a").await?;
            tokio::task::yield_now().await;
            held.write_all(b"b").await?;
            std::future::pending::<io::Result<()>>().await
        });
        assert!(turns.await.is_err());
    }
}
