//! The process inside the world: it writes to the API server, asks the gateway, and says what it saw as one JSON document.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use futures_util::StreamExt as _;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::{sync::Semaphore, task::JoinSet, time::sleep};

use super::{
    asking::{self, Asker, Shown},
    cells,
    documents::{self, NAMESPACE, SERVICES},
    figures::{Changes, Figures},
};

/// Address of the world, where the backends are.
pub(super) const WORLD: Ipv4Addr = Ipv4Addr::new(198, 19, 255, 254);
/// Port of the first backend; each service has one.
const BACKENDS: u16 = 20_000;
/// Writes to the API server at a time, while a cluster is filled.
pub(super) const WRITERS: usize = 16;
/// Changes of other routes per second while changes are measured.
const CHURN: u32 = 20;
/// Until something that has to come is missed.
const PATIENCE: Duration = Duration::from_secs(300);

/// What a world is for.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Part {
    /// Routes, and what else is beside them.
    Routes,
    /// Cells alone.
    Cells,
}

/// What is played.
#[derive(Args, Debug)]
pub(crate) struct Options {
    #[arg(long, value_enum)]
    part: Part,
    /// The class of the gateway.
    #[arg(long)]
    class: String,
    /// The agent's process.
    #[arg(long)]
    agent: Option<u32>,
    /// Numbers of routes at which changes are measured, from few to many.
    #[arg(long, value_delimiter = ',')]
    routes: Vec<u32>,
    /// Changes that are measured at each.
    #[arg(long)]
    changes: u32,
    /// Cells that are made.
    #[arg(long, default_value_t = 0)]
    cells: u32,
    /// Pods of no node that are made at the end.
    #[arg(long, default_value_t = 0)]
    pods: u32,
    /// Where the figures go.
    #[arg(long)]
    out: PathBuf,
}

/// Plays everything.
pub(crate) fn run(options: &Options) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let figures = runtime.block_on(play(options))?;
    fs::write(&options.out, serde_json::to_vec(&figures)?)?;
    Ok(())
}

async fn play(options: &Options) -> Result<Figures> {
    let _provider = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let cluster = Cluster {
        client: Client::try_default().await?,
        class: options.class.clone(),
    };
    let mut figures = Figures::default();
    match options.part {
        Part::Routes => routes(&cluster, options, &mut figures).await?,
        Part::Cells => cells::play(&cluster, options.agent, options.cells, &mut figures).await?,
    }
    Ok(figures)
}

/// Plays changes of more and more routes.
async fn routes(cluster: &Cluster, options: &Options, figures: &mut Figures) -> Result<()> {
    for number in 0..SERVICES {
        asking::serve((WORLD, BACKENDS + u16::try_from(number)?).into()).await?;
    }
    cluster.begin().await?;
    let gateway = cluster.gateway().await?;
    figures.memory(options.agent, "no routes").await?;
    let mut made = 0;
    for wanted in &options.routes {
        let names: Vec<u32> = (made..*wanted).collect();
        cluster
            .fill(
                names
                    .iter()
                    .map(|number| cluster.route(*number, 0))
                    .collect(),
            )
            .await?;
        made = made.max(*wanted);
        cluster.settled(made).await?;
        eprintln!("{} has {made} routes", options.class);
        figures
            .memory(options.agent, &format!("{made} routes"))
            .await?;
        let changes = cluster.changes(gateway, made, options.changes).await?;
        figures.changes.insert(made, changes);
    }
    figures.status_writes = Some(cluster.status_writes(options.agent.is_some()).await?);
    figures.errors = Some(cluster.rounds(gateway).await?);
    if options.cells > 0 {
        cluster.cells(options.cells).await?;
        figures.together = Some(cluster.all_serve(gateway, made).await?);
        let with = format!("{made} routes and {} cells", options.cells);
        figures.memory(options.agent, &with).await?;
    }
    if options.pods > 0 {
        let pods = (0..options.pods).map(pod).collect();
        cluster.fill(pods).await?;
        sleep(Duration::from_secs(20)).await;
        figures.rest(options.agent, Duration::from_secs(30)).await?;
        let with = match options.cells {
            0 => format!("{made} routes and {} pods", options.pods),
            cells => format!("{made} routes, {cells} cells and {} pods", options.pods),
        };
        figures.memory(options.agent, &with).await?;
    }
    Ok(())
}

fn resource(version: &str, kind: &str) -> ApiResource {
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind))
}

/// A pod that no scheduler takes.
fn pod(number: u32) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": format!("p{number}"), "namespace": NAMESPACE,
            "labels": { "app": format!("a{}", number % 100), "tier": "web" },
        },
        "spec": {
            "schedulerName": "nobody",
            "containers": [{ "name": "c", "image": "none" }],
        },
    })
}

/// The API server, as whoever writes sees it.
pub(super) struct Cluster {
    client: Client,
    class: String,
}

impl Cluster {
    pub(super) fn api(&self, version: &str, kind: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), NAMESPACE, &resource(version, kind))
    }

    /// The objects of a kind that has no namespaces.
    pub(super) fn all(&self, version: &str, kind: &str) -> Api<DynamicObject> {
        Api::all_with(self.client.clone(), &resource(version, kind))
    }

    fn routes(&self) -> Api<DynamicObject> {
        self.api("gateway.networking.k8s.io/v1", "HTTPRoute")
    }

    fn route(&self, number: u32, mark: u32) -> Value {
        documents::route(&[&self.class], number, mark)
    }

    /// The namespace of everything.
    pub(super) async fn namespace(&self) -> Result<()> {
        let namespaces = self.all("v1", "Namespace");
        let namespace =
            json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } });
        let params = PostParams::default();
        namespaces
            .create(&params, &serde_json::from_value(namespace)?)
            .await?;
        // Pods need one, and a controller makes it.
        let accounts = self.api("v1", "ServiceAccount");
        until("the service account", async || {
            Ok(accounts.get_opt("default").await?.is_some())
        })
        .await
    }

    /// The gateway and the services.
    async fn begin(&self) -> Result<()> {
        self.namespace().await?;
        let mut objects = vec![documents::gateway(&self.class, None)];
        for number in 0..SERVICES {
            let port = BACKENDS + u16::try_from(number)?;
            objects.extend(documents::service(number, &WORLD.to_string(), port));
        }
        self.fill(objects).await
    }

    /// Where the gateway is.
    async fn gateway(&self) -> Result<SocketAddr> {
        let gateways = self.api("gateway.networking.k8s.io/v1", "Gateway");
        let mut found = None;
        until("the gateway's address", async || {
            let gateway = gateways.get(&self.class).await?;
            let addresses = gateway.data["status"]["addresses"].as_array().cloned();
            found = addresses
                .into_iter()
                .flatten()
                .filter_map(|address| address["value"].as_str()?.parse::<IpAddr>().ok())
                .find(IpAddr::is_ipv4);
            Ok(found.is_some())
        })
        .await?;
        Ok(SocketAddr::new(
            found.context("the gateway has no address")?,
            80,
        ))
    }

    /// Creates objects, many at a time.
    pub(super) async fn fill(&self, objects: Vec<Value>) -> Result<()> {
        let room = Arc::new(Semaphore::new(WRITERS));
        let mut writing = JoinSet::new();
        for object in objects {
            let text = |field: &str| object[field].as_str().unwrap_or_default().to_owned();
            let api = self.api(&text("apiVersion"), &text("kind"));
            let object: DynamicObject = serde_json::from_value(object)?;
            let place = Arc::clone(&room).acquire_owned().await?;
            writing.spawn(async move {
                let created = api.create(&PostParams::default(), &object).await;
                drop(place);
                created.map(|_| ())
            });
        }
        while let Some(written) = writing.join_next().await {
            written??;
        }
        Ok(())
    }

    /// Waits until routes have a status, which comes some time after they serve.
    async fn settled(&self, made: u32) -> Result<()> {
        let routes = self.routes();
        for step in 0..20 {
            let name = documents::route_name((made - 1) * step / 19);
            until("the status of a route", async || {
                let route = routes.get(&name).await?;
                let parents = route.data["status"]["parents"].as_array();
                Ok(parents.is_some_and(|parents| !parents.is_empty()))
            })
            .await?;
        }
        sleep(Duration::from_secs(2)).await;
        Ok(())
    }

    /// Asks every route once; how many requests were not answered by a backend, and of how many.
    async fn all_serve(&self, gateway: SocketAddr, made: u32) -> Result<(u64, u64)> {
        let mut failed = 0;
        for number in 0..made {
            let mut asker = Asker::new(gateway, &documents::host(number)).await?;
            failed += u64::from(!matches!(asker.ask().await, Ok(shown) if shown.status == 200));
        }
        Ok((failed, made.into()))
    }

    async fn change(&self, number: u32, mark: u32) -> Result<()> {
        let change = Patch::Merge(self.route(number, mark));
        let name = documents::route_name(number);
        self.routes()
            .patch(&name, &PatchParams::default(), &change)
            .await?;
        Ok(())
    }

    /// Changes single routes while others change too.
    async fn changes(&self, gateway: SocketAddr, made: u32, count: u32) -> Result<Changes> {
        let stop = AtomicBool::new(false);
        let churn = async {
            let mut round = 0_u32;
            let mut tick = tokio::time::interval(Duration::from_secs(1) / CHURN);
            while !stop.load(Ordering::Relaxed) {
                tick.tick().await;
                round += 1;
                // The first ten are measured.
                if made > 10 {
                    self.change(10 + round.wrapping_mul(7919) % (made - 10), round)
                        .await?;
                }
            }
            Ok::<_, anyhow::Error>(())
        };
        let measured = async {
            let mut changes = Changes::default();
            for change in 0..count {
                let pause = 60 + u64::from(change.wrapping_mul(37) % 53);
                sleep(Duration::from_millis(pause)).await;
                self.measure(gateway, change % 10, change + 1, &mut changes)
                    .await?;
            }
            stop.store(true, Ordering::Relaxed);
            Ok::<_, anyhow::Error>(changes)
        };
        let (churned, changes) = tokio::join!(churn, measured);
        churned?;
        changes
    }

    async fn measure(
        &self,
        gateway: SocketAddr,
        number: u32,
        mark: u32,
        changes: &mut Changes,
    ) -> Result<()> {
        let wanted = Shown {
            status: 200,
            mark,
            port: BACKENDS + u16::try_from(mark % SERVICES)?,
        };
        let mut asker = Asker::new(gateway, &documents::host(number)).await?;
        let before = asker.ask().await?;
        let watching = tokio::spawn(async move {
            let end = Instant::now() + PATIENCE;
            let mut wrong = 0;
            loop {
                let shown = asker.ask().await?;
                if shown == wanted {
                    break;
                }
                // Until then it is as it was.
                wrong += u32::from(shown != before);
                ensure!(
                    Instant::now() < end,
                    "a change is not served: {shown:?}, expected {wanted:?}"
                );
                sleep(Duration::from_micros(200)).await;
            }
            let serves = Instant::now();
            for _ in 0..20 {
                wrong += u32::from(asker.ask().await? != wanted);
                sleep(Duration::from_millis(1)).await;
            }
            Ok::<_, anyhow::Error>((serves, wrong))
        });
        let begun = Instant::now();
        self.change(number, mark).await?;
        let answered = Instant::now();
        let (serves, wrong) = watching.await??;
        changes.wrong += wrong;
        changes
            .from_answer
            .push(serves.saturating_duration_since(answered).as_secs_f64() * 1e3);
        changes
            .from_call
            .push(serves.saturating_duration_since(begun).as_secs_f64() * 1e3);
        Ok(())
    }

    /// Events of one route beside its own changes, for each change.
    async fn status_writes(&self, wait: bool) -> Result<f64> {
        const CHANGES: u32 = 20;
        let version = |object: &DynamicObject| -> Result<u64> {
            let generation = object.metadata.generation.unwrap_or_default();
            Ok(u64::try_from(generation)?)
        };
        let routes = self.routes();
        let name = documents::route_name(0);
        let fields = kube::api::WatchParams::default().fields(&format!("metadata.name={name}"));
        let begun = routes.get(&name).await?;
        let from = begun.metadata.resource_version.clone().unwrap_or_default();
        let events = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&events);
        let watch = routes.watch(&fields, &from).await?;
        let counting = tokio::spawn(async move {
            let mut watch = std::pin::pin!(watch);
            while let Some(Ok(_)) = watch.next().await {
                seen.fetch_add(1, Ordering::Relaxed);
            }
        });
        for change in 0..CHANGES {
            self.change(0, 5_000 + change).await?;
            sleep(Duration::from_millis(if wait { 500 } else { 300 })).await;
        }
        sleep(Duration::from_secs(2)).await;
        counting.abort();
        let changed = version(&routes.get(&name).await?)? - version(&begun)?;
        Ok((events.load(Ordering::Relaxed).saturating_sub(changed)) as f64 / changed as f64)
    }

    /// Twenty rounds of weights and backends under load; how many requests failed, and of how many.
    async fn rounds(&self, gateway: SocketAddr) -> Result<(u64, u64)> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut load = JoinSet::new();
        for _ in 0..4 {
            let stop = Arc::clone(&stop);
            load.spawn(async move {
                let mut asker = Asker::new(gateway, &documents::host(1)).await?;
                let (mut failed, mut all) = (0, 0);
                while !stop.load(Ordering::Relaxed) {
                    all += 1;
                    match asker.ask().await {
                        Ok(shown) if shown.status == 200 => {}
                        Ok(_) => failed += 1,
                        Err(_) => {
                            failed += 1;
                            asker = Asker::new(gateway, &documents::host(1)).await?;
                        }
                    }
                    sleep(Duration::from_micros(500)).await;
                }
                Ok::<_, anyhow::Error>((failed, all))
            });
        }
        let slices = self.api("discovery.k8s.io/v1", "EndpointSlice");
        for round in 0..20_u32 {
            let mut route = self.route(1, round);
            route["spec"]["rules"][0]["backendRefs"] = json!([
                { "name": documents::service_name(round % 5), "port": 80, "weight": 1 + round },
                { "name": documents::service_name(5 + round % 3), "port": 80, "weight": 20 - round },
            ]);
            let params = PatchParams::default();
            self.routes()
                .patch(&documents::route_name(1), &params, &Patch::Merge(route))
                .await?;
            let moved = json!({ "ports": [{ "name": "http", "protocol": "TCP", "port": BACKENDS + u16::try_from(10 + round % 20)? }] });
            let slice = format!("{}-1", documents::service_name(round % 5));
            slices.patch(&slice, &params, &Patch::Merge(moved)).await?;
            sleep(Duration::from_millis(150)).await;
        }
        stop.store(true, Ordering::Relaxed);
        let mut sum = (0, 0);
        while let Some(done) = load.join_next().await {
            let (failed, all) = done??;
            sum = (sum.0 + failed, sum.1 + all);
        }
        Ok(sum)
    }
}

/// Waits until something holds.
pub(super) async fn until(what: &str, mut holds: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while !holds().await? {
        if Instant::now() >= end {
            bail!("{what} does not come");
        }
        sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}
