//! What both sides of HTTP/1.1 share (RFC 9112): memory to read into, header fields, where a body ends, and bytes on their
//! way out. Nothing here waits by the clock, and nothing knows who the other side is.

use std::io;

mod arena;
mod decoder;
mod fields;
mod lines;
mod outgoing;

pub(crate) use arena::{Arena, Reader};
pub(crate) use decoder::{Chunks, Decoder, Piece};
pub(crate) use fields::{Told, field, is_whole, lists, pass, skip_blank, values};
pub(crate) use lines::Names;
pub(crate) use outgoing::{Framing, Outgoing, Unsent, announced};

/// Why a message breaks.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// The other side closed the connection.
    #[error("connection was closed before the message was complete")]
    Closed,
    /// The socket, or TLS.
    #[error("connection broke")]
    Io(#[source] io::Error),
    /// The head is not HTTP/1.
    #[error("head of the message is malformed")]
    Head(#[source] httparse::Error),
    /// What was sent has two readings, or none.
    #[error("message is malformed: {0}")]
    Malformed(&'static str),
}
