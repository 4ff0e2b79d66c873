//! Builds everything in order and owns every task.
//!
//! The main loop is the only caller of the [`Reconciler`]: documents that changed, pods that came or went and signals arrive here one at
//! a time.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use crate::activate::Activator;
use crate::admin::Admin;
use crate::config::{DatapathMode, RunArgs};
use crate::datapath::{Datapath, DatapathConfig, Discovery, GateHook};
use crate::explain::Rehearsals;
use crate::lock::StateLock;
use crate::pods;
use crate::proxy::{Ingress, Proxy, ProxyConfig, Sharing};
use crate::reconcile::Reconciler;
use crate::route::RouteTable;
use crate::source::{self, FolderWatch, Loaded, SourceError};
use crate::view::AgentView;

/// How often what failed is tried again, and what others may have removed from the node is put back.
const REPAIR: Duration = Duration::from_secs(5);

/// How long connections that are older than the gates may be picked up in their middle: a keepalive's worth of silence is
/// no loss, since the opener's next packet makes them known too.
const PICK_UP: Duration = Duration::from_secs(60);

/// Runs until a signal ends it.
pub async fn run(args: RunArgs) -> anyhow::Result<()> {
    let folder = args.config.clone().context("--config names no folder")?;
    let loaded = source::load(&folder)?;
    let snapshot = Arc::new(snapshot::parse(&loaded.files).map_err(|rejections| {
        anyhow::anyhow!(
            "documents in `{}` are refused:\n{rejections}",
            folder.display()
        )
    })?);

    // Before anything is started: who ends an agent that is just starting wants it to end as orderly as any other.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let _lock = StateLock::take(&args.state)?;
    let datapath = open_datapath(&args)?;
    let routes = Arc::new(ArcSwap::from_pointee(RouteTable::default()));
    let proxy = Arc::new(start_proxy(&args, datapath.as_ref(), &routes)?);

    let (rehearsals, mut asked) = Rehearsals::channel();
    let view = AgentView::new(&folder, datapath.clone(), &proxy, rehearsals);
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
    let activator = Activator::new(routes, Arc::clone(&proxy), datapath);
    let cells = snapshot.cells.len();
    let patience = Duration::from_secs(args.quarantine);
    let mut reconciler = Reconciler::start(
        activator,
        view,
        snapshot,
        &loaded.digest,
        discovery,
        patience,
    )?;
    if args.datapath == DatapathMode::None {
        tracing::warn!(
            cells,
            "--datapath none: NOTHING IS ENFORCED in the kernel; the router alone answers on its listeners"
        );
    }

    let mut documents = watch_documents(&folder, &loaded)?;
    let mut repair = tokio::time::interval(REPAIR);
    repair.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = repair.tick() => reconciler.repair(),
            Some(loaded) = documents.recv() => reconciler.documents(loaded),
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

/// Changes of the folder, from a task that lives as long as the receiver.
fn watch_documents(
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
