//! A record as spans (OpenTelemetry, semantic conventions for HTTP): one of the router as a server, and if
//! an upstream was asked, one of the router as its client.

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};

use crate::proxy::AccessRecord;

/// A batch of records as one request.
pub(super) fn request<'a>(
    records: impl Iterator<Item = &'a AccessRecord>,
) -> ExportTraceServiceRequest {
    let resource = Resource {
        attributes: vec![
            text("service.name", "cardinal-agent"),
            text("service.version", env!("CARGO_PKG_VERSION")),
        ],
        ..Resource::default()
    };
    let scope = InstrumentationScope {
        name: "cardinal.router".into(),
        ..InstrumentationScope::default()
    };
    let spans = ScopeSpans {
        scope: Some(scope),
        spans: records.flat_map(spans).collect(),
        ..ScopeSpans::default()
    };
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(resource),
            scope_spans: vec![spans],
            ..ResourceSpans::default()
        }],
    }
}

fn spans(record: &AccessRecord) -> Vec<Span> {
    let trace = &record.trace;
    let span = |id: u64, parent: u64, kind: SpanKind, start_us: u64, end_us: u64| Span {
        trace_id: trace.trace.to_be_bytes().to_vec(),
        span_id: id.to_be_bytes().to_vec(),
        parent_span_id: match parent {
            0 => Vec::new(),
            parent => parent.to_be_bytes().to_vec(),
        },
        kind: kind as i32,
        start_time_unix_nano: record.start_ns + start_us * 1000,
        end_time_unix_nano: record.start_ns + end_us * 1000,
        ..Span::default()
    };
    let method = record.method.as_deref().unwrap_or("CONNECT");
    let route = record.route.as_deref();
    let mut server = span(
        trace.span,
        trace.parent,
        SpanKind::Server,
        0,
        record.duration_us,
    );
    server.name = match route {
        Some(route) => format!("{method} {route}"),
        None => method.to_owned(),
    };
    server.attributes = attributes(record);
    if record.status >= 500 || record.status == 0 {
        server.status = Some(Status {
            code: StatusCode::Error as i32,
            message: record.reason.as_str().to_owned(),
        });
    }
    let mut all = vec![server];
    if let (Some(asked), true) = (record.request_us, trace.upstream != 0) {
        let end = record
            .upstream_us
            .map_or(record.duration_us, |took| asked + took);
        let mut client = span(trace.upstream, trace.span, SpanKind::Client, asked, end);
        client.name = format!("{method} upstream");
        client.attributes = [
            Some(text("http.request.method", method)),
            record
                .upstream
                .as_deref()
                .map(|peer| text("network.peer.address", peer)),
        ]
        .into_iter()
        .flatten()
        .collect();
        if record.upstream_us.is_none() {
            client.status = Some(Status {
                code: StatusCode::Error as i32,
                message: record.reason.as_str().to_owned(),
            });
        }
        all.push(client);
    }
    all
}

/// Of a record only what its own fields tell: no query, no header.
fn attributes(record: &AccessRecord) -> Vec<KeyValue> {
    let id = record.request_id.to_string();
    let texts = [
        ("http.request.method", record.method.as_deref()),
        ("url.path", record.path.as_deref()),
        ("server.address", record.host.as_deref()),
        ("http.route", record.route.as_deref()),
        ("client.address", record.client.as_deref()),
        ("cardinal.request_id", Some(id.as_str())),
        ("cardinal.reason", Some(record.reason.as_str())),
        ("cardinal.cell", record.cell.as_deref()),
        ("cardinal.direction", record.direction),
        ("cardinal.listener", record.listener.as_deref()),
        ("cardinal.placement", record.placement.as_deref()),
        ("cardinal.caller", record.caller.as_deref()),
    ];
    let mut attributes: Vec<KeyValue> = texts
        .into_iter()
        .filter_map(|(key, value)| {
            value
                .filter(|value| !value.is_empty())
                .map(|one| text(key, one))
        })
        .collect();
    attributes.push(number("http.response.status_code", record.status.into()));
    attributes.push(number("http.request.body.size", record.bytes_in));
    attributes.push(number("http.response.body.size", record.bytes_out));
    attributes.push(number("cardinal.generation", record.generation));
    if let Some(rule) = record.rule {
        attributes.push(number("cardinal.rule", rule as u64));
    }
    attributes
}

fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(value.to_owned()))
}

fn number(key: &str, value: u64) -> KeyValue {
    attribute(
        key,
        Value::IntValue(i64::try_from(value).unwrap_or(i64::MAX)),
    )
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}
