//! What stays closed in a cluster where an object is refused, or where two objects contradict each other.

use std::net::IpAddr;
use std::sync::Arc;

use snapshot::model::{AddressClass, Border, Cell, Gate, Intra, Origin, PolicyRule, Target};
use snapshot::status::{ConditionKind, Reason};
use snapshot::{Kind, SourceFile, Taken, take};

fn taken(objects: &[(&str, String)]) -> Taken {
    let objects = objects.iter();
    take(objects.map(|(path, text)| SourceFile::new(*path, text.as_str())))
}

fn accepted(taken: &Taken, kind: Kind, name: &str) -> bool {
    let mut objects = taken.report.objects.iter();
    let found = objects.find(|(key, _)| key.kind == kind && key.name.name() == name);
    found.expect("the object has a verdict").1.accepted
}

fn pod(name: &str, labels: &str, address: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{ name: {name}, namespace: shop, labels: {{ {labels} }} }}
status: {{ phase: Running, podIPs: [{{ ip: {address} }}] }}
"
    )
}

fn cell(name: &str, project: &str, rest: &str) -> String {
    format!(
        "apiVersion: cardinal.dev/v1alpha1
kind: Cell
metadata: {{ name: {name}, namespace: shop }}
spec:
  organization: acme
  project: {project}
  environment: prod
{rest}
"
    )
}

/// The cell that has a pod with this address.
fn of<'a>(taken: &'a Taken, address: &str) -> Option<&'a Cell> {
    let address: IpAddr = address.parse().expect("an address");
    let mut cells = taken.snapshot.cells.values();
    let found = cells.find(|cell| {
        let mut components = cell.components.values();
        components.any(|one| one.workloads.addresses().contains(&address))
    });
    found.map(|cell| &**cell)
}

/// Nobody outside of the cell reaches it, and it reaches nobody.
fn assert_closed(cell: &Cell) {
    assert_eq!(cell.borders.ingress, Border::Declared);
    assert_eq!(cell.borders.egress, Border::Declared);
    assert!(cell.east.is_empty() && cell.south.is_empty());
    for component in cell.components.values() {
        assert!(component.endpoints.is_empty() && component.connections.is_empty());
    }
}

const COMPONENTS: &str = "  components:
    - name: web
      workloads: { selector: { matchLabels: { app: web } } }
      endpoints: [{ name: api, type: TCP, port: 8080, visibility: { organization: {} } }]
    - name: db
      workloads: { addresses: [10.9.0.9] }
  egress:
    south: [{ name: any, cidrs: [203.0.113.0/24], port: 443, protocol: TCP }]";

#[test]
fn a_refused_cell_keeps_its_pods_and_lets_nobody_in_or_out() {
    for mistake in [
        "  unheardOf: 1".to_owned(),
        COMPONENTS.replace("type: TCP", "type: Telepathy"),
        COMPONENTS.replace("name: web", "name: 1"),
        COMPONENTS.replace("matchLabels: { app: web }", "matchLabels: {}"),
        COMPONENTS.replace(
            "workloads: { selector: { matchLabels: { app: web } } }",
            "kind: x",
        ),
    ] {
        let rest = match mistake.contains("components") {
            true => mistake.clone(),
            false => format!("{COMPONENTS}\n{mistake}"),
        };
        let taken = taken(&[
            ("Cell/shop/shop", cell("shop", "shop", &rest)),
            ("Pod/shop/web", pod("web", "app: web", "10.1.0.1")),
        ]);
        assert!(!accepted(&taken, Kind::Cell, "shop"), "{rest}");
        for address in ["10.1.0.1", "10.9.0.9"] {
            let cell = of(&taken, address);
            let cell = cell.unwrap_or_else(|| panic!("{address} is nobody's with\n{rest}"));
            assert_closed(cell);
            assert_eq!(cell.intra, Intra::Open);
        }
    }
}

#[test]
fn a_refused_cell_takes_no_pod_from_another_one() {
    let broken = COMPONENTS.replace("app: web", "");
    let good = "  components:
    - { name: front, workloads: { selector: { matchLabels: { app: web } } } }";
    let taken = taken(&[
        ("Cell/shop/a", cell("a", "a", &broken)),
        ("Cell/shop/b", cell("b", "b", good)),
        ("Pod/shop/web", pod("web", "app: web", "10.1.0.1")),
        ("Pod/shop/other", pod("other", "app: other", "10.1.0.2")),
    ]);
    let found = of(&taken, "10.1.0.1").expect("it is somebody's");
    assert_eq!(found.id.project.as_str(), "b");
    // Which pods were meant cannot be read: all that are nobody's.
    let found = of(&taken, "10.1.0.2").expect("it is somebody's");
    assert_eq!(found.id.project.as_str(), "a");
    assert_closed(found);
}

#[test]
fn of_two_cells_with_one_tuple_the_second_is_closed() {
    let first = "  components:
    - { name: front, workloads: { selector: { matchLabels: { app: web } } } }";
    let second = first.replace("app: web", "app: other");
    let taken = taken(&[
        ("Cell/shop/a", cell("a", "shop", first)),
        ("Cell/shop/b", cell("b", "shop", &second)),
        ("Pod/shop/web", pod("web", "app: web", "10.1.0.1")),
        ("Pod/shop/other", pod("other", "app: other", "10.1.0.2")),
    ]);
    assert_eq!(taken.snapshot.cells.len(), 2);
    assert!(accepted(&taken, Kind::Cell, "a") && !accepted(&taken, Kind::Cell, "b"));
    assert_closed(of(&taken, "10.1.0.2").expect("it is somebody's"));
}

const PLATFORM: &str = "apiVersion: cardinal.dev/v1alpha1
kind: Platform
metadata: { name: platform }
spec:
  dns: { addresses: [10.96.0.10] }
  networkPolicies: all
";

#[test]
fn nobody_takes_an_address_from_the_platform_or_a_node() {
    let node = "apiVersion: v1
kind: Node
metadata: { name: node-a }
status: { addresses: [{ type: InternalIP, address: 192.168.0.1 }] }
";
    let gateway = "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: { name: web, namespace: shop }
spec:
  gatewayClassName: cardinal
  addresses: [{ value: 192.168.0.1 }]
  listeners: [{ name: http, port: 80, protocol: HTTP }]
";
    let grasping = "  components:
    - { name: a, workloads: { addresses: [10.96.0.10, 10.9.0.9] } }";
    let taken = taken(&[
        ("Cell/shop/a", cell("a", "a", grasping)),
        ("Gateway/shop/web", gateway.to_owned()),
        ("Node/node-a", node.to_owned()),
        ("Platform/platform", PLATFORM.to_owned()),
    ]);
    assert!(accepted(&taken, Kind::Platform, "platform"));
    assert!(accepted(&taken, Kind::Node, "node-a"));
    assert!(!accepted(&taken, Kind::Cell, "a"));
    assert!(!accepted(&taken, Kind::Gateway, "web"));
    // What of the cell is nobody else's is closed.
    assert_closed(of(&taken, "10.9.0.9").expect("the cell's"));
    assert!(of(&taken, "10.96.0.10").is_none());
}

#[test]
fn an_endpoint_whose_policy_cannot_be_enforced_is_closed() {
    let gate = |name: &str, address: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{ name: {name}, namespace: gates }}
spec:
  gatewayClassName: cardinal
  addresses: [{{ value: {address} }}]
  listeners: [{{ name: http, port: 80, protocol: HTTP }}]
"
        )
    };
    let platform = r#"apiVersion: cardinal.dev/v1alpha1
kind: Platform
metadata: { name: platform }
spec:
  environments: [{ name: prod, dnsPrefix: prod }]
  virtualHosts: { public: apis.example.com, organization: apis.internal }
  gateways: { external: { gatewayRef: { namespace: gates, name: external } }, internal: { gatewayRef: { namespace: gates, name: internal } } }
  jwtProviders: [{ name: PROVIDER, remoteJWKS: { uri: "https://id.example.com/keys" } }]
"#;
    let spec = |base: &str, section: &str| {
        format!(
            "  components:
    - name: web
      workloads: {{ addresses: [10.1.0.1] }}
      endpoints:
        - {{ name: site, type: HTTP, port: 8080, visibility: {{ public: {{}}, organization: {{}} }} }}
        - {{ name: admin, type: HTTP, port: 8080, basePath: {base}, visibility: {{ public: {section}, organization: {section} }} }}
"
        )
    };
    let asks = "{ jwt: { provider: default } }";
    let operations = "{ jwt: { provider: default }, operations: [{ method: GET, path: /a }] }";
    for (provider, base, section, expected) in [
        ("default", "/admin", asks, [false, false]),
        ("renamed", "/admin", asks, [true, false]),
        ("renamed", "/admin", operations, [true, false]),
        // Both have the same requests.
        ("default", "/", asks, [true, true]),
        ("default", "/", operations, [true, true]),
        ("default", "/admin", operations, [false, false]),
    ] {
        let taken = taken(&[
            ("Cell/shop/a", cell("a", "a", &spec(base, section))),
            ("Gateway/gates/external", gate("external", "10.0.0.1")),
            ("Gateway/gates/internal", gate("internal", "10.0.0.2")),
            ("GatewayClass/cardinal", SERVED[0].1.to_owned()),
            ("Platform/platform", platform.replace("PROVIDER", provider)),
        ]);
        for gate in [Gate::External, Gate::Internal] {
            let closed = ["admin", "site"].map(|name| {
                let mut routes = taken.snapshot.routes.iter();
                let route = routes.find(|route| {
                    matches!(&route.origin, Origin::Endpoint { endpoint, gate: own }
                        if endpoint.endpoint.as_str() == name && *own == gate)
                });
                let route = route.expect("it has a route");
                assert_eq!(route.parents.len(), 1);
                let closed = route.rules.iter().map(|rule| {
                    let closed = rule.auth.as_ref().is_some_and(|auth| auth.closed.is_some());
                    assert!(!closed || rule.targets.is_empty());
                    closed
                });
                let closed: Vec<_> = closed.collect();
                // Operations are rules of their own, which go before a base path.
                let operations = name == "admin" && section == operations;
                assert_eq!(closed.len(), if operations { 2 } else { 1 });
                assert!(closed.iter().all(|one| *one == closed[0]), "{closed:?}");
                closed[0]
            });
            assert_eq!(closed, expected, "{gate} {provider} {base} {section}");
        }
    }
}

#[test]
fn a_cell_takes_no_pod_and_no_service_of_another_namespace() {
    let listing = |namespace: &str, project: &str, day: u8, spec: &str| {
        let created =
            format!("namespace: {namespace}, creationTimestamp: \"2026-01-0{day}T00:00:00Z\"");
        cell(project, project, spec).replace("namespace: shop", &created)
    };
    let grasping = "  components:
    - name: web
      workloads: { addresses: [10.1.0.6, 10.9.0.9] }
      serviceAddresses: [10.96.0.50, 10.1.0.7, 203.0.113.5, 10.96.0.60]
      endpoints: [{ name: api, type: TCP, port: 5432 }]";
    let service = "apiVersion: v1
kind: Service
metadata: { name: web, namespace: shop }
spec: { clusterIP: 10.96.0.50, ports: [{ port: 5432 }] }
status: { loadBalancer: { ingress: [{ ip: 203.0.113.5 }] } }
";
    let selected =
        "  components: [{ name: db, workloads: { selector: { matchLabels: { app: db } } } }]";
    let addressed = "  components: [{ name: web, workloads: { addresses: [10.1.0.7] } }]";
    let objects = [
        ("Cell/bank/first", listing("bank", "first", 1, grasping)),
        ("Cell/shop/db", listing("shop", "db", 2, selected)),
        ("Cell/shop/web", listing("shop", "web", 2, addressed)),
        ("Pod/shop/db", pod("db", "app: db", "10.1.0.6")),
        ("Pod/shop/web", pod("web", "app: web", "10.1.0.7")),
        ("Service/shop/web", service.to_owned()),
    ];
    let all = taken(&objects);
    for name in ["first", "db", "web"] {
        assert!(accepted(&all, Kind::Cell, name), "{name}");
    }
    for (address, project) in [
        ("10.1.0.6", "db"),
        ("10.1.0.7", "web"),
        ("10.9.0.9", "first"),
    ] {
        let found = of(&all, address).expect("it is somebody's");
        assert_eq!(found.id.project.as_str(), project, "{address}");
    }
    let own = |taken: &Taken| {
        let cell = of(taken, "10.9.0.9").expect("it is the first one's");
        let component = cell.components.values().next().expect("it has one");
        let addresses = component.addresses().map(ToString::to_string);
        addresses.collect::<Vec<_>>()
    };
    assert_eq!(own(&all), ["10.9.0.9", "10.96.0.60"]);
    let left = all.snapshot.warnings.iter();
    let left = left.filter(|one| one.message.contains("is left out"));
    let left: Vec<&str> = left.map(|one| &*one.source.field).collect();
    assert_eq!(
        left,
        [
            "spec.components[0].workloads.addresses[0]",
            "spec.components[0].serviceAddresses[0]",
            "spec.components[0].serviceAddresses[1]",
            "spec.components[0].serviceAddresses[2]",
        ]
    );
    // What nobody has is as it was, and so is what the namespace has as well.
    let alone = taken(&objects[..1]);
    assert_eq!(own(&alone).len(), 6);
    let again = pod("db", "app: db", "10.1.0.6").replace("namespace: shop", "namespace: bank");
    let both = [&objects[..], &[("Pod/bank/db", again)]].concat();
    assert_eq!(own(&taken(&both)), ["10.1.0.6", "10.9.0.9", "10.96.0.60"]);
}

#[test]
fn a_refused_cell_closes_no_pod_of_another_namespace() {
    let broken = "  components: [{ name: web, workloads: { addresses: [10.1.0.6, 10.9.0.9] } }]
  unheardOf: 1";
    let taken = taken(&[
        (
            "Cell/bank/a",
            cell("a", "a", broken).replace("namespace: shop", "namespace: bank"),
        ),
        ("Pod/shop/web", pod("web", "app: web", "10.1.0.6")),
    ]);
    assert!(!accepted(&taken, Kind::Cell, "a"));
    assert!(of(&taken, "10.1.0.6").is_none());
    assert_closed(of(&taken, "10.9.0.9").expect("the cell's"));
}

fn policy(name: &str, selects: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{ name: {name}, namespace: shop }}
spec: {{ podSelector: {{ {selects} }}, policyTypes: [Ingress, Egress] }}
"
    )
}

fn class<'a>(taken: &'a Taken, address: &str) -> Option<&'a AddressClass> {
    let address: IpAddr = address.parse().expect("an address");
    let network = &taken.snapshot.network;
    let id = network.members.get(&address)?;
    network.classes.of.get(id)
}

#[test]
fn a_refused_platform_still_says_whom_network_policies_restrict() {
    let broken = format!("{PLATFORM}  unheardOf: 1\n");
    let taken = taken(&[
        ("NetworkPolicy/shop/deny", policy("deny", "")),
        ("Platform/platform", broken),
        ("Pod/shop/web", pod("web", "app: web", "10.1.0.1")),
    ]);
    assert!(!accepted(&taken, Kind::Platform, "platform"));
    assert!(class(&taken, "10.1.0.1").is_some_and(AddressClass::is_isolated));
}

#[test]
fn an_address_of_two_pods_is_isolated_by_the_policies_of_both() {
    let allows = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: friends, namespace: shop }
spec:
  podSelector: { matchLabels: { app: db } }
  ingress: [{ from: [{ podSelector: { matchLabels: { friend: \"yes\" } } }] }]
";
    // Whichever of the two comes first.
    for (first, second) in [("a", "b"), ("b", "a")] {
        let taken = taken(&[
            (
                "NetworkPolicy/shop/deny",
                policy("deny", "matchLabels: { app: web }"),
            ),
            ("NetworkPolicy/shop/friends", allows.to_owned()),
            ("Platform/platform", PLATFORM.to_owned()),
            ("Pod/shop/x", pod(first, "app: web", "10.1.0.1")),
            ("Pod/shop/y", pod(second, "friend: \"yes\"", "10.1.0.1")),
            ("Pod/shop/z", pod("db", "app: db", "10.1.0.3")),
        ]);
        let class = class(&taken, "10.1.0.1").expect("a class");
        assert!(class.ingress.is_some() && class.egress.is_some(), "{first}");
        // Who of the two has it is not known: neither has what the other is allowed.
        assert!(class.peers.is_empty(), "{first}");
    }
}

#[test]
fn an_address_of_two_pods_is_allowed_what_both_are_allowed() {
    let policy = |name: &str, more: &str| {
        format!(
            "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{ name: {name}, namespace: shop }}
spec:
  podSelector: {{ matchLabels: {{ {name}: \"yes\" }} }}
  {more}
"
        )
    };
    let into = |port| format!("ingress: [{{ ports: [{{ port: {port} }}] }}]");
    let egress = "policyTypes: [Egress]\n  egress: [{}]";
    let taken = taken(&[
        ("NetworkPolicy/shop/a", policy("a", &into(1))),
        ("NetworkPolicy/shop/b", policy("b", &into(2))),
        ("NetworkPolicy/shop/c", policy("c", &into(3))),
        ("NetworkPolicy/shop/d", policy("d", egress)),
        ("Platform/platform", PLATFORM.to_owned()),
        (
            "Pod/shop/x",
            pod("x", "a: \"yes\", c: \"yes\", d: \"yes\"", "10.1.0.1"),
        ),
        ("Pod/shop/y", pod("y", "b: \"yes\", c: \"yes\"", "10.1.0.1")),
        (
            "Pod/shop/z",
            pod(
                "z",
                "a: \"yes\", b: \"yes\", c: \"yes\", d: \"yes\"",
                "10.1.0.2",
            ),
        ),
        ("Pod/shop/v", pod("v", "a: \"yes\"", "10.1.0.3")),
        ("Pod/shop/w", pod("w", "b: \"yes\"", "10.1.0.3")),
    ]);
    let policies = |rules: &Option<Vec<Arc<PolicyRule>>>| {
        let rules = rules.as_ref().expect("it is isolated").iter();
        let names = rules.map(|rule| {
            rule.policy
                .rsplit('/')
                .next()
                .unwrap_or_default()
                .to_owned()
        });
        names.collect::<Vec<_>>()
    };
    let shared = class(&taken, "10.1.0.1").expect("a class");
    assert_eq!(policies(&shared.ingress), ["c"]);
    // Only one of the two is isolated that way.
    assert_eq!(policies(&shared.egress), ["d"]);
    // All of it is one pod's: it is of another class.
    let one = class(&taken, "10.1.0.2").expect("a class");
    assert_eq!(policies(&one.ingress), ["a", "b", "c"]);
    assert_eq!(policies(&one.egress), ["d"]);
    let nothing = class(&taken, "10.1.0.3").expect("a class");
    assert!(policies(&nothing.ingress).is_empty());
}

#[test]
fn a_refused_policy_isolates_all_whom_a_long_list_selects() {
    let labels = |count: usize| {
        let values: Vec<_> = (0..count).map(|at| format!("v{at}")).collect();
        format!(
            "matchExpressions: [{{ key: app, operator: In, values: [{}] }}]",
            values.join(", ")
        )
    };
    for (selects, accepts) in [
        (labels(100), true),
        (labels(1100), false),
        // Which value is meant nobody knows.
        (
            "matchExpressions: [{ key: app, operator: In, values: [x, 1] }]".to_owned(),
            false,
        ),
    ] {
        let taken = taken(&[
            ("NetworkPolicy/shop/deny", policy("deny", &selects)),
            ("Platform/platform", PLATFORM.to_owned()),
            ("Pod/shop/web", pod("web", "app: v99", "10.1.0.1")),
        ]);
        assert_eq!(accepted(&taken, Kind::NetworkPolicy, "deny"), accepts);
        let class = class(&taken, "10.1.0.1").expect("a class");
        assert!(class.is_isolated());
    }
}

fn cilium(kind: &str, spec: &str) -> String {
    format!(
        "apiVersion: cilium.io/v2
kind: {kind}
metadata: {{ name: p, namespace: shop }}
spec:
{spec}
"
    )
}

#[test]
fn a_refused_policy_of_cilium_closes_the_directions_that_it_denies_in() {
    let all = "  endpointSelector: { matchLabels: { app: web } }
  ingress: [{ fromEntities: [all] }]
";
    for (more, closed) in [
        ("  egressDeny: [{ toEntities: [world] }]", true),
        ("  unheardOf: 1", false),
    ] {
        let spec = format!("{all}{more}");
        let taken = taken(&[
            (
                "CiliumNetworkPolicy/shop/p",
                cilium("CiliumNetworkPolicy", &spec),
            ),
            ("Platform/platform", PLATFORM.to_owned()),
            ("Pod/shop/web", pod("web", "app: web", "10.1.0.1")),
        ]);
        assert!(!accepted(&taken, Kind::CiliumNetworkPolicy, "p"));
        let class = class(&taken, "10.1.0.1").expect("a class");
        assert_eq!(class.ingress.as_deref(), Some(&[][..]), "{more}");
        assert_eq!(class.egress.is_some(), closed, "{more}");
    }
}

#[test]
fn an_empty_list_of_ports_of_cilium_allows_nothing() {
    let kind = "CiliumNetworkPolicy";
    // Whether it is taken, and whom its rule allows.
    for (rule, accepts, peers) in [
        ("toPorts: []", true, Some(Some(0))),
        ("fromEntities: [cluster], toPorts: []", true, Some(Some(1))),
        ("toPorts: [{ ports: [{ port: \"80\" }] }]", true, Some(None)),
        ("toPorts: [{}]", false, None),
        ("toPorts: [{ ports: [] }]", false, None),
    ] {
        let spec = format!("  endpointSelector: {{}}\n  ingress: [{{ {rule} }}]");
        let taken = taken(&[
            ("CiliumNetworkPolicy/shop/p", cilium(kind, &spec)),
            ("Platform/platform", PLATFORM.to_owned()),
            ("Pod/shop/web", pod("web", "app: web", "10.1.0.1")),
        ]);
        assert_eq!(
            accepted(&taken, Kind::CiliumNetworkPolicy, "p"),
            accepts,
            "{rule}"
        );
        let class = class(&taken, "10.1.0.1").expect("a class");
        let rules = class.ingress.as_deref().expect("it is isolated");
        let found = rules.first().map(|rule| {
            let peers = rule.peers.as_ref();
            peers.map(|peers| peers.pods.len() + peers.blocks.len() + peers.entities.len())
        });
        assert_eq!(found, peers, "{rule}");
    }
}

#[test]
fn a_key_that_cilium_derives_is_no_label_of_a_pod() {
    for key in [
        "k8s:io.cilium.k8s.policy.serviceaccount",
        "io.cilium.k8s.policy.cluster",
        "any:io.kubernetes.pod.name",
    ] {
        let spec =
            format!("  endpointSelector: {{ matchLabels: {{ \"{key}\": web }} }}\n  ingress: []");
        let taken = taken(&[
            (
                "CiliumNetworkPolicy/shop/p",
                cilium("CiliumNetworkPolicy", &spec),
            ),
            ("Platform/platform", PLATFORM.to_owned()),
            ("Pod/shop/web", pod("web", "app: web", "10.1.0.1")),
        ]);
        assert!(!accepted(&taken, Kind::CiliumNetworkPolicy, "p"), "{key}");
        // Whom it selects cannot be read: all of its namespace.
        assert!(
            class(&taken, "10.1.0.1").is_some_and(AddressClass::is_isolated),
            "{key}"
        );
    }
}

#[test]
fn a_policy_of_cilium_for_nodes_closes_no_pod() {
    let kind = "CiliumClusterwideNetworkPolicy";
    let spec = "  nodeSelector: { matchLabels: { role: worker } }
  ingress: [{ fromEntities: [cluster] }]";
    let text = cilium(kind, spec).replace(", namespace: shop", "");
    let taken = taken(&[
        ("CiliumClusterwideNetworkPolicy/p", text),
        ("Platform/platform", PLATFORM.to_owned()),
        ("Pod/shop/web", pod("web", "app: web", "10.1.0.1")),
    ]);
    assert!(!accepted(&taken, Kind::CiliumClusterwideNetworkPolicy, "p"));
    assert!(class(&taken, "10.1.0.1").is_none_or(|class| !class.is_isolated()));
}

const SERVED: [(&str, &str); 4] = [
    (
        "GatewayClass/cardinal",
        "apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: { name: cardinal }
spec: { controllerName: cardinal.dev/gateway-controller }
",
    ),
    (
        "Gateway/shop/web",
        "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: { name: web, namespace: shop }
spec:
  gatewayClassName: cardinal
  addresses: [{ value: 10.0.0.1 }]
  listeners:
    - { name: http, port: 80, protocol: HTTP }
    - { name: tcp, port: 5432, protocol: TCP }
",
    ),
    (
        "HTTPRoute/shop/app",
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: app, namespace: shop, labels: { app: a } }
spec:
  parentRefs: [{ name: web }]
  rules: [{ name: all, backendRefs: [{ group: gateway.envoyproxy.io, kind: Backend, name: app }] }]
",
    ),
    (
        "TCPRoute/shop/db",
        "apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: { name: db, namespace: shop }
spec:
  parentRefs: [{ name: web }]
  rules: [{ backendRefs: [{ group: gateway.envoyproxy.io, kind: Backend, name: app }] }]
",
    ),
];

const BACKEND: &str = "apiVersion: gateway.envoyproxy.io/v1alpha1
kind: Backend
metadata: { name: app, namespace: shop }
spec: { endpoints: [{ ip: { address: 10.1.0.1, port: 8080 } }] }
";

/// Whether the route of HTTP and that of TCP are closed by a refused policy for these targets.
fn closes(targets: &str) -> (bool, bool) {
    let policy = format!(
        "apiVersion: gateway.envoyproxy.io/v1alpha1
kind: SecurityPolicy
metadata: {{ name: p, namespace: shop }}
spec:
  unheardOf: 1
{targets}
"
    );
    let mut objects: Vec<(&str, String)> = SERVED
        .iter()
        .map(|(path, text)| (*path, (*text).to_owned()))
        .collect();
    objects.push(("Backend/shop/app", BACKEND.to_owned()));
    objects.push(("SecurityPolicy/shop/p", policy));
    let taken = taken(&objects);
    assert!(!accepted(&taken, Kind::SecurityPolicy, "p"), "{targets}");
    let route = taken.snapshot.routes.first().expect("a route");
    let auth = route.rules[0].auth.as_ref();
    let http = auth.is_some_and(|auth| auth.closed.is_some());
    let tcp = taken.snapshot.l4_routes.first().expect("a route");
    (http, tcp.parents.is_empty())
}

#[test]
fn a_refused_security_policy_closes_whatever_can_be_read_of_its_targets() {
    let group = "group: gateway.networking.k8s.io";
    let http = format!("{{ {group}, kind: HTTPRoute, name: app }}");
    let tcp = format!("{{ {group}, kind: TCPRoute, name: db }}");
    let many: Vec<String> = (0..20)
        .map(|number| format!("{{ {group}, kind: HTTPRoute, name: r{number} }}"))
        .chain([http.clone()])
        .collect();
    for (targets, closed) in [
        (format!("  targetRefs: [{http}]"), (true, false)),
        (format!("  targetRefs: [{tcp}]"), (false, true)),
        (format!("  targetRef: {http}\n  targetRefs: [{tcp}]"), (true, true)),
        (format!("  targetRefs: [{}]", many.join(", ")), (true, false)),
        (
            format!("  targetRefs: [{{ {group}, kind: HTTPRoute, name: app, sectionName: \"-\" }}]"),
            (true, false),
        ),
        (
            format!("  targetRefs: [{{ {group}, kind: Gateway, name: web }}]"),
            (true, true),
        ),
        (
            format!("  targetRefs: [{{ {group}, kind: Gateway, name: web, sectionName: tcp }}]"),
            (false, true),
        ),
        (
            "  targetSelectors: [{ kind: HTTPRoute, matchLabels: { app: a }, namespaces: { from: All } }]"
                .to_owned(),
            (true, false),
        ),
        (
            "  targetSelectors: [{ kind: HTTPRoute, matchLabels: 1 }]".to_owned(),
            (true, false),
        ),
        (
            "  targetSelectors: [{ kind: TCPRoute, matchLabels: { app: a } }]".to_owned(),
            (false, true),
        ),
        (
            "  targetSelectors: [{ kind: TLSRoute, matchLabels: { app: a } }]".to_owned(),
            (false, false),
        ),
    ] {
        assert_eq!(closes(&targets), closed, "{targets}");
    }
}

#[test]
fn a_refused_security_policy_closes_listeners_of_sets() {
    let set = |name: &str, port: u16| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1
kind: ListenerSet
metadata: {{ name: {name}, namespace: shop }}
spec:
  parentRef: {{ name: web }}
  listeners:
    - {{ name: one, port: {port}, protocol: HTTP }}
    - {{ name: two, port: {}, protocol: HTTP }}
",
            port + 1
        )
    };
    let route = |name: &str, set: &str, section: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{ name: {name}, namespace: shop }}
spec:
  parentRefs: [{{ kind: ListenerSet, name: {set}, sectionName: {section} }}]
  rules: [{{ backendRefs: [{{ group: gateway.envoyproxy.io, kind: Backend, name: app }}] }}]
"
        )
    };
    let group = "group: gateway.networking.k8s.io";
    for (targets, expected) in [
        (
            format!("  targetRefs: [{{ {group}, kind: ListenerSet, name: a }}]"),
            vec!["a1", "a2"],
        ),
        (
            format!("  targetRefs: [{{ {group}, kind: ListenerSet, name: a, sectionName: two }}]"),
            vec!["a2"],
        ),
        (
            "  targetSelectors: [{ kind: ListenerSet, matchLabels: { app: a } }]".to_owned(),
            vec!["a1", "a2", "b1"],
        ),
        (
            format!("  targetRefs: [{{ {group}, kind: ListenerSet, name: c }}]"),
            Vec::new(),
        ),
    ] {
        let policy = format!(
            "apiVersion: gateway.envoyproxy.io/v1alpha1
kind: SecurityPolicy
metadata: {{ name: p, namespace: shop }}
spec:
{targets}
"
        );
        let gateway = SERVED[1].1.replace(
            "  listeners:",
            "  allowedListeners: { namespaces: { from: Same } }\n  listeners:",
        );
        let objects = [
            ("GatewayClass/cardinal", SERVED[0].1.to_owned()),
            ("Gateway/shop/web", gateway),
            ("Backend/shop/app", BACKEND.to_owned()),
            ("ListenerSet/shop/a", set("a", 8001)),
            ("ListenerSet/shop/b", set("b", 8003)),
            ("HTTPRoute/shop/a1", route("a1", "a", "one")),
            ("HTTPRoute/shop/a2", route("a2", "a", "two")),
            ("HTTPRoute/shop/b1", route("b1", "b", "one")),
            ("SecurityPolicy/shop/p", policy),
        ];
        let taken = taken(&objects);
        assert!(!accepted(&taken, Kind::SecurityPolicy, "p"), "{targets}");
        let routes = &taken.snapshot.routes;
        assert_eq!(routes.len(), 3, "{targets}");
        let closed = routes.iter().filter(|route| {
            let auth = route.rules[0].auth.as_ref();
            auth.is_some_and(|auth| auth.closed.is_some())
        });
        let closed: Vec<_> = closed.map(|route| route.name.name()).collect();
        assert_eq!(closed, expected, "{targets}");
    }
}

#[test]
fn no_document_of_a_namespace_leads_to_the_node() {
    for (endpoint, closed) in [
        ("ip: { address: 127.0.0.1, port: 9901 }", true),
        ("ip: { address: \"::1\", port: 9901 }", true),
        ("ip: { address: 169.254.169.254, port: 80 }", true),
        ("ip: { address: 169.254.7.7, port: 80 }", true),
        ("fqdn: { hostname: localhost, port: 80 }", true),
        ("unix: { path: /run/cardinal/admin.sock }", true),
        ("ip: { address: 203.0.113.9, port: 80 }", false),
    ] {
        let backend = BACKEND.replace("ip: { address: 10.1.0.1, port: 8080 }", endpoint);
        let mut objects: Vec<(&str, String)> = SERVED
            .iter()
            .map(|(path, text)| (*path, (*text).to_owned()))
            .collect();
        objects.push(("Backend/shop/app", backend));
        let taken = taken(&objects);
        let route = taken.snapshot.routes.first().expect("a route");
        let unresolved = matches!(route.rules[0].targets[0].target, Target::Unresolved(_));
        assert_eq!(unresolved, closed, "{endpoint}");
        let tcp = taken.snapshot.l4_routes.first().expect("a route");
        assert_eq!(tcp.backends[0].upstreams.is_empty(), closed, "{endpoint}");
        let statuses = taken.report.routes.values().flat_map(|one| &*one.parents);
        for parent in statuses {
            let mut conditions = parent.conditions.iter();
            let resolved = conditions.find(|one| one.kind == ConditionKind::ResolvedRefs);
            assert_eq!(resolved.expect("it is there").holds, !closed, "{endpoint}");
        }
    }
}

/// A route of this namespace to a backend, and whether it may lead there: HTTP and TCP.
fn led(namespace: &str, backend: &str, objects: &[(&str, String)]) -> [Option<bool>; 2] {
    let served = SERVED.iter().map(|(path, text)| {
        let text = text
            .replace("namespace: shop", &format!("namespace: {namespace}"))
            .replace(
                "group: gateway.envoyproxy.io, kind: Backend, name: app",
                backend,
            );
        (*path, text)
    });
    let objects: Vec<_> = served.chain(objects.iter().cloned()).collect();
    let taken = taken(&objects);
    let (http, tcp) = (&taken.snapshot.routes[0], &taken.snapshot.l4_routes[0]);
    let http = match &http.rules[0].targets[0].target {
        Target::Upstreams(list) => Some(!list.is_empty()),
        _ => None,
    };
    let statuses = taken.report.routes.values().flat_map(|one| &*one.parents);
    for parent in statuses {
        let mut conditions = parent.conditions.iter();
        let resolved = conditions.find(|one| one.kind == ConditionKind::ResolvedRefs);
        let resolved = resolved.expect("it is there");
        assert_eq!(resolved.holds, http.is_some());
        assert!(resolved.holds || resolved.reason == Reason::RefNotPermitted);
    }
    [http, Some(!tcp.backends[0].upstreams.is_empty())]
}

#[test]
fn no_route_of_another_namespace_leads_into_a_cell() {
    let in_bank = |text: String| text.replace("namespace: shop", "namespace: bank");
    let spec = "  components:
    - { name: ledger, workloads: { selector: { matchLabels: { app: ledger } } }, endpoints: [{ name: db, type: TCP, port: 5432 }] }
    - { name: vault, workloads: { addresses: [10.1.0.7] }, serviceAddresses: [10.96.0.7], endpoints: [{ name: db, type: TCP, port: 5432 }] }";
    let service = |name: &str, namespace: &str, cluster: &str, addresses: &[&str]| {
        let service = format!(
            "apiVersion: v1
kind: Service
metadata: {{ name: {name}, namespace: {namespace} }}
spec: {{ clusterIP: {cluster}, ports: [{{ port: 5432 }}] }}
"
        );
        let endpoints = addresses
            .iter()
            .map(|one| format!("{{ addresses: [{one}] }}"));
        let endpoints: Vec<_> = endpoints.collect();
        let slice = format!(
            "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{ name: {name}, namespace: {namespace}, labels: {{ kubernetes.io/service-name: {name} }} }}
addressType: IPv4
ports: [{{ port: 5432 }}]
endpoints: [{}]
",
            endpoints.join(", ")
        );
        [("Service/x", service), ("EndpointSlice/x", slice)]
    };
    let backend = |namespace: &str, address: &str| {
        let endpoint = format!("ip: {{ address: {address}, port: 5432 }}");
        let text = BACKEND
            .replace("ip: { address: 10.1.0.1, port: 8080 }", &endpoint)
            .replace("namespace: shop", &format!("namespace: {namespace}"));
        vec![("Backend/app", text)]
    };
    let bank = [
        ("Cell/bank/bank", in_bank(cell("bank", "bank", spec))),
        (
            "Pod/bank/ledger",
            in_bank(pod("ledger", "app: ledger", "10.1.0.6")),
        ),
    ];
    let (mut named, mut other) = (
        service("ledger", "bank", "10.96.0.50", &["10.1.0.6"]),
        service("other", "bank", "10.96.0.51", &["10.1.0.9"]),
    );
    for (at, one) in named.iter_mut().chain(&mut other).enumerate() {
        one.0 = [
            "Service/bank/l",
            "EndpointSlice/bank/l",
            "Service/bank/o",
            "EndpointSlice/bank/o",
        ][at];
    }
    let app = "group: gateway.envoyproxy.io, kind: Backend, name: app";
    let own = "name: own, port: 5432";
    let open = [Some(true), Some(true)];
    let closed = [None, Some(false)];
    for (namespace, reference, objects, expected) in [
        ("evil", app, backend("evil", "10.1.0.6"), closed),
        ("evil", app, backend("evil", "10.1.0.7"), closed),
        // Addresses at which pods of the cell answer.
        ("evil", app, backend("evil", "10.96.0.7"), closed),
        ("evil", app, backend("evil", "10.96.0.50"), closed),
        ("evil", app, backend("evil", "10.96.0.51"), open),
        ("evil", app, backend("evil", "10.1.0.9"), open),
        (
            "evil",
            own,
            service("own", "evil", "10.96.0.9", &["10.1.0.6"]).to_vec(),
            closed,
        ),
        (
            "evil",
            own,
            service("own", "evil", "10.96.0.9", &["10.1.0.6", "10.1.0.9"]).to_vec(),
            open,
        ),
        // A service behind a service.
        (
            "evil",
            own,
            service("own", "evil", "10.96.0.9", &["10.96.0.50"]).to_vec(),
            closed,
        ),
        (
            "evil",
            app,
            [
                &backend("evil", "10.96.0.9")[..],
                &service("own", "evil", "10.96.0.9", &["10.96.0.50"]),
            ]
            .concat(),
            closed,
        ),
        // The team's own.
        ("bank", app, backend("bank", "10.1.0.6"), open),
        ("bank", app, backend("bank", "10.96.0.7"), open),
        (
            "bank",
            own,
            service("own", "bank", "10.96.0.9", &["10.1.0.6", "10.1.0.7"]).to_vec(),
            open,
        ),
    ] {
        let all = [&bank[..], &named[..], &other[..], &objects[..]].concat();
        assert_eq!(
            led(namespace, reference, &all),
            expected,
            "{namespace} {objects:?}"
        );
    }
    // What its namespace lets others refer to they may.
    let grant = r#"apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: { name: all, namespace: bank }
spec:
  from:
    - { group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop }
    - { group: gateway.networking.k8s.io, kind: TCPRoute, namespace: shop }
  to: [{ group: "", kind: Service }]
"#;
    let granted = [
        &bank[..],
        &named[..],
        &[("ReferenceGrant/x", grant.to_owned())],
    ]
    .concat();
    let reference = "name: ledger, namespace: bank, port: 5432";
    assert_eq!(led("shop", reference, &granted), open);
    // A cell of labels is open to everybody.
    let labels = "apiVersion: cardinal.dev/v1alpha1
kind: Cell
metadata: { name: bank, namespace: bank }
spec: { organization: acme, project: bank, environment: prod, egress: {} }
";
    let labelled = [
        &[("Cell/bank/bank", labels.to_owned())],
        &bank[1..],
        &backend("evil", "10.1.0.6")[..],
    ]
    .concat();
    assert_eq!(led("evil", app, &labelled), open);
}

#[test]
fn a_node_waits_for_pods_that_may_be_somebodys() {
    let coming = |namespace: &str, rest: &str| {
        format!(
            "apiVersion: v1
kind: Pod
metadata: {{ name: coming, namespace: {namespace}, labels: {{ app: other }} }}
spec: {{ nodeName: node-a{rest} }}
status: {{ phase: Pending }}
"
        )
    };
    let good = "  components:
    - { name: front, workloads: { selector: { matchLabels: { app: web } } } }";
    let bad = format!("{good}\n  unheardOf: 1");
    let of_labels = "  egress: {}";
    let cells = PLATFORM.replace("all", "cells");
    for (namespace, rest, spec, platform, waits) in [
        ("shop", "", good, &*cells, true),
        ("shop", "", &*bad, &*cells, true),
        ("shop", "", of_labels, &*cells, true),
        ("bank", "", of_labels, &*cells, false),
        ("shop", ", hostNetwork: true", good, &*cells, false),
        ("bank", "", good, &*cells, false),
        ("bank", "", good, PLATFORM, true),
    ] {
        let taken = taken(&[
            ("Cell/shop/a", cell("a", "a", spec)),
            ("NetworkPolicy/shop/deny", policy("deny", "")),
            ("Platform/platform", platform.to_owned()),
            ("Pod/coming", coming(namespace, rest)),
        ]);
        let waiting: Vec<&str> = taken.snapshot.awaited.iter().map(|one| &**one).collect();
        let expected: &[&str] = if waits { &["node-a"] } else { &[] };
        assert_eq!(waiting, expected, "{namespace} {rest} {spec} {platform}");
    }
    // It has come.
    let taken = taken(&[
        ("Cell/shop/a", cell("a", "a", good)),
        ("Pod/shop/web", pod("web", "app: web", "10.1.0.1")),
    ]);
    assert!(taken.snapshot.awaited.is_empty());
}

#[test]
fn a_younger_cell_takes_neither_a_tuple_nor_an_address_from_an_older_one() {
    let of_age = |name: &str, project: &str, day: u8| {
        let spec = "  components: [{ name: a, workloads: { addresses: [10.9.0.9] } }]";
        let created = format!("name: {name}, creationTimestamp: \"2026-01-0{day}T00:00:00Z\"");
        cell(name, project, spec).replace(&format!("name: {name},"), &format!("{created},"))
    };
    for project in ["shop", "other"] {
        let taken = taken(&[
            ("Cell/shop/a", of_age("a", project, 2)),
            ("Cell/shop/b", of_age("b", "shop", 1)),
        ]);
        assert!(!accepted(&taken, Kind::Cell, "a"), "{project}");
        assert!(accepted(&taken, Kind::Cell, "b"), "{project}");
        let found = of(&taken, "10.9.0.9").expect("it is somebody's");
        assert_eq!(found.id.project.as_str(), "shop");
    }
}

#[test]
fn a_security_policy_says_where_it_asks_nothing() {
    let policy = "apiVersion: gateway.envoyproxy.io/v1alpha1
kind: SecurityPolicy
metadata: { name: p, namespace: shop }
spec:
  targetRefs: [{ group: gateway.networking.k8s.io, kind: Gateway, name: web }]
  authorization: { defaultAction: Deny }
";
    let mut objects: Vec<(&str, String)> = SERVED
        .iter()
        .map(|(path, text)| (*path, (*text).to_owned()))
        .collect();
    objects.push(("Backend/shop/app", BACKEND.to_owned()));
    objects.push(("SecurityPolicy/shop/p", policy.to_owned()));
    let taken = taken(&objects);
    assert!(accepted(&taken, Kind::SecurityPolicy, "p"));
    let warnings: Vec<&str> = taken
        .snapshot
        .warnings
        .iter()
        .map(|one| one.message.as_str())
        .collect();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(
        warnings[0].contains("listener `tcp` of shop/web"),
        "{warnings:?}"
    );
}

#[test]
fn no_gateway_of_a_cluster_listens_at_an_address_of_the_node_itself() {
    for (address, works) in [
        ("127.0.0.1", false),
        ("169.254.169.254", false),
        ("169.254.20.10", false),
        ("10.0.0.1", true),
    ] {
        let gateway = SERVED[1].1.replace("10.0.0.1", address);
        let objects = [
            ("GatewayClass/cardinal", SERVED[0].1.to_owned()),
            ("Gateway/shop/web", gateway),
        ];
        let taken = taken(&objects);
        assert_eq!(
            taken.snapshot.gateways.len(),
            usize::from(works),
            "{address}"
        );
        let status = taken.report.gateways.values().next().expect("it is ours");
        let mut conditions = status.conditions.iter();
        let programmed = conditions.find(|one| one.kind == ConditionKind::Programmed);
        let programmed = programmed.expect("it is there");
        assert_eq!(programmed.holds, works, "{address}");
        if !works {
            assert_eq!(programmed.reason, Reason::AddressNotUsable, "{address}");
        }
    }
}

#[test]
fn a_refused_policy_of_tls_closes_a_backend_whose_section_cannot_be_read() {
    let policy = |section: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {{ name: p, namespace: shop }}
spec:
  targetRefs: [{{ group: gateway.envoyproxy.io, kind: Backend, name: app{section} }}]
  validation: {{ hostname: app.example.org, wellKnownCACertificates: System }}
"
        )
    };
    for (section, closed) in [
        ("", false),
        (", sectionName: web", true),
        (", sectionName: 8080", true),
    ] {
        let mut objects: Vec<_> = SERVED.map(|(path, text)| (path, text.to_owned())).into();
        objects.push(("Backend/shop/app", BACKEND.to_owned()));
        objects.push(("BackendTLSPolicy/shop/p", policy(section)));
        let taken = taken(&objects);
        assert_eq!(
            accepted(&taken, Kind::BackendTLSPolicy, "p"),
            !closed,
            "{section}"
        );
        let mut routes = taken.snapshot.routes.iter();
        let route = routes
            .find(|route| route.name.name() == "app")
            .expect("the route");
        let target = &route.rules[0].targets[0].target;
        assert_eq!(matches!(target, Target::Unresolved(_)), closed, "{section}");
    }
}

#[test]
fn a_listener_that_does_not_work_keeps_its_hosts() {
    let gateway = |more: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{ name: web, namespace: shop }}
spec:
  gatewayClassName: cardinal
  addresses: [{{ value: 10.0.0.1 }}]
  listeners:
    - {{ name: all, port: 80, protocol: HTTP }}
    - {{ name: one, {more} }}
"
        )
    };
    for (more, kept) in [
        (
            "port: 443, protocol: HTTPS, hostname: a.example.org, tls: { certificateRefs: [{ name: none }] }",
            Some(true),
        ),
        (
            "port: 443, protocol: TLS, hostname: \"*.example.org\", tls: { certificateRefs: [{ name: none }] }",
            Some(true),
        ),
        (
            "port: 80, protocol: HTTP, hostname: a.example.org, unheardOf: 1",
            Some(false),
        ),
        // It works.
        ("port: 80, protocol: HTTP, hostname: a.example.org", None),
        // It has no host of its own, or none that can be read.
        (
            "port: 443, protocol: HTTPS, tls: { certificateRefs: [{ name: none }] }",
            None,
        ),
        ("port: 80, protocol: HTTP, hostname: a_b", None),
        // The port is for HTTP, says the other one; of two that contradict each other neither has a word.
        (
            "port: 80, protocol: HTTPS, hostname: a.example.org, tls: { certificateRefs: [{ name: none }] }",
            None,
        ),
        ("port: 5432, protocol: TCP, unheardOf: 1", None),
    ] {
        let class = SERVED[0];
        let taken = taken(&[
            (class.0, class.1.to_owned()),
            ("Gateway/shop/web", gateway(more)),
        ]);
        let mut gateways = taken.snapshot.gateways.values();
        let unserved = &gateways.next().expect("the gateway").unserved;
        assert_eq!(unserved.first().map(|one| one.tls), kept, "{more}");
        assert!(unserved.len() <= 1, "{more}");
    }
}

#[test]
fn a_refused_set_of_listeners_keeps_its_hosts() {
    let gateway = "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: { name: web, namespace: shop }
spec:
  gatewayClassName: cardinal
  addresses: [{ value: 10.0.0.1 }]
  allowedListeners: { namespaces: { from: Same } }
  listeners: [{ name: all, port: 80, protocol: HTTP }]
";
    let set = |namespace: &str, more: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1
kind: ListenerSet
metadata: {{ name: team, namespace: {namespace} }}
spec:
  parentRef: {{ name: web, namespace: shop }}
  listeners:
    - {{ name: admin, port: 80, protocol: HTTP, hostname: admin.example.org }}
    - {{ name: any, port: 80, protocol: HTTP }}
{more}"
        )
    };
    for (set, kept) in [
        (set("shop", "  unheardOf: 1\n"), &["admin.example.org"][..]),
        // The gateway takes none of another namespace.
        (set("bank", "  unheardOf: 1\n"), &[]),
        // What it names is no gateway.
        (
            set("shop", "").replace("name: web,", "kind: Mesh, name: web,"),
            &[],
        ),
        // Nothing is wrong with it but that it has the port of another listener, for all hosts.
        (set("shop", ""), &[]),
    ] {
        let taken = taken(&[
            (SERVED[0].0, SERVED[0].1.to_owned()),
            ("Gateway/shop/web", gateway.to_owned()),
            ("ListenerSet/team", set.clone()),
        ]);
        let gateway = taken.snapshot.gateways.values().next();
        let unserved = &gateway.expect("the gateway").unserved;
        let hosts: Vec<_> = unserved
            .iter()
            .map(|one| one.hostname.to_string())
            .collect();
        assert_eq!(hosts, kept, "{set}");
        let attached = taken.report.gateways.values().next();
        assert_eq!(attached.expect("the gateway").listeners.len(), 1, "{set}");
    }
}

/// On some clouds a metadata service has an address that is a pod's elsewhere.
#[test]
fn a_pod_with_the_address_of_another_clouds_metadata_service_is_a_pod() {
    let spec = "  components:
    - { name: web, workloads: { selector: { matchLabels: { app: web } } }, endpoints: [{ name: api, type: TCP, port: 5432 }] }";
    let taken = taken(&[
        ("Cell/shop/a", cell("a", "a", spec)),
        ("Pod/shop/web", pod("web", "app: web", "100.100.100.200")),
    ]);
    assert!(accepted(&taken, Kind::Pod, "web"));
    assert!(of(&taken, "100.100.100.200").is_some());
    // Nobody else may claim it.
    let claims = "  components:
    - { name: web, workloads: { addresses: [100.100.100.200] }, endpoints: [{ name: api, type: TCP, port: 5432 }] }";
    let taken = self::taken(&[("Cell/shop/a", cell("a", "a", claims))]);
    assert!(!accepted(&taken, Kind::Cell, "a"));
}
