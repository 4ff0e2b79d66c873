//! A data plane of OpenChoreo whose gateway class is Cardinal's (`policies/openchoreo`): its own routes, filters and policies, over
//! sockets. What a test puts in another place is where pods and keys are, and the port that the gateways listen at.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use cardinal_agent::proxy::{ProxyConfig, Reason};
use http::Response;
use serde_json::json;
use snapshot::model::{Cell, CellId, Gate, Workloads};
use snapshot::{Shared, Snapshot, SourceFile, parse};

use crate::auth::Issuer;
use crate::support::{Reply, Router, echo, free_port, full, get, port, send, serve};

/// Where the test has what the documents name.
struct Places {
    /// Components by an address of their pod.
    pods: Vec<(&'static str, SocketAddr)>,
    /// The server of the keys.
    keys: SocketAddr,
    /// The port of both gateways.
    port: u16,
}

fn files(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("the folder is there") {
        let path = entry.expect("it can be listed").path();
        if path.is_dir() {
            files(&path, into);
        } else {
            into.push(path);
        }
    }
}

fn policies() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies/openchoreo")
}

/// The documents of a generation of OpenChoreo, and more of them.
fn documents(generation: &str, more: &[&str], change: impl Fn(&str) -> String) -> Snapshot {
    let mut paths = Vec::new();
    files(&policies().join(generation), &mut paths);
    paths.extend(more.iter().map(|path| policies().join(path)));
    paths.sort();
    let files: Vec<SourceFile> = paths
        .iter()
        .map(|path| {
            let text = std::fs::read_to_string(path).expect("it can be read");
            SourceFile {
                path: path.display().to_string(),
                bytes: change(&text).into_bytes(),
            }
        })
        .collect();
    parse(&files).unwrap_or_else(|rejections| panic!("{rejections}"))
}

fn moved(text: &str, places: &Places) -> String {
    let documents = text.split("---\n").filter_map(|document| {
        if !document.contains("kind: EndpointSlice") {
            return Some(document.to_owned());
        }
        // Loopback has one address of this family, and all pods would have it.
        let (pod, at) = places
            .pods
            .iter()
            .find(|(pod, _)| document.contains(&format!("\"{pod}\"")))?;
        let mut lines: Vec<String> = document.lines().map(str::to_owned).collect();
        // The first port of a component is the one that routes lead to.
        if let Some(line) = lines.iter_mut().find(|line| line.contains(", port: ")) {
            let (name, rest) = line.split_once(", port: ").expect("it is there");
            let (_, rest) = rest.split_once(',').expect("more follows");
            *line = format!("{name}, port: {},{rest}", at.port());
        }
        Some((lines.join("\n") + "\n").replace(pod, &at.ip().to_string()))
    });
    let text: Vec<String> = documents.collect();
    text.join("---\n")
        .replace("198.51.100.0/28", "127.0.0.16/28")
        .replace("port: 80,", &format!("port: {},", places.port))
        .replace(
            "https://idp.example/oauth2/jwks",
            &format!("http://{}/oauth2/jwks", places.keys),
        )
}

/// The router with one of the folders, and what asks it.
struct DataPlane {
    issuer: Issuer,
    external: SocketAddr,
    internal: SocketAddr,
    _router: Router,
}

impl DataPlane {
    async fn start(generation: &str, namespace: &str) -> Self {
        let issuer = Issuer::new(None, &[]);
        let set = issuer.jwks().to_string();
        let keys = serve(move |_| {
            let set = set.clone();
            async move { Response::new(full(set)) }
        })
        .await;
        let places = Places {
            pods: vec![
                ("10.10.1.5", echo("reading-list").await),
                ("10.10.1.6", echo("web").await),
                ("10.10.2.7", echo("ledger").await),
            ],
            keys,
            port: free_port(),
        };
        let snapshot = documents(generation, &[], |text| moved(text, &places));
        let at = |gateway: &str| {
            let found = snapshot
                .gateways
                .values()
                .find(|one| (one.name.namespace(), one.name.name()) == (namespace, gateway));
            let gateway = found.unwrap_or_else(|| panic!("no gateway {gateway}"));
            SocketAddr::new(gateway.addresses[0], places.port)
        };
        let (external, internal) = (at("gateway-external"), at("gateway-internal"));
        Self {
            issuer,
            external,
            internal,
            _router: Router::start(&snapshot),
        }
    }

    async fn ask(&self, at: SocketAddr, method: &str, uri: &str, scopes: Option<&str>) -> Reply {
        let mut request = get(uri);
        *request.method_mut() = method.parse().expect("a method");
        if let Some(scopes) = scopes {
            let token = self.issuer.token(json!({ "scope": scopes }));
            let value = format!("Bearer {token}").parse().expect("a value");
            request.headers_mut().insert("authorization", value);
        }
        send(at, request).await
    }
}

/// Who answered with which path, or the status of a refusal.
fn told(reply: &Reply) -> String {
    match reply.status.as_u16() {
        200 => {
            let told = reply.json();
            let text = |field: &str| told[field].as_str().expect("a text").to_owned();
            format!("{} {}", text("name"), text("uri"))
        }
        status => status.to_string(),
    }
}

#[tokio::test]
async fn proxy_serves_the_data_plane_of_the_first_controllers() {
    let plane = DataPlane::start("first", "choreo-system").await;
    let books = "http://dev.choreoapis.localhost/library/reading-list/api/v1";
    // The keys are fetched in the background.
    for _ in 0..6000 {
        let uri = format!("{books}/books");
        let read = plane.ask(plane.external, "GET", &uri, Some("read:books:all"));
        if read.await.status == 200 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let inside = "http://dev.choreoapis.internal/library/reading-list/api/v1";
    let ledger = "http://dev.choreoapis.internal/audit/ledger";
    let (north, west) = (plane.external, plane.internal);
    for (at, method, uri, scopes, expected) in [
        // Each operation has a route, whose filter takes the prefix away, and a policy with its scopes.
        (
            north,
            "GET",
            format!("{books}/books?page=2"),
            Some("read:books:all"),
            "reading-list /api/v1/books?page=2",
        ),
        (
            north,
            "GET",
            format!("{books}/books"),
            Some("read:books"),
            "403",
        ),
        (north, "GET", format!("{books}/books"), None, "401"),
        (
            north,
            "POST",
            format!("{books}/books"),
            Some("write:books read:books"),
            "reading-list /api/v1/books",
        ),
        (
            north,
            "POST",
            format!("{books}/books"),
            Some("read:books:all"),
            "403",
        ),
        (
            north,
            "GET",
            format!("{books}/books/7"),
            Some("read:books"),
            "reading-list /api/v1/books/7",
        ),
        (north, "GET", format!("{books}/books/7"), None, "401"),
        // The wildcard route is open, as these objects say.
        (
            north,
            "DELETE",
            format!("{books}/books/7"),
            None,
            "reading-list /api/v1/books/7",
        ),
        (
            north,
            "GET",
            format!("{books}/other"),
            None,
            "reading-list /api/v1/other",
        ),
        (
            north,
            "GET",
            "http://dev.choreoapis.localhost/library/reading-list/api/v12".to_owned(),
            None,
            "404",
        ),
        // A web application has a host of its own.
        (
            north,
            "GET",
            "http://web-dev.choreoapps.localhost/a/b".to_owned(),
            None,
            "web /a/b",
        ),
        // The organization's section has no operations.
        (
            west,
            "GET",
            format!("{inside}/books/7"),
            None,
            "reading-list /api/v1/books/7",
        ),
        (
            west,
            "GET",
            format!("{ledger}/entries"),
            None,
            "ledger /entries",
        ),
        // Each gateway has the hosts of its own visibility.
        (north, "GET", format!("{ledger}/entries"), None, "404"),
        (
            north,
            "GET",
            "http://dev.choreoapis.localhost/audit/ledger".to_owned(),
            None,
            "404",
        ),
        (
            west,
            "GET",
            format!("{books}/books"),
            Some("read:books:all"),
            "404",
        ),
        (
            west,
            "GET",
            "http://web-dev.choreoapps.localhost/".to_owned(),
            None,
            "404",
        ),
    ] {
        let reply = plane.ask(at, method, &uri, scopes).await;
        assert_eq!(told(&reply), expected, "{method} {uri} {scopes:?}");
    }
}

#[tokio::test]
async fn proxy_serves_the_data_plane_of_release_1_2() {
    let plane = DataPlane::start("release-1.2", "openchoreo-data-plane").await;
    let (north, west) = (plane.external, plane.internal);
    for (at, uri, expected) in [
        (
            north,
            "http://dev-acme.apps.example.com/reading-list-api/books?page=2",
            "reading-list /api/v1/books?page=2",
        ),
        (
            north,
            "http://dev-acme.apps.example.com/reading-list-api",
            "reading-list /api/v1",
        ),
        (
            north,
            "http://web-dev-acme.apps.example.com/a/b",
            "web /a/b",
        ),
        (
            west,
            "http://dev-acme.apps.internal/ledger-entries/2026",
            "ledger /2026",
        ),
        (
            north,
            "http://dev-acme.apps.example.com/ledger-entries/2026",
            "404",
        ),
        (
            west,
            "http://dev-acme.apps.internal/reading-list-api/books",
            "404",
        ),
        (
            north,
            "http://dev-other.apps.example.com/reading-list-api/books",
            "404",
        ),
    ] {
        let reply = plane.ask(at, "GET", uri, None).await;
        assert_eq!(told(&reply), expected, "{uri}");
    }
}

/// The cells of release 1.2 where this test has their pods: `reading-list` is whoever asks here, and `ledger` answers at `ledger`.
fn cells(more: &[&str], ledger: SocketAddr) -> BTreeMap<CellId, Shared<Cell>> {
    let mut cells = documents("release-1.2", more, str::to_owned).cells;
    for cell in cells.values_mut() {
        for component in cell.components.values_mut() {
            let address = match component.id.component.as_str() {
                "reading-list" => [127, 0, 0, 1],
                "ledger" => [127, 0, 0, 1],
                _ => [127, 0, 0, 9],
            };
            component.workloads = Workloads::Addresses(vec![address.into()]);
            for endpoint in component.endpoints.values_mut() {
                if endpoint.id.endpoint.as_str() == "entries" {
                    endpoint.port = port(ledger.port());
                }
            }
        }
    }
    cells
}

#[tokio::test]
async fn proxy_components_of_labels_may_use_the_gates_until_a_document_declares_their_egress() {
    let ledger = echo("ledger").await;
    let places = Places {
        pods: vec![
            ("10.10.1.5", echo("reading-list").await),
            ("10.10.1.6", echo("web").await),
            ("10.10.2.7", ledger),
        ],
        keys: ledger,
        port: free_port(),
    };
    let mut snapshot = documents("release-1.2", &[], |text| moved(text, &places));
    let at = |gate: Gate| {
        let mut gateways = snapshot.gateways.values();
        let gateway = gateways.find(|one| one.gate == Some(gate));
        let address = gateway.expect("the gate is there").addresses[0];
        SocketAddr::new(address, places.port)
    };
    let (north, west) = (at(Gate::External), at(Gate::Internal));
    let entries = "http://dev-acme.apps.internal/ledger-entries/2026";
    let web = "http://web-dev-acme.apps.example.com/a";
    snapshot.cells = cells(&[], ledger);
    // Whoever asks from loopback is taken for the component with that address.
    let config = ProxyConfig {
        loopback: true,
        ..ProxyConfig::default()
    };
    let router = Router::with(&snapshot, config);
    assert_eq!(told(&send(west, get(entries)).await), "ledger /2026");
    assert_eq!(told(&send(north, get(web)).await), "web /a");

    snapshot.cells = cells(&["egress/release-1.2.yaml"], ledger);
    router.publish(&snapshot, 2);
    assert_eq!(told(&send(west, get(entries)).await), "ledger /2026");
    assert_eq!(told(&send(north, get(web)).await), "403");
    router.reason(Reason::NorthFromCell).await;

    // The same document without the call.
    for cell in snapshot.cells.values_mut() {
        cell.east.clear();
    }
    router.publish(&snapshot, 3);
    assert_eq!(told(&send(west, get(entries)).await), "403");
    router.reason(Reason::EastNotDeclared).await;
}
