//! Objects of a cluster: each is taken or refused on its own, and nothing opens because something is wrong.

use snapshot::model::Route;
use snapshot::{Kind, SourceFile, Taken, take};

const GATEWAY: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: { name: web, namespace: shop }
spec:
  gatewayClassName: cardinal
  addresses: [{ value: 10.0.0.1 }]
  listeners: [{ name: http, port: 80, protocol: HTTP }]
";

const BACKEND: &str = "
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: Backend
metadata: { name: app, namespace: shop }
spec: { endpoints: [{ ip: { address: 10.1.0.1, port: 8080 } }] }
";

fn route(name: &str, spec: &str) -> String {
    format!(
        "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{ name: {name}, namespace: shop, generation: 3, newField: whatever }}
spec:
  parentRefs: [{{ name: web }}]
  hostnames: [{name}.example.org]
  {spec}
  rules:
    - backendRefs: [{{ group: gateway.envoyproxy.io, kind: Backend, name: app }}]
"
    )
}

fn taken(objects: &[(&str, &str)]) -> Taken {
    take(objects.iter().map(|(path, text)| SourceFile {
        path: (*path).to_owned(),
        bytes: text.as_bytes().to_vec(),
    }))
}

fn find<'a>(taken: &'a Taken, name: &str) -> Option<&'a Route> {
    let mut routes = taken.snapshot.routes.iter();
    routes.find(|route| route.name.name() == name)
}

fn accepted(taken: &Taken, kind: Kind, name: &str) -> bool {
    let mut objects = taken.report.objects.iter();
    let found = objects.find(|(key, _)| key.kind == kind && key.name.name() == name);
    found.expect("the object has a verdict").1.accepted
}

#[test]
fn one_bad_object_stops_no_other() {
    let good = route("good", "");
    let bad = route("bad", "unheardOf: 1");
    let taken = taken(&[
        ("Gateway/shop/web", GATEWAY),
        ("Backend/shop/app", BACKEND),
        ("HTTPRoute/shop/good", &good),
        ("HTTPRoute/shop/bad", &bad),
    ]);
    assert!(find(&taken, "good").is_some());
    assert!(find(&taken, "bad").is_none());
    assert!(accepted(&taken, Kind::HTTPRoute, "good"));
    assert!(!accepted(&taken, Kind::HTTPRoute, "bad"));
    let mut objects = taken.report.objects.iter();
    let (key, verdict) = objects
        .find(|(key, _)| key.name.name() == "bad")
        .expect("it has a verdict");
    assert_eq!(key.to_string(), "`HTTPRoute` shop/bad");
    assert_eq!(verdict.generation, Some(3));
    let fields: Vec<_> = verdict
        .mistakes
        .iter()
        .map(|one| &*one.source.field)
        .collect();
    assert_eq!(fields, ["spec.unheardOf"]);
}

#[test]
fn a_policy_with_mistakes_closes_what_it_is_for_and_nothing_else() {
    for (group, kind) in [
        ("gateway.envoyproxy.io", "SecurityPolicy"),
        ("gateway.envoyproxy.io", "BackendTrafficPolicy"),
    ] {
        let policy = format!(
            "
apiVersion: {group}/v1alpha1
kind: {kind}
metadata: {{ name: broken, namespace: shop }}
spec:
  targetRefs: [{{ group: gateway.networking.k8s.io, kind: HTTPRoute, name: closed }}]
  unheardOf: 1
"
        );
        let (closed, open) = (route("closed", ""), route("open", ""));
        let taken = taken(&[
            ("Gateway/shop/web", GATEWAY),
            ("Backend/shop/app", BACKEND),
            ("HTTPRoute/shop/closed", &closed),
            ("HTTPRoute/shop/open", &open),
            ("Policy/shop/broken", &policy),
        ]);
        let auth = |name| find(&taken, name).expect("a route").rules[0].auth.clone();
        let why = auth("closed").expect("closed").closed.clone();
        assert_eq!(why, Some(format!("{kind} shop/broken has mistakes")));
        assert!(auth("open").is_none(), "{kind}");
    }
}

#[test]
fn a_client_policy_with_mistakes_closes_what_its_gateway_serves() {
    let policy = "
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: ClientTrafficPolicy
metadata: { name: broken, namespace: shop }
spec:
  targetRefs: [{ group: gateway.networking.k8s.io, kind: Gateway, name: web }]
  unheardOf: 1
";
    let closed = route("closed", "");
    let taken = taken(&[
        ("Gateway/shop/web", GATEWAY),
        ("Backend/shop/app", BACKEND),
        ("HTTPRoute/shop/closed", &closed),
        ("ClientTrafficPolicy/shop/broken", policy),
    ]);
    let route = find(&taken, "closed").expect("a route");
    let auth = route.rules[0].auth.as_ref().expect("closed");
    assert!(auth.closed.is_some());
}
