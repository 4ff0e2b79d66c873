//! Cells in a cluster: what a thousand of them take, and how long the kernel goes on by the old ones when many change.
//!
//! The pods are those of one node. Their callers are sockets that this process made in the pods' networks: they send datagrams to the
//! world all the time, which their cells do not let through until they declare the call. What arrives was let through by the kernel.

use std::{
    collections::BTreeMap,
    fs::File,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::AsFd as _,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use kube::api::{ListParams, Patch, PatchParams};
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};
use tests::kube::pods;
use tokio::{sync::Semaphore, task::JoinSet, time::sleep};

use super::{
    documents::NAMESPACE,
    drive::{Cluster, WORLD, WRITERS, until},
    figures::Figures,
};

/// Pods of the node that belong to cells.
const PODS: u32 = 100;
/// Cells that change together; those of the pods are among them.
pub(super) const CHANGED: u32 = 250;
/// How often they do.
const ROUNDS: u32 = 5;
/// Port in the world that callers send to.
const PORT: u16 = 30_000;
/// From one datagram of a caller to the next.
const PACE: Duration = Duration::from_millis(4);
/// Until a call that is declared and not let through is an error.
const PATIENCE: Duration = Duration::from_secs(60);
/// Without any datagram for so long, none is let through.
const SILENCE: Duration = Duration::from_millis(500);

/// A cell with one component, whose pod has this address.
pub(super) fn cell(number: u32, address: Ipv4Addr) -> Value {
    json!({
        "apiVersion": "cardinal.dev/v1alpha1",
        "kind": "Cell",
        "metadata": { "name": name(number), "namespace": NAMESPACE },
        "spec": {
            "organization": "acme",
            "project": format!("p{number}"),
            "environment": "prod",
            "components": [{
                "name": "api",
                "workloads": { "addresses": [address] },
                "endpoints": [{ "name": "http", "type": "TCP", "port": 8080 }],
            }],
        },
    })
}

fn name(number: u32) -> String {
    format!("c{number}")
}

/// An address that no pod has.
pub(super) fn nobody(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a80_0000 + number)
}

impl Cluster {
    /// Makes cells of nobody and waits until their status says that they are enforced.
    pub(super) async fn cells(&self, count: u32) -> Result<()> {
        let cells = (0..count).map(|number| cell(number, nobody(number)));
        self.fill(cells.collect()).await?;
        for step in 0..20 {
            self.programmed((count - 1) * step / 19).await?;
        }
        Ok(())
    }

    /// Waits until a cell's status says that it is enforced as it is now.
    async fn programmed(&self, number: u32) -> Result<()> {
        let cells = self.api("cardinal.dev/v1alpha1", "Cell");
        until("the status of a cell", async || {
            let cell = cells.get(&name(number)).await?;
            let conditions = cell.data["status"]["conditions"].as_array();
            Ok(conditions.into_iter().flatten().any(|one| {
                one["type"] == "Programmed"
                    && one["status"] == "True"
                    && one["observedGeneration"].as_i64() == cell.metadata.generation
            }))
        })
        .await
    }

    /// Patches cells, many at a time.
    async fn patch(&self, patches: Vec<(u32, Value)>) -> Result<()> {
        let cells = self.api("cardinal.dev/v1alpha1", "Cell");
        let room = Arc::new(Semaphore::new(WRITERS));
        let mut writing = JoinSet::new();
        for (number, patch) in patches {
            let cells = cells.clone();
            let place = Arc::clone(&room).acquire_owned().await?;
            writing.spawn(async move {
                let params = PatchParams::default();
                let patched = cells
                    .patch(&name(number), &params, &Patch::Merge(patch))
                    .await;
                drop(place);
                patched.map(|_| ())
            });
        }
        while let Some(written) = writing.join_next().await {
            written??;
        }
        Ok(())
    }

    /// Runs the node's pods; gives the address and the process of each.
    async fn pods(&self) -> Result<Vec<(Ipv4Addr, String)>> {
        let nodes = self.all("v1", "Node").list(&ListParams::default()).await?;
        let node = nodes.items.into_iter().find_map(|node| node.metadata.name);
        let node = node.context("there is no node")?;
        let made = (0..PODS).map(|number| {
            let name = format!("caller-{number}");
            let mut pod = pods::serving(&name, &node, "caller", &[], &["--tcp", "[::]:7000"]);
            pod["metadata"]["namespace"] = NAMESPACE.into();
            pod
        });
        self.fill(made.collect()).await?;
        let pods = self.api("v1", "Pod");
        let mut running = Vec::new();
        for number in 0..PODS {
            let mut found = None;
            until("a pod", async || {
                let pod = pods.get(&format!("caller-{number}")).await?;
                let status = &pod.data["status"];
                let address = status["podIP"].as_str().and_then(|text| text.parse().ok());
                let container = status["containerStatuses"][0]["containerID"].as_str();
                let process = container.and_then(|id| id.strip_prefix("process://"));
                found = address.zip(process.map(str::to_owned));
                Ok(status["phase"] == "Running" && found.is_some())
            })
            .await?;
            running.extend(found);
        }
        Ok(running)
    }
}

/// What cells cost: the memory of `count`, and how long it takes until many changed ones are enforced.
pub(super) async fn play(
    cluster: &Cluster,
    agent: Option<u32>,
    count: u32,
    figures: &mut Figures,
) -> Result<()> {
    ensure!(
        count >= CHANGED,
        "expected at least {CHANGED} cells, got {count}"
    );
    cluster.namespace().await?;
    cluster.cells(count).await?;
    figures.memory(agent, &format!("{count} cells")).await?;
    let pods = cluster.pods().await?;
    let moved = (0..).zip(&pods).map(|(number, (address, _))| {
        let whole = cell(number, *address);
        (
            number,
            json!({ "spec": { "components": whole["spec"]["components"] } }),
        )
    });
    cluster.patch(moved.collect()).await?;
    for number in 0..PODS {
        cluster.programmed(number).await?;
    }
    let callers: Vec<Caller> = pods.iter().map(Caller::new).collect::<Result<_>>()?;
    let listener = tokio::net::UdpSocket::bind((WORLD, PORT)).await?;
    for _ in 0..ROUNDS {
        silent(&callers, &listener).await?;
        figures
            .enforced
            .push(round(cluster, &callers, &listener).await?);
        let closed = (0..CHANGED).map(|number| (number, json!({ "spec": { "egress": null } })));
        cluster.patch(closed.collect()).await?;
        for number in 0..CHANGED {
            cluster.programmed(number).await?;
        }
    }
    Ok(())
}

/// A socket in a pod.
struct Caller {
    address: IpAddr,
    socket: UdpSocket,
}

impl Caller {
    fn new((address, process): &(Ipv4Addr, String)) -> Result<Self> {
        let network = File::open(format!("/proc/{process}/ns/net"))?;
        // A socket stays where it was made; the thread that went there ends.
        let made = thread::spawn(move || {
            setns(network.as_fd(), CloneFlags::CLONE_NEWNET)?;
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.set_nonblocking(true)?;
            socket.connect((WORLD, PORT))?;
            Ok::<_, anyhow::Error>(socket)
        });
        let socket = made.join().map_err(|_| anyhow!("a thread panicked"))?;
        Ok(Self {
            address: (*address).into(),
            socket: socket.with_context(|| format!("no socket in the pod at {address}"))?,
        })
    }

    fn call(&self) {
        // The kernel may refuse it as well as drop it.
        let _refused = self.socket.send(b"let me through");
    }
}

/// Waits until nothing is let through.
async fn silent(callers: &[Caller], listener: &tokio::net::UdpSocket) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    let mut since = Instant::now();
    let mut buffer = [0; 64];
    while since.elapsed() < SILENCE {
        ensure!(
            Instant::now() < end,
            "pods call although no cell declares it"
        );
        callers.iter().for_each(Caller::call);
        sleep(PACE).await;
        while listener.try_recv_from(&mut buffer).is_ok() {
            since = Instant::now();
        }
    }
    Ok(())
}

/// Milliseconds from the API server's answer to the last of the writes until every pod's call came through.
async fn round(
    cluster: &Cluster,
    callers: &[Caller],
    listener: &tokio::net::UdpSocket,
) -> Result<f64> {
    let open = json!({ "spec": { "egress": { "south": [
        { "name": "world", "cidrs": [format!("{WORLD}/32")], "port": PORT, "protocol": "UDP" },
    ] } } });
    // Those of pods and the others by turns, so that the last ones are of pods too.
    let mut order: Vec<u32> = (0..CHANGED).collect();
    order.sort_by_key(|number| u64::from(*number).wrapping_mul(7_919) % u64::from(CHANGED));
    let writing = async {
        let patches = order.into_iter().map(|number| (number, open.clone()));
        cluster.patch(patches.collect()).await?;
        Ok::<_, anyhow::Error>(Instant::now())
    };
    let calling = async {
        let end = Instant::now() + PATIENCE;
        let mut missing: BTreeMap<IpAddr, &Caller> =
            callers.iter().map(|one| (one.address, one)).collect();
        let mut tick = tokio::time::interval(PACE);
        let mut last = Instant::now();
        let mut buffer = [0; 64];
        while !missing.is_empty() {
            ensure!(
                Instant::now() < end,
                "{} pods cannot call although their cells declare it",
                missing.len()
            );
            tokio::select! {
                _ = tick.tick() => missing.values().for_each(|caller| caller.call()),
                received = listener.recv_from(&mut buffer) => {
                    let (_, from): (usize, SocketAddr) = received?;
                    if missing.remove(&from.ip()).is_some() {
                        last = Instant::now();
                    }
                }
            }
        }
        Ok::<_, anyhow::Error>(last)
    };
    let (answered, last) = tokio::try_join!(writing, calling)?;
    Ok(last.saturating_duration_since(answered).as_secs_f64() * 1e3)
}
