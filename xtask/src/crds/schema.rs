//! From schemars' schema to what an API server takes: a structural schema without references
//! (Kubernetes, "Extend the Kubernetes API with CustomResourceDefinitions", section "Specifying a structural schema").

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Map, Value};

/// The schema of a type.
pub(super) fn structural<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::default().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let mut schema = settings
        .into_generator()
        .into_root_schema_for::<T>()
        .to_value();
    simplify(&mut schema);
    schema
}

/// Puts a schema and all schemas in it into the form that an API server takes.
fn simplify(schema: &mut Value) {
    let Value::Object(map) = schema else { return };
    // The name of a Rust type is nobody's concern; an API server prunes or refuses unknown fields by itself.
    for word in ["title", "default"] {
        map.remove(word);
    }
    if map.get("additionalProperties") == Some(&Value::Bool(false)) {
        map.remove("additionalProperties");
    }
    // The format of an integer says what its bounds say already.
    if map.get("type").is_some_and(is_integer) {
        map.remove("format");
        map.insert("format".to_owned(), "int64".into());
    }
    not_null(map);
    for word in ["items", "additionalProperties"] {
        if let Some(inner) = map.get_mut(word) {
            simplify(inner);
        }
    }
    if let Some(Value::Object(properties)) = map.get_mut("properties") {
        properties.values_mut().for_each(simplify);
    }
    if let Some(Value::String(text)) = map.get_mut("description") {
        // A doc comment is wrapped for its source file.
        *text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    }
}

fn is_integer(kind: &Value) -> bool {
    match kind {
        Value::String(kind) => kind == "integer",
        Value::Array(kinds) => kinds.iter().any(is_integer),
        _ => false,
    }
}

/// What is not given is left out: no field takes null.
fn not_null(map: &mut Map<String, Value>) {
    if let Some(Value::Array(kinds)) = map.get_mut("type") {
        kinds.retain(|kind| kind != "null");
        if let [kind] = &kinds[..] {
            let kind = kind.clone();
            map.insert("type".to_owned(), kind);
        }
    }
    if let Some(Value::Array(values)) = map.get_mut("enum") {
        values.retain(|value| !value.is_null());
    }
    if let Some(Value::Array(choices)) = map.remove("anyOf") {
        for choice in choices {
            if let Value::Object(choice) = choice
                && choice.get("type") != Some(&"null".into())
            {
                for (word, value) in choice {
                    map.entry(word).or_insert(value);
                }
            }
        }
    }
}
