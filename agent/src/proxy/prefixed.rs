//! A stream whose first bytes were read ahead.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// Bytes that are read ahead at a time.
const ROOM: usize = 2048;

/// Gives back `ahead` before anything else.
#[derive(Debug)]
pub(super) struct Prefixed<T> {
    ahead: BytesMut,
    inner: T,
}

impl<T> Prefixed<T> {
    pub(super) fn new(inner: T) -> Self {
        Self {
            ahead: BytesMut::new(),
            inner,
        }
    }

    /// A stream of which something was read by others.
    pub(super) fn behind(ahead: Bytes, inner: T) -> Self {
        Self {
            ahead: ahead.into(),
            inner,
        }
    }

    /// What was read ahead and not yet given back.
    pub(super) fn ahead(&self) -> &[u8] {
        &self.ahead
    }

    pub(super) fn into_parts(self) -> (BytesMut, T) {
        (self.ahead, self.inner)
    }
}

impl<T: AsyncRead + Unpin> Prefixed<T> {
    /// Reads more ahead; 0 is the end of the stream.
    pub(super) async fn read_ahead(&mut self) -> io::Result<usize> {
        // The first request is mostly there to its end, and need not be read in parts.
        self.ahead.reserve(ROOM);
        self.inner.read_buf(&mut self.ahead).await
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Prefixed<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.ahead.is_empty() {
            return Pin::new(&mut this.inner).poll_read(context, buffer);
        }
        let length = this.ahead.len().min(buffer.remaining());
        buffer.put_slice(&this.ahead[..length]);
        this.ahead.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Prefixed<T> {
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
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(context)
    }
}
