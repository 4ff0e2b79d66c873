//! How long connections to upstreams are used, and for how many requests.

use std::cell::Cell;
use std::num::NonZeroU32;
use std::rc::Rc;
use std::time::Duration;

use snapshot::model::Limit;
use tokio::time::Instant;

use super::{Destination, Timeouts};

/// What ends a connection that its other side leaves open.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Limits {
    /// Time without a request.
    idle: Option<Duration>,
    /// Time since it was opened.
    age: Option<Duration>,
    requests: Option<NonZeroU32>,
}

impl Limits {
    /// Those of connections to a destination.
    pub(super) fn new(destination: &Destination, usual: &Timeouts) -> Self {
        let Some(terms) = &destination.terms else {
            return Self {
                idle: Some(usual.idle),
                ..Self::default()
            };
        };
        Self {
            idle: match terms.idle {
                Limit::Unset => Some(usual.idle),
                Limit::Off => None,
                Limit::After(limit) => Some(limit),
            },
            age: terms.age,
            requests: terms.requests,
        }
    }
}

/// What a connection was used for so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct Usage {
    opened: Instant,
    free: Instant,
    requests: u32,
}

impl Usage {
    /// That of a connection that was opened just now.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            opened: now,
            free: now,
            requests: 0,
        }
    }

    /// A request more.
    pub(super) fn begin(&mut self) {
        self.requests = self.requests.saturating_add(1);
    }

    /// It has no request from now on.
    pub(super) fn end(&mut self, now: Instant) {
        self.free = now;
    }

    /// Whether a connection may have another request.
    pub(super) fn may_serve(&self, limits: &Limits, now: Instant) -> bool {
        let within = |since: Instant, limit: Option<Duration>| {
            limit.is_none_or(|limit| now.duration_since(since) < limit)
        };
        limits
            .requests
            .is_none_or(|most| self.requests < most.get())
            && within(self.opened, limits.age)
            && within(self.free, limits.idle)
    }
}

/// The same of a connection that several requests share.
#[derive(Debug)]
pub(super) struct Shared {
    usage: Cell<Usage>,
    under_way: Cell<usize>,
}

/// A request on a shared connection, until its answer ends.
#[derive(Debug)]
pub(super) struct UnderWay(Rc<Shared>);

impl Shared {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            usage: Cell::new(Usage::new(now)),
            under_way: Cell::new(0),
        }
    }

    pub(super) fn begin(self: &Rc<Self>) -> UnderWay {
        let mut usage = self.usage.get();
        usage.begin();
        self.usage.set(usage);
        self.under_way.set(self.under_way.get() + 1);
        UnderWay(Rc::clone(self))
    }

    /// As [`Usage::may_serve`]; it is not idle as long as a request is under way.
    pub(super) fn may_serve(&self, limits: &Limits, now: Instant) -> bool {
        let mut usage = self.usage.get();
        if self.under_way.get() > 0 {
            usage.end(now);
        }
        usage.may_serve(limits, now)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let Self(shared) = self;
        shared.under_way.set(shared.under_way.get() - 1);
        let mut usage = shared.usage.get();
        usage.end(Instant::now());
        shared.usage.set(usage);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_end_after_their_time_and_their_requests() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let mut usage = Usage::new(now);
        let none = Limits::default();
        assert!(usage.may_serve(&none, now + 1_000_000 * second));
        let requests = Limits {
            requests: NonZeroU32::new(2),
            ..none
        };
        usage.begin();
        assert!(usage.may_serve(&requests, now));
        usage.begin();
        assert!(!usage.may_serve(&requests, now));
        let idle = Limits {
            idle: Some(3 * second),
            ..none
        };
        usage.end(now + 5 * second);
        assert!(usage.may_serve(&idle, now + 7 * second));
        assert!(!usage.may_serve(&idle, now + 8 * second));
        let age = Limits {
            age: Some(3 * second),
            ..none
        };
        assert!(usage.may_serve(&age, now + 2 * second));
        assert!(!usage.may_serve(&age, now + 3 * second));
    }

    #[test]
    fn a_shared_connection_is_idle_when_its_last_request_has_ended() {
        let now = Instant::now();
        let limits = Limits {
            idle: Some(Duration::from_secs(1)),
            ..Limits::default()
        };
        let late = now + Duration::from_secs(9);
        let shared = Rc::new(Shared::new(now));
        assert!(!shared.may_serve(&limits, late));
        let (one, other) = (shared.begin(), shared.begin());
        drop(one);
        assert!(shared.may_serve(&limits, late));
        drop(other);
        assert!(shared.may_serve(&limits, Instant::now()));
        assert!(!shared.may_serve(&limits, late));
    }
}
