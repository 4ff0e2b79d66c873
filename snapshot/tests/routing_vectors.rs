//! The rows of `tests/vectors/cell-routing.json` that are about documents.

use serde::Deserialize;
use serde_json::{Map, Value, json};
use snapshot::{Snapshot, SourceFile, parse};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    id: String,
    #[serde(rename = "name")]
    _name: String,
    class: Class,
    #[serde(rename = "evidence")]
    _evidence: String,
    document: Value,
    expect: Expect,
    instead: Option<Instead>,
    suggest: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Instead {
    #[serde(rename = "text")]
    _text: String,
    expect: Expect,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expect {
    result: String,
    #[serde(rename = "stage")]
    _stage: Option<String>,
    field: Option<String>,
    #[serde(rename = "reason")]
    _reason: Option<String>,
    #[serde(rename = "effect")]
    _effect: Option<String>,
}

#[derive(Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Class {
    Contract,
    Quirk,
    Defect,
}

fn vectors() -> Value {
    serde_json::from_str(include_str!("../../tests/vectors/cell-routing.json"))
        .expect("vectors are JSON")
}

fn outcome(path: &str, bytes: Vec<u8>) -> Result<Snapshot, Vec<String>> {
    let file = SourceFile {
        path: path.to_owned(),
        bytes,
    };
    parse(&[file]).map_err(|rejections| {
        println!("{rejections}");
        rejections
            .mistakes
            .into_iter()
            .map(|mistake| mistake.source.field.to_string())
            .collect()
    })
}

#[test]
fn documents_are_taken_or_refused_at_the_field() {
    let vectors = vectors();
    let rows: Vec<Row> =
        serde_json::from_value(vectors["config_validation"].clone()).expect("group has rows");
    assert_eq!(
        Some(rows.len() as u64),
        vectors["counts"]["config_validation"].as_u64()
    );
    for row in rows {
        let id = &row.id;
        let mut want = match (&row.class, &row.instead) {
            (Class::Defect, Some(instead)) => instead.expect.clone(),
            _ => row.expect.clone(),
        };
        // Quirks are free; where a row suggests to refuse, these documents are refused.
        if row.class == Class::Quirk && row.suggest.is_some_and(|text| text.starts_with("reject")) {
            want.result = "reject".to_owned();
            want.field = None;
        } else if row.class == Class::Quirk {
            want.field = None;
        }
        let reference = |name: &str| row.document.get(name).and_then(Value::as_str);
        if reference("$path").is_some() {
            // Files are read by the caller; there is nothing here that could be unreadable.
            assert_eq!(want.result, "reject", "{id}");
            continue;
        }
        let (bytes, document) = if let Some(raw) = reference("$raw") {
            (raw.as_bytes().to_vec(), None)
        } else {
            let document = match reference("$fixture") {
                Some(name) => vectors["fixtures"][name].clone(),
                None => row.document.clone(),
            };
            (document.to_string().into_bytes(), Some(document))
        };
        // The file as it is; then the same content as a document of kind `RoutingTable`.
        let mut forms = vec![("routing.json", bytes, "")];
        if let Some(document) = document {
            let wrapped = json!({
                "apiVersion": "cardinal.dev/v1alpha1",
                "kind": "RoutingTable",
                "metadata": { "name": "routing" },
                "spec": document,
            });
            forms.push(("table.yaml", wrapped.to_string().into_bytes(), "spec."));
        }
        for (path, bytes, prefix) in forms {
            match outcome(path, bytes) {
                Ok(snapshot) => {
                    assert_eq!(want.result, "accept", "{id} {path}");
                    assert_eq!(snapshot.routing_tables.len(), 1, "{id} {path}");
                }
                Err(fields) => {
                    assert_eq!(want.result, "reject", "{id} {path} {fields:?}");
                    if let Some(field) = &want.field {
                        let field = format!("{prefix}{field}");
                        assert!(
                            fields.contains(&field),
                            "{id} {path}: {field} in {fields:?}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn fixtures_keep_their_content() {
    let vectors = vectors();
    for name in ["F1_routing_json", "F3_routing_m4"] {
        let fixture = &vectors["fixtures"][name];
        let snapshot =
            outcome("routing.json", fixture.to_string().into_bytes()).expect("fixture is taken");
        let table = snapshot.routing_tables.values().next().expect("one table");
        assert_eq!(table.name.to_string(), "default/routing");
        assert_eq!(json!(table.keys), fixture["routingTable"]);
        assert_eq!(table.default, fixture["defaultPlacement"]);
        let placements = fixture
            .get("placements")
            .or(fixture.get("cellEndpoints"))
            .and_then(Value::as_object)
            .map_or(0, Map::len);
        assert_eq!(table.placements.len(), placements);
        assert_eq!(table.tiers.len(), 3);
        assert!(snapshot.warnings.is_empty(), "{:?}", snapshot.warnings);
    }
}
