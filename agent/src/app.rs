//! Builds everything in order and owns every task.
//!
//! The main loop is the only caller of the [`Reconciler`]: documents that changed, pods that came or went and signals arrive here one at
//! a time.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use kubernetes::{Cluster, Settings};
use snapshot::Snapshot;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use crate::activate::Activator;
use crate::admin::Admin;
use crate::config::{DatapathMode, KEPT, RunArgs};
use crate::datapath::{Datapath, DatapathConfig, Discovery, GateHook};
use crate::explain::Rehearsals;
use crate::lock::StateLock;
use crate::memory;
use crate::pods;
use crate::proxy::{Ingress, Proxy, ProxyConfig, Sharing};
use crate::reconcile::{Documents, Reconciler};
use crate::route::RouteTable;
use crate::source::cluster::{ClusterWatch, Taken};
use crate::source::{self, FolderWatch, Loaded, SourceError};
use crate::view::{AgentView, Origin};

/// How often what failed is tried again, and what others may have removed from the node is put back.
const REPAIR: Duration = Duration::from_secs(5);

/// Documents that leave something behind which is worth the time to give it back at once.
const MANY: usize = 500;
/// Documents for which that is done when no more of them come.
const SOME: usize = 20;

/// How long connections that are older than the gates may be picked up in their middle: a keepalive's worth of silence is
/// no loss, since the opener's next packet makes them known too.
const PICK_UP: Duration = Duration::from_secs(60);

/// Runs until a signal ends it.
pub async fn run(args: RunArgs) -> anyhow::Result<()> {
    let folder = args.config.as_deref().map(read_folder).transpose()?;

    // Before anything is started: who ends an agent that is just starting wants it to end as orderly as any other.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let _lock = StateLock::take(&args.state)?;
    let cluster = match &folder {
        Some(_) => None,
        None => Some(Arc::new(follow_cluster(&args).await?)),
    };
    let datapath = open_datapath(&args)?;
    let routes = Arc::new(ArcSwap::from_pointee(RouteTable::default()));
    let proxy = Arc::new(start_proxy(&args, datapath.as_ref(), &routes)?);

    let (rehearsals, mut asked) = Rehearsals::channel();
    let origin = match (&folder, &cluster) {
        (Some(folder), _) => Origin::Folder(folder.path.clone()),
        (None, Some(cluster)) => Origin::Cluster(Arc::clone(cluster)),
        (None, None) => anyhow::bail!("neither --config nor --kubernetes says where documents are"),
    };
    let view = AgentView::new(origin, datapath.clone(), &proxy, rehearsals);
    let view = Arc::new(view.context("failed to follow the kernel's events")?);
    let _admin = Admin::open(&args.admin, args.admin_listen, Arc::clone(&view) as _).await?;

    let (discovery, mut discoveries) = match &datapath {
        Some(datapath) => {
            let watched = pods::watch(datapath, args.quarantine > 0).await;
            let (found, changes) = watched.context("failed to look for pods")?;
            (found, Some(changes))
        }
        None => (Discovery::default(), None),
    };
    let begun = tokio::select! {
        begun = Feed::begin(folder, cluster.as_deref()) => begun?,
        _ = interrupt.recv() => return end(cluster).await,
        _ = terminate.recv() => return end(cluster).await,
    };
    let (mut feed, documents) = begun;
    let activator = Activator::new(routes, Arc::clone(&proxy), datapath);
    let cells = documents.cells();
    let patience = Duration::from_secs(args.quarantine);
    let mut reconciler = Reconciler::start(
        activator,
        view,
        documents,
        cluster.clone(),
        discovery,
        patience,
    )?;
    if args.datapath == DatapathMode::None {
        tracing::warn!(
            cells,
            "--datapath none: NOTHING IS ENFORCED in the kernel; the router alone answers on its listeners"
        );
    }

    let mut repair = tokio::time::interval(REPAIR);
    repair.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Documents that were read since memory was given back, now and at the last tick; all of them in the beginning.
    let (mut read, mut read_before) = (MANY, 0);
    loop {
        tokio::select! {
            _ = repair.tick() => {
                reconciler.repair();
                if read >= MANY || (read >= SOME && read == read_before) {
                    read = 0;
                    tokio::task::block_in_place(memory::tidy);
                }
                read_before = read;
            }
            Some(change) = feed.next() => match change {
                Change::Documents(loaded) => {
                    read = MANY;
                    reconciler.documents(loaded);
                }
                Change::Objects(taken) => {
                    read = read.saturating_add(taken.read);
                    reconciler.objects(taken);
                }
            },
            Some(discovery) = next(&mut discoveries) => reconciler.pods(discovery),
            Some(rehearsal) = asked.recv() => reconciler.rehearse(rehearsal),
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
        }
    }
    tracing::info!(
        seconds = args.drain,
        "draining: open requests may end, verdicts stay in the kernel"
    );
    reconciler.drain();
    drop(reconciler);
    end(cluster).await?;
    match Arc::into_inner(proxy) {
        Some(proxy) => {
            let cut = proxy.shutdown(Duration::from_secs(args.drain)).await;
            tracing::info!(connections_cut = cut, "ended");
        }
        None => tracing::error!("the router is still in use and ends without draining"),
    }
    Ok(())
}

fn open_datapath(args: &RunArgs) -> anyhow::Result<Option<Datapath>> {
    match args.datapath {
        DatapathMode::None => Ok(None),
        DatapathMode::Auto => {
            let config = DatapathConfig {
                bpffs: args.bpffs.clone(),
                cgroup: args.cgroup.clone(),
                gate_hook: GateHook::default(),
                object: None,
                pick_up: PICK_UP,
            };
            match Datapath::open(&config) {
                Ok(datapath) => Ok(Some(datapath)),
                Err(error) => Err(anyhow::Error::new(error).context(
                    "cells cannot be enforced here; `--datapath none` runs the router alone",
                )),
            }
        }
    }
}

fn start_proxy(
    args: &RunArgs,
    datapath: Option<&Datapath>,
    routes: &Arc<ArcSwap<RouteTable>>,
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
    Ok(Proxy::start(
        ProxyConfig {
            cores,
            ingress,
            transparent,
            node_mark: datapath.is_some(),
            telemetry: args.telemetry(),
            ..ProxyConfig::default()
        },
        Arc::clone(routes),
    )?)
}

/// The documents of a folder, read and right.
struct Folder {
    path: PathBuf,
    loaded: Loaded,
    snapshot: Snapshot,
}

fn read_folder(path: &Path) -> anyhow::Result<Folder> {
    let loaded = source::load(path)?;
    let snapshot = snapshot::parse(&loaded.files).map_err(|rejections| {
        anyhow::anyhow!(
            "documents in `{}` are refused:\n{rejections}",
            path.display()
        )
    })?;
    Ok(Folder {
        path: path.to_owned(),
        loaded,
        snapshot,
    })
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

/// What changed.
enum Change {
    Documents(Result<Loaded, SourceError>),
    Objects(Taken),
}

/// Changes of the documents, wherever they come from.
enum Feed {
    /// From a task that lives as long as the receiver.
    Folder(mpsc::Receiver<Result<Loaded, SourceError>>),
    Cluster(Box<ClusterWatch>),
}

impl Feed {
    /// The first documents, and those to come. Waits for the cluster for as long as nothing is known of it.
    async fn begin(
        folder: Option<Folder>,
        cluster: Option<&Cluster>,
    ) -> anyhow::Result<(Self, Documents)> {
        if let Some(folder) = folder {
            let changes = watch_folder(&folder.path, &folder.loaded)?;
            let documents = Documents::of_folder(folder.snapshot, folder.loaded.digest);
            return Ok((Self::Folder(changes), documents));
        }
        let cluster = cluster.context("there is no source of documents")?;
        let mut watch = ClusterWatch::new(cluster);
        let first = watch.changed().await;
        let first = first.context("the cluster is not followed any more")?;
        Ok((Self::Cluster(Box::new(watch)), Documents::of_cluster(first)))
    }

    async fn next(&mut self) -> Option<Change> {
        match self {
            Self::Folder(changes) => Some(Change::Documents(changes.recv().await?)),
            Self::Cluster(watch) => Some(Change::Objects(watch.changed().await?)),
        }
    }
}

/// Changes of a folder that was just read.
fn watch_folder(
    folder: &Path,
    loaded: &Loaded,
) -> anyhow::Result<mpsc::Receiver<Result<Loaded, SourceError>>> {
    let mut watch = FolderWatch::new(folder, loaded)?;
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let changed = watch.changed().await;
            if sender.send(changed).await.is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

async fn next(discoveries: &mut Option<watch::Receiver<Discovery>>) -> Option<Discovery> {
    match discoveries {
        Some(discoveries) => {
            discoveries.changed().await.ok()?;
            Some(discoveries.borrow_and_update().clone())
        }
        None => std::future::pending().await,
    }
}
