//! Objects of the Gateway API's conformance suite (v1.6.1), and what their status is to say: the facts that the suite
//! waits for, of objects that `tests/vectors/gateway-api` has as they are.

mod table;
mod world;

use snapshot::model::{BackendName, Target};
use table::{GOOD, TABLE};
use world::{World, lines};

#[test]
fn every_object_says_what_the_suite_waits_for() {
    let mut missing = Vec::new();
    for (test, expected) in TABLE {
        let lines = lines(&World::new().with(test).take().report);
        for line in *expected {
            let line = line.replace("GOOD", GOOD);
            if !lines.contains(&line) {
                missing.push(format!("{test}: {line}"));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

#[test]
fn a_bad_object_of_the_suite_is_the_only_one_that_is_refused() {
    let mut refused = Vec::new();
    for (test, _) in TABLE {
        let report = World::new().with(test).take().report;
        assert_eq!(report.nameless, [], "{test}");
        let objects = report
            .objects
            .iter()
            .filter(|(_, verdict)| !verdict.accepted);
        refused.extend(objects.map(|(key, _)| key.to_string()));
    }
    assert_eq!(
        refused,
        ["`Secret` gateway-conformance-infra/malformed-certificate"]
    );
}

#[test]
fn an_address_that_cannot_be_had_is_told_from_one_of_an_unknown_type() {
    let mut world = World::new().with("gateway-static-addresses");
    world.replace("PLACEHOLDER_UNUSABLE_ADDRS", "203.0.113.1");
    world.replace("PLACEHOLDER_USABLE_ADDRS", "198.19.1.1");
    let gateway = |world: &World| {
        let mut lines = lines(&world.take().report);
        lines.retain(|line| {
            line.starts_with("gateway gateway-static")
                || line.starts_with("addresses gateway-static")
        });
        lines
    };
    assert_eq!(
        gateway(&world),
        [
            "gateway gateway-static-addresses -Accepted=UnsupportedAddress -Programmed=Invalid",
            "addresses gateway-static-addresses 0"
        ]
    );
    world.replace(
        "  - type: \"test/fake-invalid-type\"\n    value: \"fake address teehee!\"\n",
        "",
    );
    assert_eq!(
        gateway(&world),
        [
            "gateway gateway-static-addresses +Accepted=Accepted -Programmed=AddressNotUsable",
            "addresses gateway-static-addresses 0"
        ]
    );
    world.replace("  - value: \"203.0.113.1\"\n", "");
    assert_eq!(
        gateway(&world),
        [
            "gateway gateway-static-addresses +Accepted=Accepted +Programmed=Programmed",
            "addresses gateway-static-addresses 1"
        ]
    );
}

/// Target of the only rule of a route.
fn target(world: &World, route: &str) -> Target {
    let taken = world.take();
    let mut routes = taken.snapshot.routes.iter();
    let route = routes
        .find(|one| one.name.name() == route)
        .expect("a route");
    route.rules[0].targets[0].target.clone()
}

#[test]
fn a_grant_that_goes_takes_the_backend_with_it() {
    let mut world = World::new().with("httproute-reference-grant");
    assert!(matches!(
        target(&world, "reference-grant"),
        Target::Upstreams(_)
    ));
    world.remove("ReferenceGrant/gateway-conformance-web-backend/reference-grant");
    assert!(matches!(
        target(&world, "reference-grant"),
        Target::Unresolved(_)
    ));
    let lines = lines(&world.take().report);
    let expected = "route HTTPRoute reference-grant -> same-namespace +Accepted=Accepted -ResolvedRefs=RefNotPermitted";
    assert!(lines.iter().any(|line| line == expected), "{lines:#?}");
}

#[test]
fn endpoints_are_those_of_slices_whatever_the_service_is() {
    let mut world = World::new().with("httproute-service-types");
    world.add(
        "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: headless-1
  namespace: gateway-conformance-infra
  labels: { kubernetes.io/service-name: headless }
addressType: IPv4
ports: [{ name: first-port, port: 3000 }]
endpoints:
  - { addresses: [10.1.0.1], conditions: { ready: true, serving: true, terminating: false } }
  - { addresses: [10.1.0.2], conditions: { ready: false, serving: true, terminating: true } }
  - { addresses: [10.1.0.3], conditions: { ready: false } }
",
    );
    let taken = world.take();
    let targets: Vec<_> = taken
        .snapshot
        .routes
        .iter()
        .flat_map(|route| &route.rules)
        .flat_map(|rule| &rule.targets)
        .collect();
    let headless = targets.iter().find(|target| {
        matches!(&target.backend, Some(BackendName::Service(name, _)) if name.name() == "headless")
    });
    let Target::Upstreams(upstreams) = &headless.expect("a target").target else {
        panic!("{headless:?}");
    };
    let upstreams: Vec<String> = upstreams.iter().map(ToString::to_string).collect();
    assert_eq!(upstreams, ["10.1.0.1:3000"]);
}

#[test]
fn a_port_of_h2c_speaks_http2() {
    let taken = World::new().with("httproute-backend-protocol-h2c").take();
    let target = &taken.snapshot.routes[0].rules[0].targets[0];
    assert!(target.http2, "{target:?}");
}

#[test]
fn the_same_objects_in_a_folder_make_the_same_snapshot() {
    for test in [
        "httproute-matching",
        "listenerset-http-routing",
        "tlsroute-mixed-termination-same-namespace",
        "httproute-reference-grant",
        "grpcroute-weight",
    ] {
        let world = World::new().with(test);
        let taken = world.take();
        let mut parsed =
            snapshot::parse(&world.files()).unwrap_or_else(|error| panic!("{test}: {error}"));
        // The order of what is said says nothing.
        parsed.warnings.sort();
        let mut snapshot = taken.snapshot;
        snapshot.warnings.sort();
        assert_eq!(format!("{snapshot:?}"), format!("{parsed:?}"), "{test}");
    }
}
