//! From documents to answers: what an operator writes is what the router does.

use std::net::SocketAddr;

use cardinal_agent::compile::route::compile;
use serde_json::json;
use snapshot::Snapshot;
use snapshot::model::Workloads;
use snapshot::{SourceFile, parse};

use crate::auth::Issuer;
use crate::support::{Router, echo, free_port, get, send};

pub(crate) fn snapshot(text: &str) -> Snapshot {
    let file = SourceFile {
        path: "test.yaml".into(),
        bytes: text.as_bytes().to_vec(),
    };
    match parse(&[file]) {
        Ok(snapshot) => snapshot,
        Err(rejections) => panic!("{rejections}"),
    }
}

fn world(jwks: &str, north: u16, west: u16, up: SocketAddr) -> String {
    let gateway = |called: &str, at: u16| {
        format!(
            "
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{ name: {called}, namespace: platform }}
spec:
  gatewayClassName: cardinal
  addresses: [{{ type: IPAddress, value: 127.0.0.1 }}]
  listeners:
    - {{ name: http, port: {at}, protocol: HTTP, allowedRoutes: {{ namespaces: {{ from: All }} }} }}"
        )
    };
    format!(
        "
apiVersion: cardinal.dev/v1alpha1
kind: Platform
metadata: {{ name: platform, namespace: platform }}
spec:
  environments: [{{ name: prod, dnsPrefix: prod }}]
  virtualHosts: {{ public: apis.test, organization: internal.test, webApplications: apps.test }}
  gateways:
    external: {{ gatewayRef: {{ namespace: platform, name: north }} }}
    internal: {{ gatewayRef: {{ namespace: platform, name: west }} }}
  jwtProviders:
    - name: default
      algorithms: [ES256]
      localJWKS: {{ type: Inline, inline: '{jwks}' }}{}{}
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
    - name: orders
      type: Service
      workloads: {{ addresses: [{ip}] }}
      endpoints:
        - name: api
          type: HTTP
          port: {port}
          basePath: /v1
          visibility:
            organization: {{}}
            public:
              jwt: {{ provider: default }}
              operations:
                - {{ method: GET, path: \"/books/{{id}}\", scopes: [read] }}
                - {{ method: POST, path: /books, scopes: [write] }}
    - name: web
      type: WebApplication
      workloads: {{ addresses: [192.0.2.2] }}
      endpoints:
        - {{ name: site, type: HTTP, port: {port}, basePath: /, visibility: {{ public: {{}} }} }}
",
        gateway("north", north),
        gateway("west", west),
        ip = "192.0.2.1",
        port = up.port(),
    )
}

#[tokio::test]
async fn proxy_serves_a_cell_as_its_document_says() {
    let up = echo("orders").await;
    let issuer = Issuer::new(None, &[]);
    let (north, west) = (free_port(), free_port());
    let mut snapshot = snapshot(&world(&issuer.jwks().to_string(), north, west, up));
    // A document may not name loopback, where the upstream of this test is.
    for cell in snapshot.cells.values_mut() {
        for component in cell.components.values_mut() {
            component.workloads = Workloads::Addresses(vec![up.ip()]);
        }
    }
    assert_eq!(compile(&snapshot, 7).expect("it compiles").generation, 7);
    let _router = Router::start(&snapshot);
    let reader = issuer.token(json!({"scope": "read"}));
    let ask = async |gate: u16, method: &str, uri: &str, token: Option<&str>| {
        let mut request = get(uri);
        *request.method_mut() = method.parse().expect("a method");
        if let Some(token) = token {
            let value = format!("Bearer {token}").parse().expect("a value");
            request.headers_mut().insert("authorization", value);
        }
        send(([127, 0, 0, 1], gate).into(), request).await
    };
    let api = "http://prod.apis.test/shop/orders/v1";
    for (method, path, without, with) in [
        ("GET", "/books/1", 401, 200),
        ("HEAD", "/books/1", 401, 200),
        ("GET", "/books/1/2", 401, 403),
        ("GET", "/books", 401, 403),
        ("POST", "/books", 401, 403),
        ("DELETE", "/books/1", 401, 403),
        ("GET", "", 401, 403),
        ("GET", "x/../../other", 404, 404),
        ("GET", "/books/..;", 400, 400),
        ("GET", "/books/%2e%2e;x=y/1", 400, 400),
    ] {
        let uri = format!("{api}{path}");
        assert_eq!(
            ask(north, method, &uri, None).await.status,
            without,
            "{method} {path}"
        );
        assert_eq!(
            ask(north, method, &uri, Some(&reader)).await.status,
            with,
            "{method} {path}"
        );
    }
    let served = ask(north, "GET", &format!("{api}/books/1?x"), Some(&reader)).await;
    assert_eq!(served.json()["uri"], "/v1/books/1?x");
    // What was authorised is what the endpoint reads.
    let mut tricked = get(&format!("{api}/books/1"));
    for (name, value) in [
        ("authorization", format!("Bearer {reader}")),
        ("x-http-method-override", "DELETE".into()),
        ("x-http-method", "DELETE".into()),
        ("x-method-override", "DELETE".into()),
        ("x-original-url", "/v1/admin".into()),
        ("x-rewrite-url", "/v1/admin".into()),
    ] {
        let value = value.parse().expect("a value");
        tricked.headers_mut().insert(name, value);
    }
    let seen = send(([127, 0, 0, 1], north).into(), tricked).await.json();
    assert!(!seen.to_string().contains("DELETE"), "{seen}");
    assert!(!seen.to_string().contains("admin"), "{seen}");
    // The west gate has no operations, and takes the prefix away all the same.
    let internal = "http://prod.internal.test/shop/orders/v1/anything/";
    assert_eq!(
        ask(west, "GET", internal, None).await.json()["uri"],
        "/v1/anything/"
    );
    // Each gate serves its own hosts only.
    assert_eq!(
        ask(west, "GET", &format!("{api}/books/1"), Some(&reader))
            .await
            .status,
        404
    );
    assert_eq!(ask(north, "GET", internal, None).await.status, 404);
    let site = ask(north, "GET", "http://web-prod.apps.test/a/b", None).await;
    assert_eq!(site.json()["uri"], "/a/b");
    let head = ask(north, "HEAD", "http://web-prod.apps.test/", None).await;
    assert!(
        head.body.is_empty() && head.header("content-length").is_some(),
        "{head:?}"
    );
}
