//! New interfaces are held before anybody knows whose they are, and what is known of one goes with it.
//!
//! Flows in: what the kernel tells of links and addresses, here and in the pods' namespaces. Flows out: gates at each new
//! pair that leads to another namespace, at once and before discovery; removal of pods whose interface went; and a word
//! to discovery about what to look at, always after that. A gate without a pod in the active generation drops
//! everything, so nothing else has to be written to hold an interface.
//!
//! The kernel keeps the order of its messages, and one thread handles them: what is known of an interface is gone before
//! a later one with its index has gates.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::Notify;

use super::{
    Datapath,
    discovery::{Discovery, Scanner},
    error::Error,
    gates::Gates,
    links,
    netlink::Listener,
};

mod holders;
mod watcher;

use watcher::Watcher;

/// `RTNLGRP_LINK`, `RTNLGRP_IPV4_IFADDR`, `RTNLGRP_IPV6_IFADDR` of `linux/rtnetlink.h`.
const GROUPS: [u32; 3] = [1, 5, 9];

/// What changed since discovery looked.
#[derive(Debug, Default)]
pub(super) struct Changed {
    /// Interfaces of this namespace.
    pub(super) interfaces: BTreeSet<u32>,
    /// Other namespaces, by their number here.
    pub(super) namespaces: BTreeSet<i32>,
    /// Addresses of this namespace, and whether they are there.
    pub(super) addresses: BTreeMap<(u32, IpAddr), bool>,
    /// Anything: messages were lost.
    pub(super) all: bool,
}

#[derive(Default)]
struct Board {
    changed: Mutex<Changed>,
    notify: Notify,
}

impl Board {
    fn tell(&self, what: impl FnOnce(&mut Changed)) {
        what(&mut self.changed.lock().unwrap_or_else(PoisonError::into_inner));
        self.notify.notify_one();
    }

    fn take(&self) -> Changed {
        std::mem::take(&mut *self.changed.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Follows the pods of a node. While it lives, new interfaces are held.
pub struct PodWatch {
    gates: Arc<Gates>,
    board: Arc<Board>,
    scanner: Scanner,
    stop: Option<OwnedFd>,
    watching: Option<JoinHandle<()>>,
    settling: Option<JoinHandle<()>>,
}

/// Which interfaces are put into quarantine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hold {
    /// None.
    Nothing,
    /// Those that appear from now on.
    New,
    /// Those too that are there and were not when another watch ended.
    Since(Met),
}

/// The interfaces that a watch had seen until it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Met(BTreeSet<u32>);

impl std::fmt::Debug for PodWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PodWatch").finish_non_exhaustive()
    }
}

impl PodWatch {
    /// Returns when something changed. Safe to cancel.
    pub async fn changed(&self) {
        self.board.notify.notified().await;
    }

    /// Which pods there are, after looking at what changed; at everything if `all`. Blocking.
    ///
    /// # Errors
    ///
    /// When the kernel refuses to tell; then everything is looked at the next time.
    pub fn look(&mut self, all: bool) -> Result<Discovery, Error> {
        let mut changed = self.board.take();
        changed.all |= all;
        let numbers = self.gates.numbers();
        let looked = self.scanner.update(&changed, &numbers);
        if looked.is_err() {
            self.board.tell(|changed| changed.all = true);
        }
        looked
    }

    /// Holds new interfaces, and touches no other gate any more when this returns. Blocking.
    pub fn only_hold(&mut self) {
        self.gates.end(true);
        if let Some(thread) = self.settling.take() {
            // A panic of the thread was reported by the thread.
            let _ = thread.join();
        }
    }

    /// Ends, once every interface is held that the kernel has told of until now. Blocking.
    #[must_use]
    pub fn end(mut self) -> Met {
        self.stop();
        Met(self.gates.numbers().into_keys().collect())
    }

    fn stop(&mut self) {
        // The other end of the pipe hears that.
        drop(self.stop.take());
        if let Some(thread) = self.watching.take() {
            // As above.
            let _ = thread.join();
        }
        self.only_hold();
    }
}

impl Drop for PodWatch {
    fn drop(&mut self) {
        self.stop();
    }
}

/// An interface in quarantine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its index.
    pub ifindex: u32,
    /// Its name; empty if it went just now.
    pub name: String,
    /// For how long.
    pub since: Duration,
}

impl Datapath {
    /// Follows the pods of the node from now on; `hold` says which interfaces are put into quarantine. Needs the node's network namespace, as [`Datapath::open`] does.
    ///
    /// # Errors
    ///
    /// When the kernel refuses to tell of changes, or has no room for the threads.
    pub fn watch_pods(&self, hold: Hold) -> Result<PodWatch, Error> {
        let failed = || Error::kernel("listen for changes of interfaces");
        let listener = Listener::open(&GROUPS).map_err(failed())?;
        let (stopped, stop) = nix::unistd::pipe().map_err(|errno| failed()(errno.into()))?;
        let board = Arc::<Board>::default();
        let watcher =
            Watcher::new(Arc::clone(&self.gates), Arc::clone(&board), hold).map_err(failed())?;
        let mut watch = PodWatch {
            gates: Arc::clone(&self.gates),
            board,
            scanner: Scanner::open()?,
            stop: Some(stop),
            watching: None,
            settling: None,
        };
        let gates = Arc::clone(&self.gates);
        gates.end(false);
        let thread = |name: &str| thread::Builder::new().name(name.into());
        let watching = thread("cardinal-pods").spawn(move || watcher.run(listener, &stopped));
        watch.watching = Some(watching.map_err(failed())?);
        let settling = thread("cardinal-gates").spawn(move || gates.settle());
        watch.settling = Some(settling.map_err(failed())?);
        Ok(watch)
    }

    /// Removes from a prepared generation what it says of pods whose interface went after they were found. To be called
    /// between [`Datapath::prepare`] and the flip; what goes later is removed when the kernel tells.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; the generation must not become active then.
    pub fn withdraw(&self, generation: u32, discovery: &Discovery) -> Result<(), Error> {
        let pods = discovery.pods.iter().map(|pod| (pod.ifindex, pod.number));
        let withdrawn = self.gates.withdraw(generation, pods)?;
        if withdrawn > 0 {
            tracing::info!(
                generation,
                withdrawn,
                "pods went while their generation was made"
            );
        }
        Ok(())
    }

    /// Lets go the interfaces in quarantine that are nobody's: their pod has addresses, and none is `claimed`. One whose
    /// addresses are not known goes after `patience`, and so does any while a pod is `awaited` whose address is not told yet.
    pub fn release(
        &self,
        discovery: &Discovery,
        patience: Duration,
        awaited: bool,
        claimed: impl Fn(&IpAddr) -> bool,
    ) {
        for waiting in self.gates.waiting() {
            let pod = discovery
                .pods
                .binary_search_by_key(&waiting.ifindex, |pod| pod.ifindex)
                .ok()
                .map(|found| &discovery.pods[found])
                .filter(|pod| pod.number == waiting.number);
            let addresses = pod.map_or(&[][..], |pod| &pod.addresses);
            let late = match Fate::of(addresses, &claimed, awaited) {
                Fate::Taken => continue,
                Fate::Nobodys => false,
                Fate::Unknown if waiting.since.elapsed() < patience => continue,
                Fate::Unknown => true,
            };
            let interface = links::interface_name(waiting.ifindex).unwrap_or_default();
            match self.gates.release(waiting) {
                Ok(true) if late => {
                    self.gates.count_expired();
                    tracing::warn!(
                        interface,
                        seconds = waiting.since.elapsed().as_secs(),
                        "nobody said in time whose an interface is, and it is released; nothing judges its packets"
                    );
                }
                Ok(true) => {
                    tracing::debug!(interface, "interface released: it is no cell's");
                }
                Ok(false) => {}
                Err(error) => tracing::error!(
                    interface,
                    error = &error as &dyn std::error::Error,
                    "an interface that is no cell's stays in quarantine: all its packets are dropped"
                ),
            }
        }
    }

    /// Interfaces in quarantine, the oldest first.
    #[must_use]
    pub fn held(&self) -> Vec<Held> {
        let mut waiting = self.gates.waiting();
        waiting.sort_by_key(|waiting| waiting.since);
        waiting
            .into_iter()
            .map(|waiting| Held {
                ifindex: waiting.ifindex,
                name: links::interface_name(waiting.ifindex).unwrap_or_default(),
                since: waiting.since.elapsed(),
            })
            .collect()
    }

    /// How often an interface was released because nothing became known of it in time.
    #[must_use]
    pub fn expired(&self) -> u64 {
        self.gates.expired()
    }
}

/// What becomes of an interface in quarantine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// A generation brings its endpoint.
    Taken,
    /// It can go.
    Nobodys,
    /// Whose it is may still be told.
    Unknown,
}

impl Fate {
    fn of(addresses: &[IpAddr], claimed: impl Fn(&IpAddr) -> bool, awaited: bool) -> Self {
        match addresses {
            [] => Self::Unknown,
            some if some.iter().any(claimed) => Self::Taken,
            _ if awaited => Self::Unknown,
            _ => Self::Nobodys,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::Fate;

    #[test]
    fn an_interface_is_nobodys_when_nobody_is_waited_for() {
        let [own, other] = ["10.1.0.1", "10.1.0.2"].map(|one| one.parse::<IpAddr>().expect("one"));
        let claimed = |address: &IpAddr| *address == own;
        for (addresses, awaited, fate) in [
            (&[][..], false, Fate::Unknown),
            (&[][..], true, Fate::Unknown),
            (&[other, own][..], false, Fate::Taken),
            (&[own][..], true, Fate::Taken),
            (&[other][..], false, Fate::Nobodys),
            // Its address may be the one that is about to be told.
            (&[other][..], true, Fate::Unknown),
        ] {
            assert_eq!(
                Fate::of(addresses, claimed, awaited),
                fate,
                "{addresses:?} {awaited}"
            );
        }
    }
}
