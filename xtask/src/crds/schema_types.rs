//! Values that several kinds have.

#![expect(dead_code, reason = "types of which only the schema is used")]

use std::{borrow::Cow, collections::BTreeMap};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

/// A DNS label (RFC 1123): what projects, components and the like are called.
#[derive(JsonSchema)]
pub(super) struct Name(
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    String,
);

/// The name of an object (RFC 1123, with dots).
#[derive(JsonSchema)]
pub(super) struct ObjectName(
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    )]
    String,
);

/// A host name without wildcards.
#[derive(JsonSchema)]
pub(super) struct Host(
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?$")
    )]
    String,
);

/// An address without a prefix length.
#[derive(JsonSchema)]
pub(super) struct Address(
    #[schemars(length(min = 2, max = 45), regex(pattern = r"^[0-9A-Fa-f:.]+$"))] String,
);

/// A network with its prefix length.
#[derive(JsonSchema)]
pub(super) struct Network(
    #[schemars(
        length(min = 4, max = 49),
        regex(pattern = r"^[0-9A-Fa-f:.]+/[0-9]{1,3}$")
    )]
    String,
);

/// An address, or a network with its prefix length.
#[derive(JsonSchema)]
pub(super) struct AddressOrNetwork(
    #[schemars(
        length(min = 2, max = 49),
        regex(pattern = r"^[0-9A-Fa-f:.]+(/[0-9]{1,3})?$")
    )]
    String,
);

#[derive(JsonSchema)]
pub(super) struct Port(#[schemars(range(min = 1, max = 65535))] u16);

/// A duration as Go writes it.
#[derive(JsonSchema)]
pub(super) struct Duration(
    #[schemars(
        length(max = 64),
        regex(pattern = r"^\+?(([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))+$")
    )]
    String,
);

/// A base URL.
#[derive(JsonSchema)]
pub(super) struct Url(
    #[schemars(length(max = 300), regex(pattern = r"^https?://[^/?#@\s]+/?$"))]
    String,
);

/// A text that is not empty, with a limit that keeps the cost of validations known.
pub(super) struct Text<const MAX: usize>(String);

impl<const MAX: usize> JsonSchema for Text<MAX> {
    fn schema_name() -> Cow<'static, str> {
        format!("Text{MAX}").into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "minLength": 1, "maxLength": MAX })
    }
}

/// Labels, one or more: none would select every pod.
#[derive(JsonSchema)]
pub(super) struct Labels(#[schemars(extend("minProperties" = 1))] BTreeMap<String, String>);

#[derive(JsonSchema)]
#[schemars(rename_all = "UPPERCASE")]
pub(super) enum Protocol {
    Tls,
    Https,
    Http,
    Tcp,
    Udp,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "UPPERCASE")]
pub(super) enum Transport {
    Tcp,
    Udp,
}

/// How connections to service addresses are led, in the words of a Kubernetes `Service`.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
pub(super) struct ServiceTraffic {
    /// `ClientIP` leads all connections of a client to one workload.
    session_affinity: Option<SessionAffinity>,
    /// For how long; needs `sessionAffinity: ClientIP`.
    session_affinity_config: Option<SessionAffinityConfig>,
    /// Workloads that are preferred to others.
    traffic_distribution: Option<TrafficDistribution>,
}

#[derive(JsonSchema)]
enum SessionAffinity {
    None,
    #[schemars(rename = "ClientIP")]
    ClientIp,
}

#[derive(JsonSchema)]
struct SessionAffinityConfig {
    #[schemars(rename = "clientIP")]
    client_ip: Option<ClientIp>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct ClientIp {
    /// Seconds; 10800 without it.
    #[schemars(range(min = 1, max = 86400))]
    timeout_seconds: Option<u32>,
}

#[derive(JsonSchema)]
enum TrafficDistribution {
    PreferSameNode,
    PreferSameZone,
}
