//! A future beside another one, asked only when it has something to say.
//!
//! Whatever wakes a task makes it ask everything that it waits for. What a connection waits for besides its requests, such
//! as the drain, hardly ever happens, and would be asked several times a request.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

/// A future of a task that has others.
pub(super) struct Aside<F> {
    future: Pin<Box<F>>,
    bell: Option<Arc<Bell>>,
}

/// Says that the future was woken, and wakes the task.
struct Bell {
    rung: AtomicBool,
    task: Waker,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        self.task.wake_by_ref();
    }
}

impl<F: Future> Aside<F> {
    pub(super) fn new(future: F) -> Self {
        Self {
            future: Box::pin(future),
            bell: None,
        }
    }

    /// As the future's own `poll`.
    pub(super) fn poll(&mut self, context: &Context<'_>) -> Poll<F::Output> {
        let bell = match &mut self.bell {
            Some(bell) if bell.task.will_wake(context.waker()) => {
                if !bell.rung.swap(false, Ordering::Acquire) {
                    return Poll::Pending;
                }
                bell
            }
            // At first, and in another task.
            bell => bell.insert(Arc::new(Bell {
                rung: AtomicBool::new(false),
                task: context.waker().clone(),
            })),
        };
        let waker = Waker::from(Arc::clone(bell));
        self.future.as_mut().poll(&mut Context::from_waker(&waker))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::poll_fn;
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_future_is_asked_when_it_was_woken() {
        let asked = Cell::new(0);
        let mut slept = Box::pin(tokio::time::sleep(Duration::from_secs(9)));
        let mut aside = Aside::new(poll_fn(|context| {
            asked.set(asked.get() + 1);
            slept.as_mut().poll(context)
        }));
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        let mut ticked = 0;
        poll_fn(|context| {
            while ticks.poll_tick(context).is_ready() {
                ticked += 1;
            }
            aside.poll(context)
        })
        .await;
        assert!(ticked >= 9);
        assert_eq!(asked.get(), 2);
    }
}
