//! What stays closed in a cluster where a route is refused: no other route serves its requests.

use std::sync::Arc;

use snapshot::model::{L4Route, PathMatch, RequestMatch, Route, RouteKind, Target, TextMatch};
use snapshot::status::{ConditionKind, Reason};
use snapshot::{Mistake, Source, SourceFile, Taken, link, read, refused, take};

const CLASS: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: { name: cardinal }
spec: { controllerName: cardinal.dev/gateway-controller }
";

const GATEWAY: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: { name: web, namespace: shop }
spec:
  gatewayClassName: cardinal
  addresses: [{ value: 10.0.0.1 }]
  listeners:
    - { name: http, port: 80, protocol: HTTP }
    - { name: closed, port: 81, protocol: HTTP, allowedRoutes: { namespaces: { from: None } } }
    - { name: bank, port: 82, protocol: HTTP, hostname: bank.example.org }
    - { name: tls, port: 8443, protocol: TLS, tls: { mode: Passthrough } }
    - { name: tcp, port: 5432, protocol: TCP }
    - { name: udp, port: 53, protocol: UDP }
";

const BACKEND: &str = "apiVersion: gateway.envoyproxy.io/v1alpha1
kind: Backend
metadata: { name: app, namespace: shop }
spec: { endpoints: [{ ip: { address: 10.1.0.1, port: 8080 } }] }
";

/// Where rules lead.
const TO: &str = "backendRefs: [{ group: gateway.envoyproxy.io, kind: Backend, name: app }]";

fn route(kind: &str, name: &str, created: &str, spec: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: {kind}
metadata: {{ name: {name}, namespace: shop, generation: 7, creationTimestamp: \"2026-01-{created}T00:00:00Z\" }}
spec:
{spec}
"
    )
}

fn taken(routes: &[String]) -> Taken {
    let fixed = [CLASS, GATEWAY, BACKEND].map(str::to_owned);
    let all = fixed.iter().chain(routes).enumerate();
    take(all.map(|(at, text)| SourceFile::new(format!("{at:02}"), text.as_str())))
}

fn found<'a>(taken: &'a Taken, name: &str) -> Option<&'a Route> {
    let mut routes = taken.snapshot.routes.iter();
    routes
        .find(|route| route.name.name() == name)
        .map(|route| &**route)
}

fn l4<'a>(taken: &'a Taken, name: &str) -> &'a L4Route {
    let mut routes = taken.snapshot.l4_routes.iter();
    let found = routes.find(|route| route.name.name() == name);
    found.unwrap_or_else(|| panic!("`{name}` is gone"))
}

fn path(one: &RequestMatch) -> String {
    match &one.path {
        PathMatch::Exact(path) => format!("={}", path.as_str()),
        PathMatch::Prefix(path) => path.as_str().to_owned(),
        PathMatch::Regex(pattern) => format!("~{} {}", pattern.text().len(), pattern.regex()),
        PathMatch::Call(call) => {
            let part = |part: &Option<TextMatch>| match part {
                Some(TextMatch::Exact(text)) => text.clone(),
                Some(TextMatch::Regex(pattern)) => {
                    format!("~{} {}", pattern.text().len(), pattern.regex())
                }
                None => "any".to_owned(),
            };
            format!("{}/{}", part(&call.service), part(&call.method))
        }
    }
}

/// Paths, hosts and listeners of a route all of whose rules answer 500.
fn closed(route: &Route) -> (Vec<String>, Vec<String>, Vec<String>) {
    for rule in &route.rules {
        let [target] = rule.targets.as_slice() else {
            panic!("{:?}", rule.targets);
        };
        assert!(matches!(target.target, Target::Unresolved(_)), "{target:?}");
        assert!(rule.filters.is_empty());
    }
    let matches = route.rules.iter().flat_map(|rule| &*rule.matches);
    let listeners = route.parents.iter().flat_map(|one| &one.listener);
    (
        matches.map(path).collect(),
        route.hostnames.iter().map(ToString::to_string).collect(),
        listeners.map(ToString::to_string).collect(),
    )
}

#[test]
fn a_refused_route_keeps_its_requests_from_others() {
    let rules = |matches: &str| format!("  rules: [{{ {matches} {TO} }}]");
    let admin = "matches: [{ path: { value: /admin } }],";
    let parents = "  parentRefs: [{ name: web }]";
    let host = "  hostnames: [a.example.org]";
    // What is written, and whose requests are closed: paths and hosts.
    let table: [(String, &[&str], &[&str]); 19] = [
        (
            format!("{parents}\n{host}\n{}\n  unheardOf: 1", rules(admin)),
            &["/admin"],
            &["a.example.org"],
        ),
        (
            format!(
                "{parents}\n{host}\n{}",
                rules(&format!(
                    "{admin} filters: [{{ type: ExternalAuth, externalAuth: {{}} }}],"
                ))
            ),
            &["/admin"],
            &["a.example.org"],
        ),
        (
            format!(
                "{parents}\n  hostnames: [a.example.org, a.example.org]\n{}",
                rules(admin)
            ),
            &["/admin"],
            &["a.example.org"],
        ),
        (
            format!(
                "{parents}\n  hostnames: [a_b, a.example.org]\n{}",
                rules(admin)
            ),
            &["/admin"],
            &["a.example.org"],
        ),
        // No hostname is legible: the path is.
        (
            format!("{parents}\n  hostnames: [a_b]\n{}", rules(admin)),
            &["/admin"],
            &[],
        ),
        // A filter that contradicts its rule is found when routes are linked.
        (
            format!(
                "{parents}\n{host}\n{}",
                rules(&format!(
                    "{admin} filters: [{{ type: RequestRedirect, requestRedirect: {{ port: 1 }} }}],"
                ))
            ),
            &["/admin"],
            &["a.example.org"],
        ),
        (
            format!(
                "{parents}\n{host}\n{}",
                rules(
                    "matches: [{ path: { value: /admin }, headers: [{ name: a, type: RegularExpression, value: \"(\" }] }],"
                )
            ),
            &["/admin"],
            &["a.example.org"],
        ),
        (
            format!(
                "{parents}\n{host}\n{}",
                rules("matches: [{ path: { value: /admin }, method: BREW }],")
            ),
            &["/admin"],
            &["a.example.org"],
        ),
        (
            format!(
                "{parents}\n{host}\n{}",
                rules("matches: [{ path: { value: /admin/ } }, { path: { value: /admin/../x } }],")
            ),
            &["/admin/", "/x"],
            &["a.example.org"],
        ),
        (
            format!(
                "{parents}\n{host}\n{}",
                rules(
                    "matches: [{ path: { type: RegularExpression, value: \"/admin/(?!x).*\" } }],"
                )
            ),
            &["~14 ^(?:/admin(?:/.*)?)$"],
            &["a.example.org"],
        ),
        (
            format!(
                "{parents}\n{host}\n{}",
                rules("matches: [{ path: { type: Exact, value: /admin/../x } }],")
            ),
            &["=/x", "/x"],
            &["a.example.org"],
        ),
        // Of the root everything is left.
        (
            format!(
                "{parents}\n{host}\n{}",
                rules("matches: [{ path: { type: RegularExpression, value: \"//(?!x).*\" } }],")
            ),
            &["/"],
            &["a.example.org"],
        ),
        // The slash may be there not once.
        (
            format!(
                "{parents}\n{host}\n{}",
                rules(
                    "matches: [{ path: { type: RegularExpression, value: \"/a/b/*(?!x).*\" } }],"
                )
            ),
            &["~13 ^(?:/a(?:/.*)?)$"],
            &["a.example.org"],
        ),
        (
            format!(
                "{parents}\n{host}\n{}",
                rules("matches: [{ path: { type: RegularExpression, value: \"/a/(?=x)|/b\" } }],")
            ),
            &["/"],
            &["a.example.org"],
        ),
        (
            format!("{parents}\n{host}\n  rules: 1"),
            &["/"],
            &["a.example.org"],
        ),
        (
            format!("{parents}\n{host}\n  rules: [1]"),
            &["/"],
            &["a.example.org"],
        ),
        (
            format!(
                "{parents}\n{host}\n  rules: [{{ matches: [{{ path: {{ value: /a }} }}, 1], {TO} }}]"
            ),
            &["/a", "/"],
            &["a.example.org"],
        ),
        (
            format!("{parents}\n  unheardOf: 1\n{}", rules(admin)),
            &["/admin"],
            &[],
        ),
        (
            format!(
                "  parentRefs: [{{ name: web, sectionName: \"!\", port: 80 }}]\n{host}\n{}",
                rules(admin)
            ),
            &["/admin"],
            &["a.example.org"],
        ),
    ];
    let site = route(
        "HTTPRoute",
        "site",
        "02",
        &format!("{parents}\n{}", rules("")),
    );
    for (spec, paths, hosts) in table {
        let admin = route("HTTPRoute", "admin", "01", &spec);
        let taken = taken(&[admin, site.clone()]);
        let found = found(&taken, "admin").unwrap_or_else(|| panic!("it is gone with\n{spec}"));
        let (matches, hostnames, listeners) = closed(found);
        assert_eq!(matches, paths, "{spec}");
        assert_eq!(hostnames, hosts, "{spec}");
        // Not the one that takes no routes, nor the one of another host.
        let bank = hosts.is_empty() && !spec.contains("port: 80");
        let expected: &[&str] = if bank { &["http", "bank"] } else { &["http"] };
        assert_eq!(listeners, expected, "{spec}");
        let gateway = taken.report.gateways.values().next().expect("the gateway");
        assert_eq!(gateway.listeners[0].attached_routes, 1, "{spec}");
        let mut statuses = taken.report.routes.iter();
        let status = statuses.find(|((_, name), _)| name.name() == "admin");
        let Some((_, status)) = status else {
            // What cannot be read of a reference has no status.
            assert!(spec.contains("sectionName"), "{spec}");
            continue;
        };
        let condition = &status.parents[0].conditions[0];
        assert_eq!(condition.kind, ConditionKind::Accepted);
        assert!(!condition.holds, "{spec}");
    }
}

#[test]
fn a_route_that_only_the_router_refuses_keeps_its_requests_as_well() {
    let spec = format!(
        "  parentRefs: [{{ name: web }}]
  hostnames: [a.example.org]
  rules:
    - matches: [{{ path: {{ value: /admin }}, method: GET }}]
      {TO}"
    );
    let file = SourceFile::new("admin", route("HTTPRoute", "admin", "01", &spec));
    let others = [CLASS, GATEWAY, BACKEND].map(str::to_owned);
    let others = others.iter().enumerate();
    let others = others.map(|(at, text)| SourceFile::new(format!("{at}"), text.as_str()));
    let mut reads: Vec<_> = others.map(|file| Arc::new(read(&file))).collect();
    let mistake = Mistake {
        source: Source::new("admin", 1, "HTTPRoute shop/admin").at("spec.rules[0]"),
        message: "nothing can be made of it".to_owned(),
    };
    reads.push(Arc::new(refused(&file, &[mistake])));
    let taken = link(&reads);
    let admin = found(&taken, "admin").expect("it is closed");
    let (paths, hosts, _) = closed(admin);
    assert_eq!(
        (paths, hosts),
        (vec!["/admin".to_owned()], vec!["a.example.org".to_owned()])
    );
    assert_eq!(admin.rules[0].matches[0].method.as_deref(), Some("GET"));
}

#[test]
fn a_refused_route_of_which_nothing_is_legible_closes_nothing() {
    for spec in [
        "  hostnames: [a.example.org]\n  rules: []",
        "  parentRefs: [{ name: web }]\n  hostnames: [a_b]\n  rules: [{}]\n  unheardOf: 1",
        "  parentRefs: [{ name: web }]\n  hostnames: 1\n  rules: [{ matches: [{ path: 1, method: GET }] }]",
        "  parentRefs: [{ name: web, sectionName: closed }]\n  hostnames: [a.example.org]\n  unheardOf: 1",
    ] {
        let taken = taken(&[route("HTTPRoute", "admin", "01", spec)]);
        assert!(found(&taken, "admin").is_none(), "{spec}");
    }
}

#[test]
fn a_refused_route_of_calls_keeps_its_calls_from_others() {
    let spec = |matches: &str| {
        format!(
            "  parentRefs: [{{ name: web }}]
  hostnames: [a.example.org]
  rules: [{{ matches: {matches}, {TO} }}]"
        )
    };
    for (matches, expected) in [
        (
            "[{ method: { service: shop.v1.Admin, method: \"!\" } }]",
            "shop.v1.Admin/any",
        ),
        (
            "[{ method: { service: shop.v1.Admin }, unheardOf: 1 }]",
            "shop.v1.Admin/any",
        ),
        (
            "[{ method: { type: Telepathy, service: shop.v1.Admin } }]",
            "any/any",
        ),
        // No shorter pattern has the calls of one that does not compile.
        (
            "[{ method: { type: RegularExpression, service: \"(?!x)y\", method: Delete } }]",
            "~6 ^(?:.*)$/~6 ^(?:Delete)$",
        ),
        (
            "[{ method: { type: RegularExpression, service: \"(?!x)y\" } }]",
            "any/any",
        ),
    ] {
        let calls = route("GRPCRoute", "calls", "01", &spec(matches));
        // Whose hosts these are does not change.
        let site = spec("[{}]");
        let site = route("HTTPRoute", "site", "02", &site);
        let taken = taken(&[calls, site]);
        let calls = found(&taken, "calls").unwrap_or_else(|| panic!("{matches}"));
        let (paths, hosts, _) = closed(calls);
        assert_eq!(
            (paths, hosts),
            (vec![expected.to_owned()], vec!["a.example.org".to_owned()])
        );
        let site = found(&taken, "site").expect("it is right");
        assert!(site.parents.is_empty(), "{matches}");
        let mut statuses = taken.report.routes.iter();
        let (_, status) = statuses
            .find(|((kind, name), _)| matches!(kind, RouteKind::L7(_)) && name.name() == "site")
            .expect("a status");
        let condition = &status.parents[0].conditions[0];
        assert_eq!(condition.reason, Reason::NotAllowedByListeners);
    }
}

#[test]
fn a_refused_route_below_http_keeps_its_connections_from_others() {
    let of = |kind: &str, section: &str, more: &str| {
        let spec = |mistake: &str| {
            format!(
                "  parentRefs: [{{ name: web, sectionName: {section} }}]
  rules: [{{ {TO} }}]
{more}{mistake}"
            )
        };
        // The refused one is the older, then the younger one.
        for (refused, other, closes) in [("01", "02", true), ("03", "02", false)] {
            let routes = [
                route(kind, "broken", refused, &spec("  unheardOf: 1")),
                route(kind, "good", other, &spec("")),
            ];
            let taken = taken(&routes);
            let (broken, good) = (l4(&taken, "broken"), l4(&taken, "good"));
            assert!(broken.backends.is_empty(), "{kind}");
            assert_eq!(!broken.parents.is_empty(), closes, "{kind}");
            assert_eq!(good.parents.is_empty(), closes, "{kind}");
            // The right one is attached either way.
            let gateway = taken.report.gateways.values().next().expect("the gateway");
            let attached = gateway.listeners.iter().map(|one| one.attached_routes);
            assert_eq!(attached.sum::<usize>(), 1, "{kind}");
        }
    };
    of("TLSRoute", "tls", "  hostnames: [a.example.org]\n");
    of("TCPRoute", "tcp", "");
    of("UDPRoute", "udp", "");
}

#[test]
fn a_refused_route_of_server_names_closes_those_that_can_be_read() {
    let spec = "  parentRefs: [{ name: web }]\n  hostnames: [a_b, a.example.org, a.example.org]";
    let broken = route("TLSRoute", "broken", "01", spec);
    let broken = taken(&[broken]);
    let hosts: Vec<_> = l4(&broken, "broken").parents[0]
        .hosts
        .iter()
        .flatten()
        .collect();
    assert_eq!(hosts.len(), 1);
    assert_eq!(hosts[0].to_string(), "a.example.org");
    let spec = "  parentRefs: [{ name: web }]\n  hostnames: [a_b]";
    let unread = taken(&[route("TLSRoute", "broken", "01", spec)]);
    assert!(
        unread
            .snapshot
            .l4_routes
            .iter()
            .all(|one| one.parents.is_empty())
    );
}

/// One without hostnames that is right would have taken all hosts from younger routes of the other kind, and none from older ones. One
/// with a mistake takes no more.
#[test]
fn a_refused_route_without_hostnames_takes_nothing_from_older_routes_of_the_other_kind() {
    let spec = |more: &str| {
        format!(
            "  parentRefs: [{{ name: web, sectionName: http }}]
  rules: [{{ {TO} }}]
{more}"
        )
    };
    for (broken, other) in [("GRPCRoute", "HTTPRoute"), ("HTTPRoute", "GRPCRoute")] {
        for (created, closes) in [("01", true), ("03", false)] {
            let taken = taken(&[
                route(broken, "broken", created, &spec("  unheardOf: 1")),
                route(other, "good", "02", &spec("")),
            ]);
            assert_eq!(found(&taken, "broken").is_some(), closes, "{broken}");
            let good = found(&taken, "good").expect("it is right");
            assert_eq!(good.parents.len(), 1, "{broken}");
        }
    }
}
