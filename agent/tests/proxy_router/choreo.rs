//! Rows of OpenChoreo's vectors that the router decides, over sockets: requests and tokens at a cell by the strict rules, at
//! one with `compat`, and at the objects that the original makes, which mean here what they mean there.

use std::net::SocketAddr;

use serde_json::{Value, json};
use snapshot::model::Workloads;
use snapshot::{Snapshot, SourceFile, naming, parse};

use crate::auth::{Issuer, now};
use crate::support::{Router, echo, free_port, get, send};
use crate::vectors::{group, text, vectors};

mod original;

use original::{Original, fixture, reading_list};

const FILE: &str = "openchoreo.json";

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum World {
    /// A cell by the strict rules.
    Strict,
    /// A cell with `compat`.
    Compat,
    /// The original's own routes, filters and policies, and no cell.
    Original,
}

impl World {
    /// What of a row binds.
    fn wanted(self, row: &Value) -> Option<&Value> {
        let own = match (self, text(row, "class")) {
            (Self::Strict, "quirk") => return None,
            (Self::Strict, "defect") => true,
            (Self::Compat, "defect") => row["compat"] == false,
            _ => false,
        };
        Some(if own {
            &row["instead"]["expect"]
        } else {
            &row["expect"]
        })
    }
}

fn taken(documents: &[Value]) -> Snapshot {
    let files: Vec<SourceFile> = documents
        .iter()
        .enumerate()
        .map(|(at, document)| SourceFile {
            path: format!("{at}.json"),
            bytes: document.to_string().into_bytes(),
        })
        .collect();
    parse(&files).unwrap_or_else(|rejections| panic!("{rejections}"))
}

fn gateway(at: u16) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": { "namespace": "choreo-system", "name": "gateway-external" },
        "spec": {
            "gatewayClassName": "cardinal",
            "addresses": [{ "value": "127.0.0.1" }],
            "listeners": [{
                "name": "http",
                "port": at,
                "protocol": "HTTP",
                "allowedRoutes": { "namespaces": { "from": "All" } },
            }],
        },
    })
}

/// A cell with one public endpoint.
struct Cell<'a> {
    project: &'a str,
    component: &'a str,
    base_path: &'a str,
    operations: Value,
}

impl Cell<'_> {
    fn documents(&self, world: World, issuer: &Issuer, at: u16, up: SocketAddr) -> Vec<Value> {
        let mut provider = json!({
            "name": "default",
            "algorithms": ["ES256"],
            "localJWKS": { "type": "Inline", "inline": issuer.jwks().to_string() },
        });
        if !issuer.provider.audiences.is_empty() {
            provider["audiences"] = json!(issuer.provider.audiences);
        }
        if let Some(name) = &issuer.provider.issuer {
            provider["issuer"] = json!(name);
        }
        let platform = json!({
            "apiVersion": "cardinal.dev/v1alpha1",
            "kind": "Platform",
            "metadata": { "name": "platform" },
            "spec": {
                "environments": [{ "name": "test-env", "dnsPrefix": "dev" }],
                "virtualHosts": { "public": "choreoapis.localhost" },
                "gateways": { "external": { "gatewayRef": {
                    "namespace": "choreo-system", "name": "gateway-external",
                } } },
                "jwtProviders": [provider],
            },
        });
        let cell = json!({
            "apiVersion": "cardinal.dev/v1alpha1",
            "kind": "Cell",
            "metadata": { "name": "cell" },
            "spec": {
                "organization": "default-org",
                "project": self.project,
                "environment": "test-env",
                "compat": world == World::Compat,
                "components": [{
                    "name": self.component,
                    "workloads": { "addresses": ["192.0.2.1"] },
                    "endpoints": [{
                        "name": "test-endpoint",
                        "type": "HTTP",
                        "port": up.port(),
                        "basePath": self.base_path,
                        "visibility": { "public": {
                            "jwt": { "provider": "default" },
                            "operations": self.operations,
                        } },
                    }],
                }],
            },
        });
        vec![gateway(at), platform, cell]
    }

    fn snapshot(&self, world: World, issuer: &Issuer, at: u16, up: SocketAddr) -> Snapshot {
        let mut snapshot = taken(&self.documents(world, issuer, at, up));
        // A document may not name loopback, where the upstream of this test is.
        for cell in snapshot.cells.values_mut() {
            for component in cell.components.values_mut() {
                component.workloads = Workloads::Addresses(vec![up.ip()]);
            }
        }
        snapshot
    }
}

/// Method, path and scopes of a row's operations, as a cell declares them.
fn operations(row: &Value) -> Value {
    let policies = row["input"]["network_visibilities"]["public"]["policies"]
        .as_array()
        .expect("policies are a list");
    policies
        .iter()
        .flat_map(|policy| policy["operations"].as_array().into_iter().flatten())
        .map(|one| json!({ "method": one["method"], "path": one["target"], "scopes": one["scopes"] }))
        .collect()
}

fn row<'v>(file: &'v Value, called: &str, id: &str) -> &'v Value {
    let rows = group(file, called).iter();
    let mut found = rows.filter(|row| text(row, "id") == format!("{called}/{id}"));
    found
        .next()
        .unwrap_or_else(|| panic!("no row {called}/{id}"))
}

/// Names of the fixture's routes by rule of the cell's route, which has the wildcard first.
fn rule_names(routes: &Value) -> Vec<Option<String>> {
    let routes = routes.as_array().expect("a list");
    let name = |route: &Value| Some(text(route, "name").to_owned());
    let wildcard = routes.iter().find(|one| one["path_type"] == "PathPrefix");
    let operations = routes.iter().filter(|one| one["path_type"] != "PathPrefix");
    std::iter::once(wildcard.and_then(name))
        .chain(operations.map(name))
        .collect()
}

struct Asked<'a> {
    router: &'a Router,
    at: SocketAddr,
    method: &'a str,
    uri: String,
}

impl Asked<'_> {
    /// The status, the route with its rule, and the path that went upstream.
    async fn with(
        &self,
        token: Option<&str>,
        id: &str,
    ) -> (u64, Option<(String, usize)>, Option<String>) {
        let mut request = get(&self.uri);
        *request.method_mut() = self.method.parse().expect("a method");
        let headers = request.headers_mut();
        headers.insert("x-request-id", id.parse().expect("a value"));
        if let Some(token) = token {
            let value = format!("Bearer {token}").parse().expect("a value");
            headers.insert("authorization", value);
        }
        let reply = send(self.at, request).await;
        let record = self
            .router
            .record(|one| one.request_id.to_string() == id)
            .await;
        let route = record
            .route
            .as_ref()
            .map(|name| name.to_string())
            .zip(record.rule);
        let status = u64::from(reply.status.as_u16());
        let forwarded = record.upstream.is_some();
        (
            status,
            route,
            record
                .upstream_path
                .as_deref()
                .map(str::to_owned)
                .filter(|_| forwarded),
        )
    }
}

#[tokio::test]
async fn proxy_vectors_request() {
    let file = vectors(FILE);
    let up = echo("a").await;
    let issuer = Issuer::new(None, &[]);
    let declared = operations(row(&file, "http_routes", "service-public-three-operations"));
    let books = json!([
        { "method": "GET", "path": "/books/{id}", "scopes": ["read"] },
        { "method": "GET", "path": "/books/me", "scopes": ["me"] },
        { "method": "GET", "path": "/books/bestsellers", "scopes": ["best"] },
    ]);
    for world in [World::Strict, World::Compat, World::Original] {
        for (called, cell) in [
            (
                "reading_list",
                Cell {
                    project: "test-project",
                    component: "reading-list-service",
                    base_path: "/api/v1/reading-list",
                    operations: declared.clone(),
                },
            ),
            (
                "books_precedence",
                Cell {
                    project: "p",
                    component: "c",
                    base_path: "/api",
                    operations: books.clone(),
                },
            ),
        ] {
            let routes = &file["fixtures"]["routes"][called];
            let port = free_port();
            let snapshot = match (world, called) {
                (World::Original, "reading_list") => {
                    taken(&reading_list(&file, Some(&issuer), port, up))
                }
                (World::Original, _) => taken(&fixture(routes, &issuer, port, up)),
                _ => cell.snapshot(world, &issuer, port, up),
            };
            let router = Router::start(&snapshot);
            let own = naming::joined(&["gateway-external", cell.component, "test-endpoint"], 253);
            let names = rule_names(routes);
            // What the row calls the rule that took a request.
            let known = |route: Option<(String, usize)>| -> Option<String> {
                let (route, rule) = route?;
                let (_, name) = route.split_once('/')?;
                match world {
                    World::Original => Some(name.to_owned()),
                    _ if name == own => names[rule].clone(),
                    _ => panic!("a route `{name}`"),
                }
            };
            let rows = group(&file, "request").iter();
            for row in rows.filter(|row| row["input"]["routes_from"] == called) {
                let Some(want) = world.wanted(row) else {
                    continue;
                };
                let input = &row["input"];
                let id = format!("{} {world:?}", text(row, "id"));
                let host = input["host"].as_str().unwrap_or("dev.choreoapis.localhost");
                let asked = Asked {
                    router: &router,
                    at: ([127, 0, 0, 1], port).into(),
                    method: text(input, "method"),
                    uri: format!("http://{host}{}", text(input, "path")),
                };
                let scopes = want["scopes_all_of"]
                    .as_array()
                    .cloned()
                    .unwrap_or_default();
                let scopes: Vec<&str> = scopes.iter().filter_map(Value::as_str).collect();
                let good = issuer.token(json!({ "scope": scopes.join(" ") }));
                let poor = issuer.token(json!({ "scope": "other" }));
                let short = text(row, "id").replace('/', "-");
                let without = asked.with(None, &format!("{short}-without")).await;
                let with = asked.with(Some(&good), &format!("{short}-with")).await;
                if want["status"] == 404 {
                    assert_eq!((without.0, with.0), (404, 404), "{id}");
                    assert_eq!((without.1, with.1), (None, None), "{id}");
                    continue;
                }
                if want["forwarded"] == false {
                    assert_eq!(want["status_without_token"], without.0, "{id}");
                    assert_eq!(want["status_with_valid_token"], with.0, "{id}");
                    assert_eq!((without.2, with.2), (None, None), "{id}");
                    continue;
                }
                assert_eq!(known(with.1).as_deref(), want["route"].as_str(), "{id}");
                assert_eq!(with.0, 200, "{id}");
                assert_eq!(with.2.as_deref(), want["upstream_path"].as_str(), "{id}");
                let refused = asked.with(Some(&poor), &format!("{short}-poor")).await;
                let statuses = (without.0, refused.0);
                match text(want, "auth") {
                    "none" => assert_eq!(statuses, (200, 200), "{id}"),
                    "jwt" => assert_eq!(statuses, (401, 403), "{id}"),
                    other => panic!("{id}: {other}"),
                }
            }
        }
    }
}

/// What the rows of `security_policies` say, to the letter: nobody has to change a document that is applied already.
#[test]
fn objects_of_the_original_are_taken_with_their_remote_keys() {
    let file = vectors(FILE);
    let up = ([192, 0, 2, 9], 8080).into();
    let snapshot = taken(&reading_list(&file, None, 80, up));
    assert_eq!(snapshot.routes.len(), 4);
    let guarded = snapshot
        .routes
        .iter()
        .filter(|route| route.rules[0].auth.is_some());
    assert_eq!(guarded.count(), 3);
    cardinal_agent::compile::route::compile(&snapshot, 1).expect("they compile");
}

/// Routes of every row and class as documents. What the router does not take is refused at its field, never left open.
#[test]
fn routes_of_the_original_are_taken() {
    // Patterns without a group, and a substitution that puts it in their place.
    const SUBSTITUTION: &str = "spec.urlRewrite.path.replaceRegexMatch.substitution";
    const REFUSED: [(&str, &str); 3] = [
        ("http_routes/base-path-trailing-slash", SUBSTITUTION),
        ("http_routes/target-without-leading-slash", SUBSTITUTION),
        // A replacement that is no path.
        (
            "http_routes/base-path-without-leading-slash",
            "spec.rules[0].filters[0].urlRewrite.path.replacePrefixMatch",
        ),
    ];
    let file = vectors(FILE);
    let up = ([192, 0, 2, 9], 8080).into();
    for row in group(&file, "http_routes") {
        let id = text(row, "id");
        let routes = row["expect"]["routes"].as_array().expect("a list");
        let mut original = Original::new(text(&routes[0], "namespace"), 80);
        let mut at_internal = gateway(81);
        at_internal["metadata"]["name"] = json!("gateway-internal");
        original.documents.push(at_internal);
        for route in routes {
            original.route(route, up);
            if route["rewrite"]["kind"] == "ExtensionRef" {
                original.filter(&json!({
                    "name": route["name"],
                    "rewrite_type": "ReplaceRegexMatch",
                    "pattern": route["match"]["path"],
                    "substitution": "\\1",
                }));
            }
        }
        let listed = REFUSED.iter().find(|(known, _)| *known == id);
        let files: Vec<SourceFile> = original
            .documents
            .iter()
            .enumerate()
            .map(|(at, document)| SourceFile {
                path: format!("{at}.json"),
                bytes: document.to_string().into_bytes(),
            })
            .collect();
        match (parse(&files), listed) {
            (Ok(snapshot), None) => {
                let names: std::collections::BTreeSet<_> =
                    routes.iter().map(|route| text(route, "name")).collect();
                assert_eq!(snapshot.routes.len(), names.len(), "{id}");
            }
            (Err(rejections), Some((_, field))) => assert!(
                rejections
                    .mistakes
                    .iter()
                    .all(|one| &*one.source.field == *field),
                "{id}: {rejections}"
            ),
            (Ok(_), Some(_)) => panic!("{id} is taken and listed"),
            (Err(rejections), None) => panic!("{id}: {rejections}"),
        }
    }
}

#[tokio::test]
async fn proxy_vectors_authorize() {
    let file = vectors(FILE);
    let up = echo("a").await;
    for world in [World::Strict, World::Compat] {
        for row in group(&file, "authorize") {
            let id = format!("{} {world:?}", text(row, "id"));
            let Some(want) = world.wanted(row) else {
                continue;
            };
            let input = &row["input"];
            let audiences = input["provider"]["audiences"].as_array().expect("a list");
            let audiences: Vec<&str> = audiences.iter().filter_map(Value::as_str).collect();
            let issuer = Issuer::new(input["provider"]["issuer"].as_str(), &audiences);
            let cell = Cell {
                project: "p",
                component: "c",
                base_path: "/",
                operations: json!([
                    { "method": "GET", "path": "/x", "scopes": input["required_scopes"] },
                ]),
            };
            let port = free_port();
            let _router = Router::start(&cell.snapshot(world, &issuer, port, up));
            let mut request = get("http://dev.choreoapis.localhost/p/c/x");
            if let Some(token) = input["token"].as_object() {
                let mut claims = json!({});
                let mut signer = &issuer;
                let other = Issuer::new(None, &[]);
                for (claim, value) in token {
                    match claim.as_str() {
                        "signature" if value == "invalid" => signer = &other,
                        "signature" => {}
                        "expired" if value == true => claims["exp"] = json!(now() - 3600),
                        "expired" => {}
                        _ => claims[claim] = value.clone(),
                    }
                }
                let value = format!("Bearer {}", signer.token(claims));
                let value = value.parse().expect("a value");
                request.headers_mut().insert("authorization", value);
            }
            let answer = send(([127, 0, 0, 1], port).into(), request).await;
            assert_eq!(want["status"], answer.status.as_u16(), "{id}");
        }
    }
}
