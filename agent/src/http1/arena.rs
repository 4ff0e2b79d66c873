//! Memory that the connections of one core read into and write heads from, one after the other.
//!
//! Most messages are passed on before the next one is read, so the same few kilobytes serve all connections, and they stay
//! in the core's cache; an idle connection has no buffer. What is read in large pieces has memory of its own.

use std::cell::{RefCell, RefMut};
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::HeaderMap;
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::Names;

/// Bytes of the shared memory. Whoever holds a part of it holds all of it.
const BLOCK: usize = 32 * 1024;

/// Bytes that are asked for first, and from the shared memory.
const LEAST: usize = 8 * 1024;

/// Maps of header fields that are kept for the next messages, and fields that such a map has room for.
const MAPS: usize = 64;
const FIELDS: usize = 64;

/// The shared memory; always empty between two uses.
#[derive(Clone, Debug, Default)]
pub(crate) struct Arena(Rc<Memory>);

#[derive(Debug, Default)]
struct Memory {
    block: RefCell<BytesMut>,
    maps: RefCell<Vec<HeaderMap>>,
    names: RefCell<Names>,
}

impl Arena {
    /// The block, with room for at least so many bytes.
    fn block(&self, room: usize) -> RefMut<'_, BytesMut> {
        let mut block = self.0.block.borrow_mut();
        // A panic may have left what was half written.
        block.clear();
        // From its beginning, if nobody holds a part.
        if !block.try_reclaim(BLOCK) && block.capacity() < room {
            *block = BytesMut::with_capacity(BLOCK.max(room));
        }
        block
    }

    /// An empty map.
    pub(crate) fn map(&self) -> HeaderMap {
        self.0.maps.borrow_mut().pop().unwrap_or_default()
    }

    /// Takes a map that is not needed any more.
    pub(crate) fn give(&self, mut map: HeaderMap) {
        map.clear();
        let mut maps = self.0.maps.borrow_mut();
        if maps.len() < MAPS && (1..=FIELDS).contains(&map.capacity()) {
            maps.push(map);
        }
    }

    /// What the heads of requests look like.
    pub(crate) fn names(&self) -> RefMut<'_, Names> {
        self.0.names.borrow_mut()
    }

    /// What `write` writes.
    pub(crate) fn written(&self, room: usize, write: impl FnOnce(&mut BytesMut)) -> Bytes {
        let mut block = self.block(room);
        write(&mut block);
        block.split().freeze()
    }
}

/// The reading side of a connection.
#[derive(Debug)]
pub(crate) struct Reader {
    /// What was read and not yet taken.
    pub(crate) input: Bytes,
    arena: Arena,
    /// Bytes to ask for next, and at most.
    next: usize,
    most: usize,
    /// Whether the last read left much room.
    little: bool,
}

impl Reader {
    /// Nothing was read yet; `most`: bytes that one read may take.
    pub(crate) fn new(arena: Arena, most: usize) -> Self {
        Self {
            input: Bytes::new(),
            arena,
            next: LEAST,
            most,
            little: false,
        }
    }

    pub(crate) fn arena(&self) -> &Arena {
        &self.arena
    }

    /// What was read and not yet taken, and the memory beside it.
    pub(crate) fn input(&mut self) -> (&mut Bytes, &Arena) {
        (&mut self.input, &self.arena)
    }

    /// Reads more; 0 is the end.
    pub(crate) fn poll_more<T: AsyncRead + Unpin>(
        &mut self,
        stream: &mut T,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let next = self.next;
        let mut read = |buffer: &mut BytesMut| {
            let mut room = buffer.limit(next);
            pin!(stream.read_buf(&mut room)).poll(context)
        };
        let (more, count) = if next > LEAST {
            let mut own = BytesMut::with_capacity(next);
            let count = ready!(read(&mut own))?;
            (own, count)
        } else {
            let mut block = self.arena.block(next);
            let count = ready!(read(&mut block))?;
            (block.split(), count)
        };
        if self.input.is_empty() {
            self.input = more.freeze();
        } else {
            let before = std::mem::take(&mut self.input);
            let mut joined = before
                .try_into_mut()
                .unwrap_or_else(|shared| (&shared[..]).into());
            joined.extend_from_slice(&more);
            self.input = joined.freeze();
        }
        // More where there was more than room; less where there was much room twice, since a message's last piece is often
        // small.
        let little = count < next / 2;
        if count == next {
            self.next = (2 * next).min(self.most);
        } else if little && self.little {
            self.next = (next / 2).max(LEAST);
        }
        self.little = little && !self.little;
        Poll::Ready(Ok(count))
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::http1::{pass, skip_blank};

    #[test]
    fn what_a_panic_left_half_written_is_in_no_other_message() {
        let arena = Arena::default();
        let broken = catch_unwind(AssertUnwindSafe(|| {
            arena.written(64, |out| {
                out.extend_from_slice(b"secret");
                panic!("in the middle of a head");
            })
        }));
        assert!(broken.is_err());
        let next = arena.written(64, |out| out.extend_from_slice(b"next"));
        assert_eq!(next, "next");
    }

    #[tokio::test]
    async fn a_connection_whose_bytes_were_taken_holds_none_of_the_block() {
        let arena = Arena::default();
        let beginning = || arena.written(1, |out| out.extend_from_slice(b"x")).as_ptr();
        let first = beginning();
        let mut reader = Reader::new(arena.clone(), LEAST);
        let mut stream = &b"\r\nhead"[..];
        let read = std::future::poll_fn(|context| reader.poll_more(&mut stream, context));
        assert_eq!(read.await.expect("bytes"), 6);
        assert_eq!(skip_blank(&mut reader.input), 2);
        assert_ne!(beginning(), first, "a part of it is in use");
        pass(&mut reader.input, 4);
        assert_eq!(beginning(), first);
    }

    #[test]
    fn a_map_that_was_given_back_is_empty() {
        let arena = Arena::default();
        let mut map = HeaderMap::new();
        for at in 0..40_u16 {
            map.append("x-a", at.into());
            map.append("cookie", at.into());
        }
        map.insert("authorization", 1_u16.into());
        arena.give(map);
        let map = arena.map();
        assert!(map.capacity() > 0, "it is the same one");
        assert_eq!((map.len(), map.keys_len()), (0, 0));
        assert!(!map.contains_key("authorization") && map.get_all("x-a").iter().next().is_none());
    }
}
