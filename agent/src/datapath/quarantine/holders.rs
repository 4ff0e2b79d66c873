//! Threads that put new interfaces into quarantine, several at once.
//!
//! Who changes the network waits in line for one lock of the kernel (RTNL), and so do these. A network plugin takes it more
//! often for a pod, one time after the other, than a gate does; so each gate is ready first, as long as each new
//! interface has a place of its own in that line.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use super::{
    super::{discovery::Pair, error::Error, gates::Gates, netlink::Netlink},
    watcher::before_others,
};
use crate::memory;

/// As many pods as a node starts at the same time; more wait a little.
const THREADS: usize = 16;

/// A new interface.
pub(super) struct Job {
    pub(super) ifindex: u32,
    /// When the kernel's message was read.
    pub(super) told: Instant,
    /// Whether it is to be asked first where the other end is.
    pub(super) ask: bool,
}

#[derive(Default)]
struct Line {
    jobs: Mutex<(VecDeque<Job>, bool)>,
    came: Condvar,
}

/// The threads; they end when this is dropped.
pub(super) struct Holders {
    line: Arc<Line>,
    threads: Vec<JoinHandle<()>>,
}

impl Holders {
    pub(super) fn start(gates: &Arc<Gates>) -> io::Result<Self> {
        let mut holders = Self {
            line: Arc::default(),
            threads: Vec::new(),
        };
        for _ in 0..THREADS {
            let (line, gates) = (Arc::clone(&holders.line), Arc::clone(gates));
            let mut netlink = Netlink::open()?;
            let thread = thread::Builder::new()
                .name("cardinal-hold".into())
                .spawn(move || {
                    before_others();
                    memory::seldom();
                    while let Some(job) = line.next() {
                        hold(&gates, &mut netlink, &job);
                    }
                })?;
            holders.threads.push(thread);
        }
        Ok(holders)
    }

    pub(super) fn give(&self, job: Job) {
        let mut jobs = self
            .line
            .jobs
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        jobs.0.push_back(job);
        drop(jobs);
        self.line.came.notify_one();
    }
}

impl Drop for Holders {
    fn drop(&mut self) {
        let mut jobs = self
            .line
            .jobs
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        jobs.1 = true;
        drop(jobs);
        self.line.came.notify_all();
        for thread in self.threads.drain(..) {
            // A panic of the thread was reported by the thread.
            let _ = thread.join();
        }
    }
}

impl Line {
    /// The next interface, even after the end; none when there is no more.
    fn next(&self) -> Option<Job> {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let mut jobs = self
            .came
            .wait_while(jobs, |(jobs, ended)| jobs.is_empty() && !*ended)
            .unwrap_or_else(PoisonError::into_inner);
        jobs.0.pop_front()
    }
}

fn hold(gates: &Gates, netlink: &mut Netlink, job: &Job) {
    let ifindex = job.ifindex;
    let held = match job.ask.then(|| Pair::read(netlink, ifindex)) {
        // Its other end is here, or it is gone again.
        Some(Ok(None)) => return,
        Some(Err(error)) => Err(Error::kernel("look at a new interface")(error)),
        Some(Ok(Some(_))) | None => gates.hold(ifindex),
    };
    match held {
        Ok(true) => tracing::debug!(
            ifindex,
            micros = job.told.elapsed().as_micros() as u64,
            "new interface held"
        ),
        Ok(false) => {}
        Err(error) => tracing::error!(
            ifindex,
            error = &error as &dyn std::error::Error,
            "a new interface has no gates and is not held"
        ),
    }
}
