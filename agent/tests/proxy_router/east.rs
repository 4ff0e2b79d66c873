//! Calls between components, as documents declare them: through the west gate, and addressed directly.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use cardinal_agent::proxy::ProxyConfig;
use http::{Request, Response};
use hyper::body::Incoming;
use snapshot::Snapshot;
use snapshot::model::Workloads;
use tokio::net::TcpListener;

use crate::documents::snapshot;
use crate::support::{Router, free_port, full, get, name, send_from, serve_on};

/// Where callers address a component of the bank; the upstreams themselves listen on [`BEHIND`].
const BANK: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 1));
const BEHIND: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 5, 3));
const READER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 1, 1));
const AUDITOR: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 1, 2));
const TELLER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 2, 1));
const NOBODY: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 3, 1));

/// The bank's ledger serves `/api` and, on the same port and below the same path, `/api/admin`. The
/// shop's reader declared the first, its auditor the second. In the bank only declared connections pass:
/// its teller declared the first, its guest nothing.
fn world(west: u16, ledger: u16) -> Snapshot {
    let mut snapshot = snapshot(&format!(
        "
apiVersion: cardinal.dev/v1alpha1
kind: Platform
metadata: {{ name: platform, namespace: platform }}
spec:
  environments: [{{ name: prod, dnsPrefix: prod }}]
  virtualHosts: {{ organization: internal.test }}
  gateways:
    internal: {{ gatewayRef: {{ namespace: platform, name: west }} }}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{ name: west, namespace: platform }}
spec:
  gatewayClassName: cardinal
  addresses: [{{ type: IPAddress, value: 127.0.0.1 }}]
  listeners:
    - {{ name: http, port: {west}, protocol: HTTP, allowedRoutes: {{ namespaces: {{ from: All }} }} }}
---
apiVersion: cardinal.dev/v1alpha1
kind: Cell
metadata: {{ name: bank-prod, namespace: bank }}
spec:
  organization: acme
  project: bank
  environment: prod
  intra: declared
  components:
    - name: ledger
      type: Service
      workloads: {{ addresses: [192.0.2.1] }}
      endpoints:
        - {{ name: admin, type: HTTP, port: {ledger}, basePath: /api/admin, visibility: {{ organization: {{}} }} }}
        - {{ name: api, type: HTTP, port: {ledger}, basePath: /api, visibility: {{ organization: {{}} }} }}
    - name: teller
      type: Service
      workloads: {{ addresses: [192.0.2.3] }}
      endpoints: []
      connections: [{{ component: ledger, endpoint: api }}]
    - name: guest
      type: Service
      workloads: {{ addresses: [192.0.2.4] }}
      endpoints: []
---
apiVersion: cardinal.dev/v1alpha1
kind: Cell
metadata: {{ name: shop-prod, namespace: shop }}
spec:
  organization: acme
  project: shop
  environment: prod
  intra: open
  components:
    - {{ name: reader, type: Service, workloads: {{ addresses: [192.0.2.5] }}, endpoints: [] }}
    - {{ name: auditor, type: Service, workloads: {{ addresses: [192.0.2.6] }}, endpoints: [] }}
  egress:
    east:
      - {{ from: [reader], project: bank, component: ledger, endpoint: api }}
      - {{ from: [auditor], project: bank, component: ledger, endpoint: admin }}
"
    ));
    // A document may not name loopback, where this test is.
    for (component, own, service) in [
        ("ledger", BEHIND, Some(BANK)),
        ("teller", TELLER, None),
        ("guest", NOBODY, None),
        ("reader", READER, None),
        ("auditor", AUDITOR, None),
    ] {
        let component = snapshot
            .cells
            .values_mut()
            .find_map(|cell| cell.components.get_mut(&name(component)))
            .expect("it is declared");
        component.workloads = Workloads::Addresses(vec![own]);
        component.service_addresses = service.into_iter().collect();
    }
    snapshot
}

/// An upstream that answers with the target it was asked for.
async fn upstream() -> u16 {
    let listener = TcpListener::bind((BEHIND, 0)).await.expect("a port");
    let port = listener.local_addr().expect("it is bound").port();
    serve_on(listener, |request: Request<Incoming>| async move {
        Response::new(full(request.uri().to_string()))
    });
    port
}

fn config(steered: Vec<SocketAddr>) -> ProxyConfig {
    ProxyConfig {
        loopback: true,
        inside: true,
        steered,
        ..ProxyConfig::default()
    }
}

async fn ask(from: IpAddr, at: SocketAddr, uri: &str) -> (u16, String) {
    let answer = send_from(Some(from), at, get(uri)).await;
    let body = String::from_utf8_lossy(&answer.body).into_owned();
    (answer.status.as_u16(), body)
}

#[tokio::test]
async fn proxy_tells_endpoints_of_one_port_apart() {
    let ledger = upstream().await;
    let west: SocketAddr = (BANK, free_port()).into();
    let direct: SocketAddr = (BANK, ledger).into();
    let _router = Router::with(&world(west.port(), ledger), config(vec![direct]));
    let gate = "http://prod.internal.test/bank/ledger";
    for (from, path, status) in [
        (READER, "/api/books", 200),
        (READER, "/api/admin/keys", 403),
        (READER, "/api/x/%2e%2e/admin/keys", 403),
        (READER, "/api/admin", 403),
        (READER, "/api/administrator", 200),
        (READER, "/other", 404),
        (AUDITOR, "/api/books", 403),
        (AUDITOR, "/api/admin/keys", 200),
        (NOBODY, "/api/books", 403),
        (NOBODY, "/other", 403),
    ] {
        let asked = ask(from, direct, &format!("http://ledger{path}")).await;
        assert_eq!(asked.0, status, "{from} {path} direct: {}", asked.1);
        if status == 200 {
            assert_eq!(asked.1, path, "what is served is what was asked for");
        }
        // What is declared is the same, whichever way a call takes.
        if path != "/other" {
            let asked = ask(from, west, &format!("{gate}{path}")).await;
            assert_eq!(asked.0, status, "{from} {path} by the gate: {}", asked.1);
        }
    }
}

#[tokio::test]
async fn proxy_admits_in_a_declared_cell_what_is_declared() {
    let ledger = upstream().await;
    let west: SocketAddr = (BANK, free_port()).into();
    let _router = Router::with(&world(west.port(), ledger), config(Vec::new()));
    for (from, path, status) in [
        (TELLER, "/api/books", 200),
        (TELLER, "/api/admin/keys", 403),
        (NOBODY, "/api/books", 403),
    ] {
        let uri = format!("http://prod.internal.test/bank/ledger{path}");
        assert_eq!(ask(from, west, &uri).await.0, status, "{from} {path}");
    }
}
