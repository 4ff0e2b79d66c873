//! Rows of `cell-routing.json` that the router decides, over real sockets: a document, a cell per
//! placement, and requests by routing key. Every row of a group runs, or is named with the reason why
//! it does not.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cardinal_agent::proxy::ProxyConfig;
use cardinal_agent::resilience::Clock;
use cardinal_agent::route::Placements;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};
use snapshot::{Snapshot, SourceFile, parse};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::support::{
    Body, FOREVER, Reply, Router, free_port, full, http_gateway, send, serve_on, until,
};
use crate::vectors::{expected, group, text, vectors};

const FILE: &str = "cell-routing.json";

/// What a cell does, and what it saw.
#[derive(Default)]
struct Cell {
    name: String,
    behaviour: Value,
    requests: u64,
    probes: u64,
    /// Until when an answer waits, in the place of its delay.
    released: Option<watch::Receiver<bool>>,
    /// Bytes of the last body, as far as they came.
    body: u64,
    /// The last request as JSON.
    saw: Value,
}

type Shared = Arc<Mutex<Cell>>;

async fn answer(cell: Shared, request: Request<Incoming>) -> Response<Body> {
    let (parts, mut body) = request.into_parts();
    let told = |status: u64| {
        let mut response = Response::new(full(String::new()));
        *response.status_mut() = StatusCode::from_u16(status as u16).expect("a status");
        response
    };
    // Rows that ask for /health by the router's front have a key.
    if parts.uri.path() == "/health" && !parts.headers.contains_key("x-routing-key") {
        let mut cell = cell.lock().expect("no panic");
        cell.probes += 1;
        return told(cell.behaviour["health"].as_u64().unwrap_or(200));
    }
    let (status, delay, released, headers) = {
        let mut cell = cell.lock().expect("no panic");
        let at = cell.requests as usize;
        cell.requests += 1;
        cell.body = 0;
        let headers: Vec<(String, String)> = parts
            .headers
            .iter()
            .map(|(name, value)| {
                let value = String::from_utf8_lossy(value.as_bytes());
                (name.to_string(), value.into_owned())
            })
            .collect();
        cell.saw = json!({
            "path": parts.uri.path(),
            "query": parts.uri.query(),
            "uri": parts.uri.to_string(),
            "headers": headers,
        });
        let behaviour = &cell.behaviour;
        (
            behaviour["answers"][at]
                .as_u64()
                .or(behaviour["answer"].as_u64())
                .unwrap_or(200),
            behaviour["delay_ms"].as_u64().unwrap_or(0),
            cell.released.clone(),
            behaviour["headers"].clone(),
        )
    };
    while let Some(Ok(frame)) = body.frame().await {
        let bytes = frame.data_ref().map_or(0, Bytes::len) as u64;
        cell.lock().expect("no panic").body += bytes;
    }
    match released {
        Some(mut released) if delay > 0 => {
            released.wait_for(|now| *now).await.expect("the row runs");
        }
        // Longer than the router waits, on a slow machine as well.
        _ if delay >= 10_000 => tokio::time::sleep(FOREVER).await,
        _ => tokio::time::sleep(Duration::from_millis(delay)).await,
    }
    let mut response = told(status);
    let name = cell.lock().expect("no panic").name.clone();
    let mut set = |name: &str, value: &str| {
        let name: http::HeaderName = name.parse().expect("a name");
        response
            .headers_mut()
            .insert(name, value.parse().expect("a value"));
    };
    set("x-cell-name", &name);
    for (name, value) in headers.as_object().into_iter().flatten() {
        set(name, value.as_str().expect("text"));
    }
    response
}

/// RFC 7396.
fn merge(into: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    let into = into.as_object_mut().expect("it was made one");
    for (name, value) in patch {
        if value.is_null() {
            into.remove(name);
        } else {
            merge(into.entry(name.clone()).or_insert(Value::Null), value);
        }
    }
}

/// A router with one table, and a cell behind every placement.
pub(crate) struct World {
    router: Router,
    at: SocketAddr,
    clock: Clock,
    cells: BTreeMap<String, Shared>,
}

/// A routing table as its own file, and a route to it.
fn documents(document: &Value, at: u16) -> Snapshot {
    let edge = http_gateway("edge", at);
    let route = format!(
        "
{edge}apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{ name: r }}
spec:
  parentRefs: [{{ name: edge }}]
  rules: [{{ backendRefs: [{{ group: cardinal.dev, kind: RoutingTable, name: routing }}] }}]"
    );
    let file = |path: &str, text: String| SourceFile {
        path: path.into(),
        bytes: text.into_bytes(),
    };
    let files = [
        file("routing.json", document.to_string()),
        file("route.yaml", route),
    ];
    parse(&files).unwrap_or_else(|rejections| panic!("{rejections}"))
}

impl World {
    async fn start(document: &Value, cells: &Value) -> Self {
        Self::without(document, cells, &[]).await
    }

    /// `missing` placements are taken out of the table behind the document's back.
    async fn without(document: &Value, behaviour: &Value, missing: &[&str]) -> Self {
        let mut document = document.clone();
        let mut cells = BTreeMap::new();
        for form in ["cellEndpoints", "placements"] {
            let named = document.get_mut(form).and_then(Value::as_object_mut);
            for (name, value) in named.into_iter().flatten() {
                let down = behaviour[name]["down"] == true;
                // Where nobody listens, nobody is to begin to.
                let port = if down { free_port() } else { 0 };
                let listener = TcpListener::bind(("127.0.0.1", port))
                    .await
                    .expect("a port");
                let url = format!("http://{}", listener.local_addr().expect("it is bound"));
                let cell: Shared = Arc::new(Mutex::new(Cell {
                    name: name.clone(),
                    behaviour: behaviour[name].clone(),
                    ..Cell::default()
                }));
                if !down {
                    let cell = Arc::clone(&cell);
                    serve_on(listener, move |request| answer(Arc::clone(&cell), request));
                }
                cells.insert(name.clone(), cell);
                match value.is_object() {
                    true => value["url"] = url.into(),
                    false => *value = url.into(),
                }
            }
        }
        let at = free_port();
        let mut snapshot = documents(&document, at);
        for table in snapshot.routing_tables.values_mut() {
            let table = Arc::get_mut(table).expect("nobody else has it");
            table
                .placements
                .retain(|name, _| !missing.contains(&name.as_str()));
        }
        let clock = Clock::still();
        let config = ProxyConfig {
            clock: clock.clone(),
            ..ProxyConfig::default()
        };
        let world = Self {
            router: Router::with(&snapshot, config),
            at: ([127, 0, 0, 1], at).into(),
            clock,
            cells,
        };
        world.probed().await;
        world
    }

    fn table(&self) -> Arc<Placements> {
        let table = self.router.table.load();
        Arc::clone(table.placements().next().expect("one table"))
    }

    fn cell(&self, name: &str) -> std::sync::MutexGuard<'_, Cell> {
        self.cells[name].lock().expect("no panic")
    }

    /// Waits until every cell was asked how it is, and the answer is known.
    async fn probed(&self) {
        let known = || {
            self.table().all().all(|placement| {
                let cell = self.cell(&placement.name);
                let health = cell.behaviour["health"].as_u64().unwrap_or(200);
                let down = cell.behaviour["down"] == true;
                let healthy = placement.endpoints[0].health().healthy();
                match down {
                    true => !healthy,
                    false => cell.probes > 0 && healthy == (200..300).contains(&health),
                }
            })
        };
        until("cells are probed", known).await;
    }

    async fn ask(&self, method: &str, request: &Value) -> Option<Reply> {
        ask(self.at, method, request).await
    }
}

/// One request as a row tells it; none if the client gave up.
async fn ask(at: SocketAddr, method: &str, request: &Value) -> Option<Reply> {
    let path = request["path"].as_str().unwrap_or("/x");
    let host = request["host"].as_str().unwrap_or("client.example");
    let mut builder = Request::builder()
        .method(method)
        .uri(format!("http://{host}{path}"));
    if let Some(key) = request["key"].as_str() {
        builder = builder.header("x-routing-key", key);
    }
    for (name, value) in request["headers"].as_object().into_iter().flatten() {
        builder = builder.header(name, value.as_str().expect("text"));
    }
    for line in request["header_lines"].as_array().into_iter().flatten() {
        let part = |at: usize| line[at].as_str().expect("text");
        builder = builder.header(part(0), part(1));
    }
    let chunked = match request["chunked"] == true {
        true => request["body_bytes"].as_u64(),
        false => request["chunked_body_bytes"].as_u64(),
    };
    let body: Body = match chunked {
        Some(bytes) => Chunks(bytes).boxed(),
        None => {
            let length = request["content_length"].as_u64();
            let length = length.or(request["body_bytes"].as_u64()).unwrap_or(0);
            full("x".repeat(length as usize))
        }
    };
    let sent = send(at, builder.body(body).expect("a request"));
    match request["client_timeout_ms"].as_u64() {
        Some(limit) => tokio::time::timeout(Duration::from_millis(limit), sent)
            .await
            .ok(),
        None => Some(sent.await),
    }
}

/// A body that does not tell its length: so many bytes, 50 at a time.
struct Chunks(u64);

impl http_body::Body for Chunks {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let size = this.0.min(50);
        this.0 -= size;
        let chunk = Bytes::from(vec![b'x'; size as usize]);
        Poll::Ready((size > 0).then(|| Ok(http_body::Frame::data(chunk))))
    }
}

fn compare(id: &str, reply: &Reply, want: &Value) {
    if let Some(status) = want["status"].as_u64() {
        assert_eq!(u64::from(reply.status.as_u16()), status, "{id}: {reply:?}");
    }
    for (name, value) in want["headers"].as_object().into_iter().flatten() {
        assert_eq!(reply.header(name), value.as_str(), "{id} {name}: {reply:?}");
    }
    for absent in want["absent_headers"].as_array().into_iter().flatten() {
        let absent = absent.as_str().expect("text");
        assert_eq!(reply.header(absent), None, "{id} {absent}");
    }
}

fn document(file: &Value, row: &Value) -> Value {
    let mut document = file["fixtures"][text(row, "config")].clone();
    if let Some(patch) = row.get("patch") {
        merge(&mut document, patch);
    }
    document
}

#[test]
fn proxy_vectors_router_decision() {
    let file = vectors(FILE);
    for row in group(&file, "router_decision") {
        let id = text(row, "id");
        // F4 is no valid document: there the decision is asked without one endpoint.
        let mut document = file["fixtures"][text(row, "config")].clone();
        let incomplete = document.get("version").is_none();
        if incomplete {
            document["version"] = "1".into();
            let missing = document["routingTable"].as_object().expect("keys").values();
            for name in missing.cloned().collect::<Vec<_>>() {
                let name = name.as_str().expect("text");
                document["cellEndpoints"][name] = "http://missing".into();
            }
        }
        let snapshot = documents(&document, 80);
        let mut table = (**snapshot.routing_tables.values().next().expect("one")).clone();
        if incomplete {
            let declared = &file["fixtures"][text(row, "config")]["cellEndpoints"];
            table
                .placements
                .retain(|name, _| declared.get(name).is_some());
        }
        let placements = Placements::new(&table).expect("it compiles");
        let placed = placements.decide(text(row, "routing_key"));
        let want = expected(row);
        if want["error"] == "no_endpoint" {
            assert!(placed.placement.is_none(), "{id}");
            continue;
        }
        assert_eq!(**placed.name, *text(want, "placement"), "{id}");
        assert_eq!(placed.reason.as_str(), text(want, "reason"), "{id}");
        let placement = placed.placement.expect("an endpoint");
        let authority = placement.endpoints[0].host.as_str();
        assert_eq!(
            format!("http://{authority}"),
            text(want, "endpoint"),
            "{id}"
        );
    }
}

#[tokio::test]
async fn proxy_vectors_smoke_and_http() {
    let file = vectors(FILE);
    // `proxy_vectors_quirks_that_are_better_here` has these.
    let left_out = BTreeSet::from(["HT17", "HT18"]);
    let mut seen = BTreeSet::new();
    for row in group(&file, "smoke").iter().chain(group(&file, "http")) {
        let id = text(row, "id");
        if left_out.contains(id) {
            seen.insert(id);
            continue;
        }
        let missing: &[&str] = if id == "HT16" { &["visa"] } else { &[] };
        let world = World::without(&document(&file, row), &row["cells"], missing).await;
        let request = &row["request"];
        let methods: Vec<&str> = match request["methods"].as_array() {
            Some(list) => list.iter().filter_map(Value::as_str).collect(),
            None => vec![text(request, "method")],
        };
        for method in methods {
            let reply = world.ask(method, request).await.expect("an answer");
            compare(id, &reply, expected(row));
        }
    }
    assert_eq!(seen, left_out, "rows that are left out exist");
}

#[tokio::test]
async fn proxy_vectors_forwarding() {
    let file = vectors(FILE);
    // `proxy_vectors_quirks_that_are_better_here` has it.
    let left_out = BTreeSet::from(["FW10"]);
    let mut seen_out = BTreeSet::new();
    for row in group(&file, "forwarding") {
        let id = text(row, "id");
        if left_out.contains(id) {
            seen_out.insert(id);
            continue;
        }
        let world = World::start(&file["fixtures"]["F1_routing_json"], &Value::Null).await;
        let mut request = row["request"].clone();
        if request["headers"]["X-Routing-Key"].is_null() {
            request["key"] = "visa".into();
        }
        let method = request["method"].as_str().unwrap_or("GET").to_owned();
        let reply = world.ask(&method, &request).await.expect("an answer");
        let want = expected(row);
        compare(id, &reply, want);
        let cell = world.cell("visa");
        let Some(saw) = want["upstream_saw"].as_object() else {
            assert_eq!(want["forwarded"], false, "{id}");
            assert_eq!(cell.requests, 0, "{id}");
            continue;
        };
        let seen = |name: &str| -> Vec<&str> {
            let pairs = cell.saw["headers"].as_array().expect("headers");
            pairs
                .iter()
                .filter(|pair| pair[0] == name.to_lowercase())
                .filter_map(|pair| pair[1].as_str())
                .collect()
        };
        for (field, value) in saw {
            match field.as_str() {
                "headers" => {
                    for (name, value) in value.as_object().expect("an object") {
                        if name == "Host" {
                            // Here cells have addresses; what counts is that it is the endpoint's.
                            let table = world.table();
                            let visa = table.placement("visa").expect("a placement");
                            assert_eq!(seen(name), [visa.endpoints[0].host.as_str()], "{id}");
                        } else if let Some(pattern) = value["matches"].as_str() {
                            let pattern = regex::Regex::new(pattern).expect("a pattern");
                            let one = seen(name);
                            assert!(one.len() == 1 && pattern.is_match(one[0]), "{id} {one:?}");
                        } else {
                            assert_eq!(seen(name), [value.as_str().expect("text")], "{id}");
                        }
                    }
                }
                "absent_headers" => {
                    for absent in value.as_array().expect("a list") {
                        let absent = absent.as_str().expect("text");
                        assert_eq!(seen(absent), [""; 0], "{id} {absent}");
                    }
                }
                "body_bytes" => assert_eq!(Some(cell.body), value.as_u64(), "{id}"),
                other => assert_eq!(&cell.saw[other], value, "{id} {other}"),
            }
        }
    }
    assert_eq!(seen_out, left_out, "rows that are left out exist");
}

/// Quirks of the original for which the row suggests something better, and what it suggests is done.
#[tokio::test]
async fn proxy_vectors_quirks_that_are_better_here() {
    let file = vectors(FILE);
    let quirk = |called: &str, id: &str| -> Value {
        let mut rows = group(&file, called).iter();
        let row = rows
            .find(|row| text(row, "id") == id)
            .expect("the row is there");
        assert_eq!(text(row, "class"), "quirk", "{id}");
        row.clone()
    };
    quirk("http", "HT17");
    let path = quirk("forwarding", "FW10");
    for endpoint in ["not a url", text(&path["request"], "endpoint")] {
        let mut document = file["fixtures"]["F1_routing_json"].clone();
        document["cellEndpoints"]["visa"] = endpoint.into();
        let file = SourceFile {
            path: "routing.json".into(),
            bytes: document.to_string().into_bytes(),
        };
        let rejections = parse(&[file]).expect_err("it is refused");
        let fields: Vec<&str> = rejections
            .mistakes
            .iter()
            .map(|one| &*one.source.field)
            .collect();
        assert_eq!(fields, ["cellEndpoints.visa"], "{endpoint}");
    }
    let returned = quirk("http", "HT18");
    let world = World::start(&file["fixtures"]["F1_routing_json"], &Value::Null).await;
    let mut request = returned["request"].clone();
    let method = text(&returned["request"], "method");
    request["headers"]["X-Request-Id"] = "mine".into();
    let reply = world.ask(method, &request).await.expect("an answer");
    assert_eq!(reply.header("x-request-id"), Some("mine"));
}

#[tokio::test]
async fn proxy_vectors_health_status() {
    let file = vectors(FILE);
    for row in group(&file, "health_status") {
        let world = World::start(&document(&file, row), &row["cells"]).await;
        let reply = world.ask("GET", &row["request"]).await;
        compare(text(row, "id"), &reply.expect("an answer"), expected(row));
    }
}

/// Runs the steps of a row.
async fn steps(file: &Value, row: &Value) {
    let id = text(row, "id");
    let steps = match text(row, "class") {
        "defect" => &row["instead"]["steps"],
        _ => &row["steps"],
    };
    let world = World::start(&document(file, row), &row["cells"]).await;
    let mut background = BTreeMap::new();
    // What goes on behind other requests ends when the row waits for it, and not before.
    let (release, released) = watch::channel(false);
    let listed = steps.as_array().expect("steps");
    if listed.iter().any(|step| step["background"].is_string()) {
        for cell in world.cells.values() {
            cell.lock().expect("no panic").released = Some(released.clone());
        }
    }
    for (number, step) in listed.iter().enumerate() {
        let id = format!("{id} step {number}");
        let want = &step["expect"];
        if let Some(change) = step["cells"].as_object() {
            for (name, behaviour) in change {
                world.cell(name).behaviour = behaviour.clone();
            }
            world.probed().await;
        }
        for wait in [&step["wait_ms"], &step["at_ms"]] {
            world
                .clock
                .advance(Duration::from_millis(wait.as_u64().unwrap_or(0)));
        }
        if let Some(name) = step["after"].as_str() {
            release.send_replace(true);
            let (id, want, task): (String, Value, tokio::task::JoinHandle<Option<Reply>>) =
                background.remove(name).expect("it was started");
            compare(
                &id,
                &task.await.expect("no panic").expect("an answer"),
                &want,
            );
        }
        let request = &step["request"];
        let method = request["method"].as_str().unwrap_or("GET").to_owned();
        if let Some(name) = step["background"].as_str() {
            let (at, request, before) = (world.at, request.clone(), requests(&world));
            let task = tokio::spawn(async move { ask(at, &method, &request).await });
            background.insert(name, (id, want.clone(), task));
            // It is under way once its cell has it.
            until("a cell has it", || requests(&world) > before).await;
            continue;
        }
        let repeat = match request.is_null() {
            true => 0,
            false => step["repeat"].as_u64().unwrap_or(1),
        };
        for turn in 0..repeat as usize {
            let started = Instant::now();
            let Some(reply) = world.ask(&method, request).await else {
                assert!(!request["client_timeout_ms"].is_null(), "{id}");
                continue;
            };
            compare(&id, &reply, want);
            if let Some(status) = want["statuses"][turn].as_u64() {
                assert_eq!(u64::from(reply.status.as_u16()), status, "{id} turn {turn}");
            }
            if let Some(wanted) = want["elapsed_ms"].as_u64() {
                let took = started.elapsed().as_millis() as u64;
                // Later by as much as a busy machine may need.
                let near = (wanted * 9 / 10)..=(wanted * 3);
                assert!(near.contains(&took), "{id}: {took} ms");
            }
            let served = request["key"].as_str().and_then(|key| world.cells.get(key));
            let body = |cell: &Shared| cell.lock().expect("no panic").body;
            if let Some(bytes) = want["upstream_body_bytes"].as_u64() {
                assert_eq!(served.map(body), Some(bytes), "{id}");
            }
            if let Some(most) = want["upstream_body_bytes_max"].as_u64() {
                assert!(served.map(body).is_some_and(|bytes| bytes <= most), "{id}");
            }
        }
        for (name, count) in want["cell_requests"].as_object().into_iter().flatten() {
            assert_eq!(Some(world.cell(name).requests), count.as_u64(), "{id}");
        }
        for (name, state) in want["breaker"].as_object().into_iter().flatten() {
            let table = world.table();
            let placement = table.placement(name).expect("a placement");
            let (now, _) = placement.state().breaker.state();
            assert_eq!(Some(now.as_str()), state.as_str(), "{id} {name}");
        }
    }
}

fn requests(world: &World) -> u64 {
    let cells = world.cells.keys();
    cells.map(|name| world.cell(name).requests).sum()
}

#[tokio::test]
async fn proxy_vectors_upstream_failures() {
    let file = vectors(FILE);
    for row in group(&file, "upstream_failures") {
        steps(&file, row).await;
    }
}

#[tokio::test]
async fn proxy_vectors_m4() {
    let file = vectors(FILE);
    for row in group(&file, "m4") {
        steps(&file, row).await;
    }
}

/// CB01 to CB03 are about the breaker alone and run beside it.
#[tokio::test]
async fn proxy_vectors_circuit_breaker() {
    let file = vectors(FILE);
    let rows = group(&file, "circuit_breaker").iter();
    for row in rows.filter(|row| row.get("failure_threshold").is_none()) {
        steps(&file, row).await;
    }
}

/// LD07. The others of the group are about the agent's folder and run with it.
#[tokio::test]
async fn proxy_vectors_loader_takes_the_newer_form() {
    let file = vectors(FILE);
    let rows = group(&file, "loader").iter();
    let mut ran = 0;
    for row in rows.filter(|row| !expected(row)["then"].is_null()) {
        let then = &expected(row)["then"];
        let document = &file["fixtures"][text(&row["initial"], "$fixture")];
        let world = World::start(document, &Value::Null).await;
        let reply = world.ask("GET", &then["request"]).await;
        compare(text(row, "id"), &reply.expect("an answer"), &then["expect"]);
        ran += 1;
    }
    assert_eq!(ran, 1);
}

/// A new table takes over breakers and health, and its new endpoints are asked at once.
#[tokio::test]
async fn proxy_remembers_breakers_and_health_over_a_new_table() {
    let file = vectors(FILE);
    let fixture = &file["fixtures"]["F1_routing_json"];
    let behaviour = json!({"visa": {"answer": 500}, "tier1": {"health": 503}});
    let world = World::start(fixture, &behaviour).await;
    let visa = json!({"key": "visa"});
    for _ in 0..5 {
        world.ask("GET", &visa).await;
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let ill = listener.local_addr().expect("it is bound");
    let cell: Shared = Arc::default();
    cell.lock().expect("no panic").behaviour = json!({"health": 500});
    serve_on(listener, {
        let cell = Arc::clone(&cell);
        move |request| answer(Arc::clone(&cell), request)
    });
    let mut document = fixture.clone();
    for placement in world.table().all() {
        let url = format!("http://{}", placement.endpoints[0].name());
        document["cellEndpoints"][&*placement.name] = url.into();
    }
    document["cellEndpoints"]["tier2"] = format!("http://{ill}").into();
    let next = cardinal_agent::compile::route::compile(&documents(&document, world.at.port()), 2);
    let next = next.expect("it compiles");
    next.adopt(&world.router.table.load());
    world.router.table.store(Arc::new(next));
    world.router.proxy.published();
    let refused = world.ask("GET", &visa).await.expect("an answer");
    assert_eq!(refused.status, 503, "the breaker is open still");
    let elsewhere = world
        .ask("GET", &json!({"key": "acme"}))
        .await
        .expect("an answer");
    assert_eq!(
        elsewhere.header("x-failover-reason"),
        Some("upstream_unhealthy")
    );
    until("the new endpoint is asked", || {
        let table = world.table();
        let placement = table.placement("tier2").expect("there");
        !placement.endpoints[0].health().healthy()
    })
    .await;
    let record = world
        .router
        .record(|one| one.failover_reason.is_some())
        .await;
    assert_eq!(record.placement.as_deref(), Some("tier3"));
}

/// Three endpoints of one placement: each is named by its own host, and one that is down is passed over.
#[tokio::test]
async fn proxy_spreads_a_placement_over_its_endpoints() {
    let (mut cells, mut urls) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        urls.push(format!(
            "http://{}",
            listener.local_addr().expect("it is bound")
        ));
        let cell: Shared = Arc::default();
        cells.push(Arc::clone(&cell));
        serve_on(listener, move |request| answer(Arc::clone(&cell), request));
    }
    urls.push(format!("http://127.0.0.1:{}", free_port()));
    let document = json!({
        "version": "1",
        "placements": {"a": {"endpoints": urls}},
        "defaultPlacement": "a",
    });
    let at = free_port();
    let router = Router::start(&documents(&document, at));
    let at: SocketAddr = ([127, 0, 0, 1], at).into();
    for _ in 0..24 {
        let reply = ask(at, "GET", &json!({"key": "k"}))
            .await
            .expect("an answer");
        assert_eq!(reply.status, 200);
    }
    for (cell, url) in cells.iter().zip(&urls) {
        let cell = cell.lock().expect("no panic");
        assert!(cell.requests >= 4, "{} of 24", cell.requests);
        let host = url.strip_prefix("http://").expect("a URL");
        let seen = cell.saw["headers"].as_array().expect("headers");
        assert!(seen.contains(&json!(["host", host])), "{seen:?}");
    }
    let table = router.table.load();
    let placement = table.placements().next().expect("a table");
    let placement = placement.placement("a").expect("a placement");
    until("the slots are given back", || {
        placement.state().slots.taken() == 0
    })
    .await;
}
