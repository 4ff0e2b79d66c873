//! Limits that are hardly ever reached: how long the head of an answer is waited for.
//!
//! A timer of the runtime for each request costs about as much as a system call. Here one timer looks at all who wait, so an
//! alarm rings up to [`GRAIN`] late.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::Instant;

/// Time between two looks.
const GRAIN: Duration = Duration::from_millis(100);

/// All who wait on one core.
#[derive(Clone, Default)]
pub(super) struct Alarms(Rc<Inner>);

#[derive(Default)]
struct Inner {
    slots: RefCell<Slots>,
    looks: Cell<bool>,
}

#[derive(Default)]
struct Slots {
    /// None: its alarm rang, or it is free.
    all: Vec<Option<Waiting>>,
    free: Vec<usize>,
}

struct Waiting {
    until: Instant,
    waker: Waker,
}

impl Alarms {
    /// An alarm that is not set.
    pub(super) fn alarm(&self) -> Alarm<'_> {
        Alarm {
            alarms: self,
            slot: None,
        }
    }

    fn set(&self, until: Instant, waker: Waker) -> usize {
        let waiting = Some(Waiting { until, waker });
        let mut slots = self.0.slots.borrow_mut();
        let slot = slots.free.pop().unwrap_or(slots.all.len());
        match slots.all.get_mut(slot) {
            Some(place) => *place = waiting,
            None => slots.all.push(waiting),
        }
        if !self.0.looks.replace(true) {
            tokio::task::spawn_local(look(Rc::clone(&self.0)));
        }
        slot
    }
}

/// Wakes those whose time is over until nobody waits.
async fn look(inner: Rc<Inner>) {
    loop {
        tokio::time::sleep(GRAIN).await;
        let now = Instant::now();
        let over = |place: &mut Option<Waiting>| place.take_if(|one| one.until <= now);
        let mut slots = inner.slots.borrow_mut();
        let over: Vec<_> = slots.all.iter_mut().filter_map(over).collect();
        if slots.free.len() == slots.all.len() {
            *slots = Slots::default();
            inner.looks.set(false);
            return;
        }
        drop(slots);
        over.into_iter().for_each(|one| one.waker.wake());
    }
}

/// One who waits. It is set when it is first asked.
pub(super) struct Alarm<'a> {
    alarms: &'a Alarms,
    slot: Option<usize>,
}

impl Alarm<'_> {
    /// Ready when it rang; the next call sets it anew.
    pub(super) fn poll(
        &mut self,
        until: impl FnOnce() -> Instant,
        context: &Context<'_>,
    ) -> Poll<()> {
        let Some(slot) = self.slot else {
            self.slot = Some(self.alarms.set(until(), context.waker().clone()));
            return Poll::Pending;
        };
        if let Some(waiting) = &mut self.alarms.0.slots.borrow_mut().all[slot] {
            waiting.waker.clone_from(context.waker());
            return Poll::Pending;
        }
        self.unset();
        Poll::Ready(())
    }

    fn unset(&mut self) {
        if let Some(slot) = self.slot.take() {
            let mut slots = self.alarms.0.slots.borrow_mut();
            slots.all[slot] = None;
            slots.free.push(slot);
        }
    }
}

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        self.unset();
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn alarms_ring_in_time_and_leave_nothing() {
        tokio::task::LocalSet::new()
            .run_until(async {
                let alarms = Alarms::default();
                let start = Instant::now();
                let wait = async |millis| {
                    let until = start + Duration::from_millis(millis);
                    let mut alarm = alarms.alarm();
                    poll_fn(|context| alarm.poll(|| until, context)).await;
                    let late = Instant::now().duration_since(until);
                    assert!(
                        late <= GRAIN + Duration::from_millis(1),
                        "{millis}: {late:?}"
                    );
                    // Once more with the same one.
                    let until = Instant::now() + GRAIN;
                    poll_fn(|context| alarm.poll(|| until, context)).await;
                    assert!(Instant::now() >= until);
                };
                // One that is given up.
                let mut given_up = alarms.alarm();
                poll_fn(|context| {
                    assert!(given_up.poll(|| start + GRAIN, context).is_pending());
                    Poll::Ready(())
                })
                .await;
                drop(given_up);
                tokio::join!(wait(0), wait(150), wait(150), wait(30_000));
                tokio::time::sleep(2 * GRAIN).await;
                assert!(alarms.0.slots.borrow().all.is_empty());
                assert!(!alarms.0.looks.get());
            })
            .await;
    }
}
