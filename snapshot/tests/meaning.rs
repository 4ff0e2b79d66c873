//! What documents mean once they are taken.

use rcgen::{CertificateParams, KeyPair, SignatureAlgorithm};
use snapshot::model::{
    Decision, Gate, ListenerProtocol, ObjectName, Origin, PathMatch, Port, Route, SectionName,
    Target,
};
use snapshot::{Rejections, Snapshot, SourceFile, parse};

const JWKS: &str = r#"{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "MeSatYDspAyf5iMv4x2PluRGfOyWml7X2dc7bFOPFFk"}]}"#;

fn try_yaml(text: &str) -> Result<Snapshot, Rejections> {
    parse(&[SourceFile::new("a.yaml", text)])
}

fn yaml(text: &str) -> Snapshot {
    try_yaml(text).unwrap_or_else(|rejections| panic!("{rejections}"))
}

fn cell(name: &str, project: &str, rest: &str) -> String {
    format!(
        "---\napiVersion: cardinal.dev/v1alpha1\nkind: Cell\nmetadata: {{ name: {name} }}\nspec:\n  organization: acme\n  project: {project}\n  environment: prod\n{rest}"
    )
}

fn component(name: &str, address: &str, endpoints: &str) -> String {
    format!(
        "    - name: {name}\n      workloads: {{ addresses: [{address}] }}\n      endpoints: [{endpoints}]\n"
    )
}

fn platform() -> String {
    format!(
        "---
apiVersion: cardinal.dev/v1alpha1
kind: Platform
metadata: {{ name: platform }}
spec:
  environments: [{{ name: prod, dnsPrefix: prod }}]
  virtualHosts: {{ public: apis.example.com, organization: apis.internal, webApplications: apps.example.com }}
  gateways: {{ external: {{ gatewayRef: {{ name: external }} }}, internal: {{ gatewayRef: {{ name: internal }} }} }}
  jwtProviders: [{{ name: default, localJWKS: {{ inline: '{JWKS}' }} }}]
{}{}",
        gateway("external", "192.0.2.1", 80),
        gateway("internal", "192.0.2.2", 80)
    )
}

fn gateway(name: &str, address: &str, port: u16) -> String {
    format!(
        "---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{ name: {name} }}
spec:
  gatewayClassName: cardinal
  addresses: [{{ value: {address} }}]
  listeners: [{{ name: http, port: {port}, protocol: HTTP }}]
"
    )
}

fn policy(name: &str, provider: &str, target: &str) -> String {
    format!(
        "---
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: SecurityPolicy
metadata: {{ name: {name} }}
spec:
  targetRefs: [{{ group: gateway.networking.k8s.io, {target} }}]
  jwt: {{ providers: [{{ name: {provider}, localJWKS: {{ inline: '{JWKS}' }} }}] }}
"
    )
}

const BACKEND: &str = "---
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: Backend
metadata: { name: shop }
spec:
  endpoints: [{ ip: { address: 10.3.0.1, port: 8080 } }]
";

fn http_route(parents: &str, rules: &[&str]) -> String {
    let rules: String = rules
        .iter()
        .map(|rule| format!("    - {{ {rule} backendRefs: [{{ group: gateway.envoyproxy.io, kind: Backend, name: shop }}] }}\n"))
        .collect();
    format!(
        "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{ name: shop }}
spec:
  parentRefs: [{parents}]
  rules:
{rules}"
    )
}

fn providers(route: &Route) -> Vec<Option<String>> {
    route
        .rules
        .iter()
        .map(|rule| {
            rule.auth.as_ref().map(|auth| {
                let tokens = auth.tokens.as_ref().expect("it asks for a token");
                tokens.providers[0].name.to_string()
            })
        })
        .collect()
}

fn exposed(snapshot: &Snapshot, wanted: Gate) -> Vec<&Route> {
    let at =
        |route: &&Route| matches!(&route.origin, Origin::Endpoint { gate, .. } if *gate == wanted);
    let routes = snapshot.routes.iter().map(|route| &**route);
    routes.filter(at).collect()
}

#[test]
fn the_most_specific_policy_wins_as_a_whole() {
    let snapshot = yaml(
        &[
            gateway("edge", "192.0.2.10", 80),
            BACKEND.to_owned(),
            http_route(
                "{ name: edge }",
                &["name: write, matches: [{ method: POST }],", ""],
            ),
            policy("of-gateway", "gate", "kind: Gateway, name: edge"),
            policy(
                "of-rule",
                "rule",
                "kind: HTTPRoute, name: shop, sectionName: write",
            ),
        ]
        .concat(),
    );
    assert_eq!(snapshot.routes.len(), 1);
    assert_eq!(
        providers(&snapshot.routes[0]),
        [Some("rule".to_owned()), Some("gate".to_owned())]
    );
    let auth = snapshot.routes[0].rules[1].auth.as_ref().expect("has auth");
    assert_eq!(auth.authorization.default, Decision::Allow);

    let snapshot = yaml(
        &[
            gateway("edge", "192.0.2.10", 80),
            BACKEND.to_owned(),
            http_route("{ name: edge }", &["name: write,", ""]),
            policy("of-gateway", "gate", "kind: Gateway, name: edge"),
            policy("of-route", "route", "kind: HTTPRoute, name: shop"),
        ]
        .concat(),
    );
    assert_eq!(
        providers(&snapshot.routes[0]),
        [Some("route".to_owned()), Some("route".to_owned())]
    );
}

#[test]
fn two_gateways_with_two_policies_get_a_route_each() {
    let snapshot = yaml(
        &[
            gateway("one", "192.0.2.10", 80),
            gateway("two", "192.0.2.10", 81),
            gateway("three", "192.0.2.11", 80),
            BACKEND.to_owned(),
            http_route("{ name: one }, { name: two }, { name: three }", &[""]),
            policy("of-one", "one", "kind: Gateway, name: one"),
        ]
        .concat(),
    );
    let found: Vec<(Vec<&str>, Vec<Option<String>>)> = snapshot
        .routes
        .iter()
        .map(|route| {
            let parents = route.parents.iter().map(|parent| parent.gateway.name());
            (parents.collect(), providers(route))
        })
        .collect();
    assert_eq!(
        found,
        [
            (vec!["one"], vec![Some("one".to_owned())]),
            (vec!["two", "three"], vec![None]),
        ]
    );
}

#[test]
fn a_policy_of_the_gate_covers_what_cells_leave_open() {
    let endpoints = "{ name: open, type: HTTP, port: 80, basePath: /open, visibility: { public: {} } }, { name: own, type: HTTP, port: 80, basePath: /own, visibility: { public: { jwt: { provider: default } } } }";
    let text = [
        cell(
            "shop",
            "shop",
            &format!("  components:\n{}", component("a", "10.0.0.1", endpoints)),
        ),
        platform(),
        policy("gate", "gate", "kind: Gateway, name: external"),
    ]
    .concat();
    let snapshot = yaml(&text);
    let found: Vec<_> = exposed(&snapshot, Gate::External)
        .into_iter()
        .map(providers)
        .collect();
    assert_eq!(
        found,
        [[Some("gate".to_owned())], [Some("default".to_owned())]]
    );
}

#[test]
fn get_takes_head_along_unless_head_is_declared() {
    let operations = "{ method: GET, path: /a }, { method: GET, path: /b }, { method: HEAD, path: /b, scopes: [x] }";
    let endpoints = format!(
        "{{ name: api, type: HTTP, port: 80, visibility: {{ public: {{ jwt: {{ provider: default }}, operations: [{operations}] }} }} }}"
    );
    let text = [
        cell(
            "shop",
            "shop",
            &format!("  components:\n{}", component("a", "10.0.0.1", &endpoints)),
        ),
        platform(),
    ]
    .concat();
    let snapshot = yaml(&text);
    let route = exposed(&snapshot, Gate::External)[0];
    let methods: Vec<Vec<&str>> = route
        .rules
        .iter()
        .map(|rule| {
            rule.matches
                .iter()
                .filter_map(|m| m.method.as_deref())
                .collect()
        })
        .collect();
    assert_eq!(
        methods,
        [vec![], vec!["GET", "HEAD"], vec!["GET"], vec!["HEAD"]]
    );
    // The wildcard refuses, and leads nowhere even if it did not.
    assert!(route.rules[0].targets.is_empty());
    assert!(
        matches!(&route.rules[0].matches[0].path, PathMatch::Prefix(path) if path.as_str() == "/shop/a")
    );
}

#[test]
fn a_web_application_is_public_until_it_says_otherwise() {
    for (visibility, routes) in [
        ("", 1),
        ("visibility: { public: {} },", 1),
        ("visibility: { public: { enabled: false } },", 0),
        ("visibility: { organization: {} },", 1),
    ] {
        let text = [
            cell("shop", "shop", &format!(
                "  components:\n    - name: site\n      type: WebApplication\n      workloads: {{ addresses: [10.0.0.1] }}\n      endpoints: [{{ name: web, {visibility} type: HTTP, port: 80 }}, {{ name: db, type: TCP, port: 81 }}]\n"
            )),
            platform(),
        ]
        .concat();
        let snapshot = yaml(&text);
        let found = exposed(&snapshot, Gate::External);
        assert_eq!(found.len(), routes, "{visibility}");
        for route in found {
            assert_eq!(route.hostnames[0].to_string(), "site-prod.apps.example.com");
        }
        assert!(exposed(&snapshot, Gate::Internal).is_empty());
        assert_eq!(
            snapshot.warnings.len(),
            usize::from(visibility.contains("organization"))
        );
    }
}

#[test]
fn east_needs_the_other_side() {
    let bank = |visibility: &str| {
        cell(
            "bank",
            "bank",
            &format!(
                "  components:\n{}",
                component(
                    "rates",
                    "10.0.0.2",
                    &format!(
                        "{{ name: api, type: TCP, port: 80, visibility: {{ {visibility} }} }}"
                    )
                )
            ),
        )
    };
    let shop = cell(
        "shop",
        "shop",
        &format!(
            "  components:\n{}  egress: {{ east: [{{ project: bank, component: rates, endpoint: api }}] }}\n",
            component("a", "10.0.0.1", "")
        ),
    );
    for (other, why) in [
        (String::new(), Some("there is no cell `acme/bank/prod`")),
        (bank(""), Some("has no visibility `organization`")),
        (bank("public: {}"), Some("has no visibility `organization`")),
        (
            bank("organization: { enabled: false }"),
            Some("has no visibility `organization`"),
        ),
        (bank("organization: {}"), None),
    ] {
        let snapshot = yaml(&[shop.clone(), other].concat());
        let east: usize = snapshot.cells.values().map(|cell| cell.east.len()).sum();
        assert_eq!(east, usize::from(why.is_none()));
        let warned = snapshot.warnings.iter().any(|warning| {
            why.is_some_and(|why| {
                warning.message == format!("grants nothing: {why}")
                    || warning.message.ends_with(why)
            })
        });
        assert_eq!(warned, why.is_some(), "{:?}", snapshot.warnings);
    }
}

#[test]
fn a_mistake_brings_no_others_with_it() {
    for (broken, whole) in [
        // A gateway whose listener is wrong: the route's reference to the listener is right.
        ("protocol: HTTPX", "protocol: HTTP"),
        ("value: 192.0.2.300", "value: 192.0.2.10"),
        // A backend, a table and a provider, likewise.
        ("address: 10.3.0.999", "address: 10.3.0.1"),
    ] {
        let text = [
            gateway("edge", "192.0.2.10", 80),
            BACKEND.to_owned(),
            http_route("{ name: edge, sectionName: http }", &[""]),
            policy("of-route", "idp", "kind: HTTPRoute, name: shop"),
        ]
        .concat();
        let text = text.replace(whole, broken);
        let rejections = try_yaml(&text).expect_err("is broken");
        assert_eq!(rejections.mistakes.len(), 1, "{rejections}");
    }
    let exposed = cell(
        "shop",
        "shop",
        &format!(
            "  components:\n{}",
            component(
                "a",
                "10.0.0.1",
                "{ name: api, type: HTTP, port: 80, visibility: { public: {} } }"
            )
        ),
    );
    for (whole, broken) in [
        ("dnsPrefix: prod", "dnsPrefix: P"),
        ("port: 80, protocol", "port: 0, protocol"),
    ] {
        let text = [exposed.clone(), platform()]
            .concat()
            .replace(whole, broken);
        let rejections = try_yaml(&text).expect_err("is broken");
        let gateways = if whole.starts_with("port") { 2 } else { 1 };
        assert_eq!(rejections.mistakes.len(), gateways, "{rejections}");
    }
}

#[test]
fn every_document_with_mistakes_is_heard() {
    let text = "apiVersion: v1\nkind: Nothing\n---\na: [\n---\napiVersion: cardinal.dev/v1alpha1\nkind: Platform\nmetadata: { name: A }\nspec: {}\n---\napiVersion: cardinal.dev/v1alpha1\nkind: Platform\nmetadata: { name: b, extra: 1 }\nspec: { dns: {} }\n";
    let rejections = try_yaml(text).expect_err("is broken");
    let found: Vec<(usize, &str)> = rejections
        .mistakes
        .iter()
        .map(|mistake| (mistake.source.document, &*mistake.source.field))
        .collect();
    assert_eq!(
        found,
        [
            (1, "kind"),
            (2, "a[0]"),
            (3, "metadata.name"),
            (4, "metadata.extra"),
            (4, "spec.dns.addresses"),
        ]
    );
}

#[test]
fn files_of_windows_are_read_alike() {
    let text = [
        gateway("edge", "192.0.2.10", 80),
        gateway("other", "192.0.2.11", 80),
    ]
    .concat();
    let windows = format!("\u{feff}{}", text.replace('\n', "\r\n"));
    assert_eq!(yaml(&windows).gateways.len(), 2);
}

fn secret(chain: &str, key: &str) -> String {
    let indented =
        |text: &str| -> String { text.lines().map(|line| format!("    {line}\n")).collect() };
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{ name: tls }}\ntype: kubernetes.io/tls\nstringData:\n  tls.crt: |\n{}  tls.key: |\n{}",
        indented(chain),
        indented(key)
    )
}

#[test]
fn certificates_of_all_kinds_are_checked_against_their_keys() {
    let kinds: [&'static SignatureAlgorithm; 4] = [
        &rcgen::PKCS_RSA_SHA256,
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ED25519,
    ];
    for kind in kinds {
        let key = KeyPair::generate_for(kind).expect("key can be made");
        let other = KeyPair::generate_for(kind).expect("key can be made");
        let names = [
            "Shop.Example.com".to_owned(),
            "192.0.2.1".to_owned(),
            "2001:db8::1".to_owned(),
        ];
        let certificate = CertificateParams::new(names)
            .and_then(|params| params.self_signed(&key))
            .expect("certificate can be made");
        let chain = format!("{}{}", certificate.pem(), certificate.pem());
        let snapshot = yaml(&secret(&chain, &key.serialize_pem()));
        let taken = snapshot
            .certificates
            .values()
            .next()
            .expect("one certificate");
        assert_eq!(
            taken.names,
            ["shop.example.com", "192.0.2.1", "2001:db8::1"]
        );
        assert_eq!(taken.chain.len(), 2);
        assert!(taken.not_after > 1_700_000_000);
        assert_eq!(taken.key.secret_der(), key.serialized_der());
        let rejections = try_yaml(&secret(&chain, &other.serialize_pem())).expect_err("is foreign");
        assert!(
            rejections.to_string().contains("does not belong"),
            "{rejections}"
        );
    }
}

#[test]
fn listeners_have_their_certificates() {
    let key = KeyPair::generate().expect("key can be made");
    let certificate = CertificateParams::new(["*.example.com".to_owned()])
        .and_then(|params| params.self_signed(&key))
        .expect("certificate can be made");
    let gateway = |host: &str| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{ name: edge }}\nspec:\n  gatewayClassName: c\n  addresses: [{{ value: 192.0.2.10 }}]\n  listeners: [{{ name: https, hostname: \"{host}\", port: 443, protocol: HTTPS, tls: {{ certificateRefs: [{{ name: tls }}] }} }}]\n"
        )
    };
    for (host, warnings) in [
        ("a.example.com", 0),
        ("*.example.com", 0),
        ("a.b.example.com", 1),
        ("example.com", 1),
    ] {
        let text = format!(
            "{}{}",
            secret(&certificate.pem(), &key.serialize_pem()),
            gateway(host)
        );
        let snapshot = yaml(&text);
        assert_eq!(
            snapshot.warnings.len(),
            warnings,
            "{host} {:?}",
            snapshot.warnings
        );
        let name = ObjectName::new("default", "edge").expect("is a name");
        let listener = &snapshot.gateways[&name].listeners[0];
        assert_eq!(listener.port, Port::new(443).expect("is not zero"));
        assert!(
            matches!(&listener.protocol, ListenerProtocol::Https { certificates } if snapshot.certificates.contains_key(&certificates[0]))
        );
    }
}

#[test]
fn weights_and_targets_are_kept() {
    let snapshot = yaml(
        &[
            gateway("edge", "192.0.2.10", 80),
            BACKEND.to_owned(),
            http_route("{ name: edge }", &[""])
                .replace("name: shop }] }", "name: shop, weight: 0 }] }"),
        ]
        .concat(),
    );
    let target = &snapshot.routes[0].rules[0].targets[0];
    assert_eq!(target.weight, 0);
    assert!(matches!(&target.target, Target::Upstreams(upstreams) if upstreams.len() == 1));
    let listener = snapshot.routes[0].parents[0]
        .listener
        .as_ref()
        .map(SectionName::as_str);
    assert_eq!(listener, Some("http"));
}

#[test]
fn service_addresses_say_who_keeps_what_and_which_are_near() {
    use snapshot::model::TrafficDistribution::{Anywhere, PreferSameNode, PreferSameZone};
    let with = |fields: &str| {
        let one = component("orders", "10.1.0.5", "");
        let text = cell("shop", "shop", &format!("  components:\n{one}{fields}"));
        let snapshot = yaml(&text);
        let shop = snapshot.cells.values().next().expect("the cell");
        let orders = shop.components.values().next().expect("the component");
        (
            orders.session_affinity.map(|time| time.as_secs()),
            orders.traffic_distribution,
            snapshot.warnings.len(),
        )
    };
    let service = "      serviceAddresses: [10.96.0.5]\n";
    for (fields, expected) in [
        ("", (None, Anywhere)),
        ("      sessionAffinity: None\n", (None, Anywhere)),
        (
            "      sessionAffinity: ClientIP\n      trafficDistribution: PreferSameNode\n",
            (Some(10_800), PreferSameNode),
        ),
        (
            "      sessionAffinity: ClientIP\n      sessionAffinityConfig: { clientIP: {} }\n      trafficDistribution: PreferSameZone\n",
            (Some(10_800), PreferSameZone),
        ),
        (
            "      sessionAffinity: ClientIP\n      sessionAffinityConfig: { clientIP: { timeoutSeconds: 60 } }\n",
            (Some(60), Anywhere),
        ),
    ] {
        let (affinity, near, warnings) = with(&format!("{service}{fields}"));
        assert_eq!(((affinity, near), warnings), (expected, 0), "{fields}");
    }
    let (_, _, warnings) =
        with("      sessionAffinity: ClientIP\n      trafficDistribution: PreferSameNode\n");
    assert_eq!(warnings, 2, "without a service address they have no effect");
}

#[test]
fn nodes_say_where_they_stand_and_where_their_pods_are() {
    let snapshot = yaml(
        "---
apiVersion: cardinal.dev/v1alpha1
kind: Platform
metadata: { name: platform }
spec:
  nodes:
    - { name: a, addresses: [192.168.0.11], zone: west, podCIDRs: [10.1.0.0/24, 10.1.2.0/24, 'fd00::/64'] }
    - { name: b, addresses: [192.168.0.12], podCIDRs: [10.1.1.0/24] }
",
    );
    let [a, b] = &snapshot.platform.nodes[..] else {
        panic!("{:?}", snapshot.platform.nodes);
    };
    assert_eq!((a.zone.as_deref(), a.pod_networks.len()), (Some("west"), 3));
    assert_eq!((b.zone.as_deref(), b.pod_networks.len()), (None, 1));
}
