//! `RoutingTable`, also as the bare file of the reference router.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::sync::Arc;

use super::Meta;
use super::labels::Labels;
use crate::model::{
    BreakerSettings, HealthCheck, KeySource, KeyTrust, ObjectName, Placement, PlacementUrl,
    RoutingTable,
};
use crate::reader::{Field, Object, quoted};
use crate::report::Source;
use crate::tree::{Value, shortened};

mod key;
pub(crate) mod values;

use values::{duration, url};

const DEFAULT_TIERS: [&str; 3] = ["tier1", "tier2", "tier3"];

/// Endpoints of a placement; each is probed by every node.
const MAX_ENDPOINTS: usize = 256;

/// Whether a document is the reference router's own file: it has its fields and no kind.
pub(crate) fn is_bare(root: &Value) -> bool {
    let has = |name| root.get(name).is_some();
    let own = [
        "routingTable",
        "cellEndpoints",
        "placements",
        "defaultPlacement",
    ];
    !has("apiVersion") && !has("kind") && own.into_iter().any(has)
}

/// Reads such a file; the table has the name of the file.
pub(crate) fn bare(root: &Field<'_>, path: &str) -> Option<(Meta, Option<RoutingTable>)> {
    let mut object = root.object()?;
    let file = path.rsplit('/').next().unwrap_or(path);
    let stem = file.rsplit_once('.').map_or(file, |(stem, _)| stem);
    let name = ObjectName::new("default", stem)
        .map_err(|error| {
            root.mistake(format_args!(
                "a routing table without `metadata` has the name of its file: {error}"
            ));
        })
        .ok();
    let at = root.source();
    let title = format!("RoutingTable default/{}", shortened(stem));
    let declared = Source {
        line: at.line,
        ..Source::new(Arc::clone(&at.file), at.document, title)
    };
    let meta = name.map(|name| Meta {
        name,
        declared,
        created: None,
        generation: None,
        labels: Labels::default(),
    });
    let table =
        tables(&mut object).map(|tables| (tables, (key::default(), Vec::new()), default_tiers()));
    object.finish();
    let meta = meta?;
    let table = table.map(|parts| assemble(&meta, parts));
    Some((meta, table))
}

/// Reads the `spec` of a document.
pub(crate) fn read(spec: &mut Object<'_>, meta: &Meta) -> Option<RoutingTable> {
    let key = match spec.optional("key") {
        Some(field) => key::read(&field, meta),
        None => Some((key::default(), Vec::new())),
    };
    let tiers = match spec.optional("tiers") {
        Some(field) => field
            .list()
            .iter()
            .filter_map(|field| field.some_string().map(str::to_owned))
            .collect(),
        None => default_tiers(),
    };
    let tables = tables(spec)?;
    Some(assemble(meta, (tables, key?, tiers)))
}

fn default_tiers() -> BTreeSet<String> {
    DEFAULT_TIERS.map(str::to_owned).into()
}

fn assemble(
    meta: &Meta,
    (tables, (key, trust), tiers): (Tables, (KeySource, Vec<KeyTrust>), BTreeSet<String>),
) -> RoutingTable {
    RoutingTable {
        name: meta.name.clone(),
        declared: meta.declared.clone(),
        version: tables.version,
        key,
        trust,
        keys: tables.keys,
        placements: tables.placements,
        default: tables.default,
        tiers,
    }
}

/// What both forms have.
struct Tables {
    version: String,
    keys: BTreeMap<String, String>,
    placements: BTreeMap<String, Placement>,
    default: String,
}

fn tables(object: &mut Object<'_>) -> Option<Tables> {
    let version = object
        .required("version")
        .and_then(|field| field.some_string().map(str::to_owned));
    let keys_field = object.optional("routingTable");
    let older = object.optional("cellEndpoints");
    let newer = object.optional("placements");
    let default_field = object.required("defaultPlacement");
    if let (Some(_), Some(newer)) = (&older, &newer) {
        newer.mistake("expected either `cellEndpoints` or `placements`, got both");
        return None;
    }
    let mut placements = BTreeMap::new();
    // Placements that are there, right or wrong: references to wrong ones are no mistake of their own.
    let mut known = BTreeSet::new();
    for (name, field) in older.iter().flat_map(Field::entries) {
        known.insert(name.to_owned());
        if let Some(url) = field.parse(url) {
            placements.insert(name.to_owned(), Placement::at(url));
        }
    }
    let mut fallbacks = BTreeMap::new();
    for (name, field) in newer.iter().flat_map(Field::entries) {
        known.insert(name.to_owned());
        if let Some((placement, fallback)) = placement(&field) {
            fallbacks.extend(fallback.map(|field| (name, field)));
            placements.insert(name.to_owned(), placement);
        }
    }
    let exists = |field: &Field<'_>, name: &str| {
        let exists = known.contains(name);
        if !exists {
            field.mistake(format_args!(
                "expected the name of a placement, but there is no {}",
                quoted(name)
            ));
        }
        exists
    };
    for fallback in fallbacks.values() {
        if let Some(name) = fallback.string() {
            exists(fallback, name);
        }
    }
    circles(&placements, &fallbacks);
    let default = default_field.and_then(|field| {
        let name = field.string()?;
        exists(&field, name).then(|| name.to_owned())
    });
    let mut keys = BTreeMap::new();
    for (key, field) in keys_field.iter().flat_map(Field::entries) {
        let Some(name) = field.string() else { continue };
        if key.trim() != key || key.is_empty() {
            field.mistake("expected a routing key that is not empty and has no blanks around it");
        }
        if exists(&field, name) {
            keys.insert(key.to_owned(), name.to_owned());
        }
    }
    Some(Tables {
        version: version?,
        keys,
        placements,
        default: default?,
    })
}

/// Refuses fallbacks in a circle, each circle once, at its fallback that comes first in the document.
fn circles(placements: &BTreeMap<String, Placement>, fallbacks: &BTreeMap<&str, Field<'_>>) {
    let mut settled: BTreeSet<&str> = BTreeSet::new();
    for start in placements.keys() {
        let mut walk: Vec<&str> = Vec::new();
        let mut steps: BTreeMap<&str, usize> = BTreeMap::new();
        let mut at = Some(start.as_str());
        while let Some(name) = at.filter(|name| !settled.contains(name)) {
            if let Some(step) = steps.get(name) {
                let circle = &walk[*step..];
                let fields = circle.iter().filter_map(|name| fallbacks.get(name));
                if let Some(field) = fields.min_by_key(|field| field.source().line) {
                    let shown: Vec<String> =
                        circle.iter().map(|name| shortened(name)).take(8).collect();
                    let more = if circle.len() > shown.len() {
                        " → .."
                    } else {
                        ""
                    };
                    field.mistake(format_args!(
                        "fallbacks in a circle: `{}`{more} → {}",
                        shown.join("` → `"),
                        quoted(name)
                    ));
                }
                break;
            }
            steps.insert(name, walk.len());
            walk.push(name);
            at = placements
                .get(name)
                .and_then(|placement| placement.fallback.as_deref());
        }
        settled.extend(walk);
    }
}

fn placement<'a>(field: &Field<'a>) -> Option<(Placement, Option<Field<'a>>)> {
    let mut object = field.object()?;
    let endpoints = endpoints(&mut object);
    let shard = object.optional("shard_size");
    let fallback = object.optional("fallback");
    let health_check = object.optional("health_check");
    let breaker = object.optional("circuit_breaker");
    let concurrency = object.optional("concurrency_limit");
    let body = object.optional("max_request_body_bytes");
    object.finish();
    let endpoints = endpoints?;
    let placement = Placement {
        shard_size: match shard {
            Some(field) => {
                let count = i64::try_from(endpoints.len()).ok()?;
                NonZeroU32::new(u32::try_from(field.integer(1..=count)?).ok()?)
            }
            None => None,
        },
        endpoints,
        fallback: match &fallback {
            Some(field) => Some(field.string()?.to_owned()),
            None => None,
        },
        health_check: match health_check {
            Some(field) => health(&field)?,
            None => HealthCheck::default(),
        },
        breaker: match breaker {
            Some(field) => circuit_breaker(&field)?,
            None => BreakerSettings::default(),
        },
        concurrency_limit: match concurrency {
            Some(field) => u32::try_from(field.integer(0..=i64::from(u32::MAX))?)
                .ok()
                .and_then(NonZeroU32::new),
            None => None,
        },
        max_request_body_bytes: match body {
            Some(field) => u64::try_from(field.integer(0..=i64::MAX)?)
                .ok()
                .filter(|limit| *limit > 0),
            None => None,
        },
    };
    Some((placement, fallback))
}

/// `url`, or several as `endpoints`.
fn endpoints(object: &mut Object<'_>) -> Option<Vec<PlacementUrl>> {
    let Some(list) = object.optional("endpoints") else {
        return Some(vec![object.required("url")?.parse(url)?]);
    };
    if let Some(field) = object.optional("url") {
        field.mistake("expected either `url` or `endpoints`, got both");
        return None;
    }
    let mut endpoints: Vec<PlacementUrl> = Vec::new();
    let items = list.some_limited_list(MAX_ENDPOINTS);
    let count = items.len();
    for item in items {
        let Some(one) = item.parse(url) else { continue };
        if endpoints.contains(&one) {
            item.mistake("this endpoint is in the list already");
        } else {
            endpoints.push(one);
        }
    }
    (count > 0 && endpoints.len() == count).then_some(endpoints)
}

fn health(field: &Field<'_>) -> Option<HealthCheck> {
    let mut object = field.object()?;
    let path = object.required("path").and_then(|field| {
        let text = field.some_string()?;
        if !text.starts_with('/') || text.bytes().any(|byte| !byte.is_ascii_graphic()) {
            field.expected("a path that starts with `/`");
            return None;
        }
        Some(text.to_owned())
    });
    let interval = object
        .required("interval")
        .and_then(|field| field.parse(duration));
    let timeout = object
        .required("timeout")
        .and_then(|field| field.parse(duration));
    object.finish();
    Some(HealthCheck {
        path: path?,
        interval: interval?,
        timeout: timeout?,
    })
}

fn circuit_breaker(field: &Field<'_>) -> Option<BreakerSettings> {
    let mut object = field.object()?;
    let threshold = object
        .required("failure_threshold")
        .and_then(|field| field.integer(1..=i64::from(u32::MAX)));
    let timeout = object
        .required("timeout")
        .and_then(|field| field.parse(duration));
    object.finish();
    Some(BreakerSettings {
        failure_threshold: NonZeroU32::new(u32::try_from(threshold?).ok()?)?,
        timeout: timeout?,
    })
}
