//! A message on its way out: its head, then its body as it comes.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName};
use http_body::{Body, Frame};
use tokio::io::{AsyncWrite, ReadBuf};

use super::fields;

/// Bytes, and pieces, that are gathered before they are written; beyond that a body waits for its reader.
const MAX_BYTES: usize = 64 * 1024;
const MAX_PIECES: usize = 16;

/// Bytes that are put together before they are written: the kernel takes one small piece sooner than several, by more than
/// it costs to put them together.
const GATHERED: usize = 2048;

/// Bytes that are moved to memory of their own when their reader is slow: a part of a shared block keeps all of it.
const SETTLED: usize = 8 * 1024;

/// Why a message is not sent to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unsent<E: std::error::Error + 'static> {
    /// Its body broke off.
    #[error("body broke off")]
    Body(#[source] E),
    /// Its body is longer or shorter than its head said.
    #[error("body is not as long as announced")]
    Length,
    /// The connection did.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What is left to send.
#[derive(Debug)]
pub(crate) struct Outgoing<B> {
    queue: Queue,
    body: Option<B>,
    framing: Framing,
    flushed: bool,
    /// Bytes that were written.
    taken: u64,
}

/// How the body's end is told.
#[derive(Debug)]
pub(crate) enum Framing {
    /// So many bytes are to come.
    Length(u64),
    /// By chunks, and the trailers that were announced.
    Chunked(Vec<HeaderName>),
    /// By the connection's end.
    Close,
}

impl Framing {
    /// Writes the field that tells it.
    pub(crate) fn write(&self, out: &mut BytesMut) {
        match self {
            Self::Length(length) => {
                out.extend_from_slice(b"content-length: ");
                out.extend_from_slice(itoa::Buffer::new().format(*length).as_bytes());
                out.extend_from_slice(b"\r\n");
            }
            Self::Chunked(_) => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
            Self::Close => {}
        }
    }
}

impl<B> Outgoing<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::error::Error + 'static,
{
    /// A head, and the body that follows if there is one.
    pub(crate) fn new(head: Bytes, body: Option<B>, framing: Framing) -> Self {
        Self {
            queue: Queue {
                first: head,
                rest: VecDeque::new(),
                bytes: 0,
                settled: false,
            },
            body,
            framing,
            flushed: false,
            taken: 0,
        }
    }

    /// Sends as much as there is, and is ready when all of it is sent.
    pub(crate) fn poll<T: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut T,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), Unsent<B::Error>>> {
        loop {
            let waits = self.gather(context)?;
            while !self.queue.first.is_empty() {
                self.flushed = false;
                let Poll::Ready(count) = self.queue.poll_write(stream, context)? else {
                    self.queue.settle();
                    return Poll::Pending;
                };
                if count == 0 {
                    return Poll::Ready(Err(io::Error::from(io::ErrorKind::WriteZero).into()));
                }
                self.queue.advance(count);
                self.taken += count as u64;
            }
            if !self.flushed && (waits || self.body.is_none()) {
                ready!(Pin::new(&mut *stream).poll_flush(context))?;
                self.flushed = true;
            }
            if self.body.is_none() {
                return Poll::Ready(Ok(()));
            }
            if waits {
                return Poll::Pending;
            }
        }
    }

    /// Bytes that the other side has taken, if it is to take more before anything else happens.
    pub(crate) fn held(&self) -> Option<u64> {
        (!self.queue.first.is_empty()).then_some(self.taken)
    }

    /// Takes what the body has; true if the rest has not come yet.
    fn gather(&mut self, context: &mut Context<'_>) -> Result<bool, Unsent<B::Error>> {
        while let Some(body) = &mut self.body {
            if self.queue.is_full() {
                return Ok(false);
            }
            match Pin::new(&mut *body).poll_frame(context) {
                Poll::Pending => return Ok(true),
                Poll::Ready(Some(frame)) => {
                    let frame = frame.map_err(Unsent::Body)?;
                    let last = body.is_end_stream();
                    self.frame(frame, last)?;
                }
                Poll::Ready(None) => self.end(None)?,
            }
        }
        Ok(false)
    }

    fn frame(&mut self, frame: Frame<Bytes>, last: bool) -> Result<(), Unsent<B::Error>> {
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => {
                let trailers = frame.into_trailers().ok();
                return self.end(trailers);
            }
        };
        match &mut self.framing {
            Framing::Length(left) => {
                let rest = left.checked_sub(data.len() as u64);
                *left = rest.ok_or(Unsent::Length)?;
                self.queue.push(data);
            }
            Framing::Close => self.queue.push(data),
            Framing::Chunked(_) if data.is_empty() => {}
            Framing::Chunked(_) => {
                self.queue.push(format!("{:x}\r\n", data.len()).into());
                self.queue.push(data);
                self.queue.push(Bytes::from_static(b"\r\n"));
            }
        }
        match last {
            true => self.end(None),
            false => Ok(()),
        }
    }

    fn end(&mut self, trailers: Option<HeaderMap>) -> Result<(), Unsent<B::Error>> {
        self.body = None;
        match &self.framing {
            Framing::Length(0) | Framing::Close => Ok(()),
            Framing::Length(_) => Err(Unsent::Length),
            Framing::Chunked(announced) => {
                let mut out = BytesMut::from(&b"0\r\n"[..]);
                for (name, value) in trailers.iter().flatten() {
                    if announced.contains(name) {
                        fields::field(name, value, &mut out);
                    }
                }
                out.extend_from_slice(b"\r\n");
                self.queue.push(out.freeze());
                Ok(())
            }
        }
    }
}

/// Trailers that a message may have: those that it announced, and none that frame or address it (RFC 9110, section 6.5.1).
pub(crate) fn announced(headers: &HeaderMap) -> Vec<HeaderName> {
    const NEVER: [HeaderName; 13] = [
        header::AUTHORIZATION,
        header::CACHE_CONTROL,
        header::CONNECTION,
        header::CONTENT_ENCODING,
        header::CONTENT_LENGTH,
        header::CONTENT_RANGE,
        header::CONTENT_TYPE,
        header::HOST,
        header::MAX_FORWARDS,
        header::SET_COOKIE,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
    ];
    headers
        .get_all(header::TRAILER)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .filter(|name| !NEVER.contains(name))
        .collect()
}

/// Bytes to write. The first piece is empty only if there is none.
#[derive(Debug)]
struct Queue {
    first: Bytes,
    rest: VecDeque<Bytes>,
    /// Of the rest.
    bytes: usize,
    /// Whether all of it has memory of its own.
    settled: bool,
}

impl Queue {
    fn is_full(&self) -> bool {
        self.first.len() + self.bytes >= MAX_BYTES || self.rest.len() >= MAX_PIECES
    }

    /// What waits for a slow reader gives the memory that it shares with others back, if it is little.
    fn settle(&mut self) {
        let length = self.first.len() + self.bytes;
        if self.settled || length > SETTLED {
            return;
        }
        let mut own = Vec::with_capacity(length);
        own.extend_from_slice(&self.first);
        self.rest
            .drain(..)
            .for_each(|one| own.extend_from_slice(&one));
        self.first = own.into();
        self.bytes = 0;
        self.settled = true;
    }

    fn push(&mut self, piece: Bytes) {
        if piece.is_empty() {
            return;
        }
        self.settled = false;
        if self.first.is_empty() {
            self.first = piece;
        } else {
            self.bytes += piece.len();
            self.rest.push_back(piece);
        }
    }

    fn poll_write<T: AsyncWrite + Unpin>(
        &self,
        stream: &mut T,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let stream = Pin::new(stream);
        if self.rest.is_empty() {
            return stream.poll_write(context, &self.first);
        }
        let pieces = std::iter::once(&self.first).chain(&self.rest);
        if self.first.len() + self.bytes <= GATHERED {
            let mut space = [MaybeUninit::uninit(); GATHERED];
            let mut gathered = ReadBuf::uninit(&mut space);
            pieces.for_each(|piece| gathered.put_slice(piece));
            return stream.poll_write(context, gathered.filled());
        }
        if !stream.is_write_vectored() {
            return stream.poll_write(context, &self.first);
        }
        let mut slices = [IoSlice::new(&[]); MAX_PIECES + 4];
        let mut count = 0;
        for (slice, piece) in slices.iter_mut().zip(pieces) {
            *slice = IoSlice::new(piece);
            count += 1;
        }
        stream.poll_write_vectored(context, &slices[..count])
    }

    fn advance(&mut self, mut count: usize) {
        loop {
            let now = count.min(self.first.len());
            fields::pass(&mut self.first, now);
            count -= now;
            if !self.first.is_empty() {
                return;
            }
            let Some(next) = self.rest.pop_front() else {
                return;
            };
            self.bytes -= next.len();
            self.first = next;
        }
    }
}
