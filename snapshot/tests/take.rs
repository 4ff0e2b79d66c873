//! Objects of a cluster: each is taken or refused on its own, and nothing opens because something is wrong.

use snapshot::model::{Route, Target};
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

const CLASS: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: { name: cardinal }
spec: { controllerName: cardinal.dev/gateway-controller }
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
    let class = [("GatewayClass/cardinal", CLASS)];
    let objects = class.iter().chain(objects);
    take(objects.map(|(path, text)| SourceFile::new(*path, *text)))
}

fn find<'a>(taken: &'a Taken, name: &str) -> Option<&'a Route> {
    let mut routes = taken.snapshot.routes.iter().map(|route| &**route);
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
    // What it is about is nobody else's, and leads nowhere.
    let bad = find(&taken, "bad").expect("it is closed");
    let target = &bad.rules[0].targets[0].target;
    assert!(matches!(target, Target::Unresolved(_)), "{target:?}");
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

#[test]
fn a_selector_has_the_addresses_of_its_pods() {
    let cell = "
apiVersion: cardinal.dev/v1alpha1
kind: Cell
metadata: { name: shop, namespace: shop }
spec:
  organization: acme
  project: shop
  environment: prod
  components:
    - { name: first, workloads: { selector: { matchLabels: { app: web } } } }
    - { name: second, workloads: { selector: { matchLabels: { tier: front } } } }
";
    let pod = |name: &str, namespace: &str, rest: &str| {
        format!(
            "apiVersion: v1
kind: Pod
metadata: {{ name: {name}, namespace: {namespace}, labels: {{ app: web, tier: front }} }}
{rest}
"
        )
    };
    let pods = [
        pod(
            "runs",
            "shop",
            "status: { phase: Running, podIPs: [{ ip: 10.1.0.1 }, { ip: \"fd00::1\" }] }",
        ),
        pod(
            "ended",
            "shop",
            "status: { phase: Succeeded, podIPs: [{ ip: 10.1.0.2 }] }",
        ),
        pod(
            "host",
            "shop",
            "spec: { hostNetwork: true }\nstatus: { phase: Running, podIPs: [{ ip: 192.168.0.1 }] }",
        ),
        pod(
            "other",
            "bank",
            "status: { phase: Running, podIPs: [{ ip: 10.1.0.3 }] }",
        ),
    ];
    let mut objects = vec![("Cell/shop/shop", cell)];
    let names = [
        "Pod/shop/runs",
        "Pod/shop/ended",
        "Pod/shop/host",
        "Pod/bank/other",
    ];
    objects.extend(names.into_iter().zip(pods.iter().map(String::as_str)));
    let taken = taken(&objects);
    let cell = taken.snapshot.cells.values().next().expect("a cell");
    let addresses: Vec<Vec<String>> = cell
        .components
        .values()
        .map(|one| {
            one.workloads
                .addresses()
                .iter()
                .map(ToString::to_string)
                .collect()
        })
        .collect();
    // The pod is the first component's; the second one is told.
    assert_eq!(addresses, [vec!["10.1.0.1", "fd00::1"], vec![]]);
    let warnings = &taken.snapshot.warnings;
    assert!(
        warnings
            .iter()
            .all(|one| one.message.contains("which is one of component"))
    );
    assert_eq!(warnings.len(), 2);
}

#[test]
fn nodes_are_what_the_platform_does_not_name() {
    let node = "
apiVersion: v1
kind: Node
metadata: { name: node-a, labels: { topology.kubernetes.io/zone: west } }
spec: { podCIDRs: [10.1.0.0/24] }
status: { addresses: [{ type: InternalIP, address: 192.168.0.1 }, { type: Hostname, address: node-a }] }
";
    let taken = taken(&[("Node/node-a", node)]);
    let nodes = &taken.snapshot.platform.nodes;
    assert_eq!(nodes.len(), 1);
    assert_eq!(nodes[0].zone.as_deref(), Some("west"));
    assert_eq!(
        nodes[0].addresses,
        ["192.168.0.1"
            .parse::<std::net::IpAddr>()
            .expect("an address")]
    );
    assert_eq!(nodes[0].pod_networks.len(), 1);
}

#[test]
fn an_address_that_a_load_balancer_lists_twice_is_one() {
    let platform = "
apiVersion: cardinal.dev/v1alpha1
kind: Platform
metadata: { name: platform }
spec: { gateways: { addresses: LoadBalancer, loadBalancer: { namespace: agents } } }
";
    let gateway = GATEWAY.replace("  addresses: [{ value: 10.0.0.1 }]\n", "");
    let objects = [
        ("Gateway/shop/web", &*gateway),
        ("Platform/platform", platform),
    ];
    let first = taken(&objects);
    let wanted = first.report.load_balancers.expect("the platform is read");
    let name = wanted.keys().next().expect("one").name().to_owned();
    let service = format!(
        "
apiVersion: v1
kind: Service
metadata: {{ name: {name}, namespace: agents }}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.7
  ports: [{{ name: tcp-80, port: 80, nodePort: 30080 }}]
status:
  loadBalancer:
    ingress: [{{ ip: 203.0.113.1, ipMode: VIP }}, {{ ip: 203.0.113.1, ipMode: VIP }}]
"
    );
    let service = ("Service/agents/web", &*service);
    let taken = taken(&[&objects[..], &[service]].concat());
    let gateway = taken.snapshot.gateways.values().next().expect("it works");
    assert_eq!(gateway.addresses.len(), 1);
}
