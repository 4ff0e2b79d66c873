use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::num::NonZeroU16;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use snapshot::Source;
use snapshot::model::NodePorts;

use super::*;

fn gateway(service: &str, port: Option<Port>) -> Gateway {
    let name = |name| ObjectName::new("agents", name).expect("a name");
    Gateway {
        name: name("web"),
        declared: Source::new("web.yaml", 1, "Gateway agents/web"),
        addresses: Vec::new(),
        node_ports: NodePorts::None,
        health_check: port.map(|port| NodeCheck {
            service: name(service),
            port,
        }),
        listeners: Vec::new(),
        unserved: Vec::new(),
        gate: None,
        identity: None,
    }
}

/// A port that nobody listens on.
fn free() -> Port {
    let listener = Bound::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let port = listener.local_addr().expect("an address").port();
    NonZeroU16::new(port).expect("a port")
}

/// Status and body of an answer; none: nobody listens.
fn ask(port: Port) -> Option<(u16, Value)> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port.get())).ok()?;
    let request = "GET /healthz HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    let weight = head.contains("x-load-balancing-endpoint-weight: ");
    assert!(
        weight && head.contains("content-type: application/json"),
        "{head}"
    );
    let body = serde_json::from_str(body).expect("JSON");
    Some((status.expect("a status"), body))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_answers_as_kube_proxy_does_for_as_long_as_it_is_wanted() {
    let ready = Arc::new(AtomicBool::new(true));
    let asked = Arc::clone(&ready);
    let mut checks = HealthChecks::new(Arc::new(move || asked.load(Ordering::Acquire)));
    let (start, port) = (Instant::now(), free());
    let late = start + GRACE;
    checks.follow([&gateway("lb", Some(port))].into_iter(), start);
    checks.open(start);
    assert_eq!(ask(port), None, "kube-proxy goes first");
    checks.open(late);
    let said = |endpoints: u8, healthy: bool| {
        json!({
            "service": { "namespace": "agents", "name": "lb" },
            "localEndpoints": endpoints,
            "serviceProxyHealthy": healthy,
        })
    };
    assert_eq!(ask(port), Some((200, said(1, true))));
    ready.store(false, Ordering::Release);
    assert_eq!(ask(port), Some((503, said(0, false))));
    // What stays is not closed.
    checks.follow([&gateway("lb", Some(port))].into_iter(), late);
    assert!(checks.open.contains_key(&port));
    // Another service's port waits as a new one does.
    checks.follow([&gateway("other", Some(port))].into_iter(), late);
    checks.open(late);
    assert!(checks.open.is_empty());
    checks.follow([&gateway("lb", None)].into_iter(), late);
    checks.open(late + GRACE);
    assert!(checks.open.is_empty());
}

#[tokio::test]
async fn a_port_that_somebody_has_is_left_to_them_until_they_go() {
    let mut checks = HealthChecks::new(Arc::new(|| true));
    let kube_proxy = Bound::bind((Ipv6Addr::UNSPECIFIED, 0)).expect("a free port");
    let port = kube_proxy.local_addr().expect("an address").port();
    let port = NonZeroU16::new(port).expect("a port");
    let start = Instant::now();
    checks.follow([&gateway("lb", Some(port))].into_iter(), start);
    checks.open(start + GRACE);
    assert!(checks.open.is_empty() && checks.told.contains(&port));
    drop(kube_proxy);
    checks.open(start + GRACE);
    assert!(checks.open.contains_key(&port));
}
