//! `Service`s and their `EndpointSlice`s: what comes of them for clients of their addresses.

use snapshot::model::{Service, ServiceEndpoint, Transport};
use snapshot::{SourceFile, Taken, take};

/// A service with a name, and what its `spec` says.
fn service(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{ name: {name}, namespace: shop }}
spec: {spec}
"
    )
}

/// A slice of the service `web`.
fn slice(kind: &str, ports: &str, endpoints: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{ name: x, namespace: shop, labels: {{ kubernetes.io/service-name: web }} }}
addressType: {kind}
ports: {ports}
endpoints: {endpoints}
"
    )
}

fn taken(texts: &[String]) -> Taken {
    let files = texts.iter().enumerate().map(|(number, text)| SourceFile {
        path: format!("{number}"),
        // Slices of one service have names of their own.
        bytes: text
            .replace("name: x,", &format!("name: x-{number},"))
            .into_bytes(),
    });
    take(files)
}

/// Everything about a service in a line.
fn shown(service: &Service) -> String {
    let addresses: Vec<_> = service.addresses.iter().map(ToString::to_string).collect();
    let mut text = addresses.join(",");
    if let Some(affinity) = service.affinity {
        text += &format!(" keeps {} s", affinity.as_secs());
    }
    if service.node_only {
        text += " of its node";
    }
    if !service.led {
        text += " not led";
    }
    for port in &service.ports {
        let transport = match port.transport {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        };
        let endpoints: Vec<_> = port.endpoints.iter().map(endpoint).collect();
        text += &format!(" {}/{transport} [{}]", port.port, endpoints.join(" "));
    }
    text
}

fn endpoint(one: &ServiceEndpoint) -> String {
    let mut text = format!("{}:{}", one.address, one.port);
    if one.ending {
        text += "~";
    }
    if let Some(node) = &one.node {
        text += &format!("@{node}");
    }
    for zone in &one.zones {
        text += &format!("+{zone}");
    }
    for node in &one.nodes {
        text += &format!("*{node}");
    }
    text
}

/// What comes of the service `web` and slices of it; none: nothing.
fn web(spec: &str, slices: &[String]) -> Option<String> {
    let mut texts = vec![service("web", spec)];
    texts.extend_from_slice(slices);
    let taken = taken(&texts);
    let refused = taken.report.objects.values().filter(|one| !one.accepted);
    assert_eq!(refused.count(), 0, "{:?}", taken.report.objects);
    let mut services = taken.snapshot.services.values();
    services.next().map(|one| shown(one))
}

const PORT: &str = "[{ port: 80 }]";
const ONE: &str = "{ clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1], ports: [{ port: 80 }] }";

#[test]
fn addresses_are_those_of_the_cluster() {
    let rows = [
        (ONE, Some("10.96.0.1 80/tcp []")),
        // Written by hand only one field may be there.
        (
            "{ clusterIP: 10.96.0.1, ports: [{ port: 80 }] }",
            Some("10.96.0.1 80/tcp []"),
        ),
        (
            "{ clusterIP: 'fd96::1', clusterIPs: ['fd96::1', 10.96.0.1], ports: [{ port: 53, protocol: UDP }] }",
            Some("fd96::1,10.96.0.1 53/udp []"),
        ),
        (
            "{ type: LoadBalancer, clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1], ports: [{ port: 80, nodePort: 30080 }] }",
            Some("10.96.0.1 80/tcp []"),
        ),
        // Headless, without an address yet, and an alias.
        (
            "{ clusterIP: None, clusterIPs: [None], ports: [{ port: 80 }] }",
            None,
        ),
        ("{ ports: [{ port: 80 }] }", None),
        (
            "{ type: ExternalName, externalName: example.org, clusterIP: '' }",
            None,
        ),
        // What is not known is not led anywhere.
        (
            "{ clusterIP: 10.96.0.1, ports: [{ name: a, port: 80, protocol: SCTP }, { name: b, port: 80 }, { name: c, port: 80, protocol: UDP }] }",
            Some("10.96.0.1 80/tcp [] 80/udp []"),
        ),
    ];
    for (spec, expected) in rows {
        assert_eq!(web(spec, &[]).as_deref(), expected, "{spec}");
    }
}

#[test]
fn affinity_and_policy_are_the_service_s() {
    let rows = [
        ("sessionAffinity: None", "10.96.0.1"),
        ("sessionAffinity: ClientIP", "10.96.0.1 keeps 10800 s"),
        (
            "sessionAffinity: ClientIP, sessionAffinityConfig: { clientIP: { timeoutSeconds: 7 } }",
            "10.96.0.1 keeps 7 s",
        ),
        ("internalTrafficPolicy: Cluster", "10.96.0.1"),
        ("internalTrafficPolicy: Local", "10.96.0.1 of its node"),
    ];
    for (fields, expected) in rows {
        let spec = format!("{{ clusterIP: 10.96.0.1, {fields} }}");
        assert_eq!(web(&spec, &[]).as_deref(), Some(expected), "{fields}");
    }
}

#[test]
fn endpoints_are_those_that_answer() {
    let rows = [
        // Conditions that are absent: ready (Kubernetes, `EndpointConditions`).
        ("[{ addresses: [10.1.0.1] }]", "10.1.0.1:8080"),
        (
            "[{ addresses: [10.1.0.1], conditions: { ready: true, serving: true, terminating: false } }]",
            "10.1.0.1:8080",
        ),
        (
            "[{ addresses: [10.1.0.1], conditions: { ready: false } }]",
            "",
        ),
        (
            "[{ addresses: [10.1.0.1], conditions: { ready: false, serving: true, terminating: true } }]",
            "10.1.0.1:8080~",
        ),
        (
            "[{ addresses: [10.1.0.1], conditions: { ready: false, serving: false, terminating: true } }]",
            "",
        ),
        // `publishNotReadyAddresses` comes as ready endpoints that may end.
        (
            "[{ addresses: [10.1.0.1], conditions: { ready: true, serving: false, terminating: true } }]",
            "10.1.0.1:8080",
        ),
        (
            "[{ addresses: [10.1.0.2], nodeName: n2 }, { addresses: [10.1.0.1], nodeName: n1, hints: { forZones: [{ name: a }, { name: b }], forNodes: [{ name: n1 }] } }]",
            "10.1.0.1:8080@n1+a+b*n1 10.1.0.2:8080@n2",
        ),
        ("null", ""),
    ];
    for (endpoints, expected) in rows {
        let slice = slice("IPv4", "[{ port: 8080 }]", endpoints);
        let expected = format!("10.96.0.1 80/tcp [{expected}]");
        assert_eq!(web(ONE, &[slice]), Some(expected), "{endpoints}");
    }
}

#[test]
fn ports_are_found_by_their_names_and_each_slice_has_its_numbers() {
    let spec = "{ clusterIPs: [10.96.0.1, 'fd96::1'], ports: [{ name: http, port: 80, targetPort: web }, { name: dns, port: 53, protocol: UDP }] }";
    let ports = |http: u16| {
        format!("[{{ name: http, port: {http} }}, {{ name: dns, port: 5353, protocol: UDP }}]")
    };
    let slices = [
        slice("IPv4", &ports(8080), "[{ addresses: [10.1.0.1] }]"),
        // A pod of another version has the named port at another number.
        slice("IPv4", &ports(9090), "[{ addresses: [10.1.0.2] }]"),
        slice("IPv6", &ports(8080), "[{ addresses: ['fd01::1'] }]"),
        // One that lacks a port, and one of names.
        slice(
            "IPv4",
            "[{ name: other, port: 1 }]",
            "[{ addresses: [10.1.0.3] }]",
        ),
        slice("FQDN", &ports(8080), "[{ addresses: [example.org] }]"),
    ];
    assert_eq!(
        web(spec, &slices).as_deref(),
        Some(
            "10.96.0.1,fd96::1 80/tcp [10.1.0.1:8080 10.1.0.2:9090 fd01::1:8080] 53/udp [10.1.0.1:5353 10.1.0.2:5353 fd01::1:5353]"
        )
    );
}

#[test]
fn an_endpoint_that_moves_between_slices_is_one() {
    let ready = slice("IPv4", PORT, "[{ addresses: [10.1.0.1] }]");
    let ending = slice(
        "IPv4",
        PORT,
        "[{ addresses: [10.1.0.1], conditions: { ready: false, serving: true, terminating: true } }]",
    );
    for slices in [[ready.clone(), ending.clone()], [ending, ready]] {
        assert_eq!(
            web(ONE, &slices).as_deref(),
            Some("10.96.0.1 80/tcp [10.1.0.1:80]")
        );
    }
}

#[test]
fn an_address_is_one_service_s() {
    let taken = taken(&[service("b", ONE), service("a", ONE)]);
    let names: Vec<_> = taken
        .snapshot
        .services
        .keys()
        .map(|one| one.name())
        .collect();
    assert_eq!(names, ["a"]);
    let mut verdicts = taken.report.objects.values();
    assert!(verdicts.any(|one| one.mistakes.iter().any(|mistake| {
        &*mistake.source.field == "spec.clusterIPs[0]"
            && mistake.message.contains("is the address of")
    })));
}

/// One that is larger than what nodes have room for keeps no other from being led.
#[test]
fn the_largest_services_are_left_out_of_what_nodes_have_room_for() {
    let large = |address: &str, ports: usize| {
        let ports: Vec<_> = (1..=ports)
            .map(|port| format!("{{ name: p{port}, port: {port} }}"))
            .collect();
        format!("{{ clusterIP: {address}, ports: [{}] }}", ports.join(", "))
    };
    let led = |sizes: &[(&str, usize)]| {
        let texts = sizes.iter().enumerate().map(|(number, (name, ports))| {
            service(name, &large(&format!("10.96.0.{}", number + 1), *ports))
        });
        let taken = taken(&texts.collect::<Vec<_>>());
        let services = taken.snapshot.services.values();
        let led: Vec<_> = services
            .map(|one| (one.name.name().to_owned(), one.led, one.addresses.len()))
            .collect();
        let warnings: Vec<_> = taken
            .snapshot
            .warnings
            .iter()
            .map(ToString::to_string)
            .collect();
        (led, warnings.join("\n"))
    };
    let of = |name: &str, led| (name.to_owned(), led, 1);
    let all = Service::ALL_PORTS;
    let (fitting, nothing) = led(&[("a", all / 2), ("web", all / 2)]);
    assert_eq!(fitting, [of("a", true), of("web", true)]);
    assert_eq!(nothing, "");
    let (others, warning) = led(&[("a", all / 2 + 2), ("b", all / 2 - 1), ("web", 1)]);
    // Its address stays known as a service's: nothing else may be there.
    assert_eq!(others, [of("a", false), of("b", true), of("web", true)]);
    assert!(
        warning.contains("its 15002 ports with 0 endpoints"),
        "{warning}"
    );
}

/// Endpoints of a port are side by side in the kernel's map: many of them find no room there, though there is enough in pieces.
#[test]
fn a_service_with_very_many_endpoints_at_a_port_is_left_out() {
    let led = |count: usize| {
        let endpoints =
            (0..count).map(|one| format!("{{ addresses: [10.{}.{}.1] }}", one / 256, one % 256));
        let endpoints: Vec<_> = endpoints.collect();
        let taken = taken(&[
            service("web", "{ clusterIP: 10.96.0.1, ports: [{ port: 80 }] }"),
            slice(
                "IPv4",
                "[{ port: 80 }]",
                &format!("[{}]", endpoints.join(", ")),
            ),
        ]);
        let snapshot = taken.snapshot;
        let warnings: Vec<_> = snapshot.warnings.iter().map(ToString::to_string).collect();
        let web = snapshot.services.values().next().expect("the service");
        // It is a backend of routes as ever.
        assert_eq!(web.ports[0].endpoints.len(), count);
        (web.led, warnings.join(" "))
    };
    let most = Service::PORT_ENDPOINTS;
    assert_eq!(led(most), (true, String::new()));
    let (left, warning) = led(most + 1);
    assert!(!left);
    assert!(
        warning.contains("10001 endpoints at one of its ports"),
        "{warning}"
    );
}

#[test]
fn what_a_service_says_wrong_is_named() {
    for (spec, field) in [
        ("{ clusterIP: 10.96.0.999 }", "spec.clusterIP"),
        (
            "{ clusterIP: 10.96.0.1, sessionAffinity: Client }",
            "spec.sessionAffinity",
        ),
        (
            "{ clusterIP: 10.96.0.1, internalTrafficPolicy: Node }",
            "spec.internalTrafficPolicy",
        ),
    ] {
        let taken = taken(&[service("web", spec)]);
        assert!(taken.snapshot.services.is_empty());
        let mut verdicts = taken.report.objects.values();
        let verdict = verdicts.next().expect("there is one object");
        assert!(!verdict.accepted);
        assert_eq!(&*verdict.mistakes[0].source.field, field);
    }
}

#[test]
fn to_a_service_of_another_proxy_nothing_is_led() {
    let spec = "{ clusterIP: 10.96.0.1, ports: [{ port: 80 }] }";
    let own = service("web", spec);
    let other = own.replace(
        "namespace: shop }",
        "namespace: shop, labels: { service.kubernetes.io/service-proxy-name: mesh } }",
    );
    let endpoints = slice("IPv4", "[{ port: 8080 }]", "[{ addresses: [10.1.0.1] }]");
    for (service, led) in [
        (own, "10.96.0.1 80/tcp [10.1.0.1:8080]"),
        (other, "10.96.0.1 not led 80/tcp [10.1.0.1:8080]"),
    ] {
        let taken = taken(&[service, endpoints.clone()]);
        // Its address is a service's all the same.
        let services: Vec<_> = taken
            .snapshot
            .services
            .values()
            .map(|one| shown(one))
            .collect();
        assert_eq!(services, [led]);
        assert!(
            taken
                .report
                .objects
                .values()
                .all(|verdict| verdict.accepted)
        );
    }
}
