//! What the kernel did, in the words of the documents: events and counters with the names of cells, components and rules.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use agent_common::{Event, Hook, Lost, Path, address_ip};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use serde::Serialize;
use tokio::task::JoinHandle;

use crate::activate::Active;
use crate::clock;
use crate::datapath::{CounterRow, Datapath, EventReader, RuleSource};
use crate::recent::Recent;

/// Events kept for readers of the admin interface.
const KEPT: usize = 4096;

/// The active generation, as the readers of events and counters need it.
pub type Current = Arc<Mutex<Option<Arc<Active>>>>;

/// One event of the kernel's programs.
#[derive(Clone, Debug, Serialize)]
pub struct EventRecord {
    /// When the kernel saw the packet, RFC 3339 with milliseconds.
    pub time: String,
    /// `pass`, `drop` or `steer`.
    pub verdict: &'static str,
    /// Why, as in `agent_common::Reason`.
    pub reason: &'static str,
    /// `north`, `west`, `south`, `east`, `intra` or `platform`; `none` if the packet ended before its peer was known.
    pub direction: &'static str,
    /// `cell_egress` or `cell_ingress`.
    pub hook: &'static str,
    /// organization/project/environment of the pod; empty if the interface is nobody's.
    pub cell: String,
    /// What was declared for the rule that decided, such as `public acme/shop/prod/web/site`; empty if no rule decided.
    pub rule: String,
    /// File, line and document of that declaration; empty if no rule decided.
    pub document: String,
    /// Its field, such as `spec.egress.south[2]`; empty if no rule decided.
    pub field: String,
    /// The other side: a component, a gate, `world` and so on.
    pub peer: String,
    /// Source address.
    pub src: String,
    /// Source port.
    pub sport: u16,
    /// Destination address.
    pub dst: String,
    /// Destination port.
    pub dport: u16,
    /// IP protocol number.
    pub proto: u8,
    /// The pod's host-side interface.
    pub ifindex: u32,
    /// The generation that decided.
    pub generation: u32,
    /// Events of this cell and kind that were not told since the one before, because there were too many.
    pub suppressed: u32,
}

impl EventRecord {
    fn new(event: &Event, active: Option<&Active>) -> Self {
        let kernel = active.and_then(|active| active.kernel.as_ref());
        let (src, dst) = (address_ip(event.source), address_ip(event.destination));
        let remote = match event.hook() {
            Hook::CellEgress => dst,
            Hook::CellIngress => src,
        };
        let peer = match active.and_then(|active| active.component_at(&remote)) {
            Some(component) if event.peer().is_component() => component.to_string(),
            _ => event.peer().to_string(),
        };
        let cell = active.map_or("", |active| active.cell_name(event.cell));
        let rule = kernel.and_then(|kernel| kernel.rules.get(&event.rule));
        Self {
            time: clock::of_monotonic(event.time),
            verdict: event
                .verdict()
                .map_or("unknown", agent_common::Verdict::name),
            reason: event.reason().map_or("unknown", agent_common::Reason::name),
            direction: event.path().map_or("unknown", Path::name),
            hook: event.hook().name(),
            cell: cell.to_owned(),
            rule: rule.map_or_else(String::new, |rule| rule.text().to_owned()),
            document: rule.map_or_else(String::new, RuleSource::document),
            field: rule.map_or_else(String::new, RuleSource::field),
            peer,
            src: src.to_string(),
            sport: u16::from_be_bytes(event.source_port),
            dst: dst.to_string(),
            dport: u16::from_be_bytes(event.destination_port),
            proto: event.protocol,
            ifindex: event.ifindex,
            generation: event.generation,
            suppressed: event.suppressed,
        }
    }
}

/// Events as they are read.
#[derive(Debug)]
pub struct Events {
    recent: Arc<Recent<EventRecord>>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Events {
    /// The last of them.
    pub fn recent(&self) -> &Arc<Recent<EventRecord>> {
        &self.recent
    }

    /// Reads no more: another reader may begin when this returns.
    pub async fn end(&self) {
        let task = self.task.lock();
        let task = task.unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            task.abort();
            // It was told to end, or has ended.
            let _ = task.await;
        }
    }
}

/// Reads events until that is ended, and keeps the last of them.
///
/// # Errors
/// The runtime cannot watch the kernel's buffer.
pub fn follow(reader: EventReader, current: &Current) -> std::io::Result<Events> {
    let recent = Arc::new(Recent::new(KEPT));
    let mut stream = reader.into_stream()?;
    let (kept, current) = (Arc::clone(&recent), Arc::clone(current));
    let task = tokio::spawn(async move {
        loop {
            match stream.recv().await {
                Ok(event) => {
                    let active = current
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .clone();
                    let record = EventRecord::new(&event, active.as_deref());
                    tracing::debug!(
                        target: "packets",
                        verdict = record.verdict,
                        reason = record.reason,
                        direction = record.direction,
                        cell = record.cell,
                        rule = record.rule,
                        document = record.document,
                        field = record.field,
                        src = record.src,
                        dst = record.dst,
                        dport = record.dport,
                        proto = record.proto,
                        "event"
                    );
                    kept.push(record);
                }
                Err(error) => {
                    tracing::error!(%error, "the kernel's events cannot be read any more; verdicts are not touched by that");
                    return;
                }
            }
        }
    });
    Ok(Events {
        recent,
        task: Mutex::new(Some(task)),
    })
}

/// The kernel's counters as metrics, read when somebody scrapes.
pub struct PacketCounters {
    datapath: Datapath,
    current: Current,
}

impl PacketCounters {
    /// Counters of a datapath, with the names of the active generation.
    pub fn new(datapath: Datapath, current: Current) -> Self {
        Self { datapath, current }
    }
}

impl fmt::Debug for PacketCounters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PacketCounters").finish_non_exhaustive()
    }
}

impl PacketCounters {
    /// One series per rule of the active generation: a rule that it does not have is counted no more.
    fn encode_rules(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        active: Option<&Active>,
    ) -> fmt::Result {
        let hits = self.datapath.hits().unwrap_or_else(|error| {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "failed to read the kernel's counts of rules"
            );
            BTreeMap::new()
        });
        let counters = ConstCounter::new(0u64);
        let mut family = encoder.encode_descriptor(
            "rule_connections",
            "Connections that a rule decided, at each gate that they met",
            None,
            counters.metric_type(),
        )?;
        for (number, connections) in hits {
            if let Some(rule) = active.and_then(|active| active.rule(number)) {
                let (document, field) = (rule.document(), rule.field());
                let labels = [
                    ("rule", rule.text()),
                    ("document", document.as_str()),
                    ("field", field.as_str()),
                ];
                ConstCounter::new(connections).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

type Value = fn(&CounterRow) -> u64;

impl Collector for PacketCounters {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let rows = self.datapath.counters().map_err(|error| {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "failed to read the kernel's counters"
            );
            fmt::Error
        })?;
        let active = self
            .current
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let series: [(&str, &str, Value); 2] = [
            ("datapath_packets", "Judged packets", |row| row.packets),
            (
                "datapath_bytes",
                "Bytes of judged packets, with link-layer header",
                |row| row.bytes,
            ),
        ];
        for (name, help, value) in series {
            let counters = ConstCounter::new(0u64);
            let mut family = encoder.encode_descriptor(name, help, None, counters.metric_type())?;
            for row in &rows {
                let cell = active
                    .as_ref()
                    .map_or("", |active| active.cell_name(row.cell));
                let labels = [
                    ("cell", cell),
                    ("direction", row.path.name()),
                    ("way", row.way.name()),
                    ("verdict", row.verdict.name()),
                    ("reason", row.reason.name()),
                ];
                ConstCounter::new(value(row)).encode(family.encode_family(&labels)?)?;
            }
        }
        self.encode_rules(&mut encoder, active.as_deref())?;
        for (kind, name) in [
            (Lost::Event, "events"),
            (Lost::Counter, "counters"),
            (Lost::Translation, "translations"),
            (Lost::Hit, "hits"),
            (Lost::Suppressed, "suppressed_events"),
            (Lost::Affinity, "affinities"),
        ] {
            let lost = self.datapath.lost(kind).unwrap_or_else(|error| {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "failed to read what was lost"
                );
                0
            });
            let counter = ConstCounter::new(lost);
            let metric = format!("datapath_lost_{name}");
            let descriptor = encoder.encode_descriptor(
                &metric,
                "Records that the kernel could not keep; no verdict changes by that",
                None,
                counter.metric_type(),
            )?;
            counter.encode(descriptor)?;
        }
        let held = ConstGauge::new(self.datapath.held().len() as u64);
        let descriptor = encoder.encode_descriptor(
            "datapath_quarantined_interfaces",
            "New interfaces whose packets are all dropped until it is known whose they are",
            None,
            held.metric_type(),
        )?;
        held.encode(descriptor)?;
        let expired = ConstCounter::new(self.datapath.expired());
        let descriptor = encoder.encode_descriptor(
            "datapath_quarantine_expired",
            "Interfaces that were released because nobody said in time whose they are",
            None,
            expired.metric_type(),
        )?;
        expired.encode(descriptor)
    }
}
