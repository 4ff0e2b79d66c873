//! What the admin interface shows, put together when somebody asks.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use bytes::Bytes;
use kubernetes::Cluster;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use serde_json::json;
use snapshot::model::{Border, EndpointKind, Workloads};
use snapshot::status::Report;
use snapshot::{Snapshot, Source};
use tokio::sync::mpsc;

use crate::activate::Active;
use crate::admin::{Rehearsed, View};
use crate::clock;
use crate::compile;
use agent_common::{Lost, Verdict};

use crate::datapath::{Care, Datapath};
use crate::explain::{Names, Rehearsals, Request};
use crate::flows::{self, Wanted};
use crate::keys::KeyStore;
use crate::metrics::{Metrics, Reload};
use crate::packets::{self, Current, EventRecord, PacketCounters};
use crate::proxy::{Proxy, RequestLog};
use crate::recent::Recent;
use crate::resilience::Clock;
use crate::route::RouteTable;
use crate::source::cluster::ClusterMetrics;
use crate::status::{
    AgentStatus, CellStatus, ClusterStatus, ComponentStatus, ConfigStatus, DatapathStatus,
    DropStatus, ListenerStatus, PodStatus, ProgramStatus, QuarantineStatus, RefusedObject,
    SilentKind, Status, TableStatus,
};

mod backends;
mod placements;
mod rules;

/// Where documents come from.
#[derive(Clone)]
pub enum Origin {
    /// A folder.
    Folder(PathBuf),
    /// A Kubernetes cluster.
    Cluster(Arc<Cluster>),
}

impl Origin {
    /// The word in `status`.
    fn name(&self) -> &'static str {
        match self {
            Self::Folder(_) => "file",
            Self::Cluster(_) => "kubernetes",
        }
    }

    /// The folder, or where the API server is.
    fn place(&self) -> String {
        match self {
            Self::Folder(folder) => folder.display().to_string(),
            Self::Cluster(cluster) => cluster.server().to_owned(),
        }
    }
}

/// The agent as seen from its admin interface.
pub struct AgentView {
    origin: Origin,
    started_at: String,
    draining: AtomicBool,
    datapath: Option<Datapath>,
    requests: Arc<RequestLog>,
    keys: Arc<KeyStore>,
    routes: Arc<ArcSwap<RouteTable>>,
    clock: Clock,
    metrics: Metrics,
    registry: Registry,
    current: Current,
    events: Option<Arc<Recent<EventRecord>>>,
    rehearsals: Rehearsals,
    tables: Mutex<BTreeMap<&'static str, TableStatus>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    digest: String,
    last_reload_at: String,
    last_attempt_at: String,
    mistakes: Vec<String>,
    /// Objects of the cluster that have mistakes.
    refused: Vec<RefusedObject>,
    /// Why the pods of the node are not those of the active generation.
    pods_failed: Option<String>,
}

impl AgentView {
    /// A view of an agent that has no generation yet.
    ///
    /// # Errors
    /// The kernel's events cannot be followed.
    pub fn new(
        origin: Origin,
        datapath: Option<Datapath>,
        proxy: &Proxy,
        rehearsals: Rehearsals,
    ) -> io::Result<Self> {
        let current = Current::default();
        let metrics = Metrics::default();
        let mut registry = Registry::with_prefix("cardinal");
        metrics.register(&mut registry);
        metrics.enforcing(datapath.is_some());
        if let Origin::Cluster(cluster) = &origin {
            registry.register_collector(Box::new(ClusterMetrics(Arc::clone(cluster))));
        }
        proxy.register(&mut registry);
        proxy.keys().register(&mut registry);
        proxy.log().register(&mut registry);
        let mut events = None;
        if let Some(datapath) = &datapath {
            registry.register_collector(Box::new(PacketCounters::new(
                datapath.clone(),
                Arc::clone(&current),
            )));
            if let Some(reader) = datapath.take_events() {
                events = Some(packets::follow(reader, &current)?);
            }
        }
        Ok(Self {
            origin,
            started_at: clock::now(),
            draining: AtomicBool::new(false),
            datapath,
            requests: Arc::clone(proxy.log()),
            keys: Arc::clone(proxy.keys()),
            routes: Arc::clone(proxy.table()),
            clock: proxy.clock().clone(),
            metrics,
            registry,
            current,
            events,
            rehearsals,
            tables: Mutex::default(),
            state: Mutex::default(),
        })
    }

    /// A generation is active. `report` says what became of the objects that it was made of.
    pub fn activated(&self, active: Active, reason: Reload, digest: &str, report: Option<&Report>) {
        self.metrics
            .activated(active.generation.into(), reason, clock::unix_now());
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if reason != Reload::Pods {
            state.last_reload_at = clock::now();
            state.last_attempt_at = state.last_reload_at.clone();
            state.mistakes.clear();
            state.refused = report.map(refused).unwrap_or_default();
            self.metrics.objects_refused(state.refused.len());
        }
        state.pods_failed = None;
        digest.clone_into(&mut state.digest);
        drop(state);
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(active));
    }

    /// Documents were refused; the active generation goes on.
    pub fn refused(&self, mistakes: &[String]) {
        self.metrics.refused();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.last_attempt_at = clock::now();
        state.mistakes = mistakes.to_vec();
    }

    /// Pods came or went, and the generation for them could not be activated.
    pub fn pods_failed(&self, error: String) {
        self.metrics.pods_failed();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.pods_failed = Some(error);
    }

    /// The kernel's tables were compared with what they should hold.
    pub fn looked_after(&self, care: &Care) {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        for found in &care.tables {
            self.metrics
                .compared(found.table, found.drifted, found.repaired);
            let table = tables.entry(found.table).or_insert_with(|| TableStatus {
                table: found.table.to_owned(),
                entries: 0,
                drifted: 0,
                repairs: 0,
                last_drift_at: String::new(),
                hash: String::new(),
            });
            table.entries = found.entries;
            table.drifted = found.drifted;
            table.hash = format!("{:016x}", found.hash);
            if found.drifted > 0 {
                table.last_drift_at = clock::now();
                if found.repaired {
                    table.repairs += found.drifted as u64;
                }
            }
        }
    }

    /// The agent is about to end: it is not ready any more.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    fn active(&self) -> Option<Arc<Active>> {
        self.current
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn config(&self) -> ConfigStatus {
        let generation = self.active().map_or(0, |active| active.generation.into());
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let refused = !state.mistakes.is_empty();
        ConfigStatus {
            generation,
            source: self.origin.name().to_owned(),
            path: self.origin.place(),
            version: state.digest.chars().take(12).collect(),
            digest: state.digest.clone(),
            last_reload_at: state.last_reload_at.clone(),
            last_attempt_at: state.last_attempt_at.clone(),
            last_attempt: if refused { "refused" } else { "accepted" }.to_owned(),
            mistakes: state.mistakes.clone(),
            cluster: match &self.origin {
                Origin::Folder(_) => None,
                Origin::Cluster(cluster) => Some(cluster_status(cluster, &state.refused)),
            },
        }
    }

    fn datapath(&self, unread: &mut Vec<String>) -> DatapathStatus {
        let Some(datapath) = &self.datapath else {
            unread.push(
                "everything: the agent runs with --datapath none, so no packet is judged"
                    .to_owned(),
            );
            return DatapathStatus {
                enforcing: false,
                kernel: String::new(),
                hook: String::new(),
                bpffs: String::new(),
                generation: 0,
                events_lost: 0,
                quarantine: Vec::new(),
                programs: Vec::new(),
                tables: Vec::new(),
            };
        };
        let facts = datapath.facts();
        let generation = datapath.active_generation();
        let events_lost = datapath.lost(Lost::Event).unwrap_or_else(|error| {
            unread.push(format!(
                "unknown: the kernel's count of lost events cannot be read: {error}"
            ));
            0
        });
        DatapathStatus {
            enforcing: generation != 0,
            kernel: facts.kernel.clone(),
            hook: facts.hook.to_owned(),
            bpffs: facts.bpffs.display().to_string(),
            generation: generation.into(),
            events_lost,
            quarantine: datapath
                .held()
                .into_iter()
                .map(|held| QuarantineStatus {
                    interface: held.name,
                    ifindex: held.ifindex,
                    seconds: held.since.as_secs(),
                })
                .collect(),
            programs: facts
                .programs
                .iter()
                .map(|program| ProgramStatus {
                    name: program.name.clone(),
                    verified_instructions: program.verified_instructions,
                    jited_bytes: program.jited_bytes,
                })
                .collect(),
            tables: self
                .tables
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .values()
                .cloned()
                .collect(),
        }
    }
}

impl View for AgentView {
    fn ready(&self) -> bool {
        self.active().is_some() && !self.draining.load(Ordering::Acquire)
    }

    fn status(&self) -> Status {
        let mut not_enforced = Vec::new();
        let datapath = self.datapath(&mut not_enforced);
        let active = self.active();
        let (cells, pods, listeners) = match active.as_deref() {
            Some(active) => {
                not_enforced.extend(
                    expired(&active.snapshot)
                        .iter()
                        .map(|(source, message)| format!("{source}: {message}")),
                );
                not_enforced.extend(active.snapshot.warnings.iter().map(ToString::to_string));
                not_enforced.extend(active.discovery.unidentified.iter().map(|interface| {
                    format!("interface {interface}: the kernel says nothing of its other end, so it has no gates")
                }));
                (
                    cells(active, &mut not_enforced),
                    pods(active),
                    listeners(active),
                )
            }
            None => Default::default(),
        };
        let failed = self
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pods_failed
            .clone();
        not_enforced.extend(
            failed.map(|error| format!("pods that came since the active generation: {error}")),
        );
        let (drops, rules) = match (&self.datapath, active.as_deref()) {
            (Some(datapath), Some(active)) => (
                drops(datapath, active, &mut not_enforced),
                rules::rows(datapath, active, &mut not_enforced),
            ),
            _ => Default::default(),
        };
        Status {
            agent: AgentStatus {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
                started_at: self.started_at.clone(),
                ready: self.ready(),
            },
            config: self.config(),
            datapath,
            cells,
            pods,
            listeners,
            key_sets: self.keys.status(),
            placements: placements::rows(&self.routes.load()),
            backends: backends::rows(&self.routes.load(), self.clock.now()),
            drops,
            rules,
            not_enforced,
        }
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        match encode(&mut text, &self.registry) {
            Ok(()) => text,
            Err(error) => format!("# failed to encode metrics: {error}\n# EOF\n"),
        }
    }

    fn events(&self, since: u64) -> serde_json::Value {
        let (next, events) = match &self.events {
            Some(events) => events.since(since),
            None => (1, Vec::new()),
        };
        json!({ "next": next, "events": events })
    }

    fn names(&self) -> Option<Names> {
        let bpffs = self.datapath.as_ref()?.facts().bpffs.display().to_string();
        let mut names = self
            .active()
            .map(|active| Names::of(&active, &bpffs))
            .unwrap_or_default();
        names.bpffs = bpffs;
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.mistakes.is_empty() {
            names.waiting.push(format!(
                "the documents in {} were refused at {}, so generation {} goes on:\n{}",
                self.origin.place(),
                state.last_attempt_at,
                names.generation,
                state.mistakes.join("\n")
            ));
        }
        names.waiting.extend(state.pods_failed.iter().map(|error| {
            format!("pods changed, and the generation for them is tried again: {error}")
        }));
        Some(names)
    }

    fn flows(&self, wanted: Wanted) -> Option<mpsc::Receiver<Bytes>> {
        let events = Arc::clone(self.events.as_ref()?);
        let (sender, receiver) = flows::reader();
        tokio::spawn(flows::serve(wanted, events, self.datapath.clone(), sender));
        Some(receiver)
    }

    fn rehearse(&self, request: Request) -> Rehearsed {
        let rehearsals = self.rehearsals.clone();
        Box::pin(async move { rehearsals.ask(request).await })
    }

    fn requests(&self, since: u64) -> serde_json::Value {
        let all = self.requests.since(0);
        let next = all.last().map_or(1, |record| record.seq + 1);
        let requests: Vec<_> = all
            .iter()
            .filter(|record| record.seq >= since)
            .map(AsRef::as_ref)
            .collect();
        json!({ "next": next, "requests": requests })
    }
}

/// Certificates that have expired: their listeners refuse handshakes.
pub fn expired(snapshot: &Snapshot) -> Vec<(Source, String)> {
    let now = clock::unix_now();
    snapshot
        .certificates
        .values()
        .filter(|certificate| certificate.not_after < now)
        .map(|certificate| {
            let message = format!(
                "certificate of Secret {} expired at {}; handshakes that need it are refused",
                certificate.name,
                clock::rfc3339(certificate.not_after)
            );
            (certificate.declared.clone(), message)
        })
        .collect()
}

/// Objects with mistakes, those that were refused first.
fn refused(report: &Report) -> Vec<RefusedObject> {
    let mut all: Vec<_> = report
        .objects
        .iter()
        .filter(|(_, verdict)| !verdict.mistakes.is_empty())
        .map(|(key, verdict)| RefusedObject {
            object: key.to_string(),
            accepted: verdict.accepted,
            mistakes: verdict
                .mistakes
                .iter()
                .map(|mistake| match &*mistake.source.field {
                    "" => mistake.message.clone(),
                    field => format!("{field}: {}", mistake.message),
                })
                .collect(),
        })
        .collect();
    all.sort_by_key(|object| object.accepted);
    all
}

fn cluster_status(cluster: &Cluster, refused: &[RefusedObject]) -> ClusterStatus {
    let health = cluster.health();
    let silent = health.silences.iter().map(|silence| SilentKind {
        kind: silence.kind.name().to_owned(),
        seconds: silence.lasts.as_secs(),
        error: silence.error.clone(),
    });
    ClusterStatus {
        complete: health.complete,
        stale_seconds: health.staleness().as_secs(),
        unreachable: health
            .unreachable
            .as_ref()
            .map_or_else(String::new, |(_, error)| error.clone()),
        silent: silent.collect(),
        objects: health.kinds.iter().map(|(_, count)| count).sum(),
        writes_status: health.writes,
        refused: refused.to_vec(),
    }
}

fn cells(active: &Active, not_enforced: &mut Vec<String>) -> Vec<CellStatus> {
    let local = |id| {
        active
            .discovery
            .pods
            .iter()
            .filter(|pod| active.component_of(pod) == Some(id))
            .count()
    };
    active
        .snapshot
        .cells
        .values()
        .map(|cell| CellStatus {
            cell: cell.id.to_string(),
            open: [(cell.borders.ingress, "ingress"), (cell.borders.egress, "egress")]
                .into_iter()
                .filter(|(border, _)| *border == Border::Open)
                .map(|(_, direction)| direction.to_owned())
                .collect(),
            components: cell
                .components
                .values()
                .map(|component| {
                    if matches!(&component.workloads, Workloads::Selector { addresses, .. } if addresses.is_empty()) {
                        not_enforced.push(format!(
                            "{}: component {} selects pods by label, and none that this agent knows has such labels: it has no workloads",
                            component.declared, component.id
                        ));
                    }
                    ComponentStatus {
                        name: component.id.component.to_string(),
                        workloads: component.workloads.addresses().len(),
                        local_pods: local(&component.id),
                        endpoints: component.endpoints.values().map(endpoint).collect(),
                    }
                })
                .collect(),
        })
        .collect()
}

fn endpoint(endpoint: &snapshot::model::Endpoint) -> String {
    let kind = match endpoint.kind {
        EndpointKind::Http => "HTTP",
        EndpointKind::GraphQl => "GraphQL",
        EndpointKind::WebSocket => "WebSocket",
        EndpointKind::Grpc => "gRPC",
        EndpointKind::Tcp => "TCP",
        EndpointKind::Udp => "UDP",
    };
    let mut text = format!("{} {}/{kind}", endpoint.id.endpoint, endpoint.port);
    for (visible, word) in [
        (endpoint.public.is_some(), " public"),
        (endpoint.organization.is_some(), " organization"),
    ] {
        if visible {
            text.push_str(word);
        }
    }
    text
}

fn pods(active: &Active) -> Vec<PodStatus> {
    active
        .discovery
        .pods
        .iter()
        .map(|pod| {
            let component = active.component_of(pod);
            PodStatus {
                interface: pod.host_ifname.clone(),
                ifindex: pod.ifindex,
                addresses: pod.addresses.iter().map(ToString::to_string).collect(),
                enforced: component.is_some(),
                component: component.map(ToString::to_string).unwrap_or_default(),
            }
        })
        .collect()
}

fn listeners(active: &Active) -> Vec<ListenerStatus> {
    let snapshot = &active.snapshot;
    let node = compile::node_addresses(&snapshot.platform, &active.discovery);
    let mut rows = Vec::new();
    for gateway in snapshot.gateways.values() {
        for listener in &gateway.listeners {
            rows.push(ListenerStatus {
                gateway: gateway.name.to_string(),
                listener: listener.name.to_string(),
                gate: gateway
                    .gate
                    .map(|gate| gate.to_string())
                    .unwrap_or_default(),
                addresses: gateway
                    .sockets(listener, &node)
                    .iter()
                    .map(ToString::to_string)
                    .collect(),
                protocol: match listener.http3() {
                    Some(_) => format!("{}, HTTP/3", listener.protocol.as_str()),
                    None => listener.protocol.as_str().to_owned(),
                },
                hostname: listener
                    .hostname
                    .as_ref()
                    .map_or_else(|| "*".to_owned(), ToString::to_string),
            });
        }
    }
    rows
}

fn drops(datapath: &Datapath, active: &Active, not_enforced: &mut Vec<String>) -> Vec<DropStatus> {
    let counters = match datapath.counters() {
        Ok(counters) => counters,
        Err(error) => {
            not_enforced.push(format!(
                "unknown: the kernel's counters cannot be read: {error}"
            ));
            return Vec::new();
        }
    };
    let mut sums: BTreeMap<(String, String, String), (u64, u64)> = BTreeMap::new();
    for row in counters {
        if row.verdict == Verdict::Drop {
            let key = (
                active.cell_name(row.cell).to_owned(),
                row.path.to_string(),
                row.reason.to_string(),
            );
            let sum = sums.entry(key).or_default();
            sum.0 += row.packets;
            sum.1 += row.bytes;
        }
    }
    let mut rows: Vec<_> = sums
        .into_iter()
        .map(|((cell, direction, reason), (packets, bytes))| DropStatus {
            cell,
            direction,
            reason,
            packets,
            bytes,
        })
        .collect();
    rows.sort_by(|a, b| b.packets.cmp(&a.packets).then_with(|| a.cell.cmp(&b.cell)));
    rows
}
