//! Spans to a collector by OTLP over HTTP (OTLP 1.x, section "OTLP/HTTP"), as protobuf.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::uri::Scheme;
use http::{Request, StatusCode, Uri, header};
use http_body_util::Full;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message;
use rustls_pki_types::ServerName;
use snapshot::model::Hostname;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::{Metrics, Traces, span};
use crate::proxy::AccessRecord;
use crate::route::{RouteTable, TlsPeer};
use crate::upstream::once::{OnceError, once};
use crate::upstream::resolve::Resolver;
use crate::upstream::{self, Destination, Place, Settings, UpstreamError};

/// Records of one request to the collector, at most.
const BATCH: usize = 512;

/// For one request to the collector.
const TIMEOUT: Duration = Duration::from_secs(10);

/// For what is left when the router ends.
const LAST: Duration = Duration::from_secs(2);

/// Requests for one batch, and the wait before the second, doubled before the third.
const TRIES: u32 = 3;
const RETRY: Duration = Duration::from_millis(500);

/// Bytes of the collector's answer.
const MAX_ANSWER: usize = 64 * 1024;

/// Where a collector takes spans.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collector {
    place: Place,
    tls: Option<TlsPeer>,
    authority: String,
    target: String,
}

/// What is wrong with the address of a collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected an `http` or `https` URI without user, such as `http://127.0.0.1:4318/v1/traces`"
)]
pub struct CollectorError;

impl std::str::FromStr for Collector {
    type Err = CollectorError;

    fn from_str(text: &str) -> Result<Self, CollectorError> {
        let uri: Uri = text.parse().map_err(|_| CollectorError)?;
        let tls = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTP => false,
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            _ => return Err(CollectorError),
        };
        let authority = uri.authority().ok_or(CollectorError)?;
        if authority.as_str().contains('@') {
            return Err(CollectorError);
        }
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let host = authority.host().trim_matches(['[', ']']);
        let (place, name) = match host.parse::<std::net::IpAddr>() {
            Ok(address) => (
                Place::Address((address, port).into()),
                ServerName::from(address),
            ),
            Err(_) => {
                let host = Hostname::new(host).map_err(|_| CollectorError)?;
                let name = ServerName::try_from(host.as_str().to_owned());
                (Place::Name(host, port), name.map_err(|_| CollectorError)?)
            }
        };
        Ok(Self {
            place,
            tls: tls.then_some(TlsPeer::from(name)),
            authority: authority.to_string(),
            // The default path of the signal (OTLP/HTTP Request).
            target: match uri.path_and_query().map(http::uri::PathAndQuery::as_str) {
                None | Some("/") => "/v1/traces".to_owned(),
                Some(target) => target.to_owned(),
            },
        })
    }
}

/// Why a batch did not arrive.
#[derive(Debug, thiserror::Error)]
enum ExportError {
    #[error("no connection")]
    Connect(#[source] UpstreamError),
    #[error("the request broke")]
    Http(#[source] OnceError),
    #[error("the request cannot be made")]
    Request(#[source] http::Error),
    #[error("expected status 200, got {0}")]
    Status(StatusCode),
    #[error("not finished within {TIMEOUT:?}")]
    Timeout,
}

impl ExportError {
    /// Whether another try may help (OTLP/HTTP, "Retryable Response Codes").
    fn passes(&self) -> bool {
        match self {
            Self::Connect(_) | Self::Http(_) | Self::Timeout => true,
            Self::Request(_) => false,
            Self::Status(status) => matches!(status.as_u16(), 429 | 502 | 503 | 504),
        }
    }
}

struct Exporter<'a> {
    traces: Traces,
    settings: Settings,
    resolver: Resolver,
    table: RouteTable,
    metrics: &'a Metrics,
}

/// Sends until it is told to stop, and then what is left.
pub(super) fn run(
    traces: Traces,
    settings: Settings,
    mut records: mpsc::Receiver<Arc<AccessRecord>>,
    mut stop: oneshot::Receiver<()>,
    metrics: &Metrics,
) {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default());
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return tracing::error!(%error, "no span is sent"),
    };
    let exporter = Exporter {
        traces,
        settings,
        resolver: Resolver::default(),
        table: RouteTable::default(),
        metrics,
    };
    runtime.block_on(async {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                taken = exporter.collect(&mut records, &mut batch) => {
                    if !taken {
                        return;
                    }
                    // A collector that is down must not hold the end up.
                    tokio::select! {
                        () = exporter.send(&batch) => batch.clear(),
                        _ = &mut stop => break,
                    }
                }
                _ = &mut stop => break,
            }
        }
        records.close();
        let rest = async {
            loop {
                if !batch.is_empty() {
                    exporter.send(&batch).await;
                    batch.clear();
                }
                if records.recv_many(&mut batch, BATCH).await == 0 {
                    return;
                }
            }
        };
        if tokio::time::timeout(LAST, rest).await.is_err() {
            tracing::warn!("the collector did not take the last spans in time");
        }
    });
}

impl Exporter<'_> {
    /// Waits for a record, and then for more until the batch is full or old. False: there will be none.
    async fn collect(
        &self,
        records: &mut mpsc::Receiver<Arc<AccessRecord>>,
        batch: &mut Vec<Arc<AccessRecord>>,
    ) -> bool {
        if batch.is_empty() && records.recv_many(batch, BATCH).await == 0 {
            return false;
        }
        let until = Instant::now() + self.traces.linger;
        while batch.len() < BATCH {
            let room = BATCH - batch.len();
            match tokio::time::timeout_at(until, records.recv_many(batch, room)).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
        }
        true
    }

    async fn send(&self, batch: &[Arc<AccessRecord>]) {
        let count = batch.len() as u64;
        let body = Bytes::from(span::request(batch.iter().map(|one| &**one)).encode_to_vec());
        let mut wait = RETRY;
        for tried in 1..=TRIES {
            let sent = tokio::time::timeout(TIMEOUT, self.post(body.clone()));
            let error = match sent.await.unwrap_or(Err(ExportError::Timeout)) {
                Ok(rejected) => {
                    let rejected = u64::try_from(rejected).unwrap_or(0).min(count);
                    self.metrics.spans("rejected", rejected);
                    self.metrics.spans("sent", count - rejected);
                    return;
                }
                Err(error) => error,
            };
            if tried == TRIES || !error.passes() {
                let error = format!("{:#}", anyhow::Error::new(error));
                tracing::warn!(
                    error,
                    spans = count,
                    "failed to send spans to the collector"
                );
                self.metrics.spans("failed", count);
                return;
            }
            tokio::time::sleep(wait).await;
            wait *= 2;
        }
    }

    /// One request; answers with how many spans the collector did not want.
    async fn post(&self, body: Bytes) -> Result<i64, ExportError> {
        let collector = &self.traces.collector;
        let destination = Destination {
            place: collector.place.clone(),
            tls: collector.tls.clone(),
            http2: false,
            mark: None,
            host: None,
            outside: false,
            owner: None,
            terms: None,
        };
        let connected =
            upstream::connect(&destination, &self.settings, &self.resolver, &self.table)
                .await
                .map_err(ExportError::Connect)?;
        let request = Request::post(&collector.target)
            .header(header::HOST, &collector.authority)
            .header(header::CONTENT_TYPE, "application/x-protobuf")
            .header(header::USER_AGENT, "cardinal-agent")
            .body(Full::new(body))
            .map_err(ExportError::Request)?;
        let (status, answer) = once(connected.stream, request, MAX_ANSWER)
            .await
            .map_err(ExportError::Http)?;
        if status != StatusCode::OK {
            return Err(ExportError::Status(status));
        }
        // An answer in another form says nothing of spans that were not wanted.
        let answer = ExportTraceServiceResponse::decode(answer).unwrap_or_default();
        Ok(answer
            .partial_success
            .map_or(0, |partial| partial.rejected_spans))
    }
}

#[cfg(test)]
mod tests {
    use super::Collector;

    #[test]
    fn collectors_are_http_uris_and_have_the_usual_path() {
        for (given, target, tls) in [
            ("http://127.0.0.1:4318", "/v1/traces", false),
            ("http://127.0.0.1:4318/", "/v1/traces", false),
            ("https://otel.example.com/custom?x=1", "/custom?x=1", true),
            ("http://[::1]:4318/v1/traces", "/v1/traces", false),
        ] {
            let read: Collector = given.parse().expect(given);
            assert_eq!(
                (read.target.as_str(), read.tls.is_some()),
                (target, tls),
                "{given}"
            );
        }
        for given in [
            "",
            "127.0.0.1:4318",
            "grpc://x:4317",
            "http://me:pass@x/",
            "http://a b/",
        ] {
            assert!(given.parse::<Collector>().is_err(), "{given}");
        }
    }
}
