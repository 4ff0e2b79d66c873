//! What is told of requests: lines, spans, and no secret in either.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use cardinal_agent::proxy::ProxyConfig;
use cardinal_agent::telemetry::{AccessLog, TelemetrySettings, Traces};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use serde_json::{Value, json};

use crate::access::{SHOP, metrics, policy, world};
use crate::auth::Issuer;
use crate::support::{Body, Reply, Router, echo, free_port, full, get, send, serve, until};

/// A collector that speaks OTLP over HTTP and keeps what it gets.
#[derive(Clone, Default)]
struct Collector {
    /// Each request as it came, so that texts can be looked for in it.
    bodies: Arc<Mutex<Vec<Vec<u8>>>>,
    /// Statuses of the next answers; then 200.
    statuses: Arc<Mutex<Vec<u16>>>,
    rejected: Arc<Mutex<i64>>,
}

impl Collector {
    async fn start(&self) -> String {
        let this = self.clone();
        let at = serve(move |request| this.clone().take(request)).await;
        format!("http://{at}")
    }

    async fn take(self, request: Request<Incoming>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        assert_eq!(
            (parts.method.as_str(), parts.uri.path()),
            ("POST", "/v1/traces")
        );
        assert_eq!(parts.headers["content-type"], "application/x-protobuf");
        let body = body.collect().await.expect("a body").to_bytes();
        let next = self.statuses.lock().expect("nobody panicked").pop();
        let mut response = Response::new(full(String::new()));
        match next {
            Some(status) => {
                *response.status_mut() = StatusCode::from_u16(status).expect("a status")
            }
            None => {
                self.bodies
                    .lock()
                    .expect("nobody panicked")
                    .push(body.to_vec());
                let rejected_spans = *self.rejected.lock().expect("nobody panicked");
                let answer = ExportTraceServiceResponse {
                    partial_success: (rejected_spans > 0).then(|| ExportTracePartialSuccess {
                        rejected_spans,
                        error_message: "too many".into(),
                    }),
                };
                // Messages with small numbers and ASCII are text as well.
                let text = String::from_utf8(answer.encode_to_vec()).expect("it is ASCII");
                response = Response::new(full(text));
            }
        }
        response
    }

    fn spans(&self) -> Vec<Span> {
        let bodies = self.bodies.lock().expect("nobody panicked");
        let decoded = bodies
            .iter()
            .map(|body| ExportTraceServiceRequest::decode(&body[..]).expect("it is OTLP"));
        decoded
            .flat_map(|request| request.resource_spans)
            .flat_map(|resource| resource.scope_spans)
            .flat_map(|scope| scope.spans)
            .collect()
    }

    /// Waits for so many spans.
    async fn wait(&self, count: usize) -> Vec<Span> {
        until("spans", || self.spans().len() >= count).await;
        self.spans()
    }
}

fn attribute(span: &Span, key: &str) -> Value {
    let found = span.attributes.iter().find(|one| one.key == key);
    match found.and_then(|one| one.value.as_ref()?.value.as_ref()) {
        Some(Any::StringValue(text)) => json!(text),
        Some(Any::IntValue(number)) => json!(number),
        None => Value::Null,
        Some(other) => panic!("{key}: {other:?}"),
    }
}

fn config(collector: &str, ratio: f64, access_log: Option<AccessLog>) -> ProxyConfig {
    ProxyConfig {
        telemetry: TelemetrySettings {
            access_log,
            traces: Some(Traces {
                collector: collector.parse().expect("a collector"),
                ratio,
                linger: Duration::from_millis(50),
            }),
        },
        ..ProxyConfig::default()
    }
}

async fn ask(at: u16, uri: &str, headers: &[(&str, &str)]) -> Reply {
    let mut request = get(uri);
    for (name, value) in headers {
        let name: http::HeaderName = name.parse().expect("a name");
        request
            .headers_mut()
            .append(name, value.parse().expect("a value"));
    }
    send(([127, 0, 0, 1], at).into(), request).await
}

/// Waits until the router's series have this.
async fn counted(router: &Router, series: &str) {
    until(series, || metrics(router).contains(series)).await;
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

#[tokio::test]
async fn proxy_sends_spans_to_a_collector_and_continues_traces() {
    let up = echo("a").await;
    let collector = Collector::default();
    // A collector that is busy at first gets the same spans again.
    collector
        .statuses
        .lock()
        .expect("nobody panicked")
        .push(503);
    let uri = collector.start().await;
    let at = free_port();
    let router = Router::with(&world(at, up, ""), config(&uri, 1.0, None));
    let parent = format!("00-{TRACE}-00f067aa0ba902b7-01");
    let headers = [("traceparent", parent.as_str()), ("tracestate", "a=1")];
    let answer = ask(at, "http://x/shop?token=hidden", &headers).await;
    let seen = answer.seen("traceparent");
    assert_eq!(answer.seen("tracestate"), ["a=1"]);
    let spans = collector.wait(2).await;
    let hex = |bytes: &[u8]| {
        bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    // SPAN_KIND_SERVER and SPAN_KIND_CLIENT.
    let server = spans
        .iter()
        .find(|span| span.kind == 2)
        .expect("a server's");
    let client = spans
        .iter()
        .find(|span| span.kind == 3)
        .expect("a client's");
    assert_eq!(hex(&server.trace_id), TRACE);
    assert_eq!(hex(&server.parent_span_id), "00f067aa0ba902b7");
    assert_eq!(client.parent_span_id, server.span_id);
    assert_eq!(seen, [format!("00-{TRACE}-{}-01", hex(&client.span_id))]);
    assert!(server.start_time_unix_nano <= client.start_time_unix_nano);
    assert!(client.start_time_unix_nano <= client.end_time_unix_nano);
    assert!(client.end_time_unix_nano <= server.end_time_unix_nano);
    for (key, value) in [
        ("http.request.method", json!("GET")),
        ("url.path", json!("/shop")),
        ("server.address", json!("x")),
        ("http.response.status_code", json!(200)),
        ("http.route", json!("default/shop")),
        ("cardinal.rule", json!(0)),
        ("cardinal.generation", json!(1)),
        ("cardinal.reason", json!("ok")),
    ] {
        assert_eq!(attribute(server, key), value, "{key}");
    }
    // Whoever does not record is not recorded; who begins here is.
    let unsampled = parent.replace("-01", "-00");
    let answer = ask(at, "http://x/quiet", &[("traceparent", &unsampled)]).await;
    assert!(answer.seen("traceparent")[0].ends_with("-00"));
    let answer = ask(
        at,
        "http://x/new",
        &[("traceparent", "rubbish"), ("tracestate", "a=1")],
    )
    .await;
    assert_eq!(answer.seen("tracestate"), Vec::<String>::new());
    collector.wait(4).await;
    let record = router
        .record(|one| one.path.as_deref() == Some("/new"))
        .await;
    assert!(record.trace.parent == 0 && record.trace.sampled);
    assert!(record.request_us.is_some() && record.upstream_us.is_some());
    let paths: Vec<Value> = collector
        .spans()
        .iter()
        .map(|span| attribute(span, "url.path"))
        .collect();
    assert!(!paths.contains(&json!("/quiet")), "{paths:?}");
    counted(&router, "telemetry_spans_total{result=\"sent\"} 2").await;
}

#[tokio::test]
async fn proxy_serves_on_while_the_collector_does_not_and_tells_the_rest_at_the_end() {
    let up = echo("a").await;
    let (at, nobody) = (free_port(), free_port());
    let router = Router::with(
        &world(at, up, ""),
        config(&format!("http://127.0.0.1:{nobody}"), 1.0, None),
    );
    for _ in 0..50 {
        assert_eq!(ask(at, "http://x/", &[]).await.status, 200);
    }
    counted(&router, "telemetry_spans_total{result=\"failed\"}").await;

    // What waits when the router ends is told.
    let collector = Collector::default();
    *collector.rejected.lock().expect("nobody panicked") = 1;
    let uri = collector.start().await;
    let at = free_port();
    let mut patient = config(&uri, 1.0, None);
    if let Some(traces) = &mut patient.telemetry.traces {
        traces.linger = Duration::from_secs(3600);
    }
    let router = Router::with(&world(at, up, ""), patient);
    assert_eq!(ask(at, "http://x/last", &[]).await.status, 200);
    router
        .record(|one| one.path.as_deref() == Some("/last"))
        .await;
    assert!(collector.spans().is_empty());
    tokio::task::spawn_blocking(move || drop(router))
        .await
        .expect("it ends");
    assert_eq!(collector.spans().len(), 2);
    // No share of the traces that begin here.
    let at = free_port();
    let router = Router::with(&world(at, up, ""), config(&uri, 0.0, None));
    assert!(ask(at, "http://x/none", &[]).await.seen("traceparent")[0].ends_with("-00"));
    let record = router
        .record(|one| one.path.as_deref() == Some("/none"))
        .await;
    assert!(!record.trace.sampled);
}

#[tokio::test]
async fn proxy_tells_no_secret_in_lines_spans_or_dumps() {
    let up = echo("a").await;
    let issuer = Issuer::new(None, &[]);
    let collector = Collector::default();
    let uri = collector.start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("access.jsonl");
    let at = free_port();
    let more = policy(
        "p",
        SHOP,
        &format!(
            "  apiKeyAuth:
    credentialRefs: [{{ name: clients }}]
    extractFrom: [{{ params: [key], headers: [x-api-key] }}]
  jwt:
    providers:
      - name: idp
        localJWKS: {{ inline: '{}' }}
        extractFrom:
          headers: [{{ name: Authorization, valuePrefix: 'Bearer ' }}]
          cookies: [session]
          params: [access_token]",
            issuer.jwks()
        ),
    ) + "---
apiVersion: v1
kind: Secret
metadata: { name: clients }
type: Opaque
stringData: { acme: s3cret-key }
";
    let log = Some(AccessLog::File(file.clone()));
    let router = Router::with(&world(at, up, &more), config(&uri, 1.0, log));
    let token = issuer.token(json!({"sub": "ann", "email": "ann@example.com"}));
    let bearer = format!("Bearer {token}");
    let cookie = format!("session={token}; other=s3cret-cookie");
    let expired = format!("Bearer {}", issuer.token(json!({"exp": 1})));
    let uri = format!("http://x/a?key=s3cret-key&access_token={token}&q=s3cret-query");
    for (path, headers, status) in [
        (uri.as_str(), vec![("authorization", bearer.as_str())], 200),
        (
            "http://x/b?key=s3cret-key",
            vec![("cookie", cookie.as_str())],
            200,
        ),
        (
            "http://x/c?key=s3cret-wrong",
            vec![("authorization", bearer.as_str())],
            401,
        ),
        (
            "http://x/d",
            vec![
                ("x-api-key", "s3cret-key"),
                ("authorization", expired.as_str()),
            ],
            401,
        ),
        (
            "http://x/e?key=s3cret-key",
            vec![("authorization", "Bearer s3cret.s3cret.s3cret")],
            401,
        ),
    ] {
        assert_eq!(ask(at, path, &headers).await.status, status, "{path}");
    }
    let spans = collector.wait(7).await;
    assert!(
        spans
            .iter()
            .any(|span| attribute(span, "cardinal.reason") == "credential_invalid")
    );
    let read = || std::fs::read_to_string(&file).expect("the file is there");
    until("five lines", || read().lines().count() >= 5).await;
    let lines = read();
    let parsed: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).expect("each line is JSON"))
        .collect();
    assert_eq!(parsed.len(), 5, "{lines}");
    let first = parsed
        .iter()
        .find(|line| line["path"] == "/a")
        .expect("a line");
    for field in [
        "trace_id",
        "span_id",
        "request_id",
        "route",
        "rule",
        "generation",
        "reason",
        "request_us",
        "upstream_us",
        "duration_us",
    ] {
        assert!(!first[field].is_null(), "{field} is in {first}");
    }
    let bodies: Vec<String> = collector
        .bodies
        .lock()
        .expect("nobody panicked")
        .iter()
        .map(|body| String::from_utf8_lossy(body).into_owned())
        .collect();
    let records = router.proxy.log().since(0);
    let dumps = format!(
        "{:?} {} {:?} {:?} {:?}",
        records,
        serde_json::to_string(&records.iter().map(|one| &**one).collect::<Vec<_>>()).expect("JSON"),
        router.table.load(),
        router.proxy.keys().status(),
        metrics(&router),
    );
    let (head, signature) = token.rsplit_once('.').expect("a token");
    let payload = head.split_once('.').expect("a token").1;
    for (what, text) in [
        ("lines", lines),
        ("spans", bodies.concat()),
        ("dumps", dumps),
    ] {
        for secret in ["s3cret", payload, signature, "ann@example.com"] {
            assert!(!text.contains(secret), "{what} show {secret}");
        }
    }
}
