//! Streams of one direction (RFC 9114, section 6.2): what the router says of itself, and what clients say of themselves.

use std::cell::Cell;

use bytes::{Bytes, BytesMut};
use quinn::RecvStream;

use super::frames::{
    CANCEL_PUSH, DATA, GOAWAY, HEADERS, MAX_PUSH_ID, OF_HTTP2, PUSH_PROMISE, SETTINGS,
};
use super::{Code, Frames, Wrong, varint};

/// Types of streams (RFC 9114, section 11.2.4; RFC 9204, section 4.2).
const CONTROL: u64 = 0x00;
const PUSH: u64 = 0x01;
const ENCODER: u64 = 0x02;
const DECODER: u64 = 0x03;

/// Settings that are told (RFC 9114, section 7.2.4.1; RFC 9204, section 5).
const TABLE_CAPACITY: u64 = 0x01;
const FIELD_SECTION_SIZE: u64 = 0x06;
const BLOCKED_STREAMS: u64 = 0x07;

/// Those of HTTP/2, which are none here.
const FORBIDDEN: std::ops::RangeInclusive<u64> = 0x02..=0x05;

/// Bytes of a client's settings: some tens of them at most.
const MAX_SETTINGS: u64 = 1024;

/// An encoder's word that the table has no size (RFC 9204, section 4.3.1): the only one that it may say to a table of no size.
const NO_CAPACITY: u8 = 0x20;

/// What the router's control stream begins with: its type and its settings. `most`: what the sizes of a head's fields may sum
/// up to.
pub(crate) fn opening(most: usize) -> Bytes {
    let mut settings = BytesMut::new();
    for (name, value) in [
        (FIELD_SECTION_SIZE, most as u64),
        (TABLE_CAPACITY, 0),
        (BLOCKED_STREAMS, 0),
    ] {
        varint::encode(name, &mut settings);
        varint::encode(value, &mut settings);
    }
    let mut out = BytesMut::new();
    varint::encode(CONTROL, &mut out);
    frame(SETTINGS, &settings, &mut out);
    out.freeze()
}

/// Tells that requests from this stream on are not served.
pub(crate) fn goaway(stream: u64) -> Bytes {
    let mut number = BytesMut::new();
    varint::encode(stream, &mut number);
    let mut out = BytesMut::new();
    frame(GOAWAY, &number, &mut out);
    out.freeze()
}

fn frame(kind: u64, payload: &[u8], out: &mut BytesMut) {
    varint::encode(kind, out);
    varint::encode(payload.len() as u64, out);
    out.extend_from_slice(payload);
}

/// What a client has said on its streams of one direction, of which some may be there once.
#[derive(Default)]
pub(crate) struct Control {
    control: Cell<bool>,
    encoder: Cell<bool>,
    decoder: Cell<bool>,
}

impl Control {
    /// Reads one of the client's streams, to its end if it is one that has to last.
    ///
    /// # Errors
    ///
    /// What ends the connection.
    pub(crate) async fn read(&self, stream: RecvStream) -> Result<(), Wrong> {
        let mut frames = Frames::new(stream);
        let kind = match frames.number().await {
            Ok(Some(kind)) => kind,
            // It may end before it says what it is.
            Ok(None) | Err(_) => return Ok(()),
        };
        let closed = || {
            Err(Wrong::Connection(
                Code::CLOSED_CRITICAL_STREAM,
                "a stream ended that has to last",
            ))
        };
        let once = |seen: &Cell<bool>| match seen.replace(true) {
            false => Ok(()),
            true => Err(Wrong::Connection(
                Code::STREAM_CREATION_ERROR,
                "a second stream of a kind that there is one of",
            )),
        };
        match kind {
            CONTROL => {
                once(&self.control)?;
                match self.frames(&mut frames).await {
                    // One that is reset is closed as well.
                    Ok(()) | Err(Wrong::Gone(_)) => closed(),
                    Err(wrong) => Err(wrong),
                }
            }
            ENCODER => {
                once(&self.encoder)?;
                loop {
                    let said = frames.some(u64::MAX).await;
                    let Some(said) = said.ok().filter(|said| !said.is_empty()) else {
                        return closed();
                    };
                    if said.iter().any(|byte| *byte != NO_CAPACITY) {
                        return Err(Wrong::Connection(
                            Code::ENCODER_STREAM_ERROR,
                            "an insert into a table of no size",
                        ));
                    }
                }
            }
            DECODER => {
                once(&self.decoder)?;
                // It can only say that it gave up streams that it waited for, and none waits.
                while frames
                    .some(u64::MAX)
                    .await
                    .is_ok_and(|said| !said.is_empty())
                {}
                closed()
            }
            PUSH => Err(Wrong::Connection(
                Code::STREAM_CREATION_ERROR,
                "a push of a client",
            )),
            _ => {
                frames.stop(Code::STREAM_CREATION_ERROR);
                Ok(())
            }
        }
    }

    async fn frames(&self, frames: &mut Frames) -> Result<(), Wrong> {
        let wrong = |code, why| Err(Wrong::Connection(code, why));
        let mut settled = false;
        let mut pushes = 0;
        while let Some((kind, length)) = head(frames).await? {
            match kind {
                SETTINGS if settled => {
                    return wrong(Code::FRAME_UNEXPECTED, "settings for the second time");
                }
                SETTINGS => {
                    settled = true;
                    if length > MAX_SETTINGS {
                        return wrong(Code::EXCESSIVE_LOAD, "more settings than there are");
                    }
                    settings(&payload(frames, length).await?)?;
                }
                _ if !settled => {
                    return wrong(Code::MISSING_SETTINGS, "a frame before the settings");
                }
                DATA | HEADERS | PUSH_PROMISE => {
                    return wrong(
                        Code::FRAME_UNEXPECTED,
                        "a frame that has no place on a control stream",
                    );
                }
                kind if OF_HTTP2.contains(&kind) => {
                    return wrong(Code::FRAME_UNEXPECTED, "a frame of HTTP/2");
                }
                GOAWAY | MAX_PUSH_ID | CANCEL_PUSH => {
                    let number = match length {
                        1..=8 => payload(frames, length).await?,
                        _ => Bytes::new(),
                    };
                    let number = match varint::decode(&number) {
                        Some((number, whole)) if whole == number_length(length) => number,
                        _ => return wrong(Code::FRAME_ERROR, "a frame of one number without it"),
                    };
                    if kind == CANCEL_PUSH || (kind == MAX_PUSH_ID && number < pushes) {
                        return wrong(Code::ID_ERROR, "a push that was never promised");
                    }
                    if kind == MAX_PUSH_ID {
                        pushes = number;
                    }
                }
                _ => skip(frames, length).await?,
            }
        }
        Ok(())
    }
}

fn number_length(length: u64) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}

async fn head(frames: &mut Frames) -> Result<Option<(u64, u64)>, Wrong> {
    std::future::poll_fn(|context| frames.poll_head(context)).await
}

async fn payload(frames: &mut Frames, length: u64) -> Result<Bytes, Wrong> {
    let mut payload = BytesMut::new();
    while (payload.len() as u64) < length {
        let piece = frames.some(length - payload.len() as u64).await?;
        if piece.is_empty() {
            return Err(super::frames::TRUNCATED);
        }
        payload.extend_from_slice(&piece);
    }
    Ok(payload.freeze())
}

async fn skip(frames: &mut Frames, mut length: u64) -> Result<(), Wrong> {
    while length > 0 {
        let piece = frames.some(length).await?;
        if piece.is_empty() {
            return Err(super::frames::TRUNCATED);
        }
        length -= piece.len() as u64;
    }
    Ok(())
}

/// Looks through a client's settings. None of them changes what it is sent.
fn settings(mut payload: &[u8]) -> Result<(), Wrong> {
    let mut seen = Vec::new();
    while !payload.is_empty() {
        let mut number = || {
            let (number, length) = varint::decode(payload).ok_or(super::frames::TRUNCATED)?;
            payload = &payload[length..];
            Ok::<_, Wrong>(number)
        };
        let (name, _value) = (number()?, number()?);
        if FORBIDDEN.contains(&name) || seen.contains(&name) {
            return Err(Wrong::Connection(
                Code::SETTINGS_ERROR,
                "a setting that is there twice, or is none",
            ));
        }
        seen.push(name);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_each_told_once() {
        assert!(settings(&[]).is_ok());
        assert!(settings(&[0x06, 0x40, 0xff, 0x01, 0x00, 0x21, 0x05]).is_ok());
        for (payload, code) in [
            (&[0x06, 0x01, 0x06, 0x01][..], Code::SETTINGS_ERROR),
            (&[0x03, 0x01], Code::SETTINGS_ERROR),
            (&[0x06], Code::FRAME_ERROR),
            (&[0x06, 0x40], Code::FRAME_ERROR),
        ] {
            let read = settings(payload);
            assert!(
                matches!(read, Err(Wrong::Connection(found, _)) if found == code),
                "{payload:?}: {read:?}"
            );
        }
    }

    #[test]
    fn what_the_router_says_is_framed() {
        let said = opening(61_440);
        assert_eq!(
            said[..],
            [
                0x00, 0x04, 9, 0x06, 0x80, 0x00, 0xf0, 0x00, 0x01, 0, 0x07, 0
            ]
        );
        assert_eq!(goaway(400)[..], [0x07, 2, 0x41, 0x90]);
    }
}
