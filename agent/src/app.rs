//! Builds everything in order and owns every task.
//!
//! The main loop is the only caller of [`Activator`]: documents that changed, pods that came or went and signals arrive here one at
//! a time.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use snapshot::{Snapshot, Warning};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use crate::activate::{ActivateError, Activator, Active};
use crate::admin::Admin;
use crate::config::{DatapathMode, RunArgs};
use crate::datapath::{Datapath, DatapathConfig, Discovery, GateHook};
use crate::lock::StateLock;
use crate::metrics::Reload;
use crate::pods;
use crate::proxy::{Ingress, Proxy, ProxyConfig, Sharing};
use crate::route::RouteTable;
use crate::source::{self, FolderWatch, Loaded, SourceError};
use crate::view::AgentView;

/// Time between looks at what others may have removed.
const LOOK_AFTER: Duration = Duration::from_secs(10);

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

    let _lock = StateLock::take(&args.state)?;
    let datapath = open_datapath(&args)?;
    let routes = Arc::new(ArcSwap::from_pointee(RouteTable::default()));
    let proxy = Arc::new(start_proxy(&args, datapath.as_ref(), &routes)?);

    let view = AgentView::new(&folder, datapath.clone(), &proxy);
    let view = Arc::new(view.context("failed to follow the kernel's events")?);
    let _admin = Admin::open(&args.admin, args.admin_listen, Arc::clone(&view) as _).await?;

    let (discovery, mut discoveries) = match &datapath {
        Some(_) => {
            let (found, changes) = pods::watch().await.context("failed to look for pods")?;
            (found, Some(changes))
        }
        None => (Discovery::default(), None),
    };
    let activator = Activator::new(routes, Arc::clone(&proxy), datapath.clone());
    let mut app = App {
        activator,
        view,
        folder: folder.clone(),
        snapshot,
        digest: loaded.digest.clone(),
        discovery,
        pending: None,
        datapath,
    };
    app.activate(Reload::Start)?;
    say_what_holds(&app.snapshot, args.datapath);

    let mut documents = watch_documents(&folder, &loaded)?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut look_after = tokio::time::interval(LOOK_AFTER);
    look_after.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = look_after.tick() => app.look_after(),
            Some(loaded) = documents.recv() => app.documents(loaded),
            Some(discovery) = next(&mut discoveries) => app.pods(discovery),
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
        }
    }
    tracing::info!(
        seconds = args.drain,
        "draining: open requests may end, verdicts stay in the kernel"
    );
    app.view.drain();
    drop(app);
    match Arc::into_inner(proxy) {
        Some(proxy) => {
            let cut = proxy.shutdown(Duration::from_secs(args.drain)).await;
            tracing::info!(connections_cut = cut, "ended");
        }
        None => tracing::error!("the router is still in use and ends without draining"),
    }
    Ok(())
}

struct App {
    activator: Activator,
    view: Arc<AgentView>,
    folder: std::path::PathBuf,
    snapshot: Arc<Snapshot>,
    digest: String,
    discovery: Discovery,
    /// What is on the node, if it could not be activated yet.
    pending: Option<Discovery>,
    datapath: Option<Datapath>,
}

impl App {
    /// Takes changed documents over, or keeps what is active.
    fn documents(&mut self, loaded: Result<Loaded, SourceError>) {
        let loaded = match loaded {
            Ok(loaded) => loaded,
            Err(error) => return self.refused(&[format!("{:#}", anyhow::Error::new(error))]),
        };
        let parsed = match snapshot::parse(&loaded.files) {
            Ok(parsed) => Arc::new(parsed),
            Err(rejections) => {
                let mistakes: Vec<_> = rejections
                    .mistakes
                    .iter()
                    .map(ToString::to_string)
                    .collect();
                return self.refused(&mistakes);
            }
        };
        let before = (
            std::mem::replace(&mut self.snapshot, parsed),
            std::mem::replace(&mut self.digest, loaded.digest),
        );
        if let Err(error) = self.activate(Reload::Documents) {
            (self.snapshot, self.digest) = before;
            self.refused(&[format!("{:#}", anyhow::Error::new(error))]);
        }
    }

    fn pods(&mut self, discovery: Discovery) {
        self.pending = None;
        let before = std::mem::replace(&mut self.discovery, discovery);
        if let Err(error) = self.activate(Reload::Pods) {
            // New pods have their gates by now, and no generation that knows them: they are denied until it is there.
            tracing::error!(
                error = &error as &dyn std::error::Error,
                seconds = LOOK_AFTER.as_secs(),
                "pods changed, and their generation could not be activated; it is tried again"
            );
            self.pending = Some(std::mem::replace(&mut self.discovery, before));
        }
    }

    /// Puts back what others removed, and tries again what failed.
    fn look_after(&mut self) {
        if let Some(datapath) = &self.datapath
            && let Err(error) = tokio::task::block_in_place(|| datapath.repair())
        {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "failed to look after the kernel's hooks; a gate or the policy route may be missing"
            );
        }
        if let Some(discovery) = self.pending.take() {
            self.pods(discovery);
        }
    }

    fn activate(&mut self, reason: Reload) -> Result<(), ActivateError> {
        // Map updates are system calls; the runtime moves its other tasks away meanwhile.
        let active: Active = tokio::task::block_in_place(|| {
            self.activator.activate(&self.snapshot, &self.discovery)
        })?;
        tracing::info!(
            generation = active.generation,
            reason = reason.as_str(),
            digest = %self.digest,
            cells = active.snapshot.cells.len(),
            pods = active.discovery.pods.len(),
            "generation active"
        );
        if reason != Reload::Pods {
            warn(&active.snapshot.warnings);
            for (source, message) in crate::view::expired(&active.snapshot) {
                tracing::error!(%source, "{message}");
            }
        }
        self.view.activated(active, reason, &self.digest);
        Ok(())
    }

    fn refused(&self, mistakes: &[String]) {
        for mistake in mistakes {
            tracing::error!(folder = %self.folder.display(), mistake, "documents refused; the active generation goes on serving");
        }
        self.view.refused(mistakes);
    }
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
            ..ProxyConfig::default()
        },
        Arc::clone(routes),
    )?)
}

fn say_what_holds(snapshot: &Snapshot, mode: DatapathMode) {
    if mode == DatapathMode::None {
        tracing::warn!(
            cells = snapshot.cells.len(),
            "--datapath none: NOTHING IS ENFORCED in the kernel; the router alone answers on its listeners"
        );
    }
}

fn warn(warnings: &[Warning]) {
    for warning in warnings {
        tracing::warn!(source = %warning.source, "{}", warning.message);
    }
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

async fn next(discoveries: &mut Option<mpsc::Receiver<Discovery>>) -> Option<Discovery> {
    match discoveries {
        Some(discoveries) => discoveries.recv().await,
        None => std::future::pending().await,
    }
}
