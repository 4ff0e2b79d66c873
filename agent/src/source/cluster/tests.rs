use std::sync::Arc;
use std::time::Instant;

use http::{HeaderMap, Method};
use kubernetes::{Kind, Object, ObjectId, Objects, Seen};
use serde_json::{Value, json};
use snapshot::model::{Rule, Target};
use snapshot::path::CanonicalPath;
use tokio::sync::watch;

use super::{ClusterWatch, Reader, Taken};
use crate::compile::route::compile;
use crate::route::TargetKind;
use crate::route::matching::Subject;

const CARDINAL: &str = "cardinal.dev/v1alpha1";
const GATEWAY_API: &str = "gateway.networking.k8s.io/v1";
const ENVOY_GATEWAY: &str = "gateway.envoyproxy.io/v1alpha1";

/// A gateway, and a backend for routes.
fn base() -> [(Kind, &'static str, &'static str, Value); 3] {
    let class = json!({ "controllerName": "cardinal.dev/gateway-controller" });
    let gateway = json!({
        "gatewayClassName": "cardinal",
        "addresses": [{ "value": "10.0.0.1" }],
        "listeners": [{ "name": "http", "port": 80, "protocol": "HTTP" }],
    });
    let backend = json!({ "endpoints": [{ "ip": { "address": "10.1.0.1", "port": 8080 } }] });
    [
        (Kind::GatewayClass, GATEWAY_API, "cardinal", class),
        (Kind::Gateway, GATEWAY_API, "web", gateway),
        (Kind::Backend, ENVOY_GATEWAY, "app", backend),
    ]
}

/// These documents beside [`base`].
fn seen(documents: &[(Kind, &str, &str, Value)]) -> Seen {
    let base = base();
    let all = base.iter().chain(documents);
    let objects = all.map(|(kind, api_version, name, rest)| {
        let namespace = if *kind == Kind::GatewayClass {
            ""
        } else {
            "shop"
        };
        let mut document = json!({
            "apiVersion": api_version,
            "kind": kind.name(),
            "metadata": { "name": name, "namespace": namespace },
        });
        if namespace.is_empty() {
            document["metadata"] = json!({ "name": name });
        }
        document["spec"] = rest.clone();
        let id = ObjectId {
            kind: *kind,
            namespace: namespace.into(),
            name: (*name).into(),
        };
        let object = Object {
            id: id.clone(),
            api_version: (*api_version).into(),
            uid: "u".into(),
            generation: 1,
            document: document.to_string().as_bytes().into(),
            status: None,
        };
        (id, Arc::new(object))
    });
    Seen {
        objects: objects.collect::<Objects>(),
        documents: 1,
        changes: 1,
        bundle: None,
        kept: false,
        astray: false,
    }
}

fn route(host: &str) -> Value {
    json!({
        "parentRefs": [{ "name": "web" }],
        "hostnames": [host],
        "rules": [{ "backendRefs": [{ "group": "gateway.envoyproxy.io", "kind": "Backend", "name": "app" }] }],
    })
}

/// A policy whose key is a point beside its curve, which only cryptography sees.
fn policy(coordinate: &str) -> Value {
    let keys =
        json!({ "keys": [{ "kty": "EC", "crv": "P-256", "x": coordinate, "y": coordinate }] });
    json!({
        "targetRefs": [{ "group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": "closed" }],
        "jwt": { "providers": [{
            "name": "idp",
            "issuer": "https://idp.example.com",
            "localJWKS": { "type": "Inline", "inline": keys.to_string() },
        }] },
    })
}

fn closed(taken: &Taken, name: &str) -> bool {
    let mut routes = taken.snapshot.routes.iter();
    let route = routes.find(|route| route.name.name() == name);
    let rule = &route.expect("the route is there").rules[0];
    rule.auth.as_ref().is_some_and(|auth| auth.closed.is_some())
}

#[test]
fn an_object_of_which_no_table_can_be_made_stops_no_other() {
    let seen = seen(&[
        (
            Kind::HttpRoute,
            GATEWAY_API,
            "closed",
            route("closed.example.org"),
        ),
        (
            Kind::HttpRoute,
            GATEWAY_API,
            "open",
            route("open.example.org"),
        ),
        (
            Kind::SecurityPolicy,
            ENVOY_GATEWAY,
            "p",
            policy(&"AQEB".repeat(11)[..43]),
        ),
    ]);
    let mut reader = Reader::default();
    let first = reader.take(seen.clone());
    let mistakes = compile(&first.snapshot, 1).expect_err("the key is no point of its curve");
    let taken = reader
        .without(seen.clone(), &mistakes)
        .expect("others are left");
    compile(&taken.snapshot, 1).expect("the others are right");
    assert!(closed(&taken, "closed") && !closed(&taken, "open"));
    let mut verdicts = taken.found.report.objects.iter();
    let verdict = verdicts.find(|(key, _)| key.name.name() == "p");
    let (_, verdict) = verdict.expect("it has a verdict");
    assert!(!verdict.accepted);
    assert_eq!(verdict.mistakes[0].message, mistakes[0].message);
    // It is known by now, and stays refused as long as it is as it is.
    assert!(reader.without(seen.clone(), &mistakes).is_none());
    let again = reader.take(seen.clone());
    assert!(closed(&again, "closed"));
    // Another policy of the name is another object.
    let mut changed = seen;
    let id = ObjectId {
        kind: Kind::SecurityPolicy,
        namespace: "shop".into(),
        name: "p".into(),
    };
    changed.objects.remove(&id);
    let gone = reader.take(changed);
    assert!(!closed(&gone, "closed"));
}

fn gone(seen: &Seen, kind: Kind, name: &str) -> Seen {
    let mut seen = seen.clone();
    let id = ObjectId {
        kind,
        namespace: "shop".into(),
        name: name.into(),
    };
    assert!(seen.objects.remove(&id).is_some());
    seen.documents += 1;
    seen
}

#[test]
fn an_object_is_taken_as_soon_as_another_brings_what_it_lacks() {
    let table = json!({
        "version": "1",
        "key": { "claim": "org" },
        "placements": { "eu": { "url": "http://10.2.0.1:9001" } },
        "defaultPlacement": "eu",
    });
    let closed = json!({
        "parentRefs": [{ "name": "web" }],
        "hostnames": ["closed.example.org"],
        "rules": [{ "backendRefs": [{ "group": "cardinal.dev", "kind": "RoutingTable", "name": "orgs" }] }],
    });
    let mut tokens = policy("");
    tokens["jwt"]["providers"][0]["localJWKS"]["inline"] =
        json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "x": "MeSatYDspAyf5iMv4x2PluRGfOyWml7X2dc7bFOPFFk" }] })
            .to_string()
            .into();
    let all = seen(&[
        (Kind::HttpRoute, GATEWAY_API, "closed", closed),
        (
            Kind::HttpRoute,
            GATEWAY_API,
            "open",
            route("open.example.org"),
        ),
        (Kind::RoutingTable, "cardinal.dev/v1alpha1", "orgs", table),
        (Kind::SecurityPolicy, ENVOY_GATEWAY, "p", tokens),
    ]);
    let (sender, receiver) = watch::channel(None);
    let mut watch = ClusterWatch {
        seen: receiver,
        reader: Reader::default(),
        documents: None,
        rested: Instant::now(),
    };
    let _sender = sender;
    // The policy is heard of a moment after the rest.
    let (first, _) = watch.take(gone(&all, Kind::SecurityPolicy, "p"));
    let mistakes = compile(&first.snapshot, 1).expect_err("nobody asks for tokens");
    let before = watch.without(&first.found, &mistakes).expect("it is news");
    let served = |taken: &Taken, name: &str| {
        let mut routes = taken.snapshot.routes.iter();
        let of_rule = |rule: &Rule| matches!(rule.targets[0].target, Target::Unresolved(_));
        routes.any(|route| route.name.name() == name && !route.rules.iter().any(of_rule))
    };
    assert!(!served(&before, "closed") && served(&before, "open"));
    let (taken, mended) = watch.take(all.clone());
    assert!(mended && served(&taken, "closed") && watch.reader.refused.is_empty());
    compile(&taken.snapshot, 1).expect("it is right by now");
    // It goes again; what is wrong then is found before anybody is told, at once or when what was done last is a while ago.
    let (first, _) = watch.take(gone(&all, Kind::SecurityPolicy, "p"));
    let mistakes = compile(&first.snapshot, 1).expect_err("nobody asks for tokens");
    watch.without(&first.found, &mistakes).expect("it is news");
    let changed = gone(
        &gone(&all, Kind::SecurityPolicy, "p"),
        Kind::HttpRoute,
        "open",
    );
    let (taken, mended) = watch.take(changed.clone());
    assert!(!mended && watch.reader.doubtful && !served(&taken, "closed"));
    watch.rested = Instant::now();
    let (taken, mended) = watch.take(changed);
    assert!(!mended && !watch.reader.doubtful && !served(&taken, "closed"));
    compile(&taken.snapshot, 1).expect("it stays refused");
}

/// At the gateway of these documents: paths of a host, and whether a route leads their requests anywhere.
fn assert_leads(taken: &Taken, host: &str, paths: &[(&str, bool)]) {
    let table = compile(&taken.snapshot, 1).expect("what is left is right");
    let bind = table.bind(([10, 0, 0, 1], 80).into()).expect("it listens");
    let listener = bind.listener(host).expect("a listener");
    let rules = listener.rules(host).expect("it has routes");
    for (path, open) in paths {
        let path = CanonicalPath::new(path).expect("a path");
        let matched = rules.find(Subject {
            path: &path,
            method: &Method::GET,
            headers: &HeaderMap::new(),
            query: None,
        });
        let target = &matched.expect("a rule").rule.targets[0].kind;
        let leads = matches!(target, TargetKind::Upstreams(_));
        assert_eq!(leads, *open, "{}", path.as_str());
    }
}

#[test]
fn a_route_of_which_no_table_can_be_made_keeps_its_requests_from_others() {
    // Nobody asks for the token that its key is in.
    let table = json!({
        "version": "1",
        "key": { "claim": "tenant" },
        "placements": { "one": { "url": "http://10.2.0.1:9001" } },
        "defaultPlacement": "one",
    });
    let admin = json!({
        "parentRefs": [{ "name": "web" }],
        "hostnames": ["shop.example.org"],
        "rules": [{
            "matches": [{ "path": { "value": "/admin" } }],
            "backendRefs": [{ "group": "cardinal.dev", "kind": "RoutingTable", "name": "tenants" }],
        }],
    });
    let site = route("shop.example.org");
    let seen = seen(&[
        (Kind::HttpRoute, GATEWAY_API, "admin", admin),
        (Kind::HttpRoute, GATEWAY_API, "site", site),
        (Kind::RoutingTable, CARDINAL, "tenants", table),
    ]);
    let mut reader = Reader::default();
    let first = reader.take(seen.clone());
    let mistakes = compile(&first.snapshot, 1).expect_err("no policy asks for a token");
    let taken = reader.without(seen, &mistakes).expect("others are left");
    let paths = [
        ("/admin/users", false),
        ("/", true),
        ("/administrators", true),
    ];
    assert_leads(&taken, "shop.example.org", &paths);
}

/// What is closed in its place has the precedence that it would have: a pattern goes before a shorter one.
#[test]
fn a_route_with_a_pattern_that_does_not_compile_keeps_its_requests_from_broader_patterns() {
    let host = "shop.example.org";
    let matching = |patterns: &[&str]| {
        let mut route = route(host);
        let of = |pattern| json!({ "path": { "type": "RegularExpression", "value": pattern } });
        route["rules"][0]["matches"] = patterns.iter().map(of).collect();
        route
    };
    let seen = seen(&[
        (
            Kind::HttpRoute,
            GATEWAY_API,
            "admin",
            matching(&["/admin/(?!public).*"]),
        ),
        (
            Kind::HttpRoute,
            GATEWAY_API,
            "site",
            matching(&["/.*", "/admin/of-somebody-else/[a-z]+"]),
        ),
    ]);
    let taken = Reader::default().take(seen);
    let paths = [
        ("/admin/users", false),
        ("/admin", false),
        ("/administrators", true),
        ("/admin/of-somebody-else/x", true),
        ("/", true),
    ];
    assert_leads(&taken, host, &paths);
}
