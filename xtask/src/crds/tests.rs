//! What the schemas and the agent's readers take is the same, field by field, and the files are what the types say.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use snapshot::SourceFile;

use super::*;

/// Longer than every name that a reader could take for a slip of the pen: it then tells all fields that it knows.
const STRANGER: &str = "strangerstrangerstrangerstrangerstrangerstrangerstrangerstrangerstranger";

/// Fields that a reader takes to refuse them with a reason: a schema has no use for them.
const REFUSED: [(&str, &str); 1] = [("spec.jwtProviders[0].localJWKS", "valueRef")];

/// A mapping with known fields somewhere in a schema.
struct Place<'a> {
    /// As the readers spell it.
    path: String,
    schema: &'a Map<String, Value>,
    /// Puts a mapping there into a document that has nothing but what leads to it.
    build: Box<dyn Fn(Value) -> Value + 'a>,
}

/// Every mapping with known fields in a schema, itself included.
fn places<'a>(
    path: String,
    schema: &'a Value,
    build: Box<dyn Fn(Value) -> Value + 'a>,
    found: &mut Vec<Place<'a>>,
) {
    let Value::Object(map) = schema else { return };
    let build: std::rc::Rc<dyn Fn(Value) -> Value + 'a> = build.into();
    if let Some(items) = map.get("items") {
        let outer = std::rc::Rc::clone(&build);
        let inner = Box::new(move |value| outer(json!([value])));
        places(format!("{path}[0]"), items, inner, found);
    }
    if let Some(values) = map.get("additionalProperties") {
        let outer = std::rc::Rc::clone(&build);
        let inner = Box::new(move |value| outer(json!({ "any": value })));
        places(format!("{path}.any"), values, inner, found);
    } else if map.get("type") == Some(&json!("object")) {
        let outer = std::rc::Rc::clone(&build);
        found.push(Place {
            path: path.clone(),
            schema: map,
            build: Box::new(move |value| outer(value)),
        });
    }
    for (name, property) in properties(map) {
        let outer = std::rc::Rc::clone(&build);
        let inner = Box::new(move |value: Value| {
            // A reader that misses something it needs may leave the rest alone.
            let mut object = beside(map, name);
            object.insert(name.clone(), value);
            outer(Value::Object(object))
        });
        places(format!("{path}.{name}"), property, inner, found);
    }
}

fn properties(schema: &Map<String, Value>) -> impl Iterator<Item = (&String, &Value)> {
    schema
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
}

/// What a mapping needs beside one of its fields.
fn beside(schema: &Map<String, Value>, field: &str) -> Map<String, Value> {
    let mut object = Map::new();
    if properties(schema).any(|(name, _)| name == "fallback") && field != "url" {
        // A placement without an endpoint is not looked at further.
        object.insert("url".to_owned(), json!("http://a:1"));
    }
    object
}

fn document(kind: &str, spec: Value) -> SourceFile {
    let document = json!({
        "apiVersion": "cardinal.dev/v1alpha1",
        "kind": kind,
        "metadata": { "name": "sample", "namespace": "sample" },
        "spec": spec,
    });
    SourceFile {
        path: "sample.json".to_owned(),
        bytes: document.to_string().into_bytes(),
    }
}

/// The fields that the reader of a mapping knows, which it tells when it meets one that it does not.
fn known(kind: &str, place: &Place<'_>) -> BTreeSet<String> {
    let spec = (place.build)(json!({ STRANGER: 1 }));
    let refused = snapshot::parse(&[document(kind, spec)]).expect_err("a stranger is refused");
    let field = format!("{}.{STRANGER}", place.path);
    let message = refused
        .mistakes
        .iter()
        .find(|mistake| *mistake.source.field == *field)
        .unwrap_or_else(|| panic!("the reader of {kind} does not look at {field}: {refused}"))
        .message
        .clone();
    let fields = message
        .strip_prefix("unknown field; expected ")
        .unwrap_or_else(|| panic!("{field}: {message}"));
    if fields == "none here" {
        return BTreeSet::new();
    }
    fields
        .split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

#[test]
fn schemas_and_readers_take_the_same_fields() {
    let mut looked = 0;
    for kind in &KINDS {
        let schema = (kind.spec)();
        let mut found = Vec::new();
        places(
            "spec".to_owned(),
            &schema,
            Box::new(|value| value),
            &mut found,
        );
        for place in &found {
            let mut read = known(kind.name, place);
            for (path, field) in REFUSED {
                if place.path == path {
                    assert!(read.remove(field), "{path}.{field} is not read any more");
                }
            }
            let described: BTreeSet<String> = properties(place.schema)
                .map(|(name, _)| name.clone())
                .collect();
            assert_eq!(read, described, "{} of {}", place.path, kind.name);
            looked += 1;
        }
    }
    assert!(looked > 35, "only {looked} mappings were found");
}

#[test]
fn schemas_are_structural() {
    fn check(path: &str, schema: &Value) {
        let map = schema.as_object().expect("a schema is a mapping");
        assert!(
            map["type"].is_string(),
            "{path} has the type {}",
            map["type"]
        );
        for word in map.keys() {
            assert!(
                [
                    "type",
                    "description",
                    "properties",
                    "required",
                    "items",
                    "additionalProperties",
                    "enum",
                    "format",
                    "minimum",
                    "maximum",
                    "minLength",
                    "maxLength",
                    "minItems",
                    "maxItems",
                    "minProperties",
                    "pattern",
                    "x-kubernetes-validations",
                    "x-kubernetes-list-type",
                    "x-kubernetes-list-map-keys",
                ]
                .contains(&word.as_str()),
                "{path} has `{word}`"
            );
        }
        for (name, property) in properties(map) {
            check(&format!("{path}.{name}"), property);
        }
        for word in ["items", "additionalProperties"] {
            if let Some(inner) = map.get(word) {
                check(&format!("{path}[]"), inner);
            }
        }
    }
    for kind in &KINDS {
        check(kind.name, &(kind.spec)());
    }
}

#[test]
fn every_field_says_what_it_is() {
    fn check(path: &str, schema: &Value) {
        for (name, property) in properties(schema.as_object().expect("a schema is a mapping")) {
            let path = format!("{path}.{name}");
            let obvious = ["sessionAffinityConfig.clientIP"];
            assert!(
                property["description"].is_string()
                    || obvious.iter().any(|end| path.ends_with(end)),
                "{path} has no description"
            );
            check(&path, property);
        }
        for word in ["items", "additionalProperties"] {
            if let Some(inner) = schema.get(word) {
                check(&format!("{path}[]"), inner);
            }
        }
    }
    for kind in &KINDS {
        check(kind.name, &(kind.spec)());
    }
}

#[test]
fn the_files_are_what_the_types_say() {
    let drifted = drift(&folder()).expect("the files can be read");
    let files: Vec<_> = drifted.iter().map(|(file, _)| file).collect();
    assert!(files.is_empty(), "run `cargo xtask crds`: {files:?}");
}
