//! A close that lets the client read the last answer.
//!
//! A request may be answered before its body was read. If the socket is closed then, what still arrives is answered with a
//! reset, and a reset makes the client's kernel throw away the answer that it had not read yet (RFC 9112 section 9.6). So the
//! sending side is closed first, and for a while what comes is read and thrown away.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// How long a client may go on sending.
const PATIENCE: Duration = Duration::from_secs(2);
/// How many bytes of it are read.
const MOST: usize = 1 << 20;

/// Bytes of an answer that are put together before they are written.
const GATHERED: usize = 2048;

/// Whether a connection's client may still be sending when it is closed.
#[derive(Clone, Debug, Default)]
pub(super) struct Unread(Arc<AtomicBool>);

impl Unread {
    /// The body of a request is not read to its end.
    pub(super) fn note(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_noted(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A stream that lingers if [`Unread::note`] was called before it is shut down.
pub(super) struct Lingering<T> {
    inner: T,
    unread: Unread,
    state: State,
}

enum State {
    Open,
    /// Until when, and how many bytes were thrown away.
    Draining(Pin<Box<Sleep>>, usize),
    Closed,
}

impl<T> Lingering<T> {
    pub(super) fn new(inner: T, unread: Unread) -> Self {
        Self {
            inner,
            unread,
            state: State::Open,
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Lingering<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_read(context, buffer)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Lingering<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let inner = Pin::new(&mut self.get_mut().inner);
        // The kernel takes one small piece sooner than two, by more than it costs to put them together.
        let whole: usize = slices.iter().map(|slice| slice.len()).sum();
        if whole > GATHERED {
            return inner.poll_write_vectored(context, slices);
        }
        let mut space = [MaybeUninit::uninit(); GATHERED];
        let mut gathered = ReadBuf::uninit(&mut space);
        slices.iter().for_each(|slice| gathered.put_slice(slice));
        inner.poll_write(context, gathered.filled())
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            match &mut this.state {
                State::Open => {
                    ready!(Pin::new(&mut this.inner).poll_shutdown(context))?;
                    this.state = if this.unread.is_noted() {
                        State::Draining(Box::pin(tokio::time::sleep(PATIENCE)), 0)
                    } else {
                        State::Closed
                    };
                }
                State::Draining(end, thrown) => {
                    let mut bytes = [MaybeUninit::uninit(); 16 * 1024];
                    let mut buffer = ReadBuf::uninit(&mut bytes);
                    if end.as_mut().poll(context).is_ready() {
                        this.state = State::Closed;
                        continue;
                    }
                    let read = ready!(Pin::new(&mut this.inner).poll_read(context, &mut buffer));
                    *thrown += buffer.filled().len();
                    // An error is the client's own end.
                    if read.is_err() || buffer.filled().is_empty() || *thrown > MOST {
                        this.state = State::Closed;
                    }
                }
                State::Closed => return Poll::Ready(Ok(())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn a_client_that_sends_on_is_read_until_it_ends() {
        for (noted, thrown) in [(true, true), (false, false)] {
            let (mut client, server) = tokio::io::duplex(64);
            let unread = Unread::default();
            if noted {
                unread.note();
            }
            let mut server = Lingering::new(server, unread);
            let closing = tokio::spawn(async move {
                server.write_all(b"answer").await.expect("room");
                server.shutdown().await.expect("no error");
            });
            let mut sent = 0;
            while sent < 1024 && client.write_all(&[0; 32]).await.is_ok() {
                sent += 32;
            }
            assert_eq!(sent == 1024, thrown, "{sent}");
            let mut answer = Vec::new();
            if thrown {
                client.shutdown().await.expect("no error");
                client.read_to_end(&mut answer).await.expect("the answer");
                assert_eq!(answer, b"answer");
            }
            closing.await.expect("it ends");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_never_ends_is_left_after_a_while() {
        let (_client, server) = tokio::io::duplex(64);
        let unread = Unread::default();
        unread.note();
        let mut server = Lingering::new(server, unread);
        let start = tokio::time::Instant::now();
        server.shutdown().await.expect("no error");
        assert_eq!(start.elapsed().as_secs(), PATIENCE.as_secs());
    }
}
