//! What `compat` of a cell does beside the rows.

use serde_json::{Value, json};

use super::{Case, cell, route, taken};
use crate::document::cell::Strictness;
use crate::model::{Gate, PathMatch};
use crate::{SourceFile, parse};

/// `compat` says what it opens; a cell without it has nothing to say.
#[test]
fn what_compat_opens_is_a_warning() {
    let operations = json!([{
        "type": "oauth2",
        "operations": [{ "method": "GET", "target": "/books", "scopes": [] }],
    }]);
    for (component_type, visibilities, warned) in [
        (
            "Service",
            json!(null),
            &["makes an endpoint without `visibility` public"][..],
        ),
        ("Service", json!({}), &[]),
        ("Service", json!({ "public": { "enable": false } }), &[]),
        (
            "WebApplication",
            json!({ "public": { "enable": false } }),
            &["keeps a web application public that is switched off"],
        ),
        (
            "Service",
            json!({ "public": { "enable": true, "policies": operations } }),
            &["forwards what no operation matches"],
        ),
        (
            "Service",
            json!({
                "public": { "enable": true },
                "organization": { "enable": true, "policies": operations },
            }),
            &[
                "asks for no token here",
                "forwards what no operation matches",
            ],
        ),
    ] {
        let mut input = json!({ "component_type": component_type });
        input["network_visibilities"] = visibilities;
        for strictness in [Strictness::Strict, Strictness::Compat] {
            let snapshot = taken(&Case {
                id: "a cell",
                strictness,
                input: &input,
                expect: &Value::Null,
            });
            let wanted = match strictness {
                Strictness::Strict => &[],
                Strictness::Compat => warned,
            };
            assert_eq!(
                snapshot.warnings.len(),
                wanted.len(),
                "{input}: {:?}",
                snapshot.warnings
            );
            for (warning, wanted) in snapshot.warnings.iter().zip(wanted) {
                assert!(warning.message.contains(wanted), "{warning:?}");
            }
        }
    }
}

/// A TCP endpoint has no requests to route, whatever `compat` says.
#[test]
fn compat_makes_no_route_of_layer_4() {
    for strictness in [Strictness::Strict, Strictness::Compat] {
        let input = json!({ "endpoint_type": "TCP" });
        let mut endpoint = cell(&Case {
            id: "a cell",
            strictness,
            input: &input,
            expect: &Value::Null,
        });
        // Layer 4 has no paths.
        let fields = endpoint["spec"]["components"][0]["endpoints"][0].as_object_mut();
        fields.expect("an endpoint").remove("basePath");
        let file = SourceFile {
            path: "cell.json".to_owned(),
            bytes: endpoint.to_string().into_bytes(),
        };
        let snapshot = parse(&[file]).unwrap_or_else(|error| panic!("{error}"));
        assert!(snapshot.routes.is_empty());
        assert!(snapshot.warnings.is_empty(), "{:?}", snapshot.warnings);
        let components = snapshot
            .cells
            .values()
            .flat_map(|cell| cell.components.values());
        for endpoint in components.flat_map(|component| component.endpoints.values()) {
            assert!(endpoint.public.is_none() && endpoint.organization.is_none());
        }
    }
}

/// An operation whose path has braces that are no parameters: OpenChoreo takes them, so does `compat`.
#[test]
fn compat_takes_paths_as_the_original_does() {
    for (target, pattern) in [
        ("/{}", r"^/test-project/component(/api/\{\})$"),
        ("/{a{b}}", r"^/test-project/component(/api/[^/]+\})$"),
        ("/{id", r"^/test-project/component(/api/\{id)$"),
        ("/{a/b}", r"^/test-project/component(/api/[^/]+)$"),
        ("/[^/]+", r"^/test-project/component(/api/[^/]+)$"),
        (
            "/REGEX_PATTERN_PLACEHOLDER",
            r"^/test-project/component(/api/[^/]+)$",
        ),
    ] {
        let input = json!({ "base_path": "/api", "network_visibilities": { "public": {
            "enable": true,
            "policies": [{ "type": "oauth2", "operations": [
                { "method": "GET", "target": target, "scopes": [] },
            ] }],
        } } });
        let snapshot = taken(&Case {
            id: target,
            strictness: Strictness::Compat,
            input: &input,
            expect: &Value::Null,
        });
        let route = route(&snapshot, Gate::External).expect("is public");
        let PathMatch::Regex(found) = &route.rules[1].matches[0].path else {
            panic!("operations match by pattern");
        };
        assert_eq!(found.text(), pattern, "{target}");
    }
}
