//! What the router tells others of its requests: lines of an access log, and spans of traces.
//!
//! Flows in: records of requests that ended. Flows out: JSON lines to a file or standard output, and spans
//! to a collector by OTLP. Each has a thread and a queue of bounded length: a record that finds its queue
//! full is dropped and counted, and no request waits. Both are off unless they are asked for.
//! What it deliberately does not do: it reads no request. A record has no query, no header and no body, so
//! that no credential can be in what is told.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tokio::sync::{mpsc, oneshot};

use crate::proxy::AccessRecord;
use crate::upstream::{Reach, Settings};

mod access_log;
mod otlp;
mod span;

pub use otlp::{Collector, CollectorError};

/// Records that wait for a thread, at most.
const QUEUE: usize = 8192;

/// What is told, and to whom. Nothing by default.
#[derive(Clone, Debug, Default)]
pub struct TelemetrySettings {
    /// Where lines of the access log go.
    pub access_log: Option<AccessLog>,
    /// Where spans go.
    pub traces: Option<Traces>,
}

/// Where lines of the access log go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessLog {
    /// Standard output.
    Stdout,
    /// The end of a file.
    File(PathBuf),
}

/// Where spans go, and how many.
#[derive(Clone, Debug)]
pub struct Traces {
    /// The collector.
    pub collector: Collector,
    /// Share of the traces that begin here; those that a caller began are recorded if he records them.
    pub ratio: f64,
    /// Until a batch is sent that is not full.
    pub linger: Duration,
}

/// Hands records over. Cheap, and never waits.
#[derive(Debug)]
pub struct Sinks {
    access_log: Option<mpsc::Sender<Arc<AccessRecord>>>,
    traces: Option<mpsc::Sender<Arc<AccessRecord>>>,
    /// Share of new traces that are recorded; none: requests get no context.
    ratio: Option<f64>,
    lines_dropped: Counter,
    spans_dropped: Counter,
    metrics: Metrics,
}

/// The threads. Dropping it tells what is in the queues, for a short time, and ends them.
#[derive(Debug, Default)]
pub struct Telemetry {
    threads: Vec<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        for (stop, thread) in self.threads.drain(..) {
            // A thread that is gone already hears nothing.
            let _ = stop.send(());
            if thread.join().is_err() {
                tracing::error!("a thread of the telemetry panicked");
            }
        }
    }
}

/// Starts what is asked for.
///
/// # Errors
/// The access log's file cannot be opened, or a thread cannot be made.
pub fn start(settings: &TelemetrySettings, upstream: &Settings) -> io::Result<(Sinks, Telemetry)> {
    let mut sinks = Sinks::default();
    let mut telemetry = Telemetry::default();
    if settings.access_log.is_some() || settings.traces.is_some() {
        // Lines name traces, also where nobody collects spans.
        sinks.ratio = Some(settings.traces.as_ref().map_or(0.0, |traces| traces.ratio));
    }
    if let Some(target) = &settings.access_log {
        let writer = access_log::open(target)?;
        let (sender, records) = mpsc::channel(QUEUE);
        let metrics = sinks.metrics.clone();
        telemetry.spawn("access-log", move |stop| {
            access_log::run(writer, records, stop, &metrics);
        })?;
        sinks.access_log = Some(sender);
    }
    if let Some(traces) = settings.traces.clone() {
        let (sender, records) = mpsc::channel(QUEUE);
        let metrics = sinks.metrics.clone();
        // Where the collector is said whoever started the agent.
        let upstream = Settings {
            reach: Reach::Anywhere,
            ..upstream.clone()
        };
        telemetry.spawn("traces", move |stop| {
            otlp::run(traces, upstream, records, stop, &metrics);
        })?;
        sinks.traces = Some(sender);
    }
    Ok((sinks, telemetry))
}

impl Telemetry {
    fn spawn(
        &mut self,
        name: &str,
        run: impl FnOnce(oneshot::Receiver<()>) + Send + 'static,
    ) -> io::Result<()> {
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || run(stopped))?;
        self.threads.push((stop, thread));
        Ok(())
    }
}

impl Default for Sinks {
    fn default() -> Self {
        let metrics = Metrics::default();
        let dropped = Labels { result: "dropped" };
        let lines_dropped = metrics.lines.get_or_create(&dropped).clone();
        let spans_dropped = metrics.spans.get_or_create(&dropped).clone();
        Self {
            access_log: None,
            traces: None,
            ratio: None,
            lines_dropped,
            spans_dropped,
            metrics,
        }
    }
}

impl Sinks {
    /// Share of new traces that are recorded; none: requests get no context.
    pub(crate) fn ratio(&self) -> Option<f64> {
        self.ratio
    }

    /// Hands a record to whoever is there for it.
    pub(crate) fn tell(&self, record: &AccessRecord) {
        let traced = record.trace.sampled && self.traces.is_some();
        if self.access_log.is_none() && !traced {
            return;
        }
        let record = Arc::new(record.clone());
        if let Some(sender) = &self.access_log
            && sender.try_send(Arc::clone(&record)).is_err()
        {
            self.lines_dropped.inc();
        }
        if record.trace.sampled
            && let Some(sender) = &self.traces
            && sender.try_send(Arc::clone(&record)).is_err()
        {
            self.spans_dropped.inc();
        }
    }

    /// Adds the series of the telemetry itself.
    pub(crate) fn register(&self, registry: &mut Registry) {
        self.metrics.register(registry);
    }
}

#[derive(Clone, Debug, Default)]
struct Metrics {
    lines: Family<Labels, Counter>,
    spans: Family<Labels, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    result: &'static str,
}

impl Metrics {
    fn register(&self, registry: &mut Registry) {
        registry.register(
            "telemetry_access_lines",
            "Lines of the access log, by what became of them",
            self.lines.clone(),
        );
        registry.register(
            "telemetry_spans",
            "Recorded requests for the collector, by what became of them",
            self.spans.clone(),
        );
    }

    fn lines(&self, result: &'static str, count: u64) {
        self.lines.get_or_create(&Labels { result }).inc_by(count);
    }

    fn spans(&self, result: &'static str, count: u64) {
        self.spans.get_or_create(&Labels { result }).inc_by(count);
    }
}
