//! HTTP/3 (RFC 9114) as it is written on streams of QUIC: frames, fields, and the heads and bodies of messages.
//!
//! Flows in: streams of a client. Flows out: requests as the router's stages take them, and the bytes of their answers. What is
//! read of a stream is never more than its body's reader asks for, besides one head, which is bounded: how much a client may have
//! waiting is decided by QUIC's windows. Fields are never compressed by what came before them (RFC 9204 with a dynamic table of
//! no size), so that no stream waits for another one.
//! What it deliberately does not do: it knows no routes and opens no sockets, pushes nothing and takes no datagrams.

use std::time::Duration;

use http::Method;

use frames::Item;

mod body;
mod control;
mod fields;
mod frames;
mod huffman;
mod message;
mod table;
mod varint;

pub(crate) use body::{Link, RequestBody, StreamError};
pub(crate) use control::{Control, goaway, opening};
pub(crate) use frames::{Frames, data_head};
pub(crate) use message::{Head, ending, response};

/// Bytes of the fields of a head, and of trailers, as they are written. What is longer is not read.
const MAX_HEAD: u64 = 64 * 1024;
const MAX_TRAILERS: u64 = 8 * 1024;

/// An error code of HTTP/3 (RFC 9114, section 8.1) or of its fields (RFC 9204, section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Code(u32);

impl Code {
    pub(crate) const NO_ERROR: Self = Self(0x100);
    pub(crate) const INTERNAL_ERROR: Self = Self(0x102);
    pub(crate) const STREAM_CREATION_ERROR: Self = Self(0x103);
    pub(crate) const CLOSED_CRITICAL_STREAM: Self = Self(0x104);
    pub(crate) const FRAME_UNEXPECTED: Self = Self(0x105);
    pub(crate) const FRAME_ERROR: Self = Self(0x106);
    pub(crate) const EXCESSIVE_LOAD: Self = Self(0x107);
    pub(crate) const ID_ERROR: Self = Self(0x108);
    pub(crate) const SETTINGS_ERROR: Self = Self(0x109);
    pub(crate) const MISSING_SETTINGS: Self = Self(0x10a);
    pub(crate) const REQUEST_REJECTED: Self = Self(0x10b);
    pub(crate) const REQUEST_CANCELLED: Self = Self(0x10c);
    pub(crate) const REQUEST_INCOMPLETE: Self = Self(0x10d);
    pub(crate) const MESSAGE_ERROR: Self = Self(0x10e);
    pub(crate) const DECOMPRESSION_FAILED: Self = Self(0x200);
    pub(crate) const ENCODER_STREAM_ERROR: Self = Self(0x201);
}

impl From<Code> for quinn::VarInt {
    fn from(code: Code) -> Self {
        Self::from_u32(code.0)
    }
}

/// Why what a client sent is not read on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Wrong {
    /// Nothing on the connection can be trusted any more.
    #[error("{1}")]
    Connection(Code, &'static str),
    /// The message of this stream is malformed (RFC 9114, section 4.1.2).
    #[error("{0}")]
    Message(&'static str),
    /// Its head, or its trailers, are longer than may be.
    #[error("fields are longer than they may be")]
    TooLarge,
    /// The stream ended before its message.
    #[error("stream ended before its request")]
    Incomplete,
    /// The client gave it up, or is gone.
    #[error(transparent)]
    Gone(#[from] quinn::ReadError),
}

/// How long is waited for the end of a request that has no body as a rule, and may have its end in another packet.
const END: Duration = Duration::from_millis(20);

/// Reads the head of a request. `most`: what the sizes of its fields may sum up to (RFC 9114, section 4.2.2).
///
/// # Errors
///
/// What is wrong with it, or with the stream.
pub(crate) async fn head(frames: &mut Frames, most: usize) -> Result<Head, Wrong> {
    let head = match frames.next().await? {
        Some(Item::Block(block)) => message::request(&block, most)?,
        Some(Item::Data(_)) => {
            return Err(Wrong::Connection(
                Code::FRAME_UNEXPECTED,
                "a body without a head",
            ));
        }
        None => return Err(Wrong::Incomplete),
    };
    match (&head.parts.method, head.length) {
        (&(Method::GET | Method::HEAD | Method::OPTIONS | Method::DELETE), None) => {
            // What has not come by then is taken for a body.
            let _seen = tokio::time::timeout(END, frames.look()).await;
        }
        _ => frames.peek().await,
    }
    match head.length {
        Some(1..) if frames.is_ended() => Err(Wrong::Message(
            "a body that its head announced, and is not there",
        )),
        _ => Ok(head),
    }
}
