//! Gateways that name no address: where theirs are from, and what they need for it.

use snapshot::model::{Gateway, NodePorts, ObjectName, Transport};
use snapshot::status::{Condition, ConditionKind, GatewayAddress, LoadBalancer, Reason};
use snapshot::{Kind, SourceFile, Taken, take};

const CLASS: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: { name: edge }
spec:
  controllerName: cardinal.dev/gateway-controller
  parametersRef: { group: cardinal.dev, kind: Platform, name: platform }
";

const NODES: &str = "
apiVersion: v1
kind: Node
metadata: { name: a }
status: { addresses: [{ type: InternalIP, address: 192.0.2.1 }, { type: InternalIP, address: '2001:db8::1' }] }
---
apiVersion: v1
kind: Node
metadata: { name: b }
status: { addresses: [{ type: InternalIP, address: 192.0.2.2 }, { type: ExternalIP, address: 198.51.100.2 }] }
";

fn platform(gateways: &str) -> String {
    format!(
        "
apiVersion: cardinal.dev/v1alpha1
kind: Platform
metadata: {{ name: platform }}
spec: {{ gateways: {{ {gateways} }} }}
"
    )
}

fn gateway(name: &str, ports: &[u16]) -> String {
    let ports = ports.iter();
    let listeners = ports.map(|port| format!("{{ name: p{port}, port: {port}, protocol: HTTP }}"));
    let listeners: Vec<_> = listeners.collect();
    format!(
        "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{ name: {name}, namespace: shop, creationTimestamp: '2026-01-01T00:00:0{}Z' }}
spec:
  gatewayClassName: edge
  listeners: [{}]
",
        name.len(),
        listeners.join(", ")
    )
}

fn taken(texts: &[&str]) -> Taken {
    let files = texts
        .iter()
        .enumerate()
        .map(|(number, text)| SourceFile::new(format!("{number}.yaml"), *text));
    take(files)
}

fn name(text: &str) -> ObjectName {
    ObjectName::new("shop", text).expect("a name")
}

fn served<'a>(taken: &'a Taken, gateway: &str) -> Option<&'a Gateway> {
    taken.snapshot.gateways.get(&name(gateway))
}

fn programmed(taken: &Taken, gateway: &str) -> Condition {
    let status = &taken.report.gateways[&name(gateway)];
    let mut conditions = status.conditions.iter();
    let found = conditions.find(|one| one.kind == ConditionKind::Programmed);
    found.expect("it is said").clone()
}

fn port(number: u16) -> std::num::NonZeroU16 {
    std::num::NonZeroU16::new(number).expect("a port")
}

fn balancer(taken: &Taken) -> (&ObjectName, &LoadBalancer) {
    let wanted = taken.report.load_balancers.as_ref();
    let mut wanted = wanted.expect("it is known").iter();
    let (name, wanted) = wanted.next().expect("one is known");
    (name, wanted.as_ref().expect("it is wanted"))
}

#[test]
fn an_empty_list_of_addresses_names_none() {
    let platform = platform("addressPools: [203.0.113.0/28]");
    let absent = gateway("web", &[80]);
    let empty = absent.replace("  listeners:", "  addresses: []\n  listeners:");
    assert_ne!(absent, empty);
    let [absent, empty] = [absent, empty].map(|gateway| {
        let taken = taken(&[CLASS, &platform, &gateway]);
        let web = served(&taken, "web").expect("it has addresses");
        (web.addresses.clone(), programmed(&taken, "web"))
    });
    assert_eq!(absent.0.len(), 1);
    assert_eq!(absent, empty);
}

#[test]
fn on_nodes_each_port_is_one_gateway_s() {
    let platform = platform("classes: [{ name: edge, addresses: Nodes }]");
    let (web, other) = (gateway("web", &[80, 22]), gateway("other", &[80, 81]));
    let taken = taken(&[CLASS, NODES, &platform, &web, &other]);
    let web = served(&taken, "web").expect("it has addresses");
    assert_eq!(web.node_ports, NodePorts::Same);
    assert!(web.addresses.is_empty());
    let ports: Vec<_> = web.listeners.iter().map(|one| one.port.get()).collect();
    assert_eq!(ports, [80], "a node is run by port 22");
    // A node is where its own addresses are.
    let own = ["192.0.2.1", "2001:db8::1"].map(|one| one.parse().expect("an address"));
    let sockets = web.sockets(&web.listeners[0], &own);
    let sockets: Vec<_> = sockets.iter().map(ToString::to_string).collect();
    assert_eq!(sockets, ["192.0.2.1:80", "[2001:db8::1]:80"]);

    // The younger gateway has what the older one leaves.
    let other = served(&taken, "other").expect("it has addresses");
    let ports: Vec<_> = other.listeners.iter().map(|one| one.port.get()).collect();
    assert_eq!(ports, [81]);
    let status = &taken.report.gateways[&name("other")];
    let taken_port = status.listeners[0].conditions.iter();
    let mut reasons = taken_port.filter(|one| one.kind == ConditionKind::Accepted);
    assert_eq!(
        reasons.next().map(|one| one.reason),
        Some(Reason::PortUnavailable)
    );
    let listed: Vec<_> = ["192.0.2.1", "2001:db8::1", "192.0.2.2"]
        .map(|one| GatewayAddress::Ip(one.parse().expect("an address")))
        .into();
    assert_eq!(status.addresses, listed);
}

#[test]
fn a_status_lists_some_of_many_nodes() {
    let nodes = (1..=20).map(|number| {
        format!(
            "---
apiVersion: v1
kind: Node
metadata: {{ name: n{number} }}
status: {{ addresses: [{{ type: InternalIP, address: 192.0.2.{number} }}] }}
"
        )
    });
    let nodes: String = nodes.collect();
    let platform = platform("addresses: Nodes");
    let taken = taken(&[CLASS, &nodes, &platform, &gateway("web", &[80])]);
    assert_eq!(taken.report.gateways[&name("web")].addresses.len(), 16);
}

#[test]
fn without_nodes_and_as_a_gate_there_are_none() {
    let platform =
        platform("addresses: Nodes, external: { gatewayRef: { namespace: shop, name: web } }");
    let web = gateway("web", &[80]);
    let nowhere = taken(&[CLASS, &platform, &web]);
    assert!(served(&nowhere, "web").is_none());
    assert_eq!(
        programmed(&nowhere, "web").reason,
        Reason::AddressNotAssigned
    );
    let somewhere = taken(&[CLASS, NODES, &platform, &web]);
    assert!(somewhere.snapshot.platform.external.is_none());
    let mut said = somewhere
        .report
        .objects
        .values()
        .flat_map(|one| &one.mistakes);
    assert!(said.any(|one| one.message.contains("a gate needs addresses of its own")));
}

#[test]
fn a_load_balancer_is_asked_for_and_what_it_gives_is_taken() {
    let platform = platform(
        "addresses: LoadBalancer, loadBalancer: { class: tailscale, annotations: { a: b }, namespace: agents }",
    );
    let web = gateway("web", &[80, 443]);
    let before = taken(&[CLASS, NODES, &platform, &web]);
    assert!(served(&before, "web").is_none());
    let condition = programmed(&before, "web");
    assert_eq!(
        (condition.holds, condition.reason),
        (false, Reason::AddressNotAssigned)
    );
    // Waiting is no mistake.
    assert!(
        before
            .report
            .objects
            .values()
            .all(|one| one.mistakes.is_empty())
    );
    let (service, wanted) = balancer(&before);
    assert_eq!(service.namespace(), "agents");
    assert!(service.name().starts_with("gateway-shop-web-"), "{service}");
    assert_eq!(wanted.class.as_deref(), Some("tailscale"));
    assert_eq!(wanted.annotations["a"], "b");
    assert!(wanted.local);
    let ports: Vec<_> = wanted
        .ports
        .iter()
        .map(|one| (one.port.get(), one.target))
        .collect();
    assert_eq!(ports, [(80, None), (443, None)]);

    // The cluster sets ports apart, and the balancer has an address and a name.
    let given = format!(
        "
apiVersion: v1
kind: Service
metadata: {{ name: {}, namespace: agents }}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.9
  ports: [{{ name: tcp-80, port: 80, nodePort: 30080 }}, {{ name: tcp-443, port: 443, nodePort: 30443 }}]
status: {{ loadBalancer: {{ ingress: [{{ ip: 203.0.113.7 }}, {{ hostname: web.example.org }}] }} }}
",
        service.name()
    );
    let after = taken(&[CLASS, NODES, &platform, &web, &given]);
    let served = served(&after, "web").expect("it has addresses");
    let sockets = served.sockets(
        &served.listeners[1],
        &["192.0.2.1".parse().expect("an address")],
    );
    let sockets: Vec<_> = sockets.iter().map(ToString::to_string).collect();
    assert_eq!(sockets, ["203.0.113.7:443", "192.0.2.1:30443"]);
    assert_eq!(
        served.node_ports.of(Transport::Tcp, port(80)),
        Some(port(30_080))
    );
    assert!(programmed(&after, "web").holds);
    let status = &after.report.gateways[&name("web")];
    let listed = [
        GatewayAddress::Ip("203.0.113.7".parse().expect("an address")),
        GatewayAddress::Hostname("web.example.org".to_owned()),
    ];
    assert_eq!(status.addresses, listed);
    let (_, wanted) = balancer(&after);
    let targets: Vec<_> = wanted.ports.iter().filter_map(|one| one.target).collect();
    assert_eq!(targets, [port(30_080), port(30_443)]);
}

#[test]
fn a_class_has_the_platform_as_parameters_or_none() {
    for (reference, accepted) in [
        (
            "{ group: cardinal.dev, kind: Platform, name: platform }",
            true,
        ),
        (
            "{ group: cardinal.dev, kind: Platform, name: other }",
            false,
        ),
        (
            "{ group: '', kind: ConfigMap, name: platform, namespace: shop }",
            false,
        ),
    ] {
        let class = CLASS.replace(
            "{ group: cardinal.dev, kind: Platform, name: platform }",
            reference,
        );
        let taken = taken(&[&class, &platform("addresses: Nodes")]);
        let conditions = &taken.report.classes["edge"].conditions;
        assert_eq!(conditions[0].holds, accepted, "{reference}");
    }
}

#[test]
fn a_platform_that_cannot_be_read_takes_no_load_balancer_away() {
    let bad = platform("addresses: LoadBalancer, loadBalancer: { externalTrafficPolicy: local }");
    let taken = taken(&[CLASS, &bad, &gateway("web", &[80])]);
    let mut verdicts = taken.report.objects.iter();
    let verdict = verdicts.find(|(key, _)| key.kind == Kind::Platform);
    let (_, verdict) = verdict.expect("it has a name");
    assert!(!verdict.accepted);
    assert_eq!(
        &*verdict.mistakes[0].source.field,
        "spec.gateways.loadBalancer.externalTrafficPolicy"
    );
    assert_eq!(taken.report.load_balancers, None);
}

#[test]
fn a_gateway_that_is_refused_keeps_its_load_balancer_as_it_is() {
    let platform = platform("addresses: LoadBalancer");
    let good = gateway("web", &[80]);
    let before = taken(&[CLASS, &platform, &good]);
    let (service, _) = balancer(&before);
    for bad in [
        good.replace("spec:", "spec:\n  unheardOf: 1"),
        good.replace("protocol: HTTP", "protocol: example.com/Other"),
    ] {
        let taken = taken(&[CLASS, &platform, &bad]);
        let wanted = taken.report.load_balancers.expect("it is known");
        assert_eq!(wanted.get(service), Some(&None), "{bad}");
    }
}

#[test]
fn a_port_of_a_load_balancer_outlives_the_certificate_of_its_listener() {
    let platform = platform("addresses: LoadBalancer");
    let https = "protocol: HTTPS, tls: { certificateRefs: [{ name: gone }] }";
    let web = gateway("web", &[443]).replace("protocol: HTTP", https);
    let taken = taken(&[CLASS, &platform, &web]);
    let (_, wanted) = balancer(&taken);
    assert_eq!(wanted.ports.len(), 1);
    assert_eq!(wanted.ports[0].port, port(443));
}
