//! Connections to one destination that nobody uses.

use std::cell::RefCell;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use tokio::time::Instant;

use super::Stream;
use crate::http1::{Arena, Reader};

/// Connections kept per destination and core.
const MOST: usize = 1024;

/// A connection without an exchange.
pub(in crate::upstream) struct Idle {
    pub(super) stream: Stream,
    pub(super) reader: Reader,
    /// Address of the other side, as a text: every request on the connection is recorded with it.
    pub(in crate::upstream) from: Arc<str>,
    since: Instant,
}

impl Idle {
    pub(in crate::upstream) fn new(stream: Stream, arena: Arena, from: Arc<str>) -> Self {
        Self {
            stream,
            reader: Reader::new(arena),
            from,
            since: Instant::now(),
        }
    }

    /// Whether the other side closed it, or said something unasked. Wakes `context` at the next news.
    fn is_stale(&mut self, context: &mut Context<'_>) -> bool {
        self.reader.poll_more(&mut self.stream, context).is_ready()
    }
}

/// Takes connections when their exchange has ended, and gives them for the next one, the last used one first.
#[derive(Default)]
pub(in crate::upstream) struct Shelf(RefCell<Vec<Idle>>);

impl Shelf {
    /// Keeps a connection, or closes it if there are too many.
    pub(super) fn keep(&self, mut idle: Idle) {
        let mut all = self.0.borrow_mut();
        if all.len() < MOST {
            idle.since = Instant::now();
            all.push(idle);
        }
    }

    /// A connection that is open as far as it is known.
    pub(in crate::upstream) async fn take(&self) -> Option<Idle> {
        let open = std::future::poll_fn(|context| {
            loop {
                let Some(mut idle) = self.0.borrow_mut().pop() else {
                    return std::task::Poll::Ready(None);
                };
                if !idle.is_stale(context) {
                    return std::task::Poll::Ready(Some(idle));
                }
            }
        });
        // A task that has used its budget up is told that nothing came, which would look like an open connection.
        tokio::task::coop::unconstrained(open).await
    }

    /// Closes connections that were closed by the other side or idled too long; false if none is left.
    pub(in crate::upstream) fn expire(&self, now: Instant, limit: Duration) -> bool {
        let mut nobody = Context::from_waker(Waker::noop());
        let mut all = self.0.borrow_mut();
        all.retain_mut(|one| now.duration_since(one.since) < limit && !one.is_stale(&mut nobody));
        !all.is_empty()
    }
}
