//! Documents as they are written: kind by kind, each read on its own.
//!
//! Flows in: trees. Flows out: drafts, whose values are right one by one; whether they fit together
//! is for `link`. A draft that could not be read leaves only its name, so that a reference to it is
//! not reported as well.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::{self, Name, ObjectName};
use crate::reader::{Field, Object, Sink, one_of};
use crate::report::Source;
use crate::tree::{self, Value, shortened};

pub(crate) mod addresses;
pub(crate) mod authorities;
pub(crate) mod backend;
pub(crate) mod backend_tls;
pub(crate) mod cell;
pub(crate) mod client_policy;
pub(crate) mod config_map;
pub(crate) mod duration;
pub(crate) mod filter;
pub(crate) mod gateway;
pub(crate) mod grpc_route;
pub(crate) mod http_route;
pub(crate) mod jwks;
pub(crate) mod l4_route;
pub(crate) mod platform;
pub(crate) mod policy;
pub(crate) mod routing_table;
pub(crate) mod secret;
pub(crate) mod security_policy;
pub(crate) mod template;
pub(crate) mod traffic_policy;

/// API group and version of Cardinal's own kinds.
pub(crate) const CARDINAL: &str = "cardinal.dev/v1alpha1";
/// API group and version of the Gateway API.
pub(crate) const GATEWAY_API: &str = "gateway.networking.k8s.io/v1";
/// API group and version of Envoy Gateway.
pub(crate) const ENVOY_GATEWAY: &str = "gateway.envoyproxy.io/v1alpha1";

/// Earlier versions of routes that the Gateway API still serves.
const GATEWAY_API_ALPHA: &str = "gateway.networking.k8s.io/v1alpha2";

/// Kinds with the versions in which each is taken.
const KINDS: [(&str, &[&str]); 17] = [
    ("Cell", &[CARDINAL]),
    ("RoutingTable", &[CARDINAL]),
    ("Platform", &[CARDINAL]),
    ("Gateway", &[GATEWAY_API]),
    ("HTTPRoute", &[GATEWAY_API]),
    ("GRPCRoute", &[GATEWAY_API]),
    ("TLSRoute", &[GATEWAY_API]),
    ("TCPRoute", &[GATEWAY_API, GATEWAY_API_ALPHA]),
    ("UDPRoute", &[GATEWAY_API, GATEWAY_API_ALPHA]),
    ("BackendTLSPolicy", &[GATEWAY_API]),
    ("SecurityPolicy", &[ENVOY_GATEWAY]),
    ("ClientTrafficPolicy", &[ENVOY_GATEWAY]),
    ("BackendTrafficPolicy", &[ENVOY_GATEWAY]),
    ("HTTPRouteFilter", &[ENVOY_GATEWAY]),
    ("Backend", &[ENVOY_GATEWAY]),
    ("Secret", &["v1"]),
    ("ConfigMap", &["v1"]),
];

/// The group of an `apiVersion`.
pub(crate) fn group(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}

/// Objects of one kind by name, with the document of each. No draft: the document has mistakes.
pub(crate) type Table<T> = BTreeMap<ObjectName, (Source, Option<T>)>;

/// Everything that was read.
#[derive(Default)]
pub(crate) struct Drafts {
    pub(crate) platform: Option<(Source, Option<platform::PlatformDraft>)>,
    pub(crate) cells: Table<cell::CellDraft>,
    pub(crate) routing_tables: Table<model::RoutingTable>,
    pub(crate) gateways: Table<gateway::GatewayDraft>,
    pub(crate) http_routes: Table<http_route::RouteDraft>,
    pub(crate) grpc_routes: Table<http_route::RouteDraft>,
    pub(crate) tls_routes: Table<l4_route::L4RouteDraft>,
    pub(crate) tcp_routes: Table<l4_route::L4RouteDraft>,
    pub(crate) udp_routes: Table<l4_route::L4RouteDraft>,
    pub(crate) security_policies: Table<security_policy::PolicyDraft>,
    pub(crate) client_policies: Table<client_policy::ClientDraft>,
    pub(crate) traffic_policies: Table<traffic_policy::TrafficDraft>,
    pub(crate) filters: Table<model::Filter>,
    pub(crate) backends: Table<Vec<model::Upstream>>,
    pub(crate) tls_policies: Table<backend_tls::TlsPolicyDraft>,
    pub(crate) secrets: Table<secret::SecretDraft>,
    pub(crate) config_maps: Table<BTreeMap<String, Vec<u8>>>,
    /// Labels of what policies may select.
    pub(crate) labelled: policy::Labelled,
}

/// Name and document of an object.
pub(crate) struct Meta {
    pub(crate) name: ObjectName,
    pub(crate) declared: Source,
    /// When the object was made, if it says so.
    pub(crate) created: Option<model::Timestamp>,
    pub(crate) labels: policy::Labels,
}

/// Reads every document of a file.
pub(crate) fn read(path: &str, bytes: &[u8], drafts: &mut Drafts, sink: &Sink) {
    let file: Arc<str> = path.into();
    let trees = tree::read(path, bytes);
    if trees.is_empty() {
        let source = Source {
            file,
            document: 1,
            object: "".into(),
            field: "".into(),
            line: 0,
        };
        sink.warning(source, "the file holds no document");
        return;
    }
    for tree in trees {
        let named = tree.root.as_ref().or(tree.partial.as_ref());
        let object = named.map(|root| title(&root.value));
        let source = Source {
            file: file.clone(),
            document: tree.position,
            object: object.unwrap_or_default().into(),
            field: "".into(),
            line: 0,
        };
        let hidden = hidden(&source, bytes);
        for fault in tree.faults {
            let source = Source {
                field: if hidden {
                    "".into()
                } else {
                    fault.field.into()
                },
                line: fault.line,
                ..source.clone()
            };
            sink.mistake(source, fault.message);
        }
        if let Some(root) = &tree.root {
            let source = Source {
                line: root.line,
                ..source
            };
            document(&Field::root(root, source, sink), path, drafts);
        }
    }
}

/// Whether the fields of a document's faults are kept to itself: lines of a private key that are indented
/// wrongly may be among them.
fn hidden(source: &Source, bytes: &[u8]) -> bool {
    let kind = source.object.split(' ').next().unwrap_or_default();
    let known = KINDS.iter().any(|(name, _)| *name == kind);
    let has_key = || {
        bytes
            .windows(PRIVATE_KEY.len())
            .any(|part| part == PRIVATE_KEY)
    };
    kind == "Secret" || (!known && has_key())
}

/// How PEM blocks of private keys begin and end (RFC 7468, sections 10 and 11).
const PRIVATE_KEY: &[u8] = b"PRIVATE KEY";

/// `Kind namespace/name`, as far as it can be told.
fn title(root: &Value) -> String {
    let text = |value: Option<&Value>| match value {
        Some(Value::String(text)) => Some(shortened(text)),
        _ => None,
    };
    let Some(kind) = text(root.get("kind").map(|node| &node.value)) else {
        return String::new();
    };
    let metadata = root.get("metadata").map(|node| &node.value);
    let part = |name| {
        text(
            metadata
                .and_then(|metadata| metadata.get(name))
                .map(|n| &n.value),
        )
    };
    match part("name") {
        Some(name) => {
            let namespace = part("namespace").unwrap_or_else(|| "default".to_owned());
            format!("{kind} {namespace}/{name}")
        }
        None => kind,
    }
}

fn document(root: &Field<'_>, path: &str, drafts: &mut Drafts) {
    let Some(mut object) = root.object() else {
        return;
    };
    if routing_table::is_bare(root.value()) {
        routing_table::bare(root, path, drafts);
        return;
    }
    let api_version = object
        .required("apiVersion")
        .and_then(|field| Some((field.string()?, field)));
    let kind = object
        .required("kind")
        .and_then(|field| Some((field.string()?, field)));
    let (Some((api_version, version_field)), Some((kind, kind_field))) = (api_version, kind) else {
        return;
    };
    let Some((kind, expected)) = KINDS.iter().find(|(name, _)| *name == kind) else {
        kind_field.expected(one_of(KINDS.iter().map(|(name, _)| *name)));
        return;
    };
    if !expected.contains(&api_version) {
        let versions = one_of(expected.iter().copied());
        version_field.expected(format_args!("{versions} for kind {kind}"));
        return;
    }
    let Some(mut meta) = metadata(&mut object) else {
        return;
    };
    object.ignored(&["status"]);
    if let Some(target) = selectable(kind, &meta) {
        let labels = std::mem::take(&mut meta.labels);
        drafts.labelled.entry(target).or_insert(labels);
    }
    match *kind {
        "Cell" => place(
            &mut drafts.cells,
            &meta,
            spec(object, &meta, cell::read),
            root.sink(),
        ),
        "RoutingTable" => place(
            &mut drafts.routing_tables,
            &meta,
            spec(object, &meta, routing_table::read),
            root.sink(),
        ),
        "Platform" => {
            let draft = spec(object, &meta, platform::read);
            match &drafts.platform {
                Some((first, _)) => root.mistake(format_args!(
                    "expected one `Platform`; the first one is in {first}"
                )),
                None => drafts.platform = Some((meta.declared, draft)),
            }
        }
        "Gateway" => place(
            &mut drafts.gateways,
            &meta,
            spec(object, &meta, gateway::read),
            root.sink(),
        ),
        "HTTPRoute" => place(
            &mut drafts.http_routes,
            &meta,
            spec(object, &meta, http_route::read),
            root.sink(),
        ),
        "GRPCRoute" => place(
            &mut drafts.grpc_routes,
            &meta,
            spec(object, &meta, grpc_route::read),
            root.sink(),
        ),
        "TLSRoute" => place(
            &mut drafts.tls_routes,
            &meta,
            spec(object, &meta, l4_route::tls),
            root.sink(),
        ),
        "TCPRoute" => place(
            &mut drafts.tcp_routes,
            &meta,
            spec(object, &meta, l4_route::tcp),
            root.sink(),
        ),
        "UDPRoute" => place(
            &mut drafts.udp_routes,
            &meta,
            spec(object, &meta, l4_route::udp),
            root.sink(),
        ),
        "SecurityPolicy" => place(
            &mut drafts.security_policies,
            &meta,
            spec(object, &meta, security_policy::read),
            root.sink(),
        ),
        "ClientTrafficPolicy" => place(
            &mut drafts.client_policies,
            &meta,
            spec(object, &meta, client_policy::read),
            root.sink(),
        ),
        "BackendTrafficPolicy" => place(
            &mut drafts.traffic_policies,
            &meta,
            spec(object, &meta, traffic_policy::read),
            root.sink(),
        ),
        "HTTPRouteFilter" => place(
            &mut drafts.filters,
            &meta,
            spec(object, &meta, filter::read),
            root.sink(),
        ),
        "BackendTLSPolicy" => place(
            &mut drafts.tls_policies,
            &meta,
            spec(object, &meta, backend_tls::read),
            root.sink(),
        ),
        "Backend" => place(
            &mut drafts.backends,
            &meta,
            spec(object, &meta, backend::read),
            root.sink(),
        ),
        "ConfigMap" => {
            let draft = config_map::read(&mut object);
            object.finish();
            place(&mut drafts.config_maps, &meta, draft, root.sink());
        }
        // The table above has no other kind: what is left is `Secret`. Neither has a `spec`.
        _ => {
            let draft = secret::read(&mut object, &meta);
            object.finish();
            place(&mut drafts.secrets, &meta, draft, root.sink());
        }
    }
}

/// What policies may select by its labels.
fn selectable(kind: &str, meta: &Meta) -> Option<policy::PolicyTarget> {
    let route = |kind| {
        let name = meta.name.clone();
        policy::PolicyTarget::Route(model::RouteName { kind, name })
    };
    match kind {
        "Gateway" => Some(policy::PolicyTarget::Gateway(meta.name.clone())),
        "HTTPRoute" => Some(route(model::L7Kind::Http)),
        "GRPCRoute" => Some(route(model::L7Kind::Grpc)),
        _ => None,
    }
}

fn spec<'a, T>(
    mut object: Object<'a>,
    meta: &Meta,
    read: impl FnOnce(&mut Object<'a>, &Meta) -> Option<T>,
) -> Option<T> {
    let spec = object.required("spec").and_then(|field| field.object());
    object.finish();
    let mut spec = spec?;
    let draft = read(&mut spec, meta);
    spec.finish();
    draft
}

fn place<T>(table: &mut Table<T>, meta: &Meta, draft: Option<T>, sink: &Sink) {
    if let Some((first, _)) = table.get(&meta.name) {
        sink.mistake(
            meta.declared.at("metadata.name"),
            format_args!("{} is declared before, in {first}", meta.declared.object),
        );
        return;
    }
    table.insert(meta.name.clone(), (meta.declared.clone(), draft));
}

fn metadata(object: &mut Object<'_>) -> Option<Meta> {
    let declared = object.field().source().clone();
    let mut metadata = object.required("metadata")?.object()?;
    let name = metadata
        .required("name")
        .and_then(|field| field.parse(|text| ObjectName::new("default", text)));
    let namespace = match metadata.optional("namespace") {
        Some(field) => field.parse(|text| Name::new(text).map(|name| name.to_string())),
        None => Some("default".to_owned()),
    };
    let mut labels = policy::Labels::new();
    if let Some(field) = metadata.optional("labels") {
        for (key, value) in field.entries() {
            let value = value.string().map(str::to_owned);
            labels.extend(value.map(|value| (key.to_owned(), value)));
        }
    }
    if let Some(field) = metadata.optional("annotations") {
        for (_, value) in field.entries() {
            value.string();
        }
    }
    // Among routes that match alike the older one wins. `kubectl` writes null where there is none.
    let created = metadata
        .optional("creationTimestamp")
        .filter(|field| *field.value() != Value::Null)
        .map(|field| {
            field.parse(|text| {
                model::Timestamp::new(text)
                    .ok_or("expected a moment such as `2026-11-27T00:24:28Z`")
            })
        });
    // What Kubernetes keeps about an object; documents taken out of a cluster have it.
    metadata.ignored(&[
        "uid",
        "resourceVersion",
        "generation",
        "managedFields",
        "finalizers",
        "ownerReferences",
        "selfLink",
        "generateName",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ]);
    metadata.finish();
    let name = ObjectName::new(&namespace?, name?.name()).ok()?;
    let created = match created {
        Some(created) => Some(created?),
        None => None,
    };
    Some(Meta {
        name,
        declared,
        created,
        labels,
    })
}

/// A [`Name`].
pub(crate) fn name(field: &Field<'_>) -> Option<Name> {
    field.parse(Name::new)
}

/// A namespace and a name; the namespace is the document's own when absent.
pub(crate) fn reference(object: &mut Object<'_>, meta: &Meta) -> Option<ObjectName> {
    let namespace = match object.optional("namespace") {
        Some(field) => field.parse(|text| Name::new(text).map(|name| name.to_string())),
        None => Some(meta.name.namespace().to_owned()),
    };
    let name = object
        .required("name")
        .and_then(|field| Some((field.string()?, field)));
    let (text, field) = name?;
    ObjectName::new(&namespace?, text)
        .map_err(|error| field.mistake(error))
        .ok()
}
