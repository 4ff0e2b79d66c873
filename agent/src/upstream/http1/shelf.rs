//! Connections to one destination that nobody uses.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::Instant;

use super::Stream;
use crate::http1::{Arena, Names, Reader};

/// Connections kept per destination and core.
const MOST: usize = 1024;

/// A connection without an exchange.
pub(in crate::upstream) struct Idle {
    pub(super) stream: Stream,
    pub(super) reader: Reader,
    /// Address of the other side, as a text: every request on the connection is recorded with it.
    pub(in crate::upstream) from: Arc<str>,
    /// When it was first seen without an exchange.
    since: Option<Instant>,
}

impl Idle {
    pub(in crate::upstream) fn new(stream: Stream, arena: Arena, from: Arc<str>) -> Box<Self> {
        Box::new(Self {
            stream,
            reader: Reader::new(arena),
            from,
            since: None,
        })
    }

    /// Whether the other side closed it, or said something unasked. Wakes `context` at the next news.
    fn is_stale(&mut self, context: &mut Context<'_>) -> bool {
        self.reader.poll_more(&mut self.stream, context).is_ready()
    }
}

/// Takes connections when their exchange has ended, and gives them for the next one, the last used one first.
#[derive(Default)]
pub(in crate::upstream) struct Shelf {
    idle: RefCell<Vec<Box<Idle>>>,
    /// What its destination's answers look like.
    pub(super) names: RefCell<Names>,
}

impl Shelf {
    /// Keeps a connection, or closes it if there are too many.
    pub(super) fn keep(&self, mut idle: Box<Idle>) {
        let mut all = self.idle.borrow_mut();
        if all.len() < MOST {
            idle.since = None;
            all.push(idle);
        }
    }

    /// A connection that is open as far as it is known.
    pub(in crate::upstream) fn take(&self, context: &mut Context<'_>) -> Option<Box<Idle>> {
        // A task that has used its budget up is told that nothing came, which would look like an open connection.
        let open = pin!(tokio::task::coop::unconstrained(poll_fn(|context| {
            let mut all = self.idle.borrow_mut();
            let mut found = all.pop();
            while found.as_mut().is_some_and(|idle| idle.is_stale(context)) {
                found = all.pop();
            }
            Poll::Ready(found)
        })));
        match open.poll(context) {
            Poll::Ready(found) => found,
            Poll::Pending => None,
        }
    }

    /// Closes connections that were closed by the other side or idled too long; false if none is left. Called from time to
    /// time, which is how exactly idle time is known.
    pub(in crate::upstream) fn expire(&self, now: Instant, limit: Duration) -> bool {
        let mut nobody = Context::from_waker(Waker::noop());
        let mut all = self.idle.borrow_mut();
        all.retain_mut(|one| {
            let since = *one.since.get_or_insert(now);
            now.duration_since(since) < limit && !one.is_stale(&mut nobody)
        });
        !all.is_empty()
    }
}
