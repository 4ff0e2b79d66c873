//! What `TLSRoute`, `TCPRoute` and `UDPRoute` documents mean.

use snapshot::model::{L4Kind, L4Route, ListenerProtocol, TlsMode};
use snapshot::{Rejections, Snapshot, SourceFile, parse};

fn read(text: &str) -> Result<Snapshot, Rejections> {
    parse(&[SourceFile::new("test.yaml", text)])
}

fn taken(text: &str) -> Snapshot {
    read(text).unwrap_or_else(|rejections| panic!("{rejections}"))
}

/// A gateway with these listeners, and a backend.
fn world(listeners: &str) -> String {
    format!(
        "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{ name: edge }}
spec:
  gatewayClassName: cardinal
  addresses: [{{ value: 192.0.2.10 }}]
  listeners: [{listeners}]
---
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: Backend
metadata: {{ name: up }}
spec: {{ endpoints: [{{ ip: {{ address: 10.3.0.1, port: 1 }} }}] }}
"
    )
}

/// A route to the backend; `more` are further fields of its `spec`.
fn route(kind: &str, name: &str, created: &str, more: &str) -> String {
    let created = match created {
        "" => String::new(),
        created => format!(", creationTimestamp: \"{created}\""),
    };
    format!(
        "---
apiVersion: gateway.networking.k8s.io/v1
kind: {kind}
metadata: {{ name: {name}{created} }}
spec:
  parentRefs: [{{ name: edge }}]
  rules: [{{ backendRefs: [{{ group: gateway.envoyproxy.io, kind: Backend, name: up }}] }}]
  {more}
"
    )
}

/// `listener=host,host` of each parent; `*` is every name.
fn hosts(route: &L4Route) -> Vec<String> {
    let parents = route.parents.iter().map(|parent| {
        let hosts: Vec<_> = parent
            .hosts
            .iter()
            .map(|host| {
                host.as_ref()
                    .map_or_else(|| "*".to_owned(), ToString::to_string)
            })
            .collect();
        format!("{}={}", parent.listener, hosts.join(","))
    });
    parents.collect()
}

#[test]
fn routes_attach_to_listeners_of_their_protocol() {
    let text = world(
        "{ name: tls, port: 443, protocol: TLS, tls: { mode: Passthrough } }, \
         { name: tcp, port: 25, protocol: TCP }, { name: tcp2, port: 26, protocol: TCP }, \
         { name: udp, port: 25, protocol: UDP }, { name: http, port: 80, protocol: HTTP }",
    ) + &route("TLSRoute", "r", "", "hostnames: [a.example.com]")
        + &route("TCPRoute", "r", "", "")
        + &route("UDPRoute", "r", "", "");
    let snapshot = taken(&text);
    let of = |kind| {
        let mut routes = snapshot.l4_routes.iter().filter(|one| one.kind == kind);
        hosts(routes.next().expect("it is there"))
    };
    assert_eq!(of(L4Kind::Tls), ["tls=a.example.com"]);
    assert_eq!(of(L4Kind::Tcp), ["tcp=*", "tcp2=*"]);
    assert_eq!(of(L4Kind::Udp), ["udp=*"]);
    let gateway = snapshot.gateways.values().next().expect("it is there");
    assert_eq!(
        gateway.listeners[0].protocol,
        ListenerProtocol::Tls(TlsMode::Passthrough)
    );
    assert!(snapshot.warnings.is_empty(), "{:?}", snapshot.warnings);
}

#[test]
fn server_names_are_those_of_route_and_listener_alike() {
    for (listener, names, expected) in [
        (
            "",
            "a.example.com, \"*.b.example.com\"",
            "a.example.com,*.b.example.com",
        ),
        ("hostname: \"*.example.com\",", "\"*.com\"", "*.example.com"),
        (
            "hostname: \"*.example.com\",",
            "a.example.com, a.example.org",
            "a.example.com",
        ),
        (
            "hostname: a.example.com,",
            "\"*.example.com\"",
            "a.example.com",
        ),
    ] {
        let listener = format!(
            "{{ name: tls, port: 443, protocol: TLS, {listener} tls: {{ mode: Passthrough }} }}"
        );
        let text = world(&listener) + &route("TLSRoute", "r", "", &format!("hostnames: [{names}]"));
        assert_eq!(
            hosts(&taken(&text).l4_routes[0]),
            [format!("tls={expected}")]
        );
    }
}

#[test]
fn the_older_of_two_routes_has_what_both_want_and_the_other_is_told() {
    let (old, new) = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z");
    let tcp = world("{ name: tcp, port: 25, protocol: TCP }");
    for (a, b, serving) in [
        (old, new, "a"),
        (new, old, "b"),
        (old, old, "a"),
        ("", new, "b"),
        ("", "", "a"),
    ] {
        let text = tcp.clone() + &route("TCPRoute", "a", a, "") + &route("TCPRoute", "b", b, "");
        let snapshot = taken(&text);
        let serves: Vec<_> = snapshot
            .l4_routes
            .iter()
            .filter(|one| !one.parents.is_empty())
            .map(|one| one.name.name())
            .collect();
        assert_eq!(serves, [serving], "{a} {b}");
        assert_eq!(snapshot.warnings.len(), 1);
        let warning = &snapshot.warnings[0];
        assert_eq!(&*warning.source.field, "spec.parentRefs[0]");
        assert!(warning.message.contains("listener `tcp`"), "{warning}");
        assert!(!warning.source.object.ends_with(serving), "{warning}");
    }
    // Of server names only those that both want.
    let tls = world("{ name: tls, port: 443, protocol: TLS, tls: { mode: Passthrough } }");
    let text =
        tls + &route(
            "TLSRoute",
            "a",
            old,
            "hostnames: [x.example.com, y.example.com]",
        ) + &route(
            "TLSRoute",
            "b",
            new,
            "hostnames: [y.example.com, z.example.com]",
        );
    let snapshot = taken(&text);
    assert_eq!(
        hosts(&snapshot.l4_routes[0]),
        ["tls=x.example.com,y.example.com"]
    );
    assert_eq!(hosts(&snapshot.l4_routes[1]), ["tls=z.example.com"]);
    assert!(snapshot.warnings[0].message.contains("for `y.example.com`"));
}

#[test]
fn ports_are_shared_by_what_can_be_told_apart() {
    let http = "{ name: a, port: 7, protocol: HTTP }";
    let tls =
        "{ name: b, port: 7, protocol: TLS, hostname: b.example.com, tls: { mode: Passthrough } }";
    let other =
        "{ name: c, port: 7, protocol: TLS, hostname: c.example.com, tls: { mode: Passthrough } }";
    let tcp = "{ name: d, port: 7, protocol: TCP }";
    let udp = "{ name: e, port: 7, protocol: UDP }";
    for (one, two, fits) in [
        (tls, other, true),
        (tcp, udp, true),
        (http, udp, true),
        (http, tls, false),
        (http, tcp, false),
        (tls, tcp, false),
    ] {
        let text = world(&format!("{one}, {two}"));
        assert_eq!(read(&text).is_ok(), fits, "{one} {two}");
    }
    for one in [tls, tcp, udp] {
        let again = one.replacen("name: ", "name: x", 1);
        let refused = read(&world(&format!("{one}, {again}"))).expect_err("both are the same");
        assert!(
            refused
                .to_string()
                .contains("has the port, protocol and hostname"),
            "{refused}"
        );
    }
}
