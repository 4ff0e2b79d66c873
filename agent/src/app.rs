//! Builds everything in order and owns every task.
//!
//! An agent has the node alone or takes it over from one that runs; from then on it reigns (`reign.rs`) until it is told to end or
//! another one takes over. The main loop of a reign is the only caller of the reconciler: documents that changed, pods that came or
//! went and signals arrive there one at a time.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use kubernetes::{Cluster, Settings};

use crate::config::{DatapathMode, KEPT, RunArgs};
use crate::datapath::{Datapath, DatapathConfig, GateHook, Instance, Loaded};
use crate::handover::{self, Belongings, Predecessor, Successor};
use crate::lock::{LockError, StateLock};
use crate::memory;
use crate::proxy::{Ingress, Proxy, ProxyConfig, Sharing, Sockets};
use crate::route::RouteTable;
use crate::upstream::Reach;
use crate::view::Origin;

mod feed;
mod reign;
mod signals;

use feed::{Feed, read_folder};
use reign::{Dawn, Dusk, Guard, Node, Reign};
use signals::Signals;

/// How long connections that are older than the gates may be picked up in their middle: a keepalive's worth of silence is
/// no loss, since the opener's next packet makes them known too.
const PICK_UP: Duration = Duration::from_secs(60);

/// From one look at an agent that does not hand over to the next.
const RETRY: Duration = Duration::from_millis(200);

/// Runs until a signal ends it.
pub async fn run(args: RunArgs) -> anyhow::Result<()> {
    let mut folder = args.config.as_deref().map(read_folder).transpose()?;
    let mut signals = Signals::listen(Duration::from_secs(args.successor))?;
    let free = match StateLock::take(&args.state) {
        Ok(lock) => Some(lock),
        Err(LockError::Held { .. }) if args.take_over => None,
        Err(error) => return Err(error.into()),
    };
    let cluster = match &folder {
        Some(_) => None,
        None => Some(Arc::new(follow_cluster(&args).await?)),
    };
    let origin = match (&folder, &cluster) {
        (Some(folder), _) => Origin::Folder(folder.path.clone()),
        (None, Some(cluster)) => Origin::Cluster(Arc::clone(cluster)),
        (None, None) => anyhow::bail!("neither --config nor --kubernetes says where documents are"),
    };

    // What takes long is done before an agent that serves is asked for its place, and after a free place is taken.
    let (mut begun, mut programs) = (None, None);
    let place = match free {
        Some(lock) => Some(Place::free(lock)),
        None => {
            let ready = async {
                begun = Some(Feed::begin(folder.take(), cluster.as_deref()).await?);
                programs = load(&args)?;
                take_over(&args.state).await
            };
            tokio::select! {
                place = ready => Some(place?),
                () = signals.any() => None,
            }
        }
    };
    let Some(place) = place else {
        return end(cluster).await;
    };
    let datapath = open_datapath(&args, programs, place.claim)?;
    let routes = Arc::new(ArcSwap::from_pointee(RouteTable::default()));
    let proxy = start_proxy(&args, datapath.as_ref(), &routes, place.sockets)?;
    let node = Node {
        args,
        origin,
        cluster,
        routes,
        proxy: Arc::new(proxy),
    };
    let guard = match &place.predecessor {
        Some(predecessor) => Guard::Predecessor(predecessor),
        None => Guard::Nobody,
    };
    let dawn = Dawn::begin(&node, datapath, guard).await?;
    let (mut feed, documents) = match begun {
        Some(begun) => begun,
        None => tokio::select! {
            begun = Feed::begin(folder, node.cluster.as_deref()) => begun?,
            () = signals.any() => return end(node.cluster).await,
        },
    };
    let cells = documents.cells();
    let mut reign = dawn.rise(&node, documents)?;
    if node.args.datapath == DatapathMode::None {
        tracing::warn!(
            cells,
            "--datapath none: NOTHING IS ENFORCED in the kernel; the router alone answers on its listeners"
        );
    }
    if let Some(predecessor) = place.predecessor {
        tracing::info!("the place of another agent is taken; it drains");
        if let Err(error) = predecessor.taken().await {
            tracing::warn!(%error, "the agent before does not say that it left");
        }
    }
    let mut lock = place.lock;
    lock.sign()
        .context("failed to sign the lock of the state folder")?;
    reign.show(&node).await?;
    if let Some(cluster) = &node.cluster {
        cluster.begin_writing();
    }
    reign.open_door(&node);
    memory::serve();

    loop {
        match reign.run(&mut feed, &mut signals).await {
            Dusk::Told => {
                let _shown = reign.end();
                end(node.cluster).await?;
                return drain(node.proxy, node.args.drain, false).await;
            }
            Dusk::Asked(successor) => match hand_over(reign, &node, &lock, successor).await? {
                Some(again) => reign = again,
                None => break,
            },
        }
    }
    drop(lock);
    drain(node.proxy, node.args.drain, true).await?;
    // Whoever keeps an agent running would start this one again, and it would take the place back.
    if node.args.take_over && !signals.told() {
        tracing::info!("another agent has the node; this one waits to be ended");
        signals.any().await;
    }
    Ok(())
}

/// Hands everything to another agent. Gives a reign if that one is gone before it serves, and none if this one has left.
async fn hand_over(
    reign: Reign,
    node: &Node,
    lock: &StateLock,
    successor: Successor,
) -> anyhow::Result<Option<Reign>> {
    tracing::info!("another agent takes the place of this one");
    let mut yielded = reign.yields().await;
    let shared = || {
        let claim = match &yielded.datapath {
            Some(datapath) => datapath.share_claim()?,
            None => None,
        };
        std::io::Result::Ok(Belongings {
            lock: lock.share()?,
            claim,
            sockets: node.proxy.share()?,
        })
    };
    let taken = match shared() {
        Ok(belongings) => {
            let relieved = async || yielded.relieved();
            successor.takes(&belongings, relieved).await
        }
        Err(error) => {
            tracing::error!(%error, "failed to share the sockets of this agent");
            false
        }
    };
    if taken {
        yielded.leave().await;
        if let Some(cluster) = &node.cluster {
            cluster.leave().await;
        }
        successor.left().await;
        return Ok(None);
    }
    drop(successor);
    tracing::error!("the other agent does not take the place; this one goes on");
    let claim = match &yielded.datapath {
        Some(datapath) => datapath.share_claim()?,
        None => None,
    };
    let claim = claim.map(Instance::inherit).transpose()?;
    let programs = load(&node.args)?;
    let datapath = open_datapath(&node.args, programs, claim)?;
    Ok(Some(yielded.again(node, datapath).await?))
}

/// Ends the router.
async fn drain(proxy: Arc<Proxy>, seconds: u64, left: bool) -> anyhow::Result<()> {
    tracing::info!(
        seconds,
        "draining: open requests may end, verdicts stay in the kernel"
    );
    let deadline = Duration::from_secs(seconds);
    match Arc::into_inner(proxy) {
        Some(proxy) => {
            let cut = match left {
                true => proxy.leave(deadline).await,
                false => proxy.shutdown(deadline).await,
            };
            tracing::info!(connections_cut = cut, "ended");
        }
        None => tracing::error!("the router is still in use and ends without draining"),
    }
    Ok(())
}

/// The place of the node's agent, and what came with it.
struct Place {
    lock: StateLock,
    claim: Option<Instance>,
    sockets: Sockets,
    predecessor: Option<Predecessor>,
}

impl Place {
    /// Nobody had it.
    fn free(lock: StateLock) -> Self {
        Self {
            lock,
            claim: None,
            sockets: Sockets::default(),
            predecessor: None,
        }
    }
}

/// Takes the place of the agent that has the node: from its hands, or after its end if it does not give it.
async fn take_over(state: &Path) -> anyhow::Result<Place> {
    let mut told = String::new();
    loop {
        match StateLock::take(state) {
            Ok(lock) => return Ok(Place::free(lock)),
            Err(LockError::Held { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let why = match handover::ask(state).await {
            Ok((predecessor, belongings)) => {
                let Belongings {
                    lock,
                    claim,
                    sockets,
                } = belongings;
                return Ok(Place {
                    lock: StateLock::inherit(lock),
                    claim: claim.map(Instance::inherit).transpose()?,
                    sockets,
                    predecessor: Some(predecessor),
                });
            }
            Err(why) => format!("{:#}", anyhow::Error::new(why)),
        };
        if told != why {
            tracing::info!(why, "waiting for the agent that has the node");
            told = why;
        }
        tokio::time::sleep(RETRY).await;
    }
}

fn datapath_config(args: &RunArgs) -> DatapathConfig {
    DatapathConfig {
        bpffs: args.bpffs.clone(),
        cgroup: args.cgroup.clone(),
        gate_hook: GateHook::default(),
        object: None,
        pick_up: PICK_UP,
    }
}

/// Puts the programs into the kernel; none without a datapath.
fn load(args: &RunArgs) -> anyhow::Result<Option<Loaded>> {
    match args.datapath {
        DatapathMode::None => Ok(None),
        DatapathMode::Auto => {
            let loaded = tokio::task::block_in_place(|| Datapath::load(&datapath_config(args)));
            Ok(Some(loaded.map_err(unenforced)?))
        }
    }
}

/// Opens the datapath, with programs that are loaded already and a claim that somebody gave if there are any. The gates are those of
/// the agent before.
fn open_datapath(
    args: &RunArgs,
    programs: Option<Loaded>,
    claim: Option<Instance>,
) -> anyhow::Result<Option<Datapath>> {
    if args.datapath == DatapathMode::None {
        return Ok(None);
    }
    let opened = tokio::task::block_in_place(|| match (programs, claim) {
        (Some(programs), Some(claim)) => programs.open(claim),
        (Some(programs), None) => programs.open(Instance::claim()?),
        (None, _) => {
            let claim = Instance::claim()?;
            Datapath::load(&datapath_config(args))?.open(claim)
        }
    });
    opened.map(Some).map_err(unenforced)
}

fn unenforced(error: crate::datapath::Error) -> anyhow::Error {
    anyhow::Error::new(error)
        .context("cells cannot be enforced here; `--datapath none` runs the router alone")
}

fn start_proxy(
    args: &RunArgs,
    datapath: Option<&Datapath>,
    routes: &Arc<ArcSwap<RouteTable>>,
    inherited: Sockets,
) -> anyhow::Result<Proxy> {
    let cores = match args.threads {
        Some(threads) => threads.into(),
        None => std::thread::available_parallelism()
            .context("failed to count cores")?
            .get(),
    };
    let ingress = match datapath {
        Some(_) => Ingress::Lookup,
        None => Ingress::Bind,
    };
    let transparent = match datapath {
        Some(datapath) if !datapath.facts().assigns_groups() => Sharing::OneSocket,
        _ => Sharing::ReusePort,
    };
    Ok(Proxy::start_with(
        ProxyConfig {
            cores,
            ingress,
            transparent,
            node_mark: datapath.is_some(),
            reach: match args.kubernetes {
                true => Reach::OffNode,
                false => Reach::Anywhere,
            },
            telemetry: args.telemetry(),
            ..ProxyConfig::default()
        },
        Arc::clone(routes),
        inherited,
    )?)
}

async fn follow_cluster(args: &RunArgs) -> anyhow::Result<Cluster> {
    let node = args
        .node_name
        .clone()
        .context("--kubernetes needs --node-name, the name of the node that the agent is on")?;
    let settings = Settings {
        node,
        keep: Some(args.state.join(KEPT)),
    };
    Ok(Cluster::follow(&settings).await?)
}

/// Lets another agent write status.
async fn end(cluster: Option<Arc<Cluster>>) -> anyhow::Result<()> {
    if let Some(cluster) = cluster {
        cluster.end().await;
    }
    Ok(())
}
