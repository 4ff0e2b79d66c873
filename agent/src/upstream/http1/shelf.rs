//! Connections to one destination that nobody uses.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tokio::time::Instant;

use super::Stream;
use crate::http1::{Arena, Names, Reader};
use crate::upstream::lifetime::{Limits, Usage};

/// Connections kept per destination and core.
const MOST: usize = 1024;

/// Bytes of an answer that are read at a time, at most.
const READ: usize = 512 * 1024;

/// A connection without an exchange.
pub(in crate::upstream) struct Idle {
    pub(super) stream: Stream,
    pub(super) reader: Reader,
    /// Address of the other side, as a text: every request on the connection is recorded with it.
    pub(in crate::upstream) from: Arc<str>,
    usage: Usage,
    /// Whether nothing had come of it when it was taken, so that the task which took it hears of news.
    pub(super) watched: bool,
}

impl Idle {
    pub(in crate::upstream) fn new(stream: Stream, arena: Arena, from: Arc<str>) -> Box<Self> {
        Box::new(Self {
            stream,
            reader: Reader::new(arena, READ),
            from,
            usage: Usage::new(Instant::now()),
            watched: false,
        })
    }

    /// A request more.
    pub(super) fn begin(&mut self) {
        self.usage.begin();
    }

    /// Whether the other side closed it, or said something unasked. Wakes `context` at the next news.
    fn is_stale(&mut self, context: &mut Context<'_>) -> bool {
        self.watched = true;
        self.stream.poll_news(context).is_ready()
            && self.reader.poll_more(&mut self.stream, context).is_ready()
    }
}

/// Takes connections when their exchange has ended, and gives them for the next one, the last used one first.
#[derive(Default)]
pub(in crate::upstream) struct Shelf {
    #[expect(clippy::vec_box, reason = "they come and go, and are large")]
    idle: RefCell<Vec<Box<Idle>>>,
    /// What its destination's answers look like.
    pub(super) names: RefCell<Names>,
    limits: Limits,
}

impl Shelf {
    /// An empty one for connections that live so long.
    pub(in crate::upstream) fn new(limits: Limits) -> Self {
        Self {
            limits,
            ..Self::default()
        }
    }

    /// Keeps a connection, or closes it if there are too many or its time is over.
    pub(super) fn keep(&self, mut idle: Box<Idle>) {
        let mut all = self.idle.borrow_mut();
        let now = Instant::now();
        idle.usage.end(now);
        if all.len() < MOST && idle.usage.may_serve(&self.limits, now) {
            all.push(idle);
        }
    }

    /// A connection that is open as far as it is known.
    pub(in crate::upstream) fn take(
        &self,
        now: Instant,
        context: &mut Context<'_>,
    ) -> Option<Box<Idle>> {
        // A task that has used its budget up is told that nothing came, which would look like an open connection.
        let open = pin!(tokio::task::coop::unconstrained(poll_fn(|context| {
            let mut all = self.idle.borrow_mut();
            loop {
                let Some(mut idle) = all.pop() else {
                    return Poll::Ready(None);
                };
                if idle.usage.may_serve(&self.limits, now) && !idle.is_stale(context) {
                    return Poll::Ready(Some(idle));
                }
            }
        })));
        match open.poll(context) {
            Poll::Ready(found) => found,
            Poll::Pending => None,
        }
    }

    /// Closes connections that were closed by the other side or whose time is over; false if none is left.
    pub(in crate::upstream) fn expire(&self, now: Instant) -> bool {
        let mut nobody = Context::from_waker(Waker::noop());
        let mut all = self.idle.borrow_mut();
        all.retain_mut(|one| one.usage.may_serve(&self.limits, now) && !one.is_stale(&mut nobody));
        !all.is_empty()
    }
}
