//! The programs' own words: new flows and drops, as they happen.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use agent_common::Event;
use aya::maps::{MapData, RingBuf};
use tokio::io::unix::AsyncFd;

/// The reading end of the ring buffer. There is one per node; a second reader would steal its records.
pub struct EventReader {
    ring: RingBuf<MapData>,
}

impl std::fmt::Debug for EventReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventReader").finish_non_exhaustive()
    }
}

impl EventReader {
    pub(super) fn new(ring: RingBuf<MapData>) -> Self {
        Self { ring }
    }

    /// The next record, if one is there. A record of unknown size is skipped: it can only come from programs of
    /// another version, which the schema check rules out.
    pub fn try_next(&mut self) -> Option<Event> {
        while let Some(item) = self.ring.next() {
            if let Some(event) = Event::from_bytes(&item) {
                return Some(event);
            }
        }
        None
    }

    /// Waits inside a tokio runtime instead of polling.
    ///
    /// # Errors
    ///
    /// When the runtime cannot watch the ring buffer.
    pub fn into_stream(self) -> io::Result<EventStream> {
        // SAFETY: the descriptor is the ring buffer's, which the reader owns and never replaces.
        unsafe { AsyncFd::register(self) }
            .map(|reader| EventStream { reader })
            .map_err(io::Error::from)
    }
}

impl AsRawFd for EventReader {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

/// Records as they come.
#[derive(Debug)]
pub struct EventStream {
    reader: AsyncFd<EventReader>,
}

impl EventStream {
    /// The next record. Safe to cancel: a record is taken only when it is returned.
    ///
    /// # Errors
    ///
    /// When the runtime is shutting down.
    pub async fn recv(&mut self) -> io::Result<Event> {
        loop {
            let mut guard = self.reader.readable_mut().await?;
            if let Some(event) = guard.get_inner_mut().try_next() {
                return Ok(event);
            }
            guard.clear_ready();
        }
    }
}
