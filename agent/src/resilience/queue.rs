//! Places that are waited for, in order.

use std::sync::Arc;

use tokio::sync::Notify;

use super::{Slot, Slots};

/// Places, and those who wait for one.
#[derive(Debug, Default)]
pub struct Queue {
    places: Slots,
    waiting: Slots,
    freed: Arc<Notify>,
}

/// A place that is taken as long as this lives.
#[derive(Debug)]
pub struct Seat {
    /// Given back before the next one hears of it.
    slot: Option<Slot>,
    freed: Arc<Notify>,
}

/// As many wait as may, or nobody gets a place at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overflow;

impl Queue {
    /// Takes one of `limit` places. When none is free it waits for one, unless `waiting` others do.
    pub async fn take(&self, limit: u32, waiting: u32) -> Result<Seat, Overflow> {
        if limit == 0 {
            return Err(Overflow);
        }
        // Whoever comes does not overtake those who wait.
        if self.waiting.taken() == 0
            && let Some(slot) = self.places.take_below(limit)
        {
            return Ok(self.seat(slot));
        }
        let _waits = self.waiting.take_below(waiting).ok_or(Overflow)?;
        loop {
            // A place that was freed since is told of at once, unless it is told to one who waits longer.
            self.freed.notified().await;
            if let Some(slot) = self.places.take_below(limit) {
                if self.places.taken() < limit {
                    // Several places that are freed together are told of once.
                    self.freed.notify_one();
                }
                return Ok(self.seat(slot));
            }
        }
    }

    /// Places that are taken.
    pub fn taken(&self) -> u32 {
        self.places.taken()
    }

    /// Those who wait.
    pub fn waiting(&self) -> u32 {
        self.waiting.taken()
    }

    fn seat(&self, slot: Slot) -> Seat {
        Seat {
            slot: Some(slot),
            freed: Arc::clone(&self.freed),
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        drop(self.slot.take());
        self.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::task::Poll;

    use super::{Overflow, Queue};

    /// Polls a future once.
    fn now<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        future.poll(&mut context)
    }

    #[test]
    fn places_are_taken_in_the_order_of_waiting() {
        let queue = Queue::default();
        let mut first = Box::pin(queue.take(1, 2));
        let Poll::Ready(Ok(seat)) = now(first.as_mut()) else {
            panic!("the place is free");
        };
        let mut second = Box::pin(queue.take(1, 2));
        let mut third = Box::pin(queue.take(1, 2));
        assert!(now(second.as_mut()).is_pending());
        assert!(now(third.as_mut()).is_pending());
        assert_eq!((queue.taken(), queue.waiting()), (1, 2));
        let mut fourth = Box::pin(queue.take(1, 2));
        assert!(matches!(now(fourth.as_mut()), Poll::Ready(Err(Overflow))));
        drop(seat);
        // Nobody overtakes, not even the next who comes.
        let mut late = Box::pin(queue.take(1, 9));
        assert!(now(late.as_mut()).is_pending());
        assert!(now(third.as_mut()).is_pending());
        let Poll::Ready(Ok(seat)) = now(second.as_mut()) else {
            panic!("it waited longest");
        };
        // One that gives up hands on what it would have got.
        drop(seat);
        drop(third);
        assert!(matches!(now(late.as_mut()), Poll::Ready(Ok(_))));
    }

    #[test]
    fn without_places_or_room_to_wait_nobody_waits() {
        let queue = Queue::default();
        let mut none = Box::pin(queue.take(0, 9));
        assert!(matches!(now(none.as_mut()), Poll::Ready(Err(Overflow))));
        let mut one = Box::pin(queue.take(1, 0));
        let taken = now(one.as_mut());
        assert!(matches!(taken, Poll::Ready(Ok(_))));
        let mut other = Box::pin(queue.take(1, 0));
        assert!(matches!(now(other.as_mut()), Poll::Ready(Err(Overflow))));
        assert_eq!(queue.waiting(), 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn everybody_gets_a_place_in_the_end() {
        let queue = Arc::new(Queue::default());
        let most = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let tasks: Vec<_> = (0..200)
            .map(|_| {
                let (queue, most) = (Arc::clone(&queue), Arc::clone(&most));
                tokio::spawn(async move {
                    let seat = queue.take(3, 200).await.expect("there is room to wait");
                    most.fetch_max(queue.taken(), std::sync::atomic::Ordering::SeqCst);
                    tokio::task::yield_now().await;
                    drop(seat);
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("it ends");
        }
        assert!(most.load(std::sync::atomic::Ordering::SeqCst) <= 3);
        assert_eq!((queue.taken(), queue.waiting()), (0, 0));
    }
}
