//! Where the body of a message ends (RFC 9112, sections 6 and 7).

use bytes::Bytes;
use http::HeaderMap;
use http_body::SizeHint;

use super::{MessageError, fields};

/// Bytes of the line that tells a chunk's size, and of all lines that a body has beyond what sizes need.
const MAX_LINE: usize = 4 * 1024;
const MAX_EXTENSIONS: usize = 16 * 1024;
/// Bytes that a size needs at most: 16 digits and the end of the line.
const SIZE: usize = 18;
/// Bytes of trailers.
pub(super) const MAX_TRAILERS: usize = 16 * 1024;
/// How a body of chunks usually ends, seen from the end of the last one's data.
const USUAL_END: &[u8] = b"\r\n0\r\n\r\n";

/// Reads a body.
#[derive(Debug)]
pub(crate) enum Decoder {
    /// So many bytes are left.
    Length(u64),
    Chunked(Chunks),
    /// Until the connection is closed.
    Close,
    Ended,
}

/// A body in chunks.
#[derive(Debug, Default)]
pub(crate) struct Chunks {
    at: At,
    /// Bytes of chunk extensions so far.
    extensions: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    #[default]
    Size,
    /// So many bytes of the chunk are left.
    Data(u64),
    DataEnd,
    Trailers,
}

/// What comes next.
#[derive(Debug)]
pub(crate) enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
    /// More has to be read first.
    More,
}

impl Decoder {
    pub(crate) fn length(length: u64) -> Self {
        match length {
            0 => Self::Ended,
            some => Self::Length(some),
        }
    }

    pub(crate) fn ended(&self) -> bool {
        matches!(self, Self::Ended)
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        match self {
            Self::Length(left) => SizeHint::with_exact(*left),
            Self::Chunked(_) | Self::Close => SizeHint::default(),
            Self::Ended => SizeHint::with_exact(0),
        }
    }

    /// The connection was closed.
    pub(crate) fn closed(&mut self) -> Result<(), MessageError> {
        match self {
            Self::Close | Self::Ended => {
                *self = Self::Ended;
                Ok(())
            }
            Self::Length(_) | Self::Chunked(_) => Err(MessageError::Closed),
        }
    }

    /// Takes the next piece.
    pub(crate) fn next(&mut self, input: &mut Bytes) -> Result<Piece, MessageError> {
        let piece = match self {
            Self::Length(left) => {
                let data = some(input, left);
                if *left == 0 {
                    *self = Self::Ended;
                }
                data
            }
            Self::Chunked(chunks) => {
                let piece = chunks.next(input)?;
                let data = matches!(piece, Piece::Data(_));
                if data && chunks.at == At::DataEnd && input.starts_with(USUAL_END) {
                    // Whoever passes the data on knows at once that it is the last.
                    fields::pass(input, USUAL_END.len());
                    *self = Self::Ended;
                } else if matches!(piece, Piece::End | Piece::Trailers(_)) {
                    *self = Self::Ended;
                }
                piece
            }
            Self::Close if input.is_empty() => Piece::More,
            Self::Close => Piece::Data(std::mem::take(input)),
            Self::Ended => Piece::End,
        };
        Ok(piece)
    }
}

/// What is there of so many bytes.
fn some(input: &mut Bytes, left: &mut u64) -> Piece {
    if input.is_empty() {
        return Piece::More;
    }
    let length = usize::try_from(*left).map_or(input.len(), |left| left.min(input.len()));
    *left -= length as u64;
    Piece::Data(input.split_to(length))
}

impl Chunks {
    fn next(&mut self, input: &mut Bytes) -> Result<Piece, MessageError> {
        loop {
            match &mut self.at {
                At::Size => {
                    let Some((line, size)) = size(input)? else {
                        return Ok(Piece::More);
                    };
                    self.extensions += line.saturating_sub(SIZE);
                    if self.extensions > MAX_EXTENSIONS {
                        return Err(MessageError::Malformed("too many chunk extensions"));
                    }
                    fields::pass(input, line);
                    self.at = match size {
                        0 => At::Trailers,
                        some => At::Data(some),
                    };
                }
                At::Data(left) => {
                    let data = some(input, left);
                    if *left == 0 {
                        self.at = At::DataEnd;
                    }
                    return Ok(data);
                }
                At::DataEnd => {
                    match **input {
                        [] | [b'\r'] => return Ok(Piece::More),
                        [b'\r', b'\n', ..] => fields::pass(input, 2),
                        _ => return Err(MessageError::Malformed("chunk is longer than its size")),
                    }
                    self.at = At::Size;
                }
                At::Trailers => {
                    match **input {
                        [] | [b'\r'] => return Ok(Piece::More),
                        [b'\r', b'\n', ..] => {
                            fields::pass(input, 2);
                            return Ok(Piece::End);
                        }
                        // Others read it as the beginning of trailers, and what is behind it as one of them.
                        [b'\n', ..] => {
                            return Err(MessageError::Malformed("body ends without a line end"));
                        }
                        _ => {}
                    }
                    return match fields::trailers(input)? {
                        Some(fields) => Ok(Piece::Trailers(fields)),
                        None if input.len() > MAX_TRAILERS => {
                            Err(MessageError::Malformed("trailers are too long"))
                        }
                        None => Ok(Piece::More),
                    };
                }
            }
        }
    }
}

/// Length of the line that tells a chunk's size, and the size.
fn size(input: &[u8]) -> Result<Option<(usize, u64)>, MessageError> {
    let malformed = MessageError::Malformed("chunk has no size");
    if !input.first().is_none_or(u8::is_ascii_hexdigit) {
        return Err(malformed);
    }
    match httparse::parse_chunk_size(input) {
        // A line that ends in the middle of an extension has two readings.
        Ok(httparse::Status::Complete((line, _))) if input[..line - 1].contains(&b'\n') => {
            Err(MessageError::Malformed("chunk extension has a line break"))
        }
        Ok(httparse::Status::Complete(found)) => Ok(Some(found)),
        Ok(httparse::Status::Partial) if input.len() > MAX_LINE => Err(MessageError::Malformed(
            "line of a chunk's size is too long",
        )),
        Ok(httparse::Status::Partial) => Ok(None),
        Err(httparse::InvalidChunkSize) => Err(malformed),
    }
}
