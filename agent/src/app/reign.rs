//! The time in which this process is the node's agent: it writes the kernel's tables and shows the admin interface.
//!
//! It begins with an opened datapath and ends with the process, or when another agent takes the place. If that one is gone before
//! it serves, another reign begins in the same process, with the router that served all the time.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use kubernetes::Cluster;
use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior};

use super::feed::{Change, Feed};
use super::signals::Signals;
use crate::activate::Activator;
use crate::admin::Admin;
use crate::config::RunArgs;
use crate::datapath::{Datapath, Discovery, Hold, Met, PodWatch};
use crate::explain::{Rehearsal, Rehearsals};
use crate::handover::{Door, Predecessor, Successor};
use crate::memory::{self, Leftovers};
use crate::pods::{self, Pods};
use crate::proxy::Proxy;
use crate::reconcile::{Documents, Reconciler};
use crate::route::RouteTable;
use crate::view::{AgentView, Origin};

/// How often what failed is tried again, and what others may have removed from the node is put back.
const REPAIR: Duration = Duration::from_secs(5);

/// What lasts longer than a reign.
pub(super) struct Node {
    pub(super) args: RunArgs,
    pub(super) origin: Origin,
    pub(super) cluster: Option<Arc<Cluster>>,
    pub(super) routes: Arc<ArcSwap<RouteTable>>,
    pub(super) proxy: Arc<Proxy>,
}

/// Who holds the interfaces of new pods until a reign begins.
pub(super) enum Guard<'a> {
    /// Nobody: no agent had the node.
    Nobody,
    /// The agent before, until it is told not to.
    Predecessor(&'a Predecessor),
    /// This process.
    Watch(PodWatch),
    /// An agent that is gone did, after this process had met these interfaces.
    Gone(Met),
}

/// Everything is open but nothing is active yet.
pub(super) struct Dawn {
    datapath: Option<Datapath>,
    view: Arc<AgentView>,
    admin: Option<Admin>,
    asked: mpsc::Receiver<Rehearsal>,
    pods: Option<Pods>,
    discovery: Discovery,
}

impl Dawn {
    /// Follows the node's pods from here on, relieves who held new interfaces until now, and takes the gates over. Shows the admin
    /// interface unless another agent still does.
    pub(super) async fn begin(
        node: &Node,
        datapath: Option<Datapath>,
        guard: Guard<'_>,
    ) -> anyhow::Result<Self> {
        let (rehearsals, asked) = Rehearsals::channel();
        let view = AgentView::new(
            node.origin.clone(),
            datapath.clone(),
            &node.proxy,
            rehearsals,
        );
        let view = Arc::new(view.context("failed to follow the kernel's events")?);
        let admin = match guard {
            Guard::Predecessor(_) => None,
            Guard::Nobody | Guard::Watch(_) | Guard::Gone(_) => Some(show(node, &view).await?),
        };
        let watch = match &datapath {
            Some(datapath) => {
                let hold = match &guard {
                    _ if node.args.quarantine == 0 => Hold::Nothing,
                    Guard::Gone(met) => Hold::Since(met.clone()),
                    Guard::Nobody | Guard::Predecessor(_) | Guard::Watch(_) => Hold::New,
                };
                let watch = datapath.watch_pods(hold);
                Some(watch.context("failed to follow the node's pods")?)
            }
            None => None,
        };
        match guard {
            Guard::Predecessor(predecessor) => {
                if let Err(error) = predecessor.relieve().await {
                    tracing::warn!(%error, "the agent before does not say that it holds no more interfaces");
                }
            }
            Guard::Watch(before) => {
                let _met = tokio::task::block_in_place(|| before.end());
            }
            Guard::Nobody | Guard::Gone(_) => {}
        }
        if let Some(datapath) = &datapath {
            let taken = tokio::task::block_in_place(|| datapath.take_gates());
            taken.context("failed to take over the gates of the node's pods")?;
        }
        let (discovery, pods) = match watch {
            Some(watch) => {
                let found = pods::follow(watch).await;
                let (found, pods) = found.context("failed to look for pods")?;
                (found, Some(pods))
            }
            None => (Discovery::default(), None),
        };
        Ok(Self {
            datapath,
            view,
            admin,
            asked,
            pods,
            discovery,
        })
    }

    /// Makes documents active.
    pub(super) fn rise(self, node: &Node, documents: Documents) -> anyhow::Result<Reign> {
        let activator = Activator::new(
            Arc::clone(&node.routes),
            Arc::clone(&node.proxy),
            self.datapath.clone(),
        );
        let reconciler = Reconciler::start(
            activator,
            Arc::clone(&self.view),
            documents,
            node.cluster.clone(),
            self.discovery,
            Duration::from_secs(node.args.quarantine),
        )?;
        let mut repair = tokio::time::interval(REPAIR);
        repair.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Reign {
            datapath: self.datapath,
            view: self.view,
            admin: self.admin,
            asked: self.asked,
            pods: self.pods,
            reconciler,
            repair,
            leftovers: Leftovers::of_start(),
            door: None,
        })
    }
}

async fn show(node: &Node, view: &Arc<AgentView>) -> anyhow::Result<Admin> {
    let (path, address) = (&node.args.admin, node.args.admin_listen);
    Ok(Admin::open(path, address, Arc::clone(view) as _).await?)
}

/// A generation is active.
pub(super) struct Reign {
    datapath: Option<Datapath>,
    view: Arc<AgentView>,
    admin: Option<Admin>,
    asked: mpsc::Receiver<Rehearsal>,
    pods: Option<Pods>,
    reconciler: Reconciler,
    repair: Interval,
    leftovers: Leftovers,
    door: Option<Door>,
}

/// How a reign comes to its end.
pub(super) enum Dusk {
    /// The agent is to end.
    Told,
    /// Another agent wants the place.
    Asked(Successor),
}

impl Reign {
    /// Shows the admin interface if another agent did until now.
    pub(super) async fn show(&mut self, node: &Node) -> anyhow::Result<()> {
        if self.admin.is_none() {
            self.admin = Some(show(node, &self.view).await?);
        }
        Ok(())
    }

    /// From here on another agent may ask for the place.
    pub(super) fn open_door(&mut self, node: &Node) {
        match Door::open(&node.args.state) {
            Ok(door) => self.door = Some(door),
            Err(error) => tracing::error!(
                error = &error as &dyn std::error::Error,
                "no other agent can take over without a gap"
            ),
        }
    }

    /// Serves until somebody wants the end of it.
    pub(super) async fn run(&mut self, feed: &mut Feed, signals: &mut Signals) -> Dusk {
        loop {
            tokio::select! {
                _ = self.repair.tick() => {
                    self.reconciler.repair();
                    self.leftovers.counted(feed.changes());
                    if self.leftovers.are_over() {
                        tokio::task::block_in_place(memory::tidy);
                    }
                }
                Some(change) = feed.next() => match change {
                    Change::Documents(loaded) => {
                        self.leftovers.all();
                        self.reconciler.documents(loaded);
                    }
                    Change::Objects(taken) => {
                        self.reconciler.objects(taken, |found, mistakes| feed.without(found, mistakes));
                    }
                },
                Some(discovery) = changed(&mut self.pods) => self.reconciler.pods(discovery),
                Some(rehearsal) = self.asked.recv() => self.reconciler.rehearse(rehearsal),
                Some(successor) = asked(&mut self.door) => return Dusk::Asked(successor),
                () = signals.end() => return Dusk::Told,
            }
        }
    }

    /// The agent is about to end. Nothing is activated any more; the admin interface says so, and new interfaces are held, as long
    /// as the result lives.
    pub(super) fn end(self) -> (Option<Admin>, Option<Pods>) {
        self.reconciler.drain();
        (self.admin, self.pods)
    }

    /// Stops writing, and nothing else: when this returns, another process may write. New interfaces are still held.
    pub(super) async fn yields(self) -> Yielded {
        let (active, waiting) = self.reconciler.end();
        let watch = match self.pods {
            Some(pods) => pods.end().await,
            None => None,
        };
        self.view.end_events().await;
        Yielded {
            active,
            waiting,
            guard: watch.map_or(Guard::Nobody, Guard::Watch),
            view: self.view,
            admin: self.admin,
            datapath: self.datapath,
        }
    }
}

/// A reign whose place another agent is about to take. The admin interface still answers.
pub(super) struct Yielded {
    active: Documents,
    waiting: Option<Documents>,
    guard: Guard<'static>,
    view: Arc<AgentView>,
    admin: Option<Admin>,
    pub(super) datapath: Option<Datapath>,
}

impl Yielded {
    /// The other agent holds new interfaces: this one holds those that it has heard of, and no others.
    pub(super) fn relieved(&mut self) {
        self.guard = match std::mem::replace(&mut self.guard, Guard::Nobody) {
            Guard::Watch(watch) => Guard::Gone(tokio::task::block_in_place(|| watch.end())),
            guard => guard,
        };
    }

    /// The other agent serves: its admin interface takes the place of this one.
    pub(super) async fn leave(self) {
        self.view.drain();
        if let Some(admin) = self.admin {
            admin.close().await;
        }
        // Whoever reads the admin interface to the end of an answer keeps the datapath so long.
        if let Some(datapath) = &self.datapath {
            datapath.give_up_claim();
        }
    }

    /// The other agent is gone. `datapath` is opened anew: it may have written.
    pub(super) async fn again(
        self,
        node: &Node,
        datapath: Option<Datapath>,
    ) -> anyhow::Result<Reign> {
        if let Some(admin) = self.admin {
            admin.close().await;
        }
        let dawn = Dawn::begin(node, datapath, self.guard).await?;
        let mut reign = dawn.rise(node, self.active)?;
        reign.reconciler.want(self.waiting);
        reign.open_door(node);
        Ok(reign)
    }
}

async fn changed(pods: &mut Option<Pods>) -> Option<Discovery> {
    match pods {
        Some(pods) => pods.changed().await,
        None => std::future::pending().await,
    }
}

async fn asked(door: &mut Option<Door>) -> Option<Successor> {
    match door {
        Some(door) => door.asked().await,
        None => std::future::pending().await,
    }
}
