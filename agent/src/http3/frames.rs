//! Frames of a stream of requests (RFC 9114, section 7), read as far as they are wanted.

use std::pin::pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use quinn::{ReadError, RecvStream};

use super::{Code, MAX_HEAD, MAX_TRAILERS, Wrong, varint};

/// Types of frames (RFC 9114, section 11.2.1).
pub(super) const DATA: u64 = 0x00;
pub(super) const HEADERS: u64 = 0x01;
pub(super) const CANCEL_PUSH: u64 = 0x03;
pub(super) const SETTINGS: u64 = 0x04;
pub(super) const PUSH_PROMISE: u64 = 0x05;
pub(super) const GOAWAY: u64 = 0x07;
pub(super) const MAX_PUSH_ID: u64 = 0x0d;
/// Those that HTTP/2 has, and HTTP/3 must not (section 7.2.8).
pub(super) const OF_HTTP2: [u64; 4] = [0x02, 0x06, 0x08, 0x09];

/// Bytes of the longest beginning of a frame: two numbers.
const HEAD: usize = 16;

/// Bytes that are taken from a stream at a time.
const PIECE: usize = 16 * 1024;

/// What a stream of requests has.
#[derive(Debug)]
pub(crate) enum Item {
    /// A part of a body; never empty.
    Data(Bytes),
    /// All the fields of a head, or of trailers.
    Block(Bytes),
}

/// The bytes of a stream, as frames.
pub(crate) struct Frames {
    stream: RecvStream,
    /// What was read of it and not yet looked at.
    input: Bytes,
    ended: bool,
    /// The beginning of a frame, as far as it is there.
    head: [u8; HEAD],
    have: usize,
    place: Place,
    /// Bytes that the next fields may have.
    most: u64,
    /// What was looked at before it was asked for.
    seen: Option<Result<Option<Item>, Wrong>>,
}

/// Where in a frame.
enum Place {
    Head,
    /// In the payload of a frame of data, which has so many bytes more.
    Data(u64),
    /// In one that means nothing here.
    Skipped(u64),
    /// In fields: what is there, and how many bytes are missing.
    Block(BytesMut, u64),
}

impl Frames {
    pub(crate) fn new(stream: RecvStream) -> Self {
        Self {
            stream,
            input: Bytes::new(),
            ended: false,
            head: [0; HEAD],
            have: 0,
            place: Place::Head,
            most: MAX_HEAD,
            seen: None,
        }
    }

    /// Nothing of the stream is read any more.
    pub(crate) fn stop(&mut self, code: Code) {
        self.input = Bytes::new();
        self.ended = true;
        self.seen = Some(Ok(None));
        // A stream that is over needs no word.
        let _over = self.stream.stop(code.into());
    }

    /// Whether it was seen that nothing follows.
    pub(crate) fn is_ended(&self) -> bool {
        matches!(self.seen, Some(Ok(None)))
    }

    /// The next item; none: the stream ended.
    pub(crate) async fn next(&mut self) -> Result<Option<Item>, Wrong> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    /// Looks at what follows, as soon as that is there. What it is, or how it broke, is told to whoever asks next.
    pub(crate) async fn look(&mut self) {
        if self.seen.is_none() {
            let seen = self.next().await;
            self.seen = Some(seen);
        }
    }

    /// The same without waiting for it.
    pub(crate) async fn peek(&mut self) {
        let mut looking = pin!(self.look());
        std::future::poll_fn(|context| {
            // Dropping it between two pieces loses none.
            let _looked = looking.as_mut().poll(context);
            Poll::Ready(())
        })
        .await;
    }

    /// As [`Self::next`].
    pub(crate) fn poll_next(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Option<Item>, Wrong>> {
        match self.seen.take() {
            // There is nothing behind the end.
            Some(Ok(None)) => {
                self.seen = Some(Ok(None));
                return Poll::Ready(Ok(None));
            }
            Some(seen) => return Poll::Ready(seen),
            None => {}
        }
        loop {
            match &mut self.place {
                Place::Head => match ready!(self.poll_head(context))? {
                    None => return Poll::Ready(Ok(None)),
                    Some((kind, length)) => self.place = begun(kind, length, self.most)?,
                },
                Place::Data(0) | Place::Skipped(0) => self.place = Place::Head,
                Place::Block(block, 0) => {
                    let block = std::mem::take(block).freeze();
                    self.place = Place::Head;
                    // Others are trailers.
                    self.most = MAX_TRAILERS;
                    return Poll::Ready(Ok(Some(Item::Block(block))));
                }
                Place::Data(_) | Place::Skipped(_) | Place::Block(..) => {
                    if !ready!(self.poll_input(context))? {
                        return Poll::Ready(Err(TRUNCATED));
                    }
                    if let Some(item) = self.payload() {
                        return Poll::Ready(Ok(Some(item)));
                    }
                }
            }
        }
    }

    /// Takes what is there of a frame's payload.
    fn payload(&mut self) -> Option<Item> {
        let (Place::Data(left) | Place::Skipped(left) | Place::Block(_, left)) = &mut self.place
        else {
            return None;
        };
        let length = self
            .input
            .len()
            .min(usize::try_from(*left).unwrap_or(usize::MAX));
        *left -= length as u64;
        let piece = self.input.split_to(length);
        match &mut self.place {
            Place::Data(_) => return Some(Item::Data(piece)),
            Place::Block(block, _) => block.extend_from_slice(&piece),
            Place::Skipped(_) | Place::Head => {}
        }
        None
    }

    /// Type and length of the next frame; none: the stream ended.
    pub(super) fn poll_head(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Option<(u64, u64)>, Wrong>> {
        loop {
            let head = &self.head[..self.have];
            if let Some((kind, behind)) = varint::decode(head)
                && let Some((length, _)) = varint::decode(&head[behind..])
            {
                self.have = 0;
                return Poll::Ready(Ok(Some((kind, length))));
            }
            if !ready!(self.poll_input(context))? {
                return Poll::Ready(match self.have {
                    0 => Ok(None),
                    _ => Err(TRUNCATED),
                });
            }
            // Two numbers are whole within its bytes.
            self.head[self.have] = self.input.get_u8();
            self.have += 1;
        }
    }

    /// One number of a payload.
    pub(super) async fn number(&mut self) -> Result<Option<u64>, Wrong> {
        loop {
            if let Some((number, _)) = varint::decode(&self.head[..self.have]) {
                self.have = 0;
                return Ok(Some(number));
            }
            if !self.input().await? {
                return match self.have {
                    0 => Ok(None),
                    _ => Err(TRUNCATED),
                };
            }
            self.head[self.have] = self.input.get_u8();
            self.have += 1;
        }
    }

    /// Takes whatever is there, up to so many bytes; empty: the stream ended.
    pub(super) async fn some(&mut self, most: u64) -> Result<Bytes, Wrong> {
        self.input().await?;
        let length = self
            .input
            .len()
            .min(usize::try_from(most).unwrap_or(usize::MAX));
        Ok(self.input.split_to(length))
    }

    async fn input(&mut self) -> Result<bool, Wrong> {
        std::future::poll_fn(|context| self.poll_input(context)).await
    }

    /// Whether there is something to look at; false: the stream ended.
    fn poll_input(&mut self, context: &mut Context<'_>) -> Poll<Result<bool, Wrong>> {
        while self.input.is_empty() && !self.ended {
            // Dropping it between two pieces loses none.
            let read = pin!(self.stream.read_chunk(PIECE, true));
            match ready!(read.poll(context)) {
                Ok(Some(chunk)) => self.input = chunk.bytes,
                Ok(None) => self.ended = true,
                // It was stopped here.
                Err(ReadError::ClosedStream) => self.ended = true,
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
        Poll::Ready(Ok(!self.input.is_empty()))
    }
}

/// A frame that the end of its stream cuts off (RFC 9114, section 7.1).
pub(super) const TRUNCATED: Wrong =
    Wrong::Connection(Code::FRAME_ERROR, "the stream ended inside of a frame");

/// What a frame on a stream of requests is.
fn begun(kind: u64, length: u64, most: u64) -> Result<Place, Wrong> {
    match kind {
        DATA => Ok(Place::Data(length)),
        HEADERS if length > most => Err(Wrong::TooLarge),
        HEADERS => Ok(Place::Block(BytesMut::new(), length)),
        CANCEL_PUSH | SETTINGS | PUSH_PROMISE | GOAWAY | MAX_PUSH_ID => Err(Wrong::Connection(
            Code::FRAME_UNEXPECTED,
            "a frame that has no place on a stream of requests",
        )),
        kind if OF_HTTP2.contains(&kind) => Err(Wrong::Connection(
            Code::FRAME_UNEXPECTED,
            "a frame of HTTP/2",
        )),
        // Of extensions that are not known here (section 9).
        _ => Ok(Place::Skipped(length)),
    }
}

/// The beginning of a frame of data.
pub(crate) fn data_head(length: usize) -> Bytes {
    framed(DATA, length)
}

/// A frame of fields.
pub(super) fn block(fields: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(HEAD + fields.len());
    varint::encode(HEADERS, &mut out);
    varint::encode(fields.len() as u64, &mut out);
    out.extend_from_slice(fields);
    out.freeze()
}

fn framed(kind: u64, length: usize) -> Bytes {
    let mut out = BytesMut::with_capacity(HEAD);
    varint::encode(kind, &mut out);
    varint::encode(length as u64, &mut out);
    out.freeze()
}
