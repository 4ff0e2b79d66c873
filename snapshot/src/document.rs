//! Documents as they are written: kind by kind, each read on its own.
//!
//! Flows in: trees. Flows out: drafts, whose values are right one by one; whether they fit together
//! is for `link`. A draft that could not be read leaves only its name, so that a reference to it is
//! not reported as well.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::lasting::{common, exact};
use crate::model::{self, Name, ObjectName};
use crate::reader::{Field, Object, Sink, one_of};
use crate::report::{Mistake, Source, Warning};
use crate::tree::{self, Form, Value, shortened};

pub(crate) mod content;
mod kinds;

pub(crate) mod address_source;
pub(crate) mod addresses;
pub(crate) mod authorities;
pub(crate) mod backend;
pub(crate) mod backend_tls;
pub(crate) mod cell;
pub(crate) mod client_policy;
pub(crate) mod config_map;
pub(crate) mod duration;
pub(crate) mod endpoint_slice;
pub(crate) mod filter;
pub(crate) mod gateway;
pub(crate) mod gateway_class;
pub(crate) mod grpc_route;
pub(crate) mod http_route;
pub(crate) mod jwks;
pub(crate) mod l4_route;
pub(crate) mod labels;
pub(crate) mod listener_set;
pub(crate) mod namespace;
pub(crate) mod network_policy;
pub(crate) mod node;
pub(crate) mod platform;
pub(crate) mod pod;
pub(crate) mod policy;
pub(crate) mod quantity;
pub(crate) mod reference_grant;
pub(crate) mod routing_table;
pub(crate) mod secret;
pub(crate) mod security_policy;
pub(crate) mod selector;
pub(crate) mod service;
pub(crate) mod string_match;
pub(crate) mod template;
pub(crate) mod traffic_policy;

/// API group and version of Cardinal's own kinds.
pub(crate) const CARDINAL: &str = "cardinal.dev/v1alpha1";
/// API group and version of the Gateway API.
pub(crate) const GATEWAY_API: &str = "gateway.networking.k8s.io/v1";
/// API group and version of Envoy Gateway.
pub(crate) const ENVOY_GATEWAY: &str = "gateway.envoyproxy.io/v1alpha1";

/// API group and version of Cilium.
pub(crate) const CILIUM: &str = "cilium.io/v2";

/// Earlier versions that the Gateway API still serves.
const GATEWAY_API_ALPHA: &str = "gateway.networking.k8s.io/v1alpha2";
const GATEWAY_API_BETA: &str = "gateway.networking.k8s.io/v1beta1";

pub use kinds::Kind;
pub(crate) use kinds::{Draft, Drafts, Table};

/// The group of an `apiVersion`.
pub(crate) fn group(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}

/// Name and document of an object.
#[derive(Clone)]
pub(crate) struct Meta {
    pub(crate) name: ObjectName,
    pub(crate) declared: Source,
    /// When the object was made, if it says so.
    pub(crate) created: Option<model::Timestamp>,
    /// Which state of its `spec` this is, if it says so.
    pub(crate) generation: Option<i64>,
    pub(crate) labels: labels::Labels,
}

/// Where documents come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A file that somebody wrote.
    File,
    /// An API server, which adds to `metadata` what it likes.
    Server,
}

/// What one file, or one object of a cluster, says: read on its own, for as long as it does not change.
pub struct Read {
    path: Arc<str>,
    pub(crate) documents: Box<[Document]>,
    pub(crate) mistakes: Box<[Mistake]>,
    pub(crate) warnings: Box<[Warning]>,
}

impl Read {
    /// The path of what was read.
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl fmt::Debug for Read {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // It may hold secrets.
        f.debug_struct("Read")
            .field("path", &self.path)
            .field("documents", &self.documents.len())
            .finish_non_exhaustive()
    }
}

/// One document.
pub(crate) struct Document {
    pub(crate) meta: Meta,
    pub(crate) draft: Draft,
    /// What the document says, apart from what a cluster adds to it.
    pub(crate) digest: content::Digest,
    /// What it is about if it could not be read; of policies there is something.
    pub(crate) closes: Option<Box<policy::Closed>>,
}

impl Document {
    fn new(root: &Field<'_>, meta: Meta, draft: Draft) -> Self {
        let refused = root.sink().tainted(&meta.declared);
        Self {
            digest: content::digest(draft.kind(), &meta, root.value()),
            closes: refused.then(|| Box::new(policy::closed(draft.kind(), &meta, root))),
            meta,
            draft,
        }
    }
}

/// Reads every document of a file.
pub(crate) fn read(path: &str, bytes: &[u8], origin: Origin) -> Read {
    refused(path, bytes, origin, &[])
}

/// The same where each document has these mistakes beside its own.
pub(crate) fn refused(path: &str, bytes: &[u8], origin: Origin, known: &[Mistake]) -> Read {
    let sink = Sink::default();
    let path: Arc<str> = path.into();
    let documents = documents(&path, bytes, origin, known, &sink);
    let (mistakes, warnings) = sink.finish();
    Read {
        path,
        documents: exact(documents).into(),
        mistakes: exact(mistakes).into(),
        warnings: exact(warnings).into(),
    }
}

fn documents(
    file: &Arc<str>,
    bytes: &[u8],
    origin: Origin,
    known: &[Mistake],
    sink: &Sink,
) -> Vec<Document> {
    let path = &**file;
    let form = match origin {
        Origin::File => Form::of_name(path),
        Origin::Server => Form::of_content(bytes),
    };
    let trees = tree::read(form, bytes);
    if trees.is_empty() {
        let source = Source::new(Arc::clone(file), 1, "");
        sink.warning(source, "the file holds no document");
        return Vec::new();
    }
    let mut documents = Vec::new();
    for tree in trees {
        let named = tree.root.as_ref().or(tree.partial.as_ref());
        let object = named.map(|root| title(&root.value));
        let object = object.unwrap_or_default();
        let source = Source::new(Arc::clone(file), tree.position, object);
        let hidden = hidden(&source, bytes);
        for fault in tree.faults {
            let source = Source {
                field: if hidden {
                    common("")
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
            for mistake in known {
                sink.mistake(
                    source.at(Arc::clone(&mistake.source.field)),
                    &mistake.message,
                );
            }
            documents.extend(document(&Field::root(root, source, sink), path, origin));
        }
    }
    documents
}

/// Whether the fields of a document's faults are kept to itself: lines of a private key that are indented
/// wrongly may be among them.
fn hidden(source: &Source, bytes: &[u8]) -> bool {
    let kind = source.object.split(' ').next().unwrap_or_default();
    let known = Kind::of(kind).is_some();
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

fn document(root: &Field<'_>, path: &str, origin: Origin) -> Option<Document> {
    let mut object = root.object()?;
    if routing_table::is_bare(root.value()) {
        let (meta, table) = routing_table::bare(root, path)?;
        return Some(Document::new(
            root,
            meta,
            Draft::RoutingTable(table.map(Arc::new)),
        ));
    }
    let api_version = object
        .required("apiVersion")
        .and_then(|field| Some((field.string()?, field)));
    let kind = object
        .required("kind")
        .and_then(|field| Some((field.string()?, field)));
    let ((api_version, version_field), (kind, kind_field)) = (api_version?, kind?);
    let Some(kind) = Kind::of(kind) else {
        kind_field.expected(one_of(Kind::ALL.iter().map(|kind| kind.as_str())));
        return None;
    };
    let versions = kind.versions();
    if !versions.contains(&api_version) {
        let versions = one_of(versions.iter().copied());
        version_field.expected(format_args!("{versions} for kind {kind}"));
        return None;
    }
    let meta = metadata(&mut object, origin)?;
    object.ignored(&["status"]);
    let draft = kind.read(object, &meta);
    Some(Document::new(root, meta, draft))
}

fn metadata(object: &mut Object<'_>, origin: Origin) -> Option<Meta> {
    let declared = object.field().source().clone();
    let mut metadata = object.required("metadata")?.object()?;
    let name = metadata
        .required("name")
        .and_then(|field| field.parse(|text| ObjectName::new("default", text)));
    let namespace = match metadata.optional("namespace") {
        Some(field) => field.parse(|text| Name::new(text).map(|name| name.to_string())),
        None => Some("default".to_owned()),
    };
    let labels = texts(metadata.optional("labels")).iter().collect();
    texts(metadata.optional("annotations"));
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
        "managedFields",
        "finalizers",
        "ownerReferences",
        "selfLink",
        "generateName",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ]);
    let generation = metadata
        .optional("generation")
        .filter(|field| *field.value() != Value::Null)
        .and_then(|field| field.integer(0..=i64::MAX));
    match origin {
        Origin::File => metadata.finish(),
        // A newer server may keep more, none of which says what the object is to do.
        Origin::Server => {}
    }
    let name = ObjectName::new(&namespace?, name?.name()).ok()?;
    let created = match created {
        Some(created) => Some(created?),
        None => None,
    };
    Some(Meta {
        name,
        declared,
        created,
        generation,
        labels,
    })
}

/// Texts by key; what is none is a mistake and left out.
pub(crate) fn texts(field: Option<Field<'_>>) -> BTreeMap<String, String> {
    let entries = field.map(|field| field.entries()).unwrap_or_default();
    let texts = entries
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value.string()?.to_owned())));
    texts.collect()
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
    ObjectName::referred(&namespace?, text)
        .map_err(|error| field.mistake(error))
        .ok()
}
